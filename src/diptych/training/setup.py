"""The state of a run at its start or resumption, and files that its folder must have."""

from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diptych.checkpoints.save_and_load import list_checkpoints, load_newest, steps_in
from diptych.checkpoints.state import RunState, require_same_images, trainable
from diptych.checkpoints.stores import CheckpointLocation
from diptych.config.files import flatten, to_toml
from diptych.config.model import EncoderConfig
from diptych.config.run import OWN, RunConfig
from diptych.errors import ConfigError, DamagedCheckpoint, RunFolderError, TrainingError, saving
from diptych.escaping import quoted
from diptych.images.collection import Collection, ImageSet
from diptych.logging.metrics import RunLog
from diptych.logging.progress import Watcher
from diptych.logging.trackers import TrackedRun, Tracking
from diptych.methods.build import OwnParts, build_method
from diptych.methods.method import Method
from diptych.models.activations import offload, recompute_stages
from diptych.models.encoders import own_encoder
from diptych.models.parts import FrozenParts, encoder_parts
from diptych.models.start import load_start
from diptych.models.weights import require_built_alike, save_encoder
from diptych.optimization.loss_scale import LossScale
from diptych.optimization.optimizers import build_optimizer
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import Identity, RunFolder, RunRecord, write_record
from diptych.runs.tensor_files import UnreadableTensors, read_tensors
from diptych.runtime.devices import choose_device
from diptych.training.begin_from import load_begin_from


def build_state(
    config: RunConfig,
    collection: Collection,
    executor: Executor,
    watcher: Watcher,
    own: OwnParts,
    start: Path | None = None,
) -> RunState:
    """The state that a run begins with, on its device and as its options ask.

    Args:
        config: of the run.
        collection: its images.
        executor: its threads make views.
        watcher: shows what options mean here.
        own: parts given in Python.
        start: the file of an encoder to begin with, in the place of random weights.
    """
    training, device = config.training, choose_device(config.training.device)
    begun = None if start is None else load_start(start, config)
    method = build_method(config, collection, executor, own, begun).train()
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
            # In place: torch.compile(network) would wrap it and rename its weights in checkpoints.
            # Each side of views has code of its own, whichever a run or its resumption saw first.
            network.compile(dynamic=False)
    parts = encoder_parts(method.encoder)
    if len(parts) == 1 and config.optimizer.layer_decay < 1:
        watcher.say(
            f"No stages of {type(method.encoder).__name__} are known, so optimizer.layer_decay = "
            f"{config.optimizer.layer_decay:g} lowers the rate of all of it alike."
        )
    parameters = [[method.encoder.get_parameter(name) for name in part] for part in parts]
    scale = LossScale(enabled=training.precision == "fp16", device=device.type)
    return RunState(method, build_optimizer(config.optimizer, method, parameters), scale)


def frozen_parts(method: Method, config: EncoderConfig) -> FrozenParts | None:
    """The parts of a method's encoder that do not train, not frozen yet; None for no parts.

    Raises:
        ConfigError: there are fewer, or nothing would ever train.
    """
    if config.frozen_parts == 0:
        return None
    others = [one for one in method.networks if one is not method.network]
    copies = [dict(one.named_children()).get("encoder") for one in others]
    found = FrozenParts(
        method.encoder, config.frozen_parts, [one for one in copies if one is not None]
    )
    all_of_it = f"encoder.frozen_parts = {config.frozen_parts} are all that the encoder has"
    if config.frozen_epochs is None and not found.leaves_some:
        raise ConfigError(
            f"{all_of_it}, so that nothing of it would learn. Freeze fewer, or give "
            "encoder.frozen_epochs."
        )
    of_encoder = {id(one) for one in method.encoder.parameters()}
    beside = [one for _, one in trainable(method) if id(one) not in of_encoder]
    if not beside and not found.leaves_some:
        raise ConfigError(
            f"{all_of_it}, and nothing else of the method learns, so that the first "
            f"{config.frozen_epochs:g} epochs would change nothing. Freeze fewer, or give "
            "head.layers."
        )
    return found


def start_file(config: RunConfig, folder: RunFolder, place: CheckpointLocation) -> Path | None:
    """The encoder that a run begins with, if its settings name weights.

    Raises:
        RunFolderError: it is gone, and no checkpoint can stand in.
    """
    if config.encoder.weights is None or config.encoder.name == OWN:
        return None
    if folder.start.exists():
        return folder.start
    goes_on = bool(list_checkpoints(place)) or config.training.begin_from is not None
    if goes_on and not config.optimizer.pull_to_start:  # else weights are pulled to what it holds
        return None
    raise RunFolderError(
        f"{folder.start}, the weights that this run begins from, is gone. Restore it, or begin a "
        "new run with --weights in another --out."
    )


def require_labels(images: ImageSet, config: RunConfig) -> None:
    """Refuses images without labels, which a method needs of every one.

    Raises:
        ConfigError: names the setting, and an image.
    """
    what = f"method.kind = {config.method_name!r}"
    if config.method_name == "contrastive":
        what = f"method.loss.kind = {config.method.loss.kind!r}"
    mend = "put the images of each class into a folder of its own, or choose another."
    if images.labels is None:
        raise ConfigError(f"{what} needs labels: {mend}")
    without = np.flatnonzero(images.labels < 0)
    if len(without):
        raise ConfigError(
            f"{what} needs a label of every image; {len(without)} of {len(images)} have none, as "
            f"{images.names[int(without[0])]}: {mend}"
        )


def open_log(
    folder: RunFolder, state: RunState, watcher: Watcher, config: RunConfig, identity: Identity
) -> RunLog:
    """The metrics of a run, without the lines that will be written again; its tracker begins.

    Raises:
        NotSaved: they cannot be written.
    """
    with saving(f"metrics cannot be written to {folder.path}", "begin again"):
        log = RunLog(folder, resumed_step=state.step, say=watcher.say)
    if config.probe.tracker != "none":
        project, settings = config.probe.tracker_project, flatten(config)
        run = TrackedRun(identity.id, folder.path.absolute().name, project, settings)
        log.tracking = Tracking(config.probe.tracker, run, watcher.say)
    return log


def keep_config(folder: RunFolder, config: RunConfig, record: RunRecord) -> None:
    """Writes config and record again where the folder has vanished: a checkpoint needs both."""
    # The record first: a folder with a config is taken for a run, which must have one.
    if not folder.record.exists():
        write_record(folder, record)
    if not folder.config.exists():
        atomic_write(folder.config, to_toml(config).encode())


def begun_before(own: OwnParts, folder: RunFolder, config: RunConfig) -> OwnParts:
    """An encoder given in Python with the weights that the run began with, where it has begun.

    A module that is built anew may have other random weights, and ``pull_to_start`` needs those
    which the run began with. What does not fit is left to ``keep_untrained`` to refuse.

    Raises:
        RunFolderError: the file of these weights is damaged.
    """
    if own.encoder is None or not folder.untrained.exists():
        return own
    channels, side = config.images.channels, config.views.side_pixels
    encoder = own_encoder(own.encoder, channels=channels, side_pixels=side)
    held = encoder.state_dict()
    fitting = {
        name: weight
        for name, weight in _read_untrained(folder).items()
        if name in held and held[name].shape == weight.shape
    }
    encoder.load_state_dict(fitting, strict=False)
    return replace(own, encoder=encoder)


def keep_untrained(folder: RunFolder, encoder: nn.Module, config: RunConfig) -> str:
    """Writes an encoder given in Python as it is before the run, unless that is there.

    Evaluation compares with it, and it cannot be built from the seed.

    Raises:
        ConfigError: it is there, and of another structure.
        RunFolderError: it is there, and damaged.
        NotSaved: it cannot be written.
    """
    if folder.untrained.exists():
        require_built_alike(encoder, _read_untrained(folder), folder.untrained)
        return ""
    with saving(f"{folder.untrained} cannot be written", "begin again"):
        save_encoder(folder.untrained, encoder, config)
    return ""


def _read_untrained(folder: RunFolder) -> dict[str, Tensor]:
    try:
        return read_tensors(folder.untrained)
    except UnreadableTensors as error:
        raise RunFolderError(f"{folder.untrained} is damaged: {error}. Restore it.") from error


def restore(
    state: RunState,
    config: RunConfig,
    place: CheckpointLocation,
    run: Identity,
    fingerprint: str,
    watcher: Watcher,
) -> None:
    """Loads the newest good checkpoint of a run; where it has none, what it begins from, if any.

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
    # Of a run's own checkpoints only: what begins from a run in fp32 begins with a new scale.
    if found and state.scale.enabled and "loss_scale" not in scalars:
        raise DamagedCheckpoint(f"a checkpoint of this run in {place} lacks the scale of the loss.")
    # How long another run had is not how long this one has.
    state.restore(tensors, scalars if found else {**scalars, "minutes": None})
    origin = "the checkpoint" if found else f"the state of {begin_from}"
    watcher.say(f"Going on from {origin} after step {state.step}.")


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
    stopped = f"{what} at step {step}, so training stopped."
    try:
        found = list_checkpoints(place)
    except OSError:
        return TrainingError(f"{stopped} Checkpoints were not touched. Try {mend}.")
    if not found:
        return TrainingError(f"{stopped} No checkpoint was due before. Try {mend}.")
    return TrainingError(
        f"{stopped} The last good checkpoint is intact (there are those after steps: "
        f"{steps_in(found)}). Go on from before in a new folder with {mend}: diptych pretrain "
        f"--begin-from {quoted(folder.path)}@STEP --out NEW ..."
    )
