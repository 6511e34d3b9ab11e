"""Where numbers end: long axes, giant and tiny boxes, endless grids, kinks. Expected values are worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers import for_bins, rows, run_python
from roialign import backends, prroi_pool, ps_roi_align, ps_roi_pool, roi_align, roi_pool

LENGTH = 2**24 + 3  # a float32 has none between 2**24 + 2 and 2**24 + 4


def counting(side: int = 8) -> Tensor:
    """A map that holds ``side * y + x`` at (y, x), so that a bin is worth its centre."""
    return torch.arange(float(side * side), dtype=torch.float64).reshape(1, 1, side, side)


def slope(pooled: Tensor, boxes: Tensor) -> list[float]:
    (grad,) = torch.autograd.grad(pooled.sum(), boxes)
    return grad[0, 1:].tolist()  # type: ignore[no-any-return]


def test_roi_pool_stays_on_a_long_map(backend: str) -> None:
    assert backend in backends.available()
    memory = torch.zeros(1, 1, 1, LENGTH + 1)
    memory[..., LENGTH] = 777  # belongs to no cell
    box = torch.tensor([[0, LENGTH - 60.0, 0, LENGTH + 60.0, 0]])
    assert roi_pool(memory[..., :LENGTH], box, 1).item() == 0


@pytest.mark.slow
def test_its_gradient_stays_on_a_long_map(backend: str) -> None:
    """In a gigabyte: the core sums a block of channels at once, be there but one."""
    assert backend in backends.available()
    box = torch.tensor([[0, LENGTH - 60.0, 0, LENGTH + 60.0, 0]])
    map = torch.full((1, 1, 1, LENGTH), -1.0, requires_grad=True)
    roi_pool(map, box, 1).sum().backward()
    assert map.grad is not None
    assert map.grad.sum() == 1


LONG: dict[str, Callable[[Tensor, Tensor, tuple[int, int]], Tensor]] = {
    "avg": lambda map, boxes, bins: roi_align(map, boxes, bins, 1.0, 4),
    "avg, adaptive": lambda map, boxes, bins: roi_align(map, boxes, bins, 1.0, 0, True),
    "prroi": prroi_pool,
    "pool": roi_pool,
    "ps align": lambda map, boxes, bins: ps_roi_align(for_bins(map, 3), boxes, bins, 1.0, 4),
    "ps pool": lambda map, boxes, bins: ps_roi_pool(for_bins(map, 3), boxes, bins),
}


@pytest.mark.skipif(not backends.available()["native"].ready, reason="needs the compiled core")
@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("name", LONG)
def test_the_end_of_a_long_map_is_pooled_as_that_end_alone(name: str, tall: bool) -> None:
    """Zeros but for the last 67 cells, and boxes there and beyond, an inverted one and one without extent too."""
    begin, pool = 2**24 - 32, LONG[name]
    end = torch.rand(1, 1, 1, 67, generator=torch.Generator().manual_seed(0))
    map = torch.cat([torch.zeros(1, 1, 1, begin), end], -1)
    boxes = rows((2, 0, 20, 1), (30, 0, 60, 1), (50, 0, 80, 1), (40, 0, 40, 1), (60, 0, 10, 1), dtype=torch.float32)
    far = boxes + torch.tensor([0.0, begin, 0, begin, 0])
    with backends.use("native"):
        expected = pool(end, boxes.double(), (1, 3))
        if tall:
            map, far = map.transpose(2, 3), far[:, [0, 2, 1, 4, 3]]
            pooled = pool(map, far, (3, 1)).transpose(2, 3)
        else:
            pooled = pool(map, far, (1, 3))
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-6)


@pytest.mark.skipif(not backends.available()["native"].ready, reason="needs the compiled core")
def test_a_box_over_all_of_a_line() -> None:
    """Two bins of a line that counts, each worth its centre. A cell weighs one of the bin's, or half of one at an end.
    No other test has tables as long."""
    last = 2**18 - 1
    map = torch.arange(last + 1.0, dtype=torch.float64)[None, None].requires_grad_()
    with backends.use("native"):
        pooled = prroi_pool(map, rows((0, last)), 2)
        (grad,) = torch.autograd.grad(pooled.sum(), map)
    assert pooled.flatten().tolist() == pytest.approx([last / 4, 3 * last / 4], rel=1e-10)
    assert grad[0, 0, [0, 1, -2, -1]].tolist() == pytest.approx([1 / last, 2 / last, 2 / last, 1 / last], rel=1e-9)
    assert grad.sum().item() == pytest.approx(2, rel=1e-10)


def test_roi_align_ends_on_a_long_map() -> None:
    """Bins [-4, -1] and [-1, 2] about cell 2**24 of a map that counts from there."""
    code = f"""
import torch
from roialign import roi_align
map = (torch.arange({LENGTH}) - 2**24).clamp(min=-9).float().reshape(1, 1, 1, -1)
for box in [[0, 2**24 - 4.0, 0, 2**24 + 2.0, 1]], [[0, 2**24 + 2.0, 0, 2**24 - 4.0, 1]]:
    for ratio, mode, aligned in (100, "avg", False), (100, "max", False), (0, "avg", True), (3, "avg", False):
        print(*roi_align(map, torch.tensor(box), (1, 2), 1.0, ratio, aligned, mode=mode)[0, 0, 0].tolist())
"""
    found = [[float(number) for number in line.split()] for line in run_python(code, "native", timeout=60).splitlines()]
    inverted = [[2.0, 2.0], [2.0, 2.0], [0.0, 0.0], [2.0, 2.0]]  # not aligned: one cell from its start on
    expected = [[-2.5, 0.5], [-1.015, 1.985], [-3.0, 0.0], [-2.5, 0.5], *inverted]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-6)


def test_the_reference_says_what_it_cannot_hold() -> None:
    map = torch.zeros(1, 1, 1, LENGTH)
    with backends.use("reference"), pytest.raises(MemoryError, match="one box on a map of 1 x 16777219 cells"):
        roi_align(map, torch.tensor([[0.0, 0, 0, 9, 9]]), 1, sampling_ratio=100, mode="max")


@pytest.mark.parametrize("size", [1.0, 1 + 2**-40])
def test_a_box_of_one_cell_has_a_constant_size(backend: str, size: float) -> None:
    """At exactly one cell the size does not follow the edges; beyond it the centre moves by half of each."""
    assert backend in backends.available()
    boxes = rows((2, 2, 2 + size, 2 + size)).requires_grad_()
    expected = [1, 8, 0, 0] if size == 1 else [0.5, 4, 0.5, 4]
    assert slope(roi_align(counting(), boxes, 1, 1.0, 2), boxes) == pytest.approx(expected)


def test_at_a_cells_centre_the_slope_is_the_right_hand_one(backend: str) -> None:
    assert backend in backends.available()
    map = torch.tensor([0.0, 1, 10, 100], dtype=torch.float64).reshape(1, 1, 1, 4)
    for centre, expected in (0, 1.0), (1, 9.0), (2, 90.0), (3, 0.0):
        for mode in ("avg", "max"):
            boxes = rows((centre, 0, centre + 1, 1)).requires_grad_()
            found = slope(roi_align(map, boxes, 1, 1.0, 1, aligned=True, mode=mode), boxes)
            assert found == pytest.approx([expected / 2, 0, expected / 2, 0])


def test_at_a_cells_centre_a_box_of_one_cell_has_the_right_hand_slope(backend: str) -> None:
    """Its size is constant, so all of the slope is the lower edge's."""
    assert backend in backends.available()
    map = torch.tensor([0.0, 1, 10, 100], dtype=torch.float64).reshape(1, 1, 1, 4)
    for mode in ("avg", "max"):
        boxes = rows((0.5, 0, 1.5, 1)).requires_grad_()
        assert slope(roi_align(map, boxes, 1, 1.0, 1, mode=mode), boxes) == [9, 0, 0, 0]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_cell_without_weight_counts_nothing(backend: str, value: float) -> None:
    """One sample, exactly on cell (2, 2): output, and the gradients to map and box, know nothing of its neighbours."""
    assert backend in backends.available()
    map = counting()
    map[0, 0, 3, :] = map[0, 0, :, 3] = value
    map.requires_grad_()
    for mode in ("avg", "max"):
        boxes = rows((1.5, 1.5, 2.5, 2.5)).requires_grad_()
        pooled = roi_align(map, boxes, 1, sampling_ratio=1, mode=mode)
        assert pooled.item() == 18
        to_map, to_boxes = torch.autograd.grad(pooled.sum(), [map, boxes])
        assert to_map.nonzero().tolist() == [[0, 0, 2, 2]]
        assert to_boxes.isfinite().all()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_before_the_first_centre_there_is_no_slope(backend: str, value: float) -> None:
    """One sample at (-0.5, -0.5), which is cell (0, 0): its neighbours have neither weight nor slope."""
    assert backend in backends.available()
    map = torch.full((1, 1, 4, 4), value, dtype=torch.float64)
    map[0, 0, 0, 0] = 7
    for mode in ("avg", "max"):
        boxes = rows((-1, -1, 0, 0)).requires_grad_()
        pooled = roi_align(map, boxes, 1, sampling_ratio=1, mode=mode)
        assert pooled.item() == 7
        assert slope(pooled, boxes) == [0] * 4


def test_the_gradient_to_a_cell_is_its_weight_whatever_it_holds(backend: str) -> None:
    assert backend in backends.available()
    for value in (0, math.inf, math.nan):
        map = torch.full((1, 1, 2, 2), value, dtype=torch.float64, requires_grad=True)
        roi_align(map, rows((0, 0, 1, 1)), 1, sampling_ratio=1).sum().backward()
        assert map.grad is not None
        assert map.grad.flatten().tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("y", "height"), [(2.3, 1e-6), (2.3, 1e-11), (2.3, 1e-14), (0, 1e-9), (3, 1e-30), (0, 1e-300), (0, 1e-310)]
)
def test_precise_pooling_of_a_tiny_box_has_its_slope(backend: str, y: float, height: float) -> None:
    """Seven bins, each worth its centre: half a cell's step for either edge, in y eight times that."""
    assert backend in backends.available()
    boxes = rows((1, y, 3, y + height)).requires_grad_()
    expected = [3.5, 28, 3.5, 28] if y + height > y else [0.0] * 4  # without area, 0
    pooled = prroi_pool(counting(), boxes, (7, 1))
    assert pooled.flatten().tolist() == pytest.approx([8 * y + 2 if y + height > y else 0] * 7, abs=1e-4)
    assert slope(pooled, boxes) == pytest.approx(expected)


def test_precise_pooling_of_a_tiny_box_across_a_kink(backend: str) -> None:
    """Along x the map is |x - 1|; a box of 2e-12 about its lowest point has the mean size/4, which its edges change by
    a quarter; moved as a whole it does not change."""
    assert backend in backends.available()
    map = torch.tensor([1.0, 0, 1, 2], dtype=torch.float64).expand(1, 1, 3, 4)
    half = 2.0**-40
    boxes = rows((1 - half, 0.5, 1 + half, 1.5)).requires_grad_()
    pooled = prroi_pool(map, boxes, 1)
    assert pooled.item() == pytest.approx(half / 2, rel=1e-12)
    assert slope(pooled, boxes) == pytest.approx([-0.25, 0, 0.25, 0], abs=1e-9)


@pytest.mark.parametrize(
    ("x1", "x2", "expected"),
    [(1, 1.5, [[0, 0], [0, 0]]), (0.5, 1, [[0, 0], [0, 6]]), (0.5, 1.5, [[0.75, 0.75], [0.75, 0.75]])],
)
def test_the_second_derivative_at_a_cells_centre_is_the_right_hand_one(
    backend: str, x1: float, x2: float, expected: list[list[float]]
) -> None:
    """Along x the map rises by 1 and then, from x = 1 on, by 4. Beside an edge on that centre counts what lies to its
    right: a box that begins there is on a line; one that ends there sees the steeper slope come, (4 - 1) / width.
    The last box has that centre inside: there f(b) - mean is 1.625, twice that from the slope of 4 leaves 0.75."""
    assert backend in backends.available()
    map = torch.tensor([0.0, 1, 5, 9], dtype=torch.float64).expand(1, 1, 3, 4)
    boxes = rows((x1, 0.5, x2, 1.5)).requires_grad_()
    (grad,) = torch.autograd.grad(prroi_pool(map, boxes, 1).sum(), boxes, create_graph=True)
    second = [torch.autograd.grad(grad[0, edge], boxes, retain_graph=True)[0][0, [1, 3]].tolist() for edge in (1, 3)]
    torch.testing.assert_close(torch.tensor(second), torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-6)


def test_giant_boxes_are_counted_not_lost(backend: str) -> None:
    assert backend in backends.available()
    below = torch.full((1, 1, 2, 2), -2.0)
    giant = torch.tensor([[0, -1e9, 0, 2, 1]])
    assert roi_align(below, giant, (1, 5), 0.3, 0, mode="max").eq(0).all()  # a sample outside counts 0
    ones = torch.ones(1, 1, 3, 5)
    tall = torch.tensor([[0, 0, -16.67, 2, 1e38]])  # 3e38 cells: four samples of each 1e38 lie on the map
    pooled = roi_align(ones, tall, (3, 1), 3.0, 0, aligned=True).flatten().tolist()
    assert pooled == pytest.approx([4e-38, 0, 0], rel=1e-5, abs=1e-44)
    wide = torch.tensor([[0, -3e38, 0, 3e38, 1]])  # its size is no float32
    # Along x five cells of 6e38; along y the mean of the hats between 0 and 1, which is 1.
    assert prroi_pool(ones, wide, 1).item() == pytest.approx(5 / 6e38, rel=1e-5)


def test_a_size_that_is_no_number_gives_nan(backend: str) -> None:
    """Inverted too, and where boxes are rounded to whole cells: 3.4e308 is no float64. Such a box has no gradient."""
    assert backend in backends.available()
    map = torch.ones(1, 3, 3, 5, dtype=torch.float64, requires_grad=True)
    for low, high in (1.7e308, -1.7e308), (-1.7e308, 1.7e308):
        for boxes in rows((low, 0, high, 1)), rows((0, low, 1, high)):
            for pool in LONG.values():
                pooled = pool(map, boxes, (1, 3))
                assert pooled.isnan().all()
                (grad,) = torch.autograd.grad(pooled.nansum() + pooled.sum(), map)
                assert not grad.any()


@pytest.mark.parametrize("exponent", [24, 53, 54, 55, 62])
def test_endless_grids_have_the_mean(backend: str, exponent: int) -> None:
    """More samples than a float32 or a float64 counts: the mean is the box's centre, the maximum its far corner."""
    assert backend in backends.available()
    for dtype in (torch.float32, torch.float64):
        boxes = rows((0.25, 0.5, 5.25, 6.5), dtype=dtype)
        how = {"sampling_ratio": 2**exponent + 1}
        map = counting().to(dtype)
        assert roi_align(map, boxes, 1, **how).item() == pytest.approx(8 * 3.5 + 2.75, rel=1e-6)
        assert roi_align(map, boxes, 1, **how, mode="max").item() == pytest.approx(8 * 6.5 + 5.25, rel=1e-6)
