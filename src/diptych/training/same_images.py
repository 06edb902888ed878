"""Whether images are those that a run began with, wherever they lie."""

from typing import Final

from diptych.configs import RunConfig
from diptych.errors import ImagesError, RunFolderError
from diptych.images.collection import ImageSet
from diptych.images.groups import find_groups

OF_THE_IMAGES: Final = (
    "images.path",
    "images.group_by",
    "images.cache",
    "images.cache_folder",
    "images.cache_megabytes",
    "images.cache_file_megabytes",
)
"""Settings that may be others when a run goes on: the images may be moved, as their fingerprint
decides what they are, and no pixel depends on where it is kept."""


def fingerprint_of(config: RunConfig, images: ImageSet) -> str:
    """What tells the images of a run, and their groups, from others.

    Raises:
        ConfigError: ``images.group_by`` asks for groups that the images do not have.
    """
    if config.images.group_by is None:
        return images.fingerprint()
    groups = find_groups(images.names, config.images.group_by)
    return f"{images.fingerprint()} {groups.fingerprint()}"


def require_same_images(begun_with: object, found: str) -> None:
    """Refuses images that are not those that a run began with.

    Args:
        begun_with: their fingerprint, as it was stored.
        found: that of the images that are there now.

    Raises:
        ImagesError: they are others.
        RunFolderError: they were told apart in another way, so that nobody knows.
    """
    if begun_with == found:
        return
    if not isinstance(begun_with, str) or _version(begun_with) != _version(found):
        raise RunFolderError(
            "this run was begun by another version of diptych, which told images from others in "
            "another way; whether these are its images cannot be said. Go on with that version, or "
            "begin a new run in another folder."
        )
    raise ImagesError(
        "the images are not those that this run began with: their names, sizes, contents or groups "
        "differ. Restore them, or begin a new run in another folder."
    )


def _version(fingerprint: str) -> str:
    """What a fingerprint begins with, as ``2:``; nothing, of the first version."""
    version, colon, _ = fingerprint.partition(":")
    return version if colon else ""
