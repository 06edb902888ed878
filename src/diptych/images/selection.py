"""Which images of a set are used: a subset, those that can be read, the classes they have."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diptych.configs import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.collection import Skipped


def choose(count: int, limit: int | None) -> NDArray[np.int64]:
    """A random subset of ``limit`` of so many images in ascending order; always the same one."""
    if limit is None or limit >= count:
        return np.arange(count, dtype=np.int64)
    chosen = np.random.Generator(np.random.Philox(0)).permutation(count)[:limit]
    return np.sort(chosen).astype(np.int64)


def balanced_share(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Indices of a random share of the images, the same of each class, at least one of each."""
    generator = np.random.Generator(np.random.Philox(seed))
    chosen = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        chosen.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(chosen))


def present_classes(
    labels: NDArray[np.int64] | None, classes: tuple[str, ...]
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """The labels as positions among the classes that occur.

    None where an image has no label, or all have the same one, which says nothing.
    """
    if labels is None or not len(labels) or labels.min() < 0:
        return None, ()
    present, positions = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        return None, ()
    return positions.reshape(-1).astype(np.int64), tuple(classes[i] for i in present)


def refuse_if_too_many(
    skipped: Sequence[Skipped], count: int, config: ImagesConfig, origin: str
) -> None:
    """Stops before training when the share of unreadable images is above the set one."""
    if len(skipped) == count or len(skipped) > config.max_unreadable_share * count:
        listed = "\n".join(f"  {one.name}: {one.reason}" for one in skipped[:5])
        more = f"\n  and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        raise ImagesError(
            f"{len(skipped)} of {count} images in {origin} are unreadable, more than "
            f"images.max_unreadable_share = {config.max_unreadable_share:g} allows:\n{listed}{more}"
            "\nRepair or remove them, or raise --images.max-unreadable-share."
        )
