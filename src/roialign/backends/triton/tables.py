"""Boxes as two banded matrices each, made on the device by one small kernel: the only place where rounding decides.

The rules are those of ``axis.py``, position by position. This kernel alone is compiled without fused multiply-adds,
which would move a sample across a cell's centre or the border. What reads the tables may round as it likes.

Axis ``a`` is 0 for y, 1 for x, or of a volume 0 for z and so on. Bin ``p`` of box ``k`` touches the cells ``first``,
``first + 1``, ... of its map::

    first, taps, slot = bins[k, a, :, p]           taps is 0 where no cell is touched
    the weight of cell first + t  =  weight[k, slot + t]      for t in [0, taps)
    begin, end, image = boxes[k, 0]                begin <= touched cells < end; image is -1 where the answer is NaN
    begin, end, level = boxes[k, 1]                likewise of the second axis; and of the third

Neighbouring bins share few cells, so that all of a box's weights along an axis fit into the map's length and ``SPARE``
more for each bin, whatever the box: ``weight`` takes no K x P x L. Nothing outside these slots is ever written, and
nothing may be read there. Where a weight is 0, the cell must not count, whatever it holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...axis import FLOAT_CELLS
from ...spec import KINDS, Pooling
from .blocks import next_power_of_2
from .maps import coded, halves, pick, scale_of, size_of
from .rules import divide, place, reach, summed, visited

# Two cells that neighbours share, and two more for the rounding of positions of 2**22 cells and beyond.
SPARE = tl.constexpr(4)
TOGETHER = 2**22  # bytes of tables, where boxes can be worked through in groups
FEW = 16  # samples of a fixed grid along one axis, which are visited; more are counted in closed form
MOST_CELLS = tl.constexpr(FLOAT_CELLS)


class Tables(NamedTuple):
    """The tables of K boxes on maps of A axes, as the head of this file lays them out; P is the largest output size.

    Attributes:
        bins: int32 ``[K, A, 3, P]``.
        boxes: int32 ``[K, A, 3]``.
        weight: ``[K, row]`` in the type in which is summed, float64 for float64 maps, else float32.
        dlo: derivative of the weights to the box's lower edge along the axis, in pixels of the image; of the same
            slots. Empty unless asked for.
        dhi: the same to the upper edge.
    """

    bins: Tensor
    boxes: Tensor
    weight: Tensor
    dlo: Tensor
    dhi: Tensor


class Group(NamedTuple):
    """Boxes whose tables are in memory at a time: which of all, their rois and their levels.

    Tables go straight into the function that uses them, so that they are gone before those of the next group are made.
    """

    some: slice
    rois: Tensor
    level: Tensor | None


def groups(rois: Tensor, level: Tensor | None, bytes_each: int) -> Iterator[Group]:
    """All boxes, of whose tables each takes so many bytes."""
    most = max(1, TOGETHER // max(1, bytes_each))
    for first in range(0, rois.shape[0], most):
        some = slice(first, first + most)
        yield Group(some, rois[some], None if level is None else level[some])


def row_of(shapes: Sequence[Sequence[int]], spec: Pooling) -> tuple[int, list[int]]:
    """How many weights a box has, and where those along each axis begin."""
    starts = [0]
    for along, bins in enumerate(spec.output_size):
        starts.append(starts[-1] + max(shape[2 + along] for shape in shapes) + SPARE.value * bins)
    return starts[-1], starts[:-1]


def make_tables(
    shapes: Sequence[Sequence[int]],
    rois: Tensor,
    level: Tensor | None,
    spec: Pooling,
    dtype: torch.dtype,
    slopes: bool = False,
) -> Tables:
    """Tables of a pooling that takes no maximum.

    Args:
        shapes: of the maps, (N, C, H, W) or (N, C, D, H, W) each.
        rois: ``[K, columns]``, contiguous; those of signals as they are, on maps of one row.
        level: int64 ``[K]``, contiguous, or None with one map.
        spec: the pooling.
        dtype: of the weights.
        slopes: whether to make ``dlo`` and ``dhi``.
    """
    row, starts = row_of(shapes, spec)
    boxes, axes = rois.shape[0], len(spec.output_size)
    weight = rois.new_empty(boxes, row, dtype=dtype)
    tables = Tables(
        bins=rois.new_empty(boxes, axes, 3, max(spec.output_size), dtype=torch.int32),
        boxes=rois.new_empty(boxes, axes, 3, dtype=torch.int32),
        weight=weight,
        dlo=torch.empty_like(weight) if slopes else weight[:0],
        dhi=torch.empty_like(weight) if slopes else weight[:0],
    )
    if boxes:
        arguments, constants = of_boxes(shapes, rois, level, spec, slopes)
        _tables[(boxes, axes)](*arguments, *tables, coded(starts), row, RULE=rule_of(spec), **constants)
    return tables


def rule_of(spec: Pooling) -> str:
    """How the samples of a bin are summed, see ``rules.py``."""
    if not KINDS[spec.kind].samples:
        return "integral" if spec.kind == "integral" else "inner"
    return "visit" if 0 < spec.sampling_ratio <= FEW else "count"


def of_boxes(
    shapes: Sequence[Sequence[int]], rois: Tensor, level: Tensor | None, spec: Pooling, slopes: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The first arguments and the constants of a kernel of grid (K, axes) that places boxes."""
    ratio = spec.sampling_ratio if KINDS[spec.kind].samples else 0
    most, axes = max(spec.output_size), len(spec.output_size)
    arguments = (
        rois,
        rois if level is None else level,
        shapes[0][0],
        tuple(coded([shape[2 + along] for shape in shapes]) for along in range(axes)),
        tuple(halves(spec.scales[along::axes]) for along in range(axes)),
        tuple(spec.output_size),
        ratio,
        ratio.bit_length() + 1 if ratio else 6,
    )
    constants = {
        "LEVELS": level is not None,
        "LINE": rois.shape[1] == 3,
        "COLUMNS": rois.shape[1],
        "P": most,
        "ALIGNED": spec.aligned,
        "SLOPES": slopes,
        "WIDE": rois.dtype == torch.float64 or spec.kind == "integral",
        "PB": min(next_power_of_2(most), 32),
        "TB": 8,
        "num_warps": 1,
        "enable_fp_fusion": False,
    }
    return arguments, constants


@triton.jit
def bins_of(bins, k, along: tl.constexpr, p, live, P: tl.constexpr, AXES: tl.constexpr = 2):
    """First cell, taps and slot of the bins p of a box along an axis; 0 where not live."""
    at = bins + (k * AXES + along) * (3 * P) + p
    first = tl.load(at, mask=live, other=0)
    taps = tl.load(at + P, mask=live, other=0)
    slot = tl.load(at + 2 * P, mask=live, other=0)
    return first, taps, slot


@triton.jit
def find_box(
    rois, level, k, along, images, lengths, scales, LEVELS: tl.constexpr, LINE: tl.constexpr, COLUMNS: tl.constexpr,
    CENTRED: tl.constexpr = False,
):  # fmt: skip
    """A box's image, or -1 where it cannot be pooled, and its map; along an axis its edges, scale and the map's length.

    Usable: the image and the map exist, position and size stay finite along all axes. Of a signal, a map of one row,
    every box has the whole row. A centred one has its centre and its size where others have their edges.
    """
    AXES: tl.constexpr = len(lengths)
    FIRST: tl.constexpr = 1 if LINE else 0  # of the axes along which a box has edges, those of x in front
    one = along * 0
    known = one + 1
    if LEVELS:
        which = tl.load(level + k)
        known = tl.where((which >= 0) & (which < len(lengths[0])), 1, 0)
        one = tl.where(known == 1, which, 0).to(tl.int32)
    rois += k * COLUMNS
    n = tl.load(rois).to(tl.float64)
    nothing = n - n  # 0, or NaN
    length = one * 0
    scale = n * 0
    for a in tl.static_range(AXES):
        own_length = size_of(lengths[a], one)
        own_scale = scale_of(scales[a][0], scales[a][1], one)
        known = tl.where(own_length > 0, known, 0)
        if a >= FIRST:
            low = tl.load(rois + AXES - a).to(tl.float64) * own_scale
            high = tl.load(rois + 2 * AXES - FIRST - a).to(tl.float64) * own_scale
            size = high if CENTRED else high - low
            nothing += (size - size) + (low - low)
        length = tl.where(along == a, own_length, length)
        scale = tl.where(along == a, own_scale, scale)
    usable = tl.where((nothing == 0) & (n >= 0) & (n < images) & (n == tl.floor(n)), known, 0)
    image = tl.where(usable == 1, n, -1.0).to(tl.int32)
    lo = tl.load(rois + AXES - along, mask=along >= FIRST, other=0.0)
    hi = tl.load(rois + 2 * AXES - FIRST - along, mask=along >= FIRST, other=1.0)
    return image, one, tl.where(usable == 1, lo, 0.0), tl.where(usable == 1, hi, 0.0), scale, length


@triton.jit
def fits_float32(lo, hi, scale, length, ratio):
    """1 or 0, see ``axis.fits_float32``."""
    narrow = scale.to(tl.float32)
    far = tl.maximum(tl.abs(lo * narrow), tl.abs(hi * narrow))
    return tl.where((far <= MOST_CELLS) & (length <= MOST_CELLS) & (ratio <= MOST_CELLS), 1, 0)


@triton.jit(do_not_specialize=["images", "ratio", "halvings", "row"])
def _tables(
    rois, level, images, lengths, scales, counts, ratio, halvings, bins, boxes, weight, dlo, dhi, starts, row,
    LEVELS: tl.constexpr, LINE: tl.constexpr, COLUMNS: tl.constexpr, P: tl.constexpr, RULE: tl.constexpr,
    ALIGNED: tl.constexpr, SLOPES: tl.constexpr, WIDE: tl.constexpr, PB: tl.constexpr, TB: tl.constexpr,
):  # fmt: skip
    """Grid (K, axes): one axis of one box."""
    AXES: tl.constexpr = len(lengths)
    k = tl.program_id(0).to(tl.int64)
    along = tl.program_id(1)
    image, one, lo, hi, scale, length = find_box(rois, level, k, along, images, lengths, scales, LEVELS, LINE, COLUMNS)
    if LINE and RULE == "integral":  # over so little of the row that its weight is 1
        hi = tl.where(along == 0, 1e-20, hi)
    box = boxes + k * (3 * AXES) + along * 3
    tl.store(box + 2, tl.where(along == 0, image, one))
    count = pick(counts, along)
    live = tl.where(image >= 0, count, 0)
    bins += (k * AXES + along) * (3 * P)
    weight += k * row
    dlo += k * row
    dhi += k * row
    origin = size_of(starts, along)
    if WIDE:
        fits: tl.constexpr = 0
    else:
        fits = fits_float32(lo, hi, scale, length, ratio)
    if fits == 1:
        _axis(
            lo.to(tl.float32), hi.to(tl.float32), scale.to(tl.float32), count, live, length, ratio, halvings,
            bins, box, origin, weight, dlo, dhi, P, RULE, ALIGNED, SLOPES, PB, TB,
        )  # fmt: skip
    else:
        _axis(
            lo.to(tl.float64), hi.to(tl.float64), scale, count, live, length, ratio, halvings,
            bins, box, origin, weight, dlo, dhi, P, RULE, ALIGNED, SLOPES, PB, TB,
        )  # fmt: skip


@triton.jit
def _axis(
    lo,
    hi,
    scale,
    count,
    live,
    length,
    ratio,
    halvings,
    bins,
    box,
    origin,
    weight,
    dlo,
    dhi,
    P: tl.constexpr,
    RULE: tl.constexpr,
    ALIGNED: tl.constexpr,
    SLOPES: tl.constexpr,
    PB: tl.constexpr,
    TB: tl.constexpr,
):
    """With positions in the type of the edges; PB bins and TB of their cells at a time."""
    window, resizes = place(lo, hi, scale, count, ratio, RULE, ALIGNED)
    _, bin, grid = window
    parts = count.to(lo.dtype)

    begin = length
    end = tl.zeros_like(length)
    for p0 in range(0, live, PB):
        p = p0 + tl.arange(0, PB)
        first, taps = reach(window, p.to(lo.dtype), length, RULE)
        begin = tl.minimum(begin, tl.min(tl.where((taps > 0) & (p < live), first, length)))
        end = tl.maximum(end, tl.max(tl.where((taps > 0) & (p < live), first + taps, 0)))
    tl.store(box, begin)
    tl.store(box + 1, end)

    for p0 in range(0, count, PB):
        p = p0 + tl.arange(0, PB)
        first, taps = reach(window, p.to(lo.dtype), length, RULE)
        taps = tl.where(p < live, taps, 0)
        slot = origin + first - begin + SPARE * tl.where(bin < 0, count - 1 - p, p)
        tl.store(bins + p, first, mask=p < count)
        tl.store(bins + P + p, taps, mask=p < count)
        tl.store(bins + 2 * P + p, slot, mask=p < count)
        for t0 in range(0, tl.max(taps), TB):
            t = t0 + tl.arange(0, TB)[None, :]
            cell = (first[:, None] + t).to(lo.dtype)
            pf = p[:, None].to(lo.dtype)
            grids = tl.zeros_like(cell) + tl.maximum(grid, 1.0)
            if RULE == "inner":
                w = tl.zeros_like(cell) + 1
                grids = tl.maximum(taps, 1)[:, None].to(lo.dtype) + tl.zeros_like(cell)
                to_lo = tl.zeros_like(cell)
                to_hi = to_lo
            elif RULE == "visit":
                w, to_lo, to_hi = visited(window, pf, cell, parts, length, resizes, ratio, SLOPES)
            else:
                w, to_lo, to_hi = summed(window, pf, cell, parts, length, resizes, ratio, halvings, RULE)
            touched = t < taps[:, None]
            at = slot[:, None] + t
            tl.store(weight + at, divide(w, grids).to(weight.dtype.element_ty), mask=touched)
            if SLOPES:
                tl.store(dlo + at, (to_lo * scale / grids).to(dlo.dtype.element_ty), mask=touched)
                tl.store(dhi + at, (to_hi * scale / grids).to(dhi.dtype.element_ty), mask=touched)
