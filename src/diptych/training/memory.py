"""Keeps the C library from giving freed memory back to the system after every step."""

import ctypes
import sys
from typing import Final

_TRIM_THRESHOLD: Final = -1  # numbers from malloc.h
_MMAP_MAX: Final = -4
_NEVER: Final = 2**31 - 1


def keep_freed_memory() -> None:
    """Lets glibc re-use the large blocks that each step frees and the next one asks for again.

    By default such blocks are mapped from the system and returned, and every page is cleared
    anew: 10 to 20% of a step of a small network. Does nothing without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, _NEVER)
