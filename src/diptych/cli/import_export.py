"""The verbs `import` and `export`: encoders from other libraries, and for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from diptych.cli.flags import parse
from diptych.errors import ConfigError, saving
from diptych.runs.own_tables import require_no_input


@dataclass(frozen=True)
class ImportFlags:
    """What `diptych import` takes."""

    weights: Positional[str]
    """A file of weights, local-dir:FOLDER, hf-hub:NAME or pretrained. docs/weights.md lists the
    libraries whose files are read."""
    out: Annotated[Path, arg(aliases=["-o"])]
    """The encoder file to write, as x.safetensors; one that is there is replaced."""
    encoder: str | None = None
    """The network that the weights are of, as torchvision or timm call it; found from them where
    their names and shapes show it."""
    side: int | None = None
    """Height and width in pixels of the images that it shall see. What the weights say by default,
    else 224, or 32 for a ResNet with the small stem."""


def import_(arguments: Sequence[str]) -> None:
    """Write weights of another library as an encoder file of diptych.

    `diptych embed` and `export`, --weights of `pretrain` and `views`, and --against of `evaluate`
    take it.

    Nothing in the file is run: tensors are read, and nothing else.

    Examples:
      diptych import moco_v2_800ep.pth.tar --out moco.safetensors
      diptych import pretrained --encoder resnet18 --out imagenet.safetensors
      diptych embed imagenet.safetensors photos/ -o features/
    """
    flags = parse(ImportFlags, import_, arguments)
    from diptych.models.start import import_encoder

    console = Console(markup=False)
    if flags.out.is_dir():
        raise ConfigError(f"--out {flags.out} is a folder; wanted a file, as x.safetensors.")
    require_no_input(flags.out, (flags.weights,))
    started, config = import_encoder(flags.weights, encoder=flags.encoder, side_pixels=flags.side)
    for sentence in started.sentences:
        console.print(sentence, highlight=False)
    with saving(f"{flags.out} cannot be written", "give the same command again"):
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        started.write(flags.out, config)
    console.print(
        f"Encoder: {flags.out}, {config.encoder.name} for images of {config.views.side_pixels} "
        "pixels.",
        highlight=False,
        soft_wrap=True,
    )


@dataclass(frozen=True)
class ExportFlags:
    """What `diptych export` takes."""

    source: Positional[str]
    """A run folder whose training has ended, an encoder file, or weights as --weights has them."""
    out: Annotated[Path, arg(aliases=["-o"])]
    """The folder to write; an earlier export there is replaced."""
    format: Literal[
        "torchvision",
        "timm",
        "safetensors",
        "torch-export",
        "onnx",
        "hf",
        "detectron2",
        "coco-features",
    ] = "timm"
    """The library that shall open it; docs/export.md says what each can hold."""
    licence: str = ""
    """Of the weights, as the hub calls it: apache-2.0, cc-by-4.0. That of the weights that the run
    began with by default, where it is known."""


def export(arguments: Sequence[str]) -> None:
    """Write a trained encoder in the format of another library, read it back there and compare.

    Examples:
      diptych export runs/photos --format timm -o photos-timm/ --licence apache-2.0
      diptych export runs/photos --format onnx -o photos-onnx/
      diptych pretrain more/ --weights local-dir:photos-timm
    """
    flags = parse(ExportFlags, export, arguments)
    from diptych.export.write import export_encoder

    console = Console(markup=False, highlight=False, soft_wrap=True)
    done = export_encoder(flags.source, flags.out, form=flags.format, licence=flags.licence)
    files = ", ".join(sorted(path.name for path in done.folder.iterdir()))
    console.print(f"Export: {done.folder}, for {flags.format}, {done.features} features: {files}.")
    if done.difference is None:
        console.print(f"Not read back: the library that reads {flags.format} is not installed.")
    else:
        console.print(
            f"Read back and compared on 5 images: the largest difference of a feature is "
            f"{done.difference:.1e}, where the largest feature is {done.scale:.3g}."
        )
    for sentence in done.left_out:
        console.print(sentence)
