"""Pooled values: ``out[k, c] = Ay[k] @ maps[n_k, c] @ Ax[k].T`` with the tables' matrices.

Two kernels, by the order of the map's memory. Where columns lie side by side (contiguous), ``_rows`` sums the rows of
the map for one row of bins and contracts the columns by one matrix product. Where channels do (channels_last), and in
float64, ``_gather`` visits the cells of each bin: no product, no shared memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...spec import Pooling
from .. import operator
from .blocks import bins_at_once, cdiv, forward_blocks, forward_offset
from .maps import map_of, strides_of
from .tables import Tables, bins_of, groups, make_tables, row_of


@triton.jit
def _gathered(base, sh, sw, c, c_live, weight, first_y, taps_y, slot_y, first_x, taps_x, slot_x, LAST: tl.constexpr):
    """One row of bins, cell by cell: ``[C, Q]``, or with channels last ``[Q, C]``. A cell of weight 0 is not read."""
    real: tl.constexpr = weight.dtype.element_ty
    across = tl.max(taps_x)
    if LAST:
        at = c[None, :] + first_x[:, None] * sw
        c_live = c_live[None, :]
    else:
        at = c[:, None] + first_x[None, :] * sw
        c_live = c_live[:, None]
    acc = tl.zeros(at.shape, real)
    row = base + first_y.to(tl.int64) * sh
    for t in range(taps_y):
        wy = tl.load(weight + slot_y + t)
        if wy != 0:
            # First along x: a product of the two weights could be 0 though neither is.
            part = tl.zeros(at.shape, real)
            cells = row + at
            for u in range(across):
                wx = tl.load(weight + slot_x + u, mask=u < taps_x, other=0.0)
                wx = wx[:, None] if LAST else wx[None, :]
                value = tl.load(cells, mask=(wx != 0) & c_live, other=0.0)
                part += wx * value.to(real)
                cells += sw
            acc += wy * part
        row += sh
    return acc


@triton.jit(do_not_specialize=["line", "programs"])
def _rows(
    maps, sn, sc, sh, sw, out, on, oc, oh, ow, bins, boxes, weight, line, programs, channels,
    PH: tl.constexpr, PW: tl.constexpr, P: tl.constexpr, BC: tl.constexpr, QB: tl.constexpr, BX: tl.constexpr,
    OFFSET: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of channels * programs), these being K * PH * blocks of bins: one row of bins, whose y weights are
    scalars."""
    blocks: tl.constexpr = (PW + QB - 1) // QB
    one = tl.program_id(0) % programs
    k = (one // (PH * blocks)).to(tl.int64)
    p = one // blocks % PH
    q = one % blocks * QB + tl.arange(0, QB)
    c0 = (tl.program_id(0) // programs).to(tl.int64) * BC
    c = tl.arange(0, BC)
    c_live = c0 + c < channels
    c = c.to(OFFSET)
    image, base, sc, sh, sw = map_of(boxes, k, maps, sn, sc, sh, sw, c0, False)
    first_y, taps_y, slot_y = bins_of(bins, k, 0, p, True, P)
    first_x, taps_x, slot_x = bins_of(bins, k, 1, q, q < PW, P)
    weight += k * line
    left = tl.min(tl.where(taps_x > 0, first_x, 2147483647))
    right = tl.max(tl.where(taps_x > 0, first_x + taps_x, 0))
    acc = tl.zeros([BC, QB], tl.float32)
    top = base + first_y.to(tl.int64) * sh
    for x0 in range(left, right, BX):
        x = x0 + tl.arange(0, BX)
        strip = tl.zeros([BC, BX], tl.float32)
        live = c_live[:, None] & (x < right)[None, :]
        row = top + (c[:, None] * sc + x.to(OFFSET)[None, :] * sw)
        for t in range(taps_y):
            wy = tl.load(weight + slot_y + t)
            if wy != 0:
                strip += wy * tl.load(row, mask=live, other=0.0).to(tl.float32)
            row += sh
        t_x = x[:, None] - first_x[None, :]
        touched = (t_x >= 0) & (t_x < taps_x[None, :])
        ax = tl.load(weight + (slot_x[None, :] + t_x), mask=touched, other=0.0)
        acc = tl.dot(strip, ax, acc, input_precision="ieee")
    # The product spreads what is not finite over all bins, as 0 times infinity is no number. Then once more.
    if tl.max(tl.where(tl.abs(acc) < float("inf"), 0, 1)) > 0:
        acc = _gathered(
            base, sh, sw, c * sc, c_live, weight, first_y, taps_y, slot_y, first_x.to(OFFSET), taps_x, slot_x, False
        )
    acc = tl.where(image < 0, float("nan"), acc)
    to = out + k * on + c0 * oc + (c[:, None] * oc + (p.to(OFFSET) * oh + q.to(OFFSET) * ow)[None, :])
    tl.store(to, acc.to(out.dtype.element_ty), mask=c_live[:, None] & (q < PW)[None, :])


@triton.jit(do_not_specialize=["line", "programs"])
def _gather(
    maps, sn, sc, sh, sw, out, on, oc, oh, ow, bins, boxes, weight, line, programs, channels,
    PH: tl.constexpr, PW: tl.constexpr, P: tl.constexpr, BC: tl.constexpr, QB: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of channels * programs), these being K * blocks of bins: the rows of bins in turn."""
    blocks: tl.constexpr = (PW + QB - 1) // QB
    one = tl.program_id(0) % programs
    k = (one // blocks).to(tl.int64)
    q = one % blocks * QB + tl.arange(0, QB)
    c0 = (tl.program_id(0) // programs).to(tl.int64) * BC
    c = tl.arange(0, BC)
    c_live = c0 + c < channels
    c = c.to(OFFSET)
    image, base, sc, sh, sw = map_of(boxes, k, maps, sn, sc, sh, sw, c0, True)
    first_x, taps_x, slot_x = bins_of(bins, k, 1, q, q < PW, P)
    weight += k * line
    to = out + k * on + c0 * oc + (q.to(OFFSET)[:, None] * ow + c[None, :] * oc)
    live = (q < PW)[:, None] & c_live[None, :]
    for p in range(PH):
        first_y, taps_y, slot_y = bins_of(bins, k, 0, p, True, P)
        acc = _gathered(
            base, sh, sw, c * sc, c_live, weight, first_y, taps_y, slot_y, first_x.to(OFFSET), taps_x, slot_x, True
        )
        acc = tl.where(image < 0, float("nan"), acc)
        tl.store(to, acc.to(out.dtype.element_ty), mask=live)
        to += oh


def pool(features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    """Forward, see ``operator.Kernels``."""
    out = operator.make_output(features, rois, spec)
    if out.numel() == 0:
        return out
    real = torch.promote_types(out.dtype, torch.float32)
    shapes = [each.shape for each in features]
    gathers = real == torch.float64 or all(each.stride(1) == 1 for each in features)
    for some, own, levels in groups(rois, level, row_of(shapes, spec)[0] * real.itemsize):
        _pool(features, make_tables(shapes, own, levels, spec, real), spec, gathers, out[some])
    return out


def _pool(features: list[Tensor], tables: Tables, spec: Pooling, gathers: bool, out: Tensor) -> None:
    """Of some boxes."""
    height, width = spec.output_size
    blocks, bins = forward_blocks(out, gathers), bins_at_once(width)
    programs = out.shape[0] * cdiv(width, bins) * (1 if gathers else height)
    grid = (programs * cdiv(out.shape[1], blocks.channels),)
    arguments = (
        tuple(features),
        *strides_of(features, gathers),
        out,
        *out.stride(),
        tables.bins,
        tables.boxes,
        tables.weight,
        tables.weight.shape[1],
        programs,
        out.shape[1],
    )
    shape = {
        "PH": height, "PW": width, "P": max(height, width), "BC": blocks.channels, "QB": bins,
        "OFFSET": forward_offset(features, out, blocks.channels), "num_warps": blocks.warps, "num_stages": 1,
    }  # fmt: skip
    if gathers:
        _gather[grid](*arguments, **shape)
    else:
        _rows[grid](*arguments, **shape, BX=blocks.cells)
