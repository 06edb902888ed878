"""The command line: one verb per stage. Imports nothing heavy before a verb is known."""

import difflib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from diptych import __version__
from diptych.errors import DiptychError, Interrupted
from diptych.hardware import shorten_spinning

if TYPE_CHECKING:
    from rich.console import Console

_USAGE: Final = """\
usage: diptych VERB [ARGUMENTS]

Learns visual representations from unlabelled images by contrast, and says how good they are.

verbs:
  demo       learn from built-in photographs in a minute or two; nothing is downloaded
  pretrain   learn from a folder of images, or from a .npz, .npy or IDX file
  evaluate   measure a run's encoder: kNN and a linear classifier, against two baselines
  report     write a run's report, one page that opens offline
  views      preview the random views of some images on a contact sheet

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
        print(f"diptych: {interruption}", file=sys.stderr)
        return 128 + interruption.signal_number
    except KeyboardInterrupt:  # outside of training, where there is nothing to save
        print("diptych: interrupted.", file=sys.stderr)
        return 128 + signal.SIGINT
    except DiptychError as error:
        print(f"diptych: {error}", file=sys.stderr)
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
    the one before. Folders of classes are noticed and used for evaluation only.

    Examples:
      diptych pretrain photos/ --epochs 50 --out runs/photos
      diptych pretrain photos/ --out runs/photos --resume
      diptych pretrain cells.npz --recipe moco_v2 --scale small --optimizer.learning-rate 0.1
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
    found = measure(flags.run, train=flags.train, test=flags.test, threads=flags.threads)
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
    """Draw a contact sheet: some images, and beside each its random views.

    Examples:
      diptych views photos/ --out sheet.png
      diptych views photos/ --recipe moco_v2 --scale small --rows 12
    """
    from concurrent.futures import ThreadPoolExecutor

    from diptych.configs import RunConfig
    from diptych.flags import ViewsFlags, explicit_settings, parse
    from diptych.hardware import use_threads
    from diptych.images.sources import open_images
    from diptych.resolve import layers_of, overlay_all, resolve
    from diptych.views.preview import contact_sheet, policy_in_words

    flags = parse(ViewsFlags, views, arguments)
    settings = explicit_settings(flags, arguments)
    layers = layers_of(settings, flags.config)
    asked = overlay_all(RunConfig(), layers)
    with ThreadPoolExecutor(use_threads(asked.training.threads)) as executor:
        images = open_images(asked.images, executor).train
        config, _ = resolve(
            layers, image_count=len(images), median_side_pixels=images.median_side_pixels
        )
        sheet = contact_sheet(
            images,
            config.views,
            executor,
            seed=config.seed,
            image_count=flags.rows,
            view_count=flags.columns,
        )
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(flags.out, "PNG")
    print(f"Views of recipe {config.recipe} at scale {config.scale}:")
    for line in policy_in_words(config.views):
        print(f"  {line}")
    print(f"Sheet: {flags.out}")


VERBS: Final[dict[str, Callable[[Sequence[str]], None]]] = {
    "demo": demo,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "report": report,
    "views": views,
}


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


def _remove_earlier_demo(out: Path) -> None:
    """Deletes a run folder, and nothing that is not one."""
    import shutil

    from diptych.errors import RunFolderError
    from diptych.run_folder import RunFolder

    if not out.exists():
        return
    if not RunFolder(out).config.is_file():
        raise RunFolderError(f"{out} exists and holds no run, so it is not replaced.")
    shutil.rmtree(out)


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
