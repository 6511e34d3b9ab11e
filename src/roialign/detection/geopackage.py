"""Polygons and what is known of each as a GeoPackage, which GDAL writes through pyogrio."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LAYER = "detections"
VERSION = {"VERSION": "1.3"}  # of the format; of the next one older GDALs warn


def check_geopackage(path: Path) -> None:
    """Say before the work whether a GeoPackage can be written there.

    Raises:
        ModuleNotFoundError: pyogrio is missing, or rasterio, which tells where images lie.
        FileExistsError: another program is writing to it.
    """
    try:
        import pyogrio  # noqa: F401
        import rasterio  # noqa: F401
    except ModuleNotFoundError as error:
        message = f"{path}: a GeoPackage needs {error.name}: pip install 'roialign[geo]'"
        raise ModuleNotFoundError(message, name=error.name) from None
    # SQLite would work what lies in these into the file that takes the old one's place.
    for beside in (Path(f"{path}{suffix}") for suffix in ("-wal", "-journal")):
        if beside.exists():
            raise FileExistsError(f"{path}: is open in another program, by {beside.name}; close it there")


def as_layer(
    polygons: Sequence[Mapping[str, Any] | None],
    columns: Mapping[str, type[str] | type[float]],
    lines: Sequence[Sequence[Any]],
    system: str,
) -> bytes:
    """A GeoPackage of one layer of MultiPolygons, whatever is in it.

    Args:
        polygons: GeoJSON's Polygon or MultiPolygon, of two coordinates; None: a feature without one.
        columns: the names of the attributes, and what they are.
        lines: the attributes of each polygon.
        system: the coordinate system, as GDAL understands it.
    """
    from pyogrio.raw import write

    values = zip(*lines, strict=True) if lines else ((),) * len(columns)
    fields = [
        np.array(column, np.float64) if kind is float else np.array([_text(each) for each in column], object)
        for column, kind in zip(values, columns.values(), strict=True)
    ]
    shapes = np.empty(len(polygons), object)
    shapes[:] = [None if each is None else _well_known(each) for each in polygons]
    content = io.BytesIO()
    write(
        content,
        shapes,
        fields,
        list(columns),
        layer=LAYER,
        driver="GPKG",
        geometry_type="MultiPolygon",
        crs=system,
        dataset_options=VERSION,
    )
    return content.getvalue()


def _text(value: str) -> str:
    """UTF-8, as the file has it; what a name may have that is none is escaped."""
    return value.encode(errors="backslashreplace").decode()


def _well_known(geometry: Mapping[str, Any]) -> bytes:
    """The well-known binary form of a MultiPolygon, little-endian."""
    parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    content = struct.pack("<BII", 1, 6, len(parts))
    for rings in parts:
        content += struct.pack("<BII", 1, 3, len(rings))
        for ring in rings:
            content += struct.pack("<I", len(ring)) + np.array(ring, "<f8").tobytes()
    return content
