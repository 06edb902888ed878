"""``training.begin_from``: a new run that begins where another one stood.

Its settings are that run's; those of what moves the weights may differ.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from diptych.checkpoints.save_and_load import (
    load_checkpoint,
    own_checkpoints,
    step_of_checkpoint,
    steps_in,
)
from diptych.checkpoints.state import MAY_CHANGE_ON_RESUME, require_same_images
from diptych.checkpoints.stores import checkpoint_location
from diptych.config.consistency import require_consistent
from diptych.config.files import differing_keys, flatten, load_run_config, nest, overlay
from diptych.config.run import RunConfig
from diptych.errors import ConfigError, RunFolderError
from diptych.methods.build import OwnParts, require_own_parts
from diptych.methods.losses import require_fitting_loss
from diptych.resolve import Overrides, overlay_all
from diptych.runs.folder import RunFolder, load_record

MAY_DIFFER: Final = (
    "checkpoint.",
    *MAY_CHANGE_ON_RESUME,
    "encoder.batch_statistics",
    "encoder.frozen_",
    "method.key_encoder.momentum",
    "optimizer.clip_norm",
    "optimizer.layer_decay",
    "optimizer.learning_rate",
    "optimizer.momentum",
    "optimizer.pull_to_start",
    "optimizer.scaling",
    "optimizer.weight_decay",
    "optimizer.weight_decay_end",
    "probe.",
    "schedule.",
    "training.begin_from",
    "training.check_every_steps",
    "training.chunk_size",
    "training.compile",
    "training.device",
    "training.epochs",
    "training.keep.",
    "training.minutes",
    "training.process_timeout_seconds",
    "training.precision",
    "training.threads",
    "views.threads",
)
"""Settings by dotted name, or sections. All others decide what a saved tensor means, or which
images a step sees; of where the images lie and how they are grouped, their fingerprint decides."""

ITS_OWN: Final = (
    "checkpoint.folder",
    "probe.profile_steps",
    "training.begin_from",
    "training.minutes",
)
"""Settings that belong to the run that they were given to, and to none that begins from it: where
its checkpoints lie, what it traced, where it began itself, how much time it had."""


def parse_begin_from(text: str) -> tuple[RunFolder, int | None]:
    """The run and the step that ``training.begin_from`` names.

    Example:
        >>> folder, step = parse_begin_from("runs/a@1200")
        >>> folder.path.name, step
        ('a', 1200)
    """
    path, at, step = text.rpartition("@")
    # Only digits after the last @ are a step: the name of a folder may hold an @ itself.
    if at and step.isdecimal():
        return RunFolder(Path(path)), int(step)
    return RunFolder(Path(text)), None


def without_its_own(config: RunConfig) -> RunConfig:
    """The settings of a run that another one may inherit."""
    default = flatten(RunConfig())
    return overlay(config, nest({name: default[name] for name in ITS_OWN}), "the defaults")


def config_begun_from(begin_from: str, layers: Overrides, own: OwnParts) -> RunConfig:
    """The config of the run that is begun from, with the layers on top.

    Raises:
        ConfigError: there is no such run, or a setting differs that may not.
    """
    folder, _ = parse_begin_from(begin_from)
    earlier = without_its_own(load_run_config(folder.config))
    asked = overlay_all(earlier, layers)
    fixed = [name for name in differing_keys(earlier, asked) if not name.startswith(MAY_DIFFER)]
    if fixed:
        raise ConfigError(
            f"{', '.join(fixed)} cannot differ from what {folder.path} was trained with, where a "
            "run begins from it: what was saved there would mean something else. Leave that out, "
            "or begin anew."
        )
    require_own_parts(asked, own)
    require_consistent(asked)
    require_fitting_loss(asked, own.loss)
    return replace(asked, training=replace(asked.training, begin_from=begin_from))


def load_begin_from(begin_from: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and scalars of the checkpoint that ``training.begin_from`` names.

    Raises:
        RunFolderError: there is no such checkpoint of that run.
        DamagedCheckpoint: it is not as it was written.
    """
    folder, step = parse_begin_from(begin_from)
    place = checkpoint_location(load_run_config(folder.config).checkpoint, folder)
    kept = own_checkpoints(place, load_record(folder).identity)
    wanted = [one for one in kept if step is None or step_of_checkpoint(one) == step]
    if not wanted:
        raise RunFolderError(
            f"training.begin_from = {begin_from!r}: no checkpoint of that step is kept in {place}; "
            f"there are those after steps: {steps_in(kept) or 'none'}."
        )
    return load_checkpoint(wanted[0])


def require_can_begin_from(
    begin_from: str, config: RunConfig, *, fingerprint: str, total_steps: int
) -> None:
    """Refuses what a new run cannot begin from, before anything of it is written.

    Args:
        begin_from: ``training.begin_from``.
        config: of the new run.
        fingerprint: of its images.
        total_steps: that it has.

    Raises:
        RunFolderError, DamagedCheckpoint: there is no good checkpoint.
        ImagesError: it is of other images.
        ConfigError: no step is left.
    """
    _, scalars = load_begin_from(begin_from)
    require_same_images(scalars.get("images"), fingerprint)
    if (done := int(scalars["step"])) >= total_steps:
        epochs = config.training.epochs
        raise ConfigError(
            f"training.begin_from = {begin_from!r} stands after step {done}, and training.epochs = "
            f"{epochs} ends at step {total_steps}: nothing is left to learn. Give more epochs, as "
            f"--epochs {2 * epochs * -(-done // total_steps)}, or begin at an earlier checkpoint, "
            "RUN@STEP."
        )
