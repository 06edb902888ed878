"""How the flags of a verb are read. Each verb's own stand beside it, as a frozen dataclass.

A field that holds a dataclass gives the fields of that as ``--section.name``, and as ``--name`` if
it is marked by ``tyro.conf.arg(name="")``.
"""

import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from operator import attrgetter
from typing import Any, Final, Literal, Protocol, TypeVar

import tyro

from diptych.config.files import SHORT_NAMES, flatten, nearest_name, nest
from diptych.config.sections import RunConfig
from diptych.errors import ConfigError

Flags = TypeVar("Flags")
Verb = Callable[[Sequence[str]], None]

_SETTINGS: Final = {*flatten(RunConfig()), *SHORT_NAMES}


@dataclass(frozen=True)
class DeviceOptions:
    """What a verb runs on."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where networks run; auto takes an accelerator if there is one."""
    threads: int | None = None
    """CPU threads of all processes of this machine together; all cores by default."""


@dataclass(frozen=True)
class InferenceOptions(DeviceOptions):
    """What a verb runs on that extracts features."""

    batch_size: int = 256
    """Images that a frozen network sees at once. Features depend on it by rounding only."""


class SettingsFlags(Protocol):
    """Flags of which some are settings of a run, and the first may be the path of its images."""

    @property
    def path(self) -> str | None:
        """Of the images."""


def parse(kind: type[Flags], verb: Verb, arguments: Sequence[str]) -> Flags:
    """Flags of a verb. Wrong ones end the process with a hint at the nearest right one."""
    arguments = _whole_names(arguments)
    command = f"diptych {verb.__name__.replace('_', '-')}"
    _refuse_unknown(list(flag_places(kind)), arguments, command)
    parsed: Flags = tyro.cli(
        kind,
        args=list(arguments),
        prog=command,
        description=inspect.cleandoc(verb.__doc__ or ""),
    )
    return parsed


def explicit_settings(flags: SettingsFlags, arguments: Sequence[str]) -> dict[str, Any]:
    """The settings that were given, and not those that only have defaults, as nested tables."""
    places = flag_places(type(flags))
    given: dict[str, Any] = {}
    for argument in _whole_names(arguments):
        name = _to_name(argument, places) if argument.startswith("--") else ""
        if name in places and name in _SETTINGS:
            given[SHORT_NAMES.get(name, name)] = attrgetter(places[name])(flags)
    if flags.path is not None:
        if given.get("images.path", flags.path) != flags.path:
            raise ConfigError(
                f"two paths of images: {flags.path} and --images.path {given['images.path']}. Give "
                "one of them."
            )
        given["images.path"] = flags.path
    return nest(given)


def flag_places(kind: type) -> dict[str, str]:
    """Dotted name of every flag of a dataclass and of those in it, and where its value lies."""
    return {name: ".".join(place) for name, place in _flags(kind)}


def _flags(kind: type) -> Iterator[tuple[str, list[str]]]:
    hints = typing.get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        hint = hints[one.name]
        held = hint.__origin__ if typing.get_origin(hint) is typing.Annotated else hint
        if not is_dataclass(held):
            yield one.name, [one.name]
            continue
        named = all(getattr(mark, "name", None) != "" for mark in getattr(hint, "__metadata__", ()))
        for name, place in _flags(typing.cast("type", held)):
            yield f"{one.name}.{name}" if named else name, [one.name, *place]


def _whole_names(arguments: Sequence[str]) -> list[str]:
    """The same arguments with ``--encoder NAME`` written out; a section cannot be a flag itself."""

    def whole(argument: str) -> str:
        name, equals, value = argument.partition("=")
        return f"--encoder.name{equals}{value}" if name == "--encoder" else argument

    return [whole(argument) for argument in arguments]


def _to_name(argument: str, names: typing.Container[str]) -> str:
    """``--training.no-compile`` to ``training.compile``, ``--epochs=3`` to ``epochs``."""
    name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
    section, dot, last = name.rpartition(".")
    positive = f"{section}{dot}{last.removeprefix('no_')}"
    return positive if name not in names and positive in names else name


def _refuse_unknown(names: Sequence[str], arguments: Sequence[str], command: str) -> None:
    for argument in arguments:
        if not argument.startswith("--") or argument in ("--", "--help"):
            continue
        name = _to_name(argument, names)
        if name not in names:
            nearest = nearest_name(name, names)
            hint = f" Did you mean --{nearest.replace('_', '-')}?" if nearest else ""
            given = argument.partition("=")[0]
            print(
                f"{command}: there is no flag {given}.{hint} `{command} --help` lists all.",
                file=sys.stderr,
            )
            raise SystemExit(2)
