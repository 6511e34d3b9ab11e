"""The rules along one axis, where only large numbers or hidden ones tell them from others."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from roialign import axis, backends
from roialign.spec import Pooling


def test_what_fits_into_float32() -> None:
    """All four numbers of an axis must, in cells: up to 2**23 there are halves."""
    most = 2.0**23
    for scale, lo, hi, length, ratio in (
        (0.25, 4 * most, 0, 8, 2),
        (0.25, 0, -4 * most, 8, 2),
        (4.0, most / 4, most / 4, 8, 2),
        (1.0, 0, 0, most, 2),
        (1.0, 0, 0, 8, most),
    ):
        edges = torch.tensor([[lo], [hi]])
        assert axis.fits_float32(*edges, scale, int(length), int(ratio))
        lo, hi, length, ratio = (number * (1 + 2**-20) for number in (lo, hi, length, ratio))
        assert not axis.fits_float32(*torch.tensor([[lo], [hi]]), scale, math.ceil(length), math.ceil(ratio))


def test_samples_may_lie_where_no_number_reaches() -> None:
    """The last of 2**60 samples in a box of 1e300 cells: its place times the box is infinite, before it is divided."""
    lo, hi = torch.zeros(1, dtype=torch.float64), torch.tensor([1e300], dtype=torch.float64)
    window = axis.align_window(lo, hi, 1, 1.0, 2**60, aligned=False)
    assert axis.mean_matrix(window, 1, 8).tolist() == [[[0.0] * 8]]


def boxes(seed: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Edges of boxes of every size, before, on, across and beyond a map of this length; some on whole cells."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(2, 16, generator=generator, dtype=torch.float64)
    lo = (4 * uniform[0] - 2) * length
    size = 0.01 * (1000 * length) ** uniform[1]
    lo[::4], size[::4] = lo[::4].round(), size[::4].ceil()
    return lo.to(dtype), (lo + size).to(dtype)


@given(
    seed=st.integers(0, 2**31),
    length=st.integers(1, 80),
    bins=st.integers(1, 5),
    scale=st.sampled_from([1.0, 0.5, 1.7]),
    aligned=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_samples_are_found_where_bisecting_the_whole_grid_finds_them(
    seed: int, length: int, bins: int, scale: float, aligned: bool, dtype: torch.dtype
) -> None:
    unseen = axis.align_window(*boxes(seed, length, dtype), bins, scale, 0, aligned)
    seen = unseen._replace(most=max(1, int(unseen.grid.max())))
    assert unseen.most == 0
    assert torch.equal(axis.mean_matrix(unseen, bins, length), axis.mean_matrix(seen, bins, length))
    samples = axis.max_samples(length)
    for found, expected in zip(
        axis.sample_matrix(unseen, bins, length, samples), axis.sample_matrix(seen, bins, length, samples), strict=True
    ):
        assert torch.equal(found, expected)


def test_no_size_is_divided_by_a_plain_number() -> None:
    """On a GPU PyTorch multiplies by the rounded inverse: on an H100 a sample was no longer on a cell's centre."""

    class Divisions(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.ops.aten.div.Tensor, torch.ops.aten.div.Scalar):
                by.append(args[1])
            return func(*args, **(kwargs or {}))

    by: list[object] = []
    maps, rois = torch.randn(1, 2, 9, 19), torch.tensor([[0, 3.1, 2.2, 17.3, 9.4]])
    with backends.use("reference"), Divisions():
        for kind in ("avg", "max", "integral", "cells"):
            backends.pool([maps], rois, None, Pooling(kind, (2, 3), (0.5, 0.4), 0, True))
    assert by
    plain = {float(each) for each in by if not isinstance(each, torch.Tensor) or each.dim() == 0}
    assert all(math.frexp(each)[0] == 0.5 for each in plain), plain  # the inverse of a power of two is exact


def test_taps_of_samples_in_any_shape_and_up_to_the_border() -> None:
    """Beyond the first and the last centre one cell has all the weight, and beyond the border none."""
    position = torch.tensor([[3.5, 3.0, 1.25], [-0.5, 4.5, -1.0]], dtype=torch.float64)
    cells, weights = axis.sample_taps(position, 4)
    assert cells[0].tolist() == [[3, 3], [3, 3], [1, 2]]
    assert cells[1].tolist() == [[0, 1], [0, 1], [0, 1]]  # beyond L whichever
    assert weights[0].tolist() == [[1, 0], [1, 0], [0.75, 0.25]]
    assert weights[1].tolist() == [[1, 0], [0, 0], [1, 0]]


def test_sine_and_cosine_of_an_angle_are_rounded_once() -> None:
    """In float32 alone PyTorch's sine is often one unit off: every backend has that of float64, rounded."""
    boxes = torch.zeros(5000, 5)
    boxes[:, 4] = torch.linspace(-7, 7, 5000)
    frame = axis.rotated_frame(boxes, (1, 1), (1.0, 1.0), 2, True)
    assert frame.sin.tolist() == [float(torch.tensor(math.sin(angle))) for angle in boxes[:, 4].tolist()]
    assert frame.cos.tolist() == [float(torch.tensor(math.cos(angle))) for angle in boxes[:, 4].tolist()]


def test_where_no_sample_lies_nothing_is_weighed_however_far_the_next_one_is() -> None:
    """Their positions are no numbers any more; the few on the map are lost among 1e200."""
    lo, hi = torch.tensor([-1e200], dtype=torch.float64), torch.tensor([1e200], dtype=torch.float64)
    assert axis.mean_matrix(axis.align_window(lo, hi, 1, 0.25, 0, True), 1, 5).tolist() == [[[0.0] * 5]]
