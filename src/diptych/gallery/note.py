"""What a file of embeddings says of itself, and whether two are of the same set."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

FORMAT: Final = 2
"""Version of the files."""

KEY: Final = b"diptych"
"""Of the note in a Parquet file's metadata, which is written last."""


@dataclass(frozen=True)
class Note:
    """What is known of a shard.

    Attributes:
        settings: all that the vectors follow from, the same in every shard of a set.
        shard: what is this shard's own.
        made: from where, for people; nothing is compared.
    """

    settings: Mapping[str, Any]
    shard: Mapping[str, Any]
    made: Mapping[str, Any]

    def encode(self) -> bytes:
        """As JSON."""
        document = {"format": FORMAT, "settings": self.settings, "shard": self.shard}
        return json.dumps(document | {"made": self.made}, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Note":
        """Reads what ``encode`` wrote.

        Raises:
            ValueError: it is something else, or of another version.
        """
        document = json.loads(data)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"its note is not of format {FORMAT}")
        parts = [document.get(name) for name in ("settings", "shard", "made")]
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("its note is damaged")
        return cls(*parts)  # type: ignore[arg-type]


def differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs, in words: one for each entry, those inside of others by dotted names.

    >>> differences({"dim": 4, "views": {"side": 32}}, {"dim": 4, "views": {"side": 96}})
    ['views.side: 32 there, 96 now']
    """
    found = []
    for name in [*there, *(name for name in wanted if name not in there)]:
        one, other = there.get(name), wanted.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += [f"{name}.{inner}" for inner in differences(one, other)]
        elif one != other:
            found.append(f"{name}: {_short(one)} there, {_short(other)} now")
    return found


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:12] + "..."
