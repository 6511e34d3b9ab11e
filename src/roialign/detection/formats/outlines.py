"""Outlines: polygons, or masks in COCO's run-length encoding; and the boxes around them."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np

from ..fields import length, number, shown, whole
from ..masks import Polygons, Runs

Corners = tuple[float, float, float, float]
DIGITS = 7  # of five bits each: more than any run that a mask can have
WANTED = "expected polygons, each a list x1, y1, x2, y2, ... of three points or more, or an object of size and counts"


def corners_of(segmentation: Any, size: tuple[int, int] | None) -> Corners:
    """The least box around COCO's ``segmentation`` of an image with this width and height, if they are known.

    Points of polygons are positions, a mask's are pixels with an extent: the box of one pixel has a side of 1.

    Raises:
        ValueError: it is neither polygons nor a mask.
    """
    try:
        if isinstance(segmentation, dict):
            return _around_mask(segmentation, size)
        if isinstance(segmentation, list) and segmentation:
            return around_points([value for polygon in segmentation for value in _polygon(polygon)])
        raise ValueError(f"got {shown(segmentation)}; {WANTED}")
    except ValueError as error:
        raise ValueError(f"no bbox, and segmentation: {error}") from None


def outline_of(segmentation: Any, size: tuple[int, int] | None) -> Polygons | Runs:
    """COCO's ``segmentation`` of an image with this width and height, if they are known.

    Raises:
        ValueError: it is neither polygons nor a mask.
    """
    try:
        if isinstance(segmentation, dict):
            height, width, runs = _mask(segmentation, size)
            return Runs(height, width, np.asarray(runs, dtype=np.int64).tobytes())
        if isinstance(segmentation, list) and segmentation:
            return tuple(tuple(_polygon(polygon)) for polygon in segmentation)
        raise ValueError(f"got {shown(segmentation)}; {WANTED}")
    except ValueError as error:
        raise ValueError(f"segmentation: {error}") from None


def around_points(values: list[float]) -> Corners:
    """The least box around points x1, y1, x2, y2, ..."""
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _polygon(value: Any) -> list[float]:
    numbers = [number(each) for each in value] if isinstance(value, list) else [None]
    if None in numbers or len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"got {shown(value)}; {WANTED}")
    return numbers  # type: ignore[return-value]


def _mask(mask: dict[str, Any], image: tuple[int, int] | None) -> tuple[int, int, list[int]]:
    """Height, width and runs."""
    size = mask.get("size")
    sides = [length(each) for each in size] if isinstance(size, list) and len(size) == 2 else [None]
    if None in sides or (image is not None and sides[::-1] != list(image)):
        raise ValueError(f"size: got {shown(size)}; expected the image's height and width")
    height, width = sides
    assert height is not None
    assert width is not None
    counts = mask.get("counts")
    runs = _decode(counts) if isinstance(counts, str) else _runs(counts)
    ends = list(accumulate(runs))
    if min(runs, default=-1) < 0 or ends[-1] != height * width:
        raise ValueError(f"counts: got {shown(counts)}; expected runs that make {height * width} pixels")
    return height, width, runs


def _around_mask(mask: dict[str, Any], image: tuple[int, int] | None) -> Corners:
    height, _, runs = _mask(mask, image)
    ends = list(accumulate(runs))
    # Pixels are counted down the columns; every second run is the mask's.
    inside = [(end - run, end - 1) for end, run in zip(ends[1::2], runs[1::2], strict=True) if run]
    if not inside:
        return 0.0, 0.0, 0.0, 0.0
    low = min(0 if first // height < last // height else first % height for first, last in inside)
    high = max(height - 1 if first // height < last // height else last % height for first, last in inside)
    return float(inside[0][0] // height), float(low), inside[-1][1] // height + 1.0, high + 1.0


def _runs(counts: Any) -> list[int]:
    runs = [whole(each) for each in counts] if isinstance(counts, list) else [None]
    return [-1] if None in runs else runs  # type: ignore[return-value]


def _decode(counts: str) -> list[int]:
    """The runs in COCO's compressed text: digits of five bits, the lowest first, from the fourth run on differences."""
    runs: list[int] = []
    value = digits = 0
    for code in (ord(character) - 48 for character in counts):
        if not 0 <= code < 64 or digits == DIGITS:
            return [-1]
        value |= (code & 31) << 5 * digits
        digits += 1
        if not code & 32:  # the last digit, whose highest bit is the sign
            value -= (code >> 4 & 1) << 5 * digits
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = digits = 0
    return [-1] if digits else runs
