"""A headless Chromium for benchmarks and tests: Debian's, driven by playwright."""

import shutil
import time
from types import TracebackType
from typing import Any

ARGUMENTS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
)
COUNT_FRAMES = """() => {
  let frames = 0, running = true;
  const count = () => { frames += 1; if (running) requestAnimationFrame(count); };
  requestAnimationFrame(count);
  window.stopCounting = () => { running = false; return frames; };
}"""


def missing() -> str | None:
    """What is not there to open a page, in words, or nothing."""
    if chromium() is None:
        return "chromium is not installed"
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return None


def chromium() -> str | None:
    """Where the system's Chromium is."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """A browser that is closed at the end of its block."""

    def __enter__(self) -> "Browser":
        from playwright.sync_api import sync_playwright

        self._started = sync_playwright().start()
        self._browser = self._started.chromium.launch(
            executable_path=chromium(), args=list(ARGUMENTS)
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._browser.close()
        self._started.stop()

    def page(self, width: int, height: int, **options: Any) -> Any:
        """A new page in a context of its own."""
        context = self._browser.new_context(
            viewport={"width": width, "height": height}, accept_downloads=True, **options
        )
        return context.new_page()


def wait_until(page: Any, condition: str, seconds: float = 20.0) -> None:
    """Until an expression holds; playwright's own way needs eval, which strict pages forbid."""
    ends = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < ends, condition
        page.wait_for_timeout(20)


def drag_frames_per_second(page: Any, at: tuple[int, int], seconds: float = 3.0) -> float:
    """Frames that the page shows a second while the mouse drags to and fro from a point."""
    page.mouse.move(*at)
    page.mouse.down()
    page.evaluate(COUNT_FRAMES)
    begun, step = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        step += 1
        reach = abs(step % 40 - 20) * 8
        page.mouse.move(at[0] + reach - 80, at[1] + reach // 2 - 40)
    frames = page.evaluate("window.stopCounting()")
    spent = time.perf_counter() - begun
    page.mouse.up()
    return float(frames) / spent
