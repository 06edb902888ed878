"""Whether run and images are those that checkpoints were written with.

A run whose folder was lost is recovered by its checkpoints where these lay elsewhere.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from diptych.checkpoints.save_and_load import load_newest, origins
from diptych.checkpoints.stores import CheckpointLocation
from diptych.config.files import differing_keys, overlay, parse_toml
from diptych.config.run import RunConfig
from diptych.errors import DamagedCheckpoint, ForeignCheckpoint, ImagesError, RunFolderError
from diptych.images.collection import ImageSet
from diptych.images.groups import find_groups
from diptych.runs.folder import RunFolder, RunRecord

MAY_CHANGE_ON_RESUME: Final = (
    "images.path",
    "images.group_by",
    "images.cache",
    "images.cache_folder",
    "images.cache_megabytes",
    "images.cache_file_megabytes",
)
"""Settings that may be others when a run goes on: the images may be moved, as their fingerprint
decides what they are, and no pixel depends on where it is kept."""

MAY_CHANGE_WITH_MACHINE: Final = (
    *MAY_CHANGE_ON_RESUME,
    "checkpoint.folder",
    "images.cache_folder",
    "training.device",
    "training.threads",
    "views.threads",
)
"""Settings that may differ between a lost machine and the one in its place."""


def recover_run(
    config: RunConfig,
    place: CheckpointLocation,
    folder: RunFolder,
    fingerprint: str,
    *,
    resume: bool,
    say: Callable[[str], None],
) -> tuple[RunConfig, RunRecord]:
    """Settings and record of the run that a place's checkpoints are of, if it is the one asked for.

    Args:
        config: what a new run would have.
        place: that holds checkpoints.
        folder: new, of the run.
        fingerprint: of the images.
        resume: whether to go on was asked for.
        say: prints a sentence on each damaged checkpoint.

    Raises:
        ForeignCheckpoint: it is another run's, or of several.
        ImagesError: the images are others.
        DamagedCheckpoint: no checkpoint is good.
    """
    found = {str(origin): origin for origin in origins(place).values() if not origin.is_unknown}
    (words, origin), *others = found.items() or [("an unknown run", None)]
    if origin is None or origin.run is None or others or not resume or not origin.is_of(origin.run):
        raise ForeignCheckpoint(
            f"{place} holds checkpoints already, of {' and '.join(found) or words}; {folder.path} "
            "would be another run. Choose another checkpoint.folder, or go on with that run: "
            "--resume, with its --out or, where its folder is lost, with the settings that it was "
            "begun with."
        )
    run = origin.run
    loaded = load_newest(place, run, say)
    assert loaded is not None
    _, scalars = loaded
    settings = parse_toml(_text(scalars.get("config"), place), f"the config in {place}")
    theirs = overlay(RunConfig(), settings, f"the config in {place}")
    different = [
        one for one in differing_keys(theirs, config) if one not in MAY_CHANGE_WITH_MACHINE
    ]
    if different:
        raise ForeignCheckpoint(
            f"{place} holds checkpoints of run {run}, and {folder.path} would be another run: "
            f"{', '.join(different)} differ. Choose another checkpoint.folder, or go on "
            f"with that run by --resume --out {run.begun_as}; where its folder is lost, with the "
            "settings that it was begun with."
        )
    require_same_images(scalars.get("images"), fingerprint)
    ours = config.images
    images = replace(
        theirs.images, path=ours.path, group_by=ours.group_by, cache_folder=ours.cache_folder
    )
    return replace(theirs, images=images, checkpoint=config.checkpoint), RunRecord(run, fingerprint)


def _text(value: object, place: CheckpointLocation) -> str:
    if not isinstance(value, str):
        raise DamagedCheckpoint(f"the checkpoints in {place} do not say the settings of their run.")
    return value


def fingerprint_of(config: RunConfig, images: ImageSet) -> str:
    """What identifies the images of a run, and their groups.

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
        RunFolderError: the stored fingerprint is of another version, so the two cannot be compared.
    """
    if begun_with == found:
        return
    if not isinstance(begun_with, str) or _version(begun_with) != _version(found):
        raise RunFolderError(
            "this run was begun by another version of diptych, which identified images in "
            "another way; whether these are its images is not known. Go on with that version, or "
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
