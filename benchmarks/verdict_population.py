"""Trains a population of short runs, good and bad, and keeps what a verdict judges them by.

The runs differ in steps, learning rate, views and recipe; some begin from the weights of a longer
run. Of each set a half is learned from. Of the rest, a few images give the figures for the verdict,
as a user with few labels has, and the others the figures that the verdict is compared with: what it
says is not tried on the images it was said of. `verdict_calibration.py` reads the file.

Runs that are there, as those of a study, join the population by --runs: they are measured likewise
on two parts of labelled images that none of them has seen.

    python benchmarks/verdict_population.py --images cifar10/ tiles/ --keep population.jsonl
    python benchmarks/verdict_population.py --runs negatives/cells/*/seed-0 --test cifar10/test \
        --keep population.jsonl
"""

import copy
import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from measuring import add_arguments

import diptych
from diptych.config.files import load_run_config
from diptych.diagnostics.label_free import neighbour_agreement
from diptych.evaluation.protocols import read_evaluation
from diptych.logging.metrics import read_metrics
from diptych.models.weights import load_untrained, save_encoder
from diptych.runs.folder import RunFolder

LEARNED: Final = 800  # images of a set, at most
FEW: Final = 200
MANY: Final = 800
FEW_OF_RUNS: Final = 500
"""Of --test, and at most a third of it."""
BATCH: Final = 32
SMALL: Final = {
    "scale": "tiny",
    "batch_size": BATCH,
    "threads": 1,
    "quiet": True,
    "encoder.width": 8,
    "head.hidden_features": 64,
    "head.output_features": 32,
    "views.side_pixels": 16,
    "images.cache": "file",
    "probe.health_every_epochs": 1000,
    "probe.images": 512,
}
USUAL_RATE: Final = 0.1
STEPS: Final = 550  # more than of which a verdict says that they are too few
WEAK: Final = {"views.policy": "crop(area=0.9..1)"}
FLIP: Final = {"views.policy": "flip"}
HARSH: Final = {"views.policy": "crop(area=0.01..0.05) + flip + color(1) + gray(probability=0.5)"}


def kinds(*, quick: bool) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Name, steps and settings of the runs from random weights."""
    if quick:
        yield "usual, 60 steps", 60, {}
        return
    for steps in (60, STEPS, 2 * STEPS):
        yield f"usual, {steps} steps", steps, {}
    for rate in (0.001, 1.0, 30.0):
        yield f"rate {rate:g}", STEPS, {"optimizer.learning_rate": rate}
    for name, views in (("weak crops", WEAK), ("flip only", FLIP), ("harsh views", HARSH)):
        yield name, STEPS, views
    yield "temperature 2", STEPS, {"method.loss.temperature": 2.0}
    yield "moco_v2", STEPS, {"recipe": "moco_v2"}


def kinds_from_weights(*, quick: bool) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The same, of runs that begin from the weights of a longer run."""
    if quick:
        yield "usual, 60 steps", 60, {}
        return
    yield "usual", STEPS, {}
    for rate in (0.003, 0.03, 1.0, 3.0):
        yield f"rate {rate:g}", STEPS, {"optimizer.learning_rate": rate}
    for name, views in (("weak crops", WEAK), ("flip only", FLIP), ("harsh views", HARSH)):
        yield name, STEPS, views


def shuffled_images(source: Path, seed: int = 0) -> list[Path]:
    files = [p for p in sorted(source.rglob("*")) if p.is_file() and p.suffix != ".txt"]
    random.Random(seed).shuffle(files)
    return files


def link_all(files: Sequence[Path], part: Path) -> None:
    """Links to files of class folders, in class folders."""
    for number, file in enumerate(files):
        link = part / file.parent.name / f"{number:06}{file.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())


class Parts:
    """A set of labelled images in three parts, as folders of links.

    Args:
        source: a folder of classes, or of train and test with these.
        place: where the links go.
        seed: of the cut.
    """

    def __init__(self, source: Path, place: Path, seed: int = 0) -> None:
        self.learned, self.few, self.many = (place / name for name in ("learned", "few", "many"))
        files = shuffled_images(source, seed)
        half = min(LEARNED, len(files) // 2)
        few = min(FEW, (len(files) - half) // 3)
        cuts = (0, half, half + few, min(half + few + MANY, len(files)))
        parts = (self.learned, self.few, self.many)
        for part, (begin, end) in zip(parts, pairwise(cuts), strict=True):
            link_all(files[begin:end], part)

    @property
    def images(self) -> int:
        """To learn from."""
        return sum(1 for _ in self.learned.rglob("*.*"))


def epochs_of(steps: int, images: int) -> int:
    return max(1, round(steps * BATCH / images))


def trained(parts: Parts, out: Path, steps: int, settings: Mapping[str, Any], **more: Any) -> Path:
    """A run, which may have failed: then there is no encoder in its folder."""
    given = {**SMALL, "optimizer.learning_rate": USUAL_RATE, **settings}
    if "encoder" in more:  # whose width is its own
        del given["encoder.width"]
    epochs = epochs_of(steps, parts.images)
    try:
        diptych.pretrain(parts.learned, out=out, epochs=epochs, **given, **more)
    except diptych.DiptychError as error:
        print(f"  {out.name}: {error}", flush=True)
    return out


def measured(run: Path, test: Path, **more: Any) -> dict[str, Any]:
    (run / "evaluation.json").unlink(missing_ok=True)
    diptych.evaluate(run, test=test, threads=1, **more)
    return read_evaluation(RunFolder(run)) or {}


def record(kind: str, parts: Parts, run: Path, **more: Any) -> dict[str, Any]:
    """What is kept of a run."""
    return {
        "kind": kind,
        "metrics": read_metrics(run / "metrics.jsonl"),
        "few": measured(run, parts.few, train=parts.learned, **more),
        "many": measured(run, parts.many, train=parts.learned, **more),
    }


def from_random_weights(parts: Parts, place: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    for number, (kind, steps, settings) in enumerate(kinds(quick=quick)):
        run = trained(parts, place / f"random-{number}", steps, settings)
        if (run / "encoder.safetensors").is_file():
            yield record(kind, parts, run)
        shutil.rmtree(run, ignore_errors=True)


def from_weights(parts: Parts, place: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Runs from the weights of one run; those are what their evaluation calls ``start``."""
    base = trained(parts, place / "base", 60 if quick else 2 * STEPS, {})
    encoder = diptych.load_encoder(base)
    random_weights = place / "random.safetensors"
    config = load_run_config(base / "config.toml")
    save_encoder(random_weights, load_untrained(RunFolder(base), config).network, config)
    before = diptych.extract_features(encoder, parts.learned, threads=1)
    for number, (kind, steps, settings) in enumerate(kinds_from_weights(quick=quick)):
        own = copy.deepcopy(encoder.network).requires_grad_(True).train()
        run = trained(parts, place / f"start-{number}", steps, settings, encoder=own)
        if (run / "encoder.safetensors").is_file():
            found = record(kind, parts, run, encoder=own, against=[str(random_weights)])
            after = diptych.extract_features(
                diptych.load_encoder(run, encoder=own), parts.learned, threads=1
            )
            found["metrics"][0]["start_neighbours"] = 1.0
            found["metrics"][-1]["start_neighbours"] = neighbour_agreement(
                before[:1024], after[:1024]
            )
            for part in ("few", "many"):
                found[part] = _renamed(
                    found[part], {"untrained": "start", str(random_weights): "untrained"}
                )
            yield found | {"kind": f"from weights: {kind}"}
        shutil.rmtree(run, ignore_errors=True)


def of_runs(runs: Sequence[Path], test: Path, place: Path) -> Iterator[dict[str, Any]]:
    """Runs that are there, copied, as an evaluation of their own may be in their folders."""
    files, few, many = shuffled_images(test), place / "few", place / "many"
    cut = min(FEW_OF_RUNS, len(files) // 3)
    link_all(files[:cut], few)
    link_all(files[cut:], many)
    for run in runs:
        copied = place / "run"
        shutil.copytree(run, copied, ignore=shutil.ignore_patterns("checkpoints", "features"))
        yield {
            "kind": "runs",
            "metrics": read_metrics(copied / "metrics.jsonl"),
            "few": measured(copied, few),
            "many": measured(copied, many),
        }
        shutil.rmtree(copied)


def _renamed(found: Any, names: Mapping[str, str]) -> Any:
    """The same with other names of encoders, at any depth."""
    if not isinstance(found, dict):
        return found
    return {names.get(key, key): _renamed(one, names) for key, one in found.items()}


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--images", type=Path, nargs="+", default=[], metavar="FOLDER")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], metavar="FOLDER")
    parser.add_argument("--test", type=Path, metavar="FOLDER", help="of --runs")
    parser.add_argument("--keep", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    if bool(arguments.runs) != (arguments.test is not None):
        parser.error("--runs and --test belong together")
    with open(arguments.keep, "a", encoding="utf-8") as kept:

        def keep(source: Path, found: dict[str, Any]) -> None:
            print(source.name, found["kind"], found["many"]["knn"], flush=True)
            kept.write(json.dumps({"set": source.name} | found) + "\n")
            kept.flush()

        for source in arguments.images:
            with tempfile.TemporaryDirectory() as folder:
                parts = Parts(source, Path(folder))
                for make in (from_random_weights, from_weights):
                    for found in make(parts, Path(folder), quick=arguments.quick):
                        keep(source, found)
        if arguments.runs:
            with tempfile.TemporaryDirectory() as folder:
                for found in of_runs(arguments.runs, arguments.test, Path(folder)):
                    keep(arguments.test.resolve().parent, found)


if __name__ == "__main__":
    main()
