"""The rules of region pooling, one axis at a time, in plain PyTorch.

A box is pooled by two small matrices, one per axis::

    out[k, c] = Ay[k] @ input[n_k, c] @ Ax[k].T        Ay: [PH, H], Ax: [PW, W]

This file makes those matrices. It alone knows where a sample lies and what it weighs; backends, figures and tests all
read the rules here. It handles D-dimensional boxes by being called once per axis.

Shapes: ``K`` boxes, ``P`` bins and ``L`` cells of the feature map along the axis. Positions and lengths are in cells of
the feature map; cell ``j`` has its centre at position ``j``. Everything is differentiable with respect to the box's two
edges and has static shapes, so it can be traced, exported and vmapped.

Sources: RoIAlign, He et al., "Mask R-CNN", https://arxiv.org/abs/1703.06870, section 3; integration, Jiang et al.,
"Acquisition of Localization Confidence", https://arxiv.org/abs/1807.11590, equation 5; RoIPool, Girshick, "Fast R-CNN",
https://arxiv.org/abs/1504.08083, section 2.1. Two dense products are known from TPUs (Yuxin Wu's ``roi_align.py`` in
scenic, tensorflow/tpu's ``spatial_transform_ops.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FLOAT_CELLS = 2**23  # from here on a float32 has no fraction: cells and samples could not be told apart
MOST_COUNTED = 2.0**50  # of more samples along an axis, of an adaptive grid, those on the map weigh nothing


class Window(NamedTuple):
    """One axis of K boxes on the feature map, cut into P equal bins with a grid of samples in each.

    Attributes:
        start: ``[K]`` position of the first bin's edge.
        bin: ``[K]`` length of a bin; negative for an inverted box.
        grid: ``[K]`` samples per bin, a whole number held in the floating dtype; 0 means that there is none.
        most: no box has more samples per bin than this; 0 where the grids are adaptive and their sizes cannot be seen.
    """

    start: Tensor
    bin: Tensor
    grid: Tensor
    most: int


def fits_float32(lo: Tensor, hi: Tensor, scale: float, length: int, sampling_ratio: int) -> Tensor:
    """``[K]`` bool: positions of the box along this axis can be computed in float32; otherwise they are in float64."""
    # As tensors: a length may be a symbol, which must not decide anything while it is traced.
    numbers = (lo * scale).abs(), (hi * scale).abs(), torch.full_like(lo, length), torch.full_like(lo, sampling_ratio)
    return torch.stack(numbers).amax(0) <= FLOAT_CELLS


def align_window(lo: Tensor, hi: Tensor, bins: int, scale: float, sampling_ratio: int, aligned: bool) -> Window:
    """Place RoIAlign's bins on the feature map.

    Args:
        lo: ``[K]`` lower box edge in pixels of the image, float32 or float64 (this is the dtype of all positions).
        hi: ``[K]`` upper box edge, likewise.
        bins: P, the output size along this axis.
        scale: cells of the feature map per pixel of the image.
        sampling_ratio: samples per bin; 0 or less means adaptive, ``ceil(size / P)``.
        aligned: shift by half a cell, so that a pixel's centre and not its corner is its position.
    """
    offset = 0.5 if aligned else 0.0
    start = lo * scale - offset
    return _cut((hi * scale - offset) - start, bins, sampling_ratio, aligned)._replace(start=start)


def _cut(size: Tensor, bins: int, sampling_ratio: int, aligned: bool) -> Window:
    """The bins of a box of this size about position 0."""
    if not aligned:
        size = torch.where(size > 1, size, 1)  # constant, so without a derivative, where it is exactly 1
    bin = _shared(size, bins)
    grid = torch.full_like(bin, sampling_ratio) if sampling_ratio > 0 else bin.detach().ceil().clamp(min=0)
    return Window(-size / 2, bin, grid, max(sampling_ratio, 0))


def _shared(size: Tensor, bins: int) -> Tensor:
    return size / torch.full_like(size, bins)  # by a plain number a GPU would multiply by its rounded inverse


def moved_window(lo: Tensor, hi: Tensor, shift: Tensor, index: Tensor, bins: int, scale: float, ratio: int) -> Window:
    """Place bins that move, each as a window of one bin: deformable RoI pooling.

    ``shift`` is ``[K, M]`` of M bins, in units of the box's size, ``index`` ``[M]`` their places along it; the rest as
    in :func:`align_window`, aligned. Of 2**50 samples and more none counts. Returns ``[K * M]`` windows.
    """
    whole = align_window(lo, hi, bins, scale, ratio, aligned=True)
    start, bin, grid = (part[:, None] for part in whole[:3])
    grid = torch.where(grid * bins < MOST_COUNTED, grid, 0) if ratio <= 0 else grid
    moved = (start + index * bin) + ((hi * scale - 0.5)[:, None] - start) * shift
    return Window(moved.flatten(), bin.expand_as(moved).flatten(), grid.expand_as(moved).flatten(), whole.most)


class Frame(NamedTuple):
    """K rotated boxes on the feature map, each grid of samples in the box's own frame. All ``[K]``: position (y, x) of
    the centre; the angle's sine and cosine, counter-clockwise as the image is seen; along the box's height and along
    its width, from the centre, what a :class:`Window` has.
    """

    y: Tensor
    x: Tensor
    sin: Tensor
    cos: Tensor
    top: Tensor
    bin_height: Tensor
    grid_height: Tensor
    left: Tensor
    bin_width: Tensor
    grid_width: Tensor

    @property
    def rows(self) -> Window:
        """The samples along the box's height."""
        return Window(self.top, self.bin_height, self.grid_height, 0)

    @property
    def columns(self) -> Window:
        """The samples along its width."""
        return Window(self.left, self.bin_width, self.grid_width, 0)


def rotated_frame(
    boxes: Tensor, bins: Sequence[int], scale: Sequence[float], sampling_ratio: int, aligned: bool
) -> Frame:
    """Place the bins of rotated boxes on the feature map.

    ``boxes`` are ``[K, 5]`` (centre x, centre y, width, height, angle in radians), float32 or float64; ``bins`` and
    ``scale`` are those along y and x; the rest as in :func:`align_window`.
    """
    x, y, width, height, angle = boxes.unbind(1)
    offset = 0.5 if aligned else 0.0
    # Rounded once from float64, so that every backend has the same.
    wide = angle if angle.device.type == "mps" else angle.double()
    sin, cos = wide.sin().to(angle.dtype), wide.cos().to(angle.dtype)
    rows = _cut(height * scale[0], bins[0], sampling_ratio, aligned)
    columns = _cut(width * scale[1], bins[1], sampling_ratio, aligned)
    return Frame(y * scale[0] - offset, x * scale[1] - offset, sin, cos, *rows[:3], *columns[:3])


def rotated_position(frame: Frame, p: Tensor, i: Tensor, q: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """The (y, x) position of sample (i, j) of bin (p, q); ``[K]`` of one sample of each of the frame's boxes."""
    down, right = sample_position(frame.rows, p, i), sample_position(frame.columns, q, j)
    y = (down * frame.cos - right * frame.sin) + frame.y
    x = (down * frame.sin + right * frame.cos) + frame.x
    return y, x


def sample_taps(position: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The two cells that a sample lies between, and its weights: the border rule and the bilinear rule of one sample.

    Returns:
        ``[..., 2]`` int64 index of the cells, all of them on the map, and ``[..., 2]`` weights; both are 0 for a sample
        outside ``[-1, L]``.
    """
    inside = (position >= -1) & (position <= length)
    place = torch.where(inside, position, 0)
    below = place.detach().floor().clamp(-1, length - 1)
    to_next = torch.where((below >= 0) & (below < length - 1), place - below, 0)
    first = below.clamp(min=0)
    cells = torch.stack([first, (first + 1).clamp(max=length - 1)], -1).long()
    return cells, torch.stack([1 - to_next, to_next], -1) * inside[..., None]


def sample_position(window: Window, bin_index: Tensor, sample_index: Tensor) -> Tensor:
    """Position of a sample: ``start + p*bin + (i + 0.5)*bin/grid``, rounded in exactly this order.

    The window's ``[K]`` tensors are broadcast against the leading dimension of the indices.
    """
    ones = (1,) * (max(bin_index.dim(), sample_index.dim()) - 1)
    start, bin, grid = (part.reshape(-1, *ones) for part in window[:3])
    return (start + bin_index * bin) + (sample_index + 0.5) * bin / grid.clamp(min=1)


def bin_edges(window: Window, bins: int) -> Tensor:
    """Positions of the bins' edges: ``[K, P + 1]``, the first bin's start to the last one's end."""
    index = torch.arange(bins + 1, device=window.bin.device, dtype=window.bin.dtype)
    return window.start[:, None] + index * window.bin[:, None]


def interval_weights(count: Tensor, offset: Tensor) -> Tensor:
    """Spread samples over the cells they lie between: the bilinear rule and the border rule.

    Interval ``m`` holds the positions from cell ``m - 1`` to cell ``m``. A sample at ``offset`` past cell ``m - 1``
    gives ``1 - offset`` to that cell and ``offset`` to the next. Outside the first and the last cell's centre the
    position is clamped: interval 0 gives everything to cell 0, interval ``L`` everything to cell ``L - 1``.

    Args:
        count: ``[..., L + 1]`` number of samples in each interval.
        offset: ``[..., L + 1]`` sum of those samples' offsets.

    Returns:
        ``[..., L]`` weights of the cells, not yet divided by the number of samples.
    """
    last = count.shape[-1] - 1
    interval = torch.arange(last + 1, device=count.device)
    to_next = torch.where(interval == 0, count, torch.where(interval == last, 0, offset))
    return (count - to_next)[..., 1:] + to_next[..., :-1]


def mean_matrix(window: Window, bins: int, length: int) -> Tensor:
    """Axis matrix of average RoIAlign: each row is the mean of its samples' bilinear weights.

    The samples of a bin are an arithmetic progression, so those between two neighbouring cells are counted, and their
    offsets summed, in closed form. Cost and memory depend on the map's length and never on the number of samples.

    Returns:
        ``[K, P, L]`` in the window's dtype. A sample outside ``[-1, L]`` counts as 0; a row of an empty grid is 0.
    """
    bin_index = _bin_indices(window, bins)
    cells = _cells(window, -1, length)
    first = _first_samples(window, bins, length)  # [K, P, L + 2]
    count = first.diff()  # [K, P, L + 1]
    head = sample_position(window, bin_index, _mirrored(window, first[..., :-1]))
    tail = sample_position(window, bin_index, _mirrored(window, _before(first[..., 1:])))
    # The mean of a progression is the mean of its two ends. Without samples these are elsewhere, perhaps infinite.
    offset = torch.where(count > 0, count * (((head - cells) + (tail - cells)) / 2), 0)
    return interval_weights(count, offset) / window.grid.clamp(min=1)[:, None, None]


def max_samples(length: int) -> int:
    """Upper bound on the samples per bin that can decide a maximum on an axis of this length (see sample_matrix)."""
    return 2 * (length + 2)


def sample_matrix(window: Window, bins: int, length: int, samples: int) -> tuple[Tensor, Tensor]:
    """Axis matrix of max RoIAlign: one row per sample.

    Between two cells the interpolated map is linear along the axis, so only the first and the last sample there can be
    the (first) maximum. With ``samples == max_samples(length)`` just these candidates are listed, however large the
    grid; with fewer, sample ``i`` is row ``i`` and no grid may be larger than ``samples``.

    Returns:
        rows: ``[K, P, S, L]`` in sample order; a row of a sample outside ``[-1, L]`` is 0.
        real: ``[K, P, S]`` bool, False where the row stands for no sample.
    """
    bin_index = _bin_indices(window, bins)
    grid = window.grid[:, None, None]
    if samples < max_samples(length):
        index = torch.arange(samples, device=grid.device, dtype=grid.dtype).expand(grid.shape[0], bins, samples)
        real = index < grid
    else:
        first = _first_samples(window, bins, length)
        index = torch.minimum(torch.cat([_before(first), first], -1), _before(grid)).clamp(min=0)
        index = _mirrored(window, index).sort(-1).values
        real = (grid > 0).expand_as(index)
    return sample_weights(sample_position(window, bin_index, index), length), real


def sample_weights(position: Tensor, length: int) -> Tensor:
    """Bilinear weights of single samples: ``[..., L]`` for positions ``[...]``; 0 for a sample outside ``[-1, L]``."""
    position = position[..., None]
    inside = (position >= -1) & (position <= length)
    cells = torch.arange(-1, length, device=position.device, dtype=position.dtype)
    here = (position.floor().clamp(-1, length - 1) == cells) & inside  # [..., L + 1]
    return interval_weights(here.to(position.dtype), torch.where(here, position - cells, 0))


def integral_matrix(lo: Tensor, hi: Tensor, bins: int, length: int, scale: float) -> Tensor:
    """Axis matrix of Precise RoI pooling: the integral of each cell's hat function over the bin, over the bin's length.

    There is no half-cell shift, the map is 0 outside, and a box without extent gives 0.

    Args:
        lo: ``[K]`` lower box edge in pixels of the image; differences of positions are squared here, so pass float64
            where the device has it.
        hi: ``[K]`` upper box edge, likewise.
        bins: P, the output size along this axis.
        length: L, the cells of the feature map along this axis.
        scale: cells of the feature map per pixel of the image.

    Returns:
        ``[K, P, L]`` in the edges' dtype.
    """
    start = (lo * scale)[:, None, None]
    bin = _shared(((hi * scale)[:, None, None] - start).clamp(min=0), bins)
    cells = torch.arange(-1, length, device=lo.device, dtype=lo.dtype)
    p = torch.arange(bins, device=lo.device, dtype=lo.dtype)[:, None]
    # The cells' centres cut the bin into pieces. On each the map is linear, so a piece acts as one sample at its middle
    # that weighs its share of the bin.
    begin, end = start + p * bin, start + (p + 1) * bin  # [K, P, 1]
    # How much of the bin lies before the piece, [K, P, L + 1]; no more than there is, or a tiny bin makes it infinite.
    skipped = torch.minimum(torch.where(cells > begin, cells - begin, 0), bin)
    piece = torch.minimum(torch.minimum(cells + 1 - begin, bin - skipped), bin.clamp(max=1)).clamp(min=0).detach()
    # A piece follows the bin where that begins or ends on it: at a cell's centre, the one to the right.
    piece = torch.where(end.floor() == cells, piece + (end - end.detach()), piece)
    piece = torch.where(begin.floor() == cells, piece - (begin - begin.detach()), piece)
    # Where the square of a bin is no number, the second derivative is 0 instead of NaN.
    whole = torch.where(bin > 1e-150, bin, torch.where(bin > 0, bin, 1).detach())
    share = piece / whole
    middle = (begin - cells).clamp(min=0) + piece / 2  # beyond the cell before it
    moment = share * (p + (skipped + piece / 2) / whole)  # times its place along the box, in bins
    # How the weights follow the bin is known exactly, while differentiating their shares would divide by its length:
    # where start and bin move, a piece's middle moves with them. The trapezoid makes the second derivative right too.
    moved = (start - start.detach()) * (share + share.detach()) + (bin - bin.detach()) * (moment + moment.detach())
    to_next = (share * middle).detach() + moved / 2
    return torch.where(bin > 0, (share.detach() - to_next)[..., 1:] + to_next[..., :-1], 0)


def pool_cells(lo: Tensor, hi: Tensor, bins: int, scale: float, last_counts: bool = True) -> tuple[Tensor, Tensor]:
    """The cells of each bin of RoIPool, after its two quantisations, whether or not the map has them.

    The box's edges are rounded to whole cells (halves away from 0), both edge cells included, or not the last one; then
    each bin is widened to whole cells, so that bins may overlap.

    Returns:
        ``[K, P]`` first cell, and ``[K, P]`` the cell after the last.
    """
    first, last = _round_half_away(lo.detach() * scale), _round_half_away(hi.detach() * scale)
    bin = _shared((last - first + last_counts).clamp(min=1), bins)[:, None]
    p = torch.arange(bins, device=lo.device, dtype=lo.dtype)
    return (p * bin).floor() + first[:, None], ((p + 1) * bin).ceil() + first[:, None]


def pool_mask(lo: Tensor, hi: Tensor, bins: int, length: int, scale: float) -> Tensor:
    """``[K, P, L]`` bool: the cells of the map that each bin of RoIPool covers (see pool_cells); off the map none."""
    begin, end = pool_cells(lo, hi, bins, scale)
    cells = torch.arange(length, device=lo.device, dtype=lo.dtype)
    return (begin[..., None] <= cells) & (cells < end[..., None])


def cell_mean_matrix(lo: Tensor, hi: Tensor, bins: int, length: int, scale: float) -> Tensor:
    """Axis matrix of position-sensitive RoI pooling: each row is the mean over the cells of its bin.

    The box ends before the cell that its upper edge is rounded to, and the map's last cell is never read: so
    torchvision's operator has it, on whose numbers models are trained. A bin without cells gives 0.

    Returns:
        ``[K, P, L]`` in the edges' dtype, without gradient.
    """
    begin, end = pool_cells(lo, hi, bins, scale, last_counts=False)
    cells = torch.arange(length, device=lo.device, dtype=lo.dtype)
    covered = (begin[..., None] <= cells) & (cells < end[..., None].clamp(max=length - 1))
    return covered.to(lo.dtype) / covered.sum(-1, keepdim=True).clamp(min=1)


def _bin_indices(window: Window, bins: int) -> Tensor:
    return torch.arange(bins, device=window.bin.device, dtype=window.bin.dtype)[None, :, None]  # [1, P, 1]


def _cells(window: Window, begin: int, end: int) -> Tensor:
    return torch.arange(begin, end, device=window.bin.device, dtype=window.bin.dtype)


def _mirrored(window: Window, index: Tensor) -> Tensor:
    """Count samples by ascending position: an inverted box's samples run backwards. Its own inverse."""
    bin, grid = window.bin[:, None, None], window.grid[:, None, None]
    return torch.where(bin < 0, grid - 1 - index, index)


def _first_samples(window: Window, bins: int, length: int) -> Tensor:
    """How many samples of each bin lie before each of the edges -1, 0, ..., L - 1, and up to L (inclusive).

    Returns:
        ``[K, P, L + 2]``, without gradient. Samples are counted by ascending position.
    """
    window = Window(window.start.detach(), window.bin.detach(), window.grid.detach(), window.most)
    bin_index = _bin_indices(window, bins)
    grid = window.grid[:, None, None]
    edges = _cells(window, -1, length + 1)
    is_last = torch.arange(length + 2, device=grid.device) == length + 1  # a sample exactly at L is still inside

    def position(index: Tensor) -> Tensor:
        return sample_position(window, bin_index, _mirrored(window, index))

    if window.most > 0:
        low, high = torch.full_like(bin_index * edges, -1).expand(grid.shape[0], -1, -1), grid
        halvings = window.most.bit_length() + 1
    else:  # An adaptive step is near one cell, so a division finds the sample but for a few.
        step = window.bin.abs()[:, None, None] / grid.clamp(min=1)
        guess = ((edges - position(torch.zeros_like(bin_index))) / step).nan_to_num(0).ceil()
        low, high, halvings = (guess - 16).clamp(min=-1), torch.minimum((guess + 16).clamp(min=0), grid), 6
        low = torch.minimum(low, high - 1)
    # Positions do not decrease, rounding included: bisection finds what visiting each sample would. Sample `low` lies
    # before the edge, `high` does not or is the end.
    high = high.expand_as(low)
    for _ in range(halvings):
        middle = (low + (high - low) / 2).floor()
        at = position(middle)
        lies_before = (at < edges) | (is_last & (at == edges))
        searching = (low < middle) & (middle < high)
        low = torch.where(searching & lies_before, middle, low)
        high = torch.where(searching & ~lies_before, middle, high)
    return high


def _before(index: Tensor) -> Tensor:
    """The sample before this one. Beyond 2**53 there are samples that no float64 counts: they are passed over."""
    return torch.minimum(index - 1, index * (1 - 2**-53))


def _round_half_away(value: Tensor) -> Tensor:
    """C's ``round``; ``torch.round`` takes halves to even instead."""
    whole = value.trunc()
    return whole + ((value - whole).abs() >= 0.5) * value.sign()
