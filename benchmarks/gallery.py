"""The gallery's page in headless Chromium: first paint, frames while panning, bytes, memory.

Made vectors with a made map, without pictures, served by a process of its own. Measured for each
number of images: seconds from opening the page to the map in its colours, and to the first images
in the grid's place; frames per second while the mouse drags the map for three seconds; seconds from
the end of a box to the selection in grid and map; megabytes that the page took; and the memory of
the server at most, above what it held with its libraries alone.

    python benchmarks/gallery.py            # 10,000, 100,000 and 1,000,000 images
    python benchmarks/gallery.py --quick    # 10,000 images
    python benchmarks/gallery.py --images 1000000
    python benchmarks/gallery.py --tensorboard   # its projector beside, up to 100,000 points
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from browser import Browser, drag_frames_per_second, missing, wait_until
from measuring import Figure, add_arguments, publish, resident_bytes
from projector import measure_projector
from rich.console import Console
from rich.table import Table

WIDTH, HEIGHT = 1280, 800
CLASSES = 10
READY = "document.documentElement.dataset.ready === '1'"
# At 100,000 points on two cores and without a graphics card.
FIRST_PAINT_GOAL, FRAMES_GOAL, PROJECTOR_GOAL = 10.0, 3.0, 1.0


def serve_made(count: int, folder: Path) -> None:
    """Serves a gallery of made vectors, and prints its address; does not return."""
    from diptych.embeddings.vectors import VectorSet
    from diptych.gallery.contents import open_gallery
    from diptych.gallery.pieces import Piece
    from diptych.gallery.server.serve import listen, make_server

    before = resident_bytes("VmRSS")
    points, classes = made_map(count)
    features = np.concatenate([points, np.eye(CLASSES, dtype=np.float32)[classes]], axis=1)
    names = [f"{number:07d}.png" for number in range(count)]
    labels = [f"class {one}" for one in classes]
    gallery = open_gallery(VectorSet(folder / "made", features, names, labels))
    gallery.maps["A"] = Piece(lambda progress: points)
    gallery.maps["A"].make()
    listening = listen("127.0.0.1", 0)
    print(before, f"http://127.0.0.1:{listening.getsockname()[1]}/", flush=True)
    make_server(gallery, listening).run([listening])


def made_map(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (count, 2) in ten round clusters, and the cluster of each."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, CLASSES, count)
    angle = classes * (2 * np.pi / CLASSES)
    centres = 0.6 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = centres + rng.normal(scale=0.1, size=(count, 2))
    return points.clip(-1, 1).astype(np.float32), classes


@contextmanager
def served(count: int) -> Iterator[tuple[str, subprocess.Popen[str], int]]:
    """The address, the process, and the bytes that it held before it opened the vectors."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--serve", str(count), "--folder", folder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            before, address = process.stdout.readline().split()
            yield address, process, int(before)
        finally:
            process.kill()
            process.wait()


def most_bytes(pid: int) -> int:
    """Memory that a process held at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure(count: int) -> dict[str, float]:
    """All figures of one number of images."""
    with served(count) as (address, process, before), Browser() as browser:
        page = browser.page(WIDTH, HEIGHT)
        begun = time.perf_counter()
        page.goto(address)
        wait_until(page, "document.querySelector('.cell') !== null", 60)
        grid = time.perf_counter() - begun
        wait_until(page, READY, 120)
        page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        first = time.perf_counter() - begun
        sent = page.evaluate(
            """performance.getEntriesByType("resource").reduce(
                 (sum, one) => sum + one.transferSize, 0)"""
        )
        rate = drag_frames_per_second(page, middle_of_map(page))
        selecting = seconds_of_a_box(page)
        memory = most_bytes(process.pid) - before
    return {
        "grid, s": grid,
        "map, s": first,
        "frames/s": rate,
        "box, s": selecting,
        "sent, MB": sent / 1e6,
        "server, MB": memory / 2**20,
    }


def middle_of_map(page: Any) -> tuple[int, int]:
    """In pixels of the page."""
    box = page.locator("canvas.points").bounding_box()
    return int(box["x"] + box["width"] / 2), int(box["y"] + box["height"] / 2)


def seconds_of_a_box(page: Any) -> float:
    """From letting go of a box around the upper left of the map until the next frame is shown."""
    page.get_by_role("button", name="Box").click()
    x, y = middle_of_map(page)
    box = page.locator("canvas.points").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(x, y, steps=3)
    begun = time.perf_counter()
    page.mouse.up()
    wait_until(page, "gallery.state.selected.length > 0", 180)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    return time.perf_counter() - begun


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--images", type=int, nargs="+", help="these numbers of images")
    parser.add_argument("--serve", type=int, help="used by the benchmark itself")
    parser.add_argument("--folder", type=Path, help="used by the benchmark itself")
    parser.add_argument("--tensorboard", action="store_true", help="measure its projector too")
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve_made(arguments.serve, arguments.folder)
        return
    if (lack := missing()) is not None:
        print(f"The gallery is not measured: {lack}.")
        return
    counts = arguments.images or ([10_000] if arguments.quick else [10_000, 100_000, 1_000_000])
    found = {count: measure(count) for count in counts}
    columns = list(found[counts[0]])
    table = Table("images", *columns, title="Gallery", title_justify="left")
    for count, figures in found.items():
        table.add_row(f"{count:,}", *(f"{figures[one]:.2f}" for one in columns))
    peers = {}
    if arguments.tensorboard:
        for count in counts[:2]:
            first, rate = measure_projector(*made_map(count))
            peers[count] = rate
            table.add_row(f"{count:,}, projector", "", f"{first:.2f}", f"{rate:.2f}")
    Console(width=100).print(table)
    at = counts[:2][-1]
    goals = [
        Figure(f"seconds to the map of {at:,}", found[at]["map, s"], FIRST_PAINT_GOAL, "at most"),
        Figure(f"frames per second at {at:,}", found[at]["frames/s"], FRAMES_GOAL),
    ]
    if at in peers:
        ratio = found[at]["frames/s"] / peers[at]
        goals.append(Figure(f"frames over the projector's at {at:,}", ratio, PROJECTOR_GOAL))
    publish(goals, "Gallery", arguments.json)


if __name__ == "__main__":
    main()
