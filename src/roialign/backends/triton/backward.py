"""Gradient to the maps: the transposed contraction, gathered tile by tile.

A program owns a tile of the gradient's cells for a block of channels and adds the boxes that touch it in their order,
so that each number is written once and every run gives the same bits: no atomics, no zeroed memory, no sort. Which
boxes touch a tile is known before, from a bit for each::

    bits  int32 [tiles, ceil(K / 32)]   bit k % 32 of word k // 32: box k touches the tile
    span  int32 [tiles, 2]              the first word that is not 0, and the one after the last

The tiles of an image are those of all its maps in turn, so that a pyramid takes as many launches as one map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...spec import Pooling
from .. import operator
from .blocks import Tile, backward_tile, bins_summed, cdiv, offset_type
from .maps import coded, decoded, pick, size_of
from .tables import bins_of, make_tables

WORDS = 2**23  # of bits: images whose tiles have more together are worked through in groups
BOXES = 128  # that are asked at a time whether they touch a tile


@triton.jit
def load_block(at, c, c_stride, c_live, x, x_stride, x_live, LAST: tl.constexpr):
    """Channels c at places x: ``[C, X]``, or with channels last ``[X, C]``; 0 where not live."""
    if LAST:
        at += x[:, None] * x_stride + c[None, :] * c_stride
        live = x_live[:, None] & c_live[None, :]
    else:
        at += c[:, None] * c_stride + x[None, :] * x_stride
        live = c_live[:, None] & x_live[None, :]
    return tl.load(at, mask=live, other=0.0)


@triton.jit
def spread(g, matrix, LAST: tl.constexpr):
    """Bins over the cells of the map, by a matrix ``[Q, X]``: ``g @ matrix``, transposed with channels last."""
    if LAST:
        cells = tl.dot(tl.trans(matrix), g, input_precision="ieee", out_dtype=g.dtype)
    else:
        cells = tl.dot(g, matrix, input_precision="ieee", out_dtype=g.dtype)
    return cells


@triton.jit
def lowest_bit(word):
    """Its place: the exponent of its value as a float. Bit 31 is a negative one."""
    bit = (word & -word).to(tl.float32)
    return ((tl.abs(bit).to(tl.int32, bitcast=True) >> 23) & 255) - 127


@triton.jit
def locate(heights, widths, tile, TY: tl.constexpr, TX: tl.constexpr):
    """The map of one of an image's tiles, and the tile's first row and column."""
    level = tile * 0
    start = tile * 0
    first = tile * 0
    for i in tl.static_range(1, len(heights)):
        start += tl.cdiv(decoded(heights[i - 1]), TY) * tl.cdiv(decoded(widths[i - 1]), TX)
        level = tl.where(tile >= start, i, level)
        first = tl.where(tile >= start, start, first)
    across = tl.cdiv(size_of(widths, level), TX)
    return level, (tile - first) // across * TY, (tile - first) % across * TX


@triton.jit
def tile_of(
    grads, level, image, c0, heights, widths, channels, y0, x0, LAST: tl.constexpr, OFFSET: tl.constexpr, z=0, depth=1
):
    """Where channel c0 of a tile begins in the gradient to its map, the strides along c, y and x there, and how far the
    map goes on from there along y and x."""
    height = size_of(heights, level)
    width = size_of(widths, level)
    size = height.to(tl.int64) * width * depth
    sc = 1 if LAST else size.to(OFFSET)
    sx = channels if LAST else 1
    to = pick(grads, level) + image * channels * size + ((z * height + y0).to(tl.int64) * width + x0) * sx
    to += c0 * (1 if LAST else size)
    return to, sc, width.to(OFFSET) * sx, sx, height - y0, width - x0


@triton.jit(do_not_specialize=["first_image", "count", "words", "tiles"])
def _mark(
    boxes, bits, span, first_image, count, words, tiles, heights, widths,
    AXES: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr, KB: tl.constexpr,
):  # fmt: skip
    """Grid (images * tiles): the bits of one tile, KB boxes at a time."""
    row = tl.program_id(0).to(tl.int64)
    image = first_image + tl.program_id(0) // tiles
    level, y0, x0 = locate(heights, widths, tl.program_id(0) % tiles, TY, TX)
    first = words
    stop = tl.zeros_like(words)
    for k0 in range(0, count, KB):
        k = k0 + tl.arange(0, KB)
        box = boxes + k.to(tl.int64) * (3 * AXES)
        live = k < count
        hit = live & (tl.load(box + 2, mask=live, other=-1) == image) & (tl.load(box + 5, mask=live, other=-1) == level)
        box += 3 * AXES - 6  # to y and x
        hit = hit & (tl.load(box, mask=live, other=0) < y0 + TY) & (tl.load(box + 1, mask=live, other=0) > y0)
        hit = hit & (tl.load(box + 3, mask=live, other=0) < x0 + TX) & (tl.load(box + 4, mask=live, other=0) > x0)
        each = hit.to(tl.int32) << (k % 32)
        word = tl.sum(tl.reshape(each, [KB // 32, 32]), axis=1)  # no bit comes twice, so that the sum is the union
        w = k0 // 32 + tl.arange(0, KB // 32)
        tl.store(bits + row * words + w, word, mask=w < words)
        first = tl.minimum(first, tl.min(tl.where(word != 0, w, words)))
        stop = tl.maximum(stop, tl.max(tl.where(word != 0, w + 1, 0)))
    tl.store(span + row * 2, first)
    tl.store(span + row * 2 + 1, stop)


@triton.jit(do_not_specialize=["first_image", "words", "tiles", "rows", "line"])
def _gather(
    grad, gk, gc, gp, gq, grads, bins, weight, line, bits, span, first_image, words, tiles, rows, heights, widths,
    channels, PH: tl.constexpr, PW: tl.constexpr, P: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    BC: tl.constexpr, QB: tl.constexpr, LAST: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Grid (channel blocks * rows), a row being one tile of one image: that tile's gradient, BC channels of it."""
    real: tl.constexpr = weight.dtype.element_ty
    row = (tl.program_id(0) % rows).to(tl.int64)
    c0 = (tl.program_id(0) // rows).to(tl.int64) * BC
    level, y0, x0 = locate(heights, widths, tl.program_id(0) % rows % tiles, TY, TX)
    ty = tl.arange(0, TY)
    tx = tl.arange(0, TX)
    c = tl.arange(0, BC).to(OFFSET)
    real_c = c0 + c < channels
    acc = tl.zeros([TY, TX, BC] if LAST else [TY, BC, TX], real)
    word = tl.load(span + row * 2)
    stop = tl.load(span + row * 2 + 1)
    while word < stop:
        left = tl.load(bits + row * words + word)
        while left != 0:
            k = word.to(tl.int64) * 32 + lowest_bit(left)
            left = left & (left - 1)
            weights = weight + k * line
            for q0 in range(0, PW, QB):
                q = q0 + tl.arange(0, QB)
                real_q = q < PW
                first_x, taps_x, slot_x = bins_of(bins, k, 1, q, real_q, P)
                across = x0 + tx[None, :] - first_x[:, None]
                touched = (across >= 0) & (across < taps_x[:, None])
                ax = tl.load(weights + (slot_x[:, None] + across), mask=touched, other=0.0)  # [QB, TX]
                pooled = grad + k * gk + c0 * gc
                for p in range(PH):
                    first_y, taps_y, slot_y = bins_of(bins, k, 0, p, True, P)
                    if (first_y < y0 + TY) & (first_y + taps_y > y0):
                        down = y0 + ty - first_y
                        ay = tl.load(weights + (slot_y + down), mask=(down >= 0) & (down < taps_y), other=0.0)
                        g = load_block(pooled, c, gc, real_c, q.to(OFFSET), gq, real_q, LAST).to(real)
                        acc += ay[:, None, None] * spread(g, ax, LAST)[None, :, :]
                    pooled += gp
        word += 1
    to, sc, sy, sx, below, beside = tile_of(
        grads, level, first_image + row // tiles, c0, heights, widths, channels, y0, x0, LAST, OFFSET
    )
    live = (ty < below)[:, None, None]
    to += ty.to(OFFSET)[:, None, None] * sy
    if LAST:
        to += tx.to(OFFSET)[None, :, None] * sx + c[None, None, :]
        live = live & (tx < beside)[None, :, None] & real_c[None, None, :]
    else:
        to += c[None, :, None] * sc + tx[None, None, :]
        live = live & real_c[None, :, None] & (tx < beside)[None, None, :]
    tl.store(to, acc.to(to.dtype.element_ty), mask=live)


class Marks(NamedTuple):
    """Which boxes touch the tiles of a group of images, as the head of this file lays it out.

    Attributes:
        bits: see there.
        span: likewise.
        first_image: of the group.
        words: of bits for each tile.
        tiles: of one image.
        rows: tiles of the whole group.
    """

    bits: Tensor
    span: Tensor
    first_image: int
    words: int
    tiles: int
    rows: int


def mark_tiles(
    boxes: Tensor, images: int, heights: Sequence[int], widths: Sequence[int], tile: Tile
) -> Iterator[Marks]:
    """As many images at a time as memory for the bits is meant for; ``boxes`` are those of the tables."""
    count = boxes.shape[0]
    tiles, words = tile.number(heights, widths), cdiv(count, 32)
    group = max(1, min(images, WORDS // max(1, tiles * words)))
    bits = boxes.new_empty(group * tiles, words)
    span = boxes.new_empty(group * tiles, 2)
    for first in range(0, images, group):
        rows = min(group, images - first) * tiles
        _mark[(rows,)](
            boxes, bits, span, first, count, words, tiles, coded(heights), coded(widths),
            AXES=boxes.shape[1], TY=tile.height, TX=tile.width, KB=BOXES,
        )  # fmt: skip
        yield Marks(bits, span, first, words, tiles, rows)


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
    images, channels = shapes[:2]
    real = torch.promote_types(grad.dtype, torch.float32)
    tables = make_tables([each.shape for each in grads], rois, level, spec, real)
    heights, widths = tuple(shapes[2::4]), tuple(shapes[3::4])
    tile = backward_tile(images, channels, heights, widths, grad.device)
    farthest = max(tile.height * each.stride(2) + tile.channels * each.stride(1) for each in grads)
    offset = offset_type(farthest, tile.channels * grad.stride(1) + grad.shape[3] * grad.stride(3))
    for marks in mark_tiles(tables.boxes, images, heights, widths, tile):
        _gather[(cdiv(channels, tile.channels) * marks.rows,)](
            grad, *grad.stride(), tuple(grads), tables.bins, tables.weight, tables.weight.shape[1], *marks,
            coded(heights), coded(widths), channels,
            PH=spec.output_size[0], PW=spec.output_size[1], P=max(spec.output_size), TY=tile.height, TX=tile.width,
            BC=tile.channels, QB=bins_summed(spec.output_size[1]), LAST=channels_last, OFFSET=offset,
            num_warps=tile.warps,
        )  # fmt: skip
    return grads
