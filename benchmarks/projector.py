"""TensorBoard's projector in headless Chromium, to set beside the gallery."""

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from browser import Browser, drag_frames_per_second

CONFIG = """embeddings {
  tensor_name: "points"
  tensor_path: "points.tsv"
  metadata_path: "classes.tsv"
}
"""
# The projector says nothing when it is done; its last message closes.
DRAWN = """() => {
  const inside = (root) => [...root.querySelectorAll("*")].flatMap(
    (one) => one.shadowRoot ? [one, ...inside(one.shadowRoot)] : [one]);
  const all = inside(document);
  const canvas = all.some((one) => one.tagName === "CANVAS" && one.clientWidth > 300);
  const busy = all.some((one) => one.id === "notification-dialog" && one.opened);
  return canvas && !busy;
}"""


def measure_projector(points: np.ndarray, classes: np.ndarray) -> tuple[float, float]:
    """Seconds until it has drawn points (n, 2), and frames per second while the mouse drags."""
    with tempfile.TemporaryDirectory() as folder:
        depth = np.random.default_rng(0).normal(scale=0.01, size=len(points))  # it draws in space
        space = np.column_stack([points, depth])
        np.savetxt(Path(folder) / "points.tsv", space, fmt="%.5f", delimiter="\t")
        np.savetxt(Path(folder) / "classes.tsv", classes, fmt="%d")
        (Path(folder) / "projector_config.pbtxt").write_text(CONFIG)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder]
        process = subprocess.Popen(
            [*command, "--port", str(port), "--load_fast=false"], stderr=subprocess.DEVNULL
        )
        try:
            return _measured(f"http://127.0.0.1:{port}/", port)
        finally:
            process.kill()
            process.wait()


def _measured(address: str, port: int) -> tuple[float, float]:
    _wait_for(port)
    with Browser() as browser:
        page = browser.page(1280, 800)
        page.goto(address + "data/plugin/projector/projector_binary.html")
        begun, still = time.perf_counter(), 0
        while still < 10:  # a second without a message
            assert time.perf_counter() - begun < 180, "the projector did not draw"
            still = still + 1 if page.evaluate(DRAWN) else 0
            page.wait_for_timeout(100)
        first = time.perf_counter() - begun - 1
        return first, drag_frames_per_second(page, (640, 400))


def _wait_for(port: int, seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError("TensorBoard did not start")
