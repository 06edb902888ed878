"""A plan as tables on the terminal."""

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table

from diptych.planning.bottlenecks import bytes_text, time_text, verdict
from diptych.planning.plan import Plan


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
    for sentence in verdict(plan):
        console.print(sentence, highlight=False)


def _head(plan: Plan) -> str:
    run, machine = plan.run, plan.machine
    how = "measured here" if plan.measured else f"by the rates of {machine.name!r}"
    rate = run.config.training.batch_size / plan.step_seconds
    return (
        f"{run.config.recipe}, {run.config.encoder.name} ({plan.weights:,} weights) on views of "
        f"{run.config.views.side_pixels} pixels: {run.image_count:,} images, batch "
        f"{run.config.training.batch_size:,}, {run.config.training.epochs} epochs, "
        f"{run.processes} process{'es' * (run.processes > 1)} of {run.images:,} images each.\n"
        f"{time_text(plan.days * 86400)} for {run.steps:,} steps, {rate:,.0f} images a second, "
        f"{how}."
    )


def _seconds(plan: Plan) -> list[tuple[str, str]]:
    parts = {**plan.seconds, "checkpoints, on average": plan.checkpoint_seconds}
    shown = {name: seconds for name, seconds in parts.items() if seconds}
    return [(name, _share(time_text(s), s / plan.step_seconds)) for name, s in shown.items()]


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
    processes, machine = plan.run.processes, plan.machine
    return [
        (
            f"{one.what}, {one.kind}d" if one.kind == "reduce" else f"{one.what}, gathered",
            _beside(bytes_text(one.sent(processes)), time_text(one.seconds(processes, machine))),
        )
        for one in plan.messages
    ]


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


def _share(text: str, share: float) -> str:
    return _beside(text, f"{share:.1%}")


def _beside(text: str, other: str) -> str:
    return f"{text:>12} {other:>12}"


def _table(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    return table
