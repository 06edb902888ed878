"""Flags and settings for people: `--help` of a verb on one screen, and docs/settings.md.

The meaning of each is the docstring under its field. ``python -m diptych.cli.help`` prints the
page.
"""

import ast
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal

from tyro.conf import Positional

from diptych.config.files import flatten
from diptych.config.recipes import RECIPES, recipe_config
from diptych.config.run import RunConfig

_WORDS: Final[Mapping[Any, str]] = {
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    bool: "true or false",
}
_HEAD: Final = """\
# Settings

Every setting of a run, as it stands in a TOML file (`--config`), as a flag
(`--views.side-pixels 96`) and in Python (`diptych.pretrain(..., **{"views.side_pixels": 96})`).
What serves one kind only lies under that kind: `method.dictionary.queue.size`. A run starts from a
[recipe](recipes.md) at a scale (`simclr` at `tiny` on a CPU), whose values replace many of these:
`diptych recipes simclr --scale tiny` prints them, and `config.toml` in a run folder says what it
used. In italics are those of a recipe's paper scale. `make docs` writes this page.
"""


@dataclass(frozen=True)
class Setting:
    """One field of a dataclass, or of one in it.

    Attributes:
        name: dotted, as it is given.
        place: dotted, as its value is found.
        owner: the dataclass that has the field.
        field: itself.
        hint: its type, with marks.
    """

    name: str
    place: str
    owner: type
    field: Field[Any]
    hint: Any

    @property
    def meaning(self) -> str:
        """The docstring under the field, on one line."""
        for kind in self.owner.__mro__:
            if is_dataclass(kind) and self.field.name in (texts := _texts(kind)):
                return texts[self.field.name]
        return ""

    @property
    def default(self) -> Any:
        """The default; ``MISSING`` where the value has to be given."""
        make = self.field.default_factory
        return self.field.default if make is MISSING else make()

    @property
    def default_words(self) -> str:
        """The default as Markdown; empty where there is none, "needed" where one must be given."""
        return "needed" if self.default is MISSING else _as_default(self.default)

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that it may have, if its type lists them."""
        return typing.get_args(self._bare) if typing.get_origin(self._bare) is Literal else ()

    @property
    def type(self) -> str:
        """The type in a word or two."""
        if typing.get_origin(self._bare) is tuple:
            return f"{_WORDS[typing.get_args(self._bare)[0]]}s"
        return ", ".join(map(str, self.choices)) or _WORDS[self._bare]

    @property
    def _bare(self) -> Any:
        """The type without marks and None."""
        bare = typing.get_args(self.hint)[0] if _is_marked(self.hint) else self.hint
        if typing.get_origin(bare) in (UnionType, typing.Union):
            (bare,) = (one for one in typing.get_args(bare) if one is not NoneType)
        return bare


def settings_of(kind: type) -> Iterator[Setting]:
    """Every field of a dataclass and of those in it, in order.

    A field that is marked by the name "" (``tyro.conf.arg(name="")``) lends its own fields to the
    dataclass that it is in.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        hint = hints[one.name]
        held = typing.get_args(hint)[0] if _is_marked(hint) else hint
        if not (isinstance(held, type) and is_dataclass(held)):
            yield Setting(one.name, one.name, kind, one, hint)
            continue
        lent = any(getattr(mark, "name", None) == "" for mark in typing.get_args(hint)[1:])
        for inner in settings_of(held):
            name = inner.name if lent else f"{one.name}.{inner.name}"
            place = f"{one.name}.{inner.place}"
            yield Setting(name, place, inner.owner, inner.field, inner.hint)


def settings_page() -> str:
    """All settings of a run as a page of Markdown."""
    recipes = {name: flatten(recipe_config(name, "paper")) for name in RECIPES}
    sections: dict[str, list[Setting]] = {}
    for setting in settings_of(RunConfig):
        sections.setdefault(setting.name.rpartition(".")[0], []).append(setting)
    lines = [_HEAD]
    for section, settings in sections.items():
        about = inspect.cleandoc(settings[0].owner.__doc__ or "")
        lines += ["", f"## {section or 'The run'}", "", about, ""]
        lines += ["| setting | type | without a recipe | meaning |", "|---|---|---|---|"]
        for setting in settings:
            meaning = setting.meaning.replace("|", "\\|")
            if changed := _changed(setting, recipes):
                meaning += f" *{changed}*"
            row = (f"`{setting.name}`", setting.type, setting.default_words, meaning)
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _changed(setting: Setting, recipes: Mapping[str, Mapping[str, Any]]) -> str:
    """Which recipes set it to what, where that is not the default."""
    by_value: dict[str, list[str]] = {}
    for recipe, settings in recipes.items():
        value = settings[setting.name]
        if value != setting.default and setting.name not in ("recipe", "scale"):
            by_value.setdefault(_as_default(value), []).append(recipe)
    return "; ".join(f"{value} in {', '.join(names)}" for value, names in by_value.items())


def _as_default(value: Any) -> str:
    if value in (None, "", ()):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{text}`"


def _is_marked(hint: Any) -> bool:
    return typing.get_origin(hint) is Annotated


@cache
def _texts(kind: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass."""
    # Python keeps no docstrings of fields, so they are read from the source.
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for before, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
            assert isinstance(before.target, ast.Name)
            assert isinstance(after.value, ast.Constant)
            texts[before.target.id] = " ".join(str(after.value.value).split())
    return texts


Groups = Mapping[str, Sequence[str]]
"""Names of flags under the title of their group."""

WIDTH: Final = 100
_INDENT: Final = 35
_SHORT_FLAGS: Final = {"encoder.name": "encoder"}  # which `cli.flags` writes out
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
    if "recipe" in named and any("." in name for name in named):
        lines += [
            "",
            "Flags of a section, such as --views.policy, are the recipe's unless you give them.",
        ]
    lines += ["", f"`{command} --help-all` shows every flag with its full description."]
    return "\n".join(lines)


def _lines(setting: Setting, *, recipe: bool) -> Iterator[str]:
    """A flag on one line if its meaning fits, else on several.

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
    """How a flag is written, and its default."""
    name = _SHORT_FLAGS.get(setting.name, setting.name).replace("_", "-")
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
    """Whether it is given by position and not by name."""
    return any(mark in _POSITIONAL for mark in getattr(setting.hint, "__metadata__", ()))


_POSITIONAL: Final[tuple[Any, ...]] = Positional[int].__metadata__  # type: ignore[attr-defined]


if __name__ == "__main__":
    print(settings_page(), end="")
