"""Rotated boxes and moved bins as plain loops, the independent truth of their tests; see ``oracle``.

One sample after another: where it lies, how that follows each number of the box, what it reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from oracle import Pair, Real, Size, position_type

LARGEST = 2**23  # beyond it positions are float64
MOST = 3000  # samples of a box that are visited


class Sample(NamedTuple):
    """Where a sample lies, and the derivative of that to the box's numbers, ``[columns - 1]`` each."""

    y: np.floating
    x: np.floating
    slope_y: np.ndarray
    slope_x: np.ndarray


class Tap(NamedTuple):
    """A cell that a sample reads along one axis, its weight, and the weight's derivative to the position."""

    cell: int
    weight: float
    slope: float


def pool_with_gradients(
    kind: str, input: Tensor, rois: Tensor, grad: Tensor, scale: Pair, ratio: int, aligned: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Forward, gradient to the map and gradient to the rois, all float64, of kind "rotated" or "moved".

    ``grad`` is the gradient to the output. None if there are too many samples to visit them all. A cell without weight
    counts nothing, and one that is not finite has no slope.
    """
    maps, grads = (tensor.detach().double().contiguous().numpy() for tensor in (input, grad))
    finite = np.where(np.isfinite(maps), maps, 0)
    height, width = maps.shape[2:]
    out, to_map, to_rois = np.zeros_like(grads), np.zeros_like(maps), np.zeros(tuple(rois.shape))
    for k, (image, *numbers) in enumerate(rois.detach().double().tolist()):
        n = int(image)
        if not np.isfinite(numbers).all():
            out[k] = math.nan
            continue
        place = _Rotated if kind == "rotated" else _Moved
        box = place(numbers, grads.shape[2:], scale, ratio, aligned, position_type(input, rois), (height, width))
        if not box.finite:
            out[k] = math.nan
            continue
        if box.count * math.prod(grads.shape[2:]) > MOST:
            return None
        if not box.count:  # an empty grid
            continue
        for p, q in np.ndindex(*grads.shape[2:]):
            for sample in box.samples(p, q):
                for row, column in product(_taps(sample.y, height), _taps(sample.x, width)):
                    cells, weight = maps[n, :, row.cell, column.cell], row.weight * column.weight / box.count
                    if weight:
                        with np.errstate(invalid="ignore"):  # inf - inf
                            out[k, :, p, q] += weight * cells
                    to_map[n, :, row.cell, column.cell] += weight * grads[k, :, p, q]
                    value = float(grads[k, :, p, q] @ finite[n, :, row.cell, column.cell]) / box.count
                    along_y, along_x = row.slope * column.weight, row.weight * column.slope
                    to_rois[k, 1:] += value * (along_y * sample.slope_y + along_x * sample.slope_x)
    return out, to_map, to_rois


def roi_align_rotated(input: Tensor, rois: Tensor, size: Size, scale: Pair, ratio: int, aligned: bool) -> Tensor:
    """RoIAlign of rotated boxes, ``[K, 6]`` with angles counter-clockwise in radians; float64."""
    return _forward("rotated", input, rois, size, scale, ratio, aligned)


def deform_roi_pool(input: Tensor, rois: Tensor, size: Size, scale: Pair, ratio: int) -> Tensor:
    """RoIAlign whose bins move, ``[K, 5 + 2 * bins]``: corners, the bins' shifts in boxes, all x, all y; float64."""
    return _forward("moved", input, rois, size, scale, ratio, True)


def _forward(kind: str, input: Tensor, rois: Tensor, size: Size, scale: Pair, ratio: int, aligned: bool) -> Tensor:
    grad = torch.zeros(len(rois), input.shape[1], *size)
    found = pool_with_gradients(kind, input, rois, grad, scale, ratio, aligned)
    assert found is not None, "too many samples to visit"
    return torch.from_numpy(found[0])


class _Rotated:
    finite = True  # its size is given

    def __init__(
        self, numbers: list[float], size: Size, scale: Pair, ratio: int, aligned: bool, real: Real, lengths: Size
    ) -> None:
        cx, cy, w, h, angle = numbers
        if max(abs(cx * scale[1]), abs(w * scale[1]), abs(cy * scale[0]), abs(h * scale[0]), *lengths, ratio) > LARGEST:
            real = np.float64
        self.size, self.scale, self.real = size, scale, real
        offset = real(0.5 if aligned else 0)
        self.cy, self.cx = real(cy) * real(scale[0]) - offset, real(cx) * real(scale[1]) - offset
        sides = real(h) * real(scale[0]), real(w) * real(scale[1])
        self.grows = [aligned or bool(side > 1) for side in sides]
        self.sides = [side if grows else real(1) for side, grows in zip(sides, self.grows, strict=True)]
        self.bins = [side / real(bins) for side, bins in zip(self.sides, size, strict=True)]
        self.grids = [ratio if ratio > 0 else max(0, math.ceil(bin)) for bin in self.bins]
        self.count = self.grids[0] * self.grids[1]
        self.sin, self.cos = real(math.sin(real(angle))), real(math.cos(real(angle)))

    def samples(self, p: int, q: int) -> Iterator[Sample]:
        real, sin, cos = self.real, float(self.sin), float(self.cos)
        for at in np.ndindex(*self.grids):
            down, right = (
                (-side / 2 + real(bin_index) * bin) + (real(i) + real(0.5)) * bin / real(grid)
                for side, bin_index, bin, i, grid in zip(self.sides, (p, q), self.bins, at, self.grids, strict=True)
            )
            y = (down * self.cos - right * self.sin) + self.cy
            x = (down * self.sin + right * self.cos) + self.cx
            fractions = [
                ((bin_index + (i + 0.5) / grid) / bins - 0.5) * scale * grows
                for bin_index, i, grid, bins, scale, grows in zip(
                    (p, q), at, self.grids, self.size, self.scale, self.grows, strict=True
                )
            ]
            d, r = float(down), float(right)
            slope_y = [0, self.scale[0], -sin * fractions[1], cos * fractions[0], -(d * sin + r * cos)]
            slope_x = [self.scale[1], 0, cos * fractions[1], sin * fractions[0], d * cos - r * sin]
            yield Sample(y, x, np.array(slope_y), np.array(slope_x))


class _Moved:
    def __init__(
        self, numbers: list[float], size: Size, scale: Pair, ratio: int, aligned: bool, real: Real, lengths: Size
    ) -> None:
        x1, y1, x2, y2, *shifts = numbers
        across, down = np.array(shifts).reshape(2, *size)
        edges = [(y1, y2), (x1, x2)]
        self.shifts = down, across
        with np.errstate(invalid="ignore"):  # 0 times inf
            reach = [
                max(abs(lo * each), abs(hi * each), float(np.abs((hi - lo) * each * shift).max()))
                for (lo, hi), each, shift in zip(edges, scale, self.shifts, strict=True)
            ]
        if max(*reach, *lengths, ratio) > LARGEST:
            real = np.float64
        self.size, self.scale, self.real, self.columns = size, scale, real, len(numbers)
        self.starts = [real(lo) * real(each) - real(0.5) for (lo, _), each in zip(edges, scale, strict=True)]
        with np.errstate(over="ignore"):  # a size that is no number
            self.sides = [
                (real(hi) * real(each) - real(0.5)) - start
                for (_, hi), each, start in zip(edges, scale, self.starts, strict=True)
            ]
        with np.errstate(over="ignore", invalid="ignore"):
            shifted = [side * shift.astype(real) for side, shift in zip(self.sides, self.shifts, strict=True)]
        self.finite = bool(np.isfinite(shifted).all() and np.isfinite(self.sides).all())
        self.bins = [side / real(bins) for side, bins in zip(self.sides, size, strict=True)]
        grids = [max(0, math.ceil(bin)) if self.finite else 0 for bin in self.bins]
        self.grids = [ratio if ratio > 0 else grid for grid in grids]
        self.count = self.grids[0] * self.grids[1]

    def samples(self, p: int, q: int) -> Iterator[Sample]:
        real = self.real
        for at in np.ndindex(*self.grids):
            places, slopes = [], []
            for axis, (bin_index, i) in enumerate(zip((p, q), at, strict=True)):
                bin, grid, shift = self.bins[axis], self.grids[axis], self.shifts[axis][p, q]
                start = (self.starts[axis] + real(bin_index) * bin) + self.sides[axis] * real(shift)
                places.append(start + (real(i) + real(0.5)) * bin / real(grid))
                fraction = (bin_index + (i + 0.5) / grid) / self.size[axis] + shift
                slope = np.zeros(self.columns)
                slope[[1 - axis, 3 - axis]] = self.scale[axis] * (1 - fraction), self.scale[axis] * fraction
                slope[4 + (1 - axis) * self.size[0] * self.size[1] + p * self.size[1] + q] = self.sides[axis]
                slopes.append(slope)
            yield Sample(places[0], places[1], slopes[0], slopes[1])


def _taps(position: np.floating, length: int) -> list[Tap]:
    """Nothing outside [-1, length], else clamped into the map; at a cell's centre the slope to the right."""
    if not -1 <= position <= length:
        return []
    place = min(max(float(position), 0.0), length - 1.0)
    cell = int(place)
    if cell == length - 1:
        return [Tap(cell, 1.0, 0.0)]
    slope = 1.0 if position >= 0 else 0.0
    return [Tap(cell, 1 - (place - cell), -slope), Tap(cell + 1, place - cell, slope)]
