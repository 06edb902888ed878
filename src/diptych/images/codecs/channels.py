"""Decoded pixels, what their channels mean, the form that a run asks for; and what Pillow opens.

Every format is read to one type, ``Decoded``, in the depth that the file stores; one function,
``in_form``, makes the channels and the depth of a run from it. So 8 bits and 16 go the same way.
"""

import io
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage

Pixels = NDArray[np.uint8 | np.uint16]
"""Decoded pixels, mostly (height, width, channels); the depth is that of the type."""

_COLORS: Final = {"gray": 1, "rgb": 3, "cmyk": 4}
_LUMA: Final = (0.299, 0.587, 0.114)
UPRIGHT: Final = 1


@dataclass(frozen=True)
class Decoded:
    """What a file holds, as it stores it.

    Attributes:
        pixels: (height, width, channels), uint8 or uint16: first the colour, then the rest.
        color: what the first 1, 3 or 4 channels are; of "cmyk" a high number is much ink.
        white: the highest number that the file can store: 255, 65535, or of other depths.
        alpha: which channel says how opaque a pixel is; None where the file calls none so. What is
            neither colour nor alpha means something else, such as infrared.
        premultiplied: the colour was multiplied by alpha before it was stored.
        inverted: the colour's numbers run from white to black (of "cmyk", from ink to paper).
        orientation: 1 .. 8, as EXIF counts them: how the rows are to be turned.
    """

    pixels: Pixels
    color: Literal["gray", "rgb", "cmyk"]
    white: int = 255
    alpha: int | None = None
    premultiplied: bool = False
    inverted: bool = False
    orientation: int = UPRIGHT

    @property
    def others(self) -> int:
        """Number of channels that are neither colour nor alpha."""
        return self.pixels.shape[2] - _COLORS[self.color] - (self.alpha is not None)


def pixel_type(config: ImagesConfig) -> type[np.uint8] | type[np.uint16]:
    """The type of the numbers in memory."""
    return np.uint8 if config.bits == 8 else np.uint16


def in_form(decoded: Decoded, config: ImagesConfig) -> Pixels:
    """Pixels as a run asks for them: its channels, its depth, upright.

    Colours are laid on white by their alpha. Other channels are dropped beside RGB or CMYK; beside
    gray they make the file a stack of bands, of which none is the picture. "raw" keeps all channels
    as they are stored, but never inverted.

    Raises:
        UnreadableImage: the channels are neither gray nor RGB, or not those of the set.
    """
    pixels = _never_inverted(decoded)
    if config.color != "raw":
        pixels = _in_color(decoded, pixels, config.channels)
    elif config.raw_channels not in (None, pixels.shape[2]):
        raise UnreadableImage(other_channels(pixels.shape[2], config))
    pixels = in_depth(pixels, config, decoded.white)
    return np.ascontiguousarray(_turned_upright(pixels, decoded.orientation))


def other_channels(count: int, config: ImagesConfig) -> str:
    """Why an image of that many channels cannot be used in a set of others."""
    return f"has {count} channels; the set has {config.raw_channels} (images.raw_channels)"


def in_depth(pixels: Pixels, config: ImagesConfig, white: int | None = None) -> Pixels:
    """Stretches 0 .. white to the depth of the run, rounded; the ends of the range meet.

    Args:
        pixels: of any shape.
        config: gives the depth.
        white: the highest number of ``pixels``; that of their type when not given.
    """
    wanted, highest = pixel_type(config), 2**config.bits - 1
    white = white or 2 ** (8 * pixels.dtype.itemsize) - 1
    if highest == white:
        return pixels.astype(wanted, copy=False)
    if highest % white == 0:
        widened: Pixels = pixels.astype(wanted) * np.array(highest // white, dtype=wanted)
        return widened
    # At most 65535 * 65535 + 32767, which 32 bits hold.
    stretched = (pixels.astype(np.uint32) * np.uint32(highest) + np.uint32(white // 2)) // white
    # A damaged file may hold numbers above its own white.
    return np.minimum(stretched, highest).astype(wanted)


def _never_inverted(decoded: Decoded) -> Pixels:
    if not decoded.inverted:
        return decoded.pixels
    # A copy: arrays from Pillow may be read-only.
    pixels, colors = decoded.pixels.copy(), _COLORS[decoded.color]
    pixels[..., :colors] = decoded.white - pixels[..., :colors]
    return pixels


def _in_color(decoded: Decoded, pixels: Pixels, channels: int) -> Pixels:
    """Gray or RGB, on white where transparent; ``pixels`` are those of the file, not inverted."""
    if decoded.color == "gray" and decoded.others:
        raise UnreadableImage(
            f"{pixels.shape[2]} channels are neither gray nor RGB; images.color = 'raw' keeps them"
        )
    color = pixels[..., : _COLORS[decoded.color]]
    if decoded.color == "cmyk":
        color = _ink_to_light(color, decoded.white)
    if decoded.alpha is not None:
        alpha = pixels[..., decoded.alpha, None]
        color = _on_white(color, alpha, decoded.white, decoded.premultiplied)
    if color.shape[2] == channels:
        return color
    return np.repeat(color, 3, axis=2) if channels == 3 else _luma(color)


def _ink_to_light(inks: Pixels, white: int) -> Pixels:
    """CMYK to RGB as paper shows it without a profile: (1 - ink) (1 - black)."""
    light = (white - inks.astype(np.uint32)).astype(np.uint32)
    mixed = (light[..., :3] * light[..., 3:] + np.uint32(white // 2)) // np.uint32(white)
    return mixed.astype(inks.dtype)


def _on_white(color: Pixels, alpha: Pixels, white: int, premultiplied: bool) -> Pixels:
    if (alpha == white).all():
        return color
    # Both shares add up to white, so the sum is at most white * white: of 8 bits, 16 hold it.
    wide = np.dtype(np.uint16 if white == 255 else np.uint32)
    clear: NDArray[Any] = np.array(white, wide) - alpha.astype(wide)
    own: NDArray[Any] = color.astype(wide)
    if premultiplied:  # damaged files have more colour than alpha lets through
        return np.minimum(own + clear, np.array(white, wide)).astype(color.dtype)
    own *= alpha.astype(wide)
    own += clear * np.array(white, wide) + np.array(white // 2, wide)
    bits = white.bit_length()
    if bits not in (8, 16) or white != 2**bits - 1:
        return (own // np.array(white, wide)).astype(color.dtype)
    # Division by 2^n - 1 in shifts, which take a third of the time; exact for so small numbers.
    whole: NDArray[Any] = own >> np.array(bits, wide)
    whole += own
    whole += np.array(1, wide)
    whole >>= np.array(bits, wide)
    return whole.astype(color.dtype)


def _luma(color: Pixels) -> Pixels:
    """ITU-R 601-2; of 8 bits with the very weights of Pillow, which are 16 bits long."""
    # `shift // 4` is a width in bytes: sums of 32 bits for weights of 16, or of 64 for 32.
    shift = 16 if color.dtype == np.uint8 else 32
    wide = np.dtype(f"u{shift // 4}")
    weights = np.array([round(weight * 2**shift) for weight in _LUMA], dtype=wide)
    summed = np.full(color.shape[:2], 2 ** (shift - 1), dtype=wide)
    for channel in range(3):
        summed += color[..., channel].astype(wide) * weights[channel]
    return (summed >> np.array(shift, dtype=wide)).astype(color.dtype)[..., None]


def _turned_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undoes an EXIF orientation, 2 .. 8: bits for mirrored, turned and transposed."""
    # Only views; in_form copies once at the end. The transpose must come first.
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def check_size(height: int, width: int, config: ImagesConfig) -> None:
    """Refuses a picture with more pixels than may be."""
    # Asked of the header before anything is decoded: a few bytes may claim gigabytes.
    megapixels = width * height / 1e6
    if megapixels > config.max_megapixels:
        raise UnreadableImage(
            f"{width} x {height} is {megapixels:.5g} megapixels, more than "
            f"images.max_megapixels = {config.max_megapixels:g}"
        )
    if height < 1 or width < 1:
        raise UnreadableImage(f"damaged: a picture of {width} x {height} pixels")


Plugin = Callable[[io.BytesIO], ImageFile.ImageFile]

_WRITTEN_OUT: Final[Mapping[str, str]] = {
    "1": "L",
    "P": "RGB",
    "PA": "RGBA",
    "RGBX": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
    "LAB": "RGB",
}
"""Modes without one number for each channel, or of other colours, and what they become."""

_DEEPEST: Final = 65535


def decode_opened(
    plugin: Plugin, data: bytes, config: ImagesConfig, turned: int | None = None
) -> Decoded:
    """Decodes a file of up to 8 bits, or gray of 16.

    Args:
        plugin: the class of Pillow that reads the format.
        data: the bytes of the file.
        config: gives the largest number of pixels.
        turned: how the file is to be turned; as its EXIF or XMP data says when not given.
    """
    # Not Image.open, whose limit of pixels is a variable of the whole process.
    with plugin(io.BytesIO(data)) as image:
        check_size(image.height, image.width, config)
        image.load()
        if turned is None:
            turned = orientation(_bytes(image.info.get("exif")), _bytes(image.info.get("xmp")))
        return meaning(image, turned)


def meaning(image: Image.Image, turned: int) -> Decoded:
    """The pixels of a loaded image, with what its mode says of them."""
    if image.mode.startswith("I"):  # 16 bits in "I;16" and its kin, or widened to 32 in "I"
        deep = np.asarray(image, dtype=np.int64)
        if deep.min() < 0 or deep.max() > _DEEPEST:
            raise UnreadableImage("32-bit integers: convert it to 8 or 16 bits")
        return Decoded(deep.astype(np.uint16)[..., None], "gray", _DEEPEST, orientation=turned)
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels: convert it to 8 or 16 bits")
    if "transparency" in image.info and image.mode in ("1", "L", "RGB", "P"):
        image = image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    elif image.mode == "P" and image.has_transparency_data:  # alpha within the palette
        image = image.convert("RGBA")
    elif image.mode in _WRITTEN_OUT:
        image = image.convert(_WRITTEN_OUT[image.mode])
    pixels = np.asarray(image)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if image.mode == "CMYK":
        return Decoded(pixels, "cmyk", orientation=turned)
    return Decoded(
        pixels,
        "gray" if pixels.shape[2] <= 2 else "rgb",
        alpha=pixels.shape[2] - 1 if pixels.shape[2] in (2, 4) else None,
        premultiplied=image.mode in ("La", "RGBa"),
        orientation=turned,
    )


def _bytes(found: object) -> bytes:
    return found if isinstance(found, bytes) else b""


TAG: Final = 0x0112
_SHORT, _LONG = 3, 4
_XMP: Final = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


def orientation(exif: bytes = b"", xmp: bytes = b"") -> int:
    """1 .. 8; of EXIF where it names one, else of XMP, else 1 (upright)."""
    named = _of_exif(exif)
    if named is not None:
        return named
    found = _XMP.search(xmp)
    return int(found[1]) if found else UPRIGHT


def _of_exif(exif: bytes) -> int | None:
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, entry)
            if tag == TAG and kind in (_SHORT, _LONG):
                letter = "H" if kind == _SHORT else "I"
                (value,) = struct.unpack_from(order + letter, exif, entry + 8)
                return value if 1 <= value <= 8 else UPRIGHT
    except struct.error:  # cut off
        return None
    return None
