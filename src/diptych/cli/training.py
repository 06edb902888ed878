"""Verbs that make runs: `demo`, `pretrain`, `launch`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from diptych.cli.embed import embed
from diptych.cli.measuring import print_verdict
from diptych.errors import ConfigError
from diptych.runtime.world import read_world

DEMO_EPOCHS: Final = 16


def demo(arguments: Sequence[str]) -> None:
    """Learn from patches of sixteen built-in photographs, measure, and write runs/demo/report.html.

    Takes a minute or two on two cores. An earlier demo is replaced.

    Examples:
      diptych demo
      diptych demo --out runs/mine --seed 1
    """
    from diptych.cli.flags import DemoFlags, parse

    flags = parse(DemoFlags, demo, arguments)
    _remove_earlier_demo(flags.out)
    settings = {
        "images": {"path": "photographs"},
        "scale": "tiny",
        "seed": flags.seed,
        "encoder": {"width": 16},
        "training": {"epochs": DEMO_EPOCHS, "threads": flags.threads},
        "probe": {"health_every_epochs": 4},
    }
    _run_to_report(settings, out=flags.out, config_file=None, resume=False, quiet=False)


def pretrain(arguments: Sequence[str]) -> None:
    """Learn a representation of unlabelled images; write encoder, metrics, checkpoints and report.

    Settings come from the recipe at a scale, then from --config, then from flags, each overriding
    the one before. Folders of classes are noticed, and used for evaluation.

    Examples:
      diptych pretrain photos/ --epochs 50 --out runs/photos
      diptych pretrain photos/ --out runs/photos --resume
      diptych pretrain cells.npz --recipe moco_v2 --scale small --optimizer.learning-rate 0.1
      diptych pretrain photos/ --encoder resnet50 --norm.kind shuffle --training.chunk-size 64
      diptych pretrain --config runs/photos/config.toml --out runs/again
    """
    from diptych.cli.flags import PretrainFlags, explicit_settings, parse

    flags = parse(PretrainFlags, pretrain, arguments)
    settings = explicit_settings(flags, arguments)
    _run_to_report(
        settings,
        out=flags.out,
        config_file=flags.config,
        resume=flags.resume,
        quiet=flags.quiet,
        report=flags.report,
    )


def launch(arguments: Sequence[str]) -> None:
    """Pretrain, or embed, in several processes, by torchrun, so that the work survives.

    Usage: diptych launch [TORCHRUN'S OPTIONS] -- pretrain|embed ARGUMENTS

    A process that dies makes torchrun start all of them again, three times at most. A run goes on
    from the last checkpoint: --out is needed, --resume is added; embeddings go on behind the shards
    that are finished. `torchrun --help` lists its options; docs/launching.md says what several
    machines and schedulers need. Exits as the verb does: 143 when SIGTERM stopped a run after it
    was saved.

    Examples:
      diptych launch --nproc-per-node 2 -- pretrain photos/ --out runs/photos
      diptych launch --nnodes 2 --rdzv-endpoint node1:29400 -- pretrain photos/ --out /shared/run
      diptych launch --nproc-per-node 8 -- embed runs/photos photos/ -o features/ --shards 64
    """
    import inspect

    from diptych.runtime.launcher import split_arguments, start

    if list(arguments) in (["-h"], ["--help"]):
        print(inspect.cleandoc(read_world.__doc__ or ""))
        raise SystemExit(0)
    options, (verb, *given) = split_arguments(arguments)
    # What is wrong is said once, before any process starts.
    if verb == "pretrain":
        given += _check_pretrain(options, given)
    elif verb == "embed":
        _check_embed(options, given)
    else:
        raise ConfigError(
            f"diptych launch runs pretrain or embed in several processes; got {verb!r}."
        )
    code = start(options, [verb, *given])
    if code:
        raise SystemExit(code)


def _check_pretrain(options: Sequence[str], given: Sequence[str]) -> list[str]:
    """Refuses what no process could do; returns what is missing of the command."""
    from diptych.cli.flags import PretrainFlags, explicit_settings, parse
    from diptych.pretraining import check_before_start
    from diptych.runtime.launcher import process_count

    flags = parse(PretrainFlags, pretrain, given)
    if flags.out is None:
        raise ConfigError(
            "diptych launch needs pretrain's --out RUN: a restart goes on with the run there."
        )
    check_before_start(
        explicit_settings(flags, given),
        out=flags.out,
        config_file=flags.config,
        processes=process_count(options),
    )
    return [] if flags.resume else ["--resume"]


def _check_embed(options: Sequence[str], given: Sequence[str]) -> None:
    """The same of a command that embeds."""
    from diptych.cli.flags import EmbedFlags, parse
    from diptych.embeddings.embed import check_before_start
    from diptych.embeddings.sharding import own_shards
    from diptych.runtime.launcher import process_count
    from diptych.runtime.world import World

    flags = parse(EmbedFlags, embed, given)
    flags.settings()
    own_shards(flags.shard, flags.shards, World(count=process_count(options) or 1))
    check_before_start(flags.run, flags.path, flags.out)


def _run_to_report(
    settings: dict[str, Any],
    *,
    out: Path | None,
    config_file: Path | None,
    resume: bool,
    quiet: bool,
    report: bool = True,
) -> None:
    """Trains, then evaluates where there are labels, then writes the report."""
    from rich.console import Console

    from diptych.errors import ImagesError
    from diptych.evaluation.protocols import evaluate as measure
    from diptych.logging.progress import Display
    from diptych.pretraining import run_pretraining
    from diptych.report.page import write_report
    from diptych.report.terminal import print_tables

    console = Console(quiet=quiet, markup=False)
    with Display(console) as display:
        folder = run_pretraining(
            settings,
            out=out,
            config_file=config_file,
            resume=resume,
            watcher=display,
            on_progress=display.files,
        )
    if not read_world().is_first:
        return
    console.print(f"Encoder: {folder.encoder}", highlight=False, soft_wrap=True)
    if not report:
        return
    threads = settings.get("training", {}).get("threads")
    try:
        print_tables(console, measure(folder.path, threads=threads))
    except ImagesError as error:
        console.print(str(error), highlight=False)
    page = write_report(folder.path, threads=threads)
    print_verdict(console, folder.path)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)


def _remove_earlier_demo(out: Path) -> None:
    """Deletes the run of an earlier demo, and nothing else.

    Raises:
        RunFolderError: there is something else at ``out``; it is left as it was.
    """
    import shutil

    from diptych.config.files import load_run_config
    from diptych.errors import RunFolderError
    from diptych.images.sources.photographs import PHOTOGRAPHS_NAME
    from diptych.runs.folder import RunFolder

    if not os.path.lexists(out):
        return
    config = RunFolder(out).config
    try:
        if out.is_symlink() or config.is_symlink():  # what it points to may be anyone's
            problem = f"{out if out.is_symlink() else config} is a link"
        else:
            learned_from = load_run_config(config).images.path
            if learned_from == PHOTOGRAPHS_NAME:
                shutil.rmtree(out)
                return
            problem = f"it holds a run on {learned_from!r}"
    except ConfigError as error:
        problem = str(error).rstrip(".")
    raise RunFolderError(
        f"{out} is not replaced: wanted an earlier demo, whose config.toml says images.path = "
        f'"{PHOTOGRAPHS_NAME}"; but {problem}. Choose another --out, or remove it yourself.'
    )
