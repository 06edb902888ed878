"""A line now and then on how far the shards of this process are."""

import time
from typing import Final

from rich.console import Console

from diptych.escaping import readable_lines
from diptych.gallery.shards import Shard
from diptych.gallery.work import Done, Watcher

_EVERY_SECONDS: Final = 10.0


class ShardLines(Watcher):
    """Plain lines, as several processes may share the terminal or each has a log.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = time.monotonic()
        self._last_done = (-1, 0)

    def say(self, sentence: str) -> None:
        """Something worth a line."""
        self._console.print(readable_lines(sentence), highlight=False, soft_wrap=True)

    def images(self, shard: Shard, done: int, total: int) -> None:
        """At most every ten seconds: how far a shard is, and how fast."""
        now = time.monotonic()
        if now - self._last < _EVERY_SECONDS:
            return
        number, earlier = self._last_done
        speed = (done - (earlier if number == shard.index else 0)) / (now - self._last)
        self._last, self._last_done = now, (shard.index, done)
        self.say(f"{str(shard).capitalize()}: {done:,} of {total:,} images, {speed:,.0f} a second.")

    def done(self, done: Done) -> None:
        """A shard is on disk."""
        how = "was there" if done.was_there else "done"
        skipped = ""
        if done.skipped:
            where = done.path.with_name(done.shard.skipped_name)
            skipped = f", {done.skipped:,} skipped and listed in {where}"
        self.say(
            f"{str(done.shard).capitalize()} {how}: {done.images:,} images in {done.path}{skipped}."
        )
