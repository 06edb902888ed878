"""DICOM pictures, as medical devices write them: pydicom reads the header, imagecodecs the pixels.

Gray values become a picture by PS3.3 of the standard: they are rescaled (C.11.1), and the window
that the file names is stretched over black to white (C.11.2). A file that names none is stretched
from its lowest to its highest value; 12 bits in 16 would come out black otherwise.
"""

import io
import struct
import warnings
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.channels import Decoded, Pixels, check_size
from diptych.images.codecs.formats import jpeg2000_size
from diptych.images.codecs.jpeg import decode_any_jpeg, jpeg_segments

if TYPE_CHECKING:
    from pydicom import Dataset

_GRAY: Final = ("MONOCHROME1", "MONOCHROME2")
_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
_RLE: Final = "1.2.840.10008.1.2.5"
_JPEG2000: Final = "1.2.840.10008.1.2.4.9"
_JPEG_LS: Final = "1.2.840.10008.1.2.4.8"
_BASELINE: Final = "1.2.840.10008.1.2.4.50"
_JPEG: Final = ("1.2.840.10008.1.2.4.5", "1.2.840.10008.1.2.4.7")
_COLOR_MARKS: Final = (b"JFIF\0", b"\xff\xee\0\x0eAdobe")
"""By which a JPEG says itself how its colours are stored."""
_WHITE: Final = 65535


def decode_dicom(data: bytes, config: ImagesConfig) -> Decoded:
    """Decodes the first frame of a DICOM file.

    Raises:
        UnreadableImage: pydicom is missing, or the file has no picture, is too large, damaged, or
            of a kind that is not read.
    """
    header = _header(data)
    if "PixelData" not in header:
        raise UnreadableImage("a DICOM file without a picture")
    check_size(header.Rows, header.Columns, config)
    stored = _stored(header, config)
    photometric = header.PhotometricInterpretation
    if photometric in _GRAY:
        values = _rescaled(_numbers(stored, header), header)
        gray = np.rint(_windowed(values, header) * _WHITE).astype(np.uint16)
        return Decoded(gray[..., None], "gray", _WHITE, inverted=photometric == "MONOCHROME1")
    if photometric == "PALETTE COLOR":
        painted = _pydicom().pixels.apply_color_lut(stored[..., 0], header)[..., :3]
        return Decoded(painted, "rgb", 2 ** (8 * painted.dtype.itemsize) - 1)
    return Decoded(stored, "rgb", 2**header.BitsStored - 1)


def dicom_pages(data: bytes) -> int:
    """Frames in a DICOM file."""
    return int(_header(data, pixels=False).get("NumberOfFrames") or 1)


def dicom_frame(data: bytes, frame: int, config: ImagesConfig) -> bytes:
    """A DICOM file of one frame of another."""
    del config  # the file that is made is checked when it is decoded
    header, pydicom = _header(data), _pydicom()
    if header.file_meta.TransferSyntaxUID.is_compressed:
        whole = _compressed_frame(header, frame)
        header.PixelData = pydicom.encaps.encapsulate([whole])
    else:
        size = _frame_bytes(header)
        header.PixelData = header.PixelData[frame * size : (frame + 1) * size]
    header.NumberOfFrames = 1
    written = io.BytesIO()
    header.save_as(written)
    return written.getvalue()


def _pydicom() -> ModuleType:
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.pixels
    except ImportError as error:
        raise UnreadableImage("DICOM needs pip install 'diptych[dicom]'") from error
    # Of what is wrong with a file only that counts which spoils its picture.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    warnings.filterwarnings("ignore", module="pydicom")
    return pydicom


def _header(data: bytes, *, pixels: bool = True) -> "Dataset":
    pydicom = _pydicom()
    if _DEFLATED in data:  # pydicom unpacks it whole, whatever its size
        raise UnreadableImage("a deflated DICOM file: save it uncompressed, or as JPEG 2000")
    return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=not pixels)


def _stored(header: "Dataset", config: ImagesConfig) -> Pixels:
    """(height, width, channels): the numbers of the first frame as they are stored; colours RGB."""
    if header.BitsAllocated not in (8, 16):
        raise UnreadableImage(f"{header.BitsAllocated} bits for each pixel: wanted 8 or 16")
    syntax = header.file_meta.TransferSyntaxUID
    shape = (header.Rows, header.Columns, header.SamplesPerPixel)
    if syntax.is_compressed:
        found, is_rgb = _unpacked(_compressed_frame(header, 0), syntax, header, config)
        found = found.reshape(shape)
    else:
        found, is_rgb = _plain(header, shape, syntax.is_little_endian), False
    return found if is_rgb or shape[2] != 3 else _as_rgb(found, header)


def _frame_bytes(header: "Dataset") -> int:
    """Bytes of an uncompressed frame."""
    samples = header.Rows * header.Columns * header.SamplesPerPixel
    if header.PhotometricInterpretation == "YBR_FULL_422":
        samples = samples * 2 // 3
    return samples * header.BitsAllocated // 8


def _plain(header: "Dataset", shape: tuple[int, int, int], little: bool) -> Pixels:
    packed = header.PixelData
    if not little and header.BitsAllocated == 8 and header["PixelData"].VR == "OW":
        packed = np.frombuffer(packed, np.uint16).byteswap().tobytes()
    packed = packed[: _frame_bytes(header)]
    if len(packed) < _frame_bytes(header):
        raise UnreadableImage("damaged: it has fewer pixels than its header says")
    kind = np.dtype(f"{'<' if little else '>'}u{header.BitsAllocated // 8}")
    numbers = np.frombuffer(packed, kind).astype(kind.newbyteorder("="))
    if header.PhotometricInterpretation == "YBR_FULL_422":
        # Of two pixels both luminances, then the colour that they share.
        pairs = numbers.reshape(-1, 4)
        numbers = pairs[:, [0, 2, 3, 1, 2, 3]].reshape(-1)
    if shape[2] > 1 and header.get("PlanarConfiguration", 0) == 1:
        return numbers.reshape(shape[2], *shape[:2]).transpose(1, 2, 0)
    return numbers.reshape(shape)


def _compressed_frame(header: "Dataset", frame: int) -> bytes:
    frames = int(header.get("NumberOfFrames") or 1)
    return _pydicom().encaps.get_frame(header.PixelData, frame, number_of_frames=frames)


def _unpacked(
    frame: bytes, syntax: str, header: "Dataset", config: ImagesConfig
) -> tuple[Pixels, bool]:
    """The numbers of a compressed frame, and whether they are RGB whatever the header says."""
    import imagecodecs

    if syntax == _RLE:
        kind = np.dtype(f"<u{header.BitsAllocated // 8}")
        planes = np.frombuffer(imagecodecs.dicomrle_decode(frame, kind), kind)
        shape = (header.SamplesPerPixel, header.Rows, header.Columns)
        return planes.reshape(shape).transpose(1, 2, 0), False
    if syntax.startswith(_JPEG2000):
        check_size(*jpeg2000_size(frame), config)
        return imagecodecs.jpeg2k_decode(frame), True
    if not syntax.startswith((*_JPEG, _JPEG_LS)):
        raise UnreadableImage(f"a DICOM file compressed as {syntax}: save it uncompressed")
    if syntax.startswith(_JPEG_LS):
        check_size(*_jpeg_ls_size(frame), config)
        return imagecodecs.jpegls_decode(frame), False
    parts = jpeg_segments(frame)
    check_size(parts.height, parts.width, config)
    unmarked = not any(mark in frame[:512] for mark in _COLOR_MARKS)
    if unmarked and parts.bits == 8 and header.SamplesPerPixel == 3:
        space = "RGB" if header.PhotometricInterpretation == "RGB" else "YCBCR"
        return imagecodecs.jpeg8_decode(frame, colorspace=space, outcolorspace="RGB"), True
    if syntax == _BASELINE:
        in_full = replace(config, color="raw", raw_channels=None, decoded_side=None)
        return decode_any_jpeg(frame, in_full).pixels, True
    return imagecodecs.jpeg_decode(frame), header.SamplesPerPixel == 3


def _jpeg_ls_size(frame: bytes) -> tuple[int, int]:
    """Height and width, by the header that is reached from segment to segment, as it is decoded.

    Comments and other segments before it may hold what looks like one.
    """
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] == 0xF7:
            height, width = struct.unpack_from(">HH", frame, at + 5)
            return height, width
        filled = frame[at + 1] == 0xFF  # any number of these may stand before a marker
        at += 1 if filled else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    raise UnreadableImage("damaged: a JPEG-LS without a picture")


def _as_rgb(stored: Pixels, header: "Dataset") -> Pixels:
    photometric = header.PhotometricInterpretation
    if photometric == "RGB":
        return stored
    if photometric not in ("YBR_FULL", "YBR_FULL_422") or stored.dtype != np.uint8:
        raise UnreadableImage(f"a DICOM file with colours {photometric}: save it as RGB")
    size = (stored.shape[1], stored.shape[0])
    image = Image.frombytes("YCbCr", size, np.ascontiguousarray(stored).tobytes())
    return np.asarray(image.convert("RGB"))


def _numbers(stored: Pixels, header: "Dataset") -> NDArray[np.int32]:
    """(height, width): the gray values; the bits above them may hold something else."""
    if stored.dtype.kind == "i":
        return stored[..., 0].astype(np.int32)
    bits = header.BitsStored
    shifted = stored[..., 0].astype(np.int32) >> max(0, header.HighBit + 1 - bits)
    numbers = shifted & (2**bits - 1)
    if header.PixelRepresentation == 1:
        numbers = np.where(numbers >= 2 ** (bits - 1), numbers - 2**bits, numbers)
    return numbers.astype(np.int32)


def _rescaled(numbers: NDArray[np.int32], header: "Dataset") -> NDArray[np.float64]:
    if header.get("ModalityLUTSequence"):
        return _pydicom().pixels.apply_modality_lut(numbers, header).astype(np.float64)
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    scaled = numbers * np.float64(1 if slope is None else slope)
    return scaled + np.float64(intercept or 0)


def _windowed(values: NDArray[np.float64], header: "Dataset") -> NDArray[np.float64]:
    """0 .. 1 by the first window of the file, else by its table, else from lowest to highest."""
    width, center = _first(header.get("WindowWidth")), _first(header.get("WindowCenter"))
    kind = str(header.get("VOILUTFunction") or "LINEAR").upper()
    if width is None or center is None or width < 1:
        if header.get("VOILUTSequence"):
            table = header.VOILUTSequence[0].LUTDescriptor
            found = _pydicom().pixels.apply_voi(np.rint(values).astype(np.int64), header)
            return np.clip(found / (2.0 ** table[2] - 1), 0, 1)
        low, high = values.min(), values.max()
        return (values - low) / max(float(high - low), 1e-300)
    if kind == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if kind == "LINEAR":  # C.11.2.1.2.1: the middle of a pixel's step, and one step less
        center, width = center - 0.5, max(width - 1, 1e-9)
    return np.clip((values - center) / width + 0.5, 0, 1)


def _first(element: object) -> float | None:
    """The first of one or several numbers of a header."""
    if element is None or element == "":
        return None
    try:
        return float(element)  # type: ignore[arg-type]
    except TypeError:
        return float(next(iter(element)))  # type: ignore[call-overload]
