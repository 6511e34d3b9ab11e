"""The numbers along one axis, all of them from ``axis.py``, and what a caller may pass for a map and a box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import axis

MOST_SAMPLES = 512  # per bin and axis; larger grids are counted, not listed


@dataclass(frozen=True, eq=False)
class AxisValues:
    """One axis of the box: ``P`` bins, ``S`` samples per bin, ``L`` cells of the feature map.

    Positions are in cells of the feature map; cell ``j`` has its centre at position ``j`` and reaches half a cell to
    either side. All floating tensors are float64.

    Attributes:
        length: L.
        scale: cells per pixel of the image.
        box: ``[2]`` positions of the box's own edges: a pixel of the image covers the same place on the map.
        edges: ``[P + 1]`` positions of the edges of RoIAlign's bins.
        grid: samples per bin. If there are more than 512, they are not listed: then S is 0.
        samples: ``[P, S]`` positions of the samples.
        inside: ``[P, S]`` bool; a sample outside ``[-1, L]`` counts as 0.
        taps: ``[P, S, 2]`` int64, the two cells that a sample reads; -1 where there is none.
        weights: ``[P, S, 2]`` what the taps weigh; 0 where there is none.
        matrix: ``[P, L]`` the axis matrix of average RoIAlign, the mean of the samples' weights.
        exact_matrix: ``[P, L]`` the axis matrix of Precise RoI pooling over RoIAlign's bins.
        pool_cells: ``[P, 2]`` int64, the first cell of each bin of RoIPool and the cell after its last.
        pool_mask: ``[P, L]`` bool, those of RoIPool's cells that are on the map.
        align_shift: ``[2]`` how far RoIAlign's window begins and ends from the box, in pixels of the image.
        pool_shift: ``[2]`` how far RoIPool's cells begin and end from the box, in pixels of the image.
    """

    length: int
    scale: float
    box: Tensor
    edges: Tensor
    grid: int
    samples: Tensor
    inside: Tensor
    taps: Tensor
    weights: Tensor
    matrix: Tensor
    exact_matrix: Tensor
    pool_cells: Tensor
    pool_mask: Tensor
    align_shift: Tensor
    pool_shift: Tensor


def axis_values(low: float, high: float, bins: int, length: int, scale: float, ratio: int, aligned: bool) -> AxisValues:
    """Everything about one axis, from the box's two edges in pixels."""
    lo, hi = torch.tensor([[low], [high]], dtype=torch.float64)
    window = axis.align_window(lo, hi, bins, scale, ratio, aligned)
    grid = int(window.grid)
    index = torch.arange(grid if grid <= MOST_SAMPLES else 0, dtype=torch.float64)
    bin_index = torch.arange(bins, dtype=torch.float64)[None, :, None]
    samples = axis.sample_position(window, bin_index, index[None, None])[0]
    rows = axis.sample_weights(samples, length)  # [P, S, L]
    inside = rows.sum(-1) > 0  # a sample inside weighs 1 in all, one outside nothing
    first = (rows != 0).to(torch.int8).argmax(-1, keepdim=True)
    taps = torch.cat([first, first + 1], -1)
    real = inside[..., None] & (taps < length)
    weights = torch.where(real, rows.gather(-1, taps.clamp(max=length - 1)), 0)
    taps = torch.where(real, taps, -1)
    edges = axis.bin_edges(window, bins)[0]
    begin, end = axis.pool_cells(lo, hi, bins, scale)
    cells = torch.stack([begin, end], -1)[0].long()
    outer, true = cells[[0, -1], [0, 1]], torch.cat([lo, hi])
    return AxisValues(
        length=length,
        scale=scale,
        box=axis.bin_edges(axis.align_window(lo, hi, 1, scale, 1, aligned=True), 1)[0],
        edges=edges,
        grid=grid,
        samples=samples,
        inside=inside,
        taps=taps,
        weights=weights,
        matrix=axis.mean_matrix(window, bins, length)[0],
        exact_matrix=axis.integral_matrix(edges[:1], edges[-1:], bins, length, scale=1)[0],
        pool_cells=cells,
        pool_mask=axis.pool_mask(lo, hi, bins, length, scale)[0],
        align_shift=(edges[[0, -1]] + 0.5) / scale - true,  # position 0 is half a cell inside the map
        pool_shift=outer / scale - true,
    )


def sample_rows(part: AxisValues) -> Tensor:
    """``[P, S, L]`` the samples' weights, spread over the cells."""
    return axis.sample_weights(part.samples, part.length)


def feature_map(input_or_size: Tensor | Sequence[int], image: Tensor | None) -> Tensor:
    """The map that was passed, or one of the size that was passed: ``[H, W]`` float64."""
    expected = "expected a Tensor [H, W] or [1, 1, H, W], or a size (H, W)"
    if isinstance(input_or_size, Tensor):
        map = input_or_size.detach()
        if map.dim() == 4 and map.shape[:2] == (1, 1):
            map = map[0, 0]
        if map.dim() != 2:
            raise ValueError(
                f"input_or_size: got {describe(map)}; {expected}; of several channels choose one: input[0, c]"
            )
        if map.numel() == 0 or map.is_complex():
            raise ValueError(f"input_or_size: got {describe(map)} of {map.dtype}; expected real numbers, at least one")
        return map.to("cpu", torch.float64)
    try:
        height, width = (int(part) for part in input_or_size)
    except (TypeError, ValueError):
        raise ValueError(f"input_or_size: got {input_or_size!r}; {expected}") from None
    if height < 1 or width < 1:
        raise ValueError(f"input_or_size: got {input_or_size!r}; expected at least 1 x 1 cells")
    if image is not None:
        grey = image.detach().to("cpu", torch.float64).mean(0, keepdim=True)
        return torch.nn.functional.adaptive_avg_pool2d(grey, (height, width))[0].round(decimals=3)
    y, x = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    # Smooth enough to look like a feature map, whole numbers so that sums can be done in the head.
    return (4.5 + 2.5 * (1.1 * x + 0.4 * y).sin() + 2 * (0.9 * y - 0.5 * x).cos()).round().clamp(0, 9)


def read_box(box: Tensor | Sequence[float]) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2, four finite numbers."""
    parts = box.detach().flatten().tolist() if isinstance(box, Tensor) else list(box)
    if len(parts) != 4:
        raise ValueError(f"box: got {len(parts)} numbers; expected x1, y1, x2, y2")
    x1, y1, x2, y2 = (float(part) for part in parts)
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise ValueError(f"box: got {(x1, y1, x2, y2)}; expected finite numbers")
    return x1, y1, x2, y2


def describe(value: object) -> str:
    """What came, for an error."""
    return f"a Tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
