"""The command line: one verb per stage. Imports nothing heavy before a verb is known."""

import difflib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from diptych import __version__
from diptych.errors import ConfigError, DiptychError, FirstStopped, Interrupted
from diptych.hardware import shorten_spinning
from diptych.launch import launch

if TYPE_CHECKING:
    from rich.console import Console


_USAGE: Final = """\
usage: diptych VERB [ARGUMENTS]

Learns visual representations from unlabelled images by contrast, and says how good they are.

verbs:
  demo       learn from built-in photographs in a minute or two; nothing is downloaded
  pretrain   learn from a folder of images, shards, tables or arrays
  evaluate   measure a run's encoder: kNN and a linear classifier, against two baselines
  report     write a run's report, one page that opens offline
  views      preview the random views of some images on a sheet or a page, with advice
  recipes    list the recipes, or print one's settings
  check-leak measure whether batch norm tells a run's queries which key is theirs

examples:
  diptych demo
  diptych pretrain photos/ --recipe moco_v2 --epochs 50 --out runs/photos
  diptych evaluate runs/photos --train labelled/train --test labelled/test

`diptych VERB --help` tells more of each. `diptych --version` prints the version.
"""

EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
DEMO_EPOCHS: Final = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0 when all went well, 1 for an error, 2 for wrong usage, 128 + n when signal n stopped a run,
    which can then be resumed.
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
        return EXIT_ERROR
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


def evaluate(arguments: Sequence[str]) -> None:
    """Measure a run's frozen encoder by kNN and by a linear classifier, before the head.

    The same probes run on the untrained encoder and on raw pixels. Writes evaluation.json.

    Examples:
      diptych evaluate runs/photos
      diptych evaluate runs/photos --train labelled/train --test labelled/test
    """
    from rich.console import Console

    from diptych.evaluation.probes import evaluate as measure
    from diptych.flags import EvaluateFlags, parse

    flags = parse(EvaluateFlags, evaluate, arguments)
    found = measure(
        flags.run,
        train=flags.train,
        test=flags.test,
        head_layers=flags.head_layers,
        crops=flags.crops,
        threads=flags.threads,
    )
    _print_table(Console(), found)


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


VERBS: Final[dict[str, Callable[[Sequence[str]], None]]] = {
    "demo": demo,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "report": report,
    "views": views,
    "recipes": recipes,
    "check-leak": check_leak,
}


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
    from diptych.evaluation.probes import evaluate as measure
    from diptych.pretraining import run_pretraining
    from diptych.report.page import write_report
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
        _print_table(console, measure(folder.path, threads=threads))
    except ImagesError as error:
        console.print(str(error), highlight=False)
    page = write_report(folder.path, threads=threads)
    _print_verdict(console, folder.path)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)


def _speaks() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    try:
        return launch().speaks
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


def _print_table(console: "Console", found: dict[str, Any]) -> None:
    from rich.table import Table

    protocol = found["protocol"]
    table = Table(
        title=f"Test accuracy on {protocol['test_images']:,} images of {protocol['classes']} "
        f"classes (largest class: {protocol['chance']:.1%})",
        title_justify="left",
    )
    table.add_column("frozen features")
    table.add_column(f"kNN, k = {protocol['knn_neighbours']}", justify="right")
    table.add_column("linear", justify="right")
    for name, words in (
        ("trained", "trained encoder"),
        ("untrained", "untrained encoder"),
        ("pixels", "raw pixels"),
    ):
        table.add_row(words, f"{found['knn'][name]:.1%}", f"{found['linear'][name]:.1%}")
    console.print(table)


def _print_verdict(console: "Console", run: Path) -> None:
    from diptych.report.page import verdict_of

    verdict = verdict_of(run)
    console.print(verdict.headline, style="bold", highlight=False)
    for sentence in verdict.sentences:
        console.print(sentence, highlight=False)
