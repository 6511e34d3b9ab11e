"""Hypothesis strategies: feature maps and boxes of every kind a caller may pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from helpers import DTYPES

BOX_DTYPES = (*DTYPES, torch.int16, torch.int32, torch.int64)
SCALES = ((1.0, 1.0), (0.25, 0.25), (0.0625, 0.0625), (0.3, 0.3), (3.0, 3.0), (0.5, 0.125))
LAYOUTS = ("contiguous", "channels_last", "transposed", "offset", "strided", "expanded")


@dataclass(frozen=True)
class Case:
    """One call's arguments; ``rois`` is ``[K, 5]``."""

    input: Tensor
    rois: Tensor
    size: tuple[int, int]
    scale: tuple[float, float]
    ratio: int
    aligned: bool


def lay_out(values: Tensor, layout: str) -> Tensor:
    """The same numbers in another memory layout; memory that belongs to no element is NaN."""
    images, channels, height, width = values.shape
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return values.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "offset":
        buffer = values.new_full((values.numel() + 7,), torch.nan)
        view = buffer[7:].view(values.shape)
    elif layout == "strided":
        view = values.new_full((images, channels, 3 * height, 2 * width), torch.nan)[:, :, ::3, ::2]
    elif layout == "expanded":
        return values[:, :1].expand(images, min(1, channels) and channels, height, width) if channels else values
    else:
        return values.contiguous()
    return view.copy_(values)


def pixels(low: float, high: float) -> st.SearchStrategy[float]:
    """A position, in cells."""
    return st.floats(low, high, allow_nan=False, allow_subnormal=False)


def edges(length: int) -> st.SearchStrategy[tuple[float, float]]:
    """A box along one axis, in cells: (lower edge, upper edge)."""
    borders = [-1.5, -1.0, -0.5, 0.0, length - 1.0, length - 0.5, float(length), length + 0.5, length + 1.0]
    inside = st.tuples(pixels(0, length), pixels(0, length)).map(lambda pair: (min(pair), max(pair)))
    across = st.tuples(pixels(-length - 2, 1), pixels(length - 1, 2 * length + 2))
    below, above = pixels(-2 * length - 4, -2), pixels(length + 2, 2 * length + 4)
    return st.one_of(
        inside,
        across,
        st.tuples(below, below),
        st.tuples(above, above),
        pixels(-2, length + 2).map(lambda edge: (edge, edge)),  # zero-sized
        across.map(lambda pair: (pair[1], pair[0])),  # inverted
        st.tuples(st.integers(-2, length + 2), st.integers(-2, length + 2)).map(lambda p: (float(p[0]), float(p[1]))),
        st.tuples(st.sampled_from(borders), st.sampled_from(borders)),
    )


@st.composite
def maps(
    draw: st.DrawFn, dtypes: Sequence[torch.dtype] = DTYPES, layouts: Sequence[str] = LAYOUTS, minimum: int = 0
) -> Tensor:
    """A feature map; it has at least ``minimum`` images and channels."""
    shape = (draw(st.integers(minimum, 3)), draw(st.integers(minimum, 3)))
    shape = (*shape, draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    magnitude = draw(st.sampled_from([1.0, 1.0, 100.0]))
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * magnitude
    return lay_out(values.to(draw(st.sampled_from(dtypes))), draw(st.sampled_from(layouts)))


@st.composite
def cases(
    draw: st.DrawFn,
    dtypes: Sequence[torch.dtype] = DTYPES,
    box_dtypes: Sequence[torch.dtype] = BOX_DTYPES,
    layouts: Sequence[str] = LAYOUTS,
    minimum: int = 0,
    most_boxes: int = 12,
) -> Case:
    """A whole call; there are at least ``minimum`` images, channels and boxes (no boxes if there are no images)."""
    input = draw(maps(dtypes, layouts, minimum))
    images, _, height, width = input.shape
    scale = draw(st.sampled_from(SCALES))
    box = st.tuples(st.integers(0, max(images - 1, 0)), edges(height), edges(width))
    drawn = draw(st.lists(box, min_size=min(minimum, images), max_size=most_boxes if images else 0))
    numbers = [(image, x[0] / scale[1], y[0] / scale[0], x[1] / scale[1], y[1] / scale[0]) for image, y, x in drawn]
    rois = torch.tensor(numbers, dtype=torch.float64).reshape(-1, 5).to(draw(st.sampled_from(box_dtypes)))
    return Case(
        input=input,
        rois=rois,
        size=(draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        scale=scale,
        ratio=draw(st.sampled_from([-1, 0, 1, 2, 3, 5])),
        aligned=draw(st.booleans()),
    )
