"""Which part of a run breaks first on a machine, and what the settings should be there."""

from dataclasses import dataclass
from typing import Final

from diptych.planning.memory import AWAY, COPY
from diptych.planning.plan import Plan

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_WASTEFUL: Final = 0.25  # of a step
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
        return self.load > 1


def limits(plan: Plan) -> list[Limit]:
    """Every limit of a plan: first those that end a run, then by their load."""
    found = [
        _device_memory(plan),
        _dictionary(plan),
        _main_memory(plan),
        _network(plan),
        _logits(plan),
        _views(plan),
        _reads(plan),
        _opening(plan),
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
    activations = plan.networks.peak_bytes * (1 + plan.machine.heap_share)
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
    words = f"{bytes_text(held)} of {bytes_text(there)} in '{plan.memory.fullest}'"
    return Limit("memory of the device", held / there, words, cure, stops=True)


def _fewer_kept(plan: Plan) -> str:
    if plan.run.config.training.recompute == "stages":
        return ""
    return " --training.recompute stages keeps fewer, for a forward pass more."


def _fitting_chunk(plan: Plan, activations: float, room: float) -> int | None:
    """The largest power of two of images, of which two or more fit."""
    encoded = plan.run.images // plan.run.chunks
    fitting = int(room / (activations / encoded))
    return 2 ** (fitting.bit_length() - 1) if fitting >= 2 else None


def _dictionary(plan: Plan) -> Limit | None:
    held = _on_device(plan)
    if _keys(plan) <= held / 2:
        return None
    kind = plan.run.dictionary
    cure = "Use a shorter queue." if kind == "queue" else _smaller_bank(plan)
    there = plan.machine.memory_bytes
    words = f"{bytes_text(_keys(plan))} of {bytes_text(there)}"
    return Limit(f"memory of the {kind}", held / there, words, cure, stops=True)


def _smaller_bank(plan: Plan) -> str:
    """What makes the share of a process smaller, the largest gain first."""
    dictionary, processes = plan.run.config.method.dictionary, plan.run.processes
    cures = list[str]()
    if dictionary.bank_placement == "sharded":
        cures.append("More processes hold smaller shares.")
    else:
        share = (
            f"an equal share on each of {processes} processes"
            if processes > 1
            else ("equal shares on several processes")
        )
        cures.append(f"--method.dictionary.bank-placement sharded keeps {share}.")
    if dictionary.bank_precision == "fp32":
        cures.append("--method.dictionary.bank-precision fp16 halves the keys.")
    cures.append("A queue (--recipe moco_v2) does not grow with the images.")
    return " ".join(cures)


def _main_memory(plan: Plan) -> Limit:
    there = plan.machine.host_bytes or plan.machine.memory_bytes
    held = plan.memory.main
    largest = max(plan.memory.host, key=lambda name: plan.memory.host[name])
    share = bytes_text(plan.memory.host[largest])
    words = f"{bytes_text(held)} of {bytes_text(there)}, of which {largest} {share}"
    return Limit("main memory", held / there, words, _LIGHTER[largest], stops=True)


def _network(plan: Plan) -> Limit | None:
    if plan.run.processes == 1:
        return None
    share = plan.seconds["network"] / plan.step_seconds
    machine, processes = plan.machine, plan.run.processes
    longest = max(plan.messages, key=lambda one: one.seconds(processes, machine))
    words = f"{share:.0%} of a step, most of it {longest.what}"
    return Limit("network", share / _WASTEFUL, words, _quieter(longest.what))


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
            "(--method.dictionary.bank-negatives), or hold the bank whole if it fits "
            "(--method.dictionary.bank-placement replicated)."
        )
    if "keys" in what and not what.startswith("entering"):
        return "Use a queue, whose keys travel once and without gradients, or fewer processes."
    return "Give each process more images (a larger --batch-size), or use fewer processes."


def _logits(plan: Plan) -> Limit:
    cost = plan.logits
    share = plan.seconds["logits"] / plan.step_seconds
    words = f"{cost.queries:,} queries x {cost.keys:,} keys, {share:.0%} of a step"
    cure = "Each query meets every key: take fewer (a queue of a fixed size, a smaller batch)."
    if plan.run.full_logits:
        cure = "This loss holds all logits at once; info_nce and decoupled need only tiles."
    load = max(share / _WASTEFUL, cost.bytes / plan.machine.memory_bytes)
    return Limit("logits of queries with keys", load, words, cure)


def _views(plan: Plan) -> Limit:
    waited = plan.seconds.get("waiting for views", plan.seconds.get("reads and views", 0.0))
    share = waited / plan.step_seconds
    words = f"{share:.0%} of a step"
    cure = (
        "Give each process more cores, store images at the size that is trained on, or make views "
        "on the device (--views.applier device)."
    )
    return Limit("making views", share / _WASTEFUL, words, cure)


def _reads(plan: Plan) -> Limit:
    rate = plan.storage.read_per_step / plan.step_seconds
    there = plan.machine.read_bytes_per_second
    whole = rate * plan.run.processes
    words = f"{rate / 1e6:,.0f} MB/s a process, {whole / 1e9:,.1f} GB/s together"
    cure = "Store smaller images, in tar shards on local disks or on more servers."
    return Limit("reads", rate / there, words, cure)


def _opening(plan: Plan) -> Limit | None:
    if not plan.run.steps:
        return None
    opening, training = plan.opening, plan.days * 86400
    words = (
        f"{time_text(opening.first_seconds)} the first time on a machine, "
        f"{time_text(opening.again_seconds)} later, to {time_text(training)} of training"
    )
    cure = (
        "One process of a machine decodes every image once, and the others wait: store smaller "
        "images, give it more cores, or train on a part of them (--images.limit). What it finds is "
        "kept in --images.cache-folder; `diptych views` makes it beforehand."
    )
    return Limit("opening the images", opening.first_seconds / training / _WASTEFUL, words, cure)


def _checkpoints(plan: Plan) -> Limit:
    share = plan.checkpoint_seconds / plan.step_seconds
    size = bytes_text(plan.storage.checkpoint)
    config = plan.run.config.checkpoint
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
    if plan.machine.is_one_memory or plan.run.processes == 1:
        return None
    cure = "Use fewer processes or a larger --batch-size, with its learning rate."
    words = f"{plan.run.images} images for each process in a step"
    return Limit("images to share", _FEW_IMAGES / plan.run.images, words, cure)


def bytes_text(size: float) -> str:
    """Bytes in the unit that suits them.

    Example:
        >>> bytes_text(2_500_000)
        '2.5 MB'
    """
    power = 0
    while size >= 1000 and power < len(_UNITS) - 1:
        size, power = size / 1000, power + 1
    return f"{size:,.0f} B" if not power else f"{size:,.1f} {_UNITS[power]}"


def time_text(seconds: float) -> str:
    """Seconds in the unit that suits them.

    Example:
        >>> time_text(0.0123), time_text(200), time_text(1e6)
        ('12.3 ms', '3.3 minutes', '11.6 days')
    """
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "s")):
        if seconds >= size * (1.0 if unit == "s" else 2.0):
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds * 1e3:,.1f} ms"
