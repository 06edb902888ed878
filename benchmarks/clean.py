"""Planted copies found by `diptych duplicates`, and how long all pairs of 100,000 images take.

Copies of some images of a folder are planted among them: coded again as JPEG of quality 60, resized
to three quarters, cropped by 5%, shifted in colour. Recall is the share of each kind that lies in
one group with its original, at the threshold that the command chooses. Precision is the share of
copies found that were planted, so that copies which the folder had before count as wrong.

All pairs are of made vectors, 100,000 x 128. Beside it: what imagededup 0.3.3 does in
`CNN.find_duplicates` (all cosines in chunks of 1,000 rows, kept, then read row by row), and what
FiftyOne's brain 0.27 does in `compute_near_duplicates` (scikit-learn's radius neighbours, Euclidean
on vectors of unit length). Both are given fewer images and what they take is scaled by the number
of pairs, as the first needs 20 GB of memory for 100,000.

    python benchmarks/clean.py --images photos/ --source encoder.safetensors
    python benchmarks/clean.py --quick       # made vectors only, 20,000 of them
"""

import random
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import Figure, add_arguments, publish
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from diptych.curation.copies import find_copies
from diptych.embeddings.embed import embed
from diptych.embeddings.vectors import VectorSet, read_vectors

KINDS = ("coded again", "resized", "cropped", "colour-shifted")
RECALL_GOAL, PRECISION_GOAL, TIMES_GOAL = 0.95, 0.9, 1.0
MADE_THRESHOLD = 0.05


def changed(picture: Image.Image, kind: str) -> Image.Image:
    """A copy as one finds them."""
    width, height = picture.size
    if kind == "resized":
        return picture.resize((3 * width // 4, 3 * height // 4), Image.Resampling.BICUBIC)
    if kind == "cropped":
        left, top = round(0.025 * width), round(0.025 * height)
        return picture.crop((left, top, width - left, height - top))
    if kind == "colour-shifted":
        return ImageEnhance.Color(ImageEnhance.Brightness(picture).enhance(1.1)).enhance(0.8)
    return picture


def plant(images: Path, out: Path, count: int) -> dict[str, str]:
    """Writes copies of some images, and returns the name of each one's original."""
    files = [one for one in sorted(images.rglob("*")) if one.suffix in (".jpg", ".jpeg", ".png")]
    originals = {}
    for place, file in enumerate(random.Random(0).sample(files, min(count, len(files)))):
        kind = KINDS[place % len(KINDS)]
        with Image.open(file) as opened:
            picture = changed(opened.convert("RGB"), kind)
        name = f"{kind}/{place}.jpg"
        (out / kind).mkdir(parents=True, exist_ok=True)
        picture.save(out / name, "JPEG", quality=60 if kind == "coded again" else 92)
        originals[name] = str(file.relative_to(images))
    return originals


def joined(sets: list[VectorSet]) -> VectorSet:
    return VectorSet(
        sets[0].source,
        np.concatenate([one.features for one in sets]),
        [name for one in sets for name in one.names],
    )


def planted_figures(images: Path, source: str, count: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        originals = plant(images, folder / "planted", count)
        sets = []
        for name, path in (("folder", images), ("planted", folder / "planted")):
            embed(source, path, folder / name / "vectors")
            sets.append(read_vectors(folder / name / "vectors"))
    together = joined(sets)
    found = find_copies(together)
    print("\n".join(found.threshold.sentences()))
    row = {name: place for place, name in enumerate(together.names)}
    pairs = {copy: (found.kept[row[copy]], found.kept[row[of]]) for copy, of in originals.items()}
    figures = []
    for kind in KINDS:
        hits = [one == other for copy, (one, other) in pairs.items() if copy.startswith(kind)]
        figures.append(Figure(f"recall, {kind}", float(np.mean(hits)), RECALL_GOAL))
    hits = sum(one == other for one, other in pairs.values())
    share = hits / max(1, len(found.copies()))
    return [*figures, Figure("precision", float(share), PRECISION_GOAL)]


def made_vectors(count: int) -> NDArray[np.float32]:
    """Around 1,000 directions; one in twenty is a near copy of another."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(1000, 128))
    features = centres[rng.integers(0, 1000, count)] + rng.normal(size=(count, 128))
    copies = rng.choice(count, (2, count // 20), replace=False)
    features[copies[0]] = features[copies[1]] + 0.05 * rng.normal(size=(count // 20, 128))
    return features.astype(np.float32)


def ours(features: NDArray[np.float32]) -> int:
    names = [str(row) for row in range(len(features))]
    return len(find_copies(VectorSet(Path("made"), features, names), MADE_THRESHOLD).copies())


def imagededup(features: NDArray[np.float32]) -> int:
    from sklearn.metrics.pairwise import cosine_similarity

    names = np.array([f"{row}.jpg" for row in range(len(features))])
    chunks = [
        cosine_similarity(features[start : start + 1000], features).astype("float16")
        for start in range(0, len(features), 1000)
    ]
    scores = np.vstack(chunks)
    np.fill_diagonal(scores, 2.0)
    found = {
        names[row]: list(names[(one >= 1 - MADE_THRESHOLD) & (one < 2)])
        for row, one in enumerate(scores)
    }
    return sum(map(len, found.values())) // 2


def fiftyone(features: NDArray[np.float32]) -> int:
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import normalize

    unit = normalize(features)
    index = NearestNeighbors(metric="euclidean").fit(unit)
    radius = np.sqrt(2.0 * MADE_THRESHOLD)
    found = index.radius_neighbors(radius=radius, return_distance=False)
    return sum(map(len, found)) // 2


def seconds_of(search, features: NDArray[np.float32]) -> float:  # type: ignore[no-untyped-def]
    begun = time.perf_counter()
    copies = search(features)
    seconds = time.perf_counter() - begun
    name = f"{search.__name__}: {len(features):,} images, {copies:,} copies"
    print(f"{name}, {seconds:.1f} s")
    return seconds


def speed_figures(count: int, others: int) -> list[Figure]:
    features = made_vectors(count)
    seconds = seconds_of(ours, features)
    some = made_vectors(others)
    scale = (count / others) ** 2
    figures = [Figure(f"minutes for {count:,} x 128", seconds / 60, 10, bound="at most")]
    for search in (imagededup, fiftyone):
        ratio = scale * seconds_of(search, some) / seconds
        figures.append(Figure(f"time of {search.__name__} over ours", ratio, TIMES_GOAL))
    return figures


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--images", type=Path, help="a folder of images to plant copies among")
    parser.add_argument("--source", help="the run or encoder to embed them by")
    parser.add_argument("--copies", type=int, default=400, help="copies to plant")
    arguments = parser.parse_args()
    figures = speed_figures(*((20_000, 5_000) if arguments.quick else (100_000, 20_000)))
    if arguments.images is not None and arguments.source is not None:
        figures += planted_figures(arguments.images, arguments.source, arguments.copies)
    publish(figures, "Copies", arguments.json)


if __name__ == "__main__":
    main()
