"""ps_roi_align and ps_roi_pool: against loops, torchvision and numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import oracle
import roialign
from helpers import DTYPES, RELATIVE, assert_pooled, by_image, rows
from roialign import ps_roi_align, ps_roi_pool, roi_align
from strategies import LAYOUTS, Case, cases, lay_out

pytestmark = pytest.mark.usefixtures("backend")

OURS = {"align": ps_roi_align, "pool": ps_roi_pool}
THEIRS = {"align": torchvision.ops.ps_roi_align, "pool": torchvision.ops.ps_roi_pool}


def widened(case: Case) -> Tensor:
    """The case's map with a channel for each bin, all of them different."""
    images, channels, *cells = case.input.shape
    generator = torch.Generator().manual_seed(images + channels)
    more = torch.randn(images, channels * case.size[0] * case.size[1], *cells, generator=generator)
    return more.to(case.input.dtype)


def random_call(seed: int, size: tuple[int, int], dtype: torch.dtype, inverted: bool = True) -> tuple[Tensor, Tensor]:
    """A map of two channels for each bin, and boxes many of whose edges fall on halves of cells."""
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(2, 2 * size[0] * size[1], 9, 12, generator=generator, dtype=dtype)
    corners = ((torch.rand(40, 4, generator=generator, dtype=dtype) * 2 - 0.5) * 48).round() / 4
    if not inverted:
        corners[:, 2:] = corners[:, :2] + (corners[:, 2:] - corners[:, :2]).abs() + 0.25
    return input, torch.cat([torch.randint(2, (40, 1), generator=generator).to(dtype), corners], 1)


@given(case=cases())
def test_align_equals_the_loop(case: Case) -> None:
    input = widened(case)
    actual = ps_roi_align(input, case.rois, case.size, case.scale, case.ratio)
    assert_pooled(actual, oracle.ps_roi_align(input, case.rois, case.size, case.scale, case.ratio), input)


@given(case=cases())
def test_pool_equals_the_loop(case: Case) -> None:
    input = widened(case)
    actual = ps_roi_pool(input, case.rois, case.size, case.scale)
    assert_pooled(actual, oracle.ps_roi_pool(input, case.rois, case.size, case.scale), input)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 2**31), size=st.tuples(st.integers(1, 4), st.integers(1, 4)), ratio=st.integers(-1, 3))
def test_equals_torchvision(name: str, dtype: torch.dtype, seed: int, size: tuple[int, int], ratio: int) -> None:
    input, rois = random_call(seed, size, dtype, inverted=name == "pool")  # an inverted one may be NaN there
    how = (0.5, ratio) if name == "align" else (0.3,)
    assert_pooled(OURS[name](input, rois, size, *how), THEIRS[name](input, rois, size, *how), input)


@pytest.mark.parametrize("ratio", [0, 2])
def test_gradient_of_align_equals_torchvision(ratio: int) -> None:
    input, rois = random_call(0, (3, 2), torch.float64, inverted=False)
    found = []
    for pool in (ps_roi_align, torchvision.ops.ps_roi_align):
        leaf = input.clone().requires_grad_()
        pool(leaf, rois, (3, 2), 0.5, ratio).sin().sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)


def test_gradient_of_pool_equals_torchvision_inside_the_map() -> None:
    """There; at the map's last row and column torchvision's gradient is not that of its own forward."""
    input, rois = random_call(1, (2, 3), torch.float64)
    rois[:, 1:] = rois[:, 1:].clamp(-9, 7)
    found = []
    for pool in (ps_roi_pool, torchvision.ops.ps_roi_pool):
        leaf = input.clone().requires_grad_()
        pool(leaf, rois, (2, 3)).sin().sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", OURS)
@given(case=cases(dtypes=(torch.float64,), box_dtypes=(torch.float64,), minimum=1, most_boxes=6))
def test_gradient_to_the_map_is_the_transpose(name: str, case: Case) -> None:
    """<g, pool(v)> == <gradient of g, v> for every g and v, by the loop's pool."""
    input = widened(case).requires_grad_()
    how = (case.ratio,) if name == "align" else ()
    pooled = OURS[name](input, case.rois, case.size, case.scale, *how)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(pooled.shape, generator=generator, dtype=torch.float64)
    direction = torch.randn(input.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(pooled, input, grad)
    loop = {"align": oracle.ps_roi_align, "pool": oracle.ps_roi_pool}[name]
    expected = (grad * loop(direction, case.rois, case.size, case.scale, *how)).sum()
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-10, atol=1e-9)


def test_gradient_to_the_boxes_is_the_loops_slope() -> None:
    """Central differences of the loop."""
    input, rois = random_call(2, (2, 3), torch.float64, inverted=False)
    rois = rois[:8]
    rois[:, 1:] += (
        torch.rand(8, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / 8
    )  # off the kinks
    how = ((2, 3), (0.9, 0.8), 2)
    leaf = rois.clone().requires_grad_()
    pooled = ps_roi_align(input, leaf, *how)
    weight = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((pooled * weight).sum(), leaf)
    step = 1e-6
    for column in range(1, 5):
        nudge = torch.zeros(5, dtype=torch.float64)
        nudge[column] = step
        ends = [oracle.ps_roi_align(input, rois + sign * nudge, *how) for sign in (1, -1)]
        slope = ((ends[0] - ends[1]) * weight).sum((1, 2, 3)) / (2 * step)
        torch.testing.assert_close(gradient[:, column], slope, rtol=1e-6, atol=1e-7)
    assert gradient.abs().sum() > 0.1


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_layout_and_dtype(name: str, layout: str, dtype: torch.dtype) -> None:
    """More channels of the output than fit one vector or one block, and not a multiple of it; gradients too."""
    size = (2, 3)
    values = torch.randn(2, 19 * 6, 6, 7, generator=torch.Generator().manual_seed(5)).to(dtype)
    _, rois = random_call(6, size, torch.float32)
    input, rois = lay_out(values, layout), rois[:9] * torch.tensor([1, 0.5, 0.5, 0.5, 0.5])
    loop = {"align": oracle.ps_roi_align, "pool": oracle.ps_roi_pool}[name]
    how = (2,) if name == "align" else ()
    leaf = input.detach().requires_grad_()
    pooled = OURS[name](leaf, rois, size, 0.9, *how)
    expected = loop(input, rois, size, (0.9, 0.9), *how)
    assert_pooled(pooled, expected, input)
    assert pooled.is_contiguous(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    )
    pooled.square().sum().backward()
    (truth, to_map, _) = oracle.pool_with_gradients(
        {"align": "ps_avg", "pool": "ps_cells"}[name], input, rois, 2 * pooled.double(), (0.9, 0.9), 2, True
    ) or pytest.fail("the loop visits all")
    torch.testing.assert_close(torch.from_numpy(truth), expected, rtol=0, atol=1e-10)
    if layout == "expanded":  # autograd adds over the map's copies
        assert leaf.grad.shape == input.shape
    torch.testing.assert_close(
        leaf.grad.double(), torch.from_numpy(to_map), rtol=RELATIVE[dtype], atol=50 * RELATIVE[dtype]
    )


@pytest.mark.parametrize(
    ("box", "size", "expected"),
    [
        # Channel i of the map is i * 100 + 10 y + x. A box of 4 x 4 cells about the centre (2.5, 2.5), which the half
        # cell makes (2, 2): the bins' centres lie one cell from it. Channels follow the bins row by row.
        ((0.5, 0.5, 4.5, 4.5), (2, 2), [11.0, 113.0, 231.0, 333.0]),
        ((0.5, 0.5, 4.5, 4.5), (1, 4), [20.5, 121.5, 222.5, 323.5]),
        # No least size: a box of a quarter cell is the value at its centre, (1, 2).
        ((2.375, 1.375, 2.625, 1.625), (1, 1), [12.0]),
        # Off the map by more than a cell: 0.
        ((20, 20, 24, 24), (1, 1), [0.0]),
    ],
)
def test_align_by_hand(box: tuple[float, ...], size: tuple[int, int], expected: list[float]) -> None:
    ramp = 10 * torch.arange(6.0)[:, None] + torch.arange(6.0)
    maps = (100 * torch.arange(float(size[0] * size[1]))[:, None, None] + ramp)[None].double()
    for ratio in (0, 1, 2):
        pooled = ps_roi_align(maps, rows(box), size, 1.0, ratio)
        torch.testing.assert_close(pooled.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("box", "size", "expected"),
    [
        # Channel i is 100 i + 10 y + x. Cells 0 to 3 both ways, two by two.
        ((0, 0, 4, 4), (2, 2), [5.5, 107.5, 225.5, 327.5]),
        # Halves away from 0: 0.5 is cell 1, 2.5 is 3, which does not count: cells 1 and 2.
        ((0.5, 0.5, 2.5, 2.5), (1, 1), [16.5]),
        # Three cells in two bins: 0 to 1.5 covers cells 0 and 1, 1.5 to 3 covers 1 and 2.
        ((0, 0, 3, 1), (1, 2), [0.5, 101.5]),
        # Without extent, or inverted, it is one cell.
        ((2, 3, 2, 3), (1, 1), [32.0]),
        ((4, 3, 2, 1), (1, 1), [34.0]),
        # The last row and column are never read: cells 0 to 4 of six. So a box that has nothing else gives 0.
        ((0, 0, 6, 6), (1, 1), [22.0]),
        ((5, 0, 9, 1), (1, 1), [0.0]),
        # Left of the map there is nothing, and the mean is over what there is: cells -2 to 1 have 0 and 1.
        ((-2, 0, 2, 1), (1, 1), [0.5]),
    ],
)
def test_pool_by_hand(box: tuple[float, ...], size: tuple[int, int], expected: list[float]) -> None:
    for dtype in DTYPES:
        ramp = 10 * torch.arange(6.0)[:, None] + torch.arange(6.0)
        maps = (100 * torch.arange(float(size[0] * size[1]))[:, None, None] + ramp)[None].to(dtype)
        assert_pooled(ps_roi_pool(maps, rows(box, dtype=dtype), size).flatten(), torch.tensor(expected), maps)


def test_align_of_one_bin_is_roi_align() -> None:
    input, rois = random_call(7, (1, 1), torch.float64)
    assert_pooled(ps_roi_align(input, rois, 1, 0.5, 2), roi_align(input, rois, 1, 0.5, 2, aligned=True), input)


@pytest.mark.parametrize("name", OURS)
@given(case=cases(minimum=1))
def test_a_list_of_boxes_is_the_same_as_rows(name: str, case: Case) -> None:
    input, order = widened(case), case.rois[:, 0].argsort(stable=True)
    expected = OURS[name](input, case.rois[order], case.size, case.scale)
    assert_pooled(OURS[name](input, by_image(case.rois, len(input)), case.size, case.scale), expected, input)


@pytest.mark.parametrize("name", OURS)
def test_channels_must_go_round(name: str) -> None:
    message = r"input: got 5 channels; expected a multiple of height \* width of output_size=\(2, 3\)"
    for device in ("cpu", "meta"):
        input, rois = torch.zeros(1, 5, 4, 4, device=device), rows((0, 0, 1, 1)).to(device)
        for boxes in (rois, rois[:0]):
            with pytest.raises(ValueError, match=message):
                OURS[name](input, boxes, (2, 3))


def test_modules_are_the_functions() -> None:
    input, rois = random_call(8, (3, 2), torch.float32)
    assert_pooled(roialign.PSRoIAlign((3, 2), 0.5, 2)(input, rois), ps_roi_align(input, rois, (3, 2), 0.5, 2), input)
    assert_pooled(roialign.PSRoIPool((3, 2), 0.5)(input, rois), ps_roi_pool(input, rois, (3, 2), 0.5), input)
    assert repr(roialign.PSRoIAlign(3, 0.5, -1)) == ("PSRoIAlign(output_size=3, spatial_scale=0.5, sampling_ratio=0)")


@pytest.mark.parametrize("operator", ["ps_roi_align", "ps_roi_pool"])
def test_a_pyramid_pools_each_box_on_its_level(operator: str) -> None:
    fine, rois = random_call(9, (2, 2), torch.float64, inverted=False)
    coarse = torch.nn.functional.avg_pool2d(fine, 2, ceil_mode=True)
    pooler = roialign.MultiScaleRoIAlign(["0", "1"], 2, 2, canonical_scale=8, canonical_level=2, operator=operator)
    boxes = by_image(rois, 2)
    pooled = pooler({"0": fine, "1": coarse}, boxes, [(36, 48), (36, 48)])
    how = (2,) if operator == "ps_roi_align" else ()
    each = [getattr(roialign, operator)(map, boxes, 2, scale, *how) for map, scale in ((fine, 0.25), (coarse, 0.125))]
    chosen = [(pooled == other).flatten(1).all(1) for other in each]
    assert (chosen[0] | chosen[1]).all()
    assert chosen[0].any()
    assert chosen[1].any()
