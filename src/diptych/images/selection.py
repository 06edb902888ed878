"""Which images of a set are used: a subset, those that can be read, the classes they have."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diptych.configs import ImagesConfig
from diptych.errors import ImagesError
from diptych.escaping import readable
from diptych.images.collection import Skipped


def choose(count: int, limit: int | None) -> NDArray[np.int64]:
    """A random subset of ``limit`` of so many images in ascending order; always the same one."""
    if limit is None or limit >= count:
        return np.arange(count, dtype=np.int64)
    chosen = np.random.Generator(np.random.Philox(0)).permutation(count)[:limit]
    return np.sort(chosen).astype(np.int64)


def beyond(count: int, limit: int | None) -> tuple[Skipped, ...]:
    """How many of so many images ``choose`` leaves out, as a row of the inventory."""
    if limit is None or limit >= count:
        return ()
    return (Skipped("", f"beyond images.limit = {limit}", count=count - limit),)


def balanced_share(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Indices of a random share of the images, the same of each class, at least one of each.

    Images without a label, -1, are none of them.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    chosen = []
    for label in np.unique(labels[labels >= 0]):
        members = generator.permutation(np.flatnonzero(labels == label))
        chosen.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(chosen))


def present_classes(
    labels: NDArray[np.int64] | None, classes: tuple[str, ...]
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """The labels as positions among the classes that occur; -1 for an image without one.

    None where fewer than two classes occur, which says nothing.
    """
    if labels is None:
        return None, ()
    labelled = labels >= 0
    present, positions = np.unique(labels[labelled], return_inverse=True)
    if len(present) < 2:
        return None, ()
    found = np.full(len(labels), -1, dtype=np.int64)
    found[labelled] = positions.reshape(-1)
    return found, tuple(classes[i] for i in present)


def refuse_if_too_many(
    skipped: Sequence[Skipped], count: int, config: ImagesConfig, origin: str
) -> None:
    """Stops before training when the share of unreadable images is above the set one."""
    if len(skipped) == count or len(skipped) > config.max_unreadable_share * count:
        listed = "\n".join(f"  {readable(one.name)}: {readable(one.reason)}" for one in skipped[:5])
        more = f"\n  and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        raise ImagesError(
            f"{len(skipped)} of {count} images in {origin} are unreadable, more than "
            f"images.max_unreadable_share = {config.max_unreadable_share:g} allows:\n{listed}{more}"
            "\nRepair or remove them, or raise --images.max-unreadable-share."
        )
