"""What a cell weighs in a bin, for ``gather.py``: from the tables of the axes, or of bins that lie anywhere.

A form is a tuple of tensors and numbers, and ``FORM`` says of what::

    "tables"     bins, weight, dlo, dhi of ``tables.py``, and the length of a row of weights, coded as in ``maps.py``
    "moved"      frames and bounds of ``frames.py``, rois, the ratio and the halvings of ``rules.py``
    "rotated"    frames and bounds of ``frames.py``

Bin (o, p, q) is counted along z, y and x. Positions are computed in the type that the box asks for, and what lies there
is compiled without fused multiply-adds.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .frames import FRAME
from .maps import decoded
from .rules import divide, hat, mirrored, position, summed, visited
from .tables import bins_of


@triton.jit
def product(a, b):
    """Of two weights, which is 0 only where one of them is: where it decides whether a cell counts."""
    least: tl.constexpr = 2.0**-1022 if a.dtype == tl.float64 else 2.0**-126
    return tl.where(a != 0, tl.where(b != 0, tl.maximum(a * b, least), 0.0), 0.0)


@triton.jit
def bounds(
    form, k, o, p, q, PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, FORM: tl.constexpr, DEEP: tl.constexpr
):
    """The cells of one bin: front, back, top, bottom, left, right. Outside them nothing weighs anything."""
    # One return at the end: Triton goes on behind an earlier one.
    if FORM == "tables":
        P: tl.constexpr = max(PD, PH, PW)
        AXES: tl.constexpr = 3 if DEEP else 2
        top, taps_y, _ = bins_of(form[0], k, AXES - 2, p, True, P, AXES)
        left, taps_x, _ = bins_of(form[0], k, AXES - 1, q, True, P, AXES)
        front = left * 0
        taps_z = front + 1
        if DEEP:
            front, taps_z, _ = bins_of(form[0], k, 0, o, True, P, AXES)
        back = front + taps_z
        bottom = top + tl.where(taps_x > 0, taps_y, 0)
        right = left + taps_x
    else:
        BINS: tl.constexpr = PH * PW
        at = form[1] + k * (4 * BINS) + p * PW + q
        top = tl.load(at)
        bottom = tl.load(at + BINS)
        left = tl.load(at + 2 * BINS)
        right = tl.load(at + 3 * BINS)
        front = left * 0
        back = front + 1
    return front, back, top, bottom, left, right


@triton.jit
def weigh(
    form, k, o, p, q, z, y0, x0, y, x, PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, FORM: tl.constexpr,
    DEEP: tl.constexpr, RULE: tl.constexpr, WIDE: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    """Of each of the cells (z, y, x), which are those of a tile TY x TX at (y0, x0)."""
    if FORM == "tables":
        P: tl.constexpr = max(PD, PH, PW)
        AXES: tl.constexpr = 3 if DEEP else 2
        bins, weight, _dlo, _dhi, line = form
        weight += k * decoded(line)
        w = product(
            _matrix_row(bins, weight, k, AXES - 2, p, y, P, AXES), _matrix_row(bins, weight, k, AXES - 1, q, x, P, AXES)
        )
        if DEEP:
            w = product(w, _matrix_row(bins, weight, k, 0, o, z, P, AXES))
    else:
        w = _placed(form, k, p, q, y0, x0, y, x, PH, PW, FORM, RULE, WIDE, TY, TX, REAL, False)[0]
    return w


@triton.jit
def rates(
    form, k, o, p, q, z, y0, x0, y, x, PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, FORM: tl.constexpr,
    DEEP: tl.constexpr, RULE: tl.constexpr, WIDE: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    """How the weights follow what places the bin, six numbers of which some may not be there.

    Of the tables: x1, y1, x2, y2, z1, z2. Moved: the first four, and the bin's shift along x and along y. Rotated: the
    centre's x and y, the width, the height, the angle.
    """
    if FORM == "tables":
        P: tl.constexpr = max(PD, PH, PW)
        AXES: tl.constexpr = 3 if DEEP else 2
        bins, weight, dlo, dhi, line = form
        row = k * decoded(line)
        wy = _matrix_row(bins, weight + row, k, AXES - 2, p, y, P, AXES)
        wx = _matrix_row(bins, weight + row, k, AXES - 1, q, x, P, AXES)
        z1 = wx * 0
        z2 = wx * 0
        if DEEP:
            z1 = wy * wx * _matrix_row(bins, dlo + row, k, 0, o, z, P, AXES)
            z2 = wy * wx * _matrix_row(bins, dhi + row, k, 0, o, z, P, AXES)
            wz = _matrix_row(bins, weight + row, k, 0, o, z, P, AXES)
            wy_lo = wz * _matrix_row(bins, dlo + row, k, AXES - 2, p, y, P, AXES)
            wy_hi = wz * _matrix_row(bins, dhi + row, k, AXES - 2, p, y, P, AXES)
            wy = wz * wy
        else:
            wy_lo = _matrix_row(bins, dlo + row, k, AXES - 2, p, y, P, AXES)
            wy_hi = _matrix_row(bins, dhi + row, k, AXES - 2, p, y, P, AXES)
        wx_lo = _matrix_row(bins, dlo + row, k, AXES - 1, q, x, P, AXES)
        wx_hi = _matrix_row(bins, dhi + row, k, AXES - 1, q, x, P, AXES)
        x1 = wy * wx_lo
        y1 = wx * wy_lo
        x2 = wy * wx_hi
        y2 = wx * wy_hi
    else:
        _, x1, y1, x2, y2, z1, z2 = _placed(form, k, p, q, y0, x0, y, x, PH, PW, FORM, RULE, WIDE, TY, TX, REAL, True)
    return x1, y1, x2, y2, z1, z2


@triton.jit
def _matrix_row(bins, values, k, along: tl.constexpr, p, cell, P: tl.constexpr, AXES: tl.constexpr):
    """What bin p weighs on the cells along an axis, or how that follows an edge; ``values`` are the box's own."""
    first, taps, slot = bins_of(bins, k, along, p, True, P, AXES)
    t = cell - first
    return tl.load(values + slot + t, mask=(t >= 0) & (t < taps), other=0.0)


@triton.jit
def _placed(
    form, k, p, q, y0, x0, y, x, PH: tl.constexpr, PW: tl.constexpr, FORM: tl.constexpr, RULE: tl.constexpr,
    WIDE: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr, REAL: tl.constexpr, SLOPES: tl.constexpr,
):  # fmt: skip
    """The weights and how they follow the box, with positions in the type that the box asks for."""
    if WIDE:
        fits: tl.constexpr = 0
    else:
        fits = tl.load(form[0] + k * FRAME) != 0
    if fits:
        w, r0, r1, r2, r3, r4, r5 = _typed(
            form, k, p, q, y0, x0, y, x, PH, PW, FORM, RULE, TY, TX, tl.float32, REAL, SLOPES
        )
    else:
        w, r0, r1, r2, r3, r4, r5 = _typed(
            form, k, p, q, y0, x0, y, x, PH, PW, FORM, RULE, TY, TX, tl.float64, REAL, SLOPES
        )
    return w, r0, r1, r2, r3, r4, r5


@triton.jit
def _typed(
    form, k, p, q, y0, x0, y, x, PH: tl.constexpr, PW: tl.constexpr, FORM: tl.constexpr, RULE: tl.constexpr,
    TY: tl.constexpr, TX: tl.constexpr, T: tl.constexpr, REAL: tl.constexpr, SLOPES: tl.constexpr,
):  # fmt: skip
    if FORM == "moved":
        w, r0, r1, r2, r3, r4, r5 = _moved(form, k, p, q, y, x, PH, PW, RULE, T, SLOPES)
    else:
        w, r0, r1, r2, r3, r4 = _rotated(form[0] + k * FRAME, p, q, y0, x0, y, x, PH, PW, TY, TX, T, SLOPES)
        r5 = r4
    return w.to(REAL), r0.to(REAL), r1.to(REAL), r2.to(REAL), r3.to(REAL), r4.to(REAL), r5.to(REAL)


# Bins that move: a window of one bin along each axis.


@triton.jit
def _moved(
    form, k, p, q, y, x, PH: tl.constexpr, PW: tl.constexpr, RULE: tl.constexpr, T: tl.constexpr, SLOPES: tl.constexpr
):
    frames, boxed, rois, ratio, halvings = form
    BINS: tl.constexpr = PH * PW
    b = p * PW + q
    frame = frames + k * FRAME
    shift = rois + k * (5 + 2 * BINS) + 5 + b
    at = boxed + k * (4 * BINS) + b
    in_y = (y >= tl.load(at)) & (y < tl.load(at + BINS))
    in_x = (x >= tl.load(at + 2 * BINS)) & (x < tl.load(at + 3 * BINS))
    wy, y_starts, y_grows = _along(
        frame + 5, tl.load(frame + 3), tl.load(shift + BINS), p, y, in_y, ratio, halvings, RULE, T, SLOPES
    )
    wx, x_starts, x_grows = _along(
        frame + 9, tl.load(frame + 4), tl.load(shift), q, x, in_x, ratio, halvings, RULE, T, SLOPES
    )
    w = product(wy, wx)
    x1 = w
    y1 = w
    x2 = w
    y2 = w
    to_x = w
    to_y = w
    if SLOPES:
        scale_y = tl.load(frame + 1).to(T)
        scale_x = tl.load(frame + 2).to(T)
        y_hi = (tl.cast(p, T) / PH + tl.load(shift + BINS).to(T)) * y_starts + y_grows / PH
        x_hi = (tl.cast(q, T) / PW + tl.load(shift).to(T)) * x_starts + x_grows / PW
        x1 = wy * (scale_x * (x_starts - x_hi))
        y1 = wx * (scale_y * (y_starts - y_hi))
        x2 = wy * (scale_x * x_hi)
        y2 = wx * (scale_y * y_hi)
        to_x = wy * (tl.load(frame + 12).to(T) * x_starts)
        to_y = wx * (tl.load(frame + 8).to(T) * y_starts)
    return w, x1, y1, x2, y2, to_x, to_y


@triton.jit
def moved_window(frame, shift, p, T: tl.constexpr):
    """Of one bin, or several, along an axis; ``frame`` has start, bin, grid and size of the box there."""
    bin = tl.load(frame + 1).to(T)
    start = (tl.load(frame).to(T) + tl.cast(p, T) * bin) + tl.load(frame + 3).to(T) * shift.to(T)
    return (start, bin, tl.load(frame + 2).to(T))


@triton.jit
def _along(
    frame, length, shift, p, cell, live, ratio, halvings, RULE: tl.constexpr, T: tl.constexpr, SLOPES: tl.constexpr
):
    """What a bin weighs on the cells along an axis, and how that follows where it starts and how long it is."""
    window = moved_window(frame, shift, p, T)
    length = length.to(tl.int32)
    cell = cell.to(T)
    first = tl.zeros_like(cell)
    one = tl.zeros_like(window[0]) + 1
    if RULE == "visit":
        w, to_lo, to_hi = visited(window, first, cell, one, length, one > 0, ratio, SLOPES)
    else:
        w, to_lo, to_hi = summed(window, first, cell, one, length, one > 0, ratio, halvings, RULE)
    grid = tl.zeros_like(w) + tl.maximum(window[2], 1.0)
    w = tl.where(live, divide(w, grid), 0.0)
    return w, tl.where(live, (to_lo + to_hi) / grid, 0.0), tl.where(live, to_hi / grid, 0.0)


# Rotated boxes: every sample by itself, of those that may lie on the tile.


@triton.jit
def _rotated(
    frame, p, q, y0, x0, y, x, PH: tl.constexpr, PW: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr, T: tl.constexpr,
    SLOPES: tl.constexpr,
):  # fmt: skip
    rows = (tl.load(frame + 5).to(T), tl.load(frame + 6).to(T), tl.load(frame + 7).to(T))
    columns = (tl.load(frame + 9).to(T), tl.load(frame + 10).to(T), tl.load(frame + 11).to(T))
    cy = tl.load(frame + 13).to(T)
    cx = tl.load(frame + 14).to(T)
    sin = tl.load(frame + 15).to(T)
    cos = tl.load(frame + 16).to(T)
    p = tl.cast(p, T)
    q = tl.cast(q, T)
    i0, down_count, j0, right_count = _near(frame, p, q, y0, x0, TY, TX)
    top_y = tl.load(frame + 3).to(T) - 1
    top_x = tl.load(frame + 4).to(T) - 1
    y = y.to(T)
    x = x.to(T)
    w = tl.zeros_like(y)
    to_x = tl.zeros_like(y)
    to_y = tl.zeros_like(y)
    to_width = tl.zeros_like(y)
    to_height = tl.zeros_like(y)
    to_angle = tl.zeros_like(y)
    for t in range(down_count):
        i = (i0 + t).to(T)
        down = position(rows, p, mirrored(rows, i))
        for u in range(right_count):
            j = (j0 + u).to(T)
            right = position(columns, q, mirrored(columns, j))
            at_y = (down * cos - right * sin) + cy
            at_x = (down * sin + right * cos) + cx
            hat_y, slope_y = hat(at_y, y, top_y, SLOPES)
            hat_x, slope_x = hat(at_x, x, top_x, SLOPES)
            w += hat_y * hat_x
            if SLOPES:
                move_y = slope_y * hat_x
                move_x = hat_y * slope_x
                high = ((p + (i + 0.5) / rows[2]) / PH - 0.5) * tl.load(frame + 8).to(T)
                wide = ((q + (j + 0.5) / columns[2]) / PW - 0.5) * tl.load(frame + 12).to(T)
                to_x += move_x
                to_y += move_y
                to_width += wide * (move_x * cos - move_y * sin)
                to_height += high * (move_y * cos + move_x * sin)
                to_angle += move_x * (down * cos - right * sin) - move_y * (down * sin + right * cos)
    count = tl.zeros_like(y) + tl.maximum(rows[2] * columns[2], 1.0)
    to_x = to_x * tl.load(frame + 2).to(T) / count
    to_y = to_y * tl.load(frame + 1).to(T) / count
    return divide(w, count), to_x, to_y, to_width / count, to_height / count, to_angle / count


@triton.jit
def _near(frame, p, q, y0, x0, TY: tl.constexpr, TX: tl.constexpr):
    """The samples of a bin that may weigh on the cells of a tile, and a few more: the first and the number of them
    along the box's height, and likewise along its width."""
    sin = tl.load(frame + 15)
    cos = tl.load(frame + 16)
    # From the box's centre to the tile's.
    y = y0 + (TY - 1) * 0.5 - tl.load(frame + 13)
    x = x0 + (TX - 1) * 0.5 - tl.load(frame + 14)
    half_y = (TY + 1) * 0.5 + tl.load(frame + 17)
    half_x = (TX + 1) * 0.5 + tl.load(frame + 17)
    down = y * cos + x * sin
    right = x * cos - y * sin
    reach_down = half_y * tl.abs(cos) + half_x * tl.abs(sin)
    reach_right = half_x * tl.abs(cos) + half_y * tl.abs(sin)
    i0, rows = _between(frame + 5, p, down - reach_down, down + reach_down)
    j0, columns = _between(frame + 9, q, right - reach_right, right + reach_right)
    return i0, rows, j0, columns


@triton.jit
def _between(axis, p, low, high):
    """The samples of bin p between two positions along an axis of the box."""
    bin = tl.load(axis + 1)
    grid = tl.load(axis + 2)
    step = bin / tl.maximum(grid, 1.0)
    start = tl.load(axis) + p.to(tl.float64) * bin
    a = (low - start) / step - 0.5
    b = (high - start) / step - 0.5
    apart = step != 0  # else all lie at one place
    first = tl.where(apart, tl.floor(tl.minimum(tl.maximum(tl.minimum(a, b), 0.0), grid)), 0.0)
    end = tl.where(apart, tl.minimum(tl.ceil(tl.minimum(tl.maximum(tl.maximum(a, b), -1.0), grid)) + 1, grid), grid)
    return first, tl.maximum(end - first, 0.0).to(tl.int32)
