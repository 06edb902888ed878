"""The messages between the processes in a step: their bytes, and how long they take.

A message is counted by the bytes that a process hands in. Of an all-reduce over n processes each
sends 2 (n - 1) / n of these, in 2 (n - 1) turns (ring; Patarasuk and Yuan 2009); small ones go up
and down a tree instead, 2 log2 n turns with all bytes each way. Of an all-gather a process sends
(n - 1) times what it hands in, in n - 1 turns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from torch import nn

from diptych.checkpoints.state import trainable
from diptych.methods.contrastive import Contrastive
from diptych.methods.dense import DenseContrastive
from diptych.methods.dictionaries import ImageBank
from diptych.methods.sharded_bank import ShardedBank
from diptych.models.activations import stages_of
from diptych.models.norms import GlobalBatchNorm
from diptych.planning.machine import Machine
from diptych.planning.planned_run import PlannedRun
from diptych.runtime.distributed import BUCKET_BYTES
from diptych.runtime.stopwatch import PARTS
from diptych.training.step import local_statistics

Kind = Literal["reduce", "gather"]

_FLOAT_BYTES = 4
_INDEX_BYTES = 8
_DOUBLE_BYTES = 8
# Of step, images, network, momentum encoder, dictionary, other parts, and a share of a bank.
_CHECKSUMS = 7
_SIGNALS = 4  # a signal came, a checkpoint is due, one failed, minutes are planned anew
_DENSE_METRICS_BYTES = 2 * 4 + 2 * 8  # loss and accuracy of places; what it is at chance, a weight


@dataclass(frozen=True)
class Message:
    """A kind of message in a step.

    Attributes:
        what: in words.
        kind: an all-reduce, or an all-gather.
        bytes: that a process hands in, of all calls together.
        count: of calls; less than one for what is not sent in every step.
    """

    what: str
    kind: Kind
    bytes: float
    count: float = 1

    def sent(self, processes: int) -> float:
        """Bytes that a process sends."""
        others = processes - 1
        return self.bytes * (2 * others / processes if self.kind == "reduce" else others)

    def seconds(self, processes: int, machine: Machine) -> float:
        """How long it takes: turns times latency, and bytes over bandwidth."""
        turn, rate = self.count * machine.network_seconds, machine.network_bytes_per_second
        if self.kind == "gather":
            return (processes - 1) * turn + self.sent(processes) / rate
        ring = 2 * (processes - 1) * turn + self.sent(processes) / rate
        tree = 2 * math.ceil(math.log2(processes)) * turn + 2 * self.bytes / rate
        return min(ring, tree)


def messages(run: PlannedRun, method: Contrastive, dim: int) -> list[Message]:
    """All messages of a step; none of a single process.

    Args:
        run: that is planned.
        method: as it is built, on any device.
        dim: of a vector.
    """
    if run.processes == 1:
        return []
    checked, logged = run.config.training.check_every_steps, run.config.probe.log_every_steps
    found = [
        _averages(method),
        *_keys(run, dim),
        *_fetched(run, method, dim),
        *_entering(run, method, dim),
        *_shuffled(run, method, dim),
        *_norms(run, method),
        Message("signals", "reduce", _SIGNALS * _INDEX_BYTES),
        Message("checksums", "gather", _CHECKSUMS * _INDEX_BYTES / checked, 1 / checked),
        Message("times", "gather", len(PARTS) * _INDEX_BYTES / logged, 1 / logged),
    ]
    return [one for one in found if one.bytes]


def network_seconds(found: Sequence[Message], processes: int, machine: Machine) -> float:
    """Of all messages, one after the other: nothing is sent while something is computed."""
    return sum(one.seconds(processes, machine) for one in found)


def _averages(method: Contrastive) -> Message:
    gradients = sum(parameter.nbytes for _, parameter in trainable(method))
    statistics = sum(tensor.nbytes for tensor in local_statistics(method))
    # Loss and accuracy; and in double precision what they are at chance, and the candidates.
    total = gradients + statistics + 2 * _FLOAT_BYTES + 3 * _DOUBLE_BYTES
    total += _DENSE_METRICS_BYTES * isinstance(method, DenseContrastive)
    return Message("gradients", "reduce", total, -(-total // BUCKET_BYTES))


def _keys(run: PlannedRun, dim: int) -> list[Message]:
    """Vectors that the queries of all meet, and the way back of their gradients."""
    if run.dictionary != "batch":
        return []
    calls = 1 if run.queries_are_keys else run.query_views
    rows = (run.query_views if run.queries_are_keys else 1) * run.images
    handed = calls * rows * dim * _FLOAT_BYTES
    found = [Message("keys", "gather", handed, calls)]
    if run.many_positives or run.config.images.group_by is not None:
        found.append(Message("groups of images", "gather", run.images * _INDEX_BYTES * calls))
    if run.keys_learn:  # the sum over processes of the gradient to the keys of all
        found.append(Message("gradients of keys", "reduce", handed * run.processes, calls))
    return found


def _fetched(run: PlannedRun, method: Contrastive, dim: int) -> list[Message]:
    """Of a bank, for each comparison: which images have a key, and which drawn ones are their own.

    Of a sharded one also the images of the batch, and keys, padded.
    """
    bank, calls = method.dictionary, run.query_views
    if not isinstance(bank, ImageBank):
        return []
    found = [Message("which images have a key", "gather", calls * run.images, calls)]
    if run.drawn_images <= bank.negative_count:
        own = calls * run.images * _FLOAT_BYTES
        found.append(Message("which drawn images are their own", "gather", own, calls))
    if not isinstance(bank, ShardedBank):
        return found
    indices = calls * run.images * _INDEX_BYTES
    keys = calls * largest_share(run) * dim * bank.keys.element_size()
    return [
        *found,
        Message("images whose keys are wanted", "gather", indices, calls),
        Message("fetched keys", "gather", keys, calls),
    ]


def largest_share(run: PlannedRun) -> float:
    """Rows that each process hands in for a comparison: as many as the one with the most of them.

    The batch's images and the drawn ones are random samples of all images without repetition, so
    this is the mean of the largest of n shares, by Blom's normal scores (1958), up to half a row.
    """
    n, images = run.processes, run.learned_images
    wanted = (run.config.training.batch_size, run.drawn_images)
    mean = sum(wanted) / n
    variance = sum(one / n * max(0.0, 1 - one / images) for one in wanted)
    return mean + NormalDist().inv_cdf((n - 0.375) / (n + 0.25)) * math.sqrt(variance)


def _entering(run: PlannedRun, method: Contrastive, dim: int) -> list[Message]:
    """Keys that the dictionary is updated with, and their images."""
    if run.dictionary == "batch":
        return []
    rows = run.images * (run.key_views or 1)
    found = [
        Message("entering keys", "gather", rows * dim * _FLOAT_BYTES),
        Message("entering images", "gather", run.images * _INDEX_BYTES),
    ]
    if isinstance(method, DenseContrastive):
        places = rows * method.dense_queue.keys.shape[1] * _FLOAT_BYTES
        found.append(Message("entering keys of places", "gather", places))
    return found


def _shuffled(run: PlannedRun, method: Contrastive, dim: int) -> list[Message]:
    """Whole views that other processes encode, and the vectors that come back."""
    number, config = run.shuffled_views, run.config
    if not number:
        return []
    view = config.images.channels * config.views.side_pixels**2
    vectors = number * run.images * (dim + _beside(method)) * _FLOAT_BYTES
    found = [
        Message("shuffled views", "gather", number * run.images * view * _FLOAT_BYTES, number),
        Message("shuffled keys", "gather", vectors, number),
    ]
    if run.queries_are_keys or run.keys_learn:
        back = vectors * run.processes
        found.append(Message("gradients of shuffled keys", "reduce", back, number))
    return found


def _beside(method: Contrastive) -> int:
    """Numbers that come with each vector: of dense contrast, what its places are compared by."""
    if not isinstance(method, DenseContrastive):
        return 0
    # The head's first layer takes what the map has.
    features = next(method.dense_head.parameters()).shape[1]
    return method.places * (features + method.dense_queue.keys.shape[1])


def _norms(run: PlannedRun, method: Contrastive) -> list[Message]:
    """Statistics of each global norm in each pass: 2 x channels and a count; back 2 x channels.

    Stages that are computed again exchange theirs again.
    """
    sizes = 1 + (run.config.views.small_views > 0)
    learning, again = sizes * run.chunks, sizes * run.chunks if run.chunks > 1 else 0
    of_keys = run.chunks if run.key_views else 0
    query, predictor = _channels(method.network), _channels(method.predictor)
    key = _channels(method.network if method.momentum_encoder is None else method.momentum_encoder)
    passes = [(query, learning + again, learning), (predictor, learning + again, learning)]
    backward = of_keys if run.keys_learn else 0
    passes.append((key, of_keys * (2 if run.chunks > 1 and run.keys_learn else 1), backward))
    if run.config.training.recompute == "stages":
        passes.append((_channels(*stages_of(method.encoder)), learning + backward, 0))
    forward = sum(count * sum(2 * c + 1 for c in channels) for channels, count, _ in passes)
    back = sum(count * 2 * sum(channels) for channels, _, count in passes)
    calls = sum(count * len(channels) for channels, count, _ in passes)
    back_calls = sum(count * len(channels) for channels, _, count in passes)
    return [
        Message("norms, forward", "gather", forward * _FLOAT_BYTES, calls),
        Message("norms, backward", "reduce", back * _FLOAT_BYTES, back_calls),
    ]


def _channels(*networks: nn.Module | None) -> list[int]:
    norms = [norm for network in networks if network is not None for norm in network.modules()]
    return [norm.num_features for norm in norms if isinstance(norm, GlobalBatchNorm)]
