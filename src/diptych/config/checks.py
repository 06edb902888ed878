"""What every section is checked with: its values by their dotted names."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from diptych.errors import ConfigError


def require(holds: bool, wanted: str, came: object) -> None:
    """Refuses what does not hold.

    Raises:
        ConfigError: says what was wanted, and what came.
    """
    if not holds:
        raise ConfigError(f"{wanted}; got {came!r}.")


@dataclass(frozen=True)
class Checks:
    """The values of one section. What is not given (None) passes every check.

    Attributes:
        section: its dotted name, for errors.
        config: the section.
    """

    section: str
    config: object

    def must(self, name: str, law: Callable[[Any], bool], wanted: str) -> None:
        """Refuses a value that a law does not hold of; ``wanted`` follows after "must"."""
        value = getattr(self.config, name)
        require(value is None or law(value), f"{self.section}.{name} must {wanted}", value)

    def finite(self, *, but: tuple[str, ...] = ()) -> None:
        """Refuses what is no number, and infinity except where it means something."""

        def is_finite(value: object) -> bool:
            return not isinstance(value, float) or math.isfinite(value)

        for one in fields(self.config):  # type: ignore[arg-type]
            value = getattr(self.config, one.name)
            if not (one.name in but and value == math.inf):
                every = all(map(is_finite, value if isinstance(value, tuple) else (value,)))
                require(every, f"{self.section}.{one.name} must be a finite number", value)

    def positive(self, *names: str) -> None:
        """Refuses what is not above 0."""
        for name in names:
            self.must(name, lambda value: value > 0, "be positive")

    def not_negative(self, *names: str) -> None:
        """Refuses what is below 0."""
        for name in names:
            self.must(name, lambda value: value >= 0, "not be negative")

    def at_least(self, lowest: float, *names: str) -> None:
        """Refuses what is below a number."""
        for name in names:
            self.must(name, lambda value: value >= lowest, f"be {lowest} or more")

    def between(self, low: float, high: float, *names: str) -> None:
        """Refuses what is outside of a range."""
        for name in names:
            wanted = f"lie between {low:,} and {high:,}"
            self.must(name, lambda value: low <= value <= high, wanted)
