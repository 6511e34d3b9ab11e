"""Image files of any kind as 8-bit RGB, upright; a file that cannot be decoded says so."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from .bands import (
    MAGIC,
    UnsupportedError,
    describe_by_pillow,
    largest_of,
    pillow_reads,
    read_tiff,
    tiff_head,
    tiff_pages,
    to_8_bits,
    turned,
    white_of,
)

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".ppm", ".pgm")
FILL = (124, 116, 104)  # the networks' mean colour: what lies outside an image or under transparency
LARGEST = 2**31  # pixels; Pillow's own limit is far below what surveys from the air have

Window = tuple[int, int, int, int]  # x1, y1, x2, y2


class DamagedImageError(ValueError):
    """A file that is no image, a damaged one, or one that cannot be shown rightly."""


class Photo:
    """An image file: decoded once, in its own mode, and turned to 8-bit RGB only under the window asked for.

    Orientation as EXIF says. Values of more than 8 bits are scaled by the fewest bits (8, 10, 12, 14, 16) that hold the
    image's largest one; floating values up to 1 are fractions of white. Transparency shows the networks' mean colour.
    What Pillow would cut to 8 bits (16-bit and floating colour, more than 4 bands) is read by tifffile if it is a TIFF,
    and refused if the upper 8 bits do not do.

    Args:
        path: the file.
        upright: turn the image as EXIF says. A TIFF always is.

    Attributes:
        width, height: in pixels.
        note: what the user should know: bands or frames that are not shown. Mostly empty.
        frame, time: of one of several images in a file its number from 0, of a video's its second; else None.
        page: which image of the file it is, counting those that are none to see.

    Raises:
        DamagedImageError: it cannot be decoded, or not be shown rightly. The file is named.
    """

    frame: int | None = None
    time: float | None = None
    page: int = 0

    def __init__(self, path: str | Path, upright: bool = True) -> None:
        self.path = Path(path)
        with opened(self.path) as file:
            self.image, self.note = _decode(file)
            self._settle(upright)

    def _settle(self, upright: bool) -> None:
        if upright:
            ImageOps.exif_transpose(self.image, in_place=True)
        self.width, self.height = _some_pixels(*self.image.size)
        self._white = _white(self.image)
        self.crop((0, 0, 1, 1))  # it may be of a kind that cannot be turned to RGB

    def crop(self, window: Window) -> Image.Image:
        """The window as an RGB image; it must lie inside the photo."""
        return self._shown(self._cut(window))

    def _shown(self, part: Image.Image) -> Image.Image:
        """As RGB, what is transparent as the networks' mean colour."""
        if self._white is not None:
            part = Image.fromarray(to_8_bits(np.asarray(part), self._white))
        if part.mode == "La":  # which can become nothing but LA
            part = part.convert("LA")
        if part.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in part.info:
            part = part.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", part.size, (*FILL, 255)), part).convert("RGB")
        return part.convert("RGB")

    def _cut(self, window: Window) -> Image.Image:
        """The window as the file has it."""
        return self.image.crop(window)

    def read(self, window: Window | None = None) -> Tensor:
        """The window, or everything, as ``[3, H, W]`` float32 in [0, 1]."""
        return to_tensor(self.crop(window or (0, 0, self.width, self.height)))

    def preview(self, longest: int) -> Image.Image:
        """The whole as RGB, made smaller if it is larger than ``longest`` pixels on a side."""
        whole = (0, 0, self.width, self.height)
        factor = max(1, math.ceil(max(self.width, self.height) / longest))
        return self.crop(whole) if factor == 1 else self.reduced(whole, factor)

    def reduced(self, window: Window, factor: int) -> Image.Image:
        """The window as RGB, a pixel for each ``factor`` by ``factor`` pixels or what is left of them: their mean."""
        left, upper, right, lower = window
        out = Image.new("RGB", (math.ceil((right - left) / factor), math.ceil((lower - upper) / factor)))
        strip = max(1, 2**22 // ((right - left) * factor)) * factor
        for top in range(upper, lower, strip):
            part = self.crop((left, top, right, min(lower, top + strip)))
            out.paste(part.reduce(factor), (0, (top - upper) // factor))
        return out


class Head(NamedTuple):
    """What the beginning of an image file tells."""

    width: int
    height: int
    note: str  # as Photo's


def read_head(path: str | Path, upright: bool = True) -> Head:
    """Size and note as :class:`Photo` will have them, without decoding the image.

    Raises:
        DamagedImageError: as Photo's, if the head is enough to tell.
    """
    with opened(Path(path)) as file:
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            if not is_tiff(file):
                raise
            width, height, note = tiff_head(file)
        else:
            note = _note(image, file)
            if image.format == "TIFF":  # some versions of Pillow turn these on opening, some on loading, all in the end
                tags = image.tag_v2  # type: ignore[attr-defined]
                width, height = turned(tags[256], tags[257], tags.get(ExifTags.Base.Orientation, 1))
            else:
                turn = image.getexif().get(ExifTags.Base.Orientation, 1) if upright else 1
                width, height = turned(*image.size, turn)
        return Head(*_some_pixels(width, height), note)


def _some_pixels(width: int, height: int) -> tuple[int, int]:
    if not (width and height):
        raise UnsupportedError(f"{width} x {height} pixels: nothing to show")
    return width, height


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as ``[3, H, W]`` float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, and whatever is wrong with it as our own error."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, LARGEST
    try:
        with path.open("rb") as file:
            yield file
    except UnidentifiedImageError:
        raise DamagedImageError(f"{path}: not an image that can be read") from None
    except UnsupportedError as error:
        raise DamagedImageError(f"{path}: {error}") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DamagedImageError(f"{path}: cannot be opened: {error.strerror}") from None
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
        raise DamagedImageError(f"{path}: damaged: {error}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decode(file: BinaryIO) -> tuple[Image.Image, str]:
    """The first image, and what to know about it."""
    image: Image.Image
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        if not is_tiff(file):
            raise
        note = tiff_head(file)[2]
        return read_tiff(file, LARGEST), note
    note = _note(image, file)
    return decode(image, file)[0], note


def decode(image: Image.Image, file: BinaryIO, page: int = 0) -> tuple[Image.Image, str]:
    """The page at which Pillow is in the file, and what to know about its bands."""
    note = describe_by_pillow(image) if image.format == "TIFF" else ""
    cut = _cut_to_8_bits(image, file)
    fault = UnsupportedError(
        "16-bit colour of which fewer than 15 bits are used, and Pillow gives the upper 8: save it in 8 bits or as TIFF"
    )
    if image.format == "TIFF" and not pillow_reads(image):
        try:
            return read_tiff(file, LARGEST, page), note
        except UnsupportedError as error:
            # What Pillow decodes by itself it may mix up; what libtiff decodes is right but for the lower bits.
            if not (cut and image.tag_v2.get(ExifTags.Base.Compression, 1) > 1):  # type: ignore[attr-defined]
                raise
            fault = error
    image.load()
    if cut and max(high for _, high in np.reshape(image.getextrema(), (-1, 2))[:3]) < 64:
        raise fault
    return image, note


def is_tiff(file: BinaryIO) -> bool:
    """Whether the file says that it is one."""
    file.seek(0)
    return file.read(4) in MAGIC


def _cut_to_8_bits(image: Image.Image, file: BinaryIO) -> bool:
    """Whether Pillow will give the upper half of 16-bit colours only."""
    if image.mode not in ("LA", "RGB", "RGBA"):
        return False
    if image.format == "JPEG2000":
        file.seek(0)
        head = file.read(2**16)
        start = head.find(
            b"\xff\x4f\xff\x51"
        )  # the code stream; its 43rd byte is the depth of the first band, less one
        return 0 <= start < len(head) - 42 and head[start + 42] & 127 == 15
    tiles = getattr(image, "tile", ())
    arguments = tiles[0][3] if tiles else ()
    arguments = arguments if isinstance(arguments, tuple) else (arguments,)
    return 65535 in arguments or any(";16" in text for text in arguments if isinstance(text, str))


def _note(image: Image.Image, file: BinaryIO) -> str:
    frames = len(frames_of(image, file))
    notes = [f"the first of {frames} frames"] if frames > 1 else []
    notes += [describe_by_pillow(image)] if image.format == "TIFF" else []
    return ", ".join(filter(None, notes))


def frames_of(image: Image.Image, file: BinaryIO) -> list[int]:
    """The frames or pages to see: a TIFF's smaller copies and masks are none, nor is what phones add to a JPEG."""
    try:
        if image.format == "TIFF":
            return tiff_pages(file)
        return list(range(1 if image.format == "MPO" else getattr(image, "n_frames", 1)))
    except Exception:  # a damaged later frame; the first may be whole
        image.seek(0)
        return [0]


def _white(image: Image.Image) -> float | None:
    """The value of white where Pillow would cut off the values of a one-channel image, else None."""
    if image.mode == "F":
        return white_of(largest_of(np.asarray(image)), whole=False)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return white_of(float(image.getextrema()[1]), whole=True)  # type: ignore[arg-type]
    return None


def find_images(patterns: Iterable[str | Path]) -> list[Path]:
    """The files that names, folders (searched through) and glob patterns stand for, each once, in order.

    Raises:
        FileNotFoundError: a name, folder or pattern that stands for nothing.
    """
    found: dict[Path, None] = {}
    for pattern in map(str, patterns):
        path = Path(pattern)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        elif path.exists():
            files = [path]
        else:
            root = Path(path.anchor)
            files = sorted(file for file in root.glob(str(path.relative_to(root))) if file.is_file())
        if not files:
            raise FileNotFoundError(f"{pattern}: no images there")
        found.update(dict.fromkeys(files))
    return list(found)


def passed_over(patterns: Iterable[str | Path]) -> dict[str, int]:
    """How many files of each suffix :func:`find_images` leaves aside in folders, most first."""
    patterns = list(patterns)
    folders = {Path(pattern) for pattern in patterns if Path(pattern).is_dir()}
    files = {file for folder in folders for file in folder.rglob("*") if file.is_file()} - set(find_images(patterns))
    return dict(Counter(file.suffix.lower() or file.name for file in files).most_common())


ImageFile.LOAD_TRUNCATED_IMAGES = False  # a truncated file is a damaged one, whoever set this before
