"""The encoders of a run that may be chosen: its end, or every checkpoint that it kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diptych.configs import RunConfig
from diptych.contrast.method import Method, build_method
from diptych.errors import DamagedCheckpoint
from diptych.hardware import choose_device
from diptych.model.saved import load_encoder, load_head, untrained_encoder
from diptych.model.twin import Twin
from diptych.run_folder import RunFolder
from diptych.run_record import load_record
from diptych.training.checkpoint import list_checkpoints, load_checkpoint, own_checkpoints
from diptych.training.leak import method_of
from diptych.training.stores import Place, checkpoint_place


@dataclass(frozen=True)
class Candidate:
    """An encoder that may be chosen.

    Attributes:
        run: its folder.
        step: of the checkpoint; None for the end of a run whose checkpoints are gone.
        config: of the run.
        encoder: in evaluation mode, on its device.
        method: with head, predictor and twin; None where that is not known, or where the run has
            no keys, as a student.
    """

    run: Path
    step: int | None
    config: RunConfig
    encoder: nn.Module
    method: Method | None


def candidates_of(folder: RunFolder, config: RunConfig, *, every: bool) -> Iterator[Candidate]:
    """The candidates of a run, oldest first, one at a time in memory.

    Args:
        folder: of the run.
        config: of the run.
        every: every good checkpoint that was kept, not only the newest.

    Raises:
        RunFolderError: there is neither a good checkpoint nor an encoder.
    """
    good = _good(checkpoint_place(config.checkpoint, folder), folder)
    newest = next(good, None)
    if newest is None:
        yield _from_files(folder, config)
        return
    for path in [*reversed(list(good)), newest] if every else [newest]:
        yield _from_checkpoint(folder, config, path)


def _good(place: Place, folder: RunFolder) -> Iterator[Place]:
    """Checkpoints of a run whose bytes are right, newest first."""
    if not list_checkpoints(place):  # an encoder alone needs no record of the run
        return
    for path in own_checkpoints(place, load_record(folder).identity):
        try:
            load_checkpoint(path)
        except DamagedCheckpoint:
            continue
        yield path


def _from_checkpoint(folder: RunFolder, config: RunConfig, path: Place) -> Candidate:
    tensors, scalars = load_checkpoint(path)
    device = choose_device("auto")
    if config.distillation.teacher is None:
        method = method_of(tensors, config).to(device).eval()
        return Candidate(folder.path, int(scalars["step"]), config, method.encoder, method)
    encoder = untrained_encoder(config)
    try:
        encoder.load_state_dict(_below("method/network.encoder.", tensors))
    except RuntimeError as error:
        raise DamagedCheckpoint(f"{path} is of another network: {error}") from error
    return Candidate(folder.path, int(scalars["step"]), config, encoder.to(device).eval(), None)


def _from_files(folder: RunFolder, config: RunConfig) -> Candidate:
    """Encoder and head alone: the twin is taken to be where the network is."""
    encoder = load_encoder(folder).network.to(choose_device("auto"))
    if config.distillation.teacher is not None or config.head.predictor_layers:
        return Candidate(folder.path, None, config, encoder, None)
    method = build_method(config)
    method.encoder.load_state_dict(encoder.state_dict())
    method.network.get_submodule("head").load_state_dict(load_head(folder).state_dict())
    if method.twin is not None:
        method.twin = Twin(method.network)
    method = method.to(memory_format=torch.channels_last).to(choose_device("auto")).eval()
    return Candidate(folder.path, None, config, method.encoder, method)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
