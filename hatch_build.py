"""Bundles the renderer of the gallery's map when a wheel is built where npm is installed."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUNDLE = "src/diptych/gallery/page/renderer.js"
COMMANDS = (
    ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"),
    ("node", "build.mjs"),
)


class RendererHook(BuildHookInterface[Any]):
    """Without npm the wheel lacks the renderer, and the gallery says how to get it."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Makes the bundle if it is not there; it never stops a build.

        Args:
            version: of the target: an editable install leaves the bundle to `make renderer`.
            build_data: takes the bundle as a file to include, since git ignores it.
        """
        if version == "editable":
            return
        root = Path(self.root)
        if not (root / BUNDLE).exists():
            self._make(root / "renderer")
        if (root / BUNDLE).exists():
            build_data["artifacts"].append(BUNDLE)

    def _make(self, folder: Path) -> None:
        npm = shutil.which("npm")
        if npm is None or shutil.which("node") is None:
            self.app.display_warning("npm is not installed: the wheel has no renderer of the map")
            return
        for command in COMMANDS:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                self.app.display_warning(f"{' '.join(command)} failed: {done.stderr[-500:]}")
                return
