"""Data sets that are handed over as Python objects, not by a path.

A run's config names its images by a text. Such an object is named by what is in it, and found again
by that name for as long as the caller keeps it.
"""

import os
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.sources import hugging_face, torch_dataset
from diptych.images.splits import LocatedImages


class ObjectKind(NamedTuple):
    """A kind of object that may be handed over.

    Attributes:
        what: it is, in errors.
        fits: whether an object is of this kind.
        fingerprint: of its content; raises ImagesError where it cannot be used.
        find: the images in it, given its name as well.
    """

    what: str
    fits: Callable[[object], bool]
    fingerprint: Callable[[Any], str]
    find: Callable[[Any, str, ImagesConfig], LocatedImages]


OBJECT_KINDS: Final = {
    "datasets:": ObjectKind(
        "Hugging Face data set",
        hugging_face.is_dataset,
        hugging_face.fingerprint,
        hugging_face.find_dataset,
    ),
    "torch:": ObjectKind(
        "torch.utils.data.Dataset",
        torch_dataset.is_dataset,
        torch_dataset.fingerprint,
        torch_dataset.find_dataset,
    ),
}
"""By what their names begin with."""

# Not the objects themselves: a finished run should not keep a data set alive.
_handed_over: WeakValueDictionary[str, Any] = WeakValueDictionary()


def path_of(images: Any) -> str:
    """What stands in a config for images: a path as it is, an object by its fingerprint.

    Raises:
        ImagesError: it is neither, or its images cannot be drawn in random order.
    """
    if isinstance(images, str | os.PathLike):
        return os.fspath(images)
    for prefix, kind in OBJECT_KINDS.items():
        if kind.fits(images):
            name = prefix + kind.fingerprint(images)
            _handed_over[name] = images
            return name
    raise ImagesError(
        f"got a {type(images).__name__} for images; wanted a path, a Hugging Face data set, or a "
        "torch.utils.data.Dataset. Arrays are given as a .npy or .npz file."
    )


def is_handed_over(name: str) -> bool:
    """Whether it is a name that ``path_of`` gives to objects."""
    return name.startswith(tuple(OBJECT_KINDS))


def find_handed_over(name: str, config: ImagesConfig) -> LocatedImages:
    """The images in the object that ``path_of`` gave this name.

    Raises:
        ImagesError: there is no such object any more, or it has no images.
    """
    kind = next(kind for prefix, kind in OBJECT_KINDS.items() if name.startswith(prefix))
    images = _handed_over.get(name)
    if images is None:
        raise ImagesError(
            f"{name} is a {kind.what} that was handed over in Python and is not at hand now. Load "
            "the same one and hand it over again: diptych.pretrain(dataset, out=..., resume=True), "
            "or diptych.evaluate(run, train=dataset)."
        )
    return kind.find(images, name, config)
