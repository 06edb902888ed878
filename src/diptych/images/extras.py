"""Packages that only some sources of images need, imported when those are used."""

from importlib import import_module
from typing import Any

from diptych.errors import ImagesError


def import_extra(module: str, extra: str, purpose: str) -> Any:
    """A module of an optional package.

    Args:
        module: its dotted name.
        extra: the extra of diptych that brings it.
        purpose: what needs it, as the beginning of the error's sentence.

    Raises:
        ImagesError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImagesError(
            f"{purpose} need the package {module.partition('.')[0]}, which cannot be imported "
            f"({error}). Install it by: pip install 'diptych[{extra}]'"
        ) from error
