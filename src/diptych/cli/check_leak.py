"""The verb `check-leak`: does batch norm tell a run's queries which key is theirs?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from diptych.cli.flags import parse


@dataclass(frozen=True)
class CheckLeakFlags:
    """What `diptych check-leak` takes."""

    run: Positional[Path]
    """A run folder with a checkpoint."""
    images: int = 2048
    """Images to encode, in whole batches."""
    threads: int | None = None
    """CPU threads; all cores by default."""


def check_leak(arguments: Sequence[str]) -> None:
    """Measure how far batch statistics alone tell a run's queries which key is theirs.

    Encodes images as in training, with the head and the key encoder of the newest checkpoint, and
    again with every key among other images: how many more queries find their key in the first case?

    Examples:
      diptych check-leak runs/photos
    """
    from diptych.config.files import load_run_config
    from diptych.diagnostics.leak import cannot_leak
    from diptych.diagnostics.leak import check_leak as measure
    from diptych.runs.folder import RunFolder

    flags = parse(CheckLeakFlags, check_leak, arguments)
    found = measure(flags.run, image_count=flags.images, threads=flags.threads)
    if found is None:
        print(f"Nothing can leak: {cannot_leak(load_run_config(RunFolder(flags.run).config))}.")
    else:
        print(found.sentence())
