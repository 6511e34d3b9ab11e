"""Gradients to the map and to the boxes, once and twice, forward and backward, and under torch.func."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torchvision
from hypothesis import given
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import oracle
from helpers import DTYPES, RELATIVE, as_rotated, for_bins, generic_case, rows, some_offset
from roialign import (
    deform_roi_pool,
    prroi_pool,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    roi_align_rotated,
    roi_pool,
)
from strategies import Case, cases

pytestmark = pytest.mark.usefixtures("backend")

Pool = Callable[[Tensor, Tensor], Tensor]

POOLS: dict[str, Pool] = {
    f"{mode}-ratio{ratio}-aligned{aligned:d}": lambda input, rois, m=mode, r=ratio, a=aligned: roi_align(  # type: ignore[misc]
        input, rois, (2, 1), 0.9, r, a, mode=m
    )
    for mode in ("avg", "max")
    for ratio in (0, 2)
    for aligned in (False, True)
} | {
    "prroi": lambda input, rois: prroi_pool(input, rois, (2, 1), 0.9),
    "ps_align": lambda input, rois: ps_roi_align(for_bins(input, 2), rois, (2, 1), 0.9),
    "ps_align fixed": lambda input, rois: ps_roi_align(for_bins(input, 2), rois, (2, 1), 0.9, 2),
    "rotated fixed": lambda input, rois: roi_align_rotated(input, as_rotated(rois), (2, 1), 0.9, 2, unit="radians"),
    "deform": lambda input, rois: deform_roi_pool(input, rois, some_offset(rois, 2, 1), (2, 1), 0.9),
    "deform fixed": lambda input, rois: deform_roi_pool(input, rois, some_offset(rois, 2, 1), (2, 1), 0.9, 2),
}
TO_INPUT: dict[str, Pool] = POOLS | {
    "pool": lambda input, rois: roi_pool(input, rois, (2, 1), 0.9),
    "ps_pool": lambda input, rois: ps_roi_pool(for_bins(input, 2), rois, (2, 1), 0.9),
}
CONSTANT = ("pool", "ps_pool")  # in the boxes


def with_images(pool: Pool, rois: Tensor) -> Pool:
    """The operator as a function of the map and the boxes' coordinates alone."""
    return lambda input, coordinates: pool(input, torch.cat([rois[:, :1], coordinates], 1))


def leaves() -> tuple[Tensor, Tensor, Tensor]:
    """A map ``[2, 1, 4, 4]`` and coordinates that want gradients, and the boxes they belong to."""
    input, rois = generic_case()
    rois = rois[[0, 1, 4]]
    return input[:, :1, :4, :4].clone().requires_grad_(), rois[:, 1:].clone().requires_grad_(), rois


@pytest.mark.parametrize("name", POOLS)
def test_gradcheck(name: str) -> None:
    input, coordinates, rois = leaves()
    pool = with_images(POOLS[name], rois)
    assert gradcheck(pool, (input, coordinates), check_forward_ad=True, check_batched_grad=True)


@pytest.mark.parametrize("name", POOLS)
def test_gradgradcheck(name: str) -> None:
    """By a random projection: a wrong second derivative shows in it as it would alone."""
    input, coordinates, rois = leaves()
    assert gradgradcheck(with_images(POOLS[name], rois), (input, coordinates), fast_mode=True)


@pytest.mark.parametrize("name", ["pool", "ps_pool"])
def test_roi_pool_gradcheck(name: str) -> None:
    input, _, rois = leaves()
    assert gradcheck(lambda map: TO_INPUT[name](map, rois), (input,), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(lambda map: TO_INPUT[name](map, rois), (input,))


@given(case=cases(dtypes=(torch.float64,), box_dtypes=(torch.float64,), minimum=1, most_boxes=6))
def test_gradient_to_the_map_is_the_transpose(case: Case) -> None:
    """Pooling is linear in the map: <g, pool(v)> == <gradient of g, v> for every g and v, by the loop's pool."""
    input = case.input.detach().clone().requires_grad_()
    arguments = (case.rois, case.size, case.scale, case.ratio, case.aligned)
    pooled = roi_align(input, *arguments)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(pooled.shape, generator=generator, dtype=torch.float64)
    direction = torch.randn(input.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(pooled, input, grad)
    expected = (grad * oracle.roi_align(direction, *arguments)).sum()
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_gradient_to_the_map_equals_torchvision(dtype: torch.dtype, ratio: int, aligned: bool) -> None:
    input, rois = generic_case(dtype=dtype)
    rois = rois[[0, 1, 2, 3, 5]]  # torchvision crashes on inverted ones
    gradients = []
    for pool in (roi_align, torchvision.ops.roi_align):
        leaf = input.clone().requires_grad_()
        (pool(leaf, rois, 3, 0.7, ratio, aligned) * torch.arange(9.0).reshape(3, 3)).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=50 * RELATIVE[dtype])


@pytest.mark.parametrize("mode", ["avg", "max", "prroi"])
@pytest.mark.parametrize("aligned", [False, True])
def test_gradient_to_the_boxes_is_the_loops_slope(mode: str, aligned: bool) -> None:
    """Central differences of the loop, a way to the box gradient that shares nothing with ours."""
    input, rois = generic_case(seed=3)
    size, scale = (2, 3), (0.9, 0.8)

    def loop(rois: Tensor) -> Tensor:
        if mode == "prroi":
            return oracle.prroi_pool(input, rois, size, scale)
        return oracle.roi_align(input, rois, size, scale, 2, aligned, mode)

    leaf = rois.clone().requires_grad_()
    if mode == "prroi":
        pooled = prroi_pool(input, leaf, size, scale)
    else:
        pooled = roi_align(input, leaf, size, scale, 2, aligned, mode=mode)
    weight = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((pooled * weight).sum(), leaf)
    step = 1e-6
    for column in range(1, 5):
        nudge = torch.zeros(5, dtype=torch.float64)
        nudge[column] = step
        slope = ((loop(rois + nudge) - loop(rois - nudge)) * weight).sum((1, 2, 3)) / (2 * step)
        torch.testing.assert_close(gradient[:, column], slope, rtol=1e-6, atol=1e-7)
    assert torch.equal(gradient[:, 0], torch.zeros(len(rois), dtype=torch.float64))
    assert gradient.abs().sum() > 0.1


@pytest.mark.parametrize("name", TO_INPUT)
def test_an_empty_box_has_zero_gradient(name: str) -> None:
    """detectron2's idea: far outside, and without area where the grid is adaptive, nothing is read."""
    input = torch.rand(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    far = rows((20, 20, 24, 25), (-30, 1, -20, 3)).requires_grad_()
    TO_INPUT[name](input, far).sum().backward()
    assert torch.equal(input.grad, torch.zeros_like(input))
    assert far.grad is None or torch.equal(far.grad, torch.zeros_like(far))
    if name in ("avg-ratio0-aligned1", "max-ratio0-aligned1", "prroi"):
        pooled = TO_INPUT[name](input, rows((1, 1, 1, 1), (3, 3, 2, 2)))
        (gradient,) = torch.autograd.grad(pooled.sum(), input)
        assert torch.equal(gradient, torch.zeros_like(input))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TO_INPUT)
def test_gradient_dtypes(name: str, dtype: torch.dtype) -> None:
    """Each gradient comes in its own tensor's dtype and agrees with the float64 one."""
    wide_input, wide_rois = generic_case(dtype=dtype)
    gradients = []
    for kinds in ((dtype, torch.float32), (torch.float64, torch.float64)):
        input = wide_input.to(kinds[0], copy=True).requires_grad_()
        rois = wide_rois.to(kinds[1], copy=True).requires_grad_(name not in CONSTANT)
        TO_INPUT[name](input, rois).sum().backward()
        assert input.grad is not None
        assert input.grad.dtype == input.dtype
        gradients.append((input.grad, rois.grad))
    (low, low_box), (high, high_box) = gradients
    torch.testing.assert_close(low.double(), high, rtol=0, atol=8 * RELATIVE[dtype] + 1e-5)
    if low_box is not None:
        assert low_box.dtype == torch.float32
        torch.testing.assert_close(low_box.double(), high_box, rtol=1e-4, atol=8 * RELATIVE[dtype] + 1e-4)


@pytest.mark.parametrize("name", TO_INPUT)
@pytest.mark.parametrize(("images", "channels", "boxes"), [(2, 3, 0), (0, 3, 0), (2, 0, 4), (2, 3, 4)])
def test_nothing_has_a_gradient_too(name: str, images: int, channels: int, boxes: int) -> None:
    """No boxes, no images, no channels: a gradient of the right shape and dtype, all 0."""
    _, rois = generic_case(dtype=torch.float32)
    rois = rois[:boxes].clone().requires_grad_(name not in CONSTANT)
    input = torch.rand(images, channels, 5, 6, requires_grad=True)
    pooled = TO_INPUT[name](input, rois)
    assert pooled.shape == (boxes, channels, 2, 1)
    pooled.sum().backward()
    assert input.grad is not None
    assert input.grad.shape == input.shape
    assert input.grad.dtype == input.dtype
    assert (input.grad.abs().sum() > 0) == (boxes > 0 and channels > 0)
    if name not in CONSTANT:
        assert rois.grad is not None
        assert rois.grad.shape == rois.shape
        assert (rois.grad.abs().sum() > 0) == (boxes > 0 and channels > 0)


def test_gradient_of_expanded_and_channels_last_maps() -> None:
    input, rois = generic_case()
    plain = input.clone().requires_grad_()
    roi_align(plain, rois, 2).square().sum().backward()
    last = input.contiguous(memory_format=torch.channels_last).requires_grad_()
    roi_align(last, rois, 2).square().sum().backward()
    torch.testing.assert_close(last.grad, plain.grad, rtol=0, atol=1e-10)
    # The gradient that arrives may itself be expanded, as that of sum() is, or transposed.
    once = input.clone().requires_grad_()
    pooled = roi_align(once, rois, 2)
    (summed,) = torch.autograd.grad(pooled.sum(), once, retain_graph=True)
    (explicit,) = torch.autograd.grad(
        pooled, once, torch.ones_like(pooled).transpose(2, 3).contiguous().transpose(2, 3)
    )
    torch.testing.assert_close(summed, explicit, rtol=0, atol=1e-10)


@pytest.fixture
def vmap_never_falls_back() -> Iterator[None]:
    """A silent loop instead of a batched call is an error."""
    torch._C._debug_only_display_vmap_fallback_warnings(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        yield
    torch._C._debug_only_display_vmap_fallback_warnings(False)


@pytest.mark.usefixtures("vmap_never_falls_back")
@pytest.mark.parametrize("name", TO_INPUT)
def test_vmap(name: str) -> None:
    pool = TO_INPUT[name]
    input, rois = generic_case()
    inputs = torch.stack([input, input * 2 + 1, input.flip(3)], 1)  # batched along dimension 1
    boxes = torch.stack([rois, rois.roll(1, 0), rois + torch.tensor([0, 0.1, 0.2, 0.3, 0.1])])
    over_inputs = torch.stack([pool(each, rois) for each in inputs.unbind(1)])
    torch.testing.assert_close(torch.vmap(pool, (1, None))(inputs, rois), over_inputs, rtol=0, atol=1e-10)
    over_boxes = torch.stack([pool(input, each) for each in boxes])
    torch.testing.assert_close(torch.vmap(pool, (None, 0))(input, boxes), over_boxes, rtol=0, atol=1e-10)
    over_both = torch.stack([pool(*each) for each in zip(inputs.unbind(1), boxes, strict=True)])
    torch.testing.assert_close(torch.vmap(pool, (1, 0))(inputs, boxes), over_both, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("vmap_never_falls_back")
@pytest.mark.parametrize("name", TO_INPUT)
def test_func_transforms_agree_with_autograd(name: str) -> None:
    input, coordinates, rois = (part.detach() for part in leaves())
    pool = with_images(TO_INPUT[name], rois)
    wanted = (0,) if name in CONSTANT else (0, 1)
    for argument in wanted:
        others = [input, coordinates]

        def alone(leaf: Tensor, argument: int = argument, others: list[Tensor] = others) -> Tensor:
            return pool(*(leaf if i == argument else other for i, other in enumerate(others)))

        jacobian = torch.autograd.functional.jacobian(alone, others[argument])
        forward = torch.func.jacfwd(pool, argument)(input, coordinates)
        reverse = torch.func.jacrev(pool, argument)(input, coordinates)
        torch.testing.assert_close(forward, jacobian, rtol=0, atol=1e-10)
        torch.testing.assert_close(reverse, jacobian, rtol=0, atol=1e-10)
        gradient = torch.func.grad(lambda *leaf: pool(*leaf).sum(), argument)(input, coordinates)
        torch.testing.assert_close(gradient, jacobian.sum((0, 1, 2, 3)), rtol=0, atol=1e-10)


@pytest.mark.usefixtures("vmap_never_falls_back")
def test_per_sample_gradients() -> None:
    """vmap over grad, the usual reason to want it: each example's own gradient."""
    input, rois = generic_case()
    inputs, boxes = torch.stack([input, input.flip(2)]), torch.stack([rois, rois.flip(0)])
    slope = torch.func.grad(lambda map, box: roi_align(map, box, 2).square().sum(), (0, 1))
    batched = torch.vmap(slope)(inputs, boxes)
    for i in range(2):
        for got, expected in zip(batched, slope(inputs[i], boxes[i]), strict=True):
            torch.testing.assert_close(got[i], expected, rtol=0, atol=1e-10)


def generic_image() -> tuple[Tensor, Tensor]:
    """One image, whose map no backend needs to copy, and its boxes."""
    input, rois = generic_case()
    return input[:1].clone(), rois[rois[:, 0] == 0]


@pytest.mark.parametrize("name", TO_INPUT)
@pytest.mark.parametrize("changed", ["map", "boxes"])
@pytest.mark.parametrize("wants_boxes", [False, True])
def test_what_is_changed_before_the_backward_pass_is_refused_or_not_needed(
    name: str, changed: str, wants_boxes: bool
) -> None:
    """Never the gradient of other numbers than those that were pooled."""
    pool, found = TO_INPUT[name], []
    for change in (False, True):
        input, rois = generic_image()
        wanted = [input.requires_grad_()] + ([rois.requires_grad_()] if wants_boxes and name not in CONSTANT else [])
        pooled = pool(input, rois)
        if change:
            (input if changed == "map" else rois[:, 1:]).detach().mul_(0.7)
        try:
            found.append(torch.autograd.grad(pooled.sum(), wanted))
        except RuntimeError as error:
            assert change and "modified by an inplace operation" in str(error)  # noqa: PT017, PT018
            return
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in TO_INPUT if name not in CONSTANT])
def test_a_map_that_begins_to_require_a_gradient_after_the_forward(name: str) -> None:
    """The gradient to the boxes is what it would have been, and the map has none."""
    found = []
    for begins in (False, True):
        input, rois = generic_image()
        pooled = TO_INPUT[name](input, rois.requires_grad_())
        input.requires_grad_(begins)
        pooled.sum().backward()
        assert input.grad is None
        found.append(rois.grad)
    torch.testing.assert_close(*found, rtol=0, atol=0)
