"""DICOM: pixels against the formulas of the standard, and against what pydicom itself reads."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.decode import decode_bytes, page_of, pages

pydicom = pytest.importorskip("pydicom", reason="pydicom reads DICOM")

DEEP = ImagesConfig(color="gray", bits=16)
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # 12 bits in 16


def dicom(pixels: NDArray[Any], **tags: Any) -> bytes:
    """An uncompressed file of one frame, gray unless the tags say otherwise."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    data.BitsAllocated = 8 * pixels.dtype.itemsize
    data.BitsStored, data.HighBit = data.BitsAllocated, data.BitsAllocated - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def linear(value: float, center: float, width: float) -> float:
    """C.11.2.1.2.1 of PS3.3, in the standard's own words, of 0 .. 1."""
    if value <= center - 0.5 - (width - 1) / 2:
        return 0.0
    if value > center - 0.5 + (width - 1) / 2:
        return 1.0
    return (value - (center - 0.5)) / (width - 1) + 0.5


def test_the_window_is_the_one_of_the_standard() -> None:
    data = dicom(
        RAMP, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=[40, 9], WindowWidth=[400, 9]
    )
    wanted = [round(65535 * linear(2 * value - 1024, 40, 400)) for value in RAMP.ravel().tolist()]
    found = decode_bytes(data, DEEP).ravel().astype(int)
    assert np.abs(found - np.array(wanted)).max() <= 1
    assert found.min() == 0
    assert found.max() == 65535


@pytest.mark.parametrize("kind", ["LINEAR_EXACT", "SIGMOID"])
def test_the_other_functions_of_a_window(kind: str) -> None:
    data = dicom(RAMP, WindowCenter=2000, WindowWidth=1000, VOILUTFunction=kind)
    scaled = (RAMP.astype(float) - 2000) / 1000
    wanted = 1 / (1 + np.exp(-4 * scaled)) if kind == "SIGMOID" else np.clip(scaled + 0.5, 0, 1)
    assert np.abs(decode_bytes(data, DEEP)[..., 0] / 65535 - wanted).max() < 1e-4


def test_twelve_bits_in_sixteen_are_not_black() -> None:
    assert np.abs(decode_bytes(dicom(RAMP), DEEP)[..., 0] / 65535 - RAMP / 4095).max() < 1e-4
    assert decode_bytes(dicom(RAMP), ImagesConfig()).mean() == pytest.approx(127.5, abs=1)
    flat = np.full((8, 8), 700, np.uint16)
    assert decode_bytes(dicom(flat), DEEP).max() == 0


def test_monochrome1_is_turned() -> None:
    turned = dicom(RAMP, PhotometricInterpretation="MONOCHROME1")
    for color in ("gray", "rgb", "raw"):
        config = ImagesConfig(color=color, bits=16)
        both = decode_bytes(turned, config).astype(int) + decode_bytes(dicom(RAMP), config)
        assert (both == 65535).all()


def test_signed_numbers_and_bits_above_them() -> None:
    signed = RAMP.astype(np.int16) - 2048
    wanted = decode_bytes(dicom(RAMP), DEEP)
    assert np.array_equal(decode_bytes(dicom(signed), DEEP), wanted)
    # Of 12 bits: the four above hold something else, as overlays did.
    packed = (signed.astype(np.uint16) & 0x0FFF) | 0xA000
    data = dicom(packed, BitsStored=12, HighBit=11, PixelRepresentation=1)
    assert np.array_equal(decode_bytes(data, DEEP), wanted)


def test_a_table_of_values_in_the_place_of_a_window() -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 12], (4095 - np.arange(4096)).tolist()
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    found = decode_bytes(dicom(RAMP, VOILUTSequence=[table]), DEEP)
    assert np.abs(found[..., 0] / 65535 - (4095 - RAMP) / 4095).max() < 1e-4


def test_colours_by_pixel_and_by_plane() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (6, 10, 3), dtype=np.uint8)
    assert np.array_equal(decode_bytes(dicom(rgb), ImagesConfig()), rgb)
    planes = dicom(rgb, PlanarConfiguration=1, PixelData=rgb.transpose(2, 0, 1).tobytes())
    assert np.array_equal(decode_bytes(planes, ImagesConfig()), rgb)


def test_each_frame_is_a_file_of_its_own() -> None:
    frames = np.stack([RAMP[:8], RAMP[8:16], RAMP[32:40]])
    data = dicom(RAMP[:8], NumberOfFrames=3, PixelData=frames.tobytes())
    assert pages(data) == 3
    for number in range(3):
        one = page_of(data, number, DEEP)
        assert pages(one) == 1
        assert np.array_equal(decode_bytes(one, DEEP), decode_bytes(dicom(frames[number]), DEEP))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 .* images.max_megapixels"),
        ({"Rows": 65}, "fewer pixels"),
        ({"BitsAllocated": 32}, "32 bits"),
        ({"PhotometricInterpretation": "ARGB", "SamplesPerPixel": 3, "Rows": 16}, "ARGB"),
    ],
)
def test_what_is_not_read_is_named(tags: dict[str, Any], words: str) -> None:
    with pytest.raises(UnreadableImage, match=words):
        decode_bytes(dicom(RAMP, **tags), ImagesConfig())


def test_damaged_files_are_refused() -> None:
    data = dicom(RAMP)
    for cut in (132, 140, 300, len(data) - 1):
        with pytest.raises(UnreadableImage):
            decode_bytes(data[:cut], ImagesConfig())
    rng = np.random.default_rng(3)
    for _ in range(100):
        spoilt = bytearray(data)
        for place in rng.integers(132, 500, 3).tolist():
            spoilt[place] = int(rng.integers(256))
        try:
            decode_bytes(bytes(spoilt), ImagesConfig())
        except UnreadableImage:
            continue


OWN_FILES = (
    *("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_jp2klossless.dcm"),
    *("CT_small.dcm", "693_J2KI.dcm", "SC_rgb_rle_16bit.dcm", "SC_rgb_small_odd_big_endian.dcm"),
    *("SC_rgb_jpeg_dcmtk.dcm", "SC_jpeg_no_color_transform.dcm", "SC_rgb_jpeg.dcm"),
    *("SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_ybr_full_422_uncompressed.dcm", "examples_palette.dcm"),
)


@pytest.mark.filterwarnings("ignore:Expected explicit VR")
@pytest.mark.parametrize("name", OWN_FILES)
def test_the_files_that_come_with_pydicom(name: str) -> None:
    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    header = pydicom.dcmread(path)
    stored = pydicom.pixels.pixel_array(header, index=0)
    found = decode_bytes(path.read_bytes(), ImagesConfig(color="raw", bits=16)).astype(float)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        stored = pydicom.pixels.apply_color_lut(stored, header)
    if stored.ndim == 3:
        white = 65535 / np.iinfo(stored.dtype).max
        assert np.abs(found - stored * white).max() <= white  # JPEG's colours are rounded twice
        return
    values = pydicom.pixels.apply_modality_lut(stored, header).astype(float)
    low, high = values.min(), values.max()
    if "WindowWidth" in header:
        low, high = pydicom.pixels.apply_windowing(np.array([-1e9, 1e9]), header)
        values = pydicom.pixels.apply_windowing(values, header)
    assert np.abs(found[..., 0] - 65535 * (values - low) / (high - low)).max() < 1


@pytest.mark.parametrize("number", [8, 16])
def test_jpeg_ls(number: int) -> None:
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    data = (folder / f"JPEGLSNearLossless_{number:02d}.dcm").read_bytes()
    assert len(np.unique(decode_bytes(data, DEEP))) > 2
    lossless = decode_bytes((folder / "MR_small_jpeg_ls_lossless.dcm").read_bytes(), DEEP)
    assert np.array_equal(lossless, decode_bytes((folder / "MR_small.dcm").read_bytes(), DEEP))


def jpeg_ls_file(frame: bytes) -> bytes:
    """A file whose own header says 1 x 1 of a frame of another size."""
    data = pydicom.dcmread(io.BytesIO(dicom(np.zeros((1, 1), np.uint8))))
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    data.PixelData = pydicom.encaps.encapsulate([frame])
    data["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_the_size_of_jpeg_ls_is_not_read_from_a_comment() -> None:
    import imagecodecs

    frame = bytes(imagecodecs.jpegls_encode(np.zeros((20, 30), np.uint8)))
    decoy = b"\xff\xf7" + struct.pack(">HBHH", 11, 8, 1, 1) + bytes(6)
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(decoy)) + decoy
    frame = frame[:2] + comment + frame[2:]
    assert imagecodecs.jpegls_decode(frame).shape == (20, 30)  # the decoder passes over it
    with pytest.raises(UnreadableImage, match=r"30 x 20 is .* images\.max_megapixels"):
        decode_bytes(jpeg_ls_file(frame), ImagesConfig(max_megapixels=5.9e-4))
    with pytest.raises(UnreadableImage, match="a JPEG-LS without a picture"):
        decode_bytes(jpeg_ls_file(frame[:2] + comment), ImagesConfig())
