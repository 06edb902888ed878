"""The command line: one verb per stage. Imports nothing heavy before a verb is known."""

import difflib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from diptych import __version__
from diptych.errors import ConfigError, DiptychError, FirstStopped, Interrupted, NotSaved
from diptych.hardware import shorten_spinning
from diptych.launch import launch as place_of_process

if TYPE_CHECKING:
    from rich.console import Console

    from diptych.studies.conduct import Plan

_USAGE: Final = """\
usage: diptych VERB [ARGUMENTS]

Learns visual representations from unlabelled images by contrast, and says how good they are.

verbs:
  demo       learn from built-in photographs in a minute or two; nothing is downloaded
  pretrain   learn from a folder of images, shards, tables or arrays
  launch     pretrain in many processes, on one machine or several, restarted when one dies
  evaluate   measure a run's encoder against what it began as, pixels and others: kNN, linear,
             fine-tuning, transfer
  rank       rank runs and checkpoints without labels
  detect     train detectors on a run's ResNet and on an untrained one, and compare them
  embed      write the features of any images to Parquet files, in shards
  report     write a run's report, one page that opens offline
  plan       say before a run what it costs: days, memory, network, disk; and what breaks first
  views      preview the random views of some images on a sheet or a page, with advice
  recipes    list the recipes, or print one's settings
  study      answer one question of the papers by a grid of runs: table, figure, page
  check-leak measure whether batch norm tells a run's queries which key is theirs

examples:
  diptych demo
  diptych pretrain photos/ --recipe moco_v2 --epochs 50 --out runs/photos
  diptych evaluate runs/photos --train labelled/train --test labelled/test

`diptych VERB --help` tells more of each. `diptych --version` prints the version.
"""

EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_SAVED: Final = 74  # EX_IOERR of sysexits.h
DEMO_EPOCHS: Final = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0 when all went well, 1 for an error, 2 for wrong usage, 74 when a run could not be saved,
    128 + n when signal n stopped a run, which can then be resumed.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return 0
    if given[0] == "--version":
        print(f"diptych {__version__}")
        return 0
    verb = given.pop(0)
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean `diptych {near[0]}`?" if near else ""
        print(f"diptych: there is no verb {verb!r}.{hint}\n\n{_USAGE}", end="", file=sys.stderr)
        return EXIT_USAGE
    shorten_spinning()
    try:
        VERBS[verb](given)
    except Interrupted as interruption:
        if _speaks():
            print(f"diptych: {interruption}", file=sys.stderr)
        return 128 + interruption.signal_number
    except KeyboardInterrupt:  # outside of training, where there is nothing to save
        print("diptych: interrupted.", file=sys.stderr)
        return 128 + signal.SIGINT
    except FirstStopped:  # it says why
        return EXIT_ERROR
    except DiptychError as error:
        # A single process may fail where the first does not: on its own machine, say.
        who = "diptych" if _speaks() else f"diptych, process {os.environ.get('RANK')}"
        print(f"{who}: {error}", file=sys.stderr)
        return EXIT_NOT_SAVED if isinstance(error, NotSaved) else EXIT_ERROR
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def demo(arguments: Sequence[str]) -> None:
    """Learn from patches of sixteen built-in photographs, measure, and write runs/demo/report.html.

    Takes a minute or two on two cores. An earlier demo is replaced.

    Examples:
      diptych demo
      diptych demo --out runs/mine --seed 1
    """
    from diptych.flags import DemoFlags, parse

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
    from diptych.flags import PretrainFlags, explicit_settings, parse

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
    """Pretrain in several processes, by torchrun, so that the run survives.

    Usage: diptych launch [TORCHRUN'S OPTIONS] -- pretrain ARGUMENTS

    A process that dies makes torchrun start all of them again, three times at most, and they go on
    from the last checkpoint: --out is needed, --resume is added. `torchrun --help` lists its
    options; docs/launching.md says what several machines and schedulers need. Exits as pretrain
    does: 143 when SIGTERM stopped a run after it was saved.

    Examples:
      diptych launch --nproc-per-node 2 -- pretrain photos/ --out runs/photos
      diptych launch --nnodes 2 --rdzv-endpoint node1:29400 -- pretrain photos/ --out /shared/run
    """
    import inspect

    from diptych.flags import PretrainFlags, parse
    from diptych.launcher import split_arguments, start

    if list(arguments) in (["-h"], ["--help"]):
        print(inspect.cleandoc(launch.__doc__ or ""))
        raise SystemExit(0)
    options, (verb, *given) = split_arguments(arguments)
    if verb != "pretrain":
        raise ConfigError(f"diptych launch runs pretrain in several processes; got {verb!r}.")
    flags = parse(PretrainFlags, pretrain, given)  # what is wrong is said once, before any starts
    if flags.out is None:
        raise ConfigError(
            "diptych launch needs pretrain's --out RUN: a restart goes on with the run there."
        )
    code = start(options, [verb, *given, *([] if flags.resume else ["--resume"])])
    if code:
        raise SystemExit(code)


def evaluate(arguments: Sequence[str]) -> None:
    """Measure a run's encoder by kNN and by a linear classifier, or by other --protocol.

    The same is done with the untrained encoder, raw pixels and what --against and --supervised
    name. Results are added to evaluation.json; `diptych report RUN` shows them all.

    Examples:
      diptych evaluate runs/photos
      diptych evaluate runs/photos --train labelled/train --test labelled/test
      diptych evaluate runs/photos --protocol finetune --finetune-shares 0.1 0.01 --seeds 3
      diptych evaluate runs/photos --protocol transfer --transfer birds/ cars/
      diptych evaluate runs/photos --supervised --against runs/other
    """
    from dataclasses import asdict

    from rich.console import Console

    from diptych.evaluation.protocols import evaluate as measure
    from diptych.flags import EvaluateFlags, parse
    from diptych.report.tables import print_tables

    flags = parse(EvaluateFlags, evaluate, arguments)
    options = asdict(flags)
    run, protocols = options.pop("run"), options.pop("protocol")
    console = Console()
    print_tables(console, measure(run, protocols, **options))
    _print_verdict(console, run)


def rank(arguments: Sequence[str]) -> None:
    """Rank runs, and the checkpoints kept in a run, without labels: the best first.

    By effective rank of the features, pretext accuracy on held-out images, stability of neighbours
    from one view to another, and all three combined. With --labels also by kNN, which does not
    change the order, and how well each measure agrees with it.

    Examples:
      diptych rank runs/a runs/b runs/c
      diptych rank runs/a --images photos/ --json ranks.json
      diptych rank runs/* --labels
    """
    import json

    from rich.console import Console

    from diptych.flags import RankFlags, parse
    from diptych.report.rank_table import print_ranking
    from diptych.run_folder import write_aside
    from diptych.training.ranking import rank_runs

    flags = parse(RankFlags, rank, arguments)
    found = rank_runs(
        flags.runs,
        images=flags.images,
        labels=flags.labels,
        checkpoints=flags.checkpoints,
        image_count=flags.image_count,
        threads=flags.threads,
    )
    print_ranking(Console(), found)
    if flags.json is not None:
        write_aside(flags.json, (json.dumps(found.as_dict(), indent=1) + "\n").encode())


def detect(arguments: Sequence[str]) -> None:
    """Measure how well a run's ResNet finds objects, as the backbone of a Faster R-CNN.

    The same detectors are trained on untrained ResNets. Writes detection.json; interrupted, it goes
    on with the detector that was in work. Needs the extra diptych[detection].

    Examples:
      diptych detect runs/cells --data BCCD
      diptych detect runs/cells --data BCCD --side 160 --epochs 10 --seeds 3 --norm frozen
    """
    from dataclasses import fields

    from rich.console import Console

    from diptych.evaluation.detection import measure_detection
    from diptych.evaluation.detection_config import DetectionConfig
    from diptych.flags import DetectFlags, parse

    flags = parse(DetectFlags, detect, arguments)
    settings = {one.name: getattr(flags, one.name) for one in fields(DetectionConfig)}
    console = Console()

    def tell(backbone: str, seed: int, was_there: bool) -> None:
        done = "found" if was_there else "done"
        console.print(f"Detector on the {backbone} ResNet, seed {seed}: {done}.", highlight=False)

    found = measure_detection(
        flags.run,
        flags.data,
        DetectionConfig(**settings),
        train_part=flags.train_part,
        test_part=flags.test_part,
        threads=flags.threads,
        on_cell=tell,
    )
    _print_detection(console, found)


def embed(arguments: Sequence[str]) -> None:
    """Write the features of any images to a folder of Parquet files, in shards.

    A shard is there whole or not at all; those that are there are skipped when started again. Under
    torchrun each process makes its share. Needs the extra diptych[parquet].

    Examples:
      diptych embed runs/photos photos/ -o features/
      diptych embed runs/photos photos/ -o features/ --shard 3/16
      torchrun --nproc-per-node 8 -m diptych embed runs/photos photos/ -o features/ --shards 64
    """
    from concurrent.futures import ThreadPoolExecutor
    from dataclasses import fields

    from rich.console import Console

    from diptych.flags import EmbedFlags, parse
    from diptych.gallery.embed import embed_shards
    from diptych.gallery.settings import EmbedSettings
    from diptych.gallery.shards import own_shards
    from diptych.gallery.watching import ShardLines
    from diptych.hardware import use_threads

    flags, here = parse(EmbedFlags, embed, arguments), place_of_process()
    settings = EmbedSettings(
        **{one.name: getattr(flags, one.name) for one in fields(EmbedSettings)}
    )
    shards = own_shards(flags.shard, flags.shards, here)
    lines = ShardLines(Console(quiet=flags.quiet))
    with ThreadPoolExecutor(use_threads(flags.threads, processes=here.local_count)) as executor:
        for done in embed_shards(
            flags.run, flags.path, flags.out, shards, settings, executor, lines
        ):
            lines.done(done)


def report(arguments: Sequence[str]) -> None:
    """Write RUN/report.html: one page that opens offline, the verdict in words first.

    Examples:
      diptych report runs/photos
    """
    from diptych.flags import ReportFlags, parse
    from diptych.report.page import write_report

    flags = parse(ReportFlags, report, arguments)
    print(f"Report: {write_report(flags.run, threads=flags.threads)}")


def views(arguments: Sequence[str]) -> None:
    """Preview random views: a contact sheet (.png) or a page that opens offline (.html).

    Shows images beside their views and each operation alone from weak to strong; says in words what
    a view goes through, and what in the images does not go with it.

    Examples:
      diptych views photos/ --out sheet.png
      diptych views photos/ --recipe moco_v2 --scale small --out views.html
      diptych views photos/ --views.policy "crop(area=0.3..1) + flip + color" --rows 12
    """
    from concurrent.futures import ThreadPoolExecutor

    from diptych.configs import RunConfig
    from diptych.flags import ViewsFlags, explicit_settings, parse
    from diptych.hardware import use_threads
    from diptych.images.sources import open_images
    from diptych.report.preview_page import write_preview
    from diptych.resolve import layers_of, overlay_all, resolve
    from diptych.views.preview.advice import advise
    from diptych.views.preview.words import policy_in_words

    flags = parse(ViewsFlags, views, arguments)
    _require_picture(flags.out, flags.rows, flags.columns)
    settings = explicit_settings(flags, arguments)
    layers = layers_of(settings, flags.config)
    asked = overlay_all(RunConfig(), layers)
    with ThreadPoolExecutor(use_threads(asked.training.threads)) as executor:
        collection = open_images(asked.images, executor)
        images = collection.train
        config, _ = resolve(
            layers,
            image_count=len(images),
            median_side_pixels=images.median_side_pixels,
            channels=images.channels,
        )
        advice = advise(images, config.views, executor)
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        write_preview(
            flags.out,
            collection,
            config,
            advice,
            executor,
            image_count=flags.rows,
            view_count=flags.columns,
        )
    print(f"Views of recipe {config.recipe} at scale {config.scale}:")
    for line in policy_in_words(config.views, images.channels):
        print(f"  {line}")
    if advice:
        print("Before you train:")
    for sentence in advice:
        print(f"  - {sentence}")
    print(f"Preview: {flags.out}")


def plan(arguments: Sequence[str]) -> None:
    """Say what a run will cost before it starts, and which part breaks first.

    Takes what `diptych pretrain` takes, trains nothing and writes nothing. docs/scale.md has the
    formulas.

    Examples:
      diptych plan photos/ --measure
      diptych plan --recipe moco_v2 --images-count 1_000_000_000 --on h100 --processes 64
    """
    from rich.console import Console

    from diptych.flags import PlanFlags, explicit_settings, parse
    from diptych.hardware import available_threads, divided
    from diptych.planning.asked import Asked, plan_of
    from diptych.planning.machine import machine_named
    from diptych.planning.tables import print_plan

    flags = parse(PlanFlags, plan, arguments)
    cores = divided(flags.threads or available_threads(), flags.processes_here)
    asked = Asked(
        machine_named(flags.on, flags.machine, cores=cores),
        processes=flags.processes,
        images_count=flags.images_count,
        image_side=flags.image_side,
        image_kilobytes=flags.image_kilobytes,
        measure=flags.measure,
        processes_here=flags.processes_here,
    )
    made = plan_of(asked, explicit_settings(flags, arguments), flags.config)
    if not flags.quiet:
        print_plan(Console(), made)
    if flags.json is not None:
        import json

        flags.json.write_text(json.dumps(made.as_json(), indent=1) + "\n")


def recipes(arguments: Sequence[str]) -> None:
    """List the recipes, or print one as a config file.

    Examples:
      diptych recipes
      diptych recipes moco_v2 --scale small > moco.toml
    """
    import inspect

    from diptych.config_file import to_toml
    from diptych.flags import RecipesFlags, parse
    from diptych.recipes import RECIPES, recipe_config

    flags = parse(RecipesFlags, recipes, arguments)
    if flags.recipe is not None:
        print(to_toml(recipe_config(flags.recipe, flags.scale)), end="")
        return
    for name, make in RECIPES.items():
        print(f"{name:12} {inspect.cleandoc(make.__doc__ or '').splitlines()[0]}")
    print("\n`diptych recipes NAME --scale tiny|small|paper` prints one as a config file.")


def check_leak(arguments: Sequence[str]) -> None:
    """Measure how far batch statistics alone tell a run's queries which key is theirs.

    Encodes images as in training, with the head and the key encoder of the newest checkpoint, and
    again with every key among other images: how many more queries find their key in the first case?

    Examples:
      diptych check-leak runs/photos
    """
    from diptych.config_file import load_run_config
    from diptych.flags import CheckLeakFlags, parse
    from diptych.run_folder import RunFolder
    from diptych.training.leak import cannot_leak
    from diptych.training.leak import check_leak as measure

    flags = parse(CheckLeakFlags, check_leak, arguments)
    found = measure(flags.run, image_count=flags.images, threads=flags.threads)
    if found is None:
        print(f"Nothing can leak: {cannot_leak(load_run_config(RunFolder(flags.run).config))}.")
    else:
        print(found.sentence())


def study(arguments: Sequence[str]) -> None:
    """Answer one question of the papers by a grid of ordinary runs: table, figure, page.

    Goes on where it was cut. Cells that are done are skipped. Without a name: lists the studies.

    Examples:
      diptych study
      diptych study momentum --data cifar10/ --jobs 2
      diptych study head --data cifar10/ --write-commands head.txt
      diptych study head --data cifar10/ --only-report
    """
    from diptych.errors import ConfigError
    from diptych.flags import StudyFlags, parse
    from diptych.studies.catalog import STUDIES, find_study
    from diptych.studies.conduct import make_plan, run_cells, write_commands
    from diptych.studies.workers import run_cells_in_processes

    flags = parse(StudyFlags, study, arguments)
    if flags.name is None:
        for one in STUDIES.values():
            print(f"{one.name:12} {one.question} {one.source}.")
        return
    chosen = find_study(flags.name)
    if flags.data is None:
        raise ConfigError(f"diptych study {flags.name} needs images: give --data PATH.")
    plan = make_plan(
        chosen,
        data=flags.data,
        out=flags.out,
        images=flags.images,
        epochs=flags.epochs,
        seeds=flags.seeds,
        threads=flags.threads,
        jobs=flags.jobs,
    )
    if flags.write_commands is not None:
        count = write_commands(plan, flags.write_commands)
        print(f"{count} commands: {flags.write_commands}")
        return
    if not flags.only_report:
        if flags.jobs > 1 and flags.cell is None:
            run_cells_in_processes(plan, flags.jobs)
        else:
            run_cells(plan, cell=flags.cell)
    if not (flags.only_run or flags.cell):
        _write_study(plan)


VERBS: Final[dict[str, Callable[[Sequence[str]], None]]] = {
    "demo": demo,
    "pretrain": pretrain,
    "launch": launch,
    "evaluate": evaluate,
    "rank": rank,
    "detect": detect,
    "embed": embed,
    "report": report,
    "plan": plan,
    "views": views,
    "recipes": recipes,
    "study": study,
    "check-leak": check_leak,
}


def _write_study(plan: "Plan") -> None:
    from diptych.studies.page import write_study

    for sentence in write_study(plan):
        print(sentence)
    print(f"Study: {plan.out / 'index.html'}")


def _require_picture(out: Path, rows: int, columns: int) -> None:
    if out.suffix.lower() not in (".png", ".html"):
        raise ConfigError(
            f"--out {out}: the name decides what is written; wanted one that ends in .png (a "
            "contact sheet) or .html (a page)."
        )
    if min(rows, columns) < 1:
        raise ConfigError(
            f"--rows and --columns must be 1 or more; got {rows} images and {columns} views."
        )


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
    from diptych.pretraining import run_pretraining
    from diptych.report.page import write_report
    from diptych.report.tables import print_tables
    from diptych.training.progress import Display

    console = Console(quiet=quiet)
    with Display(console) as display:
        folder = run_pretraining(
            settings,
            out=out,
            config_file=config_file,
            resume=resume,
            watcher=display,
            on_progress=display.files,
        )
    if not _speaks():
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
    _print_verdict(console, folder.path)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)


def _speaks() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    try:
        return place_of_process().speaks
    except ConfigError:  # an environment that is no launcher's
        return True


def _remove_earlier_demo(out: Path) -> None:
    """Deletes the run of an earlier demo, and nothing else.

    Raises:
        RunFolderError: there is something else at ``out``; it is left as it was.
    """
    import shutil

    from diptych.config_file import load_run_config
    from diptych.errors import RunFolderError
    from diptych.images.photographs import PHOTOGRAPHS_NAME
    from diptych.run_folder import RunFolder

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


def _print_detection(console: "Console", found: dict[str, Any]) -> None:
    from rich.table import Table

    protocol, backbones = found["protocol"], found["backbones"]
    table = Table(
        title=f"Detection in {protocol['test_images']:,} images, {protocol['seeds']} seed(s) (in "
        "brackets: 95% of resamples)",
        title_justify="left",
    )
    rows = ("pretrained", "untrained")
    for column in ("", *rows, "difference"):
        table.add_column(column, justify="right" if column else "left")
    for name in found["difference"]:
        figures = [*(backbones[row]["figures"][name] for row in rows), found["difference"][name]]
        table.add_row(name, *(_interval_in_points(one) for one in figures))
    console.print(table)
    for remark in found["remarks"]:
        console.print(remark, highlight=False)


def _interval_in_points(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "no boxes"
    value, low, high = (100 * figure[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} .. {high:.1f})"


def _print_verdict(console: "Console", run: Path) -> None:
    from diptych.report.page import verdict_of

    verdict = verdict_of(run)
    console.print(verdict.headline, style="bold", highlight=False)
    for sentence in verdict.sentences:
        console.print(sentence, highlight=False)
