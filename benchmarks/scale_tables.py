"""The tables of docs/scale.md: recipes on 8, 64 and 1,024 devices, by `diptych plan`'s model.

Nothing is measured: figures of devices are those of their data sheets (planning/machine.py).

    python benchmarks/scale_tables.py             # prints Markdown; a minute
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diptych.config.recipes import recipe_config
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.planning.print_plan import bytes_text, limits, time_text
from diptych.planning.machine import machine_named
from diptych.planning.plan import Plan, make_plan
from diptych.planning.planned_run import PlannedRun

DEVICES = (8, 64, 1024)
IMAGES = (1_281_167, 1_000_000_000)  # ImageNet, and a billion
EPOCHS = {1_281_167: 200, 1_000_000_000: 1}
MACHINE = "h100"


@dataclass(frozen=True)
class Variant:
    """A recipe at the paper's scale, changed or not."""

    name: str
    recipe: str
    per_device: int
    norm: str | None = None
    smaller_bank: bool = False


PLAIN = (
    Variant("simclr", "simclr", 64),
    Variant("moco_v2", "moco_v2", 64),
    Variant("memory_bank", "memory_bank", 64),
)
CURED = (
    Variant("simclr, group norm, 256 a device", "simclr", 256, norm="group"),
    Variant("moco_v2, split norm, 256 a device", "moco_v2", 256, norm="split"),
    Variant("memory_bank in shares, fp16, 256 a device", "memory_bank", 256, smaller_bank=True),
)


def config_of(variant: Variant, devices: int, images: int) -> RunConfig:
    """The recipe in bf16, its batch grown with the devices."""
    config = recipe_config(variant.recipe, "paper")
    kind: Any = variant.norm or config.norm.kind
    dictionary = config.method.dictionary
    if variant.smaller_bank:
        dictionary = replace(
            dictionary, bank=replace(dictionary.bank, precision="fp16", placement="sharded")
        )
    return replace(
        config,
        norm=replace(config.norm, kind=kind),
        method=replace(config.method, dictionary=dictionary),
        training=replace(
            config.training,
            epochs=EPOCHS[images],
            batch_size=variant.per_device * devices,
            precision="bf16",
            device="cuda",
        ),
        checkpoint=replace(config.checkpoint, every_seconds=1800.0),
    )


def plans(variants: Sequence[Variant], images: int) -> Iterator[tuple[Variant, int, Plan]]:
    for variant in variants:
        for devices in DEVICES:
            try:
                run = PlannedRun(config_of(variant, devices, images), images, devices)
                yield variant, devices, make_plan(run, machine_named(MACHINE))
            except ConfigError:
                continue


def row(variant: Variant, devices: int, plan: Plan) -> str:
    broken = [one.part for one in limits(plan) if one.breaks]
    rate = plan.run.config.training.batch_size / plan.step_seconds
    reads = plan.storage.read_per_step * devices / plan.step_seconds
    cells = (
        variant.name,
        f"{devices:,}",
        f"{plan.run.config.training.batch_size:,}",
        time_text(plan.step_seconds),
        f"{plan.seconds['network'] / plan.step_seconds:.0%}",
        f"{rate:,.0f}",
        time_text(plan.days * 86400),
        time_text(plan.opening.first_seconds),
        bytes_text(plan.memory.device),
        bytes_text(plan.memory.main),
        bytes_text(plan.sent_bytes),
        f"{bytes_text(reads)}/s",
        ", ".join(broken) or "nothing",
    )
    return f"| {' | '.join(cells)} |"


def table(variants: Sequence[Variant], images: int) -> Iterator[str]:
    names = (
        *("recipe", "devices", "batch", "step", "network", "images/s", "run", "opening"),
        *("device memory", "main memory", "sent a step", "reads, all", "what breaks, first first"),
    )
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)
    for variant, devices, plan in plans(variants, images):
        yield row(variant, devices, plan)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    for images in IMAGES:
        for title, variants in (("as in the papers", PLAIN), ("changed", CURED)):
            print(f"{images:,} images, {EPOCHS[images]} epochs, {title}:\n")
            print("\n".join(table(variants, images)), end="\n\n")


if __name__ == "__main__":
    main()
