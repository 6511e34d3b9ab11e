"""Outlines of found masks as polygons, by contourpy, which draws Matplotlib's contours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from contourpy import FillType, contour_generator
from torch import Tensor

from .masks import INSIDE


def contour(grid: Tensor, box: Sequence[float]) -> dict[str, Any] | None:
    """Where a mask's probability is at least one half, as GeoJSON's geometry in pixels of the image.

    Between the centres of a grid's cells the probability is interpolated; beyond the last ones it stays as it is there,
    up to the edge of the box. Counterclockwise by the numbers, holes clockwise, as RFC 7946 has it.

    Args:
        grid: ``[N, N]`` float32: the probabilities, the cells being equal parts of the box.
        box: x1, y1, x2, y2.

    Returns:
        A Polygon or a MultiPolygon; None of an empty mask.
    """
    x1, y1, x2, y2 = box
    cells = grid.shape[0]
    places = np.concatenate([[0.0], (np.arange(cells) + 0.5) / cells, [1.0]])
    values = np.pad(grid.numpy(), 1, mode="edge")
    lines = contour_generator(x1 + places * (x2 - x1), y1 + places * (y2 - y1), values, fill_type=FillType.OuterOffset)
    polygons = [
        [part.tolist() for part in np.split(points.round(2), offsets[1:-1])]
        for points, offsets in zip(*lines.filled(INSIDE, np.inf), strict=True)
    ]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons} if polygons else None
