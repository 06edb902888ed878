"""All that must be saved of a run, and whether a run and its images fit what was saved.

A run whose folder was lost is recovered by its checkpoints where these lay elsewhere.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from diptych.checkpoints.save_and_load import load_newest, origins
from diptych.checkpoints.stores import CheckpointLocation
from diptych.config.files import differing_keys, flatten, nest, overlay, parse_toml
from diptych.config.run import RunConfig
from diptych.errors import DamagedCheckpoint, ForeignCheckpoint, ImagesError, RunFolderError
from diptych.escaping import quoted
from diptych.images.collection import ImageSet
from diptych.images.groups import groups_of
from diptych.methods.method import Method
from diptych.optimization.loss_scale import LossScale
from diptych.runs.folder import RunFolder, RunRecord


@dataclass
class RunState:
    """A run between two steps.

    The learning rate and the position in the data follow from the step, the views from the seed;
    neither needs saving.

    Attributes:
        method: encoder, head, momentum encoder and dictionary with its pointer; or a student and
            its teacher.
        optimizer: of the method's trainable parameters.
        scale: of the loss, in fp16.
        step: steps done.
        seconds: spent in training, interruptions left out.
        total_steps: of the whole run as last planned, where minutes decide; else None, and the
            epochs decide.
        spent_seconds: of those minutes, by all commands of the run.
    """

    method: Method
    optimizer: torch.optim.Optimizer
    scale: LossScale = field(default_factory=LossScale)
    step: int = 0
    seconds: float = 0.0
    total_steps: int | None = None
    spent_seconds: float = 0.0

    def named_tensors(self, whole: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Every tensor of the state by a stable name, where it is; the next step changes it.

        Args:
            whole: tensors that take the place of those of the method of which this process holds a
                share only.
        """
        held = {**self.method.state_dict(), **(whole or {})}
        named = {f"method/{name}": value for name, value in held.items()}
        for name, parameter in self._optimized():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    named[f"optimizer/{name}/{key}"] = value
        return {name: value.detach() for name, value in named.items()}

    def tensors(self, whole: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The same on the CPU, contiguous; copied only where they are not."""
        named = self.named_tensors(whole)
        return {name: value.cpu().contiguous() for name, value in named.items()}

    def scalars(self) -> dict[str, Any]:
        """Every plain number of the state, and the names of its tensors."""
        scale = {"loss_scale": self.scale.scalars()} if self.scale.enabled else {}
        names = _names_of(self.named_tensors())
        plan = {"total_steps": self.total_steps, "spent_seconds": self.spent_seconds}
        minutes = {} if self.total_steps is None else {"minutes": plan}
        return {"step": self.step, "seconds": self.seconds, "tensors": names, **scale, **minutes}

    def restore(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Takes back what ``tensors`` and ``scalars`` gave.

        A run that begins where another stood may have what that one had not, or the other way:
        without a saved scale of the loss, one begins; a scale that is not needed is left.

        Raises:
            DamagedCheckpoint: a name, a shape or a type is not the one of this run.
        """
        with _misfits_in_words():
            self._require_fitting(tensors, scalars)
            prefix = "method/"
            saved = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            self.method.load_state_dict(saved, strict=True)
            for name, parameter in self._optimized():
                self._restore_optimizer(parameter, _below(f"optimizer/{name}/", tensors))
            if "loss_scale" in scalars:
                self.scale.restore(scalars["loss_scale"])
            if scalars.get("minutes") is not None:
                self._restore_minutes(scalars["minutes"], int(scalars["step"]))
        self.step, self.seconds = int(scalars["step"]), float(scalars["seconds"])

    def _restore_minutes(self, saved: Mapping[str, Any], step: int) -> None:
        total, spent = saved["total_steps"], saved["spent_seconds"]
        if type(total) is not int or total < step or not 0 <= float(spent) < math.inf:
            raise DamagedCheckpoint(f"it plans {total} steps after {step}, {spent} seconds spent")
        self.total_steps, self.spent_seconds = total, float(spent)

    def _restore_optimizer(self, parameter: nn.Parameter, saved: dict[str, Tensor]) -> None:
        for key, one in saved.items():
            value = one.to(parameter.device)
            if value.ndim:
                # In the parameter's own layout, so that the next step computes the same bits.
                value = torch.empty_like(parameter).copy_(value)
            # A copy: the file that it came from may go away.
            self.optimizer.state[parameter][key] = value.detach().clone()

    def _require_fitting(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Refuses names, shapes and types that ``load_state_dict`` would accept."""
        # Without one of the optimizer's tensors a run would go on with momentum from zero.
        if (wanted := _names_of(tensors)) != (stated := scalars.get("tensors")):
            raise DamagedCheckpoint(f"it holds the tensors {wanted} and lists {stated}")
        held = self.method.state_dict()
        for name, value in _below("method/", tensors).items():
            if name in held and held[name].dtype != value.dtype:
                raise DamagedCheckpoint(f"{name} is {value.dtype}, not {held[name].dtype}")
        known = {"generator/cpu", "generator/cuda"}  # in those of earlier versions
        for name, parameter in self._optimized():
            saved = _below(f"optimizer/{name}/", tensors)
            known |= {f"optimizer/{name}/{key}" for key in saved}
            if saved and saved.keys() != self._optimizer_keys():
                raise DamagedCheckpoint(f"the optimizer's {sorted(saved)} of {name} are others")
            for key, value in saved.items():
                shape = torch.Size() if key == "step" else parameter.shape
                if value.shape != shape or not value.is_floating_point():
                    raise DamagedCheckpoint(f"optimizer/{name}/{key} is of another form")
        useless = [name for name in tensors if not name.startswith("method/") and name not in known]
        if useless:
            raise DamagedCheckpoint(f"there is no use for {useless[0]}")

    def _optimized(self) -> list[tuple[str, nn.Parameter]]:
        """The optimizer's parameters by name, also those that are frozen for a while."""
        held = {id(one) for group in self.optimizer.param_groups for one in group["params"]}
        return [(name, one) for name, one in self.method.named_parameters() if id(one) in held]

    def _optimizer_keys(self) -> set[str]:
        """What the optimizer keeps for a parameter."""
        if isinstance(self.optimizer, torch.optim.AdamW):
            return {"step", "exp_avg", "exp_avg_sq"}
        return {"momentum_buffer"}

    def is_finite(self) -> bool:
        """Whether every weight that is trained is a number."""
        return all(bool(torch.isfinite(p).all()) for _, p in trainable(self.method))


@contextmanager
def _misfits_in_words() -> Iterator[None]:
    try:
        yield
    except (DamagedCheckpoint, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpoint(
            f"the checkpoint does not fit this run, or is damaged: {error}. Restore another, or "
            "begin a new run."
        ) from error


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _names_of(tensors: Mapping[str, Tensor]) -> str:
    """How many names there are, and a sum of them: one more or less is noticed."""
    digest = hashlib.sha256("\0".join(sorted(tensors)).encode()).hexdigest()
    return f"{len(tensors)}:{digest[:32]}"


def trainable(method: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that train now, by name: none of a momentum encoder or teacher."""
    return [(name, p) for name, p in method.named_parameters() if p.requires_grad]


MAY_CHANGE_ON_RESUME: Final = (
    "images.path",
    "images.group_by",
    "images.cache",
    "images.cache_folder",
    "images.cache_megabytes",
    "images.cache_file_megabytes",
    "probe.tracker",
    "probe.tracker_project",
    "method.dictionary.bank.placement",
)
"""Settings that may change when a run resumes: the images may be moved, as their fingerprint
identifies them, and no pixel depends on where it is kept; nor does a figure on who shows it, or a
key on which process holds it."""

MAY_CHANGE_WITH_MACHINE: Final = (
    *MAY_CHANGE_ON_RESUME,
    "checkpoint.folder",
    "training.device",
    "training.threads",
    "views.threads",
)
"""Settings that may differ between a lost machine and the one in its place."""

CHOSEN_FOR_MINUTES: Final = (
    "encoder.",
    "head.hidden_features",
    "images.decoded_side",
    "images.windows",
    "probe.health_every_epochs",
    "training.batch_size",
    "training.epochs",
    "views.side_pixels",
)
"""Settings, or sections, that may be chosen by the speed of a machine."""


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
    # What the minutes allowed follows from the speed of the lost machine.
    chosen = () if config.training.minutes is None else CHOSEN_FOR_MINUTES
    different = [
        one
        for one in differing_keys(theirs, config)
        if one not in MAY_CHANGE_WITH_MACHINE and not one.startswith(chosen)
    ]
    if different:
        raise ForeignCheckpoint(
            f"{place} holds checkpoints of run {run}, and {folder.path} would be another run: "
            f"{', '.join(different)} differ. Choose another checkpoint.folder, or go on "
            f"with that run by --resume --out {quoted(run.begun_as)}; where its folder is lost, "
            "with the settings that it was begun with."
        )
    require_same_images(scalars.get("images"), fingerprint)
    asked = flatten(config)
    of_this_machine = nest({name: asked[name] for name in MAY_CHANGE_WITH_MACHINE})
    return overlay(theirs, of_this_machine, "this machine"), RunRecord(run, fingerprint)


def _text(value: object, place: CheckpointLocation) -> str:
    if not isinstance(value, str):
        raise DamagedCheckpoint(f"the checkpoints in {place} do not say the settings of their run.")
    return value


def fingerprint_of(config: RunConfig, images: ImageSet) -> str:
    """What identifies the images of a run, and their groups.

    Raises:
        ConfigError: ``images.group_by`` asks for groups that the images do not have.
    """
    groups = groups_of(images.names, config.images)
    own = images.fingerprint()
    return own if groups is None else f"{own} {groups.fingerprint()}"


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
