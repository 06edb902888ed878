"""`--help` of a verb on one screen: what it does, examples, and the flags that most people need."""

import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from typing import Any, Final

from tyro.conf import Positional

from diptych.config.reference import Setting

Groups = Mapping[str, Sequence[str]]
"""Names of flags under the title of their group."""

WIDTH: Final = 100
_INDENT: Final = 35
_END_OF_SENTENCE: Final = re.compile(r"[.;](?=\s|$)")
_END_OF_CLAUSE: Final = re.compile(r"[.:;](?=\s|$)|,? \(")


def help_screen(command: str, text: str, settings: Sequence[Setting], common: Groups | None) -> str:
    """The help of a verb.

    Args:
        command: as the user types it.
        text: docstring of the verb, with the examples at its end.
        settings: what it takes.
        common: the flags to show; all when not given.
    """
    named = {one.name: one for one in settings}
    positional = [one.name for one in settings if is_positional(one)]
    flags = [name for name in named if name not in positional]
    lines = [
        " ".join(["usage:", command, *(_shown(named[name])[0] for name in positional), "[FLAGS]"])
    ]
    lines += ["", inspect.cleandoc(text), ""]
    for title, names in {"arguments": positional, **(common or {"flags": flags})}.items():
        if names:
            lines += [
                f"{title}:",
                *(line for name in names for line in _lines(named[name], recipe="recipe" in named)),
            ]
    if "recipe" in named:
        lines += ["", "What has a section, as encoder.name, is the recipe's unless it is given."]
    lines += ["", f"`{command} --help-all` shows every flag, with all that is said of it."]
    return "\n".join(lines)


def _lines(setting: Setting, *, recipe: bool) -> Iterator[str]:
    """A flag on one line, if it can be said so shortly.

    Args:
        setting: the flag.
        recipe: whether sections have the defaults of a recipe instead of their own.
    """
    left, default = _shown(setting)
    if recipe and "." in setting.name:
        default = ""
    room = 0 if setting.choices else WIDTH - _INDENT - len(default)
    said = _shortened(setting.meaning, room) + default
    if max(len(left) + 4, _INDENT) + len(said) > WIDTH:
        first, *more = textwrap.wrap(said, WIDTH - _INDENT, break_on_hyphens=False)
        if len(left) + 4 > _INDENT:
            yield f"  {left}"
            left = ""
        yield f"  {left:{_INDENT - 4}}  {first}"
        yield from (f"{'':{_INDENT}}{line}" for line in more)
    else:
        yield f"  {left:{_INDENT - 4}}  {said}"


def _shortened(meaning: str, width: int) -> str:
    """The sentences that fit a line, or the first clause."""
    ends = [one.start() for one in _END_OF_SENTENCE.finditer(meaning) if one.start() <= width]
    return meaning[: ends[-1]] if ends else _END_OF_CLAUSE.split(meaning, maxsplit=1)[0]


def _shown(setting: Setting) -> tuple[str, str]:
    """How a flag is written, and what it is when it is not given."""
    name = setting.name.replace("_", "-")
    default = setting.default
    if is_positional(setting):
        written = name.upper() + " ..." * setting.type.endswith("s")
        return (written if default is MISSING else f"[{written}]"), ""
    if default is True:
        section, dot, last = name.rpartition(".")
        return f"--{section}{dot}[no-]{last}", ""
    if default is MISSING:
        return f"--{name} {_word(setting)}", " [needed]"
    if setting.type == "true or false":
        return f"--{name}", ""
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    is_given = default not in (None, "", ())
    return f"--{name} {_word(setting)}", f" [{shown}]" if is_given else ""


def _word(setting: Setting) -> str:
    if setting.choices:
        return "|".join(map(str, setting.choices))
    many = typing.get_origin(setting.hint) is tuple
    return f"{setting.type.removesuffix('s').upper()} ..." if many else setting.type.upper()


def is_positional(setting: Setting) -> bool:
    """Whether it is told by its place and not by its name."""
    return any(mark in _POSITIONAL for mark in getattr(setting.hint, "__metadata__", ()))


_POSITIONAL: Final[tuple[Any, ...]] = Positional[int].__metadata__  # type: ignore[attr-defined]
