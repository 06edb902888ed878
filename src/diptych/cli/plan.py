"""The verb `plan`: what a run will cost."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console

from diptych.cli.flags import explicit_settings, parse
from diptych.cli.pretrain import PretrainFlags
from diptych.planning.machine import MachineConfig, machine_named
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import require_writable


@dataclass(frozen=True)
class PlanFlags(PretrainFlags):
    """What `diptych plan` takes: all that `pretrain` does, and the machine."""

    on: str = "cpu"
    """Device of each process: cpu, t4, l4, a100 or h100, by their data sheets. --machine.NAME
    overrides what you know better."""
    processes: int = 1
    """Processes that share each batch, one device each."""
    images_count: int | None = None
    """Images to learn from. Those at the path when not given."""
    image_side: int | None = None
    """Sides of an image as it is stored, in pixels. Those at the path, or 430, when not given."""
    image_kilobytes: float | None = None
    """Size of an encoded image. 0.6 bytes for each of its pixels when not given, as JPEG files of
    ImageNet."""
    measure: bool = False
    """Time a few steps, views and messages on this machine, instead of planning by rates."""
    processes_here: int = 1
    """Of --measure: processes that will share this machine's cores."""
    json: Path | None = None
    """Also write all figures to this file."""
    machine: MachineConfig = field(default_factory=MachineConfig)


COMMON: Final = {
    "machine": ("on", "processes", "measure", "processes_here", "threads"),
    "images": ("images_count", "image_side", "image_kilobytes"),
    "run": (
        *("recipe", "scale", "config", "encoder.name", "views.side_pixels", "epochs", "batch_size"),
        *("training.chunk_size", "training.precision", "checkpoint.every_seconds"),
    ),
    "output": ("json", "quiet"),
}
"""Flags that most people need."""


def plan(arguments: Sequence[str]) -> None:
    """Say what a run will cost before it starts, and which limit it reaches first.

    Takes what `diptych pretrain` takes, trains nothing and writes nothing. docs/scale.md has the
    formulas.

    Examples:
      diptych plan photos/ --measure
      diptych plan --recipe moco_v2 --images-count 1_000_000_000 --on h100 --processes 64
    """
    flags = parse(PlanFlags, plan, arguments, common=COMMON)

    from diptych.planning.plan import plan_run
    from diptych.planning.planned_run import PlanRequest
    from diptych.planning.print_plan import print_plan
    from diptych.runtime.devices import available_threads, divided

    # Now, and not after minutes of measuring.
    if flags.json is not None:
        require_writable(flags.json.parent)
    cores = divided(flags.threads or available_threads(), max(1, flags.processes_here))
    request = PlanRequest(
        machine_named(flags.on, flags.machine, cores=cores),
        processes=flags.processes,
        images_count=flags.images_count,
        image_side=flags.image_side,
        image_kilobytes=flags.image_kilobytes,
        measure=flags.measure,
        processes_here=flags.processes_here,
    )
    made = plan_run(request, explicit_settings(flags, arguments), flags.config)
    if not flags.quiet:
        print_plan(Console(markup=False), made)
    if flags.json is not None:
        atomic_write(flags.json, (json.dumps(made.as_json(), indent=1) + "\n").encode())
