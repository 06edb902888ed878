"""Whether every pixel of a folder of images is what other decoders read.

Files of 8 bits are decoded in RGB and compared with Pillow: upright, on white where transparent.
Deeper ones, and those of many channels, are decoded as they are (raw, 16 bits) and compared with
imagecodecs, or for TIFF with tifffile. Printed are the numbers of files that are equal, that
differ, and that one side refuses, with the names of all that are not equal.

JPEG that libjpeg warns of is compared like any other; what ends early is refused by us and may be
shown half by Pillow.

    python benchmarks/foreign_files.py --folder DIR
    python benchmarks/foreign_files.py --quick         # a small folder, made here
"""

import io
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import imagecodecs
import numpy as np
import tifffile
from measuring import Figure, add_arguments, publish
from numpy.typing import NDArray
from PIL import Image, ImageOps

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.decode import EXTENSIONS, HOW_TO_READ, decode_bytes, read_bytes

SEEN = ImagesConfig(max_megapixels=1000)
STORED = ImagesConfig(color="raw", bits=16, max_megapixels=1000)
LISTED: Final = 100  # names of each kind at most
EQUAL, DIFFERENT, OURS, THEIRS, BOTH = (
    "equal",
    "different",
    "refused by diptych alone",
    "refused by the other alone",
    "refused by both",
)


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    """RGB of 8 bits, upright, on white."""
    with Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"Pillow's mode {image.mode} has no RGB")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))


def by_tifffile(data: bytes) -> NDArray[np.uint16]:
    """The channels of a TIFF's first page, widened to 16 bits."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        pixels = page.asarray()
        pixels = pixels.transpose(1, 2, 0) if page.axes.startswith("S") else pixels
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = np.iinfo(pixels.dtype).max - pixels
    return widened(pixels)


def by_imagecodecs(data: bytes) -> NDArray[np.uint16]:
    """The channels of a PNG or another format, widened to 16 bits."""
    is_png = data.startswith(b"\x89PNG")
    return widened((imagecodecs.png_decode if is_png else imagecodecs.imread)(data))


def widened(pixels: NDArray[np.generic]) -> NDArray[np.uint16]:
    """8 bits to 16; other numbers have no such form."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"numbers of type {pixels.dtype}")
    times = np.uint16(257 if pixels.dtype == np.uint8 else 1)
    return pixels.reshape(*pixels.shape[:2], -1).astype(np.uint16) * times


Decoder = Callable[[bytes], NDArray[np.generic]]


def rival_of(data: bytes) -> tuple[ImagesConfig, Decoder]:
    """In which form a file is compared, and with whose pixels."""
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            if page.samplesperpixel > 3 or page.dtype != np.uint8 or page.photometric == 0:
                return STORED, by_tifffile
    elif data.startswith(b"\x89PNG") and data[24] == 16:
        return STORED, by_imagecodecs
    return SEEN, by_pillow


def compare(data: bytes) -> tuple[str, str]:
    """What came of one file, and more of it in words."""
    try:
        config, rival = rival_of(data)
    except Exception:
        config, rival = SEEN, by_pillow
    ours, theirs, reasons = None, None, []
    try:
        ours = decode_bytes(data, config)
    except UnreadableImage as error:
        reasons.append(str(error))
    try:
        theirs = rival(data)
    except Exception as error:
        reasons.append(f"{rival.__name__}: {str(error).splitlines()[0] if str(error) else error!r}")
    if ours is None or theirs is None:
        kind = BOTH if ours is None and theirs is None else OURS if ours is None else THEIRS
        return kind, "; ".join(reasons)
    if ours.shape != theirs.shape:
        return DIFFERENT, f"{ours.shape} by diptych, {theirs.shape} {rival.__name__}"
    apart = np.abs(ours.astype(np.int64) - theirs.astype(np.int64))
    if not apart.any():
        return EQUAL, ""
    share = (apart > 0).mean()
    return DIFFERENT, f"{share:.1%} of the numbers, by up to {apart.max()} ({rival.__name__})"


def compare_folder(folder: Path) -> dict[str, list[str]]:
    """Each kind of outcome with the names of its files."""
    found: dict[str, list[str]] = {kind: [] for kind in (EQUAL, DIFFERENT, OURS, THEIRS, BOTH)}
    unread: Counter[str] = Counter()
    for place, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            extension = os.path.splitext(name)[1].lower()
            if extension in HOW_TO_READ:
                unread[extension] += 1
            if extension not in EXTENSIONS:
                continue
            path = os.path.join(place, name)
            shown = os.path.relpath(path, folder).encode(errors="replace").decode()
            try:
                kind, words = compare(read_bytes(path))
            except UnreadableImage as error:
                kind, words = BOTH, str(error)
            found[kind].append(f"{shown}: {words}" if words else shown)
    for extension, count in sorted(unread.items()):
        print(f"{count} of {extension}: {HOW_TO_READ[extension]}")
    return found


def make_files(folder: Path) -> None:
    """A few files of every kind that is read."""
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 65536, (48, 40, 4), dtype=np.uint16)
    image = Image.fromarray((deep >> 8).astype(np.uint8))
    kinds = {"png": "RGBA", "webp": "RGBA", "bmp": "RGB", "gif": "P", "ppm": "RGB", "jp2": "RGB"}
    kinds |= {"jpg": "RGB", "avif": "RGB", "tif": "L"}
    for extension, mode in kinds.items():
        image.convert(mode).save(folder / f"shallow.{extension}")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    data = (folder / "shallow.jpg").read_bytes()
    (folder / "stray.jpg").write_bytes(data[:-2] + b"\x5a" * 258 + data[-2:])
    for name, channels in (("rgb", 3), ("rgba", 4)):
        (folder / f"{name}16.png").write_bytes(imagecodecs.png_encode(deep[..., :channels].copy()))
    bands = rng.integers(0, 65536, (48, 40, 13), dtype=np.uint16)
    for compression in (None, "lzw", "zlib"):
        tifffile.imwrite(
            folder / f"bands {compression}.tif",
            bands,
            photometric="minisblack",
            planarconfig="contig",
            compression=compression,
            tile=(64, 64),
        )


def main() -> None:
    """Compares all files and prints what differs."""
    parser = add_arguments(__doc__)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="images, subfolders included")
    arguments = parser.parse_args()
    if arguments.folder is None and not arguments.quick:
        parser.error("give --folder DIR, or --quick")
    Image.MAX_IMAGE_PIXELS = None
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as aside:
        folder = arguments.folder or Path(aside)
        if arguments.folder is None:
            make_files(folder)
        found = compare_folder(folder)
    for kind in (DIFFERENT, OURS, THEIRS, BOTH):
        for line in found[kind][:LISTED]:
            print(f"{kind}: {line}")
        if len(found[kind]) > LISTED:
            print(f"{kind}: ... and {len(found[kind]) - LISTED} more")
    total = sum(len(names) for names in found.values())
    figures = [
        Figure("files", total, 1),
        Figure(EQUAL, len(found[EQUAL]), 0),
        Figure(DIFFERENT, len(found[DIFFERENT]), 0, "at most"),
        Figure(OURS, len(found[OURS]), 0, "at most"),
        Figure(THEIRS, len(found[THEIRS]), total, "at most"),
        Figure(BOTH, len(found[BOTH]), total, "at most"),
    ]
    publish(figures, "Foreign files", arguments.json)


if __name__ == "__main__":
    main()
