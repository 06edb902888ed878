"""All studies by name."""

from collections.abc import Mapping
from typing import Final

from diptych.errors import ConfigError
from diptych.studies.questions import (
    batch,
    composition,
    head,
    invariance,
    loss,
    mechanisms,
    momentum,
    shuffled_keys,
    size,
    strength,
    temperature,
)
from diptych.studies.study import Study

STUDIES: Final[Mapping[str, Study]] = {
    one.STUDY.name: one.STUDY
    for one in (
        mechanisms,
        momentum,
        shuffled_keys,
        composition,
        strength,
        head,
        invariance,
        loss,
        temperature,
        batch,
        size,
    )
}


def find_study(name: str) -> Study:
    """The study of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in STUDIES:
        raise ConfigError(f"there is no study {name!r}; wanted one of {', '.join(STUDIES)}.")
    return STUDIES[name]
