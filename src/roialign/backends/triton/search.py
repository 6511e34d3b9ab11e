"""The first maximum of each bin's candidates: a bin and a channel to a lane, all candidates in their order.

A map ``[N, C, H, W]`` is a volume of depth 1 here, without a candidate along z.

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
from .maps import as_volumes, depth_stride, map_of, strides_of

UNFUSED = {"enable_fp_fusion": False, "num_stages": 1}


@triton.jit
def listed(bins, k, along: tl.constexpr, p, live, P: tl.constexpr, DEEP: tl.constexpr):
    """First slot and number of candidates of the bins p, along z, y or x: 0, 1 or 2; 0 where not live."""
    AXES: tl.constexpr = 3 if DEEP else 2
    at = bins + (k * AXES + along - (3 - AXES)) * (4 * P) + p
    return tl.load(at + 2 * P, mask=live, other=0), tl.load(at + 3 * P, mask=live, other=0)


@triton.jit
def sample_of(slot, cell, near, far, live):
    """A sample's cell and its weights on that and the next; 0 where not live."""
    first = tl.load(cell + slot, mask=live, other=0)
    return first, tl.load(near + slot, mask=live, other=0.0), tl.load(far + slot, mask=live, other=0.0)


@triton.jit
def _behind(at, sd, near_z, far_z, weight, live, real: tl.constexpr, DEEP: tl.constexpr):
    """A cell of this weight, or two of a volume, one behind the other. One of weight 0 must not count, whatever it
    holds."""
    # Weights are compared as blocks, since a scalar truth cannot meet a block of them in the interpreter.
    if DEEP:
        front = tl.load(at, mask=live & (tl.where(near_z != 0, weight, 0.0) != 0), other=0.0)
        back = tl.load(at + sd, mask=live & (tl.where(far_z != 0, weight, 0.0) != 0), other=0.0)
        value = near_z * front.to(real) + far_z * back.to(real)
    else:
        value = tl.load(at, mask=live & (weight != 0), other=0.0).to(real)
    return value


@triton.jit
def _column(at, sd, sh, near_z, far_z, near_y, far_y, weight, live, real: tl.constexpr, DEEP: tl.constexpr):
    """Those of a column of this weight."""
    upper = _behind(at, sd, near_z, far_z, tl.where(near_y != 0, weight, 0.0), live, real, DEEP)
    lower = _behind(at + sh, sd, near_z, far_z, tl.where(far_y != 0, weight, 0.0), live, real, DEEP)
    return near_y * upper + far_y * lower


@triton.jit
def search(
    maps, sd, sh, sw, c, c_live, bins, k, o, p, q, q_live, cell, near, far, P: tl.constexpr, SAMPLES: tl.constexpr,
    DEEP: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """The maxima of the bins (o, p, q) of a row, whose z and y candidates are scalars, and their slots along z, y and
    x; 0 and -1 in an empty bin."""
    slot_y, count_y = listed(bins, k, 1, p, True, P, DEEP)
    slot_x, count_x = listed(bins, k, 2, q, q_live, P, DEEP)
    slot_z = slot_y * 0
    rows = count_y
    if DEEP:
        slot_z, count_z = listed(bins, k, 0, o, True, P, DEEP)
        rows = count_z * count_y
    real: tl.constexpr = near.dtype.element_ty
    shape: tl.constexpr = (c + slot_x).shape
    best = tl.full(shape, float("-inf"), real)
    front = tl.full(shape, -1, tl.int32)
    top = tl.full(shape, -1, tl.int32)
    left = tl.full(shape, -1, tl.int32)
    most = tl.max(count_x)
    for i in range(rows):
        deep = slot_z + (i // count_y if DEEP else 0)
        slot = slot_y + (i % count_y if DEEP else i)
        y = slot
        z = deep
        near_z = 1.0
        far_z = 0.0
        if SAMPLES:
            y, near_y, far_y = sample_of(slot, cell, near, far, True)
            if DEEP:
                z, near_z, far_z = sample_of(deep, cell, near, far, True)
        row = maps + y.to(tl.int64) * sh
        if DEEP:
            row += z.to(tl.int64) * sd
        for j in range(most):
            real_x = count_x > j
            live = real_x & c_live
            if SAMPLES:
                x, near_x, far_x = sample_of(slot_x + j, cell, near, far, real_x)
                at = row + (x.to(OFFSET) * sw + c)
                value = near_x * _column(at, sd, sh, near_z, far_z, near_y, far_y, near_x, live, real, DEEP)
                value += far_x * _column(at + sw, sd, sh, near_z, far_z, near_y, far_y, far_x, live, real, DEEP)
            else:
                x = slot_x + j
                value = tl.load(row + (x.to(OFFSET) * sw + c), mask=live, other=0.0).to(real)
            wins = live & ((value > best) | ((value != value) & (best == best)))
            best = tl.where(wins, value, best)
            front = tl.where(wins, deep, front)
            top = tl.where(wins, slot, top)
            left = tl.where(wins, slot_x + j, left)
    filled = tl.where(rows > 0, count_x, 0) > 0
    # Where all are -inf, the first one.
    front = tl.where(filled & (front < 0), slot_z, front)
    top = tl.where(filled & (top < 0), slot_y, top)
    left = tl.where(filled & (left < 0), slot_x, left)
    return tl.where(filled, best, 0.0), front, top, left


@triton.jit(do_not_specialize=["line", "programs"])
def _choose(
    maps, sn, sc, sd, sh, sw, out, on, oc, od, oh, ow, bins, boxes, cell, near, far, line, programs, channels,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, P: tl.constexpr, BC: tl.constexpr, QB: tl.constexpr,
    SAMPLES: tl.constexpr, DEEP: tl.constexpr, LAST: tl.constexpr, WINNERS: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of channels * programs), these being K * PD * PH * blocks of bins: a row of bins. The maxima, or
    their slots."""
    blocks: tl.constexpr = (PW + QB - 1) // QB
    one = tl.program_id(0) % programs
    k = (one // (PD * PH * blocks)).to(tl.int64)
    o = one // (PH * blocks) % PD
    p = one // blocks % PH
    q = one % blocks * QB + tl.arange(0, QB)
    c0 = (tl.program_id(0) // programs).to(tl.int64) * BC
    c = tl.arange(0, BC)
    q = q[:, None] if LAST else q[None, :]
    c = c[None, :] if LAST else c[:, None]
    c_live = c0 + c < channels
    c = c.to(OFFSET)
    image, base, channel, down, across = map_of(boxes, k, maps, sn, sc, sh, sw, c0, LAST, 3 if DEEP else 2)
    behind = depth_stride(boxes, k, sd, LAST, DEEP)
    row = k * line
    best, front, top, left = search(
        base, behind, down, across, c * channel, c_live, bins, k, o, p, q, q < PW, cell + row, near + row, far + row,
        P, SAMPLES, DEEP, OFFSET,
    )  # fmt: skip
    to = out + k * on + c0 * oc + (c * oc + (p.to(OFFSET) * oh + q.to(OFFSET) * ow))
    if DEEP:
        to += tl.cast(o, tl.int64) * od
    live = c_live & (q < PW)
    if WINNERS:
        if DEEP:
            tl.store(to, front, mask=live)
            to += channels
        tl.store(to, top, mask=live)
        tl.store(to + channels, left, mask=live)
    else:
        tl.store(to, tl.where(image < 0, float("nan"), best).to(out.dtype.element_ty), mask=live)


def bins_along(spec: Pooling) -> dict[str, int]:
    """The numbers of bins, as the kernels have them."""
    depth, height, width = (1, *spec.output_size)[-3:]
    return {"PD": depth, "PH": height, "PW": width, "P": max(spec.output_size), "DEEP": spec.rank == 3}


def find(maps: Sequence[Tensor], candidates: Candidates, spec: Pooling, to: Tensor, winners: bool) -> None:
    """The maxima, ``[K, C, *output_size]``, or their slots."""
    if to.numel() == 0:
        return
    constants = bins_along(spec)
    last = all(each.stride(1) == 1 for each in maps)
    size, bins = forward_blocks(to, gathers=True), bins_at_once(constants["PW"])
    programs = to.shape[0] * constants["PD"] * constants["PH"] * cdiv(constants["PW"], bins)
    volumes, (deep,) = as_volumes(maps), as_volumes([to])
    _choose[(programs * cdiv(to.shape[1], size.channels),)](
        tuple(volumes), *strides_of(volumes, last), deep, *deep.stride(), *candidates[:5], candidates.cell.shape[1],
        programs, to.shape[1],
        **constants, BC=size.channels, QB=bins, SAMPLES=KINDS[spec.kind].samples, LAST=last, WINNERS=winners,
        OFFSET=forward_offset(maps, to, size.channels), num_warps=size.warps, **UNFUSED,
    )  # fmt: skip
