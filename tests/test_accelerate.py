"""roialign.accelerate(): torchvision's operators on our kernels, torchvision's answers, and back again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torchvision.ops
from torch import Tensor

import oracle
import roialign
from helpers import assert_pooled, by_image, generic_case, rows
from roialign.backends import native
from roialign.integrations.accelerate import KERNELS

pytestmark = pytest.mark.skipif(bool(native.UNREADY), reason=f"nothing to take over with: {native.UNREADY}")

OURS = os.path.join("roialign", "integrations", "accelerate.py")  # where a kernel of ours is registered
POOLS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
OPERATORS = [name for pool in POOLS for name in (pool, f"_{pool}_backward")]


def dumps() -> list[str]:
    """What the dispatcher says of torchvision's operators."""
    return [torch._C._dispatch_dump(f"torchvision::{name}") for name in OPERATORS]


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """Every test leaves the dispatcher as it found it."""
    before = dumps()
    assert OURS not in "".join(before)
    yield
    assert dumps() == before


def random_case(dtype: torch.dtype = torch.float32, boxes: int = 60) -> tuple[Tensor, Tensor]:
    """A map ``[2, 19, 13, 17]`` and boxes on it, some outside, some inverted where torchvision can bear it."""
    generator = torch.Generator().manual_seed(3)
    input = torch.randn(2, 19, 13, 17, generator=generator, dtype=torch.float64)
    image = torch.randint(2, (boxes, 1), generator=generator).double()
    corner = torch.rand(boxes, 2, generator=generator, dtype=torch.float64) * 30 - 8
    size = torch.rand(boxes, 2, generator=generator, dtype=torch.float64) * 25
    return input.to(dtype), torch.cat([image, corner, corner + size], 1).to(dtype)


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fixed": lambda x, rois: torchvision.ops.roi_align(x, rois, 3, 0.7, 2),
    "fixed aligned": lambda x, rois: torchvision.ops.roi_align(x, rois, (2, 5), 0.5, 3, True),
    "adaptive": lambda x, rois: torchvision.ops.roi_align(x, rois, 4, 0.7),
    "adaptive aligned": lambda x, rois: torchvision.ops.roi_align(x, rois, 4, 1, 0, True),
    "list": lambda x, rois: torchvision.ops.roi_align(x, by_image(rois, 2), 3, 0.7, 2),
    "module": lambda x, rois: torchvision.ops.RoIAlign(3, 0.7, 2)(x, rois),
    "scale below 0": lambda x, rois: torchvision.ops.roi_align(x, rois, 3, -0.5, 2),
    "roi_pool": lambda x, rois: torchvision.ops.roi_pool(x, rois, 3, 0.7),
    "ps_roi_align": lambda x, rois: torchvision.ops.ps_roi_align(x[:, 1:], rois, (3, 2), 0.7, 2),
    "ps_roi_align adaptive": lambda x, rois: torchvision.ops.ps_roi_align(x[:, 1:], rois, 3, 0.5),
    "ps_roi_pool": lambda x, rois: torchvision.ops.ps_roi_pool(x[:, 1:], rois, (2, 3), 0.7),
    "pyramid": lambda x, rois: torchvision.ops.MultiScaleRoIAlign(["0", "1"], 3, 2, canonical_scale=12)(
        {"0": x, "1": x[..., ::2, ::2]}, by_image(rois, 2), [(26, 34), (20, 30)]
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CALLS)
def test_torchvisions_answers_and_gradients(name: str, dtype: torch.dtype) -> None:
    input, rois = random_case(dtype)
    results = []
    for accelerated in (False, True):
        leaf = input.clone().requires_grad_()
        with roialign.accelerate() if accelerated else nullcontext():
            pooled = CALLS[name](leaf, rois)
            pooled.sin().sum().backward()
        results.append((pooled.detach(), leaf.grad))
    (expected, expected_grad), (actual, actual_grad) = results
    assert_pooled(actual, expected, input)
    assert actual_grad is not None
    torch.testing.assert_close(actual_grad, expected_grad, rtol=1e-5, atol=2e-5)
    assert actual.stride() == expected.stride()


def test_the_kernel_is_ours() -> None:
    """Against the oracle where torchvision itself is no witness, and by the dispatcher's own word."""
    input, rois = generic_case(dtype=torch.float64)
    with roialign.accelerate():
        for name, dump in zip(OPERATORS, dumps(), strict=True):
            cpu = [line for line in dump.splitlines() if line.startswith("CPU: ")]
            assert (OURS in "".join(cpu)) == (name in KERNELS)
        pooled = torchvision.ops.roi_align(input, rois[:5], 2, 1.0, 0, True)  # an inverted box: torchvision refuses
    assert_pooled(pooled, oracle.roi_align(input, rois[:5], (2, 2), (1.0, 1.0), 0, True), input)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_strides_are_those_that_compiled_code_was_promised(layout: torch.memory_format) -> None:
    """torchvision's result is contiguous, whatever came in."""
    input, rois = random_case()
    input = input.contiguous(memory_format=layout)[:, 2:, 1:].requires_grad_()
    expected = torchvision.ops.roi_align(input, rois, 3)
    with roialign.accelerate():
        for given in (rois, rois.double().float().repeat(1, 2)[:, :5]):  # also boxes that are not contiguous
            pooled = torchvision.ops.roi_align(input, given, 3)
            assert pooled.is_contiguous()
            assert_pooled(pooled, expected, input)
        (grad,) = torch.autograd.grad(pooled.sum(), input)  # the gradient of a sum has stride 0
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), input)[0], rtol=1e-5, atol=1e-5)


# What torchvision's semantics are and remain.


def test_boxes_get_no_gradient_and_second_derivatives_are_refused_as_before() -> None:
    input, rois = random_case(torch.float64)
    with roialign.accelerate():
        rois.requires_grad_()
        pooled = torchvision.ops.roi_align(input.requires_grad_(), rois, 3)
        pooled.sum().backward()
        assert rois.grad is None
        again = torch.autograd.grad(torchvision.ops.roi_align(input, rois, 3).sum(), input, create_graph=True)[0]
        with pytest.raises(RuntimeError, match="double backward"):
            again.sum().backward()


def test_wrong_arguments_are_torchvisions_errors() -> None:
    input, rois = random_case()
    wrong: list[Callable[[], Tensor]] = [
        lambda: torchvision.ops.roi_align(input, rois.double(), 3),
        lambda: torchvision.ops.roi_align(input.bfloat16(), rois.bfloat16(), 3),
        lambda: torchvision.ops.roi_align(input[0], rois, 3),
        lambda: torchvision.ops.roi_align(input, rois, (-1, 3)),
        lambda: torch.ops.torchvision.roi_align(input, rois[:, :4], 1.0, 3, 3, 2, False),
        lambda: torchvision.ops.roi_pool(input, rois.double(), 3),
        lambda: torchvision.ops.ps_roi_align(input, rois, 3),  # 19 channels
        lambda: torchvision.ops.ps_roi_pool(input, rois, 3),
        lambda: torchvision.ops.ps_roi_pool(input[:, 1:], rois.double(), 3),
    ]
    for call in wrong:
        with pytest.raises(RuntimeError) as before:
            call()
        with roialign.accelerate(), pytest.raises(RuntimeError) as after:
            call()
        assert str(after.value).split("(Exc")[0].split(" of ")[0][:40] == str(before.value).split(" of ")[0][:40]


def test_half_precision_stays_torchvisions() -> None:
    """Its answers are coarser than ours by more than rounding, so they are not ours to change; bad boxes are."""
    input, rois = random_case(torch.float16)
    input.requires_grad_()
    keep = torch.arange(60) != 4
    for pool in (torchvision.ops.roi_align, torchvision.ops.roi_pool):
        expected = pool(input, rois, 3)
        (expected_grad,) = torch.autograd.grad(expected[keep].sum(), input)
        with roialign.accelerate():
            assert torch.equal(pool(input, rois, 3), expected)
            bad = rois.clone()
            bad[4, 2] = torch.nan
            pooled = pool(input, bad, 3)
            assert pooled[4].isnan().all()
            assert torch.equal(pooled[keep], expected[keep])
            (grad,) = torch.autograd.grad(pooled[keep].sum(), input)
            assert torch.equal(grad, expected_grad)
            bad[7, 0] = 2
            with pytest.raises(IndexError, match=r"row 7 .*N = 2"):
                pool(input, bad, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_as_torchvision_has_it(dtype: torch.dtype) -> None:
    """Pooled in float32, given back in the map's dtype, boxes of any float dtype."""
    input, rois = random_case()
    low = input.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = torchvision.ops.roi_align(low, rois, 3)
        (expected_grad,) = torch.autograd.grad(expected.float().sin().sum(), low)
        with roialign.accelerate():
            pooled = torchvision.ops.roi_align(low, rois, 3)
            (grad,) = torch.autograd.grad(pooled.float().sin().sum(), low)
    assert_pooled(pooled, expected, low)
    torch.testing.assert_close(grad, expected_grad, rtol=2e-2, atol=2e-2)


def of_18_channels(pool: Any) -> Callable[..., Tensor]:
    return lambda input, *call: pool(input[:, 1:], *call)


EACH = {pool: getattr(torchvision.ops, pool) for pool in POOLS[:2]} | {
    pool: of_18_channels(getattr(torchvision.ops, pool)) for pool in POOLS[2:]
}


@pytest.mark.parametrize("pool", EACH.values(), ids=EACH)
def test_fraction_of_a_batch_index_is_dropped_as_torchvision_does(pool: Any) -> None:
    input, rois = random_case()
    input.requires_grad_()
    rois[:, 0] += torch.linspace(-0.9, 0.9, len(rois)).where(rois[:, 0] == 0, 0.5)
    expected = pool(input, rois, 3)
    with roialign.accelerate():
        actual = pool(input, rois, 3)
        assert_pooled(actual, expected, input)
        (grad,) = torch.autograd.grad(actual.sum(), input)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), input)[0], rtol=1e-5, atol=2e-5)


def test_empty_calls() -> None:
    input, rois = random_case()
    for x, boxes, size in (
        (input, rois[:0], 3),
        (input[:0], rois[:0], 3),
        (input[:, :0], rois, 3),
        (input, rois, (0, 2)),
    ):
        for pool in (torchvision.ops.roi_align, torchvision.ops.roi_pool):
            leaf = x.clone().requires_grad_()
            expected = pool(leaf, boxes, size)
            with roialign.accelerate():
                pooled = pool(leaf, boxes, size)
                assert pooled.shape == expected.shape
                (grad,) = torch.autograd.grad(pooled.sum(), leaf)
            assert torch.equal(grad, torch.zeros_like(leaf))


def test_meta_and_other_operators_are_left_alone() -> None:
    input, rois = random_case()
    with roialign.accelerate():
        assert torchvision.ops.roi_align(input.to("meta"), rois.to("meta"), 3).shape == (60, 19, 3, 3)
        assert torchvision.ops.ps_roi_align(input[:, :18], rois, 3).shape == (60, 2, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["ps_roi_align", "ps_roi_pool"])
def test_position_sensitive_operators_tell_the_channels_too(name: str, dtype: torch.dtype) -> None:
    input, rois = random_case(dtype)
    call = (input[:, 1:], rois, 0.7, 3, 2, *([2] if name == "ps_roi_align" else []))
    operator = getattr(torch.ops.torchvision, name)
    expected, expected_mapping = operator(*call)
    with roialign.accelerate():
        actual, mapping = operator(*call)
    assert_pooled(actual, expected, input)
    assert torch.equal(mapping, expected_mapping)
    assert (mapping.dtype, mapping.stride()) == (expected_mapping.dtype, expected_mapping.stride())


# What would be a crash or foreign memory is ours.


@pytest.mark.parametrize("pool", EACH.values(), ids=EACH)
def test_what_would_crash(pool: Any) -> None:
    input, rois = random_case()
    with roialign.accelerate():
        for index in (2.0, -1.0, 1e9, torch.nan, torch.inf):
            bad = rois.clone()
            bad[11, 0] = index
            with pytest.raises(IndexError, match=r"row 11 .*N = 2"):
                pool(input, bad, 3)
        expected = pool(input, rois, 3)
        for value in (torch.nan, torch.inf, -torch.inf):
            bad = rois.clone()
            bad[11, 3] = value
            leaf = input.clone().requires_grad_()
            pooled = pool(leaf, bad, 3)
            assert pooled[11].isnan().all()
            keep = torch.arange(60) != 11
            torch.testing.assert_close(pooled[keep], expected[keep], rtol=0, atol=0)
            (grad,) = torch.autograd.grad(pooled, leaf, torch.ones_like(pooled))
            (without,) = torch.autograd.grad(pool(leaf, rois[keep], 3).sum(), leaf)
            torch.testing.assert_close(grad, without, rtol=1e-6, atol=1e-6)
        assert pool(input, rois, 3, float("nan")).isnan().all()


def test_huge_inverted_and_empty_as_ours() -> None:
    input, _ = random_case()
    rois = rows((0, 0, 0, 1e5, 1e5), (0, 9, 2, 3, 6), dtype=torch.float32)
    with roialign.accelerate():
        pooled = torchvision.ops.roi_align(input, rois, 2, 1.0, -1, True)
        assert_pooled(pooled, roialign.roi_align(input, rois, 2, 1.0, -1, True), input)
        assert (pooled[1] == 0).all()
        with pytest.raises(ValueError, match="boxes on an empty feature map"):
            torchvision.ops.roi_align(input[:, :, :0], rois, 2)


# Beginning and ending.
