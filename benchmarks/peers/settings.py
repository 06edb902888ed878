"""What all figures are told: where peers and images are, and how long to measure."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from PIL import Image

from diptych.images.sources.known_sets import whole_photographs
from peers.contenders import CONTENDERS, OURS, Run, diptych_with
from peers.kept import Kept, code
from peers.watch import Watched, watch

IMAGES, IMAGES_QUICK = 10_000, 320  # to learn from, where there are no more
TEST_SHARE: Final = 5  # one of so many images of a set made here is held out


@dataclass(frozen=True)
class Settings:
    """Of one call of the harness.

    Attributes:
        environments: the folder of the peers' environments.
        data: a folder with `cifar10/` (`train/CLASS`, `test/CLASS`), or None: images made here.
        scratch: where runs are written; each is removed after it was measured.
        out: where results go.
        quick: a toy size that only shows that all works.
        rounds: turns of each contender.
        minutes: of runs that learn for some minutes, each length a case of its own; those of the
            figure when empty.
        seeds: of such runs.
        only: contenders to run; all when empty.
        workers: processes that load images, of peers that have them: one less than there are cores,
            as lightly-train and Lightning set it.
        flags: of `diptych pretrain`, in the place of the settings that all share.
        case: of throughput and memory, those cases alone whose names have this text.
        target: kNN accuracy in per cent, of a record.
    """

    environments: Path
    data: Path | None
    scratch: Path
    out: Path
    quick: bool
    rounds: int
    minutes: tuple[float, ...]
    seeds: int
    only: tuple[str, ...] = ()
    workers: int = max(1, len(os.sched_getaffinity(0)) - 1)
    flags: tuple[str, ...] = ()
    case: str = ""
    target: float = 60.0

    def contenders(self, method: str) -> list[str]:
        """Who does a method, diptych first."""
        return [
            name for name, one in CONTENDERS.items() if method in one.methods and self.needs(name)
        ]

    @property
    def alone(self) -> bool:
        """Whether diptych is measured with no other library beside it."""
        return self.only == (OURS,)

    def needs(self, name: str) -> bool:
        """Whether a library takes part."""
        return not self.only or name in self.only

    @property
    def measured_before(self) -> Path:
        """Folder of what was measured of single runs, with which a stopped figure goes on."""
        return self.scratch / "kept"

    def kept(self) -> dict[str, Any]:
        """What results depend on, as JSON gives it back: not where they and the runs lie."""
        places = ("environments", "scratch", "out")
        said = {one.name: getattr(self, one.name) for one in fields(self)}
        said = {name: value for name, value in said.items() if name not in places}
        found: dict[str, Any] = json.loads(json.dumps({**said, "code": code()}, default=str))
        return found


def do(settings: Settings, name: str, run: Run, *, memory: bool = False) -> Watched:
    """A run by one library, as a command of its own."""
    shutil.rmtree(run.out, ignore_errors=True)
    Path(run.out).parent.mkdir(parents=True, exist_ok=True)
    contender = CONTENDERS[name]
    command = contender.command(run, settings.environments)
    if name == OURS and settings.flags:
        command = diptych_with(settings.flags, run)
    log = Path(f"{run.out}.log")
    return watch(command, contender.variables(), log, memory=memory)


def once(
    settings: Settings, figure: str, title: str, name: str, run: Run, measure: Callable[[], Any]
) -> Any:
    """What was measured before of a library's run, so that a long figure may be stopped.

    Args:
        settings: of the harness.
        figure: that it was measured for, or for several.
        title: how its file is named.
        name: of the library.
        run: that is measured.
        measure: measures it where nothing is kept; gives what JSON can hold.
    """
    place = settings.measured_before / figure
    kept = Kept(place, title, name, run, settings.flags, settings.environments)
    found = kept.read()
    if found is None:
        found = measure()
        kept.write(found)
    return found


def jpegs(folder: Path, count: int, side: int) -> Path:
    """A folder with `train/CLASS` and `test/CLASS` of JPEG files cut from built-in photographs."""
    if (folder / "complete").exists():
        return folder
    pictures = [Image.fromarray(one) for one in whole_photographs()]
    for number in range(count):
        kind = number % len(pictures)
        part = "test" if number // len(pictures) % TEST_SHARE == TEST_SHARE - 1 else "train"
        path = folder / part / f"class{kind}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        window(pictures[kind], number // len(pictures), side).save(path, quality=90)
    (folder / "complete").touch()
    return folder


def window(picture: Image.Image, number: int, side: int) -> Image.Image:
    """A square window of a photograph, resized; each number has its own."""
    size = min(picture.size) // 2
    across, down = picture.width - size, picture.height - size
    left, top = (number * 7919) % (across + 1), (number * 104729) % (down + 1)
    return picture.crop((left, top, left + size, top + size)).resize((side, side))


def images_for(settings: Settings, side: int, count: int) -> Path:
    """At least so many JPEG files to learn from: CIFAR-10's own at 32 pixels, where they are."""
    if side == 32 and settings.data is not None and not settings.quick:
        return settings.data / "cifar10"
    larger = side * 4 // 3 if side > 32 else side
    made = math.ceil(count * TEST_SHARE / (TEST_SHARE - 1)) + TEST_SHARE * len(whole_photographs())
    return jpegs(settings.scratch / f"jpeg-{side}-{count}", made, larger)


def limited(settings: Settings, folder: Path, count: int) -> Path:
    """A folder of links to that many images of a set's part to learn from, class by class."""
    classes = sorted(one for one in (folder / "train").iterdir() if one.is_dir())
    each = count // len(classes)
    # Another set of the same name has links of its own.
    mark = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=4).hexdigest()
    out = settings.scratch / f"{folder.name}-{mark}-{count}"
    for one in classes:
        (out / "train" / one.name).mkdir(parents=True, exist_ok=True)
        for file in sorted(one.iterdir())[:each]:
            link = out / "train" / one.name / file.name
            if not link.exists():
                link.symlink_to(file.resolve())
    return out
