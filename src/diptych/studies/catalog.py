"""All studies by name."""

from collections.abc import Mapping
from typing import Final

from diptych.errors import ConfigError
from diptych.studies.dictionary_studies import MECHANISMS, MOMENTUM, SHUFFLE
from diptych.studies.loss_studies import BATCH, LOSS, TEMPERATURE
from diptych.studies.network_studies import HEAD, INVARIANCE, SIZE
from diptych.studies.study import Study
from diptych.studies.view_studies import COMPOSITION, STRENGTH

STUDIES: Final[Mapping[str, Study]] = {
    study.name: study
    for study in (
        MECHANISMS,
        MOMENTUM,
        SHUFFLE,
        COMPOSITION,
        STRENGTH,
        HEAD,
        INVARIANCE,
        LOSS,
        TEMPERATURE,
        BATCH,
        SIZE,
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
