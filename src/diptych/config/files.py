"""Configs to and from TOML and flags. Unknown keys and wrong types are refused, never ignored."""

import difflib
import json
import math
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar

from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.escaping import escaped, is_text, unescaped

Config = TypeVar("Config")
Settings = Mapping[str, Any]
"""Nested tables of settings, as TOML gives them."""

SHORT_NAMES: Final = {
    "epochs": "training.epochs",
    "minutes": "training.minutes",
    "batch_size": "training.batch_size",
    "threads": "training.threads",
    "group_by": "images.group_by",
    "begin_from": "training.begin_from",
    "weights": "encoder.weights",
}
"""Settings that may be given without their section, as flags and in Python."""

OLD_NAMES: Final = {
    "method.key_encoder.kind = 'twin'": "'momentum'",
    "method.dictionary.both_views": "method.dictionary.batch.both_views",
    "method.dictionary.queue_size": "method.dictionary.queue.size",
    "method.dictionary.bank_negatives": "method.dictionary.bank.negatives",
    "method.dictionary.bank_momentum": "method.dictionary.bank.momentum",
    "method.dictionary.bank_precision": "method.dictionary.bank.precision",
    "method.dictionary.bank_placement": "method.dictionary.bank.placement",
    "images.jpeg_side": "images.decoded_side",
    "method.loss.margin": "method.loss.triplet.margin",
    "norm.channel_groups": "norm.group.channel_groups",
    "optimizer.lars_trust": "optimizer.lars.trust",
    "optimizer.adamw_beta": "optimizer.adamw.beta2",
    "schedule.drops": "schedule.step.drops",
    "schedule.drop_factor": "schedule.step.factor",
    "training.peer_timeout_seconds": "training.process_timeout_seconds",
}
"""Settings, and values of settings, that had another name: refused wherever they are given, with
the name that they have now. Encoders written with the old ones stay readable."""

_ESCAPED: Final = "escaped"  # in the place of a text that is none: { escaped = "\\xff" }


def overlay(base: Config, settings: Settings, origin: str, prefix: str = "") -> Config:
    """A config with some of its values replaced.

    Args:
        base: a frozen config, which stays as it is.
        settings: new values by name; nested tables for nested configs.
        origin: where they come from, named in errors.
        prefix: of the keys, when called for a section.

    Raises:
        ConfigError: a key is unknown (the nearest right one is named), a value has the wrong type
            or is out of range.
    """
    if not prefix and (old := [f"{old} is called {OLD_NAMES[old]} now" for old in _old(settings)]):
        raise ConfigError(f"{origin}: {'; '.join(old)}.")
    types = typing.get_type_hints(type(base))
    values = {one.name: getattr(base, one.name) for one in fields(base)}  # type: ignore[arg-type]
    for key, value in settings.items():
        if key not in values:
            raise ConfigError(_unknown(f"{prefix}{key}", origin))
        current = values[key]
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{origin}: {prefix}{key} is a table; got {value!r}.")
            values[key] = overlay(current, value, origin, f"{prefix}{key}.")
        else:
            values[key] = _checked(value, types[key], f"{origin}: {prefix}{key}")
    try:
        # All at once: checks see the new values together, none beside the old one of a neighbour.
        return type(base)(**values)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings in a TOML file.

    Raises:
        ConfigError: the file is missing or is not TOML.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # editors of Windows begin a file by a mark
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return parse_toml(text, str(path))


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """The settings in a TOML text; ``origin`` is named in errors."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers with too many digits
        raise ConfigError(f"{origin} is not TOML: {error}") from error


def load_run_config(path: Path) -> RunConfig:
    """The resolved config of a run, from its ``config.toml``."""
    return overlay(RunConfig(), read_config_file(path), str(path))


def rename_old(settings: dict[str, Any]) -> None:
    """Gives the settings of an older version the names, and values, that they have now."""
    for old, (table, last) in list(_old(settings).items()):
        new, value = OLD_NAMES[old], table.pop(last)
        if " = " in old:
            table[last] = new.strip("'")
            continue
        *sections, last = new.split(".")
        table = settings
        for section in sections:
            if isinstance(table, dict):
                table = table.setdefault(section, {})
        if isinstance(table, dict):  # else a section that is no table, which nobody accepts
            table.setdefault(last, value)


def to_toml(config: object) -> str:
    """A config as TOML. Settings that are not given (None) are left out."""
    return "\n".join(_toml_lines(config, "")) + "\n"


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted name, in order."""
    flat: dict[str, Any] = {}
    for one in fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, one.name), f"{prefix}{one.name}"
        flat |= flatten(value, f"{name}.") if is_dataclass(value) else {name: value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names to nested tables."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, last = name.split(".")
        table = nested
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{name} is a setting of a section that is given a value itself.")
        table[last] = value
    return nested


def differing_keys(one: RunConfig, other: RunConfig) -> list[str]:
    """Dotted names of the settings in which two configs differ."""
    ours, theirs = flatten(one), flatten(other)
    return [name for name in ours if ours[name] != theirs[name]]


def nearest_name(name: str, known: Sequence[str]) -> str | None:
    """The known dotted name that was probably meant, or None.

    First the same name in another section, then one of the same section that is abbreviated (lr
    for learning_rate), then the most similar spelling.
    """
    section, _, last = name.rpartition(".")
    for candidate in known:
        if candidate.rpartition(".")[2] == last:
            return candidate
    for candidate in known:
        its_section, _, its_last = candidate.rpartition(".")
        if its_section == section and "".join(word[:1] for word in its_last.split("_")) == last:
            return candidate
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return close[0] if close else None


def _old(settings: Settings) -> dict[str, tuple[Any, str]]:
    """Old names among settings, each with the table and the key that it lies at."""
    found = {}
    for old in OLD_NAMES:
        name, _, value = old.partition(" = ")
        *sections, last = name.split(".")
        table: Any = settings
        for section in sections:
            table = table.get(section) if isinstance(table, Mapping) else None
        if isinstance(table, Mapping) and last in table and value in ("", repr(table[last])):
            found[old] = table, last
    return found


def _unknown(name: str, origin: str) -> str:
    settings = list(flatten(RunConfig()))
    sections = sorted({key.rpartition(".")[0] for key in settings if "." in key})
    nearest = nearest_name(name, settings + sections)
    hint = f" Did you mean {nearest}?" if nearest else ""
    return f"{origin}: there is no setting {name}.{hint}"


def _checked(value: Any, wanted: Any, where: str) -> Any:
    """The value as the wanted type; an int passes for a float, a list for a tuple."""
    problem = ConfigError(f"{where} must be {_type_name(wanted)}; got {value!r}.")
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is UnionType:  # a value or None
        if value is None and NoneType in arguments:
            return None
        return _checked(value, next(a for a in arguments if a is not NoneType), where)
    if origin is Literal:
        # By type too: to Python 8.0 is 8, and true is 1.
        if not any(value == one and type(value) is type(one) for one in arguments):
            hint = difflib.get_close_matches(str(value), list(map(str, arguments)), n=1)
            raise ConfigError(f"{problem}{f' Did you mean {hint[0]}?' if hint else ''}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise problem
        item_types = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(value) != len(item_types):
            raise problem
        return tuple(_checked(v, t, where) for v, t in zip(value, item_types, strict=True))
    if type(value) is int and not -(2**63) <= value < 2**63:  # nor does TOML know larger ones
        raise problem
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is str:
        return _checked_text(value, problem)
    # type, not isinstance: to Python true is an integer, and would pass for 1.
    if type(value) is not wanted:
        raise problem
    return value


def _type_name(wanted: Any) -> str:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        return " or ".join(repr(a) for a in arguments)
    if origin is UnionType:
        return " or ".join(_type_name(a) for a in arguments if a is not NoneType)
    if origin is tuple:
        many = arguments[-1] is Ellipsis
        return f"a list of {'' if many else f'{len(arguments)} '}{_type_name(arguments[0])} values"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}[
        wanted
    ]


def _toml_lines(config: object, prefix: str) -> list[str]:
    plain, tables = list[str](), list[str]()
    for one in fields(config):  # type: ignore[arg-type]
        value = getattr(config, one.name)
        if is_dataclass(value):
            inner = _toml_lines(value, f"{prefix}{one.name}.")
            header = [] if inner[:1] == [""] else ["", f"[{prefix}{one.name}]"]
            tables += [*header, *inner]
        elif value is not None:
            plain.append(f"{one.name} = {_toml_value(value)}")
    # Plain settings first: behind a table's header they would belong to that table.
    return [*plain, *tables]


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # inf, -inf or nan
    if isinstance(value, str) and not is_text(value):  # a path that is no UTF-8
        return f"{{ {_ESCAPED} = {_quoted(escaped(value))} }}"
    return _quoted(value)


def _quoted(value: Any) -> str:
    """JSON writes strings, numbers and booleans as TOML does, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _checked_text(value: Any, problem: ConfigError) -> str:
    r"""A string, or a path that is no UTF-8 as ``{ escaped = "\\xff" }``."""
    if isinstance(value, Mapping) and value.keys() == {_ESCAPED}:
        value = value[_ESCAPED]
        value = unescaped(value) if isinstance(value, str) else None
    if type(value) is not str or "\0" in value:
        raise problem
    return value
