"""What a command writes to the terminal: safe stdout and stderr, and progress bars. Without torch.

Errors of stdout and stderr are swallowed: a pipe is closed, as by `head`; a terminal hangs up; the
disk of a log is full. None of that may end a run that has trained for days.
"""

import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

from diptych.escaping import HANDLER, as_unicode, readable, readable_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


_MAY_PASS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.EINTR)


class SafeStream:
    """A text stream that writes to another, and drops its text once that one is gone.

    Args:
        stream: where to write; all other attributes are those of this stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_gone = False

    def write(self, text: str) -> int:
        """Writes text, with escapes for file names that are no UTF-8 and for unknown characters."""
        shown = as_unicode(text)  # a stream may let their bytes through, which no reader expects
        try:
            self._try(self._stream.write, shown)
        except UnicodeEncodeError as error:
            known = shown.encode(error.encoding, HANDLER).decode(error.encoding)
            self._try(self._stream.write, known)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Passes on what was written."""
        self._try(self._stream.flush)

    def finish(self) -> None:
        """Passes on what was written, or drops it."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            # The interpreter flushes once more at its end; if that fails, it exits with 120.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, do: Callable[..., object], *arguments: str) -> None:
        if self._is_gone:
            return
        try:
            do(*arguments)
        # It is a ValueError, and must not be taken for a stream that is closed.
        except UnicodeEncodeError:
            raise
        except OSError as error:
            self._is_gone = error.errno not in _MAY_PASS
        except ValueError:  # closed by the program around us
            self._is_gone = True


def safe_stream(stream: TextIO | None) -> TextIO | None:
    """The stream as one that raises no errors; None where there is none."""
    if stream is None or isinstance(stream, SafeStream):
        return stream
    return cast(TextIO, SafeStream(stream))


@contextmanager
def safe_output() -> Iterator[None]:
    """Makes stdout and stderr safe streams for as long as the context lasts."""
    _fill_standard_files()
    before = sys.stdout, sys.stderr
    streams = sys.stdout, sys.stderr = safe_stream(sys.stdout), safe_stream(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for one in streams:
            if isinstance(one, SafeStream):
                one.finish()


def _fill_standard_files() -> None:
    """Opens those of the three standard files that are closed.

    Otherwise a checkpoint may get number 1 or 2, and what a library in C prints is written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


class ProgressReporter:
    """Shows how far a command is. This one shows nothing, and warns of what went wrong."""

    def images(self, what: str, done: int, total: int) -> None:
        """Reports how many images are done.

        Args:
            what: is being done, as ``Features of the trained encoder``.
            done: all of them when what is being done ends.
            total: of the images.
        """

    def say(self, sentence: str) -> None:
        """Reports something that the user should know; the command goes on."""
        warnings.warn(sentence, stacklevel=3)


class ProgressBars(ProgressReporter):
    """A progress bar for each task, which is removed when the task ends; a context.

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
