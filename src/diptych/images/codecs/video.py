"""Frames of a video, through PyAV."""

import io
from types import ModuleType
from typing import TYPE_CHECKING, Final

from PIL import Image

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.channels import check_size

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream


_TURNS: Final = (
    None,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
)
"""By quarters of a turn against the clock, as a camera notes how it was held."""


def count_frames(path: str, seconds: float) -> int:
    """How many frames a video gives: one at its beginning, and one every so many seconds.

    Raises:
        UnreadableImage: PyAV is missing, or the file has no video or does not say how long it is.
    """
    with _opened(path) as file:
        return max(1, -int(-_duration(file, _stream(file)) // seconds))


def video_frame(path: str, number: int, config: ImagesConfig) -> bytes:
    """The first frame at or after ``number * images.video_seconds``, as PNG, upright.

    Raises:
        UnreadableImage: it cannot be read, or is too large.
    """
    assert config.video_seconds is not None
    try:
        with _opened(path) as file:
            stream = _stream(file)
            check_size(stream.height, stream.width, config)
            stream.thread_type = "NONE"  # images are decoded in several threads already
            return _at(file, stream, number * config.video_seconds)
    except UnreadableImage:
        raise
    except Exception as error:  # FFmpeg's errors, of whatever kind
        raise UnreadableImage(f"damaged: {error}") from error


def _at(file: "InputContainer", stream: "VideoStream", seconds: float) -> bytes:
    begin = stream.start_time or 0
    if seconds:
        # To the key frame before; from there it is decoded forwards.
        file.seek(begin + int(seconds / _tick(stream)), stream=stream)
    last = None
    for frame in file.decode(stream):
        last = frame
        if frame.pts is not None and (frame.pts - begin) * _tick(stream) >= seconds - 1e-6:
            break
    if last is None:
        raise UnreadableImage("damaged: no frame can be decoded")
    written = io.BytesIO()
    picture = last.to_image()  # type: ignore[no-untyped-call]
    turn = _TURNS[round(last.rotation / 90) % 4]
    if turn is not None:
        picture = picture.transpose(turn)
    picture.save(written, "PNG", compress_level=1)
    return written.getvalue()


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise UnreadableImage("videos need pip install 'diptych[video]'") from error
    return av


def _opened(path: str) -> "InputContainer":
    av = _av()
    try:
        return av.open(path)
    except (av.FFmpegError, OSError) as error:
        raise UnreadableImage(f"not a video that FFmpeg reads: {error}") from error


def _stream(file: "InputContainer") -> "VideoStream":
    if not file.streams.video:
        raise UnreadableImage("a file without a video")
    return file.streams.video[0]


def _duration(file: "InputContainer", stream: "VideoStream") -> float:
    if stream.duration is not None:
        return stream.duration * _tick(stream)
    if file.duration is not None:
        return file.duration / 1e6
    raise UnreadableImage("a video that does not say how long it is")


def _tick(stream: "VideoStream") -> float:
    """Seconds of a unit of the stream's times."""
    if not stream.time_base:
        raise UnreadableImage("a video that does not say what its times mean")
    return float(stream.time_base)
