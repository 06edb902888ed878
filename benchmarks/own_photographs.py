"""What a folder gets from `diptych pretrain FOLDER --minutes 10`, from scratch and from weights.

Every set, seed and start is a command of its own with defaults, as a user would type it. Beside the
trained encoder stand raw pixels, the untrained encoder and the frozen start, the last one also at
other sides of view: a user would take the best of them and train nothing.

    python benchmarks/own_photographs.py --data FOLDER --weights FILE --encoder NAME
    python benchmarks/own_photographs.py --quick     # one set made here, half a minute, no weights

FOLDER holds what is there of `magnetic-tiles`, `cats-dogs`, `cifar10` (each with `train/CLASS` and
`test/CLASS`) and `BCCD` (VOC), whose cells are cut out by their boxes; Debian's Fashion-MNIST is
taken where it is installed. Of the two sets of tens of thousands 5,000 images are learned from.
Results are kept in `--keep` and not measured again, so a long benchmark may be stopped and resumed.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from command_line_runs import diptych
from defusedxml import ElementTree
from measuring import Figure, add_arguments, publish
from minutes import fill
from PIL import Image
from rich.console import Console
from rich.table import Table

from diptych.training.budget import evaluation_limits

FASHION = Path("/usr/share/datasets/fashion-mnist")
MINUTES, MINUTES_QUICK = 10.0, 0.5
SEEDS = 3
LEARNED_FROM = 5_000
SIDES = (64, 96, 128, 192)
SMALLEST_BOX = 8  # pixels
PROBES = {"knn": "kNN", "linear": "linear"}
POINT, THREE_POINTS = 0.01, 0.03


class Case(NamedTuple):
    """A set of images and how it is learned from.

    Attributes:
        name: of the set.
        path: what `pretrain` is given.
        flags: further ones.
    """

    name: str
    path: Path
    flags: tuple[str, ...] = ()


class Result(NamedTuple):
    """What came of a set from one start.

    Attributes:
        name: of the set.
        start: nothing or weights.
        found: of each seed its evaluation: accuracies by probe, then by encoder.
        frozen: of the frozen start at the side that serves it best, by probe.
    """

    name: str
    start: str
    found: Sequence[Mapping[str, Any]]
    frozen: Mapping[str, float]

    def mean(self, probe: str, encoder: str) -> float:
        """Over the seeds."""
        return fmean(float(one[probe][encoder]) for one in self.found)

    def half(self, probe: str, rival: str | None = None) -> float:
        """Half a 95% interval over test images: of the accuracy, or of the gain over a rival."""
        metrics = self.found[0]["details"][probe]["metrics"]["accuracy"]
        interval = metrics["gains"][rival] if rival else metrics["intervals"]["trained"]
        return float(interval["high"] - interval["low"]) / 2

    def best_start(self, probe: str) -> float:
        """Of the frozen start: at the run's side of view, or at another."""
        return max(self.mean(probe, "start"), self.frozen.get(probe, 0.0))


def cases(data: Path, scratch: Path) -> Iterator[Case]:
    """The sets that are there."""
    few = ("--images.limit", str(LEARNED_FROM))
    for name in ("magnetic-tiles", "cats-dogs", "BCCD", "cifar10"):
        folder = data / name
        if not folder.is_dir():
            print(f"There is no {folder}: that set is left out.", flush=True)
        elif name == "BCCD":
            yield Case("blood-cells", cut_cells(folder, scratch / "blood-cells"))
        else:
            yield Case(name, folder, few if name == "cifar10" else ())
    if FASHION.is_dir():
        yield Case("fashion-mnist", FASHION, few)


def cut_cells(voc: Path, out: Path) -> Path:
    """Writes each cell as an image; those of one photograph stay on one side of the split."""
    for part, listed in (("train", "trainval"), ("test", "test")):
        for name in (voc / "ImageSets" / "Main" / f"{listed}.txt").read_text().split():
            tree = ElementTree.parse(voc / "Annotations" / f"{name}.xml")
            with Image.open(voc / "JPEGImages" / f"{name}.jpg") as picture:
                for number, cell in enumerate(tree.iter("object")):
                    box = corners(cell)
                    if min(box[2] - box[0], box[3] - box[1]) < SMALLEST_BOX:
                        continue
                    folder = out / part / str(cell.findtext("name"))
                    folder.mkdir(parents=True, exist_ok=True)
                    picture.crop(box).save(folder / f"{name}-{number}.png")
    return out


def corners(cell: Element) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a cell."""
    left, top, right, bottom = (
        int(str(cell.findtext(f"bndbox/{name}"))) for name in ("xmin", "ymin", "xmax", "ymax")
    )
    return left, top, right, bottom


def run(case: Case, flags: Sequence[str], out: Path) -> dict[str, Any]:
    """`diptych pretrain` with defaults; what its evaluation says."""
    if not (out / "report.html").exists():
        command = diptych("pretrain", str(case.path), *case.flags, *flags, "--out", str(out))
        subprocess.run([*command, "--resume", "--quiet"], check=True)
    found: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return found


def frozen_elsewhere(run_folder: Path, weights: Sequence[str], minutes: float) -> dict[str, float]:
    """The best accuracy of the frozen start over other sides of view, by probe.

    On the images that the run was measured on.
    """
    kept = run_folder / "frozen.json"
    if not kept.exists():
        files = []
        for side in SIDES:
            file = run_folder / f"frozen-{side}.safetensors"
            size = ["--side", str(side), "--out", str(file)]
            subprocess.run(diptych("import", *weights[1:], *size), check=True)
            files.append(str(file))
        own = (run_folder / "evaluation.json").read_bytes()
        limits = [
            word
            for name, most in evaluation_limits(minutes).items()
            for word in ("--" + name.replace("_", "-"), str(most))
        ]
        command = diptych("evaluate", str(run_folder), *limits, "--against", *files)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = json.loads((run_folder / "evaluation.json").read_text())
        (run_folder / "evaluation.json").write_bytes(own)
        best = {probe: max(found[probe][file] for file in files) for probe in PROBES}
        kept.write_text(json.dumps(best))
    loaded: dict[str, float] = json.loads(kept.read_text())
    return loaded


def measured(
    case: Case,
    start: str,
    seeds: int,
    folder: Path,
    weights: Sequence[str],
    minutes: float,
) -> Result:
    """All seeds of a set from one start."""
    flags = ["--minutes", str(minutes), *(weights if start == "weights" else [])]
    found = [
        run(case, [*flags, "--seed", str(seed)], folder / f"{case.name}-{start}-{seed}")
        for seed in range(seeds)
    ]
    first = folder / f"{case.name}-{start}-0"
    frozen = frozen_elsewhere(first, weights, minutes) if start == "weights" else {}
    return Result(case.name, start, found, frozen)


def goals(one: Result) -> list[Figure]:
    """What a set should reach from one start."""
    figures = []
    for probe, name in PROBES.items():
        trained = one.mean(probe, "trained")
        title = f"{one.name} from {one.start}, {name}: trained less"
        if one.start == "weights":
            gain = trained - one.best_start(probe)
            figures.append(Figure(f"{title} the frozen start at its best side", gain, -POINT))
            if probe == "knn":
                figures.append(Figure(f"{title} the frozen start (aim)", gain, THREE_POINTS))
        else:
            # The same test images: the interval of the difference counts.
            figures += [
                Figure(f"{title} {rival}", trained - one.mean(probe, rival), one.half(probe, rival))
                for rival in ("untrained", "pixels")
            ]
    return figures


def show(results: Sequence[Result], minutes: float) -> None:
    """One row for each set and start."""
    table = Table(
        title=f"--minutes {minutes:g}, accuracy in % by kNN / linear, half a 95% interval",
        title_justify="left",
    )
    for column in ("set", "from", "pixels", "untrained", "frozen start", "trained", "interval"):
        table.add_column(column, justify="left" if column in ("set", "from") else "right")
    for one in results:
        pairs = [
            " / ".join(f"{100 * one.mean(probe, name):.1f}" for probe in PROBES)
            for name in ("pixels", "untrained")
        ]
        start = "-"
        if one.frozen:
            start = " / ".join(f"{100 * one.best_start(probe):.1f}" for probe in PROBES)
        trained = " / ".join(f"{100 * one.mean(probe, 'trained'):.1f}" for probe in PROBES)
        half = " / ".join(f"{100 * one.half(probe):.1f}" for probe in PROBES)
        table.add_row(one.name, one.start, *pairs, start, trained, half)
    Console(width=100 if not sys.stdout.isatty() else None).print(table)


def main() -> None:
    """Runs all sets, or those named."""
    parser = add_arguments(__doc__)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="holds sets of images")
    parser.add_argument("--weights", metavar="WEIGHTS", help="as `pretrain --weights` takes them")
    parser.add_argument("--encoder", help="of the weights, where they do not say it")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--sets", nargs="+", help="these alone")
    parser.add_argument("--keep", type=Path, help="keep the run folders here, and go on from them")
    flags = parser.parse_args()
    if flags.data is None and not flags.quick:
        parser.error("give --data FOLDER, or --quick")
    weights: list[str] = []
    if flags.weights:
        weights = ["--weights", flags.weights]
        weights += ["--encoder", flags.encoder] if flags.encoder else []
    with tempfile.TemporaryDirectory() as place:
        folder, minutes, seeds = flags.keep or Path(place), flags.minutes, flags.seeds
        folder.mkdir(parents=True, exist_ok=True)
        if flags.quick:
            (Path(place) / "photographs").mkdir()
            fill(Path(place) / "photographs")
            found, minutes, seeds = [Case("photographs", Path(place) / "photographs")], 0.5, 1
        else:
            found = list(cases(flags.data, folder))
        results = []
        for case in found:
            if flags.sets and case.name not in flags.sets:
                continue
            results += [
                measured(case, start, seeds, folder, weights, minutes)
                for start in ("nothing", *(["weights"] if weights else []))
            ]
            show(results, minutes)
        publish([goal for one in results for goal in goals(one)], "Own photographs", flags.json)


if __name__ == "__main__":
    main()
