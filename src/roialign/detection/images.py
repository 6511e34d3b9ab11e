"""Image files of any kind as 8-bit RGB, upright; a file that cannot be decoded says so."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".ppm", ".pgm")
FILL = (124, 116, 104)  # the networks' mean colour: what lies outside an image or under transparency
LARGEST = 2**31  # pixels; Pillow's own limit is far below what surveys from the air have

Window = tuple[int, int, int, int]  # x1, y1, x2, y2


class DamagedImageError(ValueError):
    """A file that is no image, or a damaged one."""


class Photo:
    """An image file: decoded once, in its own mode, and turned to 8-bit RGB only under the window asked for.

    Orientation as EXIF says. 16-bit values are scaled by the fewest bits (8, 10, 12, 14, 16) that hold the image's
    largest value; floating values up to 1 are fractions of white. Transparency shows the networks' mean colour.

    Args:
        path: the file.
        upright: turn the image as EXIF says.

    Raises:
        DamagedImageError: it cannot be decoded. The file is named.
    """

    def __init__(self, path: str | Path, upright: bool = True) -> None:
        self.path = Path(path)
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, LARGEST
        try:
            with self.path.open("rb") as file:
                image = Image.open(file)
                image.load()
                if upright:
                    ImageOps.exif_transpose(image, in_place=True)
        except UnidentifiedImageError:
            raise DamagedImageError(f"{self.path}: not an image that can be read") from None
        except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
            raise DamagedImageError(f"{self.path}: damaged: {error}") from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit
        self.image: Image.Image = image
        self.width, self.height = image.size
        self._white = _white(image)

    def crop(self, window: Window) -> Image.Image:
        """The window as an RGB image; it must lie inside the photo."""
        part = self.image.crop(window)
        if self._white is not None:
            values = np.asarray(part, dtype=np.float32) * (255 / self._white)
            part = Image.fromarray(np.nan_to_num(values).clip(0, 255).round().astype(np.uint8))
        if part.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in self.image.info:
            part = part.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", part.size, (*FILL, 255)), part).convert("RGB")
        return part.convert("RGB")

    def read(self, window: Window | None = None) -> Tensor:
        """The window, or everything, as ``[3, H, W]`` float32 in [0, 1]."""
        return to_tensor(self.crop(window or (0, 0, self.width, self.height)))

    def preview(self, longest: int) -> Image.Image:
        """The whole as RGB, made smaller if it is larger than ``longest`` pixels on a side."""
        factor = max(1, math.ceil(max(self.width, self.height) / longest))
        if factor == 1:
            return self.crop((0, 0, self.width, self.height))
        out = Image.new("RGB", (math.ceil(self.width / factor), math.ceil(self.height / factor)))
        strip = max(1, 2**22 // (self.width * factor)) * factor
        for top in range(0, self.height, strip):
            part = self.crop((0, top, self.width, min(self.height, top + strip)))
            out.paste(part.reduce(factor), (0, top // factor))
        return out


def read_size(path: str | Path, upright: bool = True) -> tuple[int, int]:
    """Width and height in pixels from the file's head, as :class:`Photo` will have them.

    Raises:
        DamagedImageError: as Photo.
    """
    with Image.open(path) as image:
        width, height = image.size
        turned = upright and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as ``[3, H, W]`` float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _white(image: Image.Image) -> float | None:
    """The value of white where Pillow would cut off the values of a one-channel image, else None."""
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return None
    if image.mode == "F":
        largest = float(np.nan_to_num(np.asarray(image), posinf=0).max(initial=0))
        return 1 if largest <= 1 else next((white for white in (255, 65535) if largest <= white), largest)
    largest = float(image.getextrema()[1])  # type: ignore[arg-type]
    return next((2**bits - 1 for bits in (8, 10, 12, 14, 16) if largest < 2**bits), largest)


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


ImageFile.LOAD_TRUNCATED_IMAGES = False  # a truncated file is a damaged one, whoever set this before
