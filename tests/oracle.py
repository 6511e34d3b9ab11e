"""Region pooling as plain loops, the independent truth of the tests, on maps of rank 1, 2 and 3.

Written from the rules alone and sharing no code with the package: one sample after another, weights and sums in
float64. Positions are computed in the dtype the rules ask for, in the rules' order, because whether a sample that lies
on the border counts is decided by that rounding. Sizes and scales follow the map's axes, and so do lists of one thing
per axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import reduce
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Pair = tuple[float, float]
Scale = tuple[float, ...]
Size = tuple[int, ...]
Taps = list[tuple[int, float]]
Real = type[np.floating]


def roi_align(
    input: Tensor, rois: Tensor, size: Size, scale: Scale, ratio: int, aligned: bool, mode: str = "avg"
) -> Tensor:
    """RoIAlign: visit every sample of every bin. ``rois`` is ``[K, 1 + 2 * rank]``; float64 ``[K, C, *size]``."""
    real = position_type(input, rois)
    maps = _values(input)
    out = np.zeros((len(rois), maps.shape[1], *size))
    for k, (image, *box) in enumerate(_rows(rois)):
        if not np.isfinite(box).all():
            out[k] = math.nan
            continue
        positions = [
            sample_positions(*edges, bins, each, ratio, aligned, real)
            for edges, bins, each in zip(_edges(box), size, scale, strict=True)
        ]
        for bin in np.ndindex(size):
            points = product(*(along[p] for along, p in zip(positions, bin, strict=True)))
            samples = [
                _weighted(maps[int(image)], [_clamped_taps(*at) for at in zip(point, maps.shape[2:], strict=True)])
                for point in points
            ]
            if samples and mode == "avg":
                out[(k, slice(None), *bin)] = np.sum(samples, 0) / len(samples)
            elif samples:
                out[(k, slice(None), *bin)] = np.max(samples, 0)
    return torch.from_numpy(out)


def _edges(box: list[float]) -> list[Pair]:
    """(lower, upper) along each axis of the map: a box has x first, which is the map's last axis."""
    rank = len(box) // 2
    return list(zip(box[:rank], box[rank:], strict=True))[::-1]


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


def prroi_pool(input: Tensor, rois: Tensor, size: Size, scale: Scale) -> Tensor:
    """Precise RoI pooling: the bin is cut at the whole positions; on a piece the map is linear along each axis, so its
    mean over the piece is its value at the piece's centre."""
    maps = _values(input)
    out = np.zeros((len(rois), maps.shape[1], *size))
    lengths = maps.shape[2:]
    for k, (image, *box) in enumerate(_rows(rois)):
        if not np.isfinite(box).all():
            out[k] = math.nan
            continue
        edges = [
            _bin_edges(low * each, high * each, bins)
            for (low, high), bins, each in zip(_edges(box), size, scale, strict=True)
        ]
        for bin in np.ndindex(size):
            ends = [along[p : p + 2] for along, p in zip(edges, bin, strict=True)]
            volume = math.prod(high - low for low, high in ends)
            if volume <= 0:
                continue
            for piece in product(*(_pieces(*pair, length) for pair, length in zip(ends, lengths, strict=True))):
                centre = [_hat_taps(sum(part) / 2, length) for part, length in zip(piece, lengths, strict=True)]
                share = math.prod(high - low for low, high in piece) / volume
                out[(k, slice(None), *bin)] += _weighted(maps[int(image)], centre) * share
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


def roi_pool(input: Tensor, rois: Tensor, size: Size, scale: Scale) -> Tensor:
    """RoIPool: whole cells, the maximum over each bin's."""
    return _of_cells(input, rois, size, scale, np.max, whole=True)


def ps_roi_align(input: Tensor, rois: Tensor, size: Size, scale: Scale, ratio: int) -> Tensor:
    """Position-sensitive RoIAlign: bin (p, q) as RoIAlign gives it for the channels that are the bin's."""
    return _own_channels(lambda maps: roi_align(maps, rois, size, scale, ratio, True), input, size)


def ps_roi_pool(input: Tensor, rois: Tensor, size: Size, scale: Scale) -> Tensor:
    """Position-sensitive RoI pooling: the mean over whole cells."""
    return _own_channels(lambda maps: _of_cells(maps, rois, size, scale, np.mean, whole=False), input, size)


def _own_channels(pool: Callable[[Tensor], Tensor], input: Tensor, size: Size) -> Tensor:
    """Every channel pooled for every bin, and of that what is asked for: channel ``(c * PH + p) * PW + q``."""
    everything = pool(input)
    height, width = size
    out = everything.new_empty(len(everything), input.shape[1] // (height * width), *size)
    for c, p, q in np.ndindex(*out.shape[1:]):
        out[:, c, p, q] = everything[:, (c * height + p) * width + q, p, q]
    return out


def _of_cells(
    input: Tensor, rois: Tensor, size: Size, scale: Scale, reduce: Callable[..., np.ndarray], whole: bool
) -> Tensor:
    real = position_type(input, rois)
    maps = _values(input)
    out = np.zeros((len(rois), maps.shape[1], *size))
    for k, (image, *box) in enumerate(_rows(rois)):
        if not np.isfinite(box).all():
            out[k] = math.nan
            continue
        each = zip(_edges(box), size, scale, maps.shape[2:], strict=True)
        cells = [_bin_cells(*edges, bins, one, length, real, whole) for edges, bins, one, length in each]
        for bin in np.ndindex(size):
            places = product(*(along[p] for along, p in zip(cells, bin, strict=True)))
            values = [maps[(int(image), slice(None), *place)] for place in places]
            if values:
                out[(k, slice(None), *bin)] = reduce(values, 0)
    return torch.from_numpy(out)


def _bin_cells(
    low: float, high: float, bins: int, scale: float, length: int, real: type[np.floating], whole: bool
) -> list[list[int]]:
    """RoIPool's cells; not ``whole``: without the cell that the box ends in, and without the map's last one."""
    first, last = (_half_away(real(edge) * real(scale)) for edge in (low, high))
    step = real(max(last - first + whole, 1)) / real(bins)
    length -= not whole
    ends = [(first + math.floor(real(p) * step), first + math.ceil(real(p + 1) * step)) for p in range(bins)]
    return [list(range(max(begin, 0), min(end, length))) for begin, end in ends]


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


def _weighted(image: np.ndarray, taps: list[Taps]) -> np.ndarray:
    """The interpolated value, per channel; a cell without weight is never read."""
    total = np.zeros(len(image))
    for corner in product(*taps):
        total += math.prod(weight for _, weight in corner) * image[(slice(None), *(cell for cell, _ in corner))]
    return total


# Gradients, by the same plain visits. A row is what one bin or one sample weighs: values, and slopes to the two edges.


class Row(NamedTuple):
    weight: np.ndarray
    lo: np.ndarray
    hi: np.ndarray

    @classmethod
    def empty(cls, length: int) -> Row:
        return cls(*np.zeros((3, length)))


def pool_with_gradients(
    kind: str, input: Tensor, rois: Tensor, grad: Tensor, scale: Scale, ratio: int, aligned: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Forward, gradient to the map and gradient to the rois, all float64, of any kind of pooling.

    ``grad`` is the gradient to the output. None if some bin has too many samples on the map to visit them all.
    A cell without weight counts nothing, and one that is not finite has no slope. The gradient to a box is NaN where
    which of two samples is the greatest hangs on a rounding.
    """
    real = position_type(input, rois)
    maps, grads = _values(input), _values(grad)
    finite = np.where(np.isfinite(maps), maps, 0)
    size, lengths = grads.shape[2:], maps.shape[2:]
    rank = len(size)
    group = math.prod(size) if kind.startswith("ps_") else 1  # channels of the map for one of the output
    out, to_map, to_rois = np.zeros_like(grads), np.zeros_like(maps), np.zeros((len(rois), 1 + 2 * rank))
    for k, (image, *box) in enumerate(_rows(rois)):
        n = int(image)
        if not _is_finite(box, scale):
            out[k] = math.nan
            continue
        bins = [
            _rows_of_bins(kind, *edges, many, length, each, ratio, aligned, real)
            for edges, many, length, each in zip(_edges(box), size, lengths, scale, strict=True)
        ]
        if None in bins or math.prod(max(map(len, along)) for along in bins if along is not None) > 400:
            return None
        for place, bin in enumerate(np.ndindex(*size)):
            combined = list(product(*(along[p] for along, p in zip(bins, bin, strict=True) if along is not None)))
            if not combined:
                continue
            own = slice(place % group, None, group)
            values = np.stack([_weighed(maps[n, own], [row.weight for row in rows]) for rows in combined])
            for c, g in enumerate(grads[(k, slice(None), *bin)]):
                nans = np.isnan(values[:, c])
                best = int(np.argmax(nans)) if nans.any() else int(np.argmax(values[:, c]))
                rows = combined[best]
                with np.errstate(invalid="ignore"):  # inf - inf
                    behind = values[best, c] - values[:, c]
                if kind == "max" and ((behind > 0) & (behind < 1e-5)).any():
                    to_rois[k] = math.nan
                out[(k, c, *bin)] = values[best, c]
                to_map[n, own][c] += g * reduce(np.multiply.outer, [row.weight for row in rows])
                for axis, row in enumerate(rows):
                    along = np.moveaxis(finite[n, own][c], axis, 0)
                    for other in reversed(rows[:axis] + rows[axis + 1 :]):
                        along = along @ other.weight
                    to_rois[k, [rank - axis, 2 * rank - axis]] += g * np.array([row.lo @ along, row.hi @ along])
    return out, to_map, to_rois


def _is_finite(box: list[float], scale: Sequence[float]) -> bool:
    """The box's edges on the map and its sizes are numbers; Python's floats are float64."""
    rank = len(scale)
    lows, highs = (
        [edge * factor for edge, factor in zip(part, scale[::-1], strict=True)] for part in (box[:rank], box[rank:])
    )
    return all(map(math.isfinite, (*box, *lows, *highs, *(high - low for low, high in zip(lows, highs, strict=True)))))


def _weighed(image: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """Per channel; a cell without weight is never read."""
    cells = [along.nonzero()[0] for along in weights]
    values = image[np.ix_(range(len(image)), *cells)]
    with np.errstate(invalid="ignore"):  # inf - inf
        for along, kept in zip(weights[::-1], cells[::-1], strict=True):
            values = values @ along[kept]
    return values


def _rows_of_bins(
    kind: str, low: float, high: float, bins: int, length: int, scale: float, ratio: int, aligned: bool, real: Real
) -> list[list[Row]] | None:
    """For each bin one row, or for a maximum the rows to choose from; None if there are too many to visit."""
    if kind in ("cells", "ps_cells"):
        ratio = 0
    if max(length, ratio, abs(low * scale), abs(high * scale)) > 2**23:
        real = np.float64  # a float32 has no fraction there
    if kind == "integral" and max(abs(low * scale), abs(high * scale)) > 2**50:
        return None  # where the box ends on the map hangs on roundings
    if kind == "integral" and 0 < (high - low) * scale < 1e-35:
        return None  # whether a weight is 0, and its cell not read, hangs on the kernels' type
    if kind == "integral":
        return [[row] for row in _integral_rows(low, high, bins, length, scale)]
    if kind == "cells":
        each = np.eye(length)
        cells = _bin_cells(low, high, bins, scale, length, real, whole=True)
        return [[Row(each[cell], 0 * each[cell], 0 * each[cell]) for cell in part] for part in cells]
    if kind == "ps_cells":
        parts = _bin_cells(low, high, bins, scale, length, real, whole=False)
        return [[Row.empty(length)._replace(weight=np.eye(length)[part].mean(0))] if part else [] for part in parts]
    if kind == "ps_avg":
        kind, aligned = "avg", True
    rows = []
    for p in range(bins):
        visited = _sample_rows(low, high, p, bins, length, scale, ratio, aligned, real)
        if visited is None:
            return None
        samples, grid = visited
        if kind == "avg":
            rows.append([Row(*(np.sum([row[i] for row in samples], 0) / grid for i in range(3)))] if samples else [])
        else:
            rows.append(samples)
    return rows


def _sample_rows(
    low: float, high: float, p: int, bins: int, length: int, scale: float, ratio: int, aligned: bool, real: Real
) -> tuple[list[Row], int] | None:
    """The rows of a bin's samples in order, and how many samples there are. Of a large grid only the samples on the map
    and some beyond either border are visited."""
    offset = real(0.5 if aligned else 0)
    start = real(low) * real(scale) - offset
    size = (real(high) * real(scale) - offset) - start
    resizes = aligned or size > 1
    step = (size if resizes else real(1)) / real(bins)
    grid = ratio if ratio > 0 else max(0, math.ceil(step))
    first, end = 0, grid
    if grid > 200:
        if abs(float(start)) + abs(float(size)) > 2**50 or not step:
            return None
        ends = [(border - float(start) - p * float(step)) / float(step) * grid for border in (-1.0, float(length))]
        first, end = max(0, math.floor(min(ends)) - 50), min(grid, math.ceil(max(ends)) + 50)
        if end - first > 400:
            return None
    rows = [Row.empty(length)] if end <= first and grid else []
    for i in range(first, end):
        row = Row.empty(length)
        position = (start + real(p) * step) + (real(i) + real(0.5)) * step / real(grid)
        for cell, weight in _clamped_taps(position, length):
            row.weight[cell] = weight
        if 0 <= position < length - 1:  # where the sample moves the value: to the right, at a cell's centre
            along = (p + (i + 0.5) / grid) / bins if resizes else 0.0
            cell = int(position)
            row.lo[cell : cell + 2] = -scale * (1 - along), scale * (1 - along)
            row.hi[cell : cell + 2] = -scale * along, scale * along
        rows.append(row)
    return rows, grid


def _integral_rows(low: float, high: float, bins: int, length: int, scale: float) -> list[Row]:
    """Precise RoI pooling in exact fractions, from the bins' edges as float64 has them."""
    start = low * scale
    bin = max(high * scale - start, 0.0) / bins
    rows = []
    for p in range(bins):
        row = Row.empty(length)
        for cell in range(length) if bin > 0 else ():
            width = Fraction(bin)
            near = Fraction(start + p * bin) - cell
            far = near + width
            if far <= -1 or near >= 1:
                continue
            mean = (_area(far) - _area(near)) / width
            moved = (_hat(far) - _hat(near)) / width
            grown = ((p + 1) * _hat(far) - p * _hat(near) - mean) / width / bins
            row.weight[cell], row.lo[cell], row.hi[cell] = mean, scale * float(moved - grown), scale * float(grown)
        rows.append(row)
    return rows


def _hat(t: Fraction) -> Fraction:
    return max(Fraction(0), 1 - abs(t))


def _area(t: Fraction) -> Fraction:
    """The integral of the hat from -1 to t."""
    t = min(max(t, Fraction(-1)), Fraction(1))
    return Fraction(1, 2) + t - t * abs(t) / 2
