"""Where a bin's maximum can lie: its samples along each axis, or its whole cells, listed on the device.

The rules are those of ``axis.py``; like the tables of ``tables.py`` these are made without fused multiply-adds. Along
axis ``a`` (0 for y, 1 for x, or of a volume 0 for z and so on) of box ``k``, bin ``p`` has its candidates in the slots
``slot``, ``slot + 1``, ...::

    begin, end, slot, count = bins[k, a, :, p]     begin <= touched cells < end; count is 0 where the bin is empty
    begin, end, image or level = boxes[k, a]       as in ``tables.py``

A sample in slot ``s`` is ``near[k, s]`` times the cell ``cell[k, s]`` and ``far[k, s]`` times the next; both are 0
where it lies outside the map. Where whole cells are pooled, a slot is the cell itself. Slots are in the order of the
samples, in which the first maximum wins.

Between two cells the map is linear along the axis, so that only the first and the last sample there can be the maximum:
a bin of more samples than that lists these alone, and all slots of a box fit into twice the map's length and ``SPARE``
for each bin. A sample may be listed twice, which changes no maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...spec import KINDS, Pooling
from .maps import coded, pick, size_of
from .rules import mirrored, place, position, previous, reach, samples_before
from .tables import find_box, fits_float32, of_boxes

ALL = tl.constexpr(8)  # samples along an axis that are listed without asking whether fewer would do
SPARE: int = ALL.value + 4  # and those of two cells that neighbours share


class Candidates(NamedTuple):
    """The tables of K boxes on maps of A axes, as the head of this file lays them out; P is the largest output size.

    Attributes:
        bins: int32 ``[K, A, 4, P]``.
        boxes: int32 ``[K, A, 3]``.
        cell: int32 ``[K, row]``; like all that follow without columns where whole cells are pooled.
        near: ``[K, row]`` in the type in which is summed.
        far: likewise.
        dlo: derivative of the sample's position to the box's lower edge along the axis, in pixels of the image; 0 where
            moving the sample changes nothing. Empty unless asked for.
        dhi: the same to the upper edge.
    """

    bins: Tensor
    boxes: Tensor
    cell: Tensor
    near: Tensor
    far: Tensor
    dlo: Tensor
    dhi: Tensor


def make_candidates(
    shapes: Sequence[Sequence[int]],
    rois: Tensor,
    level: Tensor | None,
    spec: Pooling,
    dtype: torch.dtype,
    slopes: bool = False,
) -> Candidates:
    """Candidates of a pooling that takes a maximum, see ``tables.make_tables``."""
    slots = slots_of(shapes, spec)
    row = sum(slots)
    boxes, axes, most = rois.shape[0], len(slots), max(spec.output_size)
    near = rois.new_empty(boxes, row, dtype=dtype)
    made = Candidates(
        bins=rois.new_empty(boxes, axes, 4, most, dtype=torch.int32),
        boxes=rois.new_empty(boxes, axes, 3, dtype=torch.int32),
        cell=rois.new_empty(boxes, row, dtype=torch.int32),
        near=near,
        far=torch.empty_like(near),
        dlo=torch.empty_like(near) if slopes else near[:0],
        dhi=torch.empty_like(near) if slopes else near[:0],
    )
    if boxes:
        arguments, constants = of_boxes(shapes, rois, level, spec, slopes)
        ends = coded(accumulate(slots))
        _candidates[(boxes, axes)](
            *arguments, *made, coded(slots), ends, row, SAMPLES=KINDS[spec.kind].samples, **constants
        )
    return made


def slots_of(shapes: Sequence[Sequence[int]], spec: Pooling) -> list[int]:
    """How many slots a box has along each axis: none where whole cells are pooled."""
    longest = [max(sizes) for sizes in list(zip(*shapes, strict=True))[2:]]
    if not KINDS[spec.kind].samples:
        return [0] * len(longest)
    slots = [
        _most_slots(length, bins, spec.sampling_ratio) for length, bins in zip(longest, spec.output_size, strict=True)
    ]
    if sum(slots) >= 2**31:
        got = " x ".join(map(str, longest))
        raise ValueError(f"features: got maps of {got} cells; expected at most 2**29 an axis")
    return slots


def _most_slots(length: int, bins: int, ratio: int) -> int:
    """Of the samples of one box along an axis of this length."""
    most = 2 * (length + 2) + SPARE * bins
    return min(most, ratio * bins) if ratio else most


@triton.jit(do_not_specialize=["images", "ratio", "halvings", "row"])
def _candidates(
    rois, level, images, lengths, scales, counts, ratio, halvings, bins, boxes, cell, near, far, dlo, dhi, slots,
    ends, row, LEVELS: tl.constexpr, LINE: tl.constexpr, COLUMNS: tl.constexpr, P: tl.constexpr, SAMPLES: tl.constexpr,
    ALIGNED: tl.constexpr, SLOPES: tl.constexpr, WIDE: tl.constexpr, PB: tl.constexpr, TB: tl.constexpr,
):  # fmt: skip
    """Grid (K, axes): one axis of one box."""
    AXES: tl.constexpr = len(lengths)
    k = tl.program_id(0).to(tl.int64)
    along = tl.program_id(1)
    image, one, lo, hi, scale, length = find_box(rois, level, k, along, images, lengths, scales, LEVELS, LINE, COLUMNS)
    if LINE:  # one row of samples does
        ratio = tl.where(along == 0, 1, ratio)
    box = boxes + k * (3 * AXES) + along * 3
    tl.store(box + 2, tl.where(along == 0, image, one))
    count = pick(counts, along)
    live = tl.where(image >= 0, count, 0)
    bins += (k * AXES + along) * (4 * P)
    own = k * row
    tables = (cell + own, near + own, far + own, dlo + own, dhi + own)
    stop = size_of(ends, along)
    origin = stop - size_of(slots, along)
    if WIDE:
        fits: tl.constexpr = 0
    else:
        fits = fits_float32(lo, hi, scale, length, ratio)
    if fits == 1:
        _axis(
            lo.to(tl.float32), hi.to(tl.float32), scale.to(tl.float32), count, live, length, ratio, halvings,
            bins, box, tables, origin, stop, P, SAMPLES, ALIGNED, SLOPES, PB, TB,
        )  # fmt: skip
    else:
        _axis(
            lo.to(tl.float64), hi.to(tl.float64), scale, count, live, length, ratio, halvings,
            bins, box, tables, origin, stop, P, SAMPLES, ALIGNED, SLOPES, PB, TB,
        )  # fmt: skip


@triton.jit
def _axis(
    lo, hi, scale, count, live, length, ratio, halvings, bins, box, tables, origin, stop,
    P: tl.constexpr, SAMPLES: tl.constexpr, ALIGNED: tl.constexpr, SLOPES: tl.constexpr, PB: tl.constexpr,
    TB: tl.constexpr,
):  # fmt: skip
    """With positions in the type of the edges; PB bins and TB of their slots at a time."""
    RULE: tl.constexpr = "count" if SAMPLES else "cells"
    window, resizes = place(lo, hi, scale, count, ratio, RULE, ALIGNED)
    free = origin
    begin = length
    end = tl.zeros_like(length)
    for p0 in range(0, count, PB):
        p = p0 + tl.arange(0, PB)
        pf = p.to(lo.dtype)
        first, taps = reach(window, pf, length, RULE)
        if SAMPLES:
            number, edge, every = _list(window, pf, length)
            number = tl.where(p < live, number, 0)
            slot = free + tl.cumsum(number) - number
            free += tl.sum(number)
            # They fit, and if roundings beyond all measure should bring more, nothing outside is written.
            kept = tl.minimum(number, tl.maximum(stop - slot, 0))
        else:
            slot = first
            kept = tl.where(p < live, taps, 0)
        taps = tl.where(p < live, taps, 0)
        begin = tl.minimum(begin, tl.min(tl.where(taps > 0, first, length)))
        end = tl.maximum(end, tl.max(tl.where(taps > 0, first + taps, 0)))
        tl.store(bins + p, first, mask=p < count)
        tl.store(bins + P + p, first + taps, mask=p < count)
        tl.store(bins + 2 * P + p, slot, mask=p < count)
        tl.store(bins + 3 * P + p, kept, mask=p < count)
        if SAMPLES:
            for t0 in range(0, tl.max(kept), TB):
                t = t0 + tl.arange(0, TB)[None, :]
                sample = _sample(
                    window, pf[:, None], t, number[:, None], edge[:, None], every[:, None], length, ratio, halvings
                )
                _write(
                    tables, slot[:, None] + t, t < kept[:, None], window, pf[:, None], sample, count, length, scale,
                    resizes, SLOPES,
                )  # fmt: skip
    tl.store(box, begin)
    tl.store(box + 1, end)


@triton.jit
def _list(window, p, length):
    """How many samples the bins p list, the first cell's centre between two of them, and 1 if these are all."""
    _, _, grid = window
    far = length.to(grid.dtype)
    low = position(window, p, tl.zeros_like(p))
    high = position(window, p, tl.zeros_like(p) + (grid - 1))
    edge = tl.floor(tl.minimum(tl.maximum(low, -2.0), far)).to(tl.int32) + 1
    last = tl.floor(tl.minimum(tl.maximum(high, -2.0), far)).to(tl.int32)
    # The last sample before each centre and the first beyond it, and the bin's own first and last.
    few = 2 + 2 * tl.maximum(last - edge + 1, 0)
    most = tl.maximum(few, ALL)
    samples = tl.zeros_like(p) + grid
    every = tl.where(samples <= most.to(grid.dtype), 1, 0)
    number = tl.where(every == 1, tl.minimum(samples, most.to(grid.dtype)).to(tl.int32), few)
    return number, edge, every


@triton.jit
def _sample(window, p, t, number, edge, every, length, ratio, halvings):
    """The samples, by ascending position, that the bins p list in their places t."""
    _, bin, grid = window
    u = tl.where(bin < 0, number - 1 - t, t)
    sample = u.to(grid.dtype) + tl.zeros_like(p)
    if tl.min(every) == 0:
        last = previous(grid)
        before = samples_before(window, p, (edge + (u - 1) // 2).to(grid.dtype), length, ratio, halvings)
        chosen = tl.where(u % 2 == 1, previous(before), before)
        chosen = tl.where(u == 0, 0.0, tl.where(u >= number - 1, last, chosen))
        chosen = tl.maximum(tl.minimum(chosen, last), 0.0)
        sample = tl.where(every == 1, sample, chosen)
    return sample


@triton.jit
def _write(tables, slot, live, window, p, sample, bins, length, scale, resizes, SLOPES: tl.constexpr):
    """What the samples weigh and how they move, into their slots."""
    cell, near, far, dlo, dhi = tables
    _, _, grid = window
    at = position(window, p, sample)
    top = (length - 1).to(at.dtype)
    inside = (at >= -1.0) & (at <= top + 1)
    clamped = tl.minimum(tl.maximum(at, 0.0), top)
    below = tl.floor(clamped)
    fraction = clamped - below
    tl.store(cell + slot, below.to(tl.int32), mask=live)
    tl.store(near + slot, tl.where(inside, 1 - fraction, 0.0).to(near.dtype.element_ty), mask=live)
    tl.store(far + slot, tl.where(inside, fraction, 0.0).to(far.dtype.element_ty), mask=live)
    if SLOPES:
        part = (p + (mirrored(window, sample) + 0.5) / tl.maximum(grid, 1.0)) / bins.to(at.dtype)
        along = tl.where(resizes, part, 0.0)
        moves = (at >= 0.0) & (at < top)
        tl.store(dlo + slot, tl.where(moves, scale * (1 - along), 0.0).to(dlo.dtype.element_ty), mask=live)
        tl.store(dhi + slot, tl.where(moves, scale * along, 0.0).to(dhi.dtype.element_ty), mask=live)
