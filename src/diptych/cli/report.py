"""The verb `report`: a run folder as one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from diptych.cli.flags import parse


@dataclass(frozen=True)
class ReportFlags:
    """What `diptych report` takes."""

    run: Positional[Path]
    """A run folder whose training has ended."""
    threads: int | None = None
    """CPU threads; all cores by default."""


def report(arguments: Sequence[str]) -> None:
    """Write RUN/report.html: one page that opens offline, the verdict in words first.

    Examples:
      diptych report runs/photos
    """
    from diptych.report.page import write_report

    flags = parse(ReportFlags, report, arguments)
    print(f"Report: {write_report(flags.run, threads=flags.threads)}")
