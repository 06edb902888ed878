"""Verbs that say how good a run is: `evaluate`, `rank`, `detect`, `check-leak`, `report`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


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

    from diptych.cli.flags import EvaluateFlags, parse
    from diptych.evaluation.protocols import evaluate as measure
    from diptych.report.terminal import print_tables

    flags = parse(EvaluateFlags, evaluate, arguments)
    options = asdict(flags)
    run, protocols = options.pop("run"), options.pop("protocol")
    console = Console(markup=False)
    print_tables(console, measure(run, protocols, **options))
    print_verdict(console, run)


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

    from diptych.cli.flags import RankFlags, parse
    from diptych.diagnostics.ranking import rank_runs
    from diptych.report.terminal import print_ranking
    from diptych.runs.atomic import atomic_write
    from diptych.runs.folder import require_writable

    flags = parse(RankFlags, rank, arguments)
    if flags.json is not None:
        require_writable(flags.json.parent)
    found = rank_runs(
        flags.runs,
        images=flags.images,
        labels=flags.labels,
        checkpoints=flags.checkpoints,
        image_count=flags.image_count,
        threads=flags.threads,
    )
    print_ranking(Console(markup=False), found)
    if flags.json is not None:
        atomic_write(flags.json, (json.dumps(found.as_dict(), indent=1) + "\n").encode())


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

    from diptych.cli.flags import DetectFlags, parse
    from diptych.config.detection import DetectionConfig
    from diptych.evaluation.detection.protocol import measure_detection

    flags = parse(DetectFlags, detect, arguments)
    settings = {one.name: getattr(flags, one.name) for one in fields(DetectionConfig)}
    console = Console(markup=False)

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


def check_leak(arguments: Sequence[str]) -> None:
    """Measure how far batch statistics alone tell a run's queries which key is theirs.

    Encodes images as in training, with the head and the key encoder of the newest checkpoint, and
    again with every key among other images: how many more queries find their key in the first case?

    Examples:
      diptych check-leak runs/photos
    """
    from diptych.cli.flags import CheckLeakFlags, parse
    from diptych.config.files import load_run_config
    from diptych.diagnostics.leak import cannot_leak
    from diptych.diagnostics.leak import check_leak as measure
    from diptych.runs.folder import RunFolder

    flags = parse(CheckLeakFlags, check_leak, arguments)
    found = measure(flags.run, image_count=flags.images, threads=flags.threads)
    if found is None:
        print(f"Nothing can leak: {cannot_leak(load_run_config(RunFolder(flags.run).config))}.")
    else:
        print(found.sentence())


def report(arguments: Sequence[str]) -> None:
    """Write RUN/report.html: one page that opens offline, the verdict in words first.

    Examples:
      diptych report runs/photos
    """
    from diptych.cli.flags import ReportFlags, parse
    from diptych.report.page import write_report

    flags = parse(ReportFlags, report, arguments)
    print(f"Report: {write_report(flags.run, threads=flags.threads)}")


def print_verdict(console: "Console", run: Path) -> None:
    """Prints what a run's report says first."""
    from diptych.report.page import verdict_of

    verdict = verdict_of(run)
    console.print(verdict.headline, style="bold", highlight=False)
    for sentence in verdict.sentences:
        console.print(sentence, highlight=False)


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
    for remark in (found["split"]["words"], *found["remarks"]):
        console.print(remark, highlight=False)


def _interval_in_points(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "no boxes"
    value, low, high = (100 * figure[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} .. {high:.1f})"
