"""A plan as tables on the terminal."""

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table

from diptych.planning.bottlenecks import advice, bytes_text, time_text
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
    for sentence in advice(plan):
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
