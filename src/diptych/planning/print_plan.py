"""A plan on the terminal: tables, and which part breaks first with what to change."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.table import Table

from diptych.planning.plan import Plan
from diptych.planning.storage import AWAY, COPY

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_TOLERATED: Final = 0.25  # of a step
_LESS_MEMORY: Final = {
    "libraries": "Run on a machine with more of it.",
    "list of images": (
        "Each process holds name, size and place of every image. Train on a part of them "
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
_FEWER_KEYS: Final = (
    "Use a queue, whose keys travel once and without gradients, or fewer processes."
)
_LESS_TRAFFIC: Final = {  # by how the longest message begins
    "shuffled": (
        "Shuffling hands every view to every process. Use a norm that needs none: "
        "--norm.kind layer or group, or sync where messages are quick."
    ),
    "norms": (
        "Each norm waits for all processes twice in a step. Use --norm.kind split (groups "
        "within a process), layer or group."
    ),
    "fetched": (
        "Each comparison fetches keys from the others: draw fewer "
        "(--method.dictionary.bank.negatives), or hold the bank whole if it fits "
        "(--method.dictionary.bank.placement replicated)."
    ),
    "keys": _FEWER_KEYS,
    "gradients of": _FEWER_KEYS,
    "images whose keys": _FEWER_KEYS,
    # Last, as every text begins with "".
    "": "Give each process more images (a larger --batch-size), or use fewer processes.",
}
_FEW_IMAGES: Final = 16  # on an accelerator: kernels are then shorter than their launch
_PAUSED: Final = 0.05  # of the time, for checkpoints


def print_plan(console: Console, plan: Plan) -> None:
    """Prints what a run will cost, and which part breaks first."""
    console.print(_head(plan), highlight=False)
    for title, rows in (
        (f"A step: {time_text(plan.step_seconds)}", _seconds(plan)),
        ("Operations of a process in a step", _operations(plan)),
        (f"Memory of a process: {bytes_text(plan.memory.device + plan.memory.main)}", _held(plan)),
        (f"Sent by a process in a step: {bytes_text(plan.sent_bytes)}", _sent(plan)),
        ("Files", _files(plan)),
    ):
        if rows:
            console.print(_table(title, rows))
    for sentence in advice(plan):
        console.print(sentence, highlight=False)


def _head(plan: Plan) -> str:
    run, machine = plan.run, plan.machine
    how = "measured here" if plan.measured else f"by the rates of {machine.name!r}"
    rate = run.config.training.batch_size / plan.step_seconds
    views, faster = run.config.views, ""
    if views.has_early_part:
        faster = (
            f" The first {views.early_share:.0%} of the steps are on views of "
            f"{views.early_side_pixels} pixels and take less time than is planned here."
        )
    return (
        f"{run.config.recipe}, {run.config.encoder.name} ({plan.weights:,} weights) on views of "
        f"{run.config.views.side_pixels} pixels: {run.image_count:,} images, batch "
        f"{run.config.training.batch_size:,}, {run.config.training.epochs} epochs, "
        f"{run.processes} process{'es' * (run.processes > 1)} of {run.images:,} images each.\n"
        f"{time_text(plan.days * 86400)} for {run.steps:,} steps, {rate:,.0f} images a second, "
        f"{how}.{faster}"
    )


def _seconds(plan: Plan) -> list[tuple[str, str]]:
    parts = {**plan.seconds, "checkpoints, on average": plan.checkpoint_seconds}
    whole = plan.step_seconds
    return [
        (name, f"{time_text(seconds):>12} {f'{seconds / whole:.1%}':>12}")
        for name, seconds in parts.items()
        if seconds
    ]


def _operations(plan: Plan) -> list[tuple[str, str]]:
    networks = plan.networks
    parts = {
        "networks, forward": networks.forward_flops,
        "networks, backward": networks.backward_flops,
        "networks, without backward": networks.extra_flops,
        "logits": plan.logits.flops,
    }
    return [(name, f"{flops / 1e9:,.2f} Gflop") for name, flops in parts.items() if flops]


def _held(plan: Plan) -> list[tuple[str, str]]:
    held = plan.memory
    moment = {f"{name} ({held.fullest})": size for name, size in held.moments[held.fullest].items()}
    return _sizes({**held.lasting, **moment, **held.host})


def _sent(plan: Plan) -> list[tuple[str, str]]:
    rows = list[tuple[str, str]]()
    for one in plan.messages:
        size = bytes_text(one.sent(plan.run.processes))
        time = time_text(one.seconds(plan.run.processes, plan.machine))
        how = "reduced" if one.kind == "reduce" else "gathered"
        rows.append((f"{one.what}, {how}", f"{size:>12} {time:>12}"))
    return rows


def _files(plan: Plan) -> list[tuple[str, str]]:
    found = plan.storage
    reads = found.read_per_step * plan.run.processes / plan.step_seconds
    return [
        *_sizes(
            {
                "a checkpoint": found.checkpoint,
                "checkpoints at most": found.checkpoints,
                "metrics of the run": found.metrics,
                "encoded images": found.read_per_epoch,
                "index of the images": plan.opening.index_bytes,
            }
        ),
        ("read while training", f"{bytes_text(reads)}/s"),
        ("opening the images, the first time", time_text(plan.opening.first_seconds)),
        ("opening the images again", time_text(plan.opening.again_seconds)),
    ]


def _sizes(sizes: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(name, bytes_text(size)) for name, size in sizes.items() if size]


def _table(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    return table


@dataclass(frozen=True)
class Limit:
    """What a part of a run needs, compared with what the machine has.

    Attributes:
        part: in words.
        load: what it needs over what there is, or over what is tolerable; above 1 it breaks.
        found: figures, in words.
        cure: what to change where it breaks.
        stops: whether a run above the limit ends, instead of becoming slow.
    """

    part: str
    load: float
    found: str
    cure: str
    stops: bool = False

    @property
    def breaks(self) -> bool:
        """Whether the machine has too little."""
        return self.load > 1


def limits(plan: Plan) -> list[Limit]:
    """Every limit of a plan: first those that end a run, then by their load."""
    found = [
        _device_memory(plan),
        _main_memory(plan),
        _logits(plan),
        _views(plan),
        _reads(plan),
        _opening(plan),
        _checkpoints(plan),
    ]
    if plan.run.processes > 1:
        found.append(_network(plan))
        if not plan.machine.is_one_memory:
            words = f"{plan.run.images} images for each process in a step"
            cure = "Use fewer processes or a larger --batch-size, with its learning rate."
            found.append(Limit("images to share", _FEW_IMAGES / plan.run.images, words, cure))
    return sorted(found, key=lambda one: (not (one.stops and one.breaks), -one.load))


def advice(plan: Plan) -> list[str]:
    """What breaks, the worst first, with what to change; or what is closest to its limit."""
    every = limits(plan)
    broken = [one for one in every if one.breaks]
    if not broken:
        return [f"Nothing breaks. Closest to its limit: {every[0].part} ({every[0].found})."]
    starts = ["Breaks first", *["Then"] * (len(broken) - 1)]
    return [
        f"{start}: {one.part} ({one.found}). {one.cure}"
        for start, one in zip(starts, broken, strict=True)
    ]


def _device_memory(plan: Plan) -> Limit:
    """Names the queue or the bank where that is most of it."""
    memory, there, kind = plan.memory, plan.machine.memory_bytes, plan.run.dictionary
    shared = memory.main if plan.machine.is_one_memory else 0.0
    held = memory.device + shared
    keys = memory.lasting.get(kind, 0.0)
    if keys > held / 2:
        cure = "Use a shorter queue." if kind == "queue" else _smaller_bank(plan)
        words = f"{bytes_text(keys)} of {bytes_text(there)}"
        return Limit(f"memory of the {kind}", held / there, words, cure, stops=True)
    cure = "Use a smaller network, or a device with more memory."
    activations = plan.networks.peak_bytes * (1 + plan.machine.heap_share)
    libraries = plan.machine.base_bytes if shared else 0.0
    if activations > (held - libraries) / 2:
        encoded = plan.run.images // plan.run.chunks
        fitting = int((there - (held - activations)) / (activations / encoded))
        cure = "Not even two images fit: use a smaller network or smaller views."
        if fitting >= 2:
            # A power of two, as a chunk has to divide the share of the batch.
            chunk = 2 ** (fitting.bit_length() - 1)
            cure = (
                f"Most of it is activations: --training.chunk-size {chunk} encodes in parts with "
                "the same loss."
            )
        if plan.run.config.training.recompute != "stages":
            cure += " --training.recompute stages keeps fewer, for a forward pass more."
    words = f"{bytes_text(held)} of {bytes_text(there)} in '{memory.fullest}'"
    return Limit("memory of the device", held / there, words, cure, stops=True)


def _smaller_bank(plan: Plan) -> str:
    """What makes the share of a process smaller, the largest gain first."""
    processes, share = plan.run.processes, "equal shares on several processes"
    if processes > 1:
        share = f"an equal share on each of {processes} processes"
    cures = [f"--method.dictionary.bank.placement sharded keeps {share}."]
    if plan.run.bank_is_sharded:
        cures = ["More processes hold smaller shares."]
    if plan.run.config.method.dictionary.bank.precision == "fp32":
        cures.append("--method.dictionary.bank.precision fp16 halves the keys.")
    cures.append("A queue (--recipe moco_v2) does not grow with the images.")
    return " ".join(cures)


def _main_memory(plan: Plan) -> Limit:
    there, host = plan.machine.host_bytes or plan.machine.memory_bytes, plan.memory.host
    largest = max(host, key=lambda name: host[name])
    words = (
        f"{bytes_text(plan.memory.main)} of {bytes_text(there)}, "
        f"of which {largest} {bytes_text(host[largest])}"
    )
    return Limit("main memory", plan.memory.main / there, words, _LESS_MEMORY[largest], stops=True)


def _network(plan: Plan) -> Limit:
    share = plan.seconds["network"] / plan.step_seconds
    longest = max(plan.messages, key=lambda one: one.seconds(plan.run.processes, plan.machine)).what
    cures = (cure for start, cure in _LESS_TRAFFIC.items() if longest.startswith(start))
    words = f"{share:.0%} of a step, most of it {longest}"
    return Limit("network", share / _TOLERATED, words, next(cures))


def _logits(plan: Plan) -> Limit:
    cost = plan.logits
    share = plan.seconds["logits"] / plan.step_seconds
    words = f"{cost.queries:,} queries x {cost.keys:,} keys, {share:.0%} of a step"
    cure = "Each query meets every key: take fewer (a queue of a fixed size, a smaller batch)."
    if plan.run.full_logits:
        cure = "This loss holds all logits at once; info_nce and decoupled need only tiles."
    load = max(share / _TOLERATED, cost.bytes / plan.machine.memory_bytes)
    return Limit("logits of queries with keys", load, words, cure)


def _views(plan: Plan) -> Limit:
    waited = plan.seconds.get("waiting for views", plan.seconds.get("reads and views", 0.0))
    share = waited / plan.step_seconds
    cure = "Give each process more cores, or store images at the size that is trained on."
    # `auto` makes them on an accelerator already; tensor operations on a CPU are slower than loops.
    if plan.run.config.views.applier == "cpu" and not plan.machine.is_one_memory:
        cure += " --views.applier device makes them on the device."
    return Limit("making views", share / _TOLERATED, f"{share:.0%} of a step", cure)


def _reads(plan: Plan) -> Limit:
    rate = plan.storage.read_per_step / plan.step_seconds
    whole = rate * plan.run.processes
    words = f"{rate / 1e6:,.0f} MB/s a process, {whole / 1e9:,.1f} GB/s together"
    cure = "Store smaller images, in tar shards on local disks or on more servers."
    return Limit("reads", rate / plan.machine.read_bytes_per_second, words, cure)


def _opening(plan: Plan) -> Limit:
    opening, training = plan.opening, max(plan.days * 86400, plan.step_seconds)
    words = (
        f"{time_text(opening.first_seconds)} the first time on a machine, "
        f"{time_text(opening.again_seconds)} later, to {time_text(training)} of training"
    )
    cure = (
        "One process of a machine decodes every image once, and the others wait: store smaller "
        "images, give it more cores, or train on a part of them (--images.limit). What it finds is "
        "kept in --images.cache-folder; `diptych views` makes it beforehand."
    )
    return Limit("opening the images", opening.first_seconds / training / _TOLERATED, words, cure)


def _checkpoints(plan: Plan) -> Limit:
    share, config = plan.checkpoint_seconds / plan.step_seconds, plan.run.config.checkpoint
    words = (
        f"{bytes_text(plan.storage.checkpoint)} every {config.every_seconds:.0f} s, "
        f"{plan.writing_seconds:.0f} s to write, {share:.1%} of the time"
    )
    cure = "Save less often (--checkpoint.every-seconds)."
    late = plan.writing_seconds / config.every_seconds if config.every_seconds else 0.0
    if not config.asynchronous:
        late, cure = 0.0, f"Write beside training (--checkpoint.asynchronous). {cure}"
    return Limit("checkpoints", max(share / _PAUSED, late), words, cure)


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
