"""Three renderers of a map of points in headless Chromium: regl-scatterplot, Bokeh, plotly.

Each draws the same seeded points in ten colours on 1000 x 700 pixels, from binary columns of a
local server. Measured: seconds from opening the page to the first frame with the points in it,
frames per second while the mouse drags the map for three seconds, and bytes of script, plain and
as gzip sends them. Bokeh and plotly are taken from their wheels and left out if not installed;
regl-scatterplot from the bundle that `make renderer` writes.

    python benchmarks/renderers.py            # 10,000, 100,000 and 1,000,000 points
    python benchmarks/renderers.py --quick    # 10,000 points
"""

import gzip
import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
from browser import Browser, drag_frames_per_second, wait_until
from measuring import Figure, add_arguments, publish
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "src" / "diptych" / "gallery" / "page" / "renderer.js"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data: blob:"
)
LOADING = """
const column = async (name, kind) => new kind(await (await fetch(name)).arrayBuffer());
const [x, y, code] = await Promise.all(
  [column("x", Float32Array), column("y", Float32Array), column("code", Float32Array)]);
const colours = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee",
  "#aa3377", "#bbbbbb", "#000000", "#994455", "#997700"];
const note = () => { window.drawn = performance.now(); };
const drawn = () => requestAnimationFrame(() => requestAnimationFrame(note));
"""
SCRIPTS = {
    "regl-scatterplot": """
import createScatterplot from "./renderer.js";
const canvas = document.createElement("canvas");
document.getElementById("map").append(canvas);
const plot = createScatterplot({ canvas, width: 1000, height: 700, colorBy: "valueA",
  pointColor: colours, pointSize: 3, opacity: 0.7, spatialIndexUseWorker: false });
await plot.draw({ x, y, valueA: code }, { zDataType: "categorical" });
drawn();
""",
    "bokeh": """
const { Plotting, ColumnDataSource } = Bokeh;
const figure = Plotting.figure(
  { width: 1000, height: 700, tools: "pan,wheel_zoom", output_backend: "webgl" });
const source = new ColumnDataSource({ data: { x, y, c: Array.from(code, (one) => colours[one]) } });
figure.scatter({ field: "x" }, { field: "y" },
  { source, size: 3, line_color: null, fill_alpha: 0.7, fill_color: { field: "c" } });
await Plotting.show(figure, document.getElementById("map"));
drawn();
""",
    "plotly": """
const trace = { type: "scattergl", mode: "markers", x, y, hoverinfo: "none",
  marker: { size: 3, opacity: 0.7, color: code,
    colorscale: colours.map((one, at) => [at / 9, one]) } };
await Plotly.newPlot("map", [trace], { width: 1000, height: 700, dragmode: "pan" });
drawn();
""",
}


def scripts_of(name: str) -> list[Path]:
    """The files of a renderer; empty where it is not installed."""
    if name == "regl-scatterplot":
        return [BUNDLE] if BUNDLE.exists() else []
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        return []
    package = Path(found.origin).parent
    if name == "plotly":
        return [package / "package_data" / "plotly.min.js"]
    folder = package / "server" / "static" / "js"
    return [folder / f"{one}.min.js" for one in ("bokeh", "bokeh-gl", "bokeh-api")]


def made_points(count: int) -> dict[str, np.ndarray]:
    """Ten round clusters, as of ten classes."""
    rng = np.random.default_rng(0)
    code = rng.integers(0, 10, count)
    angle = code * (2 * np.pi / 10)
    spread = rng.normal(scale=0.12, size=(2, count))
    return {
        "x": (0.6 * np.cos(angle) + spread[0]).astype("<f4"),
        "y": (0.6 * np.sin(angle) + spread[1]).astype("<f4"),
        "code": code.astype("<f4"),
    }


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, without a log, under a policy without eval."""

    def log_message(self, *arguments: object) -> None:
        """Nothing."""

    def end_headers(self) -> None:
        """Adds the policy."""
        if getattr(self.server, "strict", False):
            self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()


@contextmanager
def served(folder: Path, strict: bool) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.strict = strict  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def write_page(folder: Path, name: str, count: int) -> None:
    for column, values in made_points(count).items():
        (folder / column).write_bytes(values.tobytes())
    tags = []
    for file in scripts_of(name):
        (folder / ("renderer.js" if name == "regl-scatterplot" else file.name)).write_bytes(
            file.read_bytes()
        )
        if name != "regl-scatterplot":
            tags.append(f'<script src="{file.name}"></script>')
    imports, _, rest = SCRIPTS[name].strip().partition("\n")
    text = imports + LOADING + rest if imports.startswith("import") else LOADING + SCRIPTS[name]
    (folder / "main.js").write_text(text)
    tags.append('<script type="module" src="main.js"></script>')
    (folder / "index.html").write_text(
        '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">'
        f'<div id="map"></div>{"".join(tags)}'
    )


def measure(name: str, count: int, strict: bool) -> tuple[float, float, str]:
    """Seconds to the first frame, frames per second while dragging, and what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        write_page(Path(folder), name, count)
        with served(Path(folder), strict) as address, Browser() as browser:
            page = browser.page(1100, 760)
            complaints: list[str] = []
            page.on(
                "console", lambda one: complaints.append(one.text) if one.type == "error" else None
            )
            page.on("pageerror", lambda one: complaints.append(str(one)))
            page.goto(address)
            try:
                wait_until(page, "window.drawn !== undefined", 120)
            except AssertionError:
                return float("nan"), float("nan"), (complaints or ["nothing drawn"])[0][:90]
            first = page.evaluate("window.drawn") / 1000
            rate = drag_frames_per_second(page, (500, 350))
            return first, rate, (complaints or [""])[0][:90]


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--strict", action="store_true", help="under the gallery's content policy")
    arguments = parser.parse_args()
    counts = [10_000] if arguments.quick else [10_000, 100_000, 1_000_000]
    table = Table("renderer", "points", "first frame, s", "frames/s", "MB", "MB gzip", "fault")
    rates: dict[tuple[str, int], float] = {}
    for name in SCRIPTS:
        files = scripts_of(name)
        if not files:
            table.add_row(name, "", "", "", "", "", "not installed")
            continue
        texts = [file.read_bytes() for file in files]
        sizes = (sum(map(len, texts)) / 1e6, sum(len(gzip.compress(one)) for one in texts) / 1e6)
        for count in counts:
            first, rate, fault = measure(name, count, arguments.strict)
            rates[name, count] = rate
            figures = (f"{first:.2f}", f"{rate:.1f}", *(f"{one:.2f}" for one in sizes), fault)
            table.add_row(name, f"{count:,}", *figures)
    Console(width=120).print(table)
    ours = {count: rate for (name, count), rate in rates.items() if name == "regl-scatterplot"}
    goals = [Figure(f"frames per second at {count:,}", rate, 1.0) for count, rate in ours.items()]
    publish(goals, "Renderers", arguments.json)


if __name__ == "__main__":
    main()
