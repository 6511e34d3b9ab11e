"""Maps of rank 1 and 3, and what holds for every rank: against loops, other ranks, and numbers worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import oracle
from helpers import DTYPES, RELATIVE, assert_pooled, by_image, rows
from roialign import prroi_pool, roi_align, roi_pool
from strategies import LAST, LAYOUTS, Case, cases, lay_out

pytestmark = pytest.mark.usefixtures("backend")

Pool = Callable[..., Tensor]
POOLS: dict[str, Pool] = {
    "avg": lambda input, rois, size, scale=1.0: roi_align(input, rois, size, scale, 2),
    "adaptive": lambda input, rois, size, scale=1.0: roi_align(input, rois, size, scale, 0, True),
    "max": lambda input, rois, size, scale=1.0: roi_align(input, rois, size, scale, 2, True, mode="max"),
    "adaptive max": lambda input, rois, size, scale=1.0: roi_align(input, rois, size, scale, mode="max"),
    "integral": prroi_pool,
    "cells": roi_pool,
}
LOOPS: dict[str, Callable[[Case], Tensor]] = {
    "avg": lambda case: oracle.roi_align(case.input, case.rois, case.size, case.scale, case.ratio, case.aligned),
    "max": lambda case: oracle.roi_align(case.input, case.rois, case.size, case.scale, case.ratio, case.aligned, "max"),
    "integral": lambda case: oracle.prroi_pool(case.input, case.rois, case.size, case.scale),
    "cells": lambda case: oracle.roi_pool(case.input, case.rois, case.size, case.scale),
}


def ours(kind: str, case: Case) -> Tensor:
    if kind == "integral":
        return prroi_pool(case.input, case.rois, case.size, case.scale)
    if kind == "cells":
        return roi_pool(case.input, case.rois, case.size, case.scale)
    return roi_align(case.input, case.rois, case.size, case.scale, case.ratio, case.aligned, mode=kind)


def random_call(rank: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A map of two images and boxes in general position on it, some over its borders, one inverted, one off."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([5, 6, 7][-rank:])
    input = torch.rand(2, 2, *lengths, generator=generator, dtype=torch.float64)
    low = torch.rand(6, rank, generator=generator, dtype=torch.float64) * lengths.flip(0) - 1.3
    side = torch.rand(6, rank, generator=generator, dtype=torch.float64) * 4 + 0.3
    side[4], low[5] = -side[4] / 2, 20
    index = torch.tensor([0.0, 1, 1, 0, 0, 1], dtype=torch.float64)[:, None]
    return input.to(dtype), torch.cat([index, low, low + side], 1)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("kind", LOOPS)
@settings(max_examples=30)
@given(data=st.data())
def test_equals_the_loop(kind: str, rank: int, data: st.DataObject) -> None:
    case = data.draw(cases(rank=rank, most_boxes=12 if rank == 1 else 4))
    assert_pooled(ours(kind, case), LOOPS[kind](case), case.input)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", POOLS)
def test_gradients_of_both_orders(name: str, rank: int) -> None:
    input, rois = random_call(rank, seed=3)
    rois = rois[[0, 1, 4]] if rank == 3 else rois
    size = (2, 1, 2)[-rank:]
    leaf = input[:, :, ..., :4].contiguous().requires_grad_()

    def of_both(input: Tensor, corners: Tensor) -> Tensor:
        return POOLS[name](input, torch.cat([rois[:, :1], corners], 1), size, 0.7)

    corners = rois[:, 1:].clone().requires_grad_(name != "cells")
    assert gradcheck(of_both, (leaf, corners), fast_mode=True)
    assert gradgradcheck(of_both, (leaf, corners), fast_mode=True)


@pytest.mark.parametrize("name", [name for name in POOLS if name != "integral"])
def test_a_line_is_a_map_of_one_row(name: str) -> None:
    """Under a box over that row each sample lies in it or is clamped to it; the integral is of what is 0 outside."""
    input, rois = random_call(1, seed=1)
    low, high = (torch.full_like(rois[:, :1], edge) for edge in (0.0, 0.0 if name == "cells" else 1.0))
    planar = torch.cat([rois[:, :2], low, rois[:, 2:], high], 1)
    line, plane = input.clone().requires_grad_(), input[:, :, None].clone().requires_grad_()
    expected = POOLS[name](plane, planar, (1, 3), (1.0, 0.7))
    actual = POOLS[name](line, rois, 3, 0.7)
    torch.testing.assert_close(actual, expected[:, :, 0], rtol=0, atol=1e-14)
    actual.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(line.grad, plane.grad[:, :, 0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", POOLS)
def test_a_volume_that_is_the_same_along_an_axis_is_a_map(name: str) -> None:
    """Under boxes within it along that axis; whichever of the three it is. The gradient spreads along it."""
    for axis in range(3):
        input, planar = random_call(2, seed=2 + axis)
        volume = input.unsqueeze(2 + axis).repeat_interleave(6, 2 + axis).requires_grad_()
        place = 2 - axis  # x first
        extent = [torch.full_like(planar[:, :1], edge / 0.7) for edge in (1.2, 3.9)]
        corners = [planar[:, 1:3], planar[:, 3:5]]
        low, high = (
            torch.cat([pair[:, :place], edge, pair[:, place:]], 1) for pair, edge in zip(corners, extent, strict=True)
        )
        rois = torch.cat([planar[:, :1], low, high], 1).requires_grad_()
        size = (2, 3)
        plane, boxes = input.clone().requires_grad_(), planar.clone().requires_grad_()
        expected = POOLS[name](plane, boxes, size, 0.7)
        actual = POOLS[name](volume, rois, (*size[:axis], 2, *size[axis:]), 0.7)
        for part in actual.unbind(2 + axis):
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-13)
        actual.sum().backward()
        (2 * expected).sum().backward()
        torch.testing.assert_close(volume.grad.sum(2 + axis), plane.grad, rtol=0, atol=1e-12)
        if name != "cells":
            moved = rois.grad[:, [i for i in range(7) if i not in (1 + place, 4 + place)]]
            torch.testing.assert_close(moved, boxes.grad, rtol=0, atol=1e-12)
            torch.testing.assert_close(
                rois.grad[:, [1 + place, 4 + place]], torch.zeros(6, 2).double(), rtol=0, atol=1e-12
            )


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", POOLS)
def test_permuting_the_axes_permutes_the_answer(name: str, rank: int) -> None:
    """The map's, the boxes', the sizes' and the scales': pooling knows no first axis."""
    input, rois = random_call(rank, seed=5)
    size, scale = (2, 3, 1)[-rank:], (0.9, 0.7, 1.1)[-rank:]
    expected = POOLS[name](input, rois, size, scale)
    for order in permutations(range(rank)):
        axes = [0, 1, *(2 + axis for axis in order)]
        columns = [rank - axis for axis in reversed(order)]  # of the lower corner, x first
        again = POOLS[name](
            input.permute(axes),
            rois[:, [0, *columns, *(rank + column for column in columns)]],
            tuple(size[axis] for axis in order),
            tuple(scale[axis] for axis in order),
        )
        torch.testing.assert_close(again, expected.permute(axes), rtol=0, atol=1e-13)


LINE = torch.tensor([[[0.0, 10, 20, 30, 40, 50]]])
VOLUME = (
    100 * torch.arange(4.0)[:, None, None] + 10 * torch.arange(5.0)[:, None] + torch.arange(6.0)
)[None, None]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        # Samples at 1, 2, 3, 4 of a ramp: bins of two.
        (lambda: roi_align(LINE, [torch.tensor([[0.5, 4.5]])], 2, 1.0, 2), [15.0, 35.0]),
        # Shifted by half a cell they are at 0.5, 1.5, 2.5, 3.5.
        (lambda: roi_align(LINE, [torch.tensor([[0.5, 4.5]])], 2, 1.0, 2, True), [10.0, 30.0]),
        (lambda: roi_align(LINE, [torch.tensor([[0.5, 4.5]])], 2, 1.0, 2, True, mode="max"), [15.0, 35.0]),
        # Beyond the last cell's centre it is 50, beyond 6 it is 0: samples at 4.5, 5.5, 6.5, 7.5.
        (lambda: roi_align(LINE, [torch.tensor([[4.0, 8.0]])], 1, 1.0, 4), [(45 + 50) / 4]),
        # The integral from 4 to 6 of the map that falls from 50 to 0 between the cells 5 and 6: 45 and 25.
        (lambda: prroi_pool(LINE, [torch.tensor([[4.0, 6.0]])], 2), [45.0, 25.0]),
        # Cells 1 to 4, in three bins: 1 and 2, 2 and 3, 3 and 4.
        (lambda: roi_pool(LINE, [torch.tensor([[0.6, 4.4]])], 3), [20.0, 30.0, 40.0]),
        # A linear map's mean is its value at the bin's centre: z = 1 and 2, y = 2, x = 1.5 and 3.5.
        (
            lambda: roi_align(VOLUME, [torch.tensor([[0.5, 1.0, 0.5, 4.5, 3.0, 2.5]])], (2, 1, 2), 1.0, 2),
            [121.5, 123.5, 221.5, 223.5],
        ),
        (
            lambda: prroi_pool(VOLUME, [torch.tensor([[0.5, 1.0, 0.5, 4.5, 3.0, 2.5]])], (2, 1, 2)),
            [121.5, 123.5, 221.5, 223.5],
        ),
        # The last sample of each bin: z at 0.5 + 0.75 and 1.75, each a quarter before the bin's end.
        (
            lambda: roi_align(VOLUME, [torch.tensor([[1.0, 1.0, 0.5, 3.0, 3.0, 2.5]])], (2, 1, 1), 1.0, 2, mode="max"),
            [125 + 25 + 2.5, 225 + 25 + 2.5],
        ),
        # Scales of each axis, z first: the same box as (2, 2, 2) to (4, 4, 4) in cells, twice as large along x.
        (
            lambda: roi_align(VOLUME, [torch.tensor([[4.0, 1.0, 0.25, 8.0, 3.0, 0.75]])], 1, (4.0, 1.0, 0.5), 2),
            [200 + 20 + 3.0],
        ),
        # Cells z 0 to 1, y 1 to 3, x 2 to 4.
        (lambda: roi_pool(VOLUME, [torch.tensor([[2.0, 1.0, 0.0, 4.0, 3.0, 1.0]])], (2, 1, 1)), [34.0, 134.0]),
    ],
)
def test_by_hand(call: Callable[[], Tensor], expected: list[float]) -> None:
    torch.testing.assert_close(call().flatten(), torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rank", [1, 3])
def test_layouts_and_dtypes(backend: str, rank: int, layout: str, dtype: torch.dtype) -> None:
    """Pooled values and the gradient to the map; channels_last_3d in gives it out, and a line is contiguous."""
    values, rois = random_call(rank, seed=6, dtype=dtype)
    input = lay_out(values, layout)
    kept = LAST.get(rank, torch.contiguous_format) if layout == "channels_last" else torch.contiguous_format
    size, scale = (2, 1, 3)[-rank:], (0.9,) * rank
    for kind, name in (("avg", "avg"), ("cells", "cells"), ("integral", "integral"), ("max", "max")):
        leaf = input.detach().requires_grad_()
        pooled = POOLS[name](leaf, rois, size, 0.9)
        grad = torch.rand(pooled.shape, generator=torch.Generator().manual_seed(7)).to(dtype)
        truth = oracle.pool_with_gradients(kind, input, rois, grad, scale, 2, kind == "max")
        assert truth is not None
        assert_pooled(pooled, torch.from_numpy(truth[0]), input)
        assert pooled.is_contiguous(memory_format=kept)
        (found,) = torch.autograd.grad(pooled, leaf, grad)
        unit = RELATIVE[dtype]
        torch.testing.assert_close(found.double(), torch.from_numpy(truth[1]), rtol=unit, atol=40 * unit)
        if layout == "channels_last" and backend == "native":
            assert found.is_contiguous(memory_format=kept)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", POOLS)
def test_a_list_of_boxes_is_the_same_as_rows(name: str, rank: int) -> None:
    input, rois = random_call(rank, seed=8)
    expected = POOLS[name](input, rois[rois[:, 0].argsort(stable=True)], 2)
    torch.testing.assert_close(POOLS[name](input, by_image(rois, 2), 2), expected, rtol=0, atol=0)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("name", POOLS)
def test_what_lies_behind_the_boxes_is_not_read(name: str, rank: int) -> None:
    """Of a longer tensor, in whose next row there is no number."""
    input, rois = random_call(rank, seed=9)
    memory = torch.cat([rois, torch.full_like(rois, torch.nan)])
    torch.testing.assert_close(POOLS[name](input, memory[: len(rois)], 2), POOLS[name](input, rois, 2), rtol=0, atol=0)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", POOLS)
def test_ties_go_to_the_first_in_order(name: str, rank: int) -> None:
    """On a map of ones the gradient of a maximum goes to the first sample or cell; together they give all there is."""
    input = torch.ones(1, 1, *[4] * rank, dtype=torch.float64, requires_grad=True)
    pooled = POOLS[name](input, rows((*[0.0] * rank, *[3.0] * rank)), 1)
    pooled.sum().backward()
    torch.testing.assert_close(input.grad.sum(), pooled.sum().detach(), rtol=0, atol=1e-12)
    if name == "cells":
        assert input.grad[(0, 0, *[0] * rank)] == 1


@pytest.mark.parametrize("rank", [1, 3])
def test_a_giant_box_costs_no_more_than_the_map(rank: int) -> None:
    """1e9 cells along each axis, adaptive: the share of the samples on the map, [-1, 4], of each axis."""
    ones = torch.ones(1, 1, *[4] * rank, dtype=torch.float64)
    box = rows((*[-5e8] * rank, *[5e8] * rank))
    pooled = roi_align(ones, box, 1)
    assert float(pooled) == pytest.approx((5 / 1e9) ** rank, rel=1e-6)
    assert float(roi_align(ones, box, 1, mode="max")) == 1


def test_options_reach_every_rank() -> None:
    """A half cell's shift and an adaptive grid, on a ramp that tells them apart."""
    options: list[dict[str, Any]] = [{"aligned": a, "sampling_ratio": r} for a in (False, True) for r in (0, 3)]
    for rank, map in ((1, LINE), (3, VOLUME)):
        box = torch.tensor([[0, *[0.7] * rank, *[2.9] * rank]])
        for how in options:
            middle = 1.8 - how["aligned"] / 2
            expected = middle * (10 if rank == 1 else 111)
            assert float(roi_align(map, box, 1, **how)) == pytest.approx(expected, abs=1e-4)
