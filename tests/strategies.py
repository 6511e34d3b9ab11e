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
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}  # by rank
LAYOUTS = ("contiguous", "channels_last", "transposed", "offset", "strided", "expanded")


@dataclass(frozen=True)
class Case:
    """One call's arguments; ``rois`` is ``[K, 1 + 2 * rank]``."""

    input: Tensor
    rois: Tensor
    size: tuple[int, ...]
    scale: tuple[float, ...]
    ratio: int
    aligned: bool


def lay_out(values: Tensor, layout: str) -> Tensor:
    """The same numbers in another memory layout; memory that belongs to no element is NaN."""
    images, channels, *cells = values.shape
    if layout == "channels_last":
        last = values.movedim(1, -1).contiguous().movedim(-1, 1)
        return last if len(cells) == 1 else last.contiguous(memory_format=LAST[len(cells)])
    if layout == "transposed":
        return values.transpose(2, -1).contiguous().transpose(2, -1)
    if layout == "offset":
        buffer = values.new_full((values.numel() + 7,), torch.nan)
        view = buffer[7:].view(values.shape)
    elif layout == "strided":
        steps = (3, 2, 2)[: len(cells)]
        size = [step * length for step, length in zip(steps, cells, strict=True)]
        view = values.new_full((images, channels, *size), torch.nan)[
            (..., *(slice(None, None, step) for step in steps))
        ]
    elif layout == "expanded":
        return values[:, :1].expand(images, min(1, channels) and channels, *cells) if channels else values
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
    draw: st.DrawFn,
    dtypes: Sequence[torch.dtype] = DTYPES,
    layouts: Sequence[str] = LAYOUTS,
    minimum: int = 0,
    rank: int = 2,
) -> Tensor:
    """A feature map; it has at least ``minimum`` images and channels."""
    shape = (draw(st.integers(minimum, 3)), draw(st.integers(minimum, 3)))
    shape = (*shape, *(draw(st.integers(1, 9 if rank < 3 else 5)) for _ in range(rank)))
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
    rank: int = 2,
) -> Case:
    """A whole call; there are at least ``minimum`` images, channels and boxes (no boxes if there are no images)."""
    input = draw(maps(dtypes, layouts, minimum, rank))
    images, _, *lengths = input.shape
    scale = draw(st.sampled_from(SCALES))
    scale = (*scale, scale[0])[:rank]
    box = st.tuples(st.integers(0, max(images - 1, 0)), *map(edges, lengths))
    drawn = draw(st.lists(box, min_size=min(minimum, images), max_size=most_boxes if images else 0))
    numbers = []
    for image, *sides in drawn:
        pixels = [(low / each, high / each) for (low, high), each in zip(sides, scale, strict=True)][::-1]  # x first
        numbers.append([image, *(low for low, _ in pixels), *(high for _, high in pixels)])
    rois = torch.tensor(numbers, dtype=torch.float64).reshape(-1, 1 + 2 * rank)
    return Case(
        input=input,
        rois=rois.to(draw(st.sampled_from(box_dtypes))),
        size=tuple(draw(st.integers(1, 4 if rank < 3 else 3)) for _ in range(rank)),
        scale=scale,
        ratio=draw(st.sampled_from([-1, 0, 1, 2, 3, 5])),
        aligned=draw(st.booleans()),
    )
