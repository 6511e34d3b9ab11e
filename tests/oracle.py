"""Region pooling as plain loops, the independent truth of the tests.

Written from the rules alone and sharing no code with the package: one sample after another, weights and sums in
float64. Positions are computed in the dtype the rules ask for, in the rules' order, because whether a sample that lies
on the border counts is decided by that rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor

Pair = tuple[float, float]
Size = tuple[int, int]
Taps = list[tuple[int, float]]


def roi_align(
    input: Tensor, rois: Tensor, size: Size, scale: Pair, ratio: int, aligned: bool, mode: str = "avg"
) -> Tensor:
    """RoIAlign: visit every sample of every bin. ``rois`` is ``[K, 5]``; returns float64 ``[K, C, height, width]``."""
    real = position_type(input, rois)
    maps = _values(input)
    out = np.zeros((len(rois), maps.shape[1], *size))
    for k, (image, *box) in enumerate(_rows(rois)):
        if not np.isfinite(box).all():
            out[k] = math.nan
            continue
        rows = sample_positions(box[1], box[3], size[0], scale[0], ratio, aligned, real)
        columns = sample_positions(box[0], box[2], size[1], scale[1], ratio, aligned, real)
        for p, q in np.ndindex(size):
            samples = [
                _weighted(maps[int(image)], _clamped_taps(y, maps.shape[2]), _clamped_taps(x, maps.shape[3]))
                for y, x in product(rows[p], columns[q])
            ]
            if samples and mode == "avg":
                out[k, :, p, q] = np.sum(samples, 0) / len(samples)
            elif samples:
                out[k, :, p, q] = np.max(samples, 0)
    return torch.from_numpy(out)


def sample_positions(
    low: float, high: float, bins: int, scale: float, ratio: int, aligned: bool, real: type[np.floating]
) -> list[list[np.floating]]:
    """Positions of each bin's samples along one axis, every operation rounded to the type ``real``."""
    offset = real(0.5 if aligned else 0)
    start = real(low) * real(scale) - offset
    length = (real(high) * real(scale) - offset) - start
    if not aligned:
        length = max(length, real(1))
    step = length / real(bins)
    grid = ratio if ratio > 0 else max(0, math.ceil(step))
    return [
        [(start + real(p) * step) + (real(i) + real(0.5)) * step / real(grid) for i in range(grid)] for p in range(bins)
    ]


def _clamped_taps(position: np.floating, length: int) -> Taps:
    """The cells a sample reads and their weights: nothing outside [-1, length], else clamped into the map."""
    if position < -1 or position > length:
        return []
    place = min(max(float(position), 0.0), length - 1.0)
    cell = int(place)
    taps = [(cell, 1 - (place - cell)), (cell + 1, place - cell)]
    return [(index, weight) for index, weight in taps if weight > 0]


def prroi_pool(input: Tensor, rois: Tensor, size: Size, scale: Pair) -> Tensor:
    """Precise RoI pooling: the bin is cut at the whole positions; on a piece the map is bilinear, so its mean over
    the piece is its value at the piece's centre."""
    maps = _values(input)
    out = np.zeros((len(rois), maps.shape[1], *size))
    for k, (image, *box) in enumerate(_rows(rois)):
        if not np.isfinite(box).all():
            out[k] = math.nan
            continue
        rows = _bin_edges(box[1] * scale[0], box[3] * scale[0], size[0])
        columns = _bin_edges(box[0] * scale[1], box[2] * scale[1], size[1])
        for p, q in np.ndindex(size):
            area = (rows[p + 1] - rows[p]) * (columns[q + 1] - columns[q])
            if area <= 0:
                continue
            for y, x in product(_pieces(*rows[p : p + 2], maps.shape[2]), _pieces(*columns[q : q + 2], maps.shape[3])):
                centre = _hat_taps(sum(y) / 2, maps.shape[2]), _hat_taps(sum(x) / 2, maps.shape[3])
                out[k, :, p, q] += _weighted(maps[int(image)], *centre) * (y[1] - y[0]) * (x[1] - x[0]) / area
    return torch.from_numpy(out)


def _bin_edges(start: float, end: float, bins: int) -> list[float]:
    step = max(end - start, 0.0) / bins
    return [start + p * step for p in range(bins + 1)]


def _pieces(low: float, high: float, length: int) -> list[Pair]:
    """Cut [low, high] at the whole positions; only from -1 to length is the map not 0."""
    low, high = max(low, -1.0), min(high, float(length))
    if low >= high:
        return []
    cuts = [low, *range(math.floor(low) + 1, math.ceil(high)), high]
    return list(pairwise(cuts))


def _hat_taps(position: float, length: int) -> Taps:
    """The cells around a position and their weights, on a map that is 0 outside."""
    cell = math.floor(position)
    taps = [(cell, 1 - (position - cell)), (cell + 1, position - cell)]
    return [(index, weight) for index, weight in taps if 0 <= index < length and weight > 0]


def roi_pool(input: Tensor, rois: Tensor, size: Size, scale: Pair) -> Tensor:
    """RoIPool: whole cells, the maximum over each bin's."""
    real = position_type(input, rois)
    maps = _values(input)
    out = np.zeros((len(rois), maps.shape[1], *size))
    for k, (image, *box) in enumerate(_rows(rois)):
        if not np.isfinite(box).all():
            out[k] = math.nan
            continue
        rows = _bin_cells(box[1], box[3], size[0], scale[0], maps.shape[2], real)
        columns = _bin_cells(box[0], box[2], size[1], scale[1], maps.shape[3], real)
        for p, q in np.ndindex(size):
            cells = [maps[int(image), :, y, x] for y, x in product(rows[p], columns[q])]
            if cells:
                out[k, :, p, q] = np.max(cells, 0)
    return torch.from_numpy(out)


def _bin_cells(
    low: float, high: float, bins: int, scale: float, length: int, real: type[np.floating]
) -> list[list[int]]:
    first, last = (_half_away(real(edge) * real(scale)) for edge in (low, high))
    step = real(max(last - first + 1, 1)) / real(bins)
    return [
        [
            cell
            for cell in range(first + math.floor(real(p) * step), first + math.ceil(real(p + 1) * step))
            if 0 <= cell < length
        ]
        for p in range(bins)
    ]


def _half_away(value: np.floating) -> int:
    """C's round: halves go away from 0."""
    return int(math.copysign(math.floor(abs(float(value)) + 0.5), float(value)))


def position_type(input: Tensor, rois: Tensor) -> type[np.floating]:
    """Positions are float64 if the map or the boxes are, else float32."""
    return np.float64 if torch.float64 in (input.dtype, rois.dtype) else np.float32


def _values(input: Tensor) -> np.ndarray:
    return input.detach().double().contiguous().numpy()


def _rows(rois: Tensor) -> Iterable[list[float]]:
    return rois.detach().double().tolist()  # type: ignore[no-any-return]


def _weighted(image: np.ndarray, rows: Taps, columns: Taps) -> np.ndarray:
    """The interpolated value, per channel; a cell without weight is never read."""
    total = np.zeros(len(image))
    for (y, wy), (x, wx) in product(rows, columns):
        total += wy * wx * image[:, y, x]
    return total
