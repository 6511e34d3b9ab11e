"""Poolings bin by bin: where each has channels of the map, or cells, for itself, and those of volumes.

A program takes one bin, or gathers to one tile of the map: a window of cells at a time, one weight for each, times the
channels. What a cell weighs in a bin, ``forms.py`` says, so that the kernels are the same for every form. A cell of
weight 0 is not read. Sums are in an order that hangs on shapes alone, and every number is written once.

A map ``[N, C, H, W]`` is a volume of depth 1 here, without a loop along z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...spec import KINDS, Pooling, check_visited
from .. import operator
from ..memory import is_channels_last
from .backward import locate, lowest_bit, mark_tiles, tile_of
from .blocks import BACKWARD, backward_tile, bin_blocks, cdiv, offset_type, some_channels
from .box_grad import of_edges
from .forms import bounds, rates, weigh
from .frames import make_frames
from .maps import as_volumes, coded, depth_stride, map_of, size_of, strides_of
from .tables import groups, make_tables, row_of, rule_of

CELLS = 4  # along each axis of the window that a program reads at a time
RATES = tl.constexpr(6)  # numbers that place a bin, at most
# Programs along the second axis of a grid, which CUDA has no more of. Folded into the first, where a program has to
# divide for its place, they take volumes 26 registers more: so what goes beyond is launched again.
SECOND = 65535


class Forms(NamedTuple):
    """Where the bins of K boxes lie, as the kernels are handed it.

    Attributes:
        boxes: int32 ``[K, axes, 3]``, see ``tables.py``.
        form: tensors and numbers, see ``forms.py``.
        constants: of the kernels.
    """

    boxes: Tensor
    form: tuple[Any, ...]
    constants: dict[str, Any]


def make_forms(
    shapes: Sequence[Sequence[int]],
    rois: Tensor,
    level: Tensor | None,
    spec: Pooling,
    dtype: torch.dtype,
    slopes: bool = False,
) -> Forms:
    """Arguments as those of ``tables.make_tables``."""
    name = KINDS[spec.kind].box
    depth, height, width = (1, *spec.output_size)[-3:]
    constants = {
        "PD": depth, "PH": height, "PW": width, "GROUP": spec.group, "FORM": "tables" if name == "corners" else name,
        "DEEP": spec.rank == 3, "RULE": rule_of(spec), "WIDE": rois.dtype == torch.float64,
        "REAL": tl.float64 if dtype == torch.float64 else tl.float32, "num_stages": 1,
    }  # fmt: skip
    if name == "corners":
        tables = make_tables(shapes, rois, level, spec, dtype, slopes)
        form: tuple[Any, ...] = (tables.bins, tables.weight, tables.dlo, tables.dhi, *coded([tables.weight.shape[1]]))
        return Forms(tables.boxes, form, constants)
    constants["enable_fp_fusion"] = False
    frames = make_frames(shapes, rois, level, check_visited(spec), rule_of(spec))
    ratio = spec.sampling_ratio
    moved = (rois, ratio, ratio.bit_length() + 1 if ratio else 6) if name == "moved" else ()
    return Forms(frames.boxes, (frames.frame, frames.around, *moved), constants)


@triton.jit
def by_cell(values, LAST: tl.constexpr):
    """As they meet ``[C, cells]``, or with channels last ``[cells, C]``."""
    return values[:, None] if LAST else values[None, :]


@triton.jit
def by_channel(values, LAST: tl.constexpr):
    """Likewise."""
    return values[None, :] if LAST else values[:, None]


@triton.jit
def _bin_of(number, PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr):
    """The place of a bin along z, y and x."""
    return number // (PH * PW), number // PW % PH, number % PW


@triton.jit
def _window(
    boxes, k, maps, sn, sc, sd, sh, sw, first, channel, GROUP: tl.constexpr, DEEP: tl.constexpr, SIDE: tl.constexpr,
    LAST: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Of a box: its image, where that begins in channel ``first`` of its map, and the map's strides along c, z, y, x.
    Of a window of cells: their y and x, and how far they and these channels are from where it begins."""
    image, base, sc, sh, sw = map_of(boxes, k, maps, sn, sc, sh, sw, first, LAST, 3 if DEEP else 2)
    along_z = depth_stride(boxes, k, sd, LAST, DEEP)
    cell = tl.arange(0, SIDE * SIDE)
    y = cell // SIDE
    x = cell % SIDE
    at = by_cell(y.to(OFFSET) * sh + x.to(OFFSET) * sw, LAST) + by_channel(channel.to(OFFSET) * (GROUP * sc), LAST)
    return image, base, sc, along_z, sh, sw, y, x, at


@triton.jit
def _pool(
    maps, sn, sc, sd, sh, sw, out, on, oc, od, oh, ow, boxes, form, channels,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, GROUP: tl.constexpr, FORM: tl.constexpr, DEEP: tl.constexpr,
    RULE: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr, SIDE: tl.constexpr, BC: tl.constexpr,
    LAST: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Grid (K * bins, blocks of channels): one bin."""
    k = (tl.program_id(0) // (PD * PH * PW)).to(tl.int64)
    own = tl.program_id(0) % (PD * PH * PW)
    o, p, q = _bin_of(own, PD, PH, PW)
    c0 = tl.program_id(1).to(tl.int64) * BC
    c = tl.arange(0, BC)
    c_live = by_channel(c0 + c < channels, LAST)
    first = c0 * GROUP + (own if GROUP > 1 else 0)
    image, base, sc, sd, sh, sw, y, x, at = _window(
        boxes, k, maps, sn, sc, sd, sh, sw, first, c, GROUP, DEEP, SIDE, LAST, OFFSET
    )
    front, back, top, bottom, left, right = bounds(form, k, o, p, q, PD, PH, PW, FORM, DEEP)
    acc = tl.zeros([SIDE * SIDE, BC] if LAST else [BC, SIDE * SIDE], REAL)
    for z in range(front, back):
        for y0 in range(top, bottom, SIDE):
            for x0 in range(left, right, SIDE):
                weight = weigh(
                    form, k, o, p, q, z, y0, x0, y0 + y, x0 + x, PD, PH, PW, FORM, DEEP, RULE, WIDE, SIDE, SIDE, REAL
                )
                weight = by_cell(tl.where((y0 + y < bottom) & (x0 + x < right), weight, 0.0), LAST)
                window = base + tl.cast(y0, tl.int64) * sh + tl.cast(x0, tl.int64) * sw
                if DEEP:
                    window += tl.cast(z, tl.int64) * sd
                acc += weight * tl.load(window + at, mask=(weight != 0) & c_live, other=0.0).to(REAL)
    pooled = tl.where(image < 0, float("nan"), tl.sum(acc, 0 if LAST else 1))
    to = out + k * on + c0 * oc + tl.cast(p, tl.int64) * oh + tl.cast(q, tl.int64) * ow + c.to(OFFSET) * oc
    if DEEP:
        to += tl.cast(o, tl.int64) * od
    tl.store(to, pooled.to(out.dtype.element_ty), mask=c0 + c < channels)


@triton.jit(do_not_specialize=["first_image", "words", "tiles", "rows", "depth"])
def _gather(
    grad, gk, gc, go, gp, gq, grads, boxes, form, bits, span, first_image, words, tiles, rows, depths, heights, widths,
    depth, channels,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, GROUP: tl.constexpr, FORM: tl.constexpr, DEEP: tl.constexpr,
    RULE: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr, BC: tl.constexpr,
    LAST: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Grid (channel blocks * groups * depth * rows), a row being one tile of one image, at one place along z: BC of the
    channels of that tile."""
    row = (tl.program_id(0) % rows).to(tl.int64)
    z = tl.program_id(0) // rows % depth
    own = tl.program_id(0) // rows // depth % GROUP
    c0 = (tl.program_id(0) // rows // depth // GROUP).to(tl.int64) * BC
    level, y0, x0 = locate(heights, widths, tl.program_id(0) % rows % tiles, TY, TX)
    cell = tl.arange(0, TY * TX)
    y = cell // TX
    x = cell % TX
    c = tl.arange(0, BC)
    acc = tl.zeros([TY * TX, BC] if LAST else [BC, TY * TX], REAL)
    word = tl.load(span + row * 2)
    stop = tl.load(span + row * 2 + 1)
    if DEEP:
        stop = tl.where(z < size_of(depths, level), stop, 0)
    while word < stop:
        others = tl.load(bits + row * words + word)
        while others != 0:
            k = word.to(tl.int64) * 32 + lowest_bit(others)
            others = others & (others - 1)
            first = own if GROUP > 1 else 0
            end = own + 1 if GROUP > 1 else PD * PH * PW
            if DEEP:
                end = tl.where((tl.load(boxes + k * 9) <= z) & (tl.load(boxes + k * 9 + 1) > z), end, 0)
            for b in range(first, end):
                o, p, q = _bin_of(b, PD, PH, PW)
                front, back, top, bottom, left, right = bounds(form, k, o, p, q, PD, PH, PW, FORM, DEEP)
                hit = (top < y0 + TY) & (bottom > y0) & (left < x0 + TX) & (right > x0)
                if hit & (front <= z) & (back > z):
                    weight = weigh(
                        form, k, o, p, q, z, y0, x0, y0 + y, x0 + x, PD, PH, PW, FORM, DEEP, RULE, WIDE, TY, TX, REAL
                    )
                    pooled = grad + k * gk + c0 * gc + tl.cast(p, tl.int64) * gp + tl.cast(q, tl.int64) * gq
                    if DEEP:
                        pooled += tl.cast(o, tl.int64) * go
                    g = tl.load(pooled + c.to(OFFSET) * gc, mask=c0 + c < channels, other=0.0).to(REAL)
                    acc += by_cell(weight, LAST) * by_channel(g, LAST)
        word += 1
    thick = size_of(depths, level)
    to, sc, sy, sx, below, beside = tile_of(
        grads, level, first_image + row // tiles, c0 * GROUP + own, heights, widths, channels * GROUP, y0, x0, LAST,
        OFFSET, z, thick,
    )  # fmt: skip
    to += by_cell(y.to(OFFSET) * sy + x.to(OFFSET) * sx, LAST) + by_channel(c.to(OFFSET) * (GROUP * sc), LAST)
    live = by_cell((y < below) & (x < beside) & (z < thick), LAST) & by_channel(c0 + c < channels, LAST)
    tl.store(to, acc.to(to.dtype.element_ty), mask=live)


@triton.jit
def _sum_rates(
    grad, gk, gc, go, gp, gq, maps, sn, sc, sd, sh, sw, boxes, form, sums, channels,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, GROUP: tl.constexpr, FORM: tl.constexpr, DEEP: tl.constexpr,
    RULE: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr, SIDE: tl.constexpr, BC: tl.constexpr,
    LAST: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Grid (K * bins): the gradient to what places one bin."""
    k = (tl.program_id(0) // (PD * PH * PW)).to(tl.int64)
    own = tl.program_id(0) % (PD * PH * PW)
    o, p, q = _bin_of(own, PD, PH, PW)
    c = tl.arange(0, BC)
    first = own if GROUP > 1 else 0
    _image, base, sc, sd, sh, sw, y, x, at = _window(
        boxes, k, maps, sn, sc, sd, sh, sw, first, c, GROUP, DEEP, SIDE, LAST, OFFSET
    )
    pooled = grad + k * gk + tl.cast(p, tl.int64) * gp + tl.cast(q, tl.int64) * gq
    if DEEP:
        pooled += tl.cast(o, tl.int64) * go
    front, back, top, bottom, left, right = bounds(form, k, o, p, q, PD, PH, PW, FORM, DEEP)
    sum_0 = tl.zeros([SIDE * SIDE], REAL)
    sum_1 = tl.zeros([SIDE * SIDE], REAL)
    sum_2 = tl.zeros([SIDE * SIDE], REAL)
    sum_3 = tl.zeros([SIDE * SIDE], REAL)
    sum_4 = tl.zeros([SIDE * SIDE], REAL)
    sum_5 = tl.zeros([SIDE * SIDE], REAL)
    for z in range(front, back):
        for y0 in range(top, bottom, SIDE):
            for x0 in range(left, right, SIDE):
                live = by_cell((y0 + y < bottom) & (x0 + x < right), LAST)
                window = base + tl.cast(y0, tl.int64) * sh + tl.cast(x0, tl.int64) * sw
                if DEEP:
                    window += tl.cast(z, tl.int64) * sd
                # The map times the output's gradient, summed over the channels.
                value = tl.zeros([SIDE * SIDE], REAL)
                for c0 in range(0, channels, BC):
                    c_live = c0 + c < channels
                    g = tl.load(pooled + tl.cast(c0, tl.int64) * gc + c.to(OFFSET) * gc, mask=c_live, other=0.0)
                    v = window + tl.cast(c0, tl.int64) * (GROUP * sc) + at
                    v = tl.load(v, mask=live & by_channel(c_live, LAST), other=0.0).to(REAL)
                    v = tl.where(v - v == 0.0, v, 0.0)  # a cell that is not finite has no slope
                    value += tl.sum(by_channel(g.to(REAL), LAST) * v, 1 if LAST else 0)
                rate = rates(
                    form, k, o, p, q, z, y0, x0, y0 + y, x0 + x, PD, PH, PW, FORM, DEEP, RULE, WIDE, SIDE, SIDE, REAL
                )
                sum_0 += value * rate[0]
                sum_1 += value * rate[1]
                sum_2 += value * rate[2]
                sum_3 += value * rate[3]
                sum_4 += value * rate[4]
                sum_5 += value * rate[5]
    to = sums + tl.program_id(0).to(tl.int64) * RATES
    tl.store(to, tl.sum(sum_0))
    tl.store(to + 1, tl.sum(sum_1))
    tl.store(to + 2, tl.sum(sum_2))
    tl.store(to + 3, tl.sum(sum_3))
    tl.store(to + 4, tl.sum(sum_4))
    tl.store(to + 5, tl.sum(sum_5))


def pool(features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    """Forward, see ``operator.Kernels``."""
    out = operator.make_output(features, rois, spec)
    if out.numel() == 0:
        return out
    real = torch.promote_types(out.dtype, torch.float32)
    boxes, form, constants = make_forms([each.shape for each in features], rois, level, spec, real)
    maps, deep = as_volumes(features), as_volumes([out])[0]
    blocks = bin_blocks(out)
    reach = [_reach(each, spec.group * blocks.channels) for each in maps]
    last = all(each.stride(1) == 1 for each in maps)
    for part in deep.split(SECOND * blocks.channels, 1):
        _pool[(rois.shape[0] * out[0, 0].numel(), cdiv(part.shape[1], blocks.channels))](
            tuple(maps), *strides_of(maps, last), part, *part.stride(), boxes, form,
            part.shape[1], **constants,
            SIDE=CELLS, BC=blocks.channels, LAST=last,
            OFFSET=offset_type(*reach, blocks.channels * out.stride(1)), num_warps=blocks.warps,
        )  # fmt: skip
        maps = [each[:, part.shape[1] * spec.group :] for each in maps]
    return out


def _reach(map: Tensor, channels: int) -> int:
    """How far a program reads from where its window begins."""
    return channels * abs(map.stride(1)) + CELLS * (abs(map.stride(3)) + abs(map.stride(4)))


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
    real = torch.promote_types(grad.dtype, torch.float32)
    boxes, form, constants = make_forms([each.shape for each in grads], rois, level, spec, real)
    to, (deep,) = as_volumes(grads), as_volumes([grad])
    depths, heights, widths = (tuple(each.shape[axis] for each in to) for axis in (2, 3, 4))
    depth, channels = max(depths), grad.shape[1]
    tile = backward_tile(shapes[0] * depth, shapes[1], heights, widths, grad.device)
    if constants["FORM"] != "tables":  # weights made on the spot take the registers of many sums
        tile = BACKWARD["sparse"]
    tile = tile._replace(channels=some_channels(channels, tile.channels))
    reach = [spec.group * tile.channels * each.stride(1) + tile.height * each.stride(3) for each in to]
    for marks in mark_tiles(boxes, shapes[0], heights, widths, tile):
        _gather[(cdiv(channels, tile.channels) * spec.group * depth * marks.rows,)](
            deep, *deep.stride(), tuple(to), boxes, form, *marks, *map(coded, (depths, heights, widths)), depth,
            channels, **constants,
            TY=tile.height, TX=tile.width, BC=tile.channels, LAST=channels_last,
            OFFSET=offset_type(*reach, tile.channels * grad.stride(1)), num_warps=tile.warps,
        )  # fmt: skip
    return grads


def pool_box_grad(grad: Tensor, features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    """Gradient to the rois, see ``operator.Kernels``. Whole cells do not follow a box."""
    out = torch.zeros_like(rois)
    if grad.numel() == 0 or spec.kind == "ps_cells":
        return out
    real = torch.promote_types(features[0].dtype, torch.float32)
    shapes = [each.shape for each in features]
    numbers = RATES.value * grad[0, 0].numel() + 3 * row_of(shapes, spec)[0] * (KINDS[spec.kind].box == "corners")
    for some, own, levels in groups(rois, level, numbers * real.itemsize):
        out[some, 1:] = _summed(
            grad[some], features, own, make_forms(shapes, own, levels, spec, real, slopes=True), spec, real
        )
    return out


def _summed(
    grad: Tensor, features: list[Tensor], rois: Tensor, forms: Forms, spec: Pooling, real: torch.dtype
) -> Tensor:
    """Of some boxes, all that rois have but the batch index."""
    boxes, form, constants = forms
    maps, (deep,) = as_volumes(features), as_volumes([grad])
    count, bins, last = grad.shape[0], grad[0, 0].numel(), is_channels_last(features[0])
    blocks = bin_blocks(grad)
    sums = grad.new_empty(count, bins, RATES.value, dtype=real)
    reach = [_reach(each, spec.group * blocks.channels) for each in maps]
    _sum_rates[(count * bins,)](
        deep, *deep.stride(), tuple(maps), *strides_of(maps, last), boxes, form, sums,
        grad.shape[1], **constants,
        SIDE=CELLS, BC=blocks.channels, LAST=last,
        OFFSET=offset_type(*reach, blocks.channels * grad.stride(1)), num_warps=blocks.warps,
    )  # fmt: skip
    total = sums.sum(1)
    if spec.kind == "rotated":
        return total[:, :5]
    if spec.kind == "moved":
        return torch.cat([total[:, :4], sums[:, :, 4:].transpose(1, 2).flatten(1)], 1)
    return of_edges(total[:, : 2 * spec.rank], rois)
