"""Gradient to the boxes: the contraction with the matrices' derivative, times the output's gradient.

With D the derivative of a matrix to one of the box's edges, the gradient to that edge is the sum of all numbers of

    (grad @ Ax) * (Dy @ map)    for an edge along y          (grad @ Dx) * (Ay @ map)    for one along x

A program takes a block of channels of one box, one row of bins after the other: three sums over the same rows of the
map, three small products. The blocks are added up afterwards, in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...spec import Pooling
from ..memory import is_channels_last
from . import blocks as fixed
from .backward import load_block, spread
from .blocks import bins_summed, cdiv, offset_type
from .maps import map_of, strides_of
from .tables import Tables, bins_of, groups, make_tables, row_of


@triton.jit(do_not_specialize=["blocks", "line"])
def _sum_slopes(
    grad, gk, gc, gp, gq, features, sn, sc, sh, sw, bins, boxes, weight, dlo, dhi, sums, blocks, channels, line,
    PH: tl.constexpr, PW: tl.constexpr, P: tl.constexpr, BC: tl.constexpr, BX: tl.constexpr, QB: tl.constexpr,
    LAST: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Grid (K * channel blocks): the gradient to x1, y1, x2, y2 from BC channels; BX columns of the map at a time."""
    real: tl.constexpr = weight.dtype.element_ty
    SHAPE: tl.constexpr = [BX, BC] if LAST else [BC, BX]
    k = (tl.program_id(0) // blocks).to(tl.int64)
    c0 = (tl.program_id(0) % blocks).to(tl.int64) * BC
    _image, maps, channel, line_y, column = map_of(boxes, k, features, sn, sc, sh, sw, c0, LAST)
    c = tl.arange(0, BC).to(OFFSET)
    real_c = c0 + c < channels
    weight += k * line
    dlo += k * line
    dhi += k * line
    x1 = tl.zeros(SHAPE, real)
    y1 = tl.zeros(SHAPE, real)
    x2 = tl.zeros(SHAPE, real)
    y2 = tl.zeros(SHAPE, real)
    for q0 in range(0, PW, QB):
        q = q0 + tl.arange(0, QB)
        real_q = q < PW
        first_x, taps_x, slot_x = bins_of(bins, k, 1, q, real_q, P)
        left = tl.min(tl.where(taps_x > 0, first_x, 2147483647))
        right = tl.max(tl.where(taps_x > 0, first_x + taps_x, 0))
        for x0 in range(left, right, BX):
            x = x0 + tl.arange(0, BX)
            across = x[None, :] - first_x[:, None]
            at = slot_x[:, None] + across
            touched = (across >= 0) & (across < taps_x[:, None])
            ax = tl.load(weight + at, mask=touched, other=0.0)  # [QB, BX]
            ax_lo = tl.load(dlo + at, mask=touched, other=0.0)
            ax_hi = tl.load(dhi + at, mask=touched, other=0.0)
            pooled = grad + k * gk + c0 * gc
            for p in range(PH):
                first_y, taps_y, slot_y = bins_of(bins, k, 0, p, True, P)
                # Ay @ map, and with its derivatives: one row of bins.
                row = tl.zeros(SHAPE, real)
                row_lo = tl.zeros(SHAPE, real)
                row_hi = tl.zeros(SHAPE, real)
                cells = maps + first_y.to(tl.int64) * line_y + left.to(tl.int64) * column
                for t in range(slot_y, slot_y + taps_y):
                    v = load_block(cells, c, channel, real_c, (x - left).to(OFFSET), column, x < right, LAST).to(real)
                    v = tl.where(v - v == 0.0, v, 0.0)  # a cell that is not finite has no slope
                    row += tl.load(weight + t) * v
                    row_lo += tl.load(dlo + t) * v
                    row_hi += tl.load(dhi + t) * v
                    cells += line_y
                g = load_block(pooled, c, gc, real_c, q.to(OFFSET), gq, real_q, LAST).to(real)
                along_x = spread(g, ax, LAST)
                y1 += along_x * row_lo
                y2 += along_x * row_hi
                x1 += spread(g, ax_lo, LAST) * row
                x2 += spread(g, ax_hi, LAST) * row
                pooled += gp
    to = sums + tl.program_id(0).to(tl.int64) * 4
    tl.store(to, tl.sum(x1))
    tl.store(to + 1, tl.sum(y1))
    tl.store(to + 2, tl.sum(x2))
    tl.store(to + 3, tl.sum(y2))


def pool_box_grad(grad: Tensor, features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    """Gradient to the rois, see ``operator.Kernels``."""
    real = torch.promote_types(features[0].dtype, torch.float32)
    shapes = [each.shape for each in features]
    out = torch.zeros_like(rois)
    for some, own, levels in groups(rois, level, 3 * row_of(shapes, spec)[0] * real.itemsize):
        sums = _summed(grad[some], features, make_tables(shapes, own, levels, spec, real, slopes=True), spec)
        out[some, 1:] = of_edges(sums, rois)
    return out


def of_edges(found: Tensor, rois: Tensor) -> Tensor:
    """Of the gradient to x1, y1, x2, y2 and, on volumes, z1 and z2 what rois have, in their order."""
    if rois.shape[1] == 7:  # by slices, since an index would have to be sent to the device
        return torch.cat([found[:, :2], found[:, 4:5], found[:, 2:4], found[:, 5:]], 1)
    return found[:, ::2] if rois.shape[1] == 3 else found  # a signal has no y


def _summed(grad: Tensor, features: list[Tensor], tables: Tables, spec: Pooling) -> Tensor:
    """Of some boxes: ``[K, 4]``."""
    count, channels = grad.shape[:2]
    size, last = fixed.SLOPES, is_channels_last(features[0])
    parts = cdiv(channels, size.channels)
    sums = tables.weight.new_empty(count, parts, 4)
    reach = [
        size.channels * each.stride(1) + max(size.cells, each.shape[3]) * each.stride(3) for each in (*features, grad)
    ]
    _sum_slopes[(count * parts,)](
        grad, *grad.stride(), tuple(features), *strides_of(features, last), *tables, sums,
        parts, channels, tables.weight.shape[1],
        PH=spec.output_size[0], PW=spec.output_size[1], P=max(spec.output_size), BC=size.channels, BX=size.cells,
        QB=bins_summed(spec.output_size[1]), LAST=last, OFFSET=offset_type(*reach), num_warps=size.warps,
    )  # fmt: skip
    return sums.sum(1)
