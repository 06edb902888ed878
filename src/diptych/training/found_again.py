"""A run whose folder was lost, known again by its checkpoints, which lay elsewhere."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from diptych.config_file import differing_keys, overlay, parse_toml
from diptych.configs import RunConfig
from diptych.errors import DamagedCheckpoint, ForeignCheckpoint
from diptych.run_folder import RunFolder
from diptych.run_record import RunRecord
from diptych.training.checkpoint import load_newest, origins
from diptych.training.same_images import OF_THE_IMAGES, require_same_images
from diptych.training.stores import Place

OF_THE_MACHINE: Final = (
    *OF_THE_IMAGES,
    "checkpoint.folder",
    "images.cache_folder",
    "training.device",
    "training.threads",
    "views.threads",
)
"""Settings that may differ between a lost machine and the one in its place."""


def found_again(
    config: RunConfig,
    place: Place,
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
        say: told of damage.

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
    different = [one for one in differing_keys(theirs, config) if one not in OF_THE_MACHINE]
    if different:
        raise ForeignCheckpoint(
            f"{place} holds checkpoints of run {run}, and {folder.path} would be another run: "
            f"{', '.join(different)} differ. Choose another checkpoint.folder, or go on with that "
            f"run by --resume --out {run.begun_as}; where its folder is lost, with the settings "
            "that it was begun with."
        )
    require_same_images(scalars.get("images"), fingerprint)
    ours = config.images
    images = replace(
        theirs.images, path=ours.path, group_by=ours.group_by, cache_folder=ours.cache_folder
    )
    return replace(theirs, images=images, checkpoint=config.checkpoint), RunRecord(run, fingerprint)


def _text(value: object, place: Place) -> str:
    if not isinstance(value, str):
        raise DamagedCheckpoint(f"the checkpoints in {place} do not say the settings of their run.")
    return value
