"""prroi_pool and roi_pool forward: against loops, torchvision and numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import oracle
import roialign
from helpers import DTYPES, assert_pooled, by_image, generic_case, rows
from roialign import prroi_pool, roi_pool
from strategies import Case, cases

pytestmark = pytest.mark.usefixtures("backend")

WIDE = (torch.float32, torch.float64)


@given(case=cases())
def test_prroi_equals_the_pieces(case: Case) -> None:
    actual = prroi_pool(case.input, case.rois, case.size, case.scale)
    assert_pooled(actual, oracle.prroi_pool(case.input, case.rois, case.size, case.scale), case.input)


@given(case=cases())
def test_roi_pool_equals_the_loop(case: Case) -> None:
    actual = roi_pool(case.input, case.rois, case.size, case.scale)
    assert_pooled(actual, oracle.roi_pool(case.input, case.rois, case.size, case.scale), case.input)


@pytest.mark.parametrize("dtype", WIDE)
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 8),
    scale=st.sampled_from([1.0, 0.25, 0.0625, 0.3]),
    quarters=st.booleans(),
)
def test_roi_pool_equals_torchvision(dtype: torch.dtype, seed: int, size: int, scale: float, quarters: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(2, 3, 13, 17, generator=generator, dtype=dtype)
    boxes = (torch.rand(60, 4, generator=generator, dtype=dtype) * 2 - 0.5) * 17 / scale
    if quarters:  # many edges fall on the halves, where rounding shows
        boxes = (boxes * scale * 4).round() / 4 / scale
    rois = torch.cat([torch.randint(2, (60, 1), generator=generator).to(dtype), boxes], 1)
    assert_pooled(roi_pool(input, rois, size, scale), torchvision.ops.roi_pool(input, rois, size, scale), input)


@pytest.mark.parametrize("pool", [prroi_pool, roi_pool])
@given(case=cases(minimum=1))
def test_a_list_of_boxes_is_the_same_as_rows(pool: type, case: Case) -> None:
    order = case.rois[:, 0].argsort(stable=True)
    expected = pool(case.input, case.rois[order], case.size, case.scale)
    boxes = by_image(case.rois, case.input.shape[0])
    assert_pooled(pool(case.input, boxes, case.size, case.scale), expected, case.input)


@pytest.mark.parametrize(
    ("box", "bins", "expected"),
    [
        # The row 0 10 20 30 in every row of the map. From 1 to 2 the map rises from 10 to 20: the mean is 15.
        ((1, 1, 2, 2), 1, [15.0]),
        # Bins of half a cell: the means are the values at 1.25 and 1.75.
        ((1, 1, 2, 2), 2, [12.5, 17.5]),
        # From 3 to 4 the map falls from 30 to 0, which it is outside: 15. From 4 on there is nothing.
        ((3, 1, 5, 2), 2, [15.0, 0.0]),
        # From -1 to 1: 0 rises to cell 0, which is 0, and then to 10: 5 over the second half, 2.5 over the whole.
        ((-1, 1, 1, 2), 1, [2.5]),
        # No extent, and inverted: 0.
        ((2, 1, 2, 2), 1, [0.0]),
        ((3, 1, 1, 2), 1, [0.0]),
        ((1, 2, 3, 1), 1, [0.0]),
        # One billion pixels: the whole map's integral, 0 + 10 + 20 + 30 along x, times one along y.
        ((-5e8, 1, 5e8, 2), 1, [60 / 1e9]),
    ],
)
def test_prroi_by_hand(box: tuple[float, ...], bins: int, expected: list[float]) -> None:
    row = torch.tensor([0.0, 10.0, 20.0, 30.0], dtype=torch.float64).expand(1, 1, 4, 4)
    pooled = prroi_pool(row, rows(box), (1, bins))
    torch.testing.assert_close(pooled.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-15)


def test_prroi_of_a_narrow_bin_is_the_value_there() -> None:
    """As a bin shrinks its mean becomes the interpolated value, though the integral itself all but vanishes."""
    input, _ = generic_case()
    for width in (1e-2, 1e-4, 1e-6):
        pooled = prroi_pool(input.float(), rows((2.3 - width, 1.6 - width, 2.3 + width, 1.6 + width)), 1)
        value = oracle.roi_align(input, rows((1.8, 1.1, 2.8, 2.1)), (1, 1), (1.0, 1.0), 1, False)
        torch.testing.assert_close(pooled.double(), value, rtol=0, atol=1e-5 + width**2 / 2 + 4 * width)


@pytest.mark.parametrize(
    ("box", "size", "expected"),
    [
        # Cell (y, x) holds 8y + x. Cells 0 to 3 both ways, two by two.
        ((0, 0, 3, 3), (2, 2), [9.0, 11.0, 25.0, 27.0]),
        # Halves away from 0: 0.5 is cell 1 and 2.5 is cell 3, along both axes.
        ((0.5, 0.5, 2.5, 2.5), (1, 1), [27.0]),
        # -0.5 is cell -1, which is not on the map: cells 0 and 1 remain.
        ((-0.5, -0.5, 1, 1), (1, 1), [9.0]),
        # Three cells in two bins: 0 to 1.5 covers cells 0 and 1, 1.5 to 3 covers 1 and 2. Bins may overlap.
        ((0, 0, 2, 0), (1, 2), [1.0, 2.0]),
        # A box without extent is one cell, an inverted one too.
        ((2, 3, 2, 3), (1, 1), [26.0]),
        ((4, 3, 2, 1), (1, 1), [28.0]),
        # Off the map there is nothing: 0.
        ((9, 9, 12, 12), (1, 1), [0.0]),
        ((6, 0, 9, 0), (1, 2), [7.0, 0.0]),
    ],
)
def test_roi_pool_by_hand(box: tuple[float, ...], size: tuple[int, int], expected: list[float]) -> None:
    for dtype in DTYPES:
        ramp = torch.arange(64).reshape(1, 1, 8, 8).to(dtype)
        pooled = roi_pool(ramp, rows(box, dtype=dtype), size)
        assert_pooled(pooled.flatten(), torch.tensor(expected), ramp)


def test_roi_pool_of_negative_values() -> None:
    """The maximum is over the bin's cells only; nothing outside takes part in it, unlike in roi_align."""
    negative = torch.full((1, 1, 4, 4), -2.0)
    assert_pooled(roi_pool(negative, rows((2, 2, 9, 9)), 2).flatten(), torch.tensor([-2.0, 0, 0, 0]), negative)


@pytest.mark.parametrize(("module", "pool"), [(roialign.PrRoIPool, prroi_pool), (roialign.RoIPool, roi_pool)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_module_is_the_function(module: type, pool: type, dtype: torch.dtype) -> None:
    input, rois = generic_case(dtype=dtype)
    built = module((3, 2), 0.5)
    assert_pooled(built(input, rois), pool(input, rois, (3, 2), 0.5), input)
    assert "output_size=(3, 2)" in repr(built)


def _maxima_gradient(pool: type, input: Tensor, rois: Tensor) -> Tensor:
    leaf = input.clone().requires_grad_()
    pool(leaf, rois, 2).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def test_roi_pool_gradient_equals_torchvision() -> None:
    input, rois = generic_case()
    ours = _maxima_gradient(roi_pool, input, rois)
    torch.testing.assert_close(ours, _maxima_gradient(torchvision.ops.roi_pool, input, rois), rtol=0, atol=1e-10)
