"""Weights to start from: what they mean for a run's settings, and the encoder that holds them.

A run reads foreign weights once, before it begins, and keeps them in its folder as an encoder of
its own; from then on only that file is read. ``diptych import`` writes the same kind of file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from torch import nn

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.files import overlay
from diptych.config.model import EncoderConfig
from diptych.config.run import OWN, RunConfig
from diptych.errors import ConfigError
from diptych.models.encoders import SMALL_RESNET, TIMM, build_encoder, torchvision_names
from diptych.models.fit_weights import fit_weights, stem_of
from diptych.models.foreign import Candidate, candidates
from diptych.models.weight_files import (
    LOCAL,
    WeightFile,
    file_checksum,
    is_fetched,
    read_weights,
)
from diptych.models.weights import (
    PretrainedEncoder,
    encoder_structure,
    load_encoder,
    load_state,
    save_encoder,
    untrained_encoder,
)
from diptych.runs.folder import RunFolder
from diptych.runs.tensor_files import read_tensors_and_text

_SIDES: Final = {"imagenet": 224, "small": 32, "small_padded": 32}  # of images, where none is said


@dataclass(frozen=True)
class StartWeights:
    """Weights that were read, and the settings that go with them.

    Attributes:
        file: what was read.
        settings: of ``encoder``, ``norm`` and ``views``, nested tables; the user's override them.
    """

    file: WeightFile
    settings: Mapping[str, Mapping[str, Any]]

    @property
    def says_normalisation(self) -> bool:
        """Whether it is known how pixels were normalised."""
        return "views" in self.settings

    def applied_to(self, config: RunConfig) -> RunConfig:
        """A config with these settings in the place of its own."""
        # What else the config says of its encoder was meant for that one.
        config = replace(config, encoder=EncoderConfig(stem="imagenet"))
        return overlay(config, self.settings, f"the weights {self.file.origin}")


@dataclass(frozen=True)
class StartEncoder:
    """An encoder that holds foreign weights.

    Attributes:
        network: as ``untrained_encoder`` builds it.
        texts: where the weights are from, for the header of a file.
        sentences: what matched, what was left out and why, what was adapted.
    """

    network: nn.Module
    texts: Mapping[str, str]
    sentences: list[str]

    def write(self, path: Path, config: RunConfig) -> None:
        """Writes it as an encoder of diptych."""
        save_encoder(path, self.network, config, texts=self.texts)


def read_start(text: str, encoder: str | None, *, otherwise: str | None = None) -> StartWeights:
    """Reads weights, and finds which encoder they are of.

    Args:
        text: as ``encoder.weights`` has it.
        encoder: the name that is asked for, if any.
        otherwise: the name to take where neither that nor the weights say one.

    Raises:
        ConfigError: they cannot be read, or it is not known which encoder they are of.
    """
    if encoder == OWN:
        raise ConfigError(
            "encoder.weights go with an encoder by name; load weights into the module that you "
            "give as encoder= yourself."
        )
    file = read_weights(text, encoder or otherwise)
    likeliest = _likeliest(file)
    shown = {} if likeliest is None else likeliest.settings
    settings = {**shown, **file.settings}
    settings["encoder"] = _encoder_settings(
        {**shown.get("encoder", {}), **file.settings.get("encoder", {})}, encoder, otherwise, text
    )
    return StartWeights(file, settings)


def fit_start(start: StartWeights, config: RunConfig) -> StartEncoder:
    """The encoder of a config with the weights in it.

    Raises:
        ConfigError: they do not fit it, or are not finite.
    """
    room = encoder_structure(config)  # weights of another network must not take memory first
    origin = start.file.origin
    fitted = fit_weights(start.file.content, room, config.views, origin)
    network = untrained_encoder(config)
    network.load_state_dict(fitted.state)
    sentences = list(fitted.sentences)
    if config.encoder.stem == "small_padded":
        sentences.append(
            "The first convolution is 3x3 and is taken to have solo-learn's border of 2 pixels; "
            "of a network with a border of 1, give --encoder.stem small."
        )
    is_vit_small = config.encoder.name.removeprefix(TIMM).startswith("vit_small_")
    if is_vit_small and "encoder" not in start.file.settings:
        sentences.append(_words_on_heads(config.encoder.attention_heads))
    if not start.says_normalisation:
        sentences.append(
            "The weights do not say how pixels were normalised; views.pixel_mean and "
            "views.pixel_std are those of ImageNet unless you set them."
        )
    if start.file.licence:
        sentences.append(f"Their licence is {start.file.licence}.")
    return StartEncoder(network, start.file.texts, sentences)


def start_of_run(file: Path, config: RunConfig) -> StartEncoder | None:
    """The start of an earlier run of the same encoder, for one that begins from it; if it has one.

    Raises:
        RunFolderError: the file is damaged, or of another network.
    """
    if not file.exists():
        return None
    network = untrained_encoder(config)
    network.load_state_dict(load_state(file, config))
    _, texts = read_tensors_and_text(file)
    texts.pop("config", None)
    return StartEncoder(network, texts, [])


def load_start(file: Path, config: RunConfig) -> nn.Module:
    """The encoder that a run with weights begins with, before its norms are replaced.

    Args:
        file: ``RunFolder.start``.
        config: of the run.

    Raises:
        RunFolderError: the file is damaged, or of another network.
    """
    network = build_encoder(
        config.encoder,
        channels=config.images.channels,
        side_pixels=config.views.side_pixels,
        seed=config.seed,
        several_sides=bool(config.views.smaller_sides),
    )
    # Not strictly: norms that have no statistics come later, in the place of these. The state
    # has been compared with the whole network by then.
    network.load_state_dict(load_state(file, config), strict=False)
    return network


def import_encoder(
    text: str,
    *,
    encoder: str | None = None,
    otherwise: str | None = None,
    side_pixels: int | None = None,
) -> tuple[StartEncoder, RunConfig]:
    """Foreign weights as an encoder of diptych, with a config that says how to feed it.

    Args:
        text: as ``encoder.weights`` has it.
        encoder: the network that they are of; found from them when not given.
        otherwise: the network to take where that is not given and not found.
        side_pixels: of the images that it shall see; what the weights say when not given, else 224,
            or 32 for the small stems.
    """
    return _imported(read_start(text, encoder, otherwise=otherwise), side_pixels)


def _imported(start: StartWeights, side_pixels: int | None) -> tuple[StartEncoder, RunConfig]:
    config = start.applied_to(RunConfig())
    side = side_pixels or start.file.side_pixels or _SIDES[config.encoder.stem]
    views = ViewsConfig(
        side_pixels=side, pixel_mean=config.views.pixel_mean, pixel_std=config.views.pixel_std
    )
    channels = start.file.channels or _channels(start)
    color: Literal["rgb", "gray", "raw"] = {1: "gray", 3: "rgb"}.get(channels, "raw")  # type: ignore[assignment]
    images = ImagesConfig(
        color=color,
        raw_channels=channels if color == "raw" else None,
        decoded_side=views.image_side,
    )
    config = replace(config, images=images, views=views)
    return fit_start(start, config), config


@dataclass(frozen=True)
class OpenedEncoder:
    """An encoder to use, and where it is from.

    Attributes:
        encoder: frozen.
        sha256: of its file, or of its tensors where they were fetched.
        run: the run folder or encoder file of diptych that it is from; None of foreign weights.
        sentences: of foreign weights, what matched and what was left out.
        licence: of foreign weights, where that is said.
    """

    encoder: PretrainedEncoder
    sha256: str
    run: Path | None = None
    sentences: Sequence[str] = ()
    licence: str = ""


def open_encoder(
    text: str,
    *,
    encoder: str | None = None,
    otherwise: str | None = None,
    side_pixels: int | None = None,
) -> OpenedEncoder:
    """Opens an encoder to use: a run's, or foreign weights.

    Args:
        text: a run folder or encoder file, or as ``encoder.weights`` has it.
        encoder: as in ``import_encoder``; of foreign weights only.
        otherwise: as in ``import_encoder``.
        side_pixels: as in ``import_encoder``; of foreign weights only.

    Raises:
        RunFolderError, ConfigError: there is none, or it cannot be read.
    """
    path = Path(text)
    named = is_fetched(text) or text.startswith(LOCAL) or (path / "config.json").is_file()
    own = path
    if named or path.is_file():
        start = read_start(text, encoder, otherwise=otherwise)
        if start.file.own is None:
            started, config = _imported(start, side_pixels)
            network, found = PretrainedEncoder(started.network, config), start.file
            return OpenedEncoder(
                network, found.sha256, sentences=started.sentences, licence=found.licence
            )
        own = start.file.own
    if encoder is not None or side_pixels is not None:
        raise ConfigError(
            f"{text} is an encoder of diptych, which says what network it is of and what it sees. "
            "--encoder and --side go with weights of other libraries; leave them away."
        )
    folder = RunFolder(own if own.is_dir() else own.parent)  # refuses a URL
    loaded = load_encoder(own)
    file = folder.encoder if own.is_dir() else own
    return OpenedEncoder(loaded, file_checksum(file), own)


def load_compared(text: str, otherwise: str) -> PretrainedEncoder:
    """An encoder to compare with; see ``open_encoder``."""
    return open_encoder(text, otherwise=otherwise).encoder


def _likeliest(file: WeightFile) -> Candidate | None:
    """The first reading of a file that shows which network it is of."""
    return next((one for one in candidates(file.content) if one.settings["encoder"]), None)


def _encoder_settings(
    found: Mapping[str, Any], asked: str | None, otherwise: str | None, text: str
) -> Mapping[str, Any]:
    """Settings of the encoder: as found, if the name that is asked for is the same."""
    name = asked or found.get("name") or otherwise
    if name is None:
        raise ConfigError(
            f"weights = {text!r} do not show which network they are of. Name it: --encoder NAME, "
            "as torchvision or timm call it."
        )
    if name == found.get("name"):
        return found
    plain = name.removeprefix(TIMM)
    if plain == found.get("name") and plain not in torchvision_names():
        return {**found, "name": name}
    stem = "small" if name == SMALL_RESNET else found.get("stem", "imagenet")
    return {"name": name, "stem": stem}


def _words_on_heads(attention_heads: int | None) -> str:
    """Of a ViT-S, which two kinds of weights fit alike."""
    if attention_heads is None:
        return (
            "The shapes of a ViT-S do not tell its attention heads: it is taken to have 6, as in "
            "DeiT and DINO. Of MoCo v3's, give --encoder.attention-heads 12."
        )
    return (
        f"The shapes of a ViT-S do not tell its attention heads: it is taken to have "
        f"{attention_heads}. MoCo v3's has 12; of DeiT's and DINO's, give "
        "--encoder.attention-heads 6."
    )


def _channels(start: StartWeights) -> int:
    """Channels of the images that the first convolution sees."""
    network = encoder_structure(start.applied_to(RunConfig(views=ViewsConfig(side_pixels=224))))
    name, shape = stem_of(network), network.state_dict()[stem_of(network)].shape
    for one in candidates(start.file.content):
        if name in one.tensors and one.tensors[name].shape[2:] == shape[2:]:
            return int(one.tensors[name].shape[1])
    return 3
