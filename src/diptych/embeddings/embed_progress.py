"""What is said while vectors are made: nothing, or plain lines."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from diptych.escaping import readable_lines


@dataclass(frozen=True)
class FinishedFile:
    """A file of vectors that is on disk.

    Attributes:
        what: in words, as "shard 3 of 16" or the name of a file.
        path: of the file.
        images: vectors in it.
        kept: of these, how many an earlier call had made, in a file that was made anew.
        skipped: images that could not be read.
        list_of_skipped: the file that lists them.
        was_there: it had been finished before, and nothing had changed.
    """

    what: str
    path: Path
    images: int
    skipped: int
    list_of_skipped: Path
    kept: int = 0
    was_there: bool = False


class EmbedProgress:
    """Called as vectors are made; this one is silent."""

    def say(self, sentence: str) -> None:
        """Something worth a line."""

    def images(self, what: str, done: int, total: int) -> None:
        """So many images of a shard or file are done."""


def say_dropped(count: int, progress: EmbedProgress) -> None:
    """Says how many vectors were there and are not any more, if any."""
    if count:
        vectors = "1 vector is" if count == 1 else f"{count:,} vectors are"
        progress.say(f"{vectors} dropped: the images are gone or have changed.")


_EVERY_SECONDS: Final = 10.0


class PrintedProgress(EmbedProgress):
    """Plain lines, as several processes may share the terminal or each has a log.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = time.monotonic()
        self._last_done = ("", 0)

    def say(self, sentence: str) -> None:
        """Something worth a line."""
        self._console.print(readable_lines(sentence), highlight=False, soft_wrap=True)

    def images(self, what: str, done: int, total: int) -> None:
        """At most every ten seconds: how far a shard or file is, and how fast."""
        now = time.monotonic()
        if now - self._last < _EVERY_SECONDS:
            return
        before, earlier = self._last_done
        speed = (done - (earlier if before == what else 0)) / (now - self._last)
        self._last, self._last_done = now, (what, done)
        self.say(f"{_capital(what)}: {done:,} of {total:,} images, {speed:,.0f} a second.")

    def done(self, done: FinishedFile) -> None:
        """A file is on disk."""
        how = "was there" if done.was_there else "done"
        kept = ""
        if done.kept:
            kept = f", {done.kept:,} kept and {done.images - done.kept:,} new"
        skipped = ""
        if done.skipped:
            skipped = f", {done.skipped:,} skipped and listed in {done.list_of_skipped}"
        self.say(
            f"{_capital(done.what)} {how}: {done.images:,} images in {done.path}{kept}{skipped}."
        )


def _capital(what: str) -> str:
    """A sentence may begin with "shard"; a file's name stays as it is."""
    return what.replace("shard ", "Shard ", 1) if what.startswith("shard ") else what
