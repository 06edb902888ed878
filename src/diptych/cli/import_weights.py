"""The verb `import`: weights of another library as an encoder file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from diptych.cli.flags import parse
from diptych.errors import saving


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
    """Write weights of another library as an encoder file, which every verb here takes.

    Nothing in the file is run: tensors are read, and nothing else.

    Examples:
      diptych import moco_v2_800ep.pth.tar --out moco.safetensors
      diptych import pretrained --encoder resnet18 --out imagenet.safetensors
      diptych embed imagenet.safetensors photos/ -o features/
    """
    flags = parse(ImportFlags, import_, arguments)
    from diptych.models.start import import_encoder

    console = Console(markup=False)
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
