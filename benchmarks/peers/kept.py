"""What was measured before, and of what: a result serves only where all of that is still equal."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measuring import ROOT, machine
from peers.contenders import CONTENDERS, OURS, Run
from peers.environments import versions


def code() -> str:
    """A hash of diptych's source and of the benchmarks', but for the studies, which none runs.

    Not the commit alone: that stays the same while files are edited, and changes with a page.
    """
    digest = hashlib.blake2b(digest_size=16)
    for folder in ("src/diptych", "benchmarks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if file.is_relative_to(ROOT / "src/diptych/studies"):
                continue
            digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


class Kept:
    """What was measured of one run, in a file, so that a long figure may be stopped.

    The name holds a hash of the run, of flags of one's own, of versions, code and machine.

    Args:
        place: folder of such files.
        title: how the name begins.
        name: of the library.
        run: that is measured; where it writes does not matter.
        flags: of `diptych pretrain`, in the place of what all share.
        environments: folder of the peers' environments.
    """

    def __init__(
        self,
        place: Path,
        title: str,
        name: str,
        run: Run,
        flags: Sequence[str],
        environments: Path,
    ) -> None:
        self.measured = {
            "run": {key: value for key, value in asdict(run).items() if key != "out"},
            "flags": list(flags) if name == OURS else [],
            "versions": versions(CONTENDERS[name].python(environments)),
            "code": code(),
            "machine": machine()["machine"],
        }
        text = json.dumps(self.measured, sort_keys=True).encode()
        mark = hashlib.blake2b(text, digest_size=8).hexdigest()
        plain = title.replace(" ", "-").replace(",", "")
        self.file = place / f"{plain}-{mark}.json"

    def read(self) -> Any:
        """What was found; None where nothing was, or of something else."""
        return json.loads(self.file.read_text())["found"] if self.file.exists() else None

    def write(self, found: object) -> None:
        """Keeps it."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_name(f"{self.file.name}.part")
        part.write_text(json.dumps({"found": found, **self.measured}, indent=1) + "\n")
        part.replace(self.file)


def forget(place: Path) -> None:
    """Removes all that is kept in a folder."""
    shutil.rmtree(place, ignore_errors=True)
