"""XML of unknown origin to a tree: no document type, hence no entities; bounded in size."""

from typing import Any, Final
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

MOST_BYTES: Final = 16 * 2**20
_DEEPEST: Final = 32


class RefusedXml(ValueError):
    """The text is no XML, or XML that asks for more than to be read."""


def parse_xml(data: bytes) -> Element:
    """Parses a small document.

    Entities are what makes XML dangerous (they can grow without bound, or name other files), and
    they can only be declared in a document type: a document that has one is refused.

    Raises:
        RefusedXml: with the reason in a few words.
    """
    if len(data) > MOST_BYTES:
        raise RefusedXml(f"{len(data):,} bytes of XML, more than {MOST_BYTES:,}")
    builder, depth = TreeBuilder(), 0
    parser = expat.ParserCreate()

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise RefusedXml(f"elements nested deeper than {_DEEPEST}")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    try:
        parser.Parse(data, True)
        return builder.close()
    except RefusedXml:
        raise
    except Exception as error:  # of an unknown encoding expat raises what its codec does
        raise RefusedXml(f"no XML: {error}") from error


def _refuse(*_: Any) -> None:
    raise RefusedXml("XML with a document type, which may define entities")
