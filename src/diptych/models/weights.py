"""What a run leaves for use: its encoder, its projection head, and which images it learned from.

The encoder is one file: weights by their usual names, the config in the header. The head is a file
of its own: fine-tuning may begin at its first layer (SimCLR v2). Images are named by their content.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from diptych.config.files import overlay, parse_toml, rename_old, to_toml
from diptych.config.run import OWN, RunConfig
from diptych.errors import ConfigError, RunFolderError
from diptych.images.collection import ImageSet
from diptych.images.groups import among
from diptych.models.encoders import WHITENING, build_encoder, count_features, own_encoder
from diptych.models.final_features import MOST_CELLS, IntermediateLayer, Whitening, WithIntermediate
from diptych.models.heads import build_head, first_layers
from diptych.models.norms import use_norm
from diptych.models.parts import without_memory
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import RunFolder
from diptych.runs.tensor_files import UnreadableTensors, read_tensors, read_tensors_and_text


class PretrainedEncoder(nn.Module):
    """A frozen backbone with what is needed to feed it.

    Attributes:
        network: from (batch, channels, side, side) to (batch, features); the bare backbone.
        config: of the run; ``config.views`` has the side and the normalisation.
        layer: whose features stand behind those of the backbone, or None.
        whitening: of all these features, or None.
    """

    def __init__(
        self,
        network: nn.Module,
        config: RunConfig,
        whitening: Whitening | None = None,
        layer: IntermediateLayer | None = None,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.config = config
        self.whitening = whitening
        self.layer = layer
        self.eval()

    @property
    def unwhitened(self) -> nn.Module:
        """Gives the features before their whitening."""
        return self.network if self.layer is None else WithIntermediate(self.network, self.layer)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (batch, channels, side, side) to features (batch, features)."""
        features: Tensor = self.unwhitened(images)
        return features if self.whitening is None else self.whitening(features)


OF_OTHERS: Final = (
    "Weights of other libraries become one by `diptych import WEIGHTS --out x.safetensors`."
)
_LAYER: Final = "intermediate_layer"  # in the header of the file


def save_encoder(
    path: Path,
    encoder: nn.Module,
    config: RunConfig,
    *,
    whitening: Whitening | None = None,
    layer: IntermediateLayer | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Writes an encoder's weights, under torchvision's names for torchvision's networks.

    Args:
        path: of the file.
        encoder: on any device.
        config: of the run, kept in the header.
        whitening: of its features, if any.
        layer: whose features stand behind the encoder's own, if any.
        texts: more of them for the header.
    """
    state = dict(encoder.state_dict())
    header = {"config": to_toml(config), **(texts or {})}
    if layer is not None:
        header[_LAYER] = json.dumps(layer._asdict())
    if whitening is not None:
        state |= {WHITENING + name: value for name, value in whitening.state_dict().items()}
    atomic_write(path, _serialized(state, header))


def save_head(path: Path, head: nn.Module) -> None:
    """Writes a head's weights; nothing for one that has none."""
    atomic_write(path, _serialized(head.state_dict()))


def load_encoder(
    run: str | Path | RunFolder, *, head_layers: int = 0, encoder: nn.Module | None = None
) -> PretrainedEncoder:
    """Loads the trained encoder of a run, frozen and in evaluation mode.

    Args:
        run: a run folder, or its ``encoder.safetensors``.
        head_layers: hidden layers of the projection head to keep behind the encoder (SimCLR v2,
            section 2, fine-tunes from the first of three); the encoder is that of the last step
            then, which the head was trained behind.
        encoder: of a run whose encoder was given in Python, a module of the same structure; the
            weights go into a copy of it.

    Raises:
        RunFolderError: there is no such file, or it is damaged or of another network.
        ConfigError: the head has fewer hidden layers; an own encoder is missing, or there is none.
    """
    file = _encoder_file(run)
    if head_layers:
        file = _of_last_step(file)
    if not file.is_file():
        raise RunFolderError(
            f"{file} does not exist. Wanted a run folder whose training has ended; an interrupted "
            "run goes on with `diptych pretrain --resume --out RUN`."
        )
    try:
        weights, texts = read_tensors_and_text(file)
    except UnreadableTensors as error:
        raise RunFolderError(
            f"{file} is damaged: {error}. Restore it; `diptych pretrain --resume --out RUN` writes "
            "it again where the checkpoints of the run are kept."
        ) from error
    text = texts.get("config", "")
    if not text:
        raise RunFolderError(
            f"{file} is not an encoder of diptych: its header has no config. {OF_OTHERS}"
        )
    settings = parse_toml(text, str(file))
    rename_old(settings)
    config = overlay(RunConfig(), settings, str(file))
    whitening = _take_whitening(weights, file)
    if encoder is not None:
        network = _own_network(encoder, config, weights, file)
    else:
        _require_room(config, weights, file)
        network = untrained_encoder(config, checked=False)
    _fill(network, weights, file)
    layer = _layer_in(texts, network, file)
    if head_layers:
        head = _load_head(file.with_name(RunFolder(file.parent).head.name), network, config)
        # The head was trained on features as they are.
        return PretrainedEncoder(nn.Sequential(network, first_layers(head, head_layers)), config)
    encoder = PretrainedEncoder(network, config, whitening, layer)
    _require_as_long(encoder, file)
    return encoder


def load_state(file: Path, config: RunConfig) -> dict[str, Tensor]:
    """The state of an encoder from a file, compared with what a config means.

    Raises:
        RunFolderError: the file is damaged, or of another network.
    """
    try:
        weights = read_tensors(file)
    except UnreadableTensors as error:
        raise RunFolderError(f"{file} is missing or damaged: {error}. Restore it.") from error
    _require_room(config, weights, file)
    return weights


def load_untrained(
    folder: RunFolder, config: RunConfig, encoder: nn.Module | None = None
) -> PretrainedEncoder:
    """The encoder as the run began with it, frozen and in evaluation mode.

    Args:
        folder: of the run.
        config: of the run.
        encoder: as in ``load_encoder``.
    """
    if encoder is not None:
        return load_encoder(folder.untrained, encoder=encoder)
    return PretrainedEncoder(untrained_encoder(config), config)


def load_head(run: str | Path | RunFolder, *, encoder: nn.Module | None = None) -> nn.Module:
    """Loads the trained projection head of a run, frozen and in evaluation mode.

    It was trained behind the encoder of the last step, which need not be the one that the run
    keeps; ``load_with_head`` gives both.

    Args:
        run: a run folder, or its ``encoder.safetensors`` with ``head.safetensors`` beside it.
        encoder: as in ``load_encoder``.

    Raises:
        RunFolderError: one of the two files is missing, damaged or of another network, or the run
            has a head of another kind, as a student's classifier.
    """
    return load_with_head(run, encoder=encoder)[1]


def load_with_head(
    run: str | Path | RunFolder, *, encoder: nn.Module | None = None
) -> tuple[PretrainedEncoder, nn.Module]:
    """The encoder of the last step of a run, and the projection head that was trained behind it.

    Args:
        run: as in ``load_head``.
        encoder: as in ``load_encoder``.

    Raises:
        RunFolderError: as ``load_head``.
    """
    encoder_file, head_file = head_files(run)
    trained = load_encoder(encoder_file, encoder=encoder)
    head = _load_head(head_file, trained.network, trained.config)
    return trained, head.requires_grad_(False).eval()


def head_files(run: str | Path | RunFolder) -> tuple[Path, Path]:
    """The files of the encoder of the last step, and of the head that was trained behind it."""
    file = _of_last_step(_encoder_file(run))
    return file, RunFolder(file.parent).head


def _encoder_file(run: str | Path | RunFolder) -> Path:
    path = run.path if isinstance(run, RunFolder) else Path(run)
    return RunFolder(path).encoder if path.is_dir() else path


def _of_last_step(file: Path) -> Path:
    """The encoder of the last step beside that which a run keeps, where these may differ."""
    folder = RunFolder(file.parent)
    return folder.last if file == folder.encoder and folder.last.is_file() else file


def untrained_head(config: RunConfig, encoder: nn.Module) -> nn.Module:
    """The projection head as the run began with it.

    Args:
        config: of the run.
        encoder: of the run, trained or not; it says how long features are.
    """
    features = count_features(
        encoder, channels=config.images.channels, side_pixels=config.views.side_pixels
    )
    # The seed that training gives to the head.
    return use_norm(build_head(config.head, features=features, seed=config.seed + 1), config.norm)


def untrained_encoder(config: RunConfig, *, checked: bool = True) -> nn.Module:
    """The encoder as the run began with it: random weights from its seed.

    Args:
        config: of the run.
        checked: see ``build_encoder``.
    """
    encoder = build_encoder(
        config.encoder,
        channels=config.images.channels,
        side_pixels=config.views.side_pixels,
        seed=config.seed,
        checked=checked,
    )
    return use_norm(encoder, config.norm).to(memory_format=torch.channels_last)


def encoder_structure(config: RunConfig) -> nn.Module:
    """The encoder of a run with the names, shapes and types of its tensors, and no memory."""
    with without_memory():
        return untrained_encoder(config, checked=False)


@dataclass(frozen=True)
class TrainedOn:
    """The images that pretraining learned from.

    Attributes:
        checksums: (images, 2), of each image's content; see ``ImageSet``.
        labels_used: whether it learned from their labels too.
    """

    checksums: NDArray[np.uint64]
    labels_used: bool = False

    def saw(self, images: ImageSet) -> NDArray[np.bool_] | None:
        """Whether it learned from each image, whatever its name; None where that is not known."""
        return among(images.checksums, self.checksums)


def trained_on(images: Sequence[ImageSet], *, labels_used: bool) -> TrainedOn | None:
    """What a run that learns from some sets will have seen; None where that is not known."""
    found = [one.checksums for one in images if one.checksums is not None]
    return TrainedOn(np.concatenate(found), labels_used) if len(found) == len(images) else None


def save_trained_on(path: Path, seen: TrainedOn | None) -> None:
    """Writes it as a tensor of 64-bit integers; nothing where it is not known.

    Raises:
        OSError: it cannot be written.
    """
    if seen is not None:
        # Viewed and not converted: half of the checksums are too large for int64.
        tensor = torch.from_numpy(np.ascontiguousarray(seen.checksums).view(np.int64))
        header = {"labels_used": json.dumps(seen.labels_used)}
        atomic_write(path, save({"checksums": tensor}, metadata=header))


def load_trained_on(path: Path) -> TrainedOn | None:
    """Reads it; None for a run of before it was kept.

    Raises:
        RunFolderError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        tensors, texts = read_tensors_and_text(path)
        found, labels_used = tensors["checksums"], json.loads(texts.get("labels_used", "false"))
        if found.dtype != torch.int64 or found.ndim != 2 or found.shape[1] != 2:
            raise ValueError(f"checksums of {found.dtype} and shape {tuple(found.shape)}")
    except (UnreadableTensors, ValueError, KeyError) as error:
        raise RunFolderError(
            f"{path}, which says what images the run learned from, is damaged: {error}. Restore "
            "it; without the file it is not known whether the run saw the images it is measured on."
        ) from error
    return TrainedOn(found.numpy().view(np.uint64), bool(labels_used))


def _serialized(state: Mapping[str, Tensor], header: dict[str, str] | None = None) -> bytes:
    # Copies, as the format refuses tensors that share memory; tied weights are written twice.
    weights = {
        name: torch.clone(value.cpu(), memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    return save(weights, metadata=header)


def _take_whitening(weights: dict[str, Tensor], file: Path) -> Whitening | None:
    """The whitening in the file of an encoder, if there is one; its tensors are taken out."""
    names = [name for name in weights if name.startswith(WHITENING)]
    if not names:
        return None
    found = {name.removeprefix(WHITENING): weights.pop(name) for name in names}
    mean, weight = found.pop("mean", None), found.pop("weight", None)
    if found or mean is None or weight is None or mean.ndim != 1:
        raise RunFolderError(_misfit(file, "its whitening is not a mean and a matrix"))
    if weight.shape != (len(mean), len(mean)) or {mean.dtype, weight.dtype} != {torch.float32}:
        raise RunFolderError(_misfit(file, f"its whitening is {_form(weight.shape, weight.dtype)}"))
    return Whitening(mean, weight)


def _layer_in(texts: Mapping[str, str], network: nn.Module, file: Path) -> IntermediateLayer | None:
    """The layer that the header of an encoder's file names, if it names one."""
    if (text := texts.get(_LAYER)) is None:
        return None
    try:
        layer = IntermediateLayer(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        raise RunFolderError(_misfit(file, f"its {_LAYER} is {text[:80]!r}")) from None
    known = isinstance(layer.name, str) and layer.name in dict(network.named_modules())
    if not (known and type(layer.cells) is int and 1 <= layer.cells <= MOST_CELLS):
        raise RunFolderError(_misfit(file, f"its {_LAYER} is {text[:80]!r}"))
    return layer


def _require_as_long(encoder: PretrainedEncoder, file: Path) -> None:
    """Refuses a layer without a map, and a whitening of other features than there are."""
    if encoder.layer is None and encoder.whitening is None:
        return
    config = encoder.config
    side, channels = config.views.side_pixels, config.images.channels
    try:
        features = count_features(
            encoder.unwhitened, channels=channels, side_pixels=side, computed=False
        )
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise RunFolderError(_misfit(file, f"its {_LAYER} gives no map")) from error
    if encoder.whitening is not None and len(encoder.whitening.mean) != features:
        known = len(encoder.whitening.mean)
        raise RunFolderError(_misfit(file, f"its whitening is of {known} features, not {features}"))


def _load_head(file: Path, encoder: nn.Module, config: RunConfig) -> nn.Module:
    if not config.has_projection_head:
        raise RunFolderError(
            f"{file} is no projection head and has no hidden layers to keep: the method of the run "
            f"is {config.method_name!r}. Use the encoder alone."
        )
    try:
        weights = read_tensors(file)
    except UnreadableTensors as error:
        raise RunFolderError(f"{file} is missing or damaged: {error}. Restore it.") from error
    features = count_features(
        encoder,
        channels=config.images.channels,
        side_pixels=config.views.side_pixels,
        computed=False,
    )
    with without_memory():  # a hostile config must not take memory before it is compared
        room = use_norm(build_head(config.head, features=features, seed=config.seed), config.norm)
    _require_alike(room, weights, file)
    head = use_norm(build_head(config.head, features=features, seed=config.seed), config.norm)
    head.load_state_dict(weights)
    return head


def _require_room(config: RunConfig, weights: dict[str, Tensor], file: Path) -> None:
    """Refuses weights of another network than the config says, before memory is taken for one.

    Whatever the config says, no more is taken than the file is large.
    """
    if sum(config.encoder.stage_blocks) > max(
        len(weights), 3
    ):  # three: of other networks than ours
        raise RunFolderError(_misfit(file, "more blocks than tensors"))
    try:
        network = encoder_structure(config)
    except (RuntimeError, TypeError, ValueError) as error:
        raise RunFolderError(_misfit(file, str(error).partition("\n")[0])) from error
    _require_alike(network, weights, file)


def _require_alike(network: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    """Refuses weights whose names, shapes or types are not those of a network."""
    if (found := difference(network.state_dict(), weights)) is not None:
        raise RunFolderError(_misfit(file, found))


def difference(wanted: Mapping[str, Tensor], came: Mapping[str, Tensor]) -> str | None:
    """The first tensor whose name, shape or type is not the one wanted, in words; None for none."""
    ours, theirs = (
        {name: (one.shape, one.dtype) for name, one in state.items()} for state in (wanted, came)
    )
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            there = _form(*theirs[name]) if name in theirs else "missing"
            needed = _form(*ours[name]) if name in ours else "not needed"
            return f"{name} is {there} there, {needed} here"
    return None


def _form(shape: torch.Size, kind: torch.dtype) -> str:
    return f"{tuple(shape)} of {kind}"


def _misfit(file: Path, what: str) -> str:
    return (
        f"{file} does not fit the config in its own header: {what}. It was written by another "
        "version of diptych, or changed since; restore it."
    )


def _own_network(
    encoder: nn.Module, config: RunConfig, weights: dict[str, Tensor], file: Path
) -> nn.Module:
    """A copy of a module that was given, to be filled with the weights of a run."""
    if config.encoder.name != OWN:
        raise ConfigError(
            f"{file} is of the network {config.encoder.name!r}, which diptych builds by itself; "
            "leave out encoder=."
        )
    network = own_encoder(
        encoder, channels=config.images.channels, side_pixels=config.views.side_pixels
    )
    network = use_norm(network, config.norm)
    require_built_alike(network, weights, file)
    return network.to(memory_format=torch.channels_last)


def require_built_alike(encoder: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    """Refuses a module that was given in Python and is not built as that which a file is of."""
    if (found := difference(encoder.state_dict(), weights)) is not None:
        raise ConfigError(
            f"{file} does not fit the module given as encoder=: {found}. Give one that is built as "
            "that which was trained."
        )


def _fill(network: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    _require_alike(network, weights, file)
    network.load_state_dict(weights, strict=True)
