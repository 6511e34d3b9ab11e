"""The specification: region pooling as two matrix products, on any device and under any transform.

Every other backend is tested against this one. It is plain PyTorch, so autograd, double backward, forward-mode AD,
``torch.func`` and ``torch.compile`` come from PyTorch itself. Boxes are worked through in chunks, so memory does not
grow with their number; under a transform that cannot see values (compile, export, vmap) they are one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import axis
from ..boxes import batch_index, check_memory, pool_by_level, too_large, usable
from . import tracing
from .core import is_channels_last

CHUNK = 2**23  # elements of the largest intermediate of one chunk


def why_not(input: Tensor) -> str:
    """The reference serves every call."""
    return ""


def roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    level: Tensor | None,
    output_size: tuple[int, int],
    scales: Sequence[tuple[float, float]],
    sampling_ratio: int,
    aligned: bool,
    mode: str,
) -> Tensor:
    """``out[k] = Ay[k] @ input[n_k] @ Ax[k].T``, or the maximum of the same over a bin's samples."""
    pool = partial(_align, output_size=output_size, sampling_ratio=sampling_ratio, aligned=aligned, mode=mode)
    if level is None:
        return pool(features[0], rois, scales=scales[0])
    if tracing.hides_values(rois):  # which box goes where is not known yet: pool every box on every level and choose
        pooled = [pool(feature, rois, scales=scale) for feature, scale in zip(features, scales, strict=True)]
        out = pooled[0]
        for index, candidate in enumerate(pooled[1:], 1):
            out = torch.where((level == index)[:, None, None, None], candidate, out)
        return out
    batch_index(rois[:, 0].detach(), features[0].shape[0])  # here, where a message can name the caller's row
    out = pool_by_level(level, len(features), lambda i, row: pool(features[i], rois[row], scales=scales[i]))
    return laid_out_as(features[0], out)


def _align(
    input: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    scales: tuple[float, float],
    sampling_ratio: int,
    aligned: bool,
    mode: str,
) -> Tensor:
    def windows(rois: Tensor) -> list[axis.Window]:
        return [
            axis.align_window(rois[:, lo], rois[:, lo + 2], bins, scale, sampling_ratio, aligned)
            for lo, bins, scale in zip((2, 1), output_size, scales, strict=True)
        ]

    if mode == "avg":

        def mean(maps: Tensor, rois: Tensor) -> Tensor:
            y, x = windows(rois)
            ay = axis.mean_matrix(y, output_size[0], maps.shape[-2])
            ax = axis.mean_matrix(x, output_size[1], maps.shape[-1])
            return _contract(maps, ay, ax)

        return _over_boxes(input, rois, scales, output_size, mean, rows=output_size)

    # Max mode has a row per sample instead of a row per bin.
    samples = [
        _samples(window, sampling_ratio, length) for window, length in zip(windows(rois), input.shape[2:], strict=True)
    ]

    def maximum(maps: Tensor, rois: Tensor) -> Tensor:
        y, x = windows(rois)
        ay, real_y = axis.sample_matrix(y, output_size[0], maps.shape[-2], samples[0])  # [k, PH, S, H], [k, PH, S]
        ax, real_x = axis.sample_matrix(x, output_size[1], maps.shape[-1], samples[1])
        value = _contract(maps, ay.flatten(1, 2), ax.flatten(1, 2))  # [k, C, PH * Sy, PW * Sx]
        value = value.reshape(*value.shape[:2], *ay.shape[1:3], *ax.shape[1:3])
        value = value.transpose(3, 4)  # [k, C, PH, PW, Sy, Sx]
        real = (real_y[:, :, None, :, None] & real_x[:, None, :, None, :])[:, None]
        best = torch.where(real, value, -torch.inf).flatten(-2).max(-1).values  # the first maximum gets the gradient
        return torch.where(real.flatten(-2).any(-1), best, 0)  # an empty grid

    rows = (output_size[0] * samples[0], output_size[1] * samples[1])
    return _over_boxes(input, rois, scales, output_size, maximum, rows)


def prroi_pool(input: Tensor, rois: Tensor, output_size: tuple[int, int], scales: tuple[float, float]) -> Tensor:
    """``out[k] = Ay[k] @ input[n_k] @ Ax[k].T`` with the exact integral's matrices."""

    def integral(maps: Tensor, rois: Tensor) -> Tensor:
        wide = rois if rois.device.type == "mps" else rois.double()  # Metal has no float64
        (ay, ax) = (
            axis.integral_matrix(wide[:, lo], wide[:, lo + 2], bins, length, scale)
            for lo, bins, length, scale in zip((2, 1), output_size, maps.shape[-2:], scales, strict=True)
        )
        return _contract(maps, ay, ax)

    return _over_boxes(input, rois, scales, output_size, integral, rows=output_size)


def roi_pool(input: Tensor, rois: Tensor, output_size: tuple[int, int], scales: tuple[float, float]) -> Tensor:
    """The maximum over each bin's cells, along x and then along y; the first maximum in row-major order wins."""

    def maximum(maps: Tensor, rois: Tensor) -> Tensor:
        my, mx = (
            axis.pool_mask(rois[:, lo], rois[:, lo + 2], bins, length, scale)
            for lo, bins, length, scale in zip((2, 1), output_size, maps.shape[-2:], scales, strict=True)
        )
        along_x = [torch.where(m[:, None, None, :], maps, -torch.inf).max(-1).values for m in mx.unbind(1)]
        columns = torch.stack(along_x, -1)  # [k, C, H, PW]
        along_y = [torch.where(m[:, None, :, None], columns, -torch.inf).max(-2).values for m in my.unbind(1)]
        filled = my.any(-1)[:, None, :, None] & mx.any(-1)[:, None, None, :]
        return torch.where(filled, torch.stack(along_y, -2), 0)

    return _over_boxes(input, rois, scales, output_size, maximum, rows=(input.shape[2], input.shape[3]))


def _over_boxes(
    input: Tensor,
    rois: Tensor,
    scales: tuple[float, float],
    output_size: tuple[int, int],
    pool: Callable[[Tensor, Tensor], Tensor],
    rows: tuple[int, int],
) -> Tensor:
    """Run ``pool(maps, rois)`` over chunks of boxes and channels small enough for memory.

    ``maps`` is ``[k, C, H, W]``, or ``[1, C, H, W]`` if there is one image. ``rows`` are those of the largest
    intermediate. A box that is not usable is pooled as the empty box and its output replaced by NaN, so that its
    gradient is 0.
    """
    images, channels, height, width = input.shape
    boxes = rois.shape[0]
    check_memory("input", input)
    check_memory("boxes", rois)
    if not _traced(rois) and boxes * channels * output_size[0] * output_size[1] * input.itemsize >= 2**47:
        raise too_large((boxes, channels, *output_size))
    index = batch_index(rois[:, 0].detach(), images)
    valid = usable(rois, index, scales)
    rois = torch.where(valid[:, None], rois, 0)
    index = index.clamp(min=0)
    accumulate = torch.promote_types(input.dtype, torch.float32)
    work = input.to(accumulate)
    if height == 0 or width == 0:  # then there are no boxes; nothing of nothing, but part of the graph
        return ((work.sum() + rois.sum()) * rois.new_zeros(0, channels, *output_size)).to(input.dtype)
    if rois.requires_grad and not tracing.hides_values(rois):
        # The gradient to the boxes needs the maps again: gather them again rather than keep K copies.
        pool = partial(checkpoint, pool, use_reentrant=False, preserve_rng_state=False)

    def part(box: slice, channel: slice) -> Tensor:
        maps = (work if images == 1 else work.index_select(0, index[box]))[:, channel]
        return pool(maps, rois[box])

    with torch.autocast("cpu" if input.is_meta else input.device.type, enabled=False):  # meta tensors know no autocast
        if tracing.hides_values(input, rois):
            out = part(slice(None), slice(None))
        else:
            cost = max(1, rows[0] * (width + rows[1]) + (height * width if images > 1 else 0))  # per box and channel
            matrices = 8 * (rows[0] * height + rows[1] * width)  # per box, with what making them takes
            some_channels = min(max(1, CHUNK // cost), max(1, channels))
            some_boxes = max(1, CHUNK // (cost * some_channels + matrices))
            out = torch.cat([
                torch.cat([
                    part(slice(k, k + some_boxes), slice(c, c + some_channels))
                    for c in range(0, max(1, channels), some_channels)
                ], 1)
                for k in range(0, max(1, boxes), some_boxes)
            ])  # fmt: skip
    out = torch.where(valid[:, None, None, None], out, torch.nan).to(input.dtype)
    return laid_out_as(input, out)


def _contract(maps: Tensor, ay: Tensor, ax: Tensor) -> Tensor:
    """``ay @ maps @ ax.T`` per box and channel; a cell of zero weight counts nothing even if it is not finite."""

    def product(maps: Tensor, ay: Tensor, ax: Tensor) -> Tensor:
        equation = "kph,chw->kcpw" if maps.dim() == 3 else "kph,kchw->kcpw"
        return torch.einsum("kcpw,kqw->kcpq", torch.einsum(equation, ay.to(maps.dtype), maps), ax.to(maps.dtype))

    if maps.shape[0] == 1:
        maps = maps[0]
    finite = maps.isfinite()
    if not tracing.hides_values(finite) and bool(finite.all()):
        return product(maps, ay, ax)
    out = product(torch.where(finite, maps, 0), ay, ax)
    flags = {torch.inf: maps == torch.inf, -torch.inf: maps == -torch.inf, torch.nan: maps.isnan()}
    for value, flag in flags.items():
        touched = product(flag.to(maps.dtype), ay != 0, ax != 0) > 0
        out = out + torch.where(touched, value, 0)
    return out


def _samples(window: axis.Window, sampling_ratio: int, length: int) -> int:
    """Rows per bin in max mode: the largest grid, but no more than can decide the maximum."""
    most = axis.max_samples(length)
    if sampling_ratio > 0:
        return min(sampling_ratio, most)
    if tracing.hides_values(window.grid) or window.grid.device.type != "cpu":
        return most  # the grids' sizes are values that cannot be seen, or not without waiting for the device
    return int(torch.cat([window.grid, window.grid.new_ones(1)]).nan_to_num(most, most).max().clamp(1, most))


def laid_out_as(input: Tensor, out: Tensor) -> Tensor:
    """Channels_last in gives channels_last out; a transform of ``torch.func`` does not tell the layout."""
    if tracing.transforms() or not is_channels_last(input):
        return out
    return out.contiguous(memory_format=torch.channels_last)
