"""Poolings that take a maximum: of a bin's samples or of its whole cells. NaN is the greatest of all.

``search.py`` finds the first maximum of a bin. Both gradients ask again which one it was, and find it again. That to
the boxes is summed on the spot; that to the maps is gathered tile by tile as in ``backward.py``, with the winners of
some channels at a time in memory::

    winners  int16 or int32 [K, PH, PW, 2, C]       slots of the maximum along y and along x; -1 in an empty bin
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...spec import KINDS, Pooling
from .. import operator
from . import blocks as fixed
from .backward import locate, lowest_bit, mark_tiles, tile_of
from .blocks import backward_tile, bins_at_once, cdiv, offset_type
from .box_grad import of_edges
from .candidates import Candidates, make_candidates, slots_of
from .maps import coded, map_of, strides_of
from .search import UNFUSED, bins_of, find, search
from .tables import groups

WINNERS = 2**20  # that are in memory at a time, where fewer channels would do


@triton.jit(do_not_specialize=["first_image", "words", "tiles", "rows", "line"])
def _gather(
    grad, gk, gc, gp, gq, winners, grads, bins, cell, near, far, line, bits, span, first_image, words, tiles, rows,
    heights, widths, channels, all_channels, PH: tl.constexpr, PW: tl.constexpr, P: tl.constexpr, TY: tl.constexpr,
    TX: tl.constexpr, BC: tl.constexpr, SAMPLES: tl.constexpr, LAST: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Grid (channel blocks * rows), a row being one tile of one image: that tile's gradient, BC channels of it."""
    real: tl.constexpr = near.dtype.element_ty
    row = (tl.program_id(0) % rows).to(tl.int64)
    c0 = (tl.program_id(0) // rows).to(tl.int64) * BC
    level, y0, x0 = locate(heights, widths, tl.program_id(0) % rows % tiles, TY, TX)
    # Channels side by side in a warp: what differs by channel then never changes lanes.
    ty = tl.arange(0, TY)[:, None, None]
    tx = tl.arange(0, TX)[None, :, None]
    c = tl.arange(0, BC)[None, None, :]
    live = c0 + c < channels
    none = tl.full([], 0, OFFSET)  # which a number has no type to be turned into
    acc = tl.zeros([TY, TX, BC], real)
    word = tl.load(span + row * 2)
    stop = tl.load(span + row * 2 + 1)
    while word < stop:
        left = tl.load(bits + row * words + word)
        while left != 0:
            k = word.to(tl.int64) * 32 + lowest_bit(left)
            left = left & (left - 1)
            slots = k * line
            of_y = bins + k * (8 * P)
            of_x = of_y + 4 * P
            for p in range(PH):
                if (tl.load(of_y + p) < y0 + TY) & (tl.load(of_y + P + p) > y0):
                    for q in range(PW):
                        if (tl.load(of_x + q) < x0 + TX) & (tl.load(of_x + P + q) > x0):
                            chosen = winners + ((k * PH + p) * PW + q) * (2 * channels) + c0 + c
                            y = tl.load(chosen, mask=live, other=-1)
                            x = tl.load(chosen + channels, mask=live, other=-1)
                            won = live & (y >= 0)
                            g = grad + k * gk + c0 * gc + (none + p) * gp + (none + q) * gq + c.to(OFFSET) * gc
                            g = tl.load(g, mask=won, other=0.0).to(real)
                            if SAMPLES:
                                near_y = tl.load(near + slots + y, mask=won, other=0.0)
                                far_y = tl.load(far + slots + y, mask=won, other=0.0)
                                near_x = tl.load(near + slots + x, mask=won, other=0.0)
                                far_x = tl.load(far + slots + x, mask=won, other=0.0)
                                y = tl.load(cell + slots + y, mask=won, other=0)
                                x = tl.load(cell + slots + x, mask=won, other=0)
                                down = y0 + ty - y
                                across = x0 + tx - x
                                ay = tl.where(down == 0, near_y, tl.where(down == 1, far_y, 0.0))
                                ax = tl.where(across == 0, near_x, tl.where(across == 1, far_x, 0.0))
                                acc += ay * (ax * g)
                            else:
                                acc += tl.where((y0 + ty == y) & (x0 + tx == x), g, 0.0)
        word += 1
    to, sc, sy, sx, below, beside = tile_of(
        grads, level, first_image + row // tiles, c0, heights, widths, all_channels, y0, x0, LAST, OFFSET
    )
    to += ty.to(OFFSET) * sy + tx.to(OFFSET) * sx + c.to(OFFSET) * sc
    tl.store(to, acc.to(to.dtype.element_ty), mask=live & (ty < below) & (tx < beside))


@triton.jit
def _cell(at, live, real: tl.constexpr):
    """Cells, as far as they have a slope: one that is not finite has none."""
    value = tl.load(at, mask=live, other=0.0).to(real)
    return tl.where(value - value == 0.0, value, 0.0)


@triton.jit
def _slopes(at, sh, sw, top, left, near, far, dlo, dhi, won, real: tl.constexpr):
    """Of samples, to x1, y1, x2 and y2."""
    near_y = tl.load(near + top, mask=won, other=0.0)
    far_y = tl.load(far + top, mask=won, other=0.0)
    near_x = tl.load(near + left, mask=won, other=0.0)
    far_x = tl.load(far + left, mask=won, other=0.0)
    lo_y = tl.load(dlo + top, mask=won, other=0.0)
    hi_y = tl.load(dhi + top, mask=won, other=0.0)
    lo_x = tl.load(dlo + left, mask=won, other=0.0)
    hi_x = tl.load(dhi + left, mask=won, other=0.0)
    # The next cell is there where the sample weighs something on it, or moves towards it.
    below = won & ((far_y != 0) | (lo_y != 0) | (hi_y != 0))
    beside = won & ((far_x != 0) | (lo_x != 0) | (hi_x != 0))
    here = _cell(at, won, real)
    down = _cell(at + sh, below, real)
    across = _cell(at + sw, beside, real)
    corner = _cell(at + sh + sw, below & beside, real)
    along_y = near_x * (down - here) + far_x * (corner - across)
    along_x = near_y * (across - here) + far_y * (corner - down)
    return lo_x * along_x, lo_y * along_y, hi_x * along_x, hi_y * along_y


@triton.jit(do_not_specialize=["blocks", "line"])
def _sum_slopes(
    grad, gk, gc, gp, gq, maps, sn, sc, sh, sw, bins, boxes, cell, near, far, dlo, dhi, sums, blocks, channels, line,
    PH: tl.constexpr, PW: tl.constexpr, P: tl.constexpr, BC: tl.constexpr, QB: tl.constexpr, LAST: tl.constexpr,
    OFFSET: tl.constexpr,
):  # fmt: skip
    """Grid (K * channel blocks): the gradient to x1, y1, x2, y2 from BC channels."""
    real: tl.constexpr = near.dtype.element_ty
    SHAPE: tl.constexpr = [QB, BC] if LAST else [BC, QB]
    k = (tl.program_id(0) // blocks).to(tl.int64)
    c0 = (tl.program_id(0) % blocks).to(tl.int64) * BC
    c = tl.arange(0, BC)
    c = c[None, :] if LAST else c[:, None]
    c_live = c0 + c < channels
    c = c.to(OFFSET)
    _image, base, channel, down, across = map_of(boxes, k, maps, sn, sc, sh, sw, c0, LAST)
    cell += k * line
    near += k * line
    far += k * line
    dlo += k * line
    dhi += k * line
    x1 = tl.zeros(SHAPE, real)
    y1 = tl.zeros(SHAPE, real)
    x2 = tl.zeros(SHAPE, real)
    y2 = tl.zeros(SHAPE, real)
    for q0 in range(0, PW, QB):
        q = q0 + tl.arange(0, QB)
        q = q[:, None] if LAST else q[None, :]
        slot_x, count_x = bins_of(bins, k, 1, q, q < PW, P)
        pooled = grad + k * gk + c0 * gc
        for p in range(PH):
            slot_y, count_y = bins_of(bins, k, 0, p, True, P)
            _, top, left = search(
                base, down, across, c * channel, c_live, cell, near, far, slot_y, count_y, slot_x, count_x, True, OFFSET
            )
            won = c_live & (top >= 0)
            y = tl.load(cell + top, mask=won, other=0).to(tl.int64)
            x = tl.load(cell + left, mask=won, other=0).to(OFFSET)
            to_x1, to_y1, to_x2, to_y2 = _slopes(
                base + y * down + (x * across + c * channel), down, across, top, left, near, far, dlo, dhi, won, real
            )
            g = tl.load(pooled + (c * gc + q.to(OFFSET) * gq), mask=won, other=0.0).to(real)
            x1 += g * to_x1
            y1 += g * to_y1
            x2 += g * to_x2
            y2 += g * to_y2
            pooled += gp
    to = sums + tl.program_id(0).to(tl.int64) * 4
    tl.store(to, tl.sum(x1))
    tl.store(to + 1, tl.sum(y1))
    tl.store(to + 2, tl.sum(x2))
    tl.store(to + 3, tl.sum(y2))


def pool(features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    """Forward, see ``operator.Kernels``."""
    out = operator.make_output(features, rois, spec)
    real = torch.promote_types(out.dtype, torch.float32)
    shapes = [each.shape for each in features]
    for some, own, levels in groups(rois, level, sum(slots_of(shapes, spec)) * (4 + 2 * real.itemsize)):
        find(features, make_candidates(shapes, own, levels, spec, real), spec, out[some], winners=False)
    return out


def pool_grad(
    grad: Tensor,
    features: list[Tensor],
    shapes: list[int],
    channels_last: bool,
    rois: Tensor,
    level: Tensor | None,
    spec: Pooling,
) -> list[Tensor]:
    """Gradient to the maps, see ``operator.Kernels``."""
    grads = operator.make_gradients(grad, shapes, channels_last, spec.rank)
    images, all_channels = shapes[:2]
    real = torch.promote_types(grad.dtype, torch.float32)
    candidates = make_candidates([each.shape for each in grads], rois, level, spec, real)
    heights, widths = tuple(shapes[2::4]), tuple(shapes[3::4])
    tile = backward_tile(images, all_channels, heights, widths, grad.device)
    height, width = spec.output_size
    some = max(1, WINNERS // max(1, rois.shape[0] * height * width * tile.channels)) * tile.channels
    farthest = max(tile.height * each.stride(2) + tile.channels * each.stride(1) for each in grads)
    offset = offset_type(farthest, tile.channels * grad.stride(1) + height * grad.stride(2) + width * grad.stride(3))
    longest = max(candidates.cell.shape[1], *heights, *widths)
    slot = torch.int16 if longest < 2**15 else torch.int32
    each_bin = (rois.shape[0], height, width, 2)
    memory = rois.new_empty(math.prod(each_bin) * min(some, all_channels), dtype=slot)
    for marks in mark_tiles(candidates.boxes, images, heights, widths, tile):
        for c in range(0, all_channels, some):
            channels = min(some, all_channels - c)
            winners = memory[: math.prod(each_bin) * channels].view(*each_bin, channels)
            maps, part, to = ([each[:, c : c + channels] for each in tensors] for tensors in (features, [grad], grads))
            find(maps, candidates, spec, winners[..., 0, :].permute(0, 3, 1, 2), winners=True)
            _gather[(cdiv(channels, tile.channels) * marks.rows,)](
                *part, *grad.stride(), winners, tuple(to), candidates.bins, *candidates[2:5], candidates.cell.shape[1],
                *marks, coded(heights), coded(widths), channels, all_channels,
                PH=height, PW=width, P=max(height, width), TY=tile.height, TX=tile.width, BC=tile.channels,
                SAMPLES=KINDS[spec.kind].samples, LAST=channels_last, OFFSET=offset, num_warps=tile.warps,
            )  # fmt: skip
    return grads


def pool_box_grad(grad: Tensor, features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    """Gradient to the rois, see ``operator.Kernels``. Whole cells do not follow a box."""
    out = torch.zeros_like(rois)
    if not KINDS[spec.kind].samples:
        return torch.zeros_like(rois)
    real = torch.promote_types(features[0].dtype, torch.float32)
    shapes = [each.shape for each in features]
    for some, own, levels in groups(rois, level, sum(slots_of(shapes, spec)) * (4 + 4 * real.itemsize)):
        sums = _summed(grad[some], features, make_candidates(shapes, own, levels, spec, real, slopes=True), spec)
        out[some, 1:] = of_edges(sums, rois)
    return out


def _summed(grad: Tensor, features: list[Tensor], candidates: Candidates, spec: Pooling) -> Tensor:
    """Of some boxes: ``[K, 4]``."""
    count, channels = grad.shape[:2]
    size = fixed.SLOPES
    parts = cdiv(channels, size.channels)
    sums = candidates.near.new_empty(count, parts, 4)
    reach = [size.channels * abs(each.stride(1)) + each.shape[3] * abs(each.stride(3)) for each in (*features, grad)]
    last = all(each.stride(1) == 1 for each in features)
    if sums.numel():
        _sum_slopes[(count * parts,)](
            grad, *grad.stride(), tuple(features), *strides_of(features, last), *candidates, sums, parts, channels,
            candidates.cell.shape[1],
            PH=spec.output_size[0], PW=spec.output_size[1], P=max(spec.output_size), BC=size.channels,
            QB=bins_at_once(spec.output_size[1]), LAST=last,
            OFFSET=offset_type(*reach), num_warps=size.warps, **UNFUSED,
        )  # fmt: skip
    return sums.sum(1)
