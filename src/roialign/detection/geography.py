"""Where on earth the pixels of a georeferenced image lie, as GDAL reads it through rasterio."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .bands import MAGIC
from .images import Photo

# GDAL's readers of pictures, by a file's first bytes; no others are asked, some of which read lists of other files.
READERS = {
    **dict.fromkeys(MAGIC, "GTiff"),
    b"\xff\xd8": "JPEG",
    b"\x89PNG": "PNG",
    b"\0\0\0\x0cjP": "JP2OpenJPEG",
}
GEOKEYS, ORIENTATION = 34735, 274  # of a TIFF: the tag that makes it a GeoTIFF, and the one that turns it
WGS84 = "EPSG:4326"
DIGITS = 8  # of a degree: a millimetre


class Place(NamedTuple):
    """Of one image: from pixels to its coordinate system, and from there to WGS 84."""

    matrix: tuple[float, ...]  # a, b, c, d, e, f of x = a column + b row + c, y = d column + e row + f
    system: Any  # rasterio's CRS

    def in_system(self, geometries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """GeoJSON's polygons in pixels as such in the coordinate system. Counterclockwise ones stay so."""
        return [{**each, "coordinates": self._placed(each["coordinates"])} for each in geometries]

    def on_earth(self, geometries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """GeoJSON's polygons in pixels as such in degrees of longitude and latitude.

        Counterclockwise ones stay so. One that crosses the 180th meridian becomes two.
        """
        from rasterio.warp import transform_geom

        if not geometries:
            return []
        moved: list[dict[str, Any]] = transform_geom(self.system, WGS84, self.in_system(geometries), precision=DIGITS)
        return moved

    def _placed(self, coordinates: Any) -> Any:
        """Coordinates of any depth in the image's coordinate system."""
        if not isinstance(coordinates[0][0], int | float):
            return [self._placed(each) for each in coordinates]
        a, b, c, d, e, f = self.matrix
        step = -1 if a * e < b * d else 1  # mostly y points down in pixels and north on the map
        return [(a * x + b * y + c, d * x + e * y + f) for x, y in coordinates][::step]


def place_of(photo: Photo) -> tuple[Place | None, str]:
    """The place of an image, if it is known; and what the user should be told about it.

    Raises:
        ModuleNotFoundError: the image may be georeferenced, and rasterio is missing.
    """
    reader = _reader(photo.path)
    if reader is None:
        return None, ""
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
    except ModuleNotFoundError:
        if reader == "JP2OpenJPEG" or (reader == "GTiff" and _tag(photo, GEOKEYS) is not None):
            raise ModuleNotFoundError(
                f"{photo.path}: may be georeferenced, which rasterio tells: pip install 'roialign[geo]'",
                name="rasterio",
            ) from None
        return None, ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(_name(photo), driver=reader) as image:
                place, size = Place(image.transform[:6], image.crs), (image.width, image.height)
    except RasterioError:  # a picture that GDAL does not read has no place that it could know
        return None, ""
    if place.matrix == (1, 0, 0, 0, 1, 0):  # what GDAL says of an image without a place
        return None, ""
    if place.system is None:
        return None, "has a place but no coordinate system: taken for an image without a place"
    if size != (photo.width, photo.height) or (reader == "GTiff" and _tag(photo, ORIENTATION) not in (None, 1)):
        return None, "has a place, but is turned by its orientation tag: taken for an image without a place"
    return place, ""


def _reader(path: Path) -> str | None:
    with path.open("rb") as file:
        begin = file.read(8)
    return next((reader for magic, reader in READERS.items() if begin.startswith(magic)), None)


def _name(photo: Photo) -> str:
    """The image's name for GDAL, which takes a TIFF for its first page."""
    path = os.path.abspath(photo.path)
    return f"GTIFF_DIR:{photo.page + 1}:{path}" if photo.page else path


def _tag(photo: Photo, tag: int) -> Any:
    """What a tag of a TIFF's page says, or None."""
    from tifffile import TiffFile

    with TiffFile(photo.path) as tiff:
        return tiff.pages[photo.page].aspage().tags.valueof(tag)
