"""Masks of objects: those of annotations in their windows, those of detections as grids over their boxes.

Neither ever takes objects x height x width of memory: of a large photo that is gigabytes. What is found becomes a mask
of its image only where somebody asks for it, run-length encoded as COCO has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..functional import roi_align

GRID = 28  # cells along each side of a found mask, as Mask R-CNN has it
INSIDE = 0.5  # the least probability of a pixel that is the object's
FAR = 1.0  # of the image's sides, that a polygon may reach beyond it; the work of drawing one grows with its length

Array = np.ndarray[Any, np.dtype[Any]]
Polygons = tuple[tuple[float, ...], ...]  # each x1, y1, x2, y2, ...
Rle = dict[str, Any]  # COCO's: "size" (height, width) and "counts"


class Runs(NamedTuple):
    """A mask of a whole image, as a file has it: down the columns, every second run being the object's."""

    height: int
    width: int
    lengths: bytes  # of the runs, int64


class Mask(NamedTuple):
    """The pixels of one object: a window of its image, in COCO's run-length encoding."""

    image: tuple[int, int]  # its width and height
    x: int  # of the window's first column
    y: int
    width: int
    height: int
    counts: bytes

    @property
    def area(self) -> int:
        """Pixels of the object."""
        return int(_coco().area(self._window()))

    def pixels(self) -> Array:
        """The window, ``[height, width]`` uint8 of 0 and 1."""
        pixels: Array = _coco().decode(self._window())
        return pixels

    def rle(self) -> Rle:
        """The whole image's mask as COCO has it."""
        return encode(Patch(self.x, self.y, self.pixels().astype(bool)), *self.image)

    def _window(self) -> Rle:
        return {"size": [self.height, self.width], "counts": self.counts}


class Patch(NamedTuple):
    """A part of an image's mask, outside of which it is empty."""

    x: int
    y: int
    inside: Array  # [height, width] bool


def rasterize(polygons: Polygons, image: tuple[int, int], unit: tuple[int, int] = (1, 1)) -> Mask:
    """The pixels within any of some polygons, by COCO's own rule; of thousands of outlines one differs by a pixel.

    Args:
        polygons: of three points or more.
        image: width and height.
        unit: pixels that a number of x and one of y stand for.

    Raises:
        ValueError: a point that is not finite, or lies further than a whole image outside.
    """
    points = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) * unit for polygon in polygons]
    every = np.concatenate(points)
    near = np.abs(every - np.array(image) / 2) <= (0.5 + FAR) * np.array(image)  # also no NaN
    if not near.all():
        point = every[~near.all(1)][0].tolist()
        raise ValueError(f"got the point {point}; expected points in or near the image of {image[0]} x {image[1]}")
    low = np.clip(np.floor(every.min(0)).astype(int) - 1, 0, np.array(image) - 1)
    high = np.clip(np.ceil(every.max(0)).astype(int) + 1, low + 1, image)
    width, height = (high - low).tolist()
    coco = _coco()
    drawn = coco.merge(coco.frPyObjects([_moved(part, low).ravel().tolist() for part in points], height, width))
    return Mask(image, int(low[0]), int(low[1]), width, height, drawn["counts"])


def _moved(points: Array, by: Array) -> Array:
    """Points as seen from a window's corner, which COCO's rule takes for the same as these.

    It takes a point for ``trunc(5 * point + 0.5)`` fifths of a pixel. Decimals are often on the border between two,
    where a shift's own rounding decides: of outlines with one decimal three in four were another mask. So whole fifths
    are shifted, and handed on from the middle between such borders.
    """
    fifths = np.trunc(5 * points + 0.5) - 5 * by
    moved: Array = np.where(fifths < 0, fifths - 0.75, fifths) / 5  # trunc goes towards 0 on either side
    return moved


def from_runs(runs: Runs, image: tuple[int, int]) -> Mask:
    """A mask of its image's window.

    Args:
        runs: of the whole image.
        image: width and height.

    Raises:
        ValueError: they are of an image of another size.
    """
    if (runs.width, runs.height) != image:
        raise ValueError(f"size: got {[runs.height, runs.width]}; expected the image's, {[image[1], image[0]]}")
    lengths = np.frombuffer(runs.lengths, dtype=np.int64)
    ends = np.cumsum(lengths)
    some = lengths[1::2] > 0
    if not some.any():
        return Mask(image, 0, 0, 1, 1, _pack([1], 1, 1))
    last = ends[1::2][some]
    first = last - lengths[1::2][some]
    left, right = int(first[0]) // runs.height, -(-int(last[-1]) // runs.height)
    steps = np.zeros((right - left) * runs.height + 1, dtype=np.int8)
    steps[first - left * runs.height] += 1
    steps[last - left * runs.height] -= 1
    strip = np.cumsum(steps[:-1], dtype=np.int8).reshape(right - left, runs.height).T  # the columns that it has
    rows = np.flatnonzero(strip.any(1))
    inside = np.asfortranarray(strip[rows[0] : rows[-1] + 1].astype(np.uint8))
    height, width = inside.shape
    return Mask(image, left, int(rows[0]), width, height, _coco().encode(inside)["counts"])


def mask_of(outline: Polygons | Runs, image: tuple[int, int], fractions: bool = False) -> Mask:
    """The mask of an outline in an image of this width and height; polygons may be in ``fractions`` of it.

    Raises:
        ValueError: the outline does not go with the image.
    """
    if isinstance(outline, Runs):
        return from_runs(outline, image)
    return rasterize(outline, image, image if fractions else (1, 1))


def rectangle(box: Sequence[float], image: tuple[int, int]) -> Mask:
    """All pixels of a box (x1, y1, x2, y2)."""
    x1, y1, x2, y2 = box
    return rasterize(((x1, y1, x2, y1, x2, y2, x1, y2),), image)


def regrid(grids: Tensor, boxes: Tensor, others: Tensor) -> Tensor:
    """Grids over boxes as grids over others; further than half a cell beyond the old box nothing is the object's.

    Args:
        grids: ``[N, GRID, GRID]`` float32.
        boxes: ``[N, 4]``: over which they lie.
        others: ``[N, 4]``: over which they shall lie.
    """
    corner, sides = boxes[:, :2].repeat(1, 2), (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    within = (others - corner) / sides * grids.shape[-1]
    index = torch.arange(len(grids), device=grids.device, dtype=within.dtype)[:, None]
    rois = torch.cat([index, within], 1).to(grids.dtype)
    return roi_align(grids[:, None], rois, grids.shape[-1], sampling_ratio=1, aligned=True)[:, 0]


def paste(grid: Tensor, box: Sequence[float], width: int, height: int) -> Patch:
    """A grid's mask in its image: the pixels whose centres lie in the box, of a probability of at least one half.

    That is RoIAlign of the grid, one sample for each pixel: two small matrix products, of the size of the box.

    Args:
        grid: ``[GRID, GRID]`` float32: probabilities, the cells being equal parts of the box.
        box: x1, y1, x2, y2 in pixels of the image.
        width, height: of the image.
    """
    x1, y1, x2, y2 = box
    left, right = _centres(x1, x2, width)
    top, bottom = _centres(y1, y2, height)
    if left >= right or top >= bottom:
        return Patch(min(max(left, 0), width - 1), min(max(top, 0), height - 1), np.zeros((0, 0), dtype=bool))
    across, down = grid.shape[-1] / (x2 - x1), grid.shape[-1] / (y2 - y1)
    corners = ((left - x1) * across, (top - y1) * down, (right - x1) * across, (bottom - y1) * down)
    shape = (bottom - top, right - left)
    values = roi_align(grid[None, None], torch.tensor([[0.0, *corners]]), shape, sampling_ratio=1, aligned=True)
    return Patch(left, top, (values[0, 0] >= INSIDE).numpy())


def _centres(low: float, high: float, length: int) -> tuple[int, int]:
    """The pixels of an axis whose centres lie between two positions: the first, and the one after the last."""
    return max(0, math.ceil(low - 0.5)), min(length, math.floor(high - 0.5) + 1)


def encode(patch: Patch, width: int, height: int) -> Rle:
    """A patch as the mask of its whole image in COCO's run-length encoding, which goes down the columns."""
    rows, columns = patch.inside.shape
    # A row below, always empty, ends each column's runs; so places where values change come in pairs.
    below = np.zeros((columns, rows + 1), dtype=bool)
    below[:, :rows] = patch.inside.T
    places = np.flatnonzero(np.diff(below.ravel(), prepend=False))
    edges = (places // (rows + 1) + patch.x) * height + places % (rows + 1) + patch.y
    # A run that ends where the next begins, at the top of the next column, is one with it.
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])
    edges = np.delete(edges, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    runs = np.diff(edges, prepend=0, append=height * width).tolist()
    runs = runs if runs[-1] else runs[:-1]  # as COCO's own encoder has it
    return {"size": [height, width], "counts": _pack(runs, height, width).decode()}


class Drawn(Protocol):
    """Detections with masks."""

    @property
    def boxes(self) -> Tensor:
        """``[N, 4]``."""

    @property
    def grids(self) -> Tensor | None:
        """``[N, GRID, GRID]``; None: there are none."""


def patches(found: Drawn, width: int, height: int, scale: float = 1) -> Iterator[Patch]:
    """The mask of each detection in its image, or in a picture of it that is ``scale`` times as large."""
    assert found.grids is not None
    return (paste(*each, width, height) for each in zip(found.grids, (found.boxes * scale).tolist(), strict=True))


def encode_all(found: Drawn, width: int, height: int) -> list[Rle]:
    """The mask of each detection in its image, as COCO has it."""
    return [encode(patch, width, height) for patch in patches(found, width, height)]


def decode(rle: Rle) -> Tensor:
    """A mask in COCO's run-length encoding as ``[height, width]`` bool."""
    return torch.from_numpy(_coco().decode(rle)).bool()


def _pack(runs: list[int], height: int, width: int) -> bytes:
    packed: bytes = _coco().frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"]
    return packed


def _coco() -> Any:
    from faster_coco_eval import mask  # when it is needed: it takes 0.2 s

    return mask
