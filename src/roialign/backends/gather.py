"""The specification of what no two matrices describe: boxes that are rotated, bins that move. Plain PyTorch.

The samples of a rotated box lie in its own frame, so that their weights are no product of a part along y and a part
along x: each sample reads its four cells by itself. A bin that moves has two matrices of one row for itself. All else
is as in ``reference``, which these kinds are handed to.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .. import axis
from ..boxes import edges
from ..spec import Pooling, check_visited
from . import tracing
from .contraction import along, along_own, contracted, dense
from .reference import CHUNK, POOLS, in_chunks, in_fitting_dtype, over_boxes, wide

Lengths = tuple[int, int]


# Bins that move.


def _moved(input: Tensor, rois: Tensor, spec: Pooling) -> Tensor:
    """``out[k, c, p, q] = Ay[k, p, q] @ input[n_k, c] @ Ax[k, p, q]``: the mean of each bin's samples."""
    lengths, size = input.shape[2:], spec.output_size
    bins = size[0] * size[1]

    def matrix(along: int, place: Tensor, lo: Tensor, hi: Tensor, shift: Tensor) -> list[Tensor]:
        scale, ratio = spec.scale(0)[along], spec.sampling_ratio
        window = axis.moved_window(lo, hi, shift, place.to(lo.dtype), size[along], scale, ratio)
        return [axis.mean_matrix(window, 1, lengths[along]).reshape(lo.shape[0], *size, lengths[along])]

    def product(maps: Tensor, ay: Tensor, ax: Tensor) -> Tensor:
        rows = along(maps, ay.flatten(1, 2), -2, shared=maps.dim() == 3)  # [k, c, bins, w]
        each: Tensor = along_own(rows, ax.flatten(1, 2), 2, -1, shared=False).unflatten(2, size)
        return dense(each)

    def mean(maps: Tensor, rois: Tensor) -> Tensor:
        index = torch.arange(bins, device=rois.device)
        places = (index // size[1], index % size[1])
        columns = [(*edges(rois, along, 2), rois[:, 5:].chunk(2, 1)[1 - along]) for along in (0, 1)]
        fits = torch.stack([
            axis.fits_float32(lo, hi, scale, length, spec.sampling_ratio)
            & (((hi - lo) * scale)[:, None] * shift).abs().le(axis.FLOAT_CELLS).all(1)
            for (lo, hi, shift), scale, length in zip(columns, spec.scale(0), lengths, strict=True)
        ]).all(0)  # fmt: skip
        (ay,), (ax,) = (
            in_fitting_dtype(partial(matrix, along, places[along]), fits, *columns[along]) for along in (0, 1)
        )
        return contracted(product, maps[0] if maps.shape[0] == 1 else maps, ay, ax)

    return over_boxes(input, rois, spec, mean, rows=(bins, bins))


# Rotated boxes.


class Samples(NamedTuple):
    """Some samples of some boxes: ``[S]`` each.

    Attributes:
        box: whose they are.
        row: the sample's place along the box's height, over all bins.
        column: along its width.
    """

    box: Tensor
    row: Tensor
    column: Tensor


def _rotated(input: Tensor, rois: Tensor, spec: Pooling) -> Tensor:
    """The mean of each bin's samples, each of which adds its four cells, weighted, to its bin."""
    check_visited(spec)
    lengths = (input.shape[2], input.shape[3])
    hidden = tracing.hides_values(input, rois)
    if spec.sampling_ratio == 0 and hidden:
        raise ValueError(
            "sampling_ratio: got 0, an adaptive grid, where the sizes of rotated boxes cannot be seen, as in a graph; "
            "expected the number of samples per bin"
        )

    def pool(maps: Tensor, rois: Tensor, image: Tensor) -> Tensor:
        boxes, size = rois[:, 1:], spec.output_size
        channels = maps.shape[1]
        cells = maps.permute(0, 2, 3, 1).reshape(maps.shape[0] * lengths[0] * lengths[1], channels)
        out = cells.new_zeros(boxes.shape[0] * size[0] * size[1], channels)
        most = max(1, CHUNK // (4 * max(1, channels)))
        listed = [_all(boxes, spec)] if spec.sampling_ratio > 0 else _on_the_map(boxes, lengths, spec, most)
        fits = _fits_float32(boxes.detach(), lengths, spec)
        for samples in listed:
            make = partial(_taps, samples, lengths, spec)
            bin, cell, weight = in_fitting_dtype(make, fits[samples.box], boxes[samples.box])
            cell = cell + (image[samples.box] * lengths[0] * lengths[1])[:, None]
            out = out + contracted(partial(_added, bin, cell, out.shape[0]), cells, weight)
        return dense(out.reshape(boxes.shape[0], *size, channels).permute(0, 3, 1, 2))

    if hidden:
        return in_chunks(input, rois, spec, pool)
    return in_chunks(input, rois, spec, pool, *_chunks(input, rois.detach(), spec))


def _taps(samples: Samples, lengths: Lengths, spec: Pooling, boxes: Tensor) -> list[Tensor]:
    """Of each sample, a row of ``boxes`` each: its bin, over all boxes, ``[S]``; its four cells and their weights."""
    frame = axis.rotated_frame(boxes, spec.output_size, spec.scale(0), spec.sampling_ratio, spec.aligned)
    row, column = (
        [part.to(boxes.dtype) for part in _in_bins(wide(index), wide(window.grid))]
        for index, window in ((samples.row, frame.rows), (samples.column, frame.columns))
    )
    y, x = axis.rotated_position(frame, *row, *column)
    (cell_y, weight_y), (cell_x, weight_x) = axis.sample_taps(y, lengths[0]), axis.sample_taps(x, lengths[1])
    cell = (cell_y * lengths[1])[:, :, None] + cell_x[:, None, :]
    count = (frame.rows.grid * frame.columns.grid).clamp(min=1)
    weight = weight_y[:, :, None] * weight_x[:, None, :] / count[:, None, None]
    height, width = spec.output_size
    bin = (samples.box * height + row[0].long()) * width + column[0].long()
    return [bin, cell.flatten(1), weight.flatten(1)]


def _in_bins(index: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """The bin of a sample that is counted over all bins, and its place there."""
    bin = (index / grid.clamp(min=1)).floor()  # exact: both are whole numbers below 2**50
    return bin, index - bin * grid


def _added(bin: Tensor, cell: Tensor, bins: int, cells: Tensor, weight: Tensor) -> Tensor:
    """``[bins, C]``: the sum of each bin's cells, weighted."""
    values = cells.index_select(0, cell.flatten()) * weight.flatten()[:, None]
    out = torch.zeros(bins, cells.shape[1], dtype=cells.dtype, device=cells.device)
    return out.index_add(0, bin[:, None].expand_as(cell).flatten(), values)


def _fits_float32(boxes: Tensor, lengths: Lengths, spec: Pooling) -> Tensor:
    """``[K]`` bool: as ``axis.fits_float32``, of both axes, which mix."""
    x, y, width, height, _ = boxes.unbind(1)
    (sy, sx), ratio = spec.scale(0), spec.sampling_ratio
    fits_y = axis.fits_float32(y, height, sy, lengths[0], ratio)
    return fits_y & axis.fits_float32(x, width, sx, lengths[1], ratio)


def _all(boxes: Tensor, spec: Pooling) -> Samples:
    """Every sample of a fixed grid, on the map or not."""
    height, width = (bins * spec.sampling_ratio for bins in spec.output_size)
    index = torch.arange(boxes.shape[0] * height * width, device=boxes.device)
    return Samples(index // (height * width), index // width % height, index % width)


# Of an adaptive grid only the samples on the map are listed, so that giant boxes cost what the map does. The map is
# taken a little too large: whether a sample counts, its own position decides.

MARGIN = 2  # cells; more than positions are rounded by


class Spans(NamedTuple):
    """A span of a box's rows of samples, or of a row's samples; whole numbers in a floating dtype."""

    first: Tensor
    size: Tensor


def _on_the_map(boxes: Tensor, lengths: Lengths, spec: Pooling, most: int) -> Iterator[Samples]:
    """The samples of adaptive grids, row by row, about ``most`` at once."""
    frame = _wide_frame(boxes.detach(), lengths, spec)
    box, row = _listed(_rows(frame, lengths, spec.output_size[0]))
    spans = _columns(axis.Frame(*[part[box] for part in frame]), row, lengths, spec)
    for part in _split(spans.size, most):
        owner, column = _listed(Spans(spans.first[part], spans.size[part]))
        yield Samples(box[part][owner], row[part][owner], column)


def _wide_frame(boxes: Tensor, lengths: Lengths, spec: Pooling) -> axis.Frame:
    """In float64, but with the numbers that the rule has in the dtype of the positions."""

    def make(boxes: Tensor) -> list[Tensor]:
        frame = axis.rotated_frame(boxes, spec.output_size, spec.scale(0), 0, spec.aligned)
        return [wide(part) for part in frame]

    return axis.Frame(*in_fitting_dtype(make, _fits_float32(boxes, lengths, spec), boxes))


def _rows(frame: axis.Frame, lengths: Lengths, bins: int) -> Spans:
    """The rows of samples that may meet the map: those between its corners, seen along the box's height."""
    corners = [
        (x - frame.x) * frame.sin + (y - frame.y) * frame.cos
        for y in (-1 - MARGIN, lengths[0] + MARGIN)
        for x in (-1 - MARGIN, lengths[1] + MARGIN)
    ]
    return _span(torch.stack(corners), frame.rows, bins)


def _columns(frame: axis.Frame, row: Tensor, lengths: Lengths, spec: Pooling) -> Spans:
    """Of each row of samples those that may lie on the map: between its borders, where the row meets them."""
    down = frame.rows.start + (row + 0.5) * (frame.rows.bin / frame.rows.grid.clamp(min=1))
    y, x = frame.y + down * frame.cos, frame.x + down * frame.sin  # where the row crosses the box's middle
    meets_y = torch.stack([(y + 1 + MARGIN) / frame.sin, (y - lengths[0] - MARGIN) / frame.sin])
    meets_x = torch.stack([(-1 - MARGIN - x) / frame.cos, (lengths[1] + MARGIN - x) / frame.cos])
    spans = [_span(meets, frame.columns, spec.output_size[1]) for meets in (meets_y, meets_x)]
    first = torch.maximum(spans[0].first, spans[1].first)
    end = torch.minimum(*[span.first + span.size for span in spans])
    return Spans(first, (end - first).clamp(min=0))


def _span(ends: Tensor, window: axis.Window, bins: int) -> Spans:
    """The samples between the least and the greatest of some positions along one axis of the box."""
    total = window.grid * bins
    index = (ends - window.start) / (window.bin / window.grid.clamp(min=1))
    unbounded = index.isnan().any(0)  # along a border
    low, high = index.amin(0).masked_fill(unbounded, -torch.inf), index.amax(0).masked_fill(unbounded, torch.inf)
    first, end = ((edge + away).clamp(min=0).minimum(total) for edge, away in ((low.floor(), -1), (high.ceil(), 1)))
    return Spans(first, torch.where(total < axis.MOST_COUNTED, (end - first).clamp(min=0), 0))


def _listed(spans: Spans) -> tuple[Tensor, Tensor]:
    """Every member of every span: the span it is of, and its number."""
    count = spans.size.long()
    owner = torch.arange(count.shape[0], device=count.device).repeat_interleave(count)
    place = torch.arange(owner.shape[0], device=count.device) - (count.cumsum(0) - count)[owner]
    return owner, spans.first[owner] + place


def _split(count: Tensor, most: int) -> list[slice]:
    """Cut a list of such counts where their sum passes ``most``."""
    part = count.cumsum(0).div(most, rounding_mode="floor").long()
    ends = [*((part[1:] != part[:-1]).nonzero()[:, 0] + 1).tolist(), part.shape[0]]
    return [slice(first, end) for first, end in zip([0, *ends[:-1]], ends, strict=True)]


def _chunks(input: Tensor, rois: Tensor, spec: Pooling) -> tuple[int, list[int]]:
    """Channels and boxes of a chunk, by the samples of each box, or, of an adaptive grid, a bound of them."""
    height, width = (bins * max(1, spec.sampling_ratio) for bins in spec.output_size)
    count = wide(torch.full_like(rois[:, 0], height * width))
    if spec.sampling_ratio == 0:
        lengths = (input.shape[2], input.shape[3])
        frame = _wide_frame(rois[:, 1:].nan_to_num(0, 0, 0), lengths, spec)
        # Its columns are the rows of the frame turned by a right angle.
        turned = axis.Frame(frame.y, frame.x, frame.cos, -frame.sin, *frame.columns[:3], *frame.rows[:3])
        down, across = _rows(frame, lengths, height), _rows(turned, lengths, width)
        count = (down.size * across.size).nan_to_num(0).clamp(min=1)
    some_channels = min(max(1, CHUNK // (4 * int(max(count.tolist(), default=1)))), max(1, input.shape[1]))
    return some_channels, [part.stop - part.start for part in _split(count * (4 * some_channels + 40), CHUNK)]


POOLS["rotated"] = _rotated
POOLS["moved"] = _moved
