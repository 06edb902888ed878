"""Weights from elsewhere as they lie on disk: found by name, and read without running anything.

A file may come from anyone. Safetensors holds tensors only. Files of torch are read by its
restricted unpickler, which refuses every object but tensors and plain containers.
"""

import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from diptych.config.files import flatten, overlay, parse_toml, rename_old
from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.models.encoders import torchvision_names
from diptych.models.resnets import STAGE_BLOCKS
from diptych.runs.folder import RunFolder
from diptych.runs.tensor_files import UnreadableTensors, read_tensors_and_text, tensor_bytes

LOCAL: Final = "local-dir:"
HUB: Final = "hf-hub:"
PRETRAINED: Final = "pretrained"
_FOLDER_FILES: Final = ("model.safetensors", "pytorch_model.bin")
_PREPROCESSING: Final = "preprocessor_config.json"  # of transformers
_TEXT_BYTES: Final = 1 << 20  # of a config.json, at most
_SPARE_BYTES: Final = 1 << 20  # beyond four times the file, of tensors that share memory

_CONVERT: Final = """\
    import torch
    found = torch.load({path!r}, map_location="cpu", weights_only=False)
    found = found.state_dict() if hasattr(found, "state_dict") else found
    keep = lambda part: {{
        name: keep(one) if isinstance(one, dict) else one
        for name, one in part.items()
        if isinstance(one, (dict, torch.Tensor))
    }}
    torch.save(keep(found), {plain!r})"""
_OF_TRAINING: Final = (
    *("weights", "freeze_patches", "frozen_parts", "frozen_epochs", "batch_statistics"),
)
"""Settings of an encoder that say how it was trained, not what it is."""


@dataclass(frozen=True)
class WeightFile:
    """Weights as they were read, and what is said beside them.

    Attributes:
        origin: as it was named.
        content: the file's, mappings of tensors, maybe in each other.
        sha256: of the file's bytes, or of the tensors where they were fetched.
        settings: of a run, as far as they are said there: nested tables, of ``encoder``, ``norm``
            and ``views``.
        channels: of the images that the encoder sees, where that is said.
        side_pixels: of the images that it was made for, where that is said.
        licence: where that is said.
        own: the file, where diptych wrote it.
    """

    origin: str
    content: Mapping[str, Any]
    sha256: str
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    channels: int | None = None
    side_pixels: int | None = None
    licence: str = ""
    own: Path | None = None

    @property
    def texts(self) -> dict[str, str]:
        """What is known of where the weights come from, for the header of a file."""
        side = "" if self.side_pixels is None else str(self.side_pixels)
        found = {"source": self.origin, "sha256": self.sha256, "licence": self.licence}
        return {name: text for name, text in (found | {"input_size": side}).items() if text}


def absolute_source(text: str) -> str:
    """The same weights, from any folder.

    >>> absolute_source("pretrained:a1_in1k"), absolute_source("hf-hub:timm/resnet18.a1_in1k")
    ('pretrained:a1_in1k', 'hf-hub:timm/resnet18.a1_in1k')
    """
    if is_fetched(text) or not text:
        return text
    prefix = LOCAL if text.startswith(LOCAL) else ""
    return prefix + str(Path(text.removeprefix(LOCAL)).expanduser().absolute())


def is_fetched(text: str) -> bool:
    """Whether timm or torchvision must bring the weights."""
    return text.startswith(HUB) or text.partition(":")[0] == PRETRAINED


def read_weights(text: str, encoder: str | None) -> WeightFile:
    """Reads the weights that a name stands for.

    Args:
        text: a file, a run folder, ``local-dir:FOLDER``, ``hf-hub:NAME`` or ``pretrained[:TAG]``.
        encoder: the network that is asked for, if any; ``pretrained`` needs it.

    Raises:
        ConfigError: there are no such weights, they cannot be read safely, or not be fetched.
    """
    if is_fetched(text):
        return _fetched(text, encoder)
    path = Path(text.removeprefix(LOCAL))
    if text.startswith(LOCAL) or (path / "config.json").is_file():
        return _read_folder(text, path)
    if path.is_dir():
        file = RunFolder(path).encoder
        if not file.is_file():
            raise ConfigError(
                f"weights = {text!r}: wanted a file, a run folder whose training has ended, or a "
                f"folder with config.json; {file} does not exist. Name the file of weights."
            )
        path = file
    content, texts = _read_file(path)
    sha256 = file_checksum(path)
    if not texts.get("config"):
        return WeightFile(text, content, sha256)
    return _own_file(text, content, texts, sha256, path)


def _own_file(
    text: str, content: Mapping[str, Any], texts: Mapping[str, str], sha256: str, path: Path
) -> WeightFile:
    """An encoder that diptych wrote, with its config."""
    given = parse_toml(texts["config"], str(path))
    rename_old(given)
    config = overlay(RunConfig(), given, str(path))
    plain = EncoderConfig()
    trained = {name: getattr(plain, name) for name in _OF_TRAINING}
    encoder = flatten(replace(config.encoder, **trained))
    views = {"pixel_mean": config.views.pixel_mean, "pixel_std": config.views.pixel_std}
    settings: dict[str, Mapping[str, Any]] = {"encoder": encoder, "views": views}
    if config.norm.is_per_image:  # of others the weights have the same names
        settings["norm"] = {"kind": config.norm.kind, "group": flatten(config.norm.group)}
    return WeightFile(
        text,
        content,
        sha256,
        settings,
        channels=config.images.channels,
        side_pixels=config.views.side_pixels,
        licence=texts.get("licence", ""),
        own=path,
    )


# --- files ------------------------------------------------------------------------------------


def _read_file(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """The content of a file, and the texts of its header if it has any."""
    try:
        with open(path, "rb") as file:
            begin = file.read(9)
    except OSError as error:
        raise ConfigError(
            f"weights = {str(path)!r} cannot be read: {error.strerror}. Wanted a file of weights, "
            f"a run folder, {LOCAL}FOLDER, {HUB}NAME or {PRETRAINED}."
        ) from error
    # By content where the suffix does not say: safetensors has its header's length, then JSON.
    if path.suffix == ".safetensors" or begin[8:9] == b"{":
        try:
            return read_tensors_and_text(path)
        except UnreadableTensors as error:
            raise ConfigError(
                f"{path} is not a safetensors file that can be read: {error}. Fetch it again."
            ) from error
    content = _load_restricted(path, is_zip=begin[:4] == b"PK\x03\x04")
    _require_own_memory(path, content)
    return content, {}


def _load_restricted(path: Path, *, is_zip: bool) -> Mapping[str, Any]:
    """A file of ``torch.save``, by the unpickler that builds tensors and plain containers only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of storages of older versions
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # the bytes are anyone's: what they make torch raise is as well
        if (refused := _refused_global(error)) is not None:
            plain = str(path.with_suffix(".plain.pt"))
            snippet = _CONVERT.format(path=str(path), plain=plain)
            raise ConfigError(
                f"{path} holds a Python object, {refused}, and building it would run code, so the "
                "file is not read. If you trust it, keep its tensors alone: run this in the "
                f"environment that wrote it, then give {plain}:\n{snippet}"
            ) from error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"{path} is not a file of weights that can be read: {reason}. Wanted safetensors, or a "
            "state dict by torch.save; fetch it again, or convert it."
        ) from error
    if not isinstance(found, Mapping):
        raise ConfigError(
            f"{path} holds a {type(found).__name__}; wanted a mapping of names to tensors."
        )
    return found


def _refused_global(error: Exception) -> str | None:
    """What torch's unpickler refused to import, if that is why it failed."""
    named = re.search(r"GLOBAL (\S+)|function (\S+)|<class '([\w.]+)'>", str(error))
    return next(filter(None, named.groups())) if named else None


def _require_own_memory(path: Path, content: Mapping[str, Any]) -> None:
    """Refuses tensors that are far larger than the file: views of a few bytes, repeated."""
    most = 4 * path.stat().st_size + _SPARE_BYTES
    total = 0
    for tensor in tensors_in(content):
        if tensor.layout == torch.strided:
            total += tensor.numel() * tensor.element_size()
    if total > most:
        raise ConfigError(
            f"{path} has {path.stat().st_size:,} bytes, and its tensors would have {total:,}: they "
            "are views of each other. Wanted each by itself; save clones of them."
        )


def tensors_in(content: Mapping[str, Any], depth: int = 8) -> Iterator[Tensor]:
    """Every tensor of nested mappings."""
    for value in content.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping) and depth:
            yield from tensors_in(value, depth - 1)


def file_checksum(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- timm's folders, and what is fetched --------------------------------------------------------


def _read_folder(text: str, folder: Path) -> WeightFile:
    """A folder of timm's layout: config.json beside the weights."""
    file = next((folder / one for one in _FOLDER_FILES if (folder / one).is_file()), None)
    if file is None:
        raise ConfigError(
            f"weights = {text!r}: wanted a folder with {' or '.join(_FOLDER_FILES)}, and "
            f"config.json beside it; {folder} has none of them."
        )
    content, _ = _read_file(file)
    described = folder / "config.json"
    config = _read_json(described) if described.is_file() else {}
    beside = folder / _PREPROCESSING
    if "pretrained_cfg" not in config and beside.is_file():
        config = _of_transformers(_read_json(beside))
    return _described(text, content, file_checksum(file), config, str(described))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(_TEXT_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON that can be read: {error}. Restore it.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} must hold a table; got a {type(found).__name__}.")
    return found


def _of_transformers(found: Mapping[str, Any]) -> dict[str, Any]:
    """How transformers feeds a network, as timm would say it."""
    about = {name: found[f"image_{name}"] for name in ("mean", "std") if f"image_{name}" in found}
    side = found["size"].get("height") if isinstance(found.get("size"), Mapping) else None
    if type(side) is int:
        about["input_size"] = [3, side, side]
    return {"pretrained_cfg": about if found.get("do_normalize", True) else {}}


def _described(
    text: str, content: Mapping[str, Any], sha256: str, config: Mapping[str, Any], where: str
) -> WeightFile:
    """Weights with what timm says of them: ``architecture`` and ``pretrained_cfg``."""
    about = config.get("pretrained_cfg", config)
    about = about if isinstance(about, Mapping) else {}
    settings: dict[str, dict[str, Any]] = {}
    name = config.get("architecture", about.get("architecture"))
    if isinstance(name, str):
        # Their ResNets are torchvision's too; of other names each library has its own network.
        settings["encoder"] = {"name": name if name in STAGE_BLOCKS else f"timm:{name}"}
    views = {f"pixel_{one}": _three(about[one], where) for one in ("mean", "std") if one in about}
    if views:
        settings["views"] = views
    size, licence = about.get("input_size"), about.get("license")
    sized = isinstance(size, list | tuple) and all(type(one) is int for one in size)
    return WeightFile(
        text,
        content,
        sha256,
        settings,
        side_pixels=size[-1] if sized and size else None,
        licence=licence if isinstance(licence, str) else "",
    )


def _three(values: Any, where: str) -> tuple[float, float, float]:
    """A mean or a standard deviation of three channels; one number stands for all."""
    numbers = values if isinstance(values, list | tuple) else [values]
    if all(isinstance(n, float | int) and math.isfinite(n) for n in numbers):
        found = [float(n) for n in numbers] * (3 if len(numbers) == 1 else 1)
        if len(found) == 3:
            return (found[0], found[1], found[2])
    raise ConfigError(f"{where}: wanted a mean and a std of three numbers; got {values!r}.")


def _fetched(text: str, encoder: str | None) -> WeightFile:
    """Weights that timm or torchvision bring."""
    if not text.startswith(HUB) and encoder is None:
        raise ConfigError(
            f"weights = {text!r} are those of a network of torchvision or timm; say which, as "
            "--encoder resnet18."
        )
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            state, config = fetch(text, encoder or "")
    except Exception as error:  # of the network, of the library, of what it downloaded
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"weights = {text!r} could not be fetched: {reason}. See that this machine reaches the "
            "network and that there are such weights; or fetch them elsewhere, and give the file "
            "or its folder: --weights FILE, --weights local-dir:FOLDER."
        ) from error
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    found = f"{text} of {encoder}" if encoder and not text.startswith(HUB) else text
    return _described(found, state, digest.hexdigest(), config, text)


def fetch(text: str, encoder: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Lets timm or torchvision bring weights: the only place that reaches the network.

    Args:
        text: ``hf-hub:NAME``, or ``pretrained[:TAG]`` of the encoder.
        encoder: a name as ``encoder.name`` has it.

    Returns:
        The state, classifier included, and what timm's config.json would say of it.
    """
    tag = text.partition(":")[2]
    if not text.startswith(HUB) and encoder in torchvision_names():
        import torchvision.models

        weights = torchvision.models.get_model_weights(encoder)[tag or "DEFAULT"]
        transforms = weights.transforms()
        about = {"mean": transforms.mean, "std": transforms.std}
        about["license"] = weights.meta.get("license")
        about["input_size"] = [3, transforms.crop_size[0], transforms.crop_size[0]]
        state = torchvision.models.get_model(encoder, weights=weights).state_dict()
        return state, {"pretrained_cfg": about}
    import timm

    name = text if text.startswith(HUB) else encoder.removeprefix("timm:") + (f".{tag}" * bool(tag))
    network: Any = timm.create_model(name, pretrained=True)
    about = dict(network.pretrained_cfg)
    described = {"architecture": about.get("architecture"), "pretrained_cfg": about}
    return network.state_dict(), described
