"""roi_align_rotated: against loops, upright boxes, turned maps, other packages' facts and numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import oracle_gather
from helpers import DTYPES, RELATIVE, assert_pooled, rows
from roialign import roi_align, roi_align_rotated
from strategies import LAYOUTS, Case, cases, lay_out

pytestmark = pytest.mark.usefixtures("backend")


def turned(rois: Tensor, angle: float | Tensor) -> Tensor:
    """``[K, 5]`` boxes by their corners as ``[K, 6]`` with this angle."""
    low, high = rois[:, 1:3], rois[:, 3:]
    angles = torch.as_tensor(angle, dtype=rois.dtype).expand(len(rois))[:, None]
    return torch.cat([rois[:, :1], (low + high) / 2, high - low, angles], 1)


def some_boxes(count: int, seed: int = 0, span: float = 12.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rotated boxes ``[K, 6]`` on and about a map of this span, of two images, in general position; degrees."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(2, (count, 1), generator=generator)
    centre = torch.rand(count, 2, generator=generator, dtype=torch.float64) * span
    size = 2 ** (torch.rand(count, 2, generator=generator, dtype=torch.float64) * 4 - 1)
    angle = torch.rand(count, 1, generator=generator, dtype=torch.float64) * 1000 - 500
    return torch.cat([index, centre, size, angle], 1).to(dtype)


def some_map(height: int = 11, width: int = 13, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)


# Against loops.


@given(case=cases(), angles=st.lists(st.floats(-7, 7), min_size=12, max_size=12))
def test_equals_the_loop(case: Case, angles: list[float]) -> None:
    """Any angle, any box: inverted, without size, off the map."""
    rois = turned(case.rois.double(), torch.tensor(angles, dtype=torch.float64)[: len(case.rois)])
    input = case.input.double()
    how = (case.size, case.scale, case.ratio)
    actual = roi_align_rotated(input, rois, *how, aligned=case.aligned, unit="radians")
    expected = oracle_gather.roi_align_rotated(input, rois, case.size, case.scale, case.ratio, case.aligned)
    # On which side of the map's border a sample lies may hang on a rounding of the sine. Such a box proves nothing.
    moved = rois + torch.tensor([0, 1e-9, 1e-9, 0, 0, 0], dtype=torch.float64)
    other = oracle_gather.roi_align_rotated(input, moved, case.size, case.scale, case.ratio, case.aligned)
    settled = torch.isclose(expected, other, rtol=0, atol=1e-4).flatten(1).all(1) | expected.isnan().flatten(1).all(1)
    assert_pooled(actual[settled], expected[settled], input)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_layout_and_dtype(ratio: int, aligned: bool, layout: str, dtype: torch.dtype) -> None:
    """More channels than a vector and no multiple of it; forward and all gradients."""
    input = lay_out(some_map(channels=19).to(dtype), layout)
    rois = some_boxes(9, seed=3, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    rois[:, 5] /= 180 / math.pi
    leaf, boxes = input.detach().requires_grad_(), rois.clone().requires_grad_()
    pooled = roi_align_rotated(leaf, boxes, (2, 3), (0.9, 0.8), ratio, aligned=aligned, unit="radians")
    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    pooled.backward(grad)
    truth = oracle_gather.pool_with_gradients("rotated", input, rois, grad, (0.9, 0.8), ratio, aligned)
    assert truth is not None
    assert_pooled(pooled, torch.from_numpy(truth[0]), input)
    last = layout == "channels_last"
    assert pooled.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    unit = RELATIVE[dtype]
    torch.testing.assert_close(leaf.grad.double(), torch.from_numpy(truth[1]), rtol=unit, atol=20 * unit)
    magnitude = float(abs(truth[2]).max())
    torch.testing.assert_close(
        boxes.grad.double(), torch.from_numpy(truth[2]), rtol=0, atol=magnitude * max(unit, 1e-5 * (dtype != DTYPES[0]))
    )


# Against what is known of other angles.


@pytest.mark.parametrize("ratio", [0, 2, 3])
@given(case=cases(dtypes=(torch.float64, torch.float32), box_dtypes=(torch.float64,)))
def test_upright_boxes_are_roi_align(ratio: int, case: Case) -> None:
    rois = turned(case.rois, 0.0)
    # Corners from the centre and the size, so that both have the very same.
    corners = torch.cat([rois[:, :1], rois[:, 1:3] - rois[:, 3:5] / 2, rois[:, 1:3] + rois[:, 3:5] / 2], 1)
    expected = roi_align(case.input, corners, case.size, 1.0, ratio, aligned=True)
    settled = torch.ones(len(rois), dtype=torch.bool)  # neither a border of the map nor of a grid's size is near
    for nudge in ([0, 1e-9, 1e-9, 1e-9, 1e-9], [0, 0, 0, 1e-9, 1e-9]):
        other = roi_align(case.input, corners + torch.tensor(nudge, dtype=torch.float64), case.size, 1.0, ratio, True)
        settled &= torch.isclose(expected, other, rtol=0, atol=1e-4).flatten(1).all(1)
    actual = roi_align_rotated(case.input, rois, case.size, 1.0, ratio)
    assert_pooled(actual[settled], expected[settled], case.input)


@pytest.mark.parametrize("quarters", [-3, -1, 1, 2, 3, 4])
@pytest.mark.parametrize("ratio", [0, 2])
def test_quarter_turns_are_those_of_the_map(quarters: int, ratio: int) -> None:
    """A box that turns counter-clockwise sees what it would see upright on a map that turned clockwise."""
    input, rois = some_map(10, 10), some_boxes(40, seed=1, span=10)
    rois[:, 5] = 0
    expected = roi_align_rotated(torch.rot90(input, -quarters, (2, 3)), rois, (2, 3), 1.0, ratio)
    centre = rois[:, 1:3] - 5
    for _ in range(quarters % 4):  # counter-clockwise, y down
        centre = torch.stack([centre[:, 1], -centre[:, 0]], 1)
    there = torch.cat([rois[:, :1], centre + 5, rois[:, 3:5], torch.full((40, 1), 90.0 * quarters)], 1)
    assert_pooled(roi_align_rotated(input, there, (2, 3), 1.0, ratio), expected, input)


def test_half_a_turn_is_the_output_turned() -> None:
    input, rois = some_map(), some_boxes(30, seed=2)
    half = rois + torch.tensor([0, 0, 0, 0, 0, 180.0], dtype=torch.float64)
    expected = roi_align_rotated(input, rois, (3, 2), 0.7, 2).flip(2, 3)
    assert_pooled(roi_align_rotated(input, half, (3, 2), 0.7, 2), expected, input)


def test_a_plane_is_pooled_to_its_values_at_the_bins_centres() -> None:
    """On 2 x - 3 y every mean of samples is the value at their middle, wherever the box points."""
    y, x = torch.meshgrid(torch.arange(40.0).double(), torch.arange(50.0).double(), indexing="ij")
    plane = (2 * x - 3 * y)[None, None]
    for degrees in (-200.0, -33.0, 0.0, 10.0, 45.0, 120.0):
        radians = math.radians(degrees)
        box = torch.tensor([[0, 24.0, 21.0, 12.0, 8.0, degrees]], dtype=torch.float64)
        for ratio in (0, 1, 3):
            pooled = roi_align_rotated(plane, box, (2, 3), 1.0, ratio)[0, 0]
            for p in range(2):
                for q in range(3):
                    right, down = -6 + 4 * (q + 0.5), -4 + 4 * (p + 0.5)
                    at_x = 23.5 + right * math.cos(radians) + down * math.sin(radians)
                    at_y = 20.5 + down * math.cos(radians) - right * math.sin(radians)
                    assert pooled[p, q].item() == pytest.approx(2 * at_x - 3 * at_y, abs=1e-10)


# Numbers worked by hand, and the facts that detectron2's and mmcv's own tests hold.


@pytest.mark.parametrize(
    ("box", "how", "expected"),
    [
        # The map is 10 y + x. One sample at each bin's centre, half a cell left and above of the pixel.
        ((3, 2, 2, 2, 0), {}, [[11.0 + 1, 12.0 + 1], [22.0, 23.0]]),
        # Counter-clockwise, rows run up: the first bin of a row is its lowest.
        ((3, 2, 2, 2, 90), {}, [[22.0, 12.0], [23.0, 13.0]]),
        ((3, 2, 2, 2, 90), {"clockwise": True}, [[13.0, 23.0], [12.0, 22.0]]),
        ((3, 2, 2, 2, math.pi), {"unit": "radians"}, [[23.0, 22.0], [13.0, 12.0]]),
        # Without alignment, half a cell further.
        ((3, 2, 2, 2, 0), {"aligned": False}, [[17.5, 18.5], [27.5, 28.5]]),
        # A side of half a cell is taken for a cell about the same centre, but for aligned boxes.
        ((3, 2, 2, 0.5, 0), {"aligned": False}, [[20.0, 21.0], [25.0, 26.0]]),
        ((3, 2, 2, 0.5, 0), {}, [[15.75, 16.75], [18.25, 19.25]]),
        # By 45 degrees: bins' centres are sqrt(2) / 2 from the centre, right, below, above, left ... at (1.5, 2.5).
        (
            (3, 2, 2, 2, 45),
            {},
            [[17.5 - 0.5**0.5, 17.5 - 10 * 0.5**0.5], [17.5 + 10 * 0.5**0.5, 17.5 + 0.5**0.5]],
        ),
        # Off the map.
        ((30, 30, 4, 4, 20), {}, [[0.0, 0.0], [0.0, 0.0]]),
    ],
)
def test_by_hand(box: tuple[float, ...], how: dict[str, object], expected: list[list[float]]) -> None:
    for dtype in (torch.float64, torch.float32):
        ramp = (10 * torch.arange(6.0)[:, None] + torch.arange(8.0))[None, None].to(dtype)
        rois = torch.tensor([[0, *box]], dtype=dtype)
        pooled = roi_align_rotated(ramp, rois, 2, 1.0, 1, **how)  # type: ignore[arg-type]
        assert_pooled(pooled[0, 0], torch.tensor(expected, dtype=torch.float64), ramp)


SQUARE = torch.tensor([[1.0, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]])[None, None]
SMALL = SQUARE[:, :, :2, :2]
SPREAD = torch.tensor([0.6875, 0.625, 0.625, 0.0625])  # of 2 x 2 bins over 3 cells


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_what_mmcv_tests(turn: int, dtype: torch.dtype) -> None:
    """Numbers and gradients of upright boxes and quarter turns, in radians."""
    for map, box, expected, along in (
        (SMALL, (0.5, 0.5, 1, 1), [[1, 1.25], [1.5, 1.75]], torch.tensor([1.75, 0.25])),
        (torch.cat([SMALL, 5 - SMALL], 1), (0.5, 0.5, 1, 1), [[1, 1.25], [1.5, 1.75]], torch.tensor([1.75, 0.25])),
        (SQUARE, (1.5, 1.5, 3, 3), [[1.9375, 4.75], [7.5625, 10.375]], SPREAD),
    ):
        leaf = map.to(dtype, copy=True).requires_grad_()
        rois = torch.tensor([[0, *box, turn * math.pi / 2]], dtype=dtype)
        pooled = roi_align_rotated(leaf, rois, 2, 1.0, 2, unit="radians")
        first = torch.rot90(torch.tensor(expected), -turn)
        wanted = torch.stack([first, 5 - first])[: map.shape[1]]
        # A box in half precision has a quarter turn of its own.
        torch.testing.assert_close(
            pooled[0].double(), wanted.double(), rtol=0, atol=1e-2 if dtype == DTYPES[2] else 1e-6
        )
        pooled.sum().backward()
        torch.testing.assert_close(
            leaf.grad.double(), torch.outer(along, along).expand(map.shape).double(), rtol=0, atol=2e-3
        )


@pytest.mark.parametrize("quarters", range(4))
def test_what_detectron2_tests(quarters: int) -> None:
    """An upsampled square, turned by quarters; an empty box is 0."""
    map = torch.arange(25.0).reshape(1, 1, 5, 5)
    pooled = roi_align_rotated(map, torch.tensor([[0, 2, 2, 2, 2, 90.0 * quarters]]), 4, 1.0, 0)
    expected = 4.5 + 2.5 * torch.arange(4.0)[:, None] + 0.5 * torch.arange(4.0)
    assert_pooled(pooled[0, 0], torch.rot90(expected, -quarters), map)
    assert roi_align_rotated(map, torch.tensor([[0, 2, 3, 0, 0, 30.0 * quarters]]), 7, 1.0, 0).eq(0).all()


def test_what_detectron2_tests_of_resizing() -> None:
    """A map of half the size, each cell the mean of four, under a box of half the size."""
    map = torch.rand(1, 1, 30, 30, generator=torch.Generator().manual_seed(0)) * 100
    fine = roi_align_rotated(map, torch.tensor([[0, 15, 15, 10, 10, 0.0]]), 5, 1.0, 0)
    half = torch.nn.functional.avg_pool2d(map, 2)
    assert_pooled(roi_align_rotated(half, torch.tensor([[0, 7.5, 7.5, 5, 5, 0.0]]), 5, 1.0, 0), fine, map)


def test_what_detectron2_tests_of_gradients() -> None:
    """To maps in either order of memory; and of upright boxes those of roi_align."""
    map = torch.rand(1, 1, 10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    boxes = [(4.5, 4.5, 9, 9), (2, 7, 4, 4), (7, 7, 4, 4)]
    rois = torch.tensor([[0, *box, 0] for box in boxes], dtype=torch.float64)
    for leaf in (map.clone().requires_grad_(), map.mT.requires_grad_()):
        assert gradcheck(lambda leaf: roi_align_rotated(leaf, rois, 5, 0.5, 1), (leaf,))
    upright = rows(*[(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in boxes])
    grads = []
    for pool in (
        lambda leaf: roi_align_rotated(leaf, rois, 5, 1.0, 2),
        lambda leaf: roi_align(leaf, upright, 5, 1.0, 2, aligned=True),
    ):
        leaf = map.clone().requires_grad_()
        pool(leaf).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=0, atol=1e-10)


# Gradients.


@pytest.mark.parametrize("ratio", [0, 1, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_gradients_to_the_map_and_to_all_five_numbers(ratio: int, aligned: bool) -> None:
    """Once and twice, of angles in degrees."""
    input, rois = some_map(5, 6, channels=1).requires_grad_(), some_boxes(4, seed=5, span=6)
    numbers = rois[:, 1:].clone().requires_grad_()

    def pool(input: Tensor, numbers: Tensor) -> Tensor:
        boxes = torch.cat([rois[:, :1], numbers], 1)
        return roi_align_rotated(input, boxes, (1, 2), (0.9, 0.8), ratio, aligned=aligned, clockwise=True)

    assert gradcheck(pool, (input, numbers))
    assert gradgradcheck(pool, (input, numbers), fast_mode=True)
    (gradient,) = torch.autograd.grad(pool(input, numbers).sin().sum(), numbers)
    assert (gradient.abs().sum(0)[[0, 1, 2, 4]] > 1e-4).all()
    assert gradient[:, 3].any() == (ratio != 1)  # one sample in the middle of the height stays there


def test_a_size_forced_to_one_has_no_derivative() -> None:
    """Exactly one cell, and less: not aligned, they are the constant one."""
    boxes = torch.tensor([[0, 3, 3, 1, 0.5, 20.0], [0, 3, 3, 0.5, 1, 20]], dtype=torch.float64, requires_grad=True)
    roi_align_rotated(some_map(), boxes, 2, 1.0, 2, aligned=False).sin().sum().backward()
    assert boxes.grad is not None
    assert boxes.grad[:, 3:5].eq(0).all()
    assert (boxes.grad[:, [1, 2, 5]].abs() > 1e-3).all()


# Giants.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_giant_box_costs_what_the_map_does(dtype: torch.dtype) -> None:
    """Adaptive, so with a sample for each of its 1e18 cells; most of its bins hold nothing of the map."""
    map = torch.ones(1, 1, 7, 9, dtype=dtype)
    for side in (1e5, 1e9):
        boxes = torch.tensor([[0, 4, 3, side, side, angle] for angle in (0.0, 30, 45, 90, 200)], dtype=dtype)
        pooled = roi_align_rotated(map, boxes, (3, 5), 1.0, 0)
        # The bin in the middle has the map: about one sample a cell of [-1, 7] x [-1, 9], each a one.
        samples = pooled[:, 0, 1, 2].double() * (side / 3) * (side / 5)
        assert ((samples > 7 * 9) & (samples < 9 * 11 + 0.1)).all(), samples
        assert pooled.flatten(1).argmax(1).eq(7).all()
        assert pooled.flatten(1).ne(0).sum(1).eq(1).all()


def test_half_a_giant_on_a_map_is_the_mean_over_the_map() -> None:
    """A bin of 60 x 60 cells that the whole map fills: each sample's cell weighs the same but near the border."""
    map = torch.full((1, 1, 64, 64), 3.0, dtype=torch.float64)
    boxes = torch.tensor([[0, 32, 32, 40, 40, 45.0]], dtype=torch.float64)
    assert_pooled(roi_align_rotated(map, boxes, 1, 1.0, 0), torch.full((1, 1, 1, 1), 3.0), map)


def test_too_many_samples_are_refused() -> None:
    map, boxes = torch.ones(1, 1, 4, 4), torch.tensor([[0, 2, 2, 1, 1, 0.0]])
    for ratio in (2**13, 2**40):
        with pytest.raises(ValueError, match=rf"sampling_ratio: got {ratio} .* at most 2\*\*26 samples of a box"):
            roi_align_rotated(map, boxes, 2, 1.0, ratio)
    pooled = roi_align_rotated(map, boxes, 1, 1.0, 100)
    assert_pooled(pooled, torch.ones(1, 1, 1, 1), map)
