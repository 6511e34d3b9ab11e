"""The specification: region pooling as a matrix product per axis, on any device and under any transform.

Every other backend is tested against this one. It is plain PyTorch, so autograd, double backward, forward-mode AD,
``torch.func`` and ``torch.compile`` come from PyTorch itself. Boxes are worked through in chunks, so memory does not
grow with their number; under a transform that cannot see values (compile, export, vmap) they are one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import axis
from ..boxes import edges, on_empty_map, usable
from ..spec import KINDS, Call, Pooling, too_large
from . import tracing
from .contraction import contract
from .index import batch_index
from .memory import check_memory, laid_out_as

CHUNK = 2**23  # elements of the largest intermediate of one chunk
MOST = 2**31  # elements that may be needed for one box alone


def why_not(call: Call) -> str:
    """The reference serves every call."""
    return ""


def pool(features: Sequence[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    """Pool from one feature map, or each box from the map of its level."""
    one = POOLS[spec.kind]
    if level is None:
        return one(features[0], rois, spec)
    if tracing.hides_values(rois):  # which box goes where is not known yet: pool every box on every level and choose
        pooled = [one(feature, rois, spec.on(index)) for index, feature in enumerate(features)]
        out = pooled[0]
        for index, candidate in enumerate(pooled[1:], 1):
            out = torch.where(_per_box(level == index, out), candidate, out)
        return out
    return by_level(features, rois, level, spec, one)


def by_level(
    features: Sequence[Tensor],
    rois: Tensor,
    level: Tensor,
    spec: Pooling,
    one: Callable[[Tensor, Tensor, Pooling], Tensor],
) -> Tensor:
    """Pool the boxes of each level with one call of ``one``, and return them in their own order."""
    batch_index(rois[:, 0].detach(), features[0].shape[0])  # here, where a message can name the caller's row
    rows = [(level == index).nonzero()[:, 0] for index in range(len(features))]
    parts = [one(feature, rois[row], spec.on(i)) for i, (feature, row) in enumerate(zip(features, rows, strict=True))]
    return laid_out_as(features[0], torch.cat(parts)[torch.cat(rows).argsort()])


def _window(spec: Pooling, along: int, lo: Tensor, hi: Tensor) -> axis.Window:
    """The samples along one axis; where a largest grid can be looked up, no more than it holds."""
    scale = spec.scale(0)[along]
    window = axis.align_window(lo, hi, spec.output_size[along], scale, spec.sampling_ratio, spec.aligned)
    if spec.sampling_ratio > 0 or unseen(lo):
        return window
    return window._replace(most=int(torch.cat([window.grid, window.grid.new_ones(1)]).max()))


def _mean(input: Tensor, rois: Tensor, spec: Pooling) -> Tensor:
    """``out[k] = Ay[k] @ input[n_k] @ Ax[k].T``: the mean of each bin's samples."""
    return _means(
        input,
        rois,
        spec,
        lambda along, lo, hi, bins, length: axis.mean_matrix(_window(spec, along, lo, hi), bins, length),
    )


def _cell_mean(input: Tensor, rois: Tensor, spec: Pooling) -> Tensor:
    """The same with the mean of each bin's cells."""
    return _means(
        input,
        rois,
        spec,
        lambda along, lo, hi, bins, length: axis.cell_mean_matrix(lo, hi, bins, length, spec.scale(0)[along]),
    )


def _means(
    input: Tensor, rois: Tensor, spec: Pooling, make: Callable[[int, Tensor, Tensor, int, int], Tensor]
) -> Tensor:
    """By the matrices that ``make`` makes of (axis, lower edges, upper edges, bins, length)."""
    size, lengths = spec.output_size, input.shape[2:]

    def matrix(along: int, lo: Tensor, hi: Tensor) -> list[Tensor]:
        return [make(along, lo, hi, size[along], lengths[along])]

    def mean(maps: Tensor, rois: Tensor) -> Tensor:
        matrices = [each for (each,) in _each_axis(matrix, rois, lengths, spec)]
        return contract(maps, matrices, KINDS[spec.kind].sensitive)

    return over_boxes(input, rois, spec, mean, rows=size)


def _maximum(input: Tensor, rois: Tensor, spec: Pooling) -> Tensor:
    """The same with a row per sample instead of a row per bin, and the maximum over each bin's."""
    size, lengths = spec.output_size, input.shape[2:]
    # As many rows as the largest grid has samples, but no more than can decide the maximum.
    samples = [axis.max_samples(length) for length in lengths]
    if spec.sampling_ratio > 0:
        samples = [min(spec.sampling_ratio, most) for most in samples]
    elif not unseen(rois):
        valid = torch.where(usable(wide(rois), spec.scale(0))[:, None], rois.detach(), 0)
        grids = _each_axis(lambda *along: [_window(spec, *along).grid], valid, lengths, spec)
        samples = [
            int(torch.cat([grid, grid.new_ones(1)]).clamp(1, most).max())
            for (grid,), most in zip(grids, samples, strict=True)
        ]

    rows = [bins * many for bins, many in zip(size, samples, strict=True)]
    needed = _needed(rows, lengths)
    if not unseen(rois) and len(rois) and sum(needed) > MOST:
        raise MemoryError(
            f"the reference backend would need {sum(needed):.1e} numbers at once for one box on a map of "
            f"{' x '.join(map(str, lengths))} cells; expected at most {MOST:.1e} (the native backend has no such limit)"
        )

    def matrix(along: int, lo: Tensor, hi: Tensor) -> list[Tensor]:
        return [*axis.sample_matrix(_window(spec, along, lo, hi), size[along], lengths[along], samples[along])]

    def maximum(maps: Tensor, rois: Tensor) -> Tensor:
        each = _each_axis(matrix, rois, lengths, spec)  # [k, PH, S, H], [k, PH, S]
        value = contract(maps, [matrix.flatten(1, 2) for matrix, _ in each])  # [k, C, PH * Sy, PW * Sx]
        value = value.reshape(*value.shape[:2], *(length for _, real in each for length in real.shape[1:]))
        bins, grid = range(2, value.dim(), 2), range(3, value.dim(), 2)
        value = value.permute(0, 1, *bins, *grid)  # [k, C, PH, PW, Sy, Sx]
        real = _all_axes([real for _, real in each])  # [k, 1, PH, Sy, PW, Sx]
        real = real.permute(0, 1, *bins, *grid).flatten(2 + len(bins))
        best = torch.where(real, value.flatten(2 + len(bins)), -torch.inf).max(-1).values  # its first gets the gradient
        return torch.where(real.any(-1), best, 0)  # an empty grid

    return over_boxes(input, rois, spec, maximum, rows)


def _all_axes(masks: Sequence[Tensor]) -> Tensor:
    """``[k, 1, ...]`` bool: True where it is along every axis, of one mask ``[k, ...]`` per axis."""
    together = masks[0][:, None]
    for mask in masks[1:]:
        axes = mask.dim() - 1
        together = together[(..., *[None] * axes)] & mask[(slice(None), *[None] * (together.dim() - 1))]
    return together


def _integral(input: Tensor, rois: Tensor, spec: Pooling) -> Tensor:
    """The same with the exact integral's matrices."""

    def integral(maps: Tensor, rois: Tensor) -> Tensor:
        wider = wide(rois)
        return contract(
            maps,
            [
                axis.integral_matrix(
                    *edges(wider, along, spec.rank), spec.output_size[along], maps.shape[2 + along], scale
                )
                for along, scale in enumerate(spec.scale(0))
            ],
        )

    return over_boxes(input, rois, spec, integral, rows=spec.output_size)


def _cells(input: Tensor, rois: Tensor, spec: Pooling) -> Tensor:
    """The maximum over each bin's cells, along x, then y, then z; the first maximum in row-major order wins."""
    lengths = input.shape[2:]

    def mask(along: int, lo: Tensor, hi: Tensor) -> list[Tensor]:
        return [axis.pool_mask(lo, hi, spec.output_size[along], lengths[along], spec.scale(0)[along])]

    def maximum(maps: Tensor, rois: Tensor) -> Tensor:
        masks = [each for (each,) in _each_axis(mask, rois, lengths, spec)]  # [k, PH, H]
        for dim in range(-1, -1 - len(masks), -1):
            cells = (slice(None), *[None] * (maps.dim() + dim - 1), slice(None), *[None] * (-dim - 1))
            maps = torch.stack([_greatest(maps, each[cells], dim) for each in masks[dim].unbind(1)], dim)
        return torch.where(_all_axes([each.any(-1) for each in masks]), maps, 0)

    return over_boxes(input, rois, spec, maximum, rows=lengths)


def _greatest(values: Tensor, mask: Tensor, dim: int) -> Tensor:
    """The first maximum of the masked values; where all of them are -inf, the mask's own must be told from these."""
    masked = torch.where(mask, values, -torch.inf)
    best = masked.max(dim, keepdim=True)
    first = mask.to(torch.uint8).argmax(dim, keepdim=True)
    return masked.gather(dim, torch.where(best.values == -torch.inf, first, best.indices)).squeeze(dim)


def _each_axis(
    make: Callable[[int, Tensor, Tensor], list[Tensor]],
    rois: Tensor,
    lengths: Sequence[int],
    spec: Pooling,
) -> list[list[Tensor]]:
    """``make(axis, lo, hi)`` for each axis, with edges in float64 where float32 cannot hold a box's positions."""
    made = []
    ratio = spec.sampling_ratio if KINDS[spec.kind].samples else 0
    for along, (length, scale) in enumerate(zip(lengths, spec.scale(0), strict=True)):
        lo, hi = edges(rois, along, spec.rank)
        fits = axis.fits_float32(lo.detach(), hi.detach(), scale, length, ratio)
        made.append(in_fitting_dtype(partial(make, along), fits, lo, hi))
    return made


def in_fitting_dtype(make: Callable[..., list[Tensor]], fits: Tensor, *columns: Tensor) -> list[Tensor]:
    """``make(*columns)``, both with a row per box; those rows in float64 that do not fit into float32."""
    if columns[0].dtype == torch.float64 or columns[0].device.type == "mps":  # Metal has no float64
        return make(*columns)
    if not unseen(fits) and bool(fits.all()):
        return make(*columns)
    if not unseen(fits) and not bool(fits.any()):
        return make(*[column.double() for column in columns])
    narrow = make(*[torch.where(_per_box(fits, column), column, 0) for column in columns])
    wider = make(*[torch.where(_per_box(fits, column), 0, column).double() for column in columns])
    return [_chosen(_per_box(fits, a), a, b.to(a.dtype)) for a, b in zip(narrow, wider, strict=True)]


def _chosen(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == torch.bool:  # ONNX Runtime has no Where of them
        return (condition & a) | (~condition & b)
    return torch.where(condition, a, b)


def over_boxes(
    input: Tensor,
    rois: Tensor,
    spec: Pooling,
    pool: Callable[[Tensor, Tensor], Tensor],
    rows: Sequence[int],
) -> Tensor:
    """Run ``pool(maps, rois)`` over chunks of boxes and channels small enough for memory.

    ``maps`` is ``[k, C, H, W]``, or ``[1, C, H, W]`` if there is one image. ``rows`` are those of the matrices, one
    along each axis.
    """
    images, lengths = input.shape[0], input.shape[2:]

    def on_own_maps(maps: Tensor, rois: Tensor, index: Tensor) -> Tensor:
        return pool(maps if images == 1 else maps.index_select(0, index), rois)

    if tracing.hides_values(input, rois):
        return in_chunks(input, rois, spec, on_own_maps)
    needed = _needed(rows, lengths)
    cost = max(1, needed.products + (math.prod(lengths) if images > 1 else 0)) * spec.group  # of a channel
    some_channels = min(max(1, CHUNK // cost), max(1, spec.pooled_channels(input.shape[1])))
    some_boxes = max(1, CHUNK // (cost * some_channels + needed.matrices))
    return in_chunks(input, rois, spec, on_own_maps, some_channels, some_boxes)


def in_chunks(
    input: Tensor,
    rois: Tensor,
    spec: Pooling,
    pool: Callable[[Tensor, Tensor, Tensor], Tensor],
    some_channels: int = 0,
    some_boxes: int | list[int] = 0,
) -> Tensor:
    """Run ``pool(maps, rois, index)`` over chunks of so many channels of the output, and of so many boxes each.

    ``maps`` is ``[N, C, H, W]``, and ``index`` the image of each box. Where values are hidden all is one chunk. A box
    that is not usable is pooled as one of zeros and its output replaced by NaN, so that its gradient is 0.
    """
    images, lengths = input.shape[0], input.shape[2:]
    boxes, output_size, group = rois.shape[0], spec.output_size, spec.group
    channels = spec.pooled_channels(input.shape[1])
    check_memory("input", input)
    check_memory("boxes", rois)
    if not tracing.hides_values(rois) and boxes * channels * math.prod(output_size) * input.itemsize >= 2**47:
        raise too_large((boxes, channels, *output_size))
    index = batch_index(rois[:, 0].detach(), images)
    valid = (index >= 0) & usable(wide(rois), spec.scale(0), KINDS[spec.kind].box)
    rois = torch.where(valid[:, None], rois, 0)
    index = index.clamp(min=0)
    accumulate = torch.promote_types(input.dtype, torch.float32)
    work = input.to(accumulate)
    if 0 in lengths:
        if boxes > 0 and not tracing.hides_values(rois):  # on one level of a pyramid
            raise on_empty_map(boxes, input)
        # Nothing of nothing, but part of the graph.
        return ((work.sum() + rois.sum()) * rois.new_zeros(0, channels, *output_size)).to(input.dtype)
    if rois.requires_grad and not tracing.hides_values(rois):
        # The gradient to the boxes needs the maps again: gather them again rather than keep K copies.
        work = work if work.requires_grad else work.detach()  # which it may come to require before the backward pass
        pool = partial(checkpoint, tracing.values_seen()(pool), use_reentrant=False, preserve_rng_state=False)

    with torch.autocast("cpu" if input.is_meta else input.device.type, enabled=False):  # meta tensors know no autocast
        if tracing.hides_values(input, rois):
            out = pool(work, rois, index)
        else:
            out = torch.cat([
                torch.cat([
                    pool(work[:, c * group : (c + some_channels) * group], *chunk)
                    for c in range(0, max(1, channels), some_channels)
                ], 1)
                for chunk in zip(rois.split(some_boxes), index.split(some_boxes), strict=True)
            ])  # fmt: skip
    out = torch.where(_per_box(valid, out), out, torch.nan).to(input.dtype)
    return laid_out_as(input, out)


class _Needed(NamedTuple):
    """Numbers that one box needs at once: its matrices, with what making them takes, and the products of a channel."""

    matrices: int
    products: int


def _needed(rows: Sequence[int], lengths: Sequence[int]) -> _Needed:
    """Of matrices of so many rows, one along each axis, contracted one after the other."""
    matrices = 8 * sum(row * length for row, length in zip(rows, lengths, strict=True))
    return _Needed(matrices, sum(math.prod(rows[: i + 1]) * math.prod(lengths[i + 1 :]) for i in range(len(rows))))


def _per_box(mask: Tensor, out: Tensor) -> Tensor:
    """``[K]`` as it broadcasts against ``[K, C, ...]``."""
    return mask[(slice(None), *[None] * (out.dim() - 1))]


def wide(tensor: Tensor) -> Tensor:
    """In float64, which Metal does not have."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def unseen(tensor: Tensor) -> bool:
    """True where a tensor's values cannot be looked at, or not without waiting for the device."""
    return tracing.hides_values(tensor) or tensor.device.type != "cpu"


POOLS: dict[str, Callable[[Tensor, Tensor, Pooling], Tensor]] = {
    "avg": _mean,
    "max": _maximum,
    "integral": _integral,
    "cells": _cells,
    "ps_avg": _mean,
    "ps_cells": _cell_mean,
}  # ``gather`` adds its own
