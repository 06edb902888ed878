"""What is planned: a run's settings, how many images, on how many processes."""

from dataclasses import dataclass
from functools import cached_property

from diptych.config.run import RunConfig


@dataclass(frozen=True)
class Case:
    """A run before it starts.

    Attributes:
        config: of the run, resolved.
        image_count: images to learn from.
        processes: that share each batch, one device each.
        image_pixels: height times width of an image as it is stored.
        image_bytes: of an encoded image.
    """

    config: RunConfig
    image_count: int
    processes: int = 1
    image_pixels: float = 500.0 * 375.0
    image_bytes: float = 110e3

    @property
    def images(self) -> int:
        """Of one process in a step."""
        return self.config.training.batch_size // self.processes

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.config.training.epochs * (self.image_count // self.config.training.batch_size)

    @property
    def queries_are_keys(self) -> bool:
        """Whether every view of a batch is once the query and else a key."""
        dictionary, kind = self.config.method.dictionary, self.config.method.key_encoder.kind
        return dictionary.kind == "batch" and dictionary.batch.both_views and kind == "shared"

    @property
    def looks_up_many(self) -> bool:
        """Whether a query may have several own keys in the batch."""
        more = self.config.method.views + self.config.views.small_views > 2
        return self.queries_are_keys and (more or self.config.method.loss.kind == "supervised")

    @property
    def query_views(self) -> int:
        """Views of an image that are queries."""
        method, small = self.config.method, self.config.views.small_views
        full = method.views if self.queries_are_keys else 1 + method.symmetric
        return full + small

    @property
    def key_views(self) -> int:
        """Views of an image that are encoded as keys apart from the queries."""
        if self.queries_are_keys or self.config.method.dictionary.kind == "bank":
            return 0
        return 1 + self.config.method.symmetric

    @property
    def first_key_views(self) -> float:
        """Views of an image that are encoded, on the mean of all steps, as a bank's first keys.

        In the first epoch it holds none of the batch's own, and each image needs a fresh one.
        """
        if self.config.method.dictionary.kind != "bank":
            return 0.0
        return (1 + self.config.method.symmetric) / self.config.training.epochs

    @property
    def keys_learn(self) -> bool:
        """Whether gradients flow to keys."""
        method = self.config.method
        return method.dictionary.kind == "batch" and method.key_encoder.kind == "shared"

    @cached_property
    def chunks(self) -> int:
        """Parts that a process encodes one after the other."""
        chunk = self.config.training.chunk_size
        return 1 if chunk is None or chunk >= self.images else self.images // chunk

    @property
    def view_values(self) -> int:
        """Numbers in all views of one image."""
        views = self.config.views
        full = self.config.method.views * views.side_pixels**2
        return self.config.images.channels * (full + views.small_views * views.small_side**2)
