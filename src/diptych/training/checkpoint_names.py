"""What checkpoints and their files are called: ``step-000000123``, which says its age by itself."""

from typing import Final

TENSORS: Final = "tensors.safetensors"
SCALARS: Final = "state.json"
MANIFEST: Final = "manifest.json"
_PREFIX: Final = "step-"


def name_of(step: int) -> str:
    """The name of the checkpoint after so many steps.

    >>> name_of(123)
    'step-000000123'
    """
    return f"{_PREFIX}{step:09d}"


def step_of(name: str) -> int | None:
    """The steps done before a checkpoint of this name; None where it is no such name.

    >>> step_of("step-000000123"), step_of("step-"), step_of("notes")
    (123, None, None)
    """
    digits = name.removeprefix(_PREFIX)
    return int(digits) if name.startswith(_PREFIX) and digits.isdecimal() else None
