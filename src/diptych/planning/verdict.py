"""Which part of a run breaks first on a machine, and what the settings should be there."""

from dataclasses import dataclass
from typing import Final

from diptych.planning.memory import AWAY, COPY
from diptych.planning.plan import Plan

FULL: Final = 1.0
WASTEFUL: Final = 0.25  # of a step
_LIGHTER: Final = {
    "libraries": "Run on a machine with more of it.",
    "list of images": (
        "Each process knows name, size and place of every image. Train on a part of them "
        "(--images.limit), on fewer processes a machine, or in turns on several parts."
    ),
    "decoded images": "Keep fewer of them: --images.cache-megabytes, or --images.cache file.",
    "views made ahead": "Use a smaller --batch-size, or more processes.",
    COPY: (
        "The first process holds a copy of the whole state, the keys of a bank among it. "
        "Give it more memory; a queue (--recipe moco_v2) does not grow with the images."
    ),
    AWAY: "Leave out --training.offload-activations; --training.recompute stages saves memory too.",
}
_FEW_IMAGES: Final = 16  # on an accelerator: kernels are then shorter than their launch
_PAUSED: Final = 0.05  # of the time, for checkpoints


@dataclass(frozen=True)
class Limit:
    """A part of a run against what there is of it.

    Attributes:
        part: in words.
        load: what it needs over what there is, or over what is tolerable; above 1 it breaks.
        found: figures, in words.
        cure: what to change where it breaks.
        stops: whether a run that is above it ends, instead of becoming slow.
    """

    part: str
    load: float
    found: str
    cure: str
    stops: bool = False

    @property
    def breaks(self) -> bool:
        """Whether it is above what there is."""
        return self.load > FULL


def limits(plan: Plan) -> list[Limit]:
    """Every limit of a plan: first those that end a run, then by their load."""
    found = [
        _device_memory(plan),
        _dictionary(plan),
        _main_memory(plan),
        _network(plan),
        _look_up(plan),
        _views(plan),
        _reads(plan),
        _checkpoints(plan),
        _share(plan),
    ]
    return sorted(
        (one for one in found if one is not None),
        key=lambda one: (not (one.stops and one.breaks), -one.load),
    )


def verdict(plan: Plan) -> list[str]:
    """What breaks, first things first, with what to do; or what is closest to it."""
    every = limits(plan)
    broken = [one for one in every if one.breaks]
    if not broken:
        near = every[0]
        return [f"Nothing breaks. Closest to its limit: {near.part} ({near.found})."]
    first, *others = broken
    said = [f"Breaks first: {first.part} ({first.found}). {first.cure}"]
    return said + [f"Then: {one.part} ({one.found}). {one.cure}" for one in others]


def _on_device(plan: Plan) -> float:
    """Bytes at the peak, main memory included where there is no other."""
    return plan.memory.device + (plan.memory.main if plan.machine.is_one_memory else 0.0)


def _keys(plan: Plan) -> float:
    """Bytes of a queue or a bank."""
    lasting = plan.memory.lasting
    return lasting.get("bank", lasting.get("queue", 0.0))


def _device_memory(plan: Plan) -> Limit | None:
    held = _on_device(plan)
    if _keys(plan) > held / 2:  # the dictionary's own limit says so
        return None
    there = plan.machine.memory_bytes
    activations = plan.passes.peak_bytes * (1 + plan.machine.heap_share)
    cure = "Use a smaller network, or a device with more memory."
    libraries = plan.machine.base_bytes if plan.machine.is_one_memory else 0.0
    if activations > (held - libraries) / 2:
        fitting = _fitting_chunk(plan, activations, there - (held - activations))
        cure = (
            f"Most of it is activations: --training.chunk-size {fitting} encodes in parts with the "
            f"same loss.{_fewer_kept(plan)}"
            if fitting
            else f"Not even two images fit: use a smaller network or smaller views."
            f"{_fewer_kept(plan)}"
        )
    words = f"{_gigabytes(held)} of {_gigabytes(there)} in '{plan.memory.fullest}'"
    return Limit("memory of the device", held / there, words, cure, stops=True)


def _fewer_kept(plan: Plan) -> str:
    if plan.case.config.training.recompute == "stages":
        return ""
    return " --training.recompute stages keeps fewer, for a forward pass more."


def _fitting_chunk(plan: Plan, activations: float, room: float) -> int | None:
    """The largest power of two of images, of which two or more fit."""
    encoded = plan.case.images // plan.case.chunks
    fitting = int(room / (activations / encoded))
    return 2 ** (fitting.bit_length() - 1) if fitting >= 2 else None


def _dictionary(plan: Plan) -> Limit | None:
    held = _on_device(plan)
    if _keys(plan) <= held / 2:
        return None
    kind = plan.case.config.method.dictionary.kind
    cure = "Use a shorter queue." if kind == "queue" else _smaller_bank(plan)
    there = plan.machine.memory_bytes
    words = f"{_gigabytes(_keys(plan))} of {_gigabytes(there)}"
    return Limit(f"memory of the {kind}", held / there, words, cure, stops=True)


def _smaller_bank(plan: Plan) -> str:
    """What makes the share of a process smaller, the largest gain first."""
    dictionary, processes = plan.case.config.method.dictionary, plan.case.processes
    cures = list[str]()
    if dictionary.bank.placement == "sharded":
        cures.append("More processes hold smaller shares.")
    else:
        share = (
            f"an equal share on each of {processes} processes"
            if processes > 1
            else ("equal shares on several processes")
        )
        cures.append(f"--method.dictionary.bank.placement sharded keeps {share}.")
    if dictionary.bank.precision == "fp32":
        cures.append("--method.dictionary.bank.precision fp16 halves the keys.")
    cures.append("A queue (--recipe moco_v2) does not grow with the images.")
    return " ".join(cures)


def _main_memory(plan: Plan) -> Limit:
    there = plan.machine.host_bytes or plan.machine.memory_bytes
    held = plan.memory.main
    largest = max(plan.memory.host, key=lambda name: plan.memory.host[name])
    share = _gigabytes(plan.memory.host[largest])
    words = f"{_gigabytes(held)} of {_gigabytes(there)}, of which {largest} {share}"
    return Limit("main memory", held / there, words, _LIGHTER[largest], stops=True)


def _network(plan: Plan) -> Limit | None:
    if plan.case.processes == 1:
        return None
    share = plan.seconds["network"] / plan.step_seconds
    machine, processes = plan.machine, plan.case.processes
    longest = max(plan.messages, key=lambda one: one.seconds(processes, machine))
    words = f"{share:.0%} of a step, most of it {longest.what}"
    return Limit("network", share / WASTEFUL, words, _quieter(longest.what))


def _quieter(what: str) -> str:
    if what.startswith("shuffled"):
        return (
            "Shuffling hands every view to every process. Use a norm that needs none: "
            "--norm.kind layer or group, or sync where messages are quick."
        )
    if what.startswith("norms"):
        return (
            "Each norm waits for all processes twice in a step. Use --norm.kind split (groups "
            "within a process), layer or group."
        )
    if what.startswith("fetched"):
        return (
            "Each comparison fetches keys from the others: draw fewer "
            "(--method.dictionary.bank.negatives), or hold the bank whole if it fits "
            "(--method.dictionary.bank.placement replicated)."
        )
    if "keys" in what and not what.startswith("remembered"):
        return "Use a queue, whose keys travel once and without gradients, or fewer processes."
    return "Give each process more images (a larger --batch-size), or use fewer processes."


def _look_up(plan: Plan) -> Limit:
    cost = plan.look_up
    share = plan.seconds["look-up"] / plan.step_seconds
    words = f"{cost.queries:,} queries x {cost.keys:,} keys, {share:.0%} of a step"
    cure = "Each query meets every key: take fewer (a queue of a fixed size, a smaller batch)."
    if plan.case.config.method.loss.kind in ("nt_logistic", "triplet"):
        cure = "This loss holds all scores at once; info_nce and decoupled need only tiles."
    load = max(share / WASTEFUL, cost.bytes / plan.machine.memory_bytes)
    return Limit("scores of queries with keys", load, words, cure)


def _views(plan: Plan) -> Limit:
    waited = plan.seconds.get("waiting for views", plan.seconds.get("reads and views", 0.0))
    share = waited / plan.step_seconds
    words = f"{share:.0%} of a step"
    cure = (
        "Give each process more cores, store images at the size that is trained on, or make views "
        "on the device (--views.applier device)."
    )
    return Limit("making views", share / WASTEFUL, words, cure)


def _reads(plan: Plan) -> Limit:
    rate = plan.storage.read_per_step / plan.step_seconds
    there = plan.machine.read_bytes_per_second
    whole = rate * plan.case.processes
    words = f"{rate / 1e6:,.0f} MB/s a process, {whole / 1e9:,.1f} GB/s together"
    cure = "Store smaller images, in tar shards on local disks or on more servers."
    return Limit("reads", rate / there, words, cure)


def _checkpoints(plan: Plan) -> Limit:
    share = plan.checkpoint_seconds / plan.step_seconds
    size = _gigabytes(plan.storage.checkpoint)
    config = plan.case.config.checkpoint
    words = (
        f"{size} every {config.every_seconds:.0f} s, {plan.writing_seconds:.0f} s to write, "
        f"{share:.1%} of the time"
    )
    cure = "Save less often (--checkpoint.every-seconds)."
    late = plan.writing_seconds / config.every_seconds if config.every_seconds else 0.0
    if not config.asynchronous:
        late, cure = 0.0, f"Write beside training (--checkpoint.asynchronous). {cure}"
    return Limit("checkpoints", max(share / _PAUSED, late), words, cure)


def _share(plan: Plan) -> Limit | None:
    if plan.machine.is_one_memory or plan.case.processes == 1:
        return None
    cure = "Use fewer processes or a larger --batch-size, with its learning rate."
    words = f"{plan.case.images} images for each process in a step"
    return Limit("images to share", _FEW_IMAGES / plan.case.images, words, cure)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
