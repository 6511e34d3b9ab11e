"""Where boxes lie that are rotated, or whose bins move: a few numbers of each box, and the cells around each bin.

Made by one small kernel, without fused multiply-adds; the rules are those of ``axis.py``. Of box ``k``, on its frame::

    0        1 if its positions can be computed in float32
    1, 2     scales of its map along y and x
    3, 4     cells of its map along y and x
    5 .. 8   along y, or the box's height: start of the bins, length and samples of a bin; and of moved bins the size of
             the box, of rotated ones the scale by which the size follows the box
    9 .. 12  the same along x, or the box's width
    13 .. 16 of a rotated box the centre's y and x, the sine and cosine of its angle
    17       more than its positions near the map are rounded by

All are exact in the float64 that they are kept in. Around each bin lie its first row, the one after its last, and its
columns likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import axis
from ...spec import Pooling
from .rules import divide, place, reach
from .tables import MOST_CELLS, find_box, fits_float32, of_boxes

FRAME = tl.constexpr(18)
MOST_COUNTED = tl.constexpr(axis.MOST_COUNTED)


class Frames(NamedTuple):
    """Of K boxes with B bins, as the head of this file lays them out; ``boxes`` is that of ``tables.py``.

    Attributes:
        boxes: int32 ``[K, 2, 3]``.
        frame: float64 ``[K, FRAME]``.
        around: int32 ``[K, 4, B]``.
    """

    boxes: Tensor
    frame: Tensor
    around: Tensor


def make_frames(
    shapes: Sequence[Sequence[int]], rois: Tensor, level: Tensor | None, spec: Pooling, rule: str
) -> Frames:
    """Arguments as those of ``tables.make_tables``; ``rule`` is that of moved bins."""
    count, bins = rois.shape[0], spec.output_size[0] * spec.output_size[1]
    made = Frames(
        rois.new_empty(count, 2, 3, dtype=torch.int32),
        rois.new_empty(count, FRAME.value, dtype=torch.float64),
        rois.new_empty(count, 4, bins, dtype=torch.int32),
    )
    if count:
        arguments, constants = of_boxes(shapes, rois, level, spec, slopes=False)
        del constants["SLOPES"], constants["TB"], constants["P"], constants["LINE"]
        # Rounded once from float64, so that every backend has the same.
        angle = rois[:, 5].double()
        _frames[(count,)](
            *arguments[:-1], angle.sin(), angle.cos(), *made, ROTATED=spec.kind == "rotated", RULE=rule, **constants
        )
    return made


@triton.jit(do_not_specialize=["images", "ratio"])
def _frames(
    rois, level, images, lengths, scales, counts, ratio, sin, cos, boxes, frame, around, LEVELS: tl.constexpr,
    COLUMNS: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr, PB: tl.constexpr, ROTATED: tl.constexpr,
    RULE: tl.constexpr,
):  # fmt: skip
    """Grid (K): one box."""
    k = tl.program_id(0).to(tl.int64)
    zero = tl.program_id(0) * 0
    image, one, y1, y2, scale_y, height = find_box(
        rois, level, k, zero, images, lengths, scales, LEVELS, False, COLUMNS, ROTATED
    )
    _, _, x1, x2, scale_x, width = find_box(
        rois, level, k, zero + 1, images, lengths, scales, LEVELS, False, COLUMNS, ROTATED
    )
    bins = counts[0] * counts[1]
    shift = rois + k * COLUMNS + 5
    fits = fits_float32(y1, y2, scale_y, height, ratio) * fits_float32(x1, x2, scale_x, width, ratio)
    bad = zero
    if ROTATED:
        angle = tl.load(shift)
        bad = tl.where(angle - angle == 0, 0, 1)
        sin = tl.load(sin + k)
        cos = tl.load(cos + k)
    else:
        wide = (x2 - x1) * scale_x.to(x1.dtype)
        high = (y2 - y1) * scale_y.to(x1.dtype)
        for b0 in range(0, bins, PB):
            b = b0 + tl.arange(0, PB)
            along_x = tl.load(shift + b, mask=b < bins, other=0.0)
            along_y = tl.load(shift + bins + b, mask=b < bins, other=0.0)
            far = tl.maximum(tl.abs(wide * along_x), tl.abs(high * along_y))
            fits = tl.where(tl.max(far) <= MOST_CELLS, fits, 0)
            size_y = (y2.to(tl.float64) * scale_y - y1.to(tl.float64) * scale_y) * along_y.to(tl.float64)
            size_x = (x2.to(tl.float64) * scale_x - x1.to(tl.float64) * scale_x) * along_x.to(tl.float64)
            off = (along_x - along_x).to(tl.float64) + (along_y - along_y).to(tl.float64)
            off += (size_x - size_x) + (size_y - size_y)
            bad = tl.maximum(bad, tl.max(tl.where(off == 0, 0, 1)))
    image = tl.where(bad == 1, -1, image)
    box = boxes + k * 6
    tl.store(box + 2, image)
    tl.store(box + 5, one)
    if WIDE:
        fits = zero
    frame += k * FRAME
    tl.store(frame, fits.to(tl.float64))
    tl.store(frame + 1, scale_y)
    tl.store(frame + 2, scale_x)
    tl.store(frame + 3, height.to(tl.float64))
    tl.store(frame + 4, width.to(tl.float64))
    around += k * 4 * bins
    live = tl.where(image >= 0, bins, 0)
    places = (y1, x1, y2, x2, scale_y, scale_x, height, width, zero + counts[0], zero + counts[1])
    if fits == 1:
        _bins(places, shift, sin, cos, ratio, live, box, frame, around, ROTATED, RULE, ALIGNED, PB, tl.float32)
    else:
        _bins(places, shift, sin, cos, ratio, live, box, frame, around, ROTATED, RULE, ALIGNED, PB, tl.float64)


@triton.jit
def _bins(
    places, shift, sin, cos, ratio, live, box, frame, around, ROTATED: tl.constexpr, RULE: tl.constexpr,
    ALIGNED: tl.constexpr, PB: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The rest of the frame, with positions of type T, and from it the cells around each bin, PB of them at a time."""
    y1, x1, y2, x2, scale_y, scale_x, height, width, down, across = places
    bins = down * across
    if ROTATED:
        half = 0.5 if ALIGNED else 0.0
        y = y1.to(T) * scale_y.to(T) - half
        x = x1.to(T) * scale_x.to(T) - half
        rows, scale_y = _side(y2.to(T) * scale_y.to(T), scale_y, down, ratio, ALIGNED)
        columns, scale_x = _side(x2.to(T) * scale_x.to(T), scale_x, across, ratio, ALIGNED)
        turn = (y.to(tl.float64), x.to(tl.float64), sin.to(T).to(tl.float64), cos.to(T).to(tl.float64))
        size = tl.abs(rows[0]) + tl.abs(columns[0]) + tl.abs(y) + tl.abs(x)
        rounding = 2.0**-18 if tl.float32 == T else 2.0**-47
        slack = 0.001 + rounding * (size.to(tl.float64) + height + width)
        for i in tl.static_range(4):
            tl.store(frame + 13 + i, turn[i])
        tl.store(frame + 17, slack)
        extra = (scale_y, scale_x)
    else:
        rows, _ = place(y1.to(T), y2.to(T), scale_y.to(T), down, ratio, "count", True)
        columns, _ = place(x1.to(T), x2.to(T), scale_x.to(T), across, ratio, "count", True)
        rows = _counted(rows, down, ratio)
        columns = _counted(columns, across, ratio)
        extra = ((y2.to(T) * scale_y.to(T) - 0.5) - rows[0], (x2.to(T) * scale_x.to(T) - 0.5) - columns[0])
    for i in tl.static_range(3):
        tl.store(frame + 5 + i, rows[i].to(tl.float64))
        tl.store(frame + 9 + i, columns[i].to(tl.float64))
    tl.store(frame + 8, extra[0].to(tl.float64))
    tl.store(frame + 12, extra[1].to(tl.float64))

    first_row = height
    first_column = width
    last_row = height * 0
    last_column = last_row
    for b0 in range(0, bins, PB):
        b = b0 + tl.arange(0, PB)
        p = (b // across).to(T)
        q = (b % across).to(T)
        real = b < live
        if ROTATED:
            top, bottom, left, right = _around(rows, columns, p, q, turn, slack, height, width)
        else:
            shift_x = tl.load(shift + b, mask=b < bins, other=0.0).to(T)
            shift_y = tl.load(shift + bins + b, mask=b < bins, other=0.0).to(T)
            start_y = (rows[0] + p * rows[1]) + extra[0] * shift_y
            start_x = (columns[0] + q * columns[1]) + extra[1] * shift_x
            top, bottom = reach((start_y, rows[1], rows[2]), tl.zeros_like(p), height, RULE)
            left, right = reach((start_x, columns[1], columns[2]), tl.zeros_like(q), width, RULE)
            bottom += top
            right += left
        filled = real & (top < bottom) & (left < right)
        bottom = tl.where(filled, bottom, top)
        right = tl.where(filled, right, left)
        tl.store(around + b, top, mask=b < bins)
        tl.store(around + bins + b, bottom, mask=b < bins)
        tl.store(around + 2 * bins + b, left, mask=b < bins)
        tl.store(around + 3 * bins + b, right, mask=b < bins)
        first_row = tl.minimum(first_row, tl.min(tl.where(filled, top, height)))
        last_row = tl.maximum(last_row, tl.max(tl.where(filled, bottom, 0)))
        first_column = tl.minimum(first_column, tl.min(tl.where(filled, left, width)))
        last_column = tl.maximum(last_column, tl.max(tl.where(filled, right, 0)))
    tl.store(box, first_row)
    tl.store(box + 1, last_row)
    tl.store(box + 3, first_column)
    tl.store(box + 4, last_column)


@triton.jit
def _side(size, scale, bins, ratio, ALIGNED: tl.constexpr):
    """The samples along one side of a rotated box about its centre; the scale by which the side follows the box."""
    if not ALIGNED:
        scale = tl.where(size > 1.0, scale, 0.0)
        size = tl.where(size > 1.0, size, 1.0)
    bin = divide(size, bins.to(size.dtype))
    grid = tl.where(ratio > 0, (bins * 0 + ratio).to(size.dtype), tl.maximum(tl.ceil(bin), 0.0))
    return _counted((-size / 2, bin, grid), bins, ratio), scale


@triton.jit
def _counted(window, bins, ratio):
    """Without a sample where an adaptive grid has more along the axis than weigh anything, see ``axis.py``."""
    start, bin, grid = window
    return start, bin, tl.where((ratio > 0) | (grid * bins < MOST_COUNTED), grid, 0.0)


@triton.jit
def _around(rows, columns, p, q, turn, slack, height, width):
    """The cells that the samples of rotated bins may touch: those between the samples at a bin's corners."""
    y, x, sin, cos = turn
    top, low = _ends(rows, p)
    left, right = _ends(columns, q)
    mean_y = (top + low) / 2 * cos - (left + right) / 2 * sin + y
    mean_x = (top + low) / 2 * sin + (left + right) / 2 * cos + x
    half_y = tl.abs((low - top) / 2 * cos) + tl.abs((right - left) / 2 * sin) + slack
    half_x = tl.abs((low - top) / 2 * sin) + tl.abs((right - left) / 2 * cos) + slack
    counted = (rows[2] > 0) & (columns[2] > 0)
    first_y, end_y = _cells(mean_y - half_y, mean_y + half_y, height)
    first_x, end_x = _cells(mean_x - half_x, mean_x + half_x, width)
    return first_y, tl.where(counted, end_y, first_y), first_x, tl.where(counted, end_x, first_x)


@triton.jit
def _ends(window, p):
    """The first and the last sample of the bins p, in float64."""
    start = window[0].to(tl.float64) + p.to(tl.float64) * window[1].to(tl.float64)
    bin = window[1].to(tl.float64)
    half = 0.5 / tl.maximum(window[2].to(tl.float64), 1.0)
    return start + half * bin, start + (1 - half) * bin


@triton.jit
def _cells(low, high, length):
    """The cells that samples between two positions may touch; none where all are beyond the border."""
    top = (length - 1).to(tl.float64)
    first = tl.floor(tl.minimum(tl.maximum(low, 0.0), top)).to(tl.int32)
    end = tl.minimum(tl.floor(tl.minimum(tl.maximum(high, 0.0), top)).to(tl.int32) + 2, length)
    return first, tl.where((high >= -1.0) & (low <= top + 1), end, first)
