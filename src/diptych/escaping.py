r"""Names that are not UTF-8, written where only text may stand.

A file system may hold any bytes. Python keeps those that are no UTF-8 as lone surrogates
(``surrogateescape``), which no text file, page, terminal or column of texts takes. Everything
that leaves the program as text is therefore written by one of two functions: ``readable`` for
people, and ``escaped`` where a program may read the name again. Both write such a byte as ``\xff``.
``quoted`` is for a command that a sentence proposes.
"""

import codecs
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

HANDLER: Final = "diptych.readable"
"""Name of the error handler by which `str.encode` writes as ``readable`` does."""

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
# A byte below 0x80 is always UTF-8 and never written out; 5c, the backslash, marks a name that
# looked escaped from the beginning.
_LOOKS_ESCAPED: Final = re.compile(r"\\(?=x(?:5c|[89a-f][0-9a-f]))")
_ESCAPED: Final = re.compile(r"\\x(5c|[89a-f][0-9a-f])")


def readable(text: str) -> str:
    r"""A name with what is no UTF-8 or cannot be seen written out; other text stays as it is.

    A line break or what a terminal obeys may stand in the name of a file.

    >>> readable("K\udcf6ln.png"), readable("Köln.png"), readable("a\x1b[2J\n")
    ('K\\xf6ln.png', 'Köln.png', 'a\\x1b[2J\\n')
    """
    # First the bytes: `repr` would write \udcf6 where the byte is \xf6.
    whole = as_unicode(text)
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in whole)


def readable_lines(text: str) -> str:
    """Sentences in the same way; their line breaks stay."""
    return "\n".join(map(readable, text.split("\n")))


def escaped(text: str) -> str:
    r"""The same, so that ``unescaped`` gives the text back: a name that looks escaped is, too.

    >>> escaped("K\udcf6ln.png"), escaped(r"K\xf6ln.png")
    ('K\\xf6ln.png', 'K\\x5cxf6ln.png')
    """
    # In this order: the other way round, what has just been written out would be escaped again.
    return as_unicode(_LOOKS_ESCAPED.sub(r"\\x5c", text))


def quoted(path: object) -> str:
    """A path as one word of a command that a reader may copy into a shell.

    >>> quoted("runs/photos"), quoted("my runs/photos")
    ('runs/photos', "'my runs/photos'")
    """
    return shlex.quote(str(path))


def unescaped(text: str) -> str:
    r"""What ``escaped`` was given.

    >>> unescaped(escaped("a\udcff")) == "a\udcff", unescaped(escaped(r"\xff")) == r"\xff"
    (True, True)
    """

    def back(found: re.Match[str]) -> str:
        code = int(found[1], 16)
        return chr(code) if code < 0x80 else chr(0xDC00 + code)

    return _ESCAPED.sub(back, text)


def is_text(text: str) -> bool:
    """Whether it can stand in a file of UTF-8 as it is."""
    return _SURROGATE.search(text) is None


@contextmanager
def openable(path: Path) -> Iterator[str]:
    """A name by which libraries that take text only can open a file, while the context lasts."""
    if is_text(str(path)):
        yield str(path)
        return
    # Under /dev/fd an open file has a second name, of plain letters.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield f"/dev/fd/{descriptor}"
    finally:
        os.close(descriptor)


def as_unicode(text: str) -> str:
    """The text with what is no UTF-8 written out, and nothing else: whatever a stream is given."""
    return _SURROGATE.sub(lambda found: _written_out(found[0]), text)


def _written_out(character: str) -> str:
    r"""A surrogate as the byte that it stands for, another character by its number.

    >>> _written_out("\udcff"), _written_out("ö"), _written_out("\ud800")
    ('\\xff', '\\xf6', '\\ud800')
    """
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("ascii", "backslashreplace").decode()


def _handle(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    some = error.object[error.start : error.end]
    return "".join(map(_written_out, some)), error.end


codecs.register_error(HANDLER, _handle)
