"""deform_roi_pool: against loops, roi_align, mmcv's facts and numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import oracle_gather
import roialign
from helpers import DTYPES, RELATIVE, assert_pooled, by_image, rows
from roialign import deform_roi_pool, roi_align
from strategies import LAYOUTS, Case, cases, lay_out

pytestmark = pytest.mark.usefixtures("backend")


def some_offset(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(count, 2, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_call(channels: int = 3, count: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """A map, boxes on and about it, and offsets of 2 x 3 bins."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(2, channels, 9, 12, generator=generator, dtype=torch.float64)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 10 - 1
    size = 2 ** (torch.rand(count, 2, generator=generator, dtype=torch.float64) * 3 - 0.5)
    index = torch.randint(2, (count, 1), generator=generator)
    return input, torch.cat([index, corner, corner + size], 1), some_offset(count, (2, 3))


def as_rows(rois: Tensor, offset: Tensor, gamma: float) -> Tensor:
    """What the loops take."""
    return torch.cat([rois, (gamma * offset).flatten(1).to(rois.dtype)], 1)


@given(case=cases(dtypes=(torch.float64,), box_dtypes=(torch.float64,)), gamma=st.sampled_from([0.1, 0.5, -1.0]))
def test_equals_the_loop(case: Case, gamma: float) -> None:
    offset = some_offset(len(case.rois), case.size)
    actual = deform_roi_pool(case.input, case.rois, offset, case.size, case.scale, case.ratio, gamma)
    rois = as_rows(case.rois, offset, gamma)
    assert_pooled(
        actual, oracle_gather.deform_roi_pool(case.input, rois, case.size, case.scale, case.ratio), case.input
    )


@given(case=cases())
def test_bins_that_stay_are_roi_aligns(case: Case) -> None:
    """Offsets of 0, or none."""
    expected = roi_align(case.input, case.rois, case.size, case.scale, case.ratio, aligned=True)
    for offset in (None, torch.zeros(len(case.rois), 2, *case.size)):
        actual = deform_roi_pool(case.input, case.rois, offset, case.size, case.scale, case.ratio)
        assert_pooled(actual, expected, case.input)


def test_bins_that_move_together_are_a_box_that_moved() -> None:
    """By 3 widths and -0.5 heights of the box."""
    input, rois, _ = some_call()
    offset = torch.tensor([3.0, -0.5]).double()[:, None, None].expand(len(rois), 2, 2, 3)
    size = rois[:, 3:] - rois[:, 1:3]
    shift = size * torch.tensor([0.3, -0.05], dtype=torch.float64)
    moved = torch.cat([rois[:, :1], rois[:, 1:3] + shift, rois[:, 3:] + shift], 1)
    expected = roi_align(input, moved, (2, 3), (0.9, 0.8), 2, aligned=True)
    assert_pooled(deform_roi_pool(input, rois, offset, (2, 3), (0.9, 0.8), 2), expected, input)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_layout_and_dtype(ratio: int, layout: str, dtype: torch.dtype) -> None:
    """More channels than a vector and no multiple of it; forward and all gradients, offsets in the map's dtype."""
    values, rois, offset = some_call(channels=19)
    input = lay_out(values.to(dtype), layout)
    rois = rois.to(torch.float64 if dtype == torch.float64 else torch.float32)
    leaf, boxes, moves = (each.detach().clone().requires_grad_() for each in (input, rois, offset.to(dtype)))
    leaf = input.detach().requires_grad_()
    pooled = deform_roi_pool(leaf, boxes, moves, (2, 3), (0.9, 0.8), ratio, 0.25)
    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    pooled.backward(grad)
    whole = as_rows(rois, offset.to(dtype).to(rois.dtype), 0.25)
    truth = oracle_gather.pool_with_gradients("moved", input, whole, grad, (0.9, 0.8), ratio, True)
    assert truth is not None
    assert_pooled(pooled, torch.from_numpy(truth[0]), input)
    last = layout == "channels_last"
    assert pooled.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    unit = RELATIVE[dtype]
    torch.testing.assert_close(leaf.grad.double(), torch.from_numpy(truth[1]), rtol=unit, atol=20 * unit)
    to_boxes, to_shifts = torch.from_numpy(truth[2]).split([5, 12], 1)
    atol = float(abs(truth[2]).max()) * max(unit, 1e-5 * (dtype != torch.float64))
    torch.testing.assert_close(boxes.grad.double(), to_boxes, rtol=0, atol=atol)
    torch.testing.assert_close(moves.grad.double(), 0.25 * to_shifts.reshape(offset.shape), rtol=unit, atol=atol)


@pytest.mark.parametrize("ratio", [0, 2])
def test_gradients_to_the_map_the_boxes_and_the_offsets(ratio: int) -> None:
    """Once and twice."""
    input, rois, _ = some_call(channels=1, count=3)
    input = input[:, :, :5, :6].clone().requires_grad_()
    rois[:, 1:] /= 2
    corners, offset = rois[:, 1:].clone().requires_grad_(), some_offset(3, (2, 1)).requires_grad_()

    def pool(input: Tensor, corners: Tensor, offset: Tensor) -> Tensor:
        return deform_roi_pool(input, torch.cat([rois[:, :1], corners], 1), offset, (2, 1), (0.9, 0.8), ratio)

    assert gradcheck(pool, (input, corners, offset))
    assert gradgradcheck(pool, (input, corners, offset), fast_mode=True)
    found = torch.autograd.grad(pool(input, corners, offset).sin().sum(), (corners, offset))
    assert (found[0].abs().sum(0) > 1e-4).all()
    assert (found[1].abs().sum(0) > 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_what_mmcv_tests(dtype: torch.dtype) -> None:
    """Numbers and gradients of bins that do not move, on maps that end with the box."""
    square = torch.tensor([[1.0, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]])[None, None]
    small, halves = square[:, :, :2, :2], torch.tensor([1.75, 0.25])
    for map, side, expected, along in (
        (small, 1, [[1, 1.25], [1.5, 1.75]], halves),
        (torch.cat([small, 5 - small], 1), 1, [[1, 1.25], [1.5, 1.75]], halves),
        (square, 3, [[1.9375, 4.75], [7.5625, 10.375]], torch.tensor([0.6875, 0.625, 0.625, 0.0625])),
    ):
        leaf = map.to(dtype, copy=True).requires_grad_()
        boxes = torch.tensor([[0, 0, 0, side, side]], dtype=dtype)
        for offset in (None, torch.zeros(1, 2, 2, 2, dtype=dtype)):
            leaf.grad = None
            pooled = deform_roi_pool(leaf, boxes, offset, 2, 1.0, 2)
            first = torch.tensor(expected)
            torch.testing.assert_close(pooled[0].double(), torch.stack([first, 5 - first])[: map.shape[1]].double())
            pooled.sum().backward()
            wanted = torch.outer(along, along).expand(map.shape).double()
            torch.testing.assert_close(leaf.grad.double(), wanted, rtol=0, atol=2e-3)


def test_by_hand() -> None:
    """The map is 10 y + x. A box of 2 x 4 cells whose bins' middles are whole cells."""
    for dtype in (torch.float64, torch.float32):
        ramp = (10 * torch.arange(6.0)[:, None] + torch.arange(8.0))[None, None].to(dtype)
        box = rows((2, 1, 4, 5), dtype=dtype)
        assert_pooled(deform_roi_pool(ramp, box, None, 2)[0, 0], torch.tensor([[17.0, 18.0], [37.0, 38.0]]), ramp)
        offset = torch.zeros(1, 2, 2, 2, dtype=dtype)
        offset[0, 0, 0, 1] = 5  # half a width to the right: one cell
        offset[0, 1, 1, 0] = -2.5  # a quarter of the height up: one cell
        expected = torch.tensor([[17.0, 19.0], [27.0, 38.0]])
        assert_pooled(deform_roi_pool(ramp, box, offset, 2)[0, 0], expected, ramp)
        assert_pooled(deform_roi_pool(ramp, box, offset / 2, 2, gamma=0.2)[0, 0], expected, ramp)
        offset[0, 0, 1, 1] = 1e3  # off the map
        expected[1, 1] = 0
        assert_pooled(deform_roi_pool(ramp, box, offset, 2)[0, 0], expected, ramp)


def test_giants_cost_what_the_map_does() -> None:
    """Huge boxes, huge shifts, huge grids: the bins that reach the map, and those only."""
    map = torch.ones(1, 1, 5, 5, dtype=torch.float64)
    offset = torch.zeros(1, 2, 1, 2, dtype=torch.float64)
    offset[0, 0, 0, 0] = 1e20
    pooled = deform_roi_pool(map, rows((-1e9, 0, 1e9, 5)), offset, (1, 2), 1.0, 2**40)
    assert pooled[0, 0, 0, 0] == 0
    # The second bin begins in the middle of the map: [-0.5, 1e9], of which [-0.5, 5] counts.
    assert pooled[0, 0, 0, 1].item() == pytest.approx(5.5e-9, rel=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_offset_that_is_not_finite(value: float) -> None:
    """That box is NaN, with no gradient to anything; the others do not notice."""
    input, rois, offset = some_call()
    bad = offset.clone()
    bad[3, 1, 0, 2] = value
    leaves = [each.clone().requires_grad_() for each in (input, rois, bad)]
    pooled = deform_roi_pool(*leaves, (2, 3), 1.0, 2)
    assert pooled[3].isnan().all()
    others = [0, 1, 2, 4, 5, 6, 7]
    again = [each.clone().requires_grad_() for each in (input, rois[others], offset[others])]
    expected = deform_roi_pool(*again, (2, 3), 1.0, 2)
    assert_pooled(pooled[others], expected, input)
    pooled.nansum().backward()
    expected.sum().backward()
    torch.testing.assert_close(leaves[0].grad, again[0].grad, rtol=0, atol=1e-10)
    for leaf, other in zip(leaves[1:], again[1:], strict=True):
        assert leaf.grad[3].eq(0).all()
        torch.testing.assert_close(leaf.grad[others], other.grad, rtol=0, atol=1e-10)


def test_a_list_of_boxes_is_the_same_as_rows() -> None:
    input, rois, offset = some_call()
    order = rois[:, 0].argsort(stable=True)
    expected = deform_roi_pool(input, rois[order], offset[order], (2, 3))
    assert_pooled(deform_roi_pool(input, by_image(rois, 2), offset[order], (2, 3)), expected, input)
    assert deform_roi_pool(input, [rois[:0, 1:]] * 2, offset[:0], (2, 3)).shape == (0, 3, 2, 3)


@pytest.mark.parametrize(
    ("offset", "error", "words"),
    [
        (
            torch.zeros(2, 2, 3, 2),
            ValueError,
            r"offset: got a tensor of shape \(2, 2, 3, 2\); .*\[2, 2, 2, 3\]",
        ),
        (torch.zeros(1, 2, 2, 3), ValueError, r"offset: got a tensor of shape \(1, 2, 2, 3\)"),
        (torch.zeros(2, 12), ValueError, r"offset: got a tensor of shape \(2, 12\)"),
        ([[0.0]], TypeError, "offset: got list; expected a Tensor"),
        (torch.zeros(2, 2, 2, 3, dtype=torch.bool), TypeError, r"offset: got torch.strided tensor of torch.bool"),
        (torch.zeros(2, 2, 2, 3).to_sparse(), TypeError, r"offset: got torch.sparse_coo tensor"),
        (torch.zeros(2, 2, 2, 3, device="meta"), ValueError, "offset: got a tensor on meta; expected .* cpu"),
    ],
)
def test_wrong_offsets(offset: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        deform_roi_pool(torch.zeros(1, 1, 4, 4), torch.zeros(2, 5), offset, (2, 3))


def test_an_offset_without_memory() -> None:
    offset = torch.zeros(2, 2, 2, 3)
    offset.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"offset: .*0 bytes"):
        deform_roi_pool(torch.zeros(1, 1, 4, 4), torch.zeros(2, 5), offset, (2, 3))


@pytest.mark.parametrize(
    ("gamma", "error"),
    [(float("nan"), ValueError), (float("inf"), ValueError), ("1", TypeError), (True, TypeError), (None, TypeError)],
)
def test_wrong_gammas(gamma: float, error: type[Exception]) -> None:
    offset = torch.zeros(2, 2, 2, 2)
    with pytest.raises(error, match=r"gamma: got .*; expected a finite number"):
        deform_roi_pool(torch.zeros(1, 1, 4, 4), torch.zeros(2, 5), offset, 2, gamma=gamma)
    with pytest.raises(error, match=r"gamma: got .*; expected a finite number"):
        roialign.DeformRoIPool(2, gamma=gamma)


def test_vmap_over_everything() -> None:
    input, rois, offset = some_call()
    inputs, boxes = torch.stack([input, input.flip(3)]), torch.stack([rois, rois.flip(0)])
    offsets = torch.stack([offset, -offset])
    for ratio in (0, 2):
        triples = zip(inputs, boxes, offsets, strict=True)
        expected = torch.stack([deform_roi_pool(*triple, (2, 3), 0.9, ratio) for triple in triples])
        actual = torch.vmap(lambda *each, ratio=ratio: deform_roi_pool(*each, (2, 3), 0.9, ratio))(
            inputs, boxes, offsets
        )
        assert_pooled(actual, expected, inputs)


def test_modules_are_the_functions() -> None:
    input, rois, offset = some_call()
    pooler = roialign.DeformRoIPool((2, 3), 0.5, 2, gamma=0.4)
    assert_pooled(pooler(input, rois, offset), deform_roi_pool(input, rois, offset, (2, 3), 0.5, 2, 0.4), input)
    assert_pooled(pooler(input, rois), roi_align(input, rois, (2, 3), 0.5, 2, aligned=True), input)
    assert repr(pooler) == ("DeformRoIPool(output_size=(2, 3), spatial_scale=0.5, sampling_ratio=2, gamma=0.4)")
    assert pooler(input.half(), rois.half(), offset.half()).dtype == torch.float16
    assert deform_roi_pool(input.float(), rois.float(), offset, (2, 3)).dtype == torch.float32


def test_of_more_samples_than_a_double_counts_none_counts(backend: str) -> None:
    """A cell that is no number under a bin of 1e28 pixels: the fuzz had 0 of one backend and NaN of the other."""
    input = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    input[0, 0, 6, 1] = torch.nan
    box = torch.tensor([[-1.3e28, 20.3, 34.0, 34.7]], dtype=torch.float64)
    offset = torch.zeros(1, 2, 1, 2, dtype=torch.float64)
    offset[0, 1] = -1e-10
    assert deform_roi_pool(input, [box], offset, (1, 2), 0.25).tolist() == [[[[0.0, 0.0]]]]
