"""The verb `check-leak`: do batch statistics give a run's positive keys away?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from diptych.cli.flags import DeviceOptions, parse
from diptych.runtime.progress import ProgressBars


@dataclass(frozen=True)
class CheckLeakFlags:
    """What `diptych check-leak` takes."""

    run: Positional[Path]
    """A run folder with a checkpoint."""
    images: int = 2048
    """Images to encode, in whole batches."""
    runtime: Annotated[DeviceOptions, arg(name="")] = field(default_factory=DeviceOptions)


def check_leak(arguments: Sequence[str]) -> None:
    """Measure a run's leak accuracy: how many queries batch statistics alone match to their key.

    Images are encoded as in training, in batches as large, with the head and the key encoder of the
    newest checkpoint, and again with keys in random groups. Leak accuracy is the pretext accuracy
    of the first less that of the second.

    Examples:
      diptych check-leak runs/photos
    """
    from diptych.config.files import load_run_config
    from diptych.diagnostics.leak import cannot_leak
    from diptych.diagnostics.leak import check_leak as measure
    from diptych.runs.folder import RunFolder

    flags = parse(CheckLeakFlags, check_leak, arguments)
    with ProgressBars(Console(markup=False)) as bars:
        found = measure(flags.run, image_count=flags.images, progress=bars, **asdict(flags.runtime))
    if found is None:
        print(f"Nothing can leak: {cannot_leak(load_run_config(RunFolder(flags.run).config))}.")
    else:
        print(found.sentence())
