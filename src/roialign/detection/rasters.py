"""TIFFs too large for memory: read window by window, by GDAL through rasterio."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from .bands import GREY, MAGIC, RGB, Array, UnsupportedError, plan, show, tiff_head, whites_of
from .images import Photo, Window, opened

LARGE = 2**26  # pixels; smaller images are decoded as a whole, which is faster
CACHE = 256 * 2**20  # bytes of decoded blocks that GDAL keeps
YCBCR = 6  # TIFF's photometric interpretation that GDAL turns to RGB where the compression is JPEG


def open_image(path: str | Path) -> Photo:
    """An image file, upright: a large TIFF as a :class:`Raster` if rasterio is there and it is of a kind that goes.

    Raises:
        DamagedImageError: as :class:`~roialign.detection.images.Photo`.
    """
    path = Path(path)
    with opened(path) as file:
        large = file.read(4) in MAGIC and Raster.goes(path)
    return Raster(path) if large else Photo(path)


class Raster(Photo):
    """A TIFF of whole numbers of 8 or 16 bits, grey or in colours, of which only the windows asked for are read.

    It shows what :class:`~roialign.detection.images.Photo` shows. For 16 bits the file is read once for its largest
    value, part by part. Memory is bounded by the window and by the blocks that GDAL keeps.

    Args:
        path: the file; it is open as long as this object lives.

    Raises:
        DamagedImageError: it cannot be decoded. The file is named.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._white = Path(path), None
        with _gdal(self.path):
            self._file = _open(self.path)
            self.width, self.height = self._file.width, self._file.height
            self._kind, extra = _bands(self.path)
            self._plan = plan(self._kind, self._file.count, extra)
            with self.path.open("rb") as head:
                self.note = tiff_head(head)[2]
            self._whites = whites_of(self._largest(), self._kind, self._plan)
            self.crop((0, 0, 1, 1))

    @staticmethod
    def goes(path: Path) -> bool:
        """Whether the file is a large one, and one that can be read so."""
        from tifffile import TiffFile

        with TiffFile(path) as tiff:
            page = tiff.pages[0].aspage()
            kinds = (GREY, RGB) if int(page.compression) != 7 else (GREY, RGB, YCBCR)
            orientation = page.tags.valueof(ExifTags.Base.Orientation, 1)
            fits = int(page.photometric) in kinds and page.dtype in (np.uint8, np.uint16) and orientation == 1
            large = page.imagewidth * page.imagelength > LARGE
        if not (large and fits):
            return False
        try:
            import rasterio  # noqa: F401
        except ModuleNotFoundError:
            return False
        return True

    def _cut(self, window: Window) -> Image.Image:
        x1, y1, x2, y2 = window
        with _gdal(self.path):
            return show(self._read(((y1, y2), (x1, x2))), self._kind, self._plan, self._whites)

    def reduced(self, window: Window, factor: int) -> Image.Image:
        """As Photo's; of a file with overviews from these."""
        from rasterio.enums import Resampling

        x1, y1, x2, y2 = window
        size = (math.ceil((y2 - y1) / factor), math.ceil((x2 - x1) / factor))
        with _gdal(self.path):
            values: Array = self._file.read(window=((y1, y2), (x1, x2)), out_shape=size, resampling=Resampling.average)
            return self._shown(show(np.moveaxis(values, 0, -1), self._kind, self._plan, self._whites))

    def _read(self, window: Any) -> Array:
        values: Array = self._file.read(window=window)
        return np.moveaxis(values, 0, -1)

    def _largest(self) -> Array:
        """The largest value of each band ``[1, 1, bands]``; of 8 bits any will do."""
        bands = self._file.count
        if self._file.dtypes[0] == "uint8":
            return np.full((1, 1, bands), 255, np.uint8)
        largest: Array = np.stack([self._read(part).max((0, 1)) for part in self._parts()]).max(0)[None, None]
        return largest

    def _parts(self) -> Iterator[Any]:
        """Windows that cover the image, of whole blocks as the file has them."""
        height = self._file.block_shapes[0][0]
        step = max(height, CACHE // 4 // (2 * self._file.count * self.width) // height * height)
        for top in range(0, self.height, step):
            yield ((top, min(self.height, top + step)), (0, self.width))


@contextmanager
def _gdal(path: Path) -> Iterator[None]:
    """Where the file is read: whatever is wrong is our own error, and GDAL keeps no more than it may."""
    import rasterio

    with opened(path), rasterio.Env(GDAL_CACHEMAX=CACHE):
        yield


def _open(path: Path) -> Any:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(os.path.abspath(path), driver="GTiff")


def _bands(path: Path) -> tuple[int, tuple[int, ...]]:
    """The photometric interpretation as GDAL hands it over, and the extra samples."""
    from tifffile import TiffFile

    with TiffFile(path) as tiff:
        page = tiff.pages[0].aspage()
        kind = int(page.photometric)
        if kind not in (GREY, RGB, YCBCR):
            raise UnsupportedError(f"TIFF of photometric interpretation {kind}: not understood")
        return RGB if kind == YCBCR else kind, tuple(map(int, page.extrasamples))
