"""The verb `rank`: runs and checkpoints, the best first, without labels."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from diptych.cli.flags import InferenceOptions, parse
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
    """Rank runs, and the checkpoints kept in a run, without labels: the best first.

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
