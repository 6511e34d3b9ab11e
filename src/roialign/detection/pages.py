"""All images that a file has: the pages of a TIFF, the frames of an animation, the frames of a video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from .bands import read_tiff, tiff_note, tiff_pages
from .images import LARGEST, DamagedImageError, Photo, decode, frames_of, is_tiff, opened
from .rasters import Raster, open_image
from .video import count_frames, is_video, read_frames

ANIMATED = ("GIF", "PNG", "WEBP")  # what Pillow counts as frames of others may be layers, icons or a depth map


class Page(Photo):
    """One of several images in a file, upright.

    Args:
        path, file, image: the file, open, and opened by Pillow if it knows the first page.
        page: which image of the file.
        frame: which of those to see.
    """

    def __init__(self, path: Path, file: BinaryIO, image: Image.Image | None, page: int, frame: int) -> None:
        self.path, self.page, self.frame = path, page, frame
        self.image, self.note = _decoded(file, image, page)
        self._settle(upright=True)


def read_images(path: Path) -> Iterator[Photo]:
    """Every image in the file, one in memory at a time; if there are several, with its number as ``frame``, from 0.

    A TIFF's smaller copies and masks are none. Of a TIFF whose first page is read window by window there is that page
    alone, whose note says so.

    Raises:
        DamagedImageError: it cannot be decoded, or not to its end. The file is named.
        ModuleNotFoundError: a video, and PyAV is missing.
    """
    if is_video(path):
        yield from read_frames(path)
        return
    pages = _pages(path)
    if len(pages) < 2:
        yield open_image(path)
        return
    done = 0
    try:
        with opened(path) as file:
            image = _by_pillow(file)
            for page in pages:
                yield Page(path, file, image, page, done)
                done += 1
    except DamagedImageError as error:
        raise DamagedImageError(f"{error} (after {done} of {len(pages)} frames)") from None


def count_images(path: Path) -> int:
    """How many images the file says that it has; 1 if it cannot be read."""
    if is_video(path):
        return count_frames(path)
    try:
        return len(_pages(path))
    except DamagedImageError:
        return 1


def _pages(path: Path) -> list[int]:
    """Where the images to see are among all, if there are several that can be read."""
    with opened(path) as file:
        image = _by_pillow(file)
        if image is not None and image.format in ANIMATED:
            return frames_of(image, file)
        if (image is None or image.format == "TIFF") and not Raster.goes(path):
            return tiff_pages(file)
    return [0]


def _by_pillow(file: BinaryIO) -> Image.Image | None:
    """As Pillow opens it; None of a TIFF, or what claims to be one, that it does not know."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        if not is_tiff(file):
            raise
        return None


def _decoded(file: BinaryIO, image: Image.Image | None, page: int) -> tuple[Image.Image, str]:
    """One of several images, and what to know about it."""
    if image is not None:
        try:
            image.seek(page)
            decoded, note = decode(image, file, page)
            return decoded.copy(), note  # the next page takes its place
        except SyntaxError:  # Pillow's word for a page of a kind that it does not know
            if image.format != "TIFF":
                raise
    return read_tiff(file, LARGEST, page), tiff_note(file, page)
