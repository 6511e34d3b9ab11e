"""What was found in files, as other programs read it: COCO's JSON, a table, GeoJSON, a GeoPackage.

Each has the names of the files as they lead there from its own folder.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .contours import contour
from .formats import COLUMNS
from .formats.coco import relative
from .geography import WGS84, Place
from .geopackage import as_layer
from .masks import encode, paste
from .tiles import Found

PIXELS = "pixels of the image: x to the right, y down, 0 at the left and upper edge"
DEGREES = "longitude and latitude in degrees, WGS 84"
NUMBERS = ("score", *COLUMNS[1:5])  # a GeoPackage's columns of numbers
Move = Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]]


class Category(NamedTuple):
    """A class of the detector."""

    id: int  # in the data set that it learned from
    name: str


class Result(NamedTuple):
    """What was found in one image: a file, or one of several in it."""

    file: Path
    width: int
    height: int
    found: Found
    place: Place | None = None  # on earth, if it is known and asked for
    frame: int | None = None  # of a video or another file of several images, from 0
    time: float | None = None  # of the frame, in seconds


class _Row(NamedTuple):
    """One detection, rounded as all files have it."""

    box: list[float]  # x1, y1, x2, y2
    score: float
    category: Category
    grid: Tensor | None  # of a detector with masks


def as_coco(results: Iterable[Result], categories: Sequence[Category], folder: Path) -> bytes:
    """COCO's JSON, with a score for each annotation, and of a video's frames ``frame_id`` (from 0) and ``time``.

    Of a detector with masks ``segmentation`` is run-length encoded, and the area is the mask's.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, result in enumerate(results, 1):
        name = relative(result.file, folder)
        image = {"id": number, "file_name": name, "width": result.width, "height": result.height}
        images.append(image if result.frame is None else {**image, "frame_id": result.frame, "time": result.time})
        for (x1, y1, x2, y2), score, category, grid in _rows(result, categories):
            bbox = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
            patch = None if grid is None else paste(grid, (x1, y1, x2, y2), result.width, result.height)
            drawn = {} if patch is None else {"segmentation": encode(patch, result.width, result.height)}
            annotations.append({
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": category.id,
                "bbox": bbox,
                "area": round(bbox[2] * bbox[3], 2) if patch is None else int(patch.inside.sum()),
                **drawn,
                "score": score,
                "iscrowd": 0,
            })  # fmt: skip
    names = [category._asdict() for category in categories]
    return json.dumps({"images": images, "annotations": annotations, "categories": names}).encode()


def as_table(results: Iterable[Result], categories: Sequence[Category], folder: Path) -> bytes:
    """A CSV in UTF-8 with the columns that are read as annotations, then ``score`` and ``frame``, a video's from 0.

    A box is a line; an image without boxes has one too, with its name alone.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "score", "frame"])
    for result in results:
        name, frame = relative(result.file, folder), "" if result.frame is None else result.frame
        rows = [[*row.box, row.category.name, row.score] for row in _rows(result, categories)]
        writer.writerows([name, *row, frame] for row in rows or [[""] * 6])
    # A name that is no UTF-8 is escaped, or nobody could read the rest.
    return text.getvalue().encode(errors="backslashreplace")


def as_geojson(results: Iterable[Result], categories: Sequence[Category], folder: Path) -> bytes:
    """GeoJSON as RFC 7946 has it: a polygon for each box or around each mask, and what it is, in ``properties``.

    Of a mask in parts it is a MultiPolygon; an empty one has no geometry.

    Of a georeferenced image the coordinates are degrees, as the RFC asks for. Of any other they are pixels, which is no
    GeoJSON to the letter, but is what programs for images take. ``coordinates`` among the properties says which.
    """
    features: list[dict[str, Any]] = []
    for result in results:
        name = relative(result.file, folder)
        rows = list(_rows(result, categories))
        outlines = _outlines(rows, None if result.place is None else result.place.on_earth)
        for row, outline in zip(rows, outlines, strict=True):
            properties = {
                "image": name,
                "class": row.category.name,
                "score": row.score,
                "box": row.box,
                "coordinates": PIXELS if result.place is None else DEGREES,
            }
            if result.frame is not None:
                properties |= {"frame": result.frame, "time": result.time}
            features.append({
                "type": "Feature", "id": len(features) + 1, "geometry": outline, "properties": properties
            })  # fmt: skip
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def as_geopackage(results: Iterable[Result], categories: Sequence[Category], folder: Path) -> bytes:
    """A GeoPackage: the outlines that :func:`as_geojson` has, of the images alone whose place on earth is known.

    They are in the coordinate system of these images, if they have one in common, else in WGS 84. A box's edges in
    pixels are columns of their own.
    """
    placed = [(result, result.place) for result in results if result.place is not None]
    own = all(place.system == placed[0][1].system for _, place in placed)
    outlines: list[dict[str, Any] | None] = []
    lines: list[tuple[Any, ...]] = []
    for result, place in placed:
        name = relative(result.file, folder)
        rows = list(_rows(result, categories))
        outlines += _outlines(rows, place.in_system if own else place.on_earth)
        lines += [(name, row.category.name, row.score, *row.box) for row in rows]
    system = placed[0][1].system.to_wkt() if placed and own else WGS84
    return as_layer(outlines, {"image": str, "class": str, **dict.fromkeys(NUMBERS, float)}, lines, system)


def _outlines(rows: Sequence[_Row], move: Move | None) -> list[dict[str, Any] | None]:
    """The outline of each, None of an empty mask; in pixels, if nothing moves them."""
    outlines = [_ring(row) if row.grid is None else contour(row.grid, row.box) for row in rows]
    if move is None:
        return outlines
    moved = iter(move([each for each in outlines if each is not None]))
    return [None if each is None else next(moved) for each in outlines]


def _rows(result: Result, categories: Sequence[Category]) -> Iterator[_Row]:
    found = result.found
    grids = [None] * len(found.boxes) if found.grids is None else found.grids
    for box, score, label, grid in zip(*(values.tolist() for values in found[:3]), grids, strict=True):
        yield _Row([round(value, 2) for value in box], round(score, 4), categories[label - 1], grid)


def _ring(row: _Row) -> dict[str, Any]:
    """The outline in pixels, counterclockwise by the numbers, as the RFC has it."""
    x1, y1, x2, y2 = row.box
    return {"type": "Polygon", "coordinates": [[[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]]]}
