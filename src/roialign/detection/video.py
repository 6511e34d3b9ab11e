"""Videos, frame by frame: read as photos, and written with what was found in them. PyAV decodes and encodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from .images import DamagedImageError, Photo

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".wmv")
TICKS = 90_000  # a second, of a video that is written; MPEG's own clock, which all usual rates divide


class Frame(Photo):
    """One frame of a video, upright as the video's own matrix says."""

    def __init__(self, path: Path, image: Image.Image, frame: int, time: float | None) -> None:
        self.path, self.image, self.note, self._white = path, image, "", None
        self.width, self.height = image.size
        self.frame, self.time = frame, time


def is_video(path: Path) -> bool:
    """Whether the file is one to be read frame by frame, by its name."""
    return path.suffix.lower() in SUFFIXES


def count_frames(path: Path) -> int:
    """How many frames the file says that it has; 1 if it does not say, or cannot be read."""
    try:
        with _opened(path) as stream:
            return stream.frames or 1
    except DamagedImageError:
        return 1


def read_frames(path: Path) -> Iterator[Frame]:
    """The frames of a video's first stream of pictures, one in memory at a time.

    Raises:
        DamagedImageError: it cannot be decoded, or not to its end; the file and the frame are named.
        ModuleNotFoundError: PyAV is missing.
    """
    done = 0
    try:
        with _opened(path) as stream:
            promised = stream.frames
            for frame in stream.container.decode(stream):
                image = frame.to_image().rotate(90 * round(frame.rotation / 90), expand=True)
                yield Frame(path, image, done, frame.time)
                done += 1
    except DamagedImageError as error:
        raise DamagedImageError(f"{error} (after {done} frames)" if done else str(error)) from None
    if not done:
        raise DamagedImageError(f"{path}: no frames in it")
    if done < 0.9 * promised:  # a few are hidden by edit lists and at cuts
        raise DamagedImageError(f"{path}: damaged: ends after {done} of {promised} frames")


class Recorder:
    """An H.264 video without sound in an MP4 file, of pictures of one size, each shown from its own time on."""

    def __init__(self, file: Path) -> None:
        self._container = _av().open(str(file), "w", format="mp4")
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None and self._stream is not None:
            self._container.mux(self._stream.encode(None))  # what the encoder still holds
        self._container.close()

    def add(self, picture: Image.Image, time: float | None) -> None:
        """The next picture; without a time it is shown a thirtieth of a second after the one before."""
        if self._stream is None:
            self._begin(*picture.size)
        ticks = self._last + TICKS // 30 if time is None else round(time * TICKS)
        frame = _av().VideoFrame.from_image(picture.crop((0, 0, self._stream.width, self._stream.height)))
        frame.pts = self._last = max(ticks, self._last + 1)
        frame.time_base = Fraction(1, TICKS)
        self._container.mux(self._stream.encode(frame))

    def _begin(self, width: int, height: int) -> None:
        self._stream = self._container.add_stream("libx264", rate=30)  # a guess, which only the rate control sees
        # Two pixels a side share their colour: an odd side gets a black line more.
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = self._stream.time_base = Fraction(1, TICKS)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The first stream of pictures; whatever is wrong with the file as our own error."""
    av = _av()
    try:
        # Handed over as a file and not by name: a name may be a network's address, a list may lead to other files.
        with path.open("rb") as file, av.open(file) as container:
            if not container.streams.video:
                raise DamagedImageError(f"{path}: no video in it that can be read")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield stream
    except (av.FFmpegError, OSError) as error:
        raise DamagedImageError(f"{path}: damaged: {error.strerror or error}") from None


def _av() -> Any:
    try:
        import av
    except ModuleNotFoundError:
        raise ModuleNotFoundError("videos need PyAV: pip install 'roialign[video]'", name="av") from None
    return av
