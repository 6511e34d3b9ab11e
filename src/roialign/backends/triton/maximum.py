"""Poolings that take a maximum: of a bin's samples or of its whole cells. NaN is the greatest of all.

``search.py`` finds the first maximum of a bin. Both gradients ask again which one it was, and find it again. That to
the boxes is summed on the spot; that to the maps is gathered tile by tile as in ``backward.py``, with the winners of
some channels at a time in memory::

    winners  int16 or int32 [K, PD, PH, PW, A, C]   slots of the maximum along the A axes; -1 in an empty bin
"""

from __future__ import annotations

import math
from operator import mul

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
from .maps import as_volumes, coded, depth_stride, map_of, size_of, strides_of
from .search import UNFUSED, bins_along, find, search
from .tables import groups

WINNERS = 2**20  # that are in memory at a time, where fewer channels would do


@triton.jit(do_not_specialize=["first_image", "words", "tiles", "rows", "line", "depth"])
def _gather(
    grad, gk, gc, go, gp, gq, winners, grads, bins, cell, near, far, line, bits, span, first_image, words, tiles, rows,
    depths, heights, widths, depth, channels, all_channels,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, P: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    BC: tl.constexpr, SAMPLES: tl.constexpr, DEEP: tl.constexpr, LAST: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Grid (channel blocks * depth * rows), a row being one tile of one image, at one place along z: that tile's
    gradient, BC channels of it."""
    AXES: tl.constexpr = 3 if DEEP else 2
    real: tl.constexpr = near.dtype.element_ty
    row = (tl.program_id(0) % rows).to(tl.int64)
    block = tl.program_id(0) // rows
    z = block % depth if DEEP else 0  # a number: planes are spared the registers
    c0 = (block // depth if DEEP else block).to(tl.int64) * BC
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
            of_y = bins + k * (4 * AXES * P) + (AXES - 2) * (4 * P)
            of_x = of_y + 4 * P
            for r in range(PD * PH):
                p = r % PH if DEEP else r
                meets = (tl.load(of_y + p) < y0 + TY) & (tl.load(of_y + P + p) > y0)
                if DEEP:
                    o = r // PH
                    meets = meets & (tl.load(of_y - 4 * P + o) <= z) & (tl.load(of_y - 3 * P + o) > z)
                if meets:
                    for q in range(PW):
                        if (tl.load(of_x + q) < x0 + TX) & (tl.load(of_x + P + q) > x0):
                            chosen = winners + ((k * PD * PH + r) * PW + q) * (AXES * channels) + c0 + c
                            if DEEP:
                                front = tl.load(chosen, mask=live, other=-1)
                                chosen += channels
                            y = tl.load(chosen, mask=live, other=-1)
                            x = tl.load(chosen + channels, mask=live, other=-1)
                            won = live & (y >= 0)
                            g = grad + k * gk + c0 * gc + (none + p) * gp + (none + q) * gq + c.to(OFFSET) * gc
                            if DEEP:
                                g += (none + o) * go
                            g = tl.load(g, mask=won, other=0.0).to(real)
                            if SAMPLES:
                                if DEEP:
                                    near_z, far_z = _weights(front, near + slots, far + slots, won)
                                    front = tl.load(cell + slots + front, mask=won, other=0)
                                    g *= tl.where(z == front, near_z, tl.where(z == front + 1, far_z, 0.0))
                                near_y, far_y = _weights(y, near + slots, far + slots, won)
                                near_x, far_x = _weights(x, near + slots, far + slots, won)
                                y = tl.load(cell + slots + y, mask=won, other=0)
                                x = tl.load(cell + slots + x, mask=won, other=0)
                                down = y0 + ty - y
                                across = x0 + tx - x
                                ay = tl.where(down == 0, near_y, tl.where(down == 1, far_y, 0.0))
                                ax = tl.where(across == 0, near_x, tl.where(across == 1, far_x, 0.0))
                                acc += ay * (ax * g)
                            else:
                                here = (y0 + ty == y) & (x0 + tx == x)
                                if DEEP:
                                    here = here & (front == z)
                                acc += tl.where(here, g, 0.0)
        word += 1
    thick = size_of(depths, level) if DEEP else 1
    to, sc, sy, sx, below, beside = tile_of(
        grads, level, first_image + row // tiles, c0, heights, widths, all_channels, y0, x0, LAST, OFFSET, z, thick
    )
    to += ty.to(OFFSET) * sy + tx.to(OFFSET) * sx + c.to(OFFSET) * sc
    tl.store(to, acc.to(to.dtype.element_ty), mask=live & (ty < below) & (tx < beside) & (z < thick))


@triton.jit
def _weights(slot, near, far, live):
    """Of samples, on a cell and on the next."""
    return tl.load(near + slot, mask=live, other=0.0), tl.load(far + slot, mask=live, other=0.0)


@triton.jit
def _cell(at, live, real: tl.constexpr):
    """Cells, as far as they have a slope: one that is not finite has none."""
    value = tl.load(at, mask=live, other=0.0).to(real)
    return tl.where(value - value == 0.0, value, 0.0)


@triton.jit
def _moves(slot, near, far, dlo, dhi, won):
    """Of samples along an axis: the weights on two cells, how they follow the box's edges, and whether the next cell
    is there: where the sample weighs something on it, or moves towards it."""
    far = tl.load(far + slot, mask=won, other=0.0)
    lo = tl.load(dlo + slot, mask=won, other=0.0)
    hi = tl.load(dhi + slot, mask=won, other=0.0)
    return tl.load(near + slot, mask=won, other=0.0), far, lo, hi, won & ((far != 0) | (lo != 0) | (hi != 0))


@triton.jit
def _edge(at, sd, near_z, far_z, live, behind, real: tl.constexpr, DEEP: tl.constexpr):
    """Cells; of a volume the mean of two, one behind the other, and their difference."""
    value = _cell(at, live, real)
    rise = value
    if DEEP:
        back = _cell(at + sd, live & behind, real)
        rise = back - value
        value = near_z * value + far_z * back
    return value, rise


@triton.jit
def _slopes(
    at, sd, sh, sw, front, top, left, near, far, dlo, dhi, won, real: tl.constexpr, DEEP: tl.constexpr
):  # fmt: skip
    """Of samples, to x1, y1, x2 and y2, and of volumes to z1 and z2."""
    near_y, far_y, lo_y, hi_y, below = _moves(top, near, far, dlo, dhi, won)
    near_x, far_x, lo_x, hi_x, beside = _moves(left, near, far, dlo, dhi, won)
    near_z, far_z, lo_z, hi_z, behind = (near_y, far_y, lo_y, hi_y, below)
    if DEEP:
        near_z, far_z, lo_z, hi_z, behind = _moves(front, near, far, dlo, dhi, won)
    here, here_z = _edge(at, sd, near_z, far_z, won, behind, real, DEEP)
    down, down_z = _edge(at + sh, sd, near_z, far_z, below, behind, real, DEEP)
    across, across_z = _edge(at + sw, sd, near_z, far_z, beside, behind, real, DEEP)
    corner, corner_z = _edge(at + sh + sw, sd, near_z, far_z, below & beside, behind, real, DEEP)
    along_z = near_y * (near_x * here_z + far_x * across_z) + far_y * (near_x * down_z + far_x * corner_z)
    along_y = near_x * (down - here) + far_x * (corner - across)
    along_x = near_y * (across - here) + far_y * (corner - down)
    return lo_x * along_x, lo_y * along_y, hi_x * along_x, hi_y * along_y, lo_z * along_z, hi_z * along_z


@triton.jit(do_not_specialize=["blocks", "line"])
def _sum_slopes(
    grad, gk, gc, go, gp, gq, maps, sn, sc, sd, sh, sw, bins, boxes, cell, near, far, dlo, dhi, sums, blocks, channels,
    line, PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, P: tl.constexpr, BC: tl.constexpr, QB: tl.constexpr,
    DEEP: tl.constexpr, LAST: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Grid (K * channel blocks): the gradient to x1, y1, x2, y2, and of volumes z1, z2, from BC channels."""
    real: tl.constexpr = near.dtype.element_ty
    SHAPE: tl.constexpr = [QB, BC] if LAST else [BC, QB]
    k = (tl.program_id(0) // blocks).to(tl.int64)
    c0 = (tl.program_id(0) % blocks).to(tl.int64) * BC
    c = tl.arange(0, BC)
    c = c[None, :] if LAST else c[:, None]
    c_live = c0 + c < channels
    c = c.to(OFFSET)
    _image, base, channel, down, across = map_of(boxes, k, maps, sn, sc, sh, sw, c0, LAST, 3 if DEEP else 2)
    behind = depth_stride(boxes, k, sd, LAST, DEEP)
    cell += k * line
    near += k * line
    far += k * line
    dlo += k * line
    dhi += k * line
    x1 = tl.zeros(SHAPE, real)
    y1 = tl.zeros(SHAPE, real)
    x2 = tl.zeros(SHAPE, real)
    y2 = tl.zeros(SHAPE, real)
    z1 = tl.zeros(SHAPE, real)
    z2 = tl.zeros(SHAPE, real)
    for q0 in range(0, PW, QB):
        q = q0 + tl.arange(0, QB)
        q = q[:, None] if LAST else q[None, :]
        for r in range(PD * PH):
            o = r // PH
            p = r % PH if DEEP else r
            _, front, top, left = search(
                base, behind, down, across, c * channel, c_live, bins, k, o, p, q, q < PW, cell, near, far,
                P, True, DEEP, OFFSET,
            )  # fmt: skip
            won = c_live & (top >= 0)
            y = tl.load(cell + top, mask=won, other=0).to(tl.int64)
            x = tl.load(cell + left, mask=won, other=0).to(OFFSET)
            at = base + y * down + (x * across + c * channel)
            pooled = grad + k * gk + c0 * gc + tl.cast(p, tl.int64) * gp
            if DEEP:
                at += tl.load(cell + front, mask=won, other=0).to(tl.int64) * behind
                pooled += tl.cast(o, tl.int64) * go
            to_x1, to_y1, to_x2, to_y2, to_z1, to_z2 = _slopes(
                at, behind, down, across, front, top, left, near, far, dlo, dhi, won, real, DEEP
            )
            g = tl.load(pooled + (c * gc + q.to(OFFSET) * gq), mask=won, other=0.0).to(real)
            x1 += g * to_x1
            y1 += g * to_y1
            x2 += g * to_x2
            y2 += g * to_y2
            if DEEP:
                z1 += g * to_z1
                z2 += g * to_z2
    to = sums + tl.program_id(0).to(tl.int64) * (6 if DEEP else 4)
    tl.store(to, tl.sum(x1))
    tl.store(to + 1, tl.sum(y1))
    tl.store(to + 2, tl.sum(x2))
    tl.store(to + 3, tl.sum(y2))
    if DEEP:
        tl.store(to + 4, tl.sum(z1))
        tl.store(to + 5, tl.sum(z2))


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
    volumes, (pooled,) = as_volumes(grads), as_volumes([grad])
    depths, heights, widths = (tuple(each.shape[axis] for each in volumes) for axis in (2, 3, 4))
    depth = max(depths)
    tile = backward_tile(images * depth, all_channels, heights, widths, grad.device)
    each_bin = (rois.shape[0], *spec.output_size, spec.rank)
    some = max(1, 2 * WINNERS // max(1, math.prod(each_bin) * tile.channels)) * tile.channels
    farthest = max(tile.height * each.stride(-2) + tile.channels * each.stride(1) for each in grads)
    offset = offset_type(farthest, tile.channels * grad.stride(1) + sum(map(mul, spec.output_size, grad.stride()[2:])))
    longest = max(candidates.cell.shape[1], *depths, *heights, *widths)
    slot = torch.int16 if longest < 2**15 else torch.int32
    memory = rois.new_empty(math.prod(each_bin) * min(some, all_channels), dtype=slot)
    for marks in mark_tiles(candidates.boxes, images, heights, widths, tile):
        for c in range(0, all_channels, some):
            channels = min(some, all_channels - c)
            winners = memory[: math.prod(each_bin) * channels].view(*each_bin, channels)
            maps, part, to = (
                [each[:, c : c + channels] for each in tensors] for tensors in (features, [pooled], volumes)
            )
            find(maps, candidates, spec, winners[..., 0, :].movedim(-1, 1), winners=True)
            _gather[(cdiv(channels, tile.channels) * depth * marks.rows,)](
                *part, *pooled.stride(), winners, tuple(to), candidates.bins, *candidates[2:5],
                candidates.cell.shape[1], *marks, *map(coded, (depths, heights, widths)), depth, channels,
                all_channels,
                **bins_along(spec), TY=tile.height, TX=tile.width, BC=tile.channels,
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
    """Of some boxes: ``[K, 4]``, of volumes ``[K, 6]``."""
    count, channels = grad.shape[:2]
    size = fixed.SLOPES
    parts = cdiv(channels, size.channels)
    sums = candidates.near.new_empty(count, parts, 2 * max(spec.rank, 2))
    reach = [size.channels * abs(each.stride(1)) + each.shape[-1] * abs(each.stride(-1)) for each in (*features, grad)]
    last = all(each.stride(1) == 1 for each in features)
    volumes, (pooled,) = as_volumes(features), as_volumes([grad])
    if sums.numel():
        _sum_slopes[(count * parts,)](
            pooled, *pooled.stride(), tuple(volumes), *strides_of(volumes, last), *candidates, sums, parts, channels,
            candidates.cell.shape[1],
            **bins_along(spec), BC=size.channels, QB=bins_at_once(spec.output_size[-1]), LAST=last,
            OFFSET=offset_type(*reach), num_warps=size.warps, **UNFUSED,
        )  # fmt: skip
    return sums.sum(1)
