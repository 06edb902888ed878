"""How far a command is: shown by bars on a terminal, and not at all elsewhere. Imports no torch."""

import warnings
from typing import TYPE_CHECKING

from diptych.escaping import readable, readable_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class ProgressReporter:
    """Is told how far a command is. This one shows nothing, and warns of what went wrong."""

    def images(self, what: str, done: int, total: int) -> None:
        """So many of so many images are done.

        Args:
            what: is being done, as ``Features of the trained encoder``.
            done: all of them when what is being done ends.
            total: of the images.
        """

    def say(self, sentence: str) -> None:
        """Something happened that a user should know; the command goes on."""
        warnings.warn(sentence, stacklevel=3)


class ProgressBars(ProgressReporter):
    """A bar for each thing that is being done, which goes when it ends; a context.

    Where the console is no terminal, or is quiet, there are none.

    Args:
        console: where to draw.
    """

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._console = console
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("images"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal or console.quiet,
        )
        self._tasks: dict[str, TaskID] = {}

    def images(self, what: str, done: int, total: int) -> None:
        """Moves the bar."""
        if self._bars.disable:
            return
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(readable(what))
        self._bars.update(self._tasks[what], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(what))

    def say(self, sentence: str) -> None:
        """Prints the sentence above the bars."""
        self._console.print(readable_lines(sentence), highlight=False, soft_wrap=True)

    def __enter__(self) -> "ProgressBars":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
