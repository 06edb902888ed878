"""The page of the gallery in Chromium, against a server of its own: every way through it."""

import csv
import io
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, missing, wait_until
from numpy.typing import NDArray
from PIL import Image

import diptych.gallery
from diptych.embeddings.vectors import read_vectors
from diptych.gallery.contents import gallery_folder
from diptych.gallery.shown_runs import open_runs
from embedding_runs import make, write_run

ROOT = Path(__file__).parents[2]
RENDERER = Path(diptych.gallery.__file__).parent / "page" / "renderer.js"
AXE = ROOT / "renderer" / "node_modules" / "axe-core" / "axe.min.js"
HOSTILE = "<img src=x onerror=document.title='owned'>.png"
COLOURS = {"red": (200, 40, 40), "green": (40, 170, 60), "blue": (40, 70, 200)}
EACH = 60
READY = "html[data-ready='1']"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.skipif(not RENDERER.exists(), reason="the renderer is not there: make renderer"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gallery of 180 images of three colours, by two encoders."""
    folder = tmp_path_factory.mktemp("gallery")
    photos = write_photos(folder / "photos")
    sets = []
    for seed in (0, 1):
        run, vectors = write_run(folder / f"run{seed}", seed), folder / f"vectors{seed}"
        make(run, str(photos), vectors, 1)
        sets.append(str(vectors))
    keep_maps(*map(Path, sets))
    with served(sets[0], "--against", sets[1]) as found:
        yield found


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """The address of a gallery in a process of its own."""
    command = [sys.executable, "-m", "diptych", "gallery", *arguments]
    process = subprocess.Popen(
        [*command, "--port", "0", "--no-browser"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if found := re.search(r"http://[\d.]+:\d+/", line):
            break
    else:
        raise AssertionError(said)
    try:
        yield found.group()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


def keep_maps(first: Path, second: Path | None = None) -> None:
    """Puts plain maps where the gallery keeps its own, which take a minute to compile."""
    folder = gallery_folder(first)
    folder.mkdir(exist_ok=True)
    for run in open_runs(read_vectors(first), None if second is None else read_vectors(second)):
        features = run.vectors.features - run.vectors.features.mean(axis=0)
        points = features @ np.linalg.svd(features, full_matrices=False)[2][:2].T
        points = 0.9 * points / np.abs(points).max(axis=0)
        np.save(folder / f"umap-{run.name}-{run.digest}.npy", points.astype(np.float32))


def write_photos(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(EACH):
            noise = rng.normal(scale=25, size=(24, 24, 3))
            pixels = (np.array(colour) + noise + rng.normal(scale=20)).clip(0, 255)
            file = HOSTILE if (name, number) == ("red", 0) else f"{number:03}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / file)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Any]:
    """The page, its map drawn; nothing may complain in its console."""
    opened = open_page(browser, address, 1280, 800)
    yield opened
    faults = opened.complaints
    opened.context.close()
    assert faults == []


def open_page(browser: Browser, address: str, width: int, height: int, **options: Any) -> Any:
    page = browser.page(width, height, **options)
    page.complaints = []

    def heard(message: Any) -> None:
        # A page of thumbnails that is not made yet is answered by 404, and asked for again.
        if message.type in ("error", "warning") and "404" not in message.text:
            page.complaints.append(message.text)

    page.on("console", heard)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(address)
    page.wait_for_selector(READY, timeout=120_000)
    wait_until(page, "gallery.maps[0].map.frame() !== null")
    return page


def get(address: str, path: str) -> bytes:
    with urllib.request.urlopen(address + path) as answer:
        return bytes(answer.read())


def labels_of(address: str) -> dict[str, int]:
    found = json.loads(get(address, "api/labels"))
    return {name: n for name, n in zip(found["classes"], found["counts"], strict=True) if n}


def selected(page: Any) -> list[int]:
    return list(page.evaluate("[...gallery.state.selected]"))


def on_screen(page: Any, address: str) -> NDArray[np.float64]:
    """Where each point is on the screen, from the map as served and two points of the page's."""
    points = np.frombuffer(get(address, "api/maps/A"), "<f4").reshape(-1, 2).astype(np.float64)
    rows = [int(points[:, axis].argmin()) for axis in (0, 1)]
    rows += [int(points[:, axis].argmax()) for axis in (0, 1)]
    js = "(rows) => rows.map((row) => gallery.maps[0].map.plot.getScreenPosition(row))"
    seen = np.array(page.evaluate(js, rows))
    box = page.locator("canvas.points").first.bounding_box()
    found = np.empty_like(points)
    for axis, (corner, start) in enumerate(((box["x"], 0), (box["y"], 1))):
        low, high = start, start + 2
        known = points[[rows[low], rows[high]], axis]
        slope = (seen[high, axis] - seen[low, axis]) / (known[1] - known[0])
        found[:, axis] = corner + seen[low, axis] + slope * (points[:, axis] - known[0])
    return found


def without_thumbnails(page: Any) -> None:
    page.get_by_role("checkbox", name="Images").uncheck()
    page.wait_for_timeout(300)


def test_a_set_without_labels_is_coloured_by_cluster(browser: Browser, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    for number, file in enumerate(sorted(photos.rglob("*.png"))):
        file.rename(photos / f"{number}.png")
    vectors = tmp_path / "vectors"
    make(write_run(tmp_path / "run", 0), str(photos), vectors, 1)
    keep_maps(vectors)
    with served(str(vectors)) as address:
        page = open_page(browser, address, 1280, 800)
        chosen = "document.getElementById('colour').selectedOptions[0].textContent"
        assert page.evaluate(chosen) == "cluster"
        page.get_by_role("button", name=re.compile("^cluster 1 ")).wait_for(timeout=60_000)
        assert page.complaints == []
        page.context.close()


def test_all_points_are_drawn_in_the_colours_of_their_classes(page: Any) -> None:
    without_thumbnails(page)
    shot = page.locator("canvas.points").screenshot()
    pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).reshape(-1, 3).astype(int)
    for colour in ((0x3C, 0x75, 0xB9), (0xE2, 0x55, 0x70), (0x4E, 0x77, 0x32)):
        assert (np.abs(pixels - colour).sum(axis=1) < 110).sum() > 50
    assert page.locator("#facts").inner_text() == "180 images"


def test_zooming_in_shows_thumbnails_and_they_are_the_images(page: Any, address: str) -> None:
    page.locator("canvas.points").hover()
    for _ in range(8):
        page.mouse.wheel(0, -200)
        page.wait_for_timeout(60)
    page.wait_for_timeout(500)  # the view rests
    wait_until(page, "gallery.maps[0].thumbnails.boxes?.length > 0")
    # A box, the one nearest to the middle, and its pixel in one look: the map may still move.
    js = """() => {
        const { boxes, canvas } = gallery.maps[0].thumbnails;
        const { clientWidth: width, clientHeight: height } = canvas;
        const away = ([x, y]) => Math.hypot(x + 26 - width / 2, y + 26 - height / 2);
        const [left, top, row] = [...boxes].sort((a, b) => away(a) - away(b))[0];
        const at = [left + 26, top + 26].map((one) => one * devicePixelRatio);
        const seen = canvas.getContext("2d").getImageData(...at, 1, 1);
        return [row, [...seen.data]];
    }"""
    row, pixel = page.evaluate(js)
    seen = np.array(pixel)[:3]
    label = json.loads(get(address, f"api/rows?first={row}&count=1"))[0]["label"]
    assert np.abs(seen - COLOURS[label]).max() < 110
    assert int(np.argmax(seen)) == list(COLOURS).index(label)


def test_hovering_names_an_image_and_a_click_selects_it(page: Any, address: str) -> None:
    without_thumbnails(page)
    where = on_screen(page, address)
    far = np.linalg.norm(where[:, None] - where[None], axis=2) + 1e9 * np.eye(len(where))
    row = int(far.min(axis=1).argmax())  # the most lonely
    page.mouse.move(*where[row] + 1)
    page.mouse.move(*where[row])
    name = json.loads(get(address, f"api/rows?first={row}&count=1"))[0]["name"]
    page.locator("#card p", has_text=name).wait_for()
    page.mouse.click(*where[row])
    wait_until(page, "gallery.state.selected.length === 1")
    assert selected(page) == [row]
    assert page.locator("#grid-title").inner_text() == "1 image selected"
    assert page.locator("#grid .cell").count() == 1


def inside(polygon: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Even-odd rule, an edge at a time."""
    found = np.zeros(len(points), bool)
    x, y = points.T
    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        crosses = (ay > y) != (by > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            found ^= crosses & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return found


def test_the_lasso_selects_what_lies_in_it(page: Any, address: str) -> None:
    without_thumbnails(page)
    where = on_screen(page, address)
    page.get_by_role("button", name="Lasso").click()
    middle, wide = where.mean(axis=0), np.ptp(where, axis=0) * 0.3
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    polygon = middle + wide * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    page.mouse.move(*polygon[0])
    page.mouse.down()
    for point in polygon[1:]:
        page.mouse.move(*point, steps=4)
        page.wait_for_timeout(20)
    page.mouse.up()
    wait_until(page, "gallery.state.selected.length > 0")
    found, wanted = set(selected(page)), set(np.flatnonzero(inside(polygon, where)).tolist())
    assert len(wanted) > 10
    # The lasso leaves out corners that lie close together.
    assert len(found ^ wanted) <= 0.05 * len(wanted) + 2


def test_the_box_selects_what_lies_in_it_and_ctrl_adds(page: Any, address: str) -> None:
    where = on_screen(page, address)
    page.get_by_role("button", name="Box").click()
    low, middle, high = where.min(axis=0) - 3, where.mean(axis=0), where.max(axis=0) + 3
    drag(page, low, middle)
    first = set(np.flatnonzero((where < middle).all(axis=1)).tolist())
    assert set(selected(page)) == first != set()
    page.keyboard.down("Control")
    drag(page, middle, high)
    page.keyboard.up("Control")
    assert set(selected(page)) == first | set(np.flatnonzero((where > middle).all(axis=1)).tolist())


def drag(page: Any, start: NDArray[np.float64], end: NDArray[np.float64]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=5)
    page.mouse.up()


def test_the_legend_filters_map_and_grid(page: Any) -> None:
    page.get_by_role("button", name="green 60").click()
    wait_until(page, "gallery.state.filter?.length === 60")
    assert page.locator("#grid-title").inner_text() == "60 images of the legend"
    assert page.evaluate("gallery.maps[0].map.plot.get('filteredPoints').length") == 60
    page.locator("#legend button", has_text="All").click()
    wait_until(page, "gallery.state.filter === null")
    assert page.evaluate("gallery.maps[0].map.plot.get('filteredPoints').length") == 180


def test_search_by_an_uploaded_and_by_a_pasted_image(page: Any, address: str) -> None:
    data = get(address, "api/pictures/100")
    file = {"name": "mine.webp", "mimeType": "image/webp", "buffer": data}
    page.locator("#upload").set_input_files(file)
    page.locator("#grid-title", has_text="Most like mine.webp").wait_for()
    uploaded = page.evaluate("[...gallery.state.list.rows]")
    assert 100 in uploaded[:5]
    page.evaluate(
        """async () => {
          const blob = await (await fetch("/api/pictures/100")).blob();
          const data = new DataTransfer();
          data.items.add(new File([blob], "pasted.webp", { type: "image/webp" }));
          window.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
        }"""
    )
    page.locator("#grid-title", has_text="Most like pasted.webp").wait_for()
    assert page.evaluate("[...gallery.state.list.rows]") == uploaded


def test_search_by_click(page: Any) -> None:
    page.locator("#cell-3").click()
    page.locator("#details").get_by_role("button", name="Similar images").click()
    page.locator("#grid-title", has_text="Most like").wait_for()
    scores = page.evaluate("gallery.state.list.scores")
    assert scores == sorted(scores, reverse=True)
    assert page.locator("#details[open]").count() == 0


def test_labels_are_given_spread_accepted_undone_and_exported(page: Any, address: str) -> None:
    page.get_by_role("tab", name="Labels").click()
    for label, rows in (("one", range(10)), ("two", range(130, 140))):
        page.evaluate("(rows) => gallery.state.select(rows)", list(rows))
        page.locator("#class-name").fill(label)
        page.get_by_role("button", name="Give to 10 images").click()
        page.locator("#status", has_text=f"10 images labelled {label}.").wait_for()
    assert labels_of(address) == {"one": 10, "two": 10}

    page.locator("summary", has_text="Spread").click()
    page.locator("#confidence").fill("0.6")
    page.get_by_role("button", name="Propose").click()
    page.locator("#grid-title", has_text="Proposed labels").wait_for()
    proposed = page.evaluate("gallery.labels.proposed")
    assert min(proposed["confidences"]) >= 0.6
    assert labels_of(address) == {"one": 10, "two": 10}
    by_hand = proposed["rows"][0]
    page.evaluate("(row) => gallery.state.select([row])", by_hand)
    page.locator("#class-name").fill("two")
    page.get_by_role("button", name="Give to 1 image").click()
    page.locator("#status", has_text="1 image labelled two.").wait_for()
    assert page.evaluate("gallery.labels.proposed.rows") == proposed["rows"][1:]
    page.get_by_role("button", name="Accept").click()
    page.locator("#status", has_text="accepted").wait_for()
    assert sum(labels_of(address).values()) == 20 + len(proposed["rows"])

    with page.expect_download() as download:
        page.get_by_role("tab", name="Export").click()
        page.get_by_role("link", name="CSV").click()
    lines = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    assert sum(bool(line["given"]) for line in lines) == 20 + len(proposed["rows"])

    page.get_by_role("tab", name="Labels").click()
    for _ in range(4):
        page.keyboard.press("Escape")
        version = page.evaluate("gallery.state.labels.version")
        page.get_by_role("button", name="Undo").click()
        wait_until(page, f"gallery.state.labels.version > {version}")
    assert labels_of(address) == {}


def test_two_windows_agree(page: Any, browser: Browser, address: str) -> None:
    other = open_page(browser, address, 1280, 800)
    other.get_by_role("tab", name="Labels").click()
    page.get_by_role("tab", name="Labels").click()
    page.evaluate("gallery.state.select([5, 6])")
    page.locator("#class-name").fill("<b>both</b>")
    page.get_by_role("button", name="Give to 2 images").click()
    other.locator("#given li", has_text="<b>both</b>").wait_for(timeout=10_000)
    page.get_by_role("button", name="Undo").click()
    other.locator("#none-given").wait_for(timeout=10_000)
    other.context.close()


def test_two_runs_share_the_selection(page: Any) -> None:
    page.get_by_label("Second run").check()
    page.wait_for_selector("html[data-ready='2']")
    page.evaluate("gallery.state.select([1, 2, 3])")
    js = "gallery.maps.map((one) => [...one.map.plot.get('selectedPoints')].sort())"
    assert page.evaluate(js) == [[1, 2, 3], [1, 2, 3]]
    page.locator("#grid .cell").first.click()
    page.get_by_role("button", name="Neighbours before and after").click()
    page.locator("#findings p", has_text="of 10 are the same").wait_for()
    assert page.locator("#findings .strip").count() == 3
    page.get_by_label("Second run").uncheck()
    assert page.locator("canvas.points").count() == 1


@pytest.mark.parametrize("name", ["clusters", "copies", "outliers", "contradicted"])
def test_findings_are_shown(page: Any, address: str, name: str) -> None:
    page.get_by_role("tab", name="Findings").click()
    page.locator("#finding").select_option(name)
    wait_until(page, "document.querySelector('#findings p')?.className === ''", 90)
    found = json.loads(get(address, f"api/panels/{name}?first=0&count=20"))
    wait_until(
        page, f"document.querySelectorAll('#findings .item').length === {len(found['items'])}"
    )
    assert page.locator("#findings p").first.inner_text() == found["words"]
    if found["items"]:
        page.locator("#findings .item").first.get_by_role("button", name="Select").click()
        assert selected(page) == sorted(found["items"][0]["rows"])


def test_images_to_label_next(page: Any) -> None:
    page.get_by_role("tab", name="Findings").click()
    page.locator("#finding").select_option("subset")
    page.get_by_label("How many").fill("7")
    page.get_by_role("button", name="Choose").click()
    page.locator("#grid-title", has_text="7 images to label next").wait_for()
    assert len(selected(page)) == 7


def test_all_can_be_done_with_the_keyboard(page: Any) -> None:
    page.locator("canvas.points").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#status", has_text=".png").wait_for()
    first = page.evaluate("gallery.current")
    page.keyboard.press("ArrowLeft")
    wait_until(page, f"gallery.current !== {first}")
    page.keyboard.press("Space")
    wait_until(page, "gallery.state.selected.length === 1")
    page.keyboard.press("Enter")
    page.locator("#details[open]").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("#details[open]").count() == 0
    page.keyboard.press("Escape")
    wait_until(page, "gallery.state.selected.length === 0")

    page.locator("#grid").focus()
    page.keyboard.press("End")
    wait_until(page, "gallery.grid.active === 179")
    assert page.locator("#cell-179").is_visible()
    assert page.locator("#grid").get_attribute("aria-activedescendant") == "cell-179"
    page.keyboard.press("Space")
    assert selected(page) == [179]
    page.keyboard.press("s")
    page.locator("#grid-title", has_text="Most like").wait_for()


def test_a_name_is_never_taken_for_a_page(page: Any, address: str) -> None:
    row = [one["name"] for one in json.loads(get(address, "api/rows?count=180"))]
    at = next(place for place, name in enumerate(row) if HOSTILE in name)
    page.evaluate(f"gallery.actions.open({at})")
    page.locator("#details h2", has_text=HOSTILE).wait_for()
    assert "owned" not in page.title()


def test_without_its_renderer_the_page_says_how_to_get_it(browser: Browser, address: str) -> None:
    page = browser.page(1280, 800)
    page.route("**/renderer.js", lambda route: route.abort())
    page.goto(address)
    page.locator(".wait", has_text="make renderer").wait_for()
    page.locator("#cell-0").click()
    page.locator("#details[open]").wait_for()
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_axe_finds_no_serious_fault(
    browser: Browser, address: str, width: int, height: int, scheme: str
) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not there: make renderer")
    page = open_page(browser, address, width, height, color_scheme=scheme)
    page.evaluate(AXE.read_text())
    assert faults_by_axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.evaluate("gallery.state.select([1, 2])")
    for tab in ("Findings", "Labels", "Export"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(400)
        assert faults_by_axe(page) == [], tab
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
    page.evaluate("gallery.actions.open(0)")
    page.locator("#details[open] .picture").wait_for()
    assert faults_by_axe(page) == []
    page.context.close()


def faults_by_axe(page: Any) -> list[str]:
    found = page.evaluate("axe.run()")
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]} {one['nodes'][0]['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def test_a_finger_moves_the_map_and_taps_select(browser: Browser, address: str) -> None:
    page = open_page(browser, address, 390, 844, has_touch=True)
    without_thumbnails(page)
    where = on_screen(page, address)
    far = np.linalg.norm(where[:, None] - where[None], axis=2) + 1e9 * np.eye(len(where))
    row = int(far.min(axis=1).argmax())
    page.touchscreen.tap(*where[row])
    wait_until(page, "gallery.state.selected.length === 1")
    assert selected(page) == [row]
    page.context.close()
