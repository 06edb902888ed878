"""The verbs that judge training without labels: `rank`, and `check-leak` of batch norm."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from diptych.cli.flags import DeviceOptions, InferenceOptions, parse
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import require_writable
from diptych.runtime.progress import ProgressBars


@dataclass(frozen=True)
class RankFlags:
    """What `diptych rank` takes."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, one or several."""
    images: str | None = None
    """Images to measure on, which need no labels; by default the runs' own, and of these the
    held-out ones."""
    labels: bool = False
    """Measure kNN too, where there are labels, and say how each measure agrees with it."""
    checkpoints: bool | None = None
    """Rank every checkpoint that was kept, not only the newest; by default when there is one run.
    """
    image_count: int = 2048
    """Images to measure on, at most."""
    json: Path | None = None
    """Also write all figures to this file."""
    runtime: Annotated[InferenceOptions, arg(name="")] = field(default_factory=InferenceOptions)


def rank(arguments: Sequence[str]) -> None:
    """Rank runs, or the checkpoints kept in a run, without labels: the best first.

    By effective rank of the features, pretext accuracy on held-out images, stability of neighbours
    from one view to another, and all three combined. With --labels also by kNN, which does not
    change the order, and how well each measure agrees with it.

    Examples:
      diptych rank runs/a runs/b runs/c
      diptych rank runs/a --images photos/ --json ranks.json
      diptych rank runs/* --labels
    """
    from diptych.diagnostics.ranking import rank_runs
    from diptych.report.terminal import print_ranking

    flags = parse(RankFlags, rank, arguments)
    if flags.json is not None:
        require_writable(flags.json.parent)
    console = Console(markup=False)
    with ProgressBars(console) as bars:
        found = rank_runs(
            flags.runs,
            images=flags.images,
            labels=flags.labels,
            checkpoints=flags.checkpoints,
            image_count=flags.image_count,
            progress=bars,
            **asdict(flags.runtime),
        )
    print_ranking(console, found)
    if flags.json is not None:
        atomic_write(flags.json, (json.dumps(found.as_dict(), indent=1) + "\n").encode())


@dataclass(frozen=True)
class CheckLeakFlags:
    """What `diptych check-leak` takes."""

    run: Positional[Path]
    """A run folder with a checkpoint."""
    images: int = 2048
    """Images to encode, in whole batches."""
    runtime: Annotated[DeviceOptions, arg(name="")] = field(default_factory=DeviceOptions)


def check_leak(arguments: Sequence[str]) -> None:
    """Measure a run's leak accuracy: the share of keys that batch statistics alone give away.

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
