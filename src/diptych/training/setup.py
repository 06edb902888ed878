"""The state of a run as it begins or goes on, and what keeps its folder whole."""

from concurrent.futures import Executor

import torch
from torch import nn

from diptych.checkpoints.identity import require_same_images
from diptych.checkpoints.save_and_load import list_checkpoints, load_newest, steps_in
from diptych.checkpoints.state import RunState
from diptych.checkpoints.stores import CheckpointLocation
from diptych.config.files import to_toml
from diptych.config.run import RunConfig
from diptych.errors import DamagedCheckpoint, NotSaved, RunFolderError, TrainingError
from diptych.images.collection import Collection
from diptych.logging.metrics import RunLog
from diptych.logging.progress import Watcher
from diptych.methods.build import OwnParts, build_method
from diptych.models.activations import offload, recompute_stages
from diptych.models.weights import require_built_alike, save_encoder
from diptych.optimization.loss_scale import LossScale
from diptych.optimization.optimizers import build_optimizer
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import RunFolder
from diptych.runs.record import Identity, RunRecord, write_record
from diptych.runs.tensor_files import UnreadableTensors, read_tensors
from diptych.runtime.device import choose_device
from diptych.training.begin_from import load_begin_from


def build_state(
    config: RunConfig,
    collection: Collection,
    executor: Executor,
    watcher: Watcher,
    own: OwnParts,
) -> RunState:
    """The state that a run begins with, on its device and as its options ask."""
    training, device = config.training, choose_device(config.training.device)
    method = build_method(config, collection, executor, own).train()
    layout = torch.channels_last if training.channels_last else torch.contiguous_format
    method.to(device).to(memory_format=layout)
    if training.recompute == "stages":
        recompute_stages(method.encoder)
    if training.offload_activations and not offload(method.encoder, device):
        watcher.say(
            "training.offload_activations changes nothing on a CPU: activations are there already."
        )
    if training.precision == "fp16" and device.type == "cpu":
        watcher.say(
            "fp16 on a CPU is far slower than fp32, up to 80 times, as CPUs do not multiply in it: "
            "use --training.precision fp32, or bf16, which many CPUs do."
        )
    if training.compile:
        for network in method.networks:
            network.compile()
    scale = LossScale(enabled=training.precision == "fp16", device=device.type)
    return RunState(method, build_optimizer(config.optimizer, method), scale)


def open_log(folder: RunFolder, state: RunState, watcher: Watcher) -> RunLog:
    """The metrics of a run, without the lines that will be written again.

    Raises:
        NotSaved: they cannot be written.
    """
    try:
        return RunLog(folder, resumed_step=state.step, say=watcher.say)
    except OSError as error:
        raise NotSaved(
            f"metrics cannot be written to {folder.path}: {error.strerror or error}. Mend that, "
            "then begin again."
        ) from error


def keep_config(folder: RunFolder, config: RunConfig, record: RunRecord) -> None:
    """Puts config and record back where the folder has vanished: no checkpoint is of use without.

    The record first: a folder with a config has one.
    """
    if not folder.record.exists():
        write_record(folder, record)
    if not folder.config.exists():
        atomic_write(folder.config, to_toml(config).encode())


def keep_untrained(folder: RunFolder, encoder: nn.Module, config: RunConfig) -> str:
    """Writes an encoder of one's own as it is before the run, unless that is there.

    Evaluation compares with it, and it does not follow from the seed.

    Raises:
        ConfigError: it is there, and of another structure.
        RunFolderError: it is there, and damaged.
        NotSaved: it cannot be written.
    """
    if folder.untrained.exists():
        try:
            weights = read_tensors(folder.untrained)
        except UnreadableTensors as error:
            raise RunFolderError(f"{folder.untrained} is damaged: {error}. Restore it.") from error
        require_built_alike(encoder, weights, folder.untrained)
        return ""
    try:
        save_encoder(folder.untrained, encoder, config)
    except OSError as error:
        raise NotSaved(
            f"{folder.untrained} cannot be written: {error.strerror or error}. Mend that, then "
            "begin again."
        ) from error
    return ""


def restore(
    state: RunState,
    config: RunConfig,
    place: CheckpointLocation,
    run: Identity,
    fingerprint: str,
    watcher: Watcher,
) -> None:
    """Takes up the newest good checkpoint of a run; where it has none, what it begins from if any.

    Raises:
        ImagesError: the images are others.
        DamagedCheckpoint: there are checkpoints, but none is good.
        ForeignCheckpoint: there are checkpoints, but none of this run.
    """
    found = load_newest(place, run, lambda why: watcher.say(f"{why} The one before it is used."))
    begin_from = config.training.begin_from
    if found is None and begin_from is None:
        return
    tensors, scalars = found or load_begin_from(str(begin_from))
    require_same_images(scalars.get("images"), fingerprint)
    if found and state.scale.enabled and "loss_scale" not in scalars:
        raise DamagedCheckpoint(f"a checkpoint of this run in {place} lacks the scale of the loss.")
    state.restore(tensors, scalars)
    whose = "the checkpoint" if found else f"the state of {begin_from}"
    watcher.say(f"Going on from {whose} after step {state.step}.")


def not_finite(
    what: str, step: int, config: RunConfig, folder: RunFolder, place: CheckpointLocation
) -> TrainingError:
    """The error that ends a run whose loss, gradients or weights are no longer numbers."""
    mend = (
        f"a lower --optimizer.learning-rate (now {config.optimizer.learning_rate:g}), a longer "
        "--schedule.warmup-epochs, or --optimizer.clip-norm 1"
    )
    if config.training.precision == "fp16":
        mend += ", or --training.precision bf16, as fp16 overflows above 65,504"
    try:
        found = list_checkpoints(place)
    except OSError:
        return TrainingError(
            f"{what} at step {step}, so training stopped. Checkpoints were not touched. Try {mend}."
        )
    if not found:
        return TrainingError(
            f"{what} at step {step}, so training stopped. No checkpoint was due before. Try {mend}."
        )
    return TrainingError(
        f"{what} at step {step}, so training stopped. The last good checkpoint is intact (there "
        f"are those after steps: {steps_in(found)}). Go on from before in a new folder with "
        f"{mend}: diptych pretrain --begin-from {folder.path}@STEP --out NEW ..."
    )
