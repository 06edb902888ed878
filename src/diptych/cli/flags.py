"""How the flags of a verb are read. Each verb's own stand beside it, as a frozen dataclass.

A field that holds a dataclass gives the fields of that as ``--section.name``, and as ``--name`` if
it is marked by ``tyro.conf.arg(name="")``. The docstrings under the fields are the help texts.
"""

import inspect
import os
import sys
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from operator import attrgetter
from typing import Any, Final, Literal, Protocol, TypeVar

import tyro

from diptych.cli.help import Groups, help_screen, settings_of
from diptych.config.files import OLD_NAMES, SHORT_NAMES, flatten, nearest_name, nest
from diptych.config.run import RunConfig
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


def parse(
    kind: type[Flags], verb: Verb, arguments: Sequence[str], *, common: Groups | None = None
) -> Flags:
    """Flags of a verb. Wrong ones end the process with a hint at the nearest right one.

    Args:
        kind: the dataclass that holds them.
        verb: whose docstring is the help.
        arguments: behind the verb's name.
        common: flags that most people need, in groups, which --help shows; all when not given.
    """
    arguments = [_with_home(one) for one in arguments]
    command = f"diptych {verb.__name__.rstrip('_').replace('_', '-')}"
    settings = list(settings_of(kind))
    if any(one.name == "encoder.name" for one in settings):
        arguments = _whole_names(arguments)
    if {"-h", "--help"} & set(arguments):
        print(help_screen(command, verb.__doc__ or "", settings, common))
        raise SystemExit(0)
    if "--help-all" in arguments:
        arguments = ["--help"]  # tyro's own, of everything
    # Before tyro, which knows no old names.
    _refuse_unknown([one.name for one in settings], arguments, command)
    parsed: Flags = tyro.cli(
        kind,
        args=arguments,
        prog=command,
        description=inspect.cleandoc(verb.__doc__ or ""),
    )
    return parsed


def explicit_settings(flags: SettingsFlags, arguments: Sequence[str]) -> dict[str, Any]:
    """The settings that were given, and not those that only have defaults, as nested tables."""
    places = {one.name: one.place for one in settings_of(type(flags))}
    given: dict[str, Any] = {}
    # Not by the values: a default that is given on purpose overrides a recipe, and one that is not
    # given must not.
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


def _whole_names(arguments: Sequence[str]) -> list[str]:
    """The same arguments with ``--encoder NAME`` written out; a section cannot be a flag itself."""

    def whole(argument: str) -> str:
        name, equals, value = argument.partition("=")
        return f"--encoder.name{equals}{value}" if name == "--encoder" else argument

    return [whole(argument) for argument in arguments]


def _with_home(argument: str) -> str:
    """``--out=~/runs`` with the home folder written out: a shell does so behind a blank only."""
    flag, equals, value = argument.partition("=")
    is_home = flag.startswith("--") and (value == "~" or value.startswith("~/"))
    return f"{flag}{equals}{os.path.expanduser(value)}" if is_home else argument


def _to_name(argument: str, names: Container[str]) -> str:
    """``--training.no-compile`` to ``training.compile``, ``--epochs=3`` to ``epochs``."""
    name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
    section, dot, last = name.rpartition(".")
    positive = f"{section}{dot}{last.removeprefix('no_')}"
    return positive if name not in names and positive in names else name


def _refuse_unknown(names: Sequence[str], arguments: Sequence[str], command: str) -> None:
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        if not argument.startswith("--") or argument in ("--", "--help"):
            continue
        given, equals, value = argument.partition("=")
        name = _to_name(argument, [*names, *OLD_NAMES])
        old_value = f"{name} = {value if equals else following!r}"
        if name in names and old_value not in OLD_NAMES:
            continue
        if name in OLD_NAMES:
            said = f"{given} is called {_as_flag(OLD_NAMES[name])} now."
        elif name in names:
            said = f"{old_value} is called {OLD_NAMES[old_value]} now."
        else:
            nearest = nearest_name(name, names)
            hint = f" Did you mean {_as_flag(nearest)}?" if nearest else ""
            said = f"there is no flag {given}.{hint} `{command} --help-all` lists all."
        print(f"{command}: {said}", file=sys.stderr)
        raise SystemExit(2)


def _as_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
