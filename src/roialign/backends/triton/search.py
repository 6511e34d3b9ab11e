"""The first maximum of each bin's candidates: a bin and a channel to a lane, all candidates in their order.

All who look for it do so here, and compiled alike: where samples all but coincide a rounding decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ...spec import KINDS, Pooling
from .blocks import bins_at_once, cdiv, forward_blocks, forward_offset
from .candidates import Candidates
from .maps import map_of, strides_of

UNFUSED = {"enable_fp_fusion": False, "num_stages": 1}


@triton.jit
def bins_of(bins, k, along: tl.constexpr, p, live, P: tl.constexpr):
    """First slot and number of candidates of the bins p; 0 where not live."""
    at = bins + (k * 2 + along) * (4 * P) + p
    return tl.load(at + 2 * P, mask=live, other=0), tl.load(at + 3 * P, mask=live, other=0)


@triton.jit
def _column(at, sh, near_y, far_y, weight, live, real: tl.constexpr):
    """Two cells, one below the other, of a column of this weight. One of weight 0 must not count, whatever it holds."""
    # Weights are compared as blocks, since a scalar truth cannot meet a block of them in the interpreter.
    upper = tl.load(at, mask=live & (tl.where(near_y != 0, weight, 0.0) != 0), other=0.0)
    lower = tl.load(at + sh, mask=live & (tl.where(far_y != 0, weight, 0.0) != 0), other=0.0)
    return near_y * upper.to(real) + far_y * lower.to(real)


@triton.jit
def search(
    maps, sh, sw, c, c_live, cell, near, far, slot_y, count_y, slot_x, count_x, SAMPLES: tl.constexpr,
    OFFSET: tl.constexpr,
):  # fmt: skip
    """The maxima of a row of bins, whose y candidates are scalars, and their slots; 0 and -1 in an empty bin."""
    real: tl.constexpr = near.dtype.element_ty
    shape: tl.constexpr = (c + slot_x).shape
    best = tl.full(shape, float("-inf"), real)
    top = tl.full(shape, -1, tl.int32)
    left = tl.full(shape, -1, tl.int32)
    most = tl.max(count_x)
    for i in range(count_y):
        slot = slot_y + i
        if SAMPLES:
            y = tl.load(cell + slot)
            near_y = tl.load(near + slot)
            far_y = tl.load(far + slot)
        else:
            y = slot
        row = maps + y.to(tl.int64) * sh
        for j in range(most):
            real_x = count_x > j
            live = real_x & c_live
            if SAMPLES:
                x = tl.load(cell + slot_x + j, mask=real_x, other=0)
                near_x = tl.load(near + slot_x + j, mask=real_x, other=0.0)
                far_x = tl.load(far + slot_x + j, mask=real_x, other=0.0)
                at = row + (x.to(OFFSET) * sw + c)
                value = near_x * _column(at, sh, near_y, far_y, near_x, live, real)
                value += far_x * _column(at + sw, sh, near_y, far_y, far_x, live, real)
            else:
                x = slot_x + j
                value = tl.load(row + (x.to(OFFSET) * sw + c), mask=live, other=0.0).to(real)
            wins = live & ((value > best) | ((value != value) & (best == best)))
            best = tl.where(wins, value, best)
            top = tl.where(wins, slot, top)
            left = tl.where(wins, slot_x + j, left)
    filled = tl.where(count_y > 0, count_x, 0) > 0
    # Where all are -inf, the first one.
    top = tl.where(filled & (top < 0), slot_y, top)
    left = tl.where(filled & (left < 0), slot_x, left)
    return tl.where(filled, best, 0.0), top, left


@triton.jit(do_not_specialize=["line", "programs"])
def _choose(
    maps, sn, sc, sh, sw, out, on, oc, oh, ow, bins, boxes, cell, near, far, line, programs, channels,
    PH: tl.constexpr, PW: tl.constexpr, P: tl.constexpr, BC: tl.constexpr, QB: tl.constexpr, SAMPLES: tl.constexpr,
    LAST: tl.constexpr, WINNERS: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of channels * programs), these being K * PH * blocks of bins: a row of bins. The maxima, or their
    slots."""
    blocks: tl.constexpr = (PW + QB - 1) // QB
    one = tl.program_id(0) % programs
    k = (one // (PH * blocks)).to(tl.int64)
    p = one // blocks % PH
    q = one % blocks * QB + tl.arange(0, QB)
    c0 = (tl.program_id(0) // programs).to(tl.int64) * BC
    c = tl.arange(0, BC)
    q = q[:, None] if LAST else q[None, :]
    c = c[None, :] if LAST else c[:, None]
    c_live = c0 + c < channels
    c = c.to(OFFSET)
    image, base, channel, down, across = map_of(boxes, k, maps, sn, sc, sh, sw, c0, LAST)
    slot_y, count_y = bins_of(bins, k, 0, p, True, P)
    slot_x, count_x = bins_of(bins, k, 1, q, q < PW, P)
    row = k * line
    best, top, left = search(
        base, down, across, c * channel, c_live, cell + row, near + row, far + row, slot_y, count_y,
        slot_x, count_x, SAMPLES, OFFSET,
    )  # fmt: skip
    to = out + k * on + c0 * oc + (c * oc + (p.to(OFFSET) * oh + q.to(OFFSET) * ow))
    live = c_live & (q < PW)
    if WINNERS:
        tl.store(to, top, mask=live)
        tl.store(to + channels, left, mask=live)
    else:
        tl.store(to, tl.where(image < 0, float("nan"), best).to(out.dtype.element_ty), mask=live)


def find(maps: Sequence[Tensor], candidates: Candidates, spec: Pooling, to: Tensor, winners: bool) -> None:
    """The maxima, ``[K, C, PH, PW]``, or their slots."""
    if to.numel() == 0:
        return
    height, width = spec.output_size
    last = all(each.stride(1) == 1 for each in maps)
    size, bins = forward_blocks(to, gathers=True), bins_at_once(width)
    programs = to.shape[0] * height * cdiv(width, bins)
    _choose[(programs * cdiv(to.shape[1], size.channels),)](
        tuple(maps), *strides_of(maps, last), to, *to.stride(), *candidates[:5], candidates.cell.shape[1], programs,
        to.shape[1],
        PH=height, PW=width, P=max(height, width), BC=size.channels, QB=bins, SAMPLES=KINDS[spec.kind].samples,
        LAST=last, WINNERS=winners, OFFSET=forward_offset(maps, to, size.channels), num_warps=size.warps, **UNFUSED,
    )  # fmt: skip
