"""Every setting with its type, default and meaning, for people: the help texts, docs/settings.md.

The meaning is the docstring under the field. ``python -m diptych.config.reference`` prints the
page.
"""

import ast
import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal

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
What serves one kind only lies under that kind: `method.dictionary.queue.size`. A
[recipe](recipes.md) has defaults of its own, here in italics those of its paper scale. `make docs`
writes this page.
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
    def choices(self) -> tuple[Any, ...]:
        """The values that it may have, if they can be told."""
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
    lines, section = [_HEAD], None
    for setting in settings_of(RunConfig):
        if setting.owner is not section:
            section = setting.owner
            title = setting.name.rpartition(".")[0] or "The run"
            lines += ["", f"## {title}", "", inspect.cleandoc(section.__doc__ or ""), ""]
            lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        default = _shown(setting.default)
        meaning = setting.meaning.replace("|", "\\|")
        if changed := _changed(setting, recipes):
            meaning += f" *{changed}*"
        lines.append(f"| `{setting.name}` | {setting.type} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _changed(setting: Setting, recipes: Mapping[str, Mapping[str, Any]]) -> str:
    """Which recipes set it to what, where that is not the default."""
    by_value: dict[str, list[str]] = {}
    for recipe, settings in recipes.items():
        value = settings[setting.name]
        if value != setting.default and setting.name not in ("recipe", "scale"):
            by_value.setdefault(_shown(value), []).append(recipe)
    return "; ".join(f"{value} in {', '.join(names)}" for value, names in by_value.items())


def _shown(value: Any) -> str:
    if value in (None, ""):
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
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for before, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
            assert isinstance(before.target, ast.Name)
            assert isinstance(after.value, ast.Constant)
            texts[before.target.id] = " ".join(str(after.value.value).split())
    return texts


if __name__ == "__main__":
    print(settings_page(), end="")
