"""The verb `report`: a run folder as one page."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from diptych.cli.flags import InferenceOptions, parse
from diptych.runtime.progress import ProgressBars


@dataclass(frozen=True)
class ReportFlags:
    """What `diptych report` takes."""

    run: Positional[Path]
    """A run folder whose training has ended."""
    runtime: Annotated[InferenceOptions, arg(name="")] = field(default_factory=InferenceOptions)


def report(arguments: Sequence[str]) -> None:
    """Write RUN/report.html: one page that opens offline, the verdict in words first.

    Examples:
      diptych report runs/photos
    """
    from diptych.report.page import write_report

    flags = parse(ReportFlags, report, arguments)
    with ProgressBars(Console(markup=False)) as bars:
        page = write_report(flags.run, progress=bars, **asdict(flags.runtime))
    print(f"Report: {page}")
