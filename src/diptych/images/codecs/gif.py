"""How many pictures a GIF has."""


def gif_pages(data: bytes) -> int:
    """Pictures in a GIF, counted from block to block."""
    pages, at = 0, 13 + _palette_bytes(data[10])
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x2C:
            pages += 1
            at += 11 + _palette_bytes(data[at + 9])
        else:
            at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    return pages


def _palette_bytes(flags: int) -> int:
    return 3 << (flags % 8 + 1) if flags & 0x80 else 0
