"""Settings of the harness in a folder of its own, and seconds that no command took."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from peers.contenders import Run
from peers.settings import Settings
from peers.watch import Watched


def toy_settings(folder: Path, **given: object) -> Settings:
    """A toy size; nothing is made."""
    settings = Settings(
        environments=folder / "environments",
        data=None,
        scratch=folder / "scratch",
        out=folder / "out",
        quick=True,
        rounds=1,
        minutes=(1.0,),
        seeds=1,
    )
    return replace(settings, **given)  # type: ignore[arg-type]


def seconds_by_epochs(around: float, epoch: float, said: list[str]) -> Callable[..., Watched]:
    """In the place of `do`: what a run would take, and who ran for how many epochs."""

    def do(settings: Settings, name: str, run: Run, *, memory: bool = False) -> Watched:
        said.append(f"{name} {run.epochs}")
        Path(run.out).mkdir(parents=True, exist_ok=True)
        return Watched(around + run.epochs * epoch, 100.0 * memory, 0.0)

    return do
