"""The rules of ``axis.py`` once more, for Triton: which cells a bin touches and with what weight.

Compiled without fused multiply-adds: a sample must fall on the same side of a cell's centre and of the border as the
formula evaluated step by step in the type of the box. A window is the tuple (start, bin, grid) of ``axis.Window``; bins
``p``, samples and cells are whole numbers held in the window's type.

A rule says how a bin's samples are summed: "visit" one after the other, which are few; "count" those between two cells
in closed form; "integral", where a bin is cut into pieces at the cells' centres and each acts as one sample. Whole
cells are "cells", or "inner" where the box ends before its last one and the map's last one is never read.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def divide(a, b):
    """Rounded to nearest, as Triton's own division of float32 is not. Both are of one type."""
    return a / b if a.dtype == tl.float64 else tl.math.div_rn(a, b)


@triton.jit
def place(lo, hi, scale, bins, ratio, RULE: tl.constexpr, ALIGNED: tl.constexpr):
    """The window of a box along one axis, and whether its length follows the edges."""
    # One return at the end here and below: Triton goes on behind an earlier one.
    if RULE == "cells" or RULE == "inner":
        start = rounded(lo * scale)
        LAST: tl.constexpr = 1 if RULE == "cells" else 0
        size = tl.maximum(rounded(hi * scale) - start + LAST, 1.0)
        resizes = size < size
    else:
        offset = 0.5 if ALIGNED else 0.0
        start = lo * scale - offset
        size = (hi * scale - offset) - start
        resizes = size == size
        if RULE == "integral":
            size = tl.maximum(size, 0.0)
        elif not ALIGNED:
            resizes = size > 1.0
            size = tl.maximum(size, 1.0)
    bin = divide(size, bins.to(lo.dtype))
    if RULE == "visit" or RULE == "count":
        grid = tl.where(ratio > 0, ratio.to(lo.dtype), tl.maximum(tl.ceil(bin), 0.0))
    else:
        grid = tl.zeros_like(bin) + 1
    return (start, bin, grid), resizes


@triton.jit
def rounded(value):
    """To a whole number, halves away from 0."""
    whole = tl.where(value < 0, tl.ceil(value), tl.floor(value))
    away = tl.where(tl.abs(value - whole) >= 0.5, 1.0, 0.0)
    return whole + tl.where(value < 0, -away, away)


@triton.jit
def mirrored(window, i):
    """Samples in the bin's order from those by ascending position, or back: those of an inverted box run backwards."""
    _, bin, grid = window
    return tl.where(bin < 0, grid - 1 - i, i)


@triton.jit
def position(window, p, i):
    """Of the samples, counted by ascending position."""
    start, bin, grid = window
    return (start + p * bin) + divide((mirrored(window, i) + 0.5) * bin, tl.maximum(grid, 1.0))


@triton.jit
def previous(i):
    """The sample before this one. Beyond 2**53 there are samples that no float64 counts: they are passed over."""
    return tl.minimum(i - 1, i * (1 - 2.0**-53))


@triton.jit
def reach(window, p, length, RULE: tl.constexpr):
    """First cell of the bins p and the number of cells; none where nothing of the bin is inside the map."""
    start, bin, grid = window
    top = (length - 1).to(bin.dtype)
    if RULE == "cells" or RULE == "inner":
        stop = top if RULE == "inner" else top + 1
        first = tl.minimum(tl.maximum(tl.floor(p * bin) + start, 0.0), stop).to(tl.int32)
        end = tl.minimum(tl.maximum(tl.ceil((p + 1) * bin) + start, 0.0), stop).to(tl.int32)
        taps = tl.maximum(end - first, 0)
    else:
        ENDS: tl.constexpr = 2 if RULE == "integral" else 1
        if RULE == "integral":
            low = start + p * bin
            high = low + bin
            touches = tl.where(bin > 0, 1, 0) * tl.where((high > -1.0) & (low < top + 1), 1, 0)
        else:
            low = position(window, p, tl.zeros_like(p))
            high = position(window, p, tl.zeros_like(p) + (grid - 1))
            touches = tl.where(grid > 0, 1, 0) * tl.where((high >= -1.0) & (low <= top + 1), 1, 0)
        first = tl.floor(tl.minimum(tl.maximum(low, 0.0), top)).to(tl.int32)
        # One more where the bin ends on a cell's centre: of weight 0, but not of slope 0. And where an integral's bin
        # ends hangs on a rounding.
        last = tl.minimum(tl.floor(tl.minimum(tl.maximum(high, 0.0), top)).to(tl.int32) + ENDS, length - 1)
        taps = touches * (last - first + 1)
    return first, taps


@triton.jit
def samples_before(window, p, edge, length, ratio, halvings):
    """How many samples of the bins p lie before a cell's centre; up to L, inclusive. See ``axis._first_samples``."""
    _, bin, grid = window
    is_last = edge == length.to(bin.dtype)
    low = tl.zeros_like(p + edge) - 1
    high = tl.zeros_like(low) + grid
    if ratio == 0:  # an adaptive step is near one cell, so that a division finds the sample but for a few
        step = divide(tl.abs(bin), tl.maximum(grid, 1.0))
        step = tl.where(step > 0, step, 1.0)
        guess = tl.ceil(divide(edge - position(window, p, tl.zeros_like(p)), tl.zeros_like(low) + step))
        high = tl.minimum(tl.maximum(guess + 16, 0.0), high)
        low = tl.minimum(tl.maximum(guess - 16, -1.0), high - 1)
    for _ in range(halvings):
        middle = tl.floor(low + (high - low) / 2)
        at = position(window, p, middle)
        before = (at < edge) | (is_last & (at == edge))
        searching = (low < middle) & (middle < high)
        low = tl.where(searching & before, middle, low)
        high = tl.where(searching & (before == 0), middle, high)
    return high


@triton.jit
def _between(window, p, cell, length, begin, end):
    """Of the samples [begin, end) between a cell and the next: what they give to the next, how many of them move with
    the box, and their mean place along the bin. Clamped to the border, all give to the one cell that is there."""
    _, bin, grid = window
    number = end - begin
    tail = previous(end)
    offset = (position(window, p, begin) - cell) + (position(window, p, tail) - cell)
    # Without samples these are elsewhere, perhaps infinite.
    inside = (number > 0) & (cell >= 0) & (cell < (length - 1).to(bin.dtype))
    to_next = tl.where(inside, number * (offset / 2), tl.where(cell < 0, number, 0.0))
    place = (mirrored(window, (begin + tail) / 2) + 0.5) / tl.maximum(grid, 1.0)
    return to_next, tl.where(inside, number, 0.0), tl.where(inside, place, 0.0)


@triton.jit
def _piece(window, p, cell):
    """The piece of the bin between a cell and the next: what it gives to the next, its share of the bin, its place."""
    start, bin, _ = window
    begin = start + p * bin
    skipped = tl.maximum(cell - begin, 0.0)  # of the bin, before the piece
    piece = tl.minimum(tl.minimum(cell + 1 - begin, bin - skipped), tl.minimum(bin, 1.0))
    piece = tl.maximum(piece, 0.0)
    whole = tl.zeros_like(piece) + tl.where(bin > 0, bin, 1.0)
    share = piece / whole
    return share * (tl.maximum(begin - cell, 0.0) + piece / 2), share, (skipped + piece / 2) / whole


@triton.jit
def hat(at, cell, top, SLOPES: tl.constexpr):
    """What a sample weighs on the cells up to ``top``; how that follows it, by the right-hand slope at a centre."""
    clamped = tl.minimum(tl.maximum(at, 0.0), top)
    below = tl.floor(clamped)
    fraction = clamped - below
    here = tl.where(cell == below, 1 - fraction, tl.where(cell == below + 1, fraction, 0.0))
    weight = tl.where((at >= -1.0) & (at <= top + 1), here, 0.0)
    slope = weight
    if SLOPES:
        slope = tl.where(cell == below, -1.0, tl.where(cell == below + 1, 1.0, 0.0))
        slope = tl.where((at >= 0.0) & (at < top), slope, 0.0)
    return weight, slope


@triton.jit
def visited(window, p, cell, bins, length, resizes, ratio, SLOPES: tl.constexpr):
    """What the bins p weigh on the cells, times the grid; how that follows the two edges, in cells."""
    _, bin, grid = window
    top = (length - 1).to(bin.dtype)
    weight = tl.zeros_like(p + cell)
    to_lo = tl.zeros_like(weight)
    to_hi = tl.zeros_like(weight)
    i = tl.zeros_like(p)
    for _ in range(ratio):
        here, slope = hat(position(window, p, i), cell, top, SLOPES)
        weight += here
        if SLOPES:
            along = tl.where(resizes, (p + (mirrored(window, i) + 0.5) / grid) / bins, 0.0)
            to_lo += slope * (1 - along)
            to_hi += slope * along
        i += 1
    return weight, to_lo, to_hi


@triton.jit
def summed(window, p, cell, bins, length, resizes, ratio, halvings, RULE: tl.constexpr):
    """The same, from what lies between the cell and either neighbour."""
    if RULE == "count":
        before = samples_before(window, p, cell - 1, length, ratio, halvings)
        here = samples_before(window, p, cell, length, ratio, halvings)
        beyond = samples_before(window, p, cell + 1, length, ratio, halvings)
        left, left_moves, left_place = _between(window, p, cell - 1, length, before, here)
        right, right_moves, right_place = _between(window, p, cell, length, here, beyond)
        weight = ((beyond - here) - right) + left
    else:
        left, left_moves, left_place = _piece(window, p, cell - 1)
        right, right_moves, right_place = _piece(window, p, cell)
        weight = (right_moves - right) + left
    left_along = tl.where(resizes, (p + left_place) / bins, 0.0)
    right_along = tl.where(resizes, (p + right_place) / bins, 0.0)
    to_lo = left_moves * (1 - left_along) - right_moves * (1 - right_along)
    to_hi = left_moves * left_along - right_moves * right_along
    return weight, to_lo, to_hi
