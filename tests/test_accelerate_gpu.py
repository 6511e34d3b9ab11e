"""roialign.accelerate() on CUDA and ROCm, without either: what is registered, and which calls become ours."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.ops
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import roialign
from roialign import backends
from roialign.backends import native
from roialign.integrations import accelerate_gpu as gpu
from roialign.spec import Pooling
from test_accelerate import OPERATORS, OURS, dumps, nothing_stays

__all__ = ["nothing_stays"]  # a fixture of these tests too

SPEC = Pooling("avg", (7, 7), (0.25, 0.25), 2)
has_kernels = pytest.mark.skipif(
    not torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::roi_align", "CUDA"),
    reason="this torchvision has no kernels for CUDA",
)


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is a GPU, and our kernels run on it."""
    monkeypatch.setattr(gpu, "is_here", lambda: True)
    monkeypatch.setattr(gpu.gpu, "unready", lambda: "")


def fake(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without memory that says it is on a GPU."""
    with FakeTensorMode():
        return torch.empty(size, dtype=dtype, device="cuda")


# What is registered.


@has_kernels
@pytest.mark.usefixtures("on_cuda")
def test_kernels_of_cuda_are_taken_over_and_given_back() -> None:
    before = dumps()
    module: Any = sys.modules["torchvision.ops.roi_align"]
    fallback = module._roi_align
    with roialign.accelerate() as handle:
        assert handle.devices == (("CUDA",) if native.UNREADY else ("CPU", "CUDA"))
        for name, dump in zip(OPERATORS, dumps(), strict=True):
            cuda = [line for line in dump.splitlines() if line.startswith("CUDA: ")]
            assert len(cuda) == 1
            assert (OURS in cuda[0]) == (name in gpu.KERNELS)
            for key in ("AutogradCUDA", "AutocastCUDA", "Meta"):
                same = [[line for line in text.splitlines() if line.startswith(f"{key}: ")] for text in (dump, *before)]
                assert same[0] in same[1:]
        assert module._roi_align is not fallback
        with roialign.accelerate():
            pass
        assert module._roi_align is not fallback  # until the last is undone
    assert dumps() == before
    assert module._roi_align is fallback


@has_kernels
@pytest.mark.usefixtures("on_cuda")
def test_the_dispatcher_calls_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds for CUDA, handed tensors of a CPU, whose kernels then run our operator."""
    monkeypatch.setattr(gpu, "is_ours", lambda *call: True)
    input, rois = torch.randn(2, 3, 9, 11), torch.tensor([[1.0, 1, 1, 7, 6], [0, 2, 1, 8, 8]])
    with roialign.accelerate():
        forward = torch.library.get_kernel("torchvision::roi_align", "CUDA")
        backward = torch.library.get_kernel("torchvision::_roi_align_backward", "CUDA")
        pooled = forward.call_boxed(gpu.KEY, input, rois, 0.5, 3, 4, 2, True)
        found = backward.call_boxed(gpu.KEY, pooled, rois, 0.5, 3, 4, 2, 3, 9, 11, 2, True)
    torch.testing.assert_close(pooled, torchvision.ops.roi_align(input, rois, (3, 4), 0.5, 2, True))
    expected = torch.ops.torchvision._roi_align_backward(pooled, rois, 0.5, 3, 4, 2, 3, 9, 11, 2, True)
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nothing_of_cuda_is_touched_without_a_gpu() -> None:
    module: Any = sys.modules["torchvision.ops.roi_align"]
    fallback = module._roi_align
    with roialign.accelerate() as handle:
        assert not [
            line for dump in dumps() for line in dump.splitlines() if line.startswith("CUDA: ") and OURS in line
        ]
        assert "CUDA" not in handle.devices
        assert module._roi_align is fallback


@has_kernels
@pytest.mark.usefixtures("on_cuda")
def test_anothers_fallback_survives_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = sys.modules["torchvision.ops.roi_align"]
    theirs = module._roi_align
    handle = roialign.accelerate()
    stranger = lambda *args: None  # noqa: E731
    module._roi_align = stranger
    handle.undo()
    assert module._roi_align is stranger
    module._roi_align = theirs


# Which calls become ours, as the backends say of tensors that say they are on a GPU.


@has_kernels
@pytest.mark.usefixtures("on_cuda")
def test_calls_that_ours_was_measured_faster_at_are_ours() -> None:
    rois = fake(1000, 5)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert gpu.is_ours(fake(1, 256, 50, 84, dtype=dtype), rois.to(dtype), SPEC)


@has_kernels
@pytest.mark.usefixtures("on_cuda")
def test_calls_that_torchvisions_kernel_gets_wrong_are_ours_whoever_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "ORDER", ("native", "torchvision", "triton", "reference"))
    rois = fake(1000, 5)
    assert not gpu.is_ours(fake(1, 256, 50, 84), rois, SPEC)
    assert not gpu.is_ours(fake(1, 256, 50, 84, dtype=torch.float64), rois.double(), SPEC)
    for dtype in (torch.float16, torch.bfloat16):
        assert gpu.is_ours(fake(1, 256, 50, 84, dtype=dtype), rois.to(dtype), SPEC)
    assert gpu.is_ours(fake(172, 256, 8, 8), fake(172_000, 5), SPEC)  # 2**31 numbers come out
    assert not gpu.is_ours(fake(171, 256, 8, 8), fake(171_000, 5), SPEC)
    assert gpu.is_ours(fake(2**17, 2**8, 8, 8), rois, SPEC)  # or go in
    torch.use_deterministic_algorithms(True)
    try:
        assert gpu.is_ours(fake(1, 256, 50, 84), rois, SPEC)
    finally:
        torch.use_deterministic_algorithms(False)
    with backends.use("triton"):
        assert gpu.is_ours(fake(1, 256, 50, 84), rois, SPEC)


@has_kernels
def test_another_forced_backend_changes_nothing() -> None:
    for name in ("native", "reference"):
        with backends.use(name):
            assert not gpu.is_ours(fake(1, 256, 50, 84), fake(10, 5), SPEC)


def test_a_map_of_the_gradients_shape_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward kernel asks about the map that it does not have."""
    asked: list[Tensor] = []

    def is_ours(input: Tensor, rois: Tensor, spec: Pooling) -> bool:
        asked.append(input)
        return True

    monkeypatch.setattr(gpu, "is_ours", is_ours)
    monkeypatch.setattr(gpu.gpu, "unready", lambda: "")
    grad, rois = torch.randn(3, 2, 7, 7), torch.tensor([[0.0, 1, 2, 20, 30]] * 3)
    kernel = gpu.KERNELS["_roi_align_backward"](None)
    found = kernel(grad, rois, 0.25, 7, 7, 1, 2, 16, 16, 2, False)
    assert asked[0].shape == found.shape == (1, 2, 16, 16)
    assert asked[0].untyped_storage().nbytes() == 4
    expected = torch.ops.torchvision._roi_align_backward(grad, rois, 0.25, 7, 7, 1, 2, 16, 16, 2, False)
    torch.testing.assert_close(found, expected)


# What ours answer, by whoever's kernels run our operator on these tensors.


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """The forward kernel as it is for calls that are ours."""
    monkeypatch.setattr(gpu, "is_ours", lambda *call: True)
    monkeypatch.setattr(gpu.gpu, "unready", lambda: "")
    return gpu.KERNELS["roi_align"](None)


def test_half_precision_is_summed_in_float32(ours: Callable[..., Tensor]) -> None:
    """Of ones the mean is one; a float16 stops counting samples at 2048."""
    ones, rois = torch.ones(1, 1, 520, 520), torch.tensor([[0.0, 0, 0, 512, 512]])
    theirs = torchvision.ops.roi_align(ones.half(), rois.half(), 7)
    assert (theirs - 1).abs().max() > 0.1
    for dtype in (torch.float16, torch.bfloat16):
        pooled = ours(ones.to(dtype), rois.to(dtype), 1.0, 7, 7, -1, False)
        assert pooled.dtype == dtype
        assert (pooled == 1).all()


def test_ours_is_contiguous_and_cuts_the_fraction_of_an_index(ours: Callable[..., Tensor]) -> None:
    input = torch.randn(2, 3, 9, 9).contiguous(memory_format=torch.channels_last)
    rois = torch.tensor([[1.7, 1, 1, 7, 6], [-0.5, 2, 1, 8, 8]])
    before = rois.clone()
    pooled = ours(input, rois, 1.0, 3, 3, 2, False)
    assert pooled.is_contiguous()
    assert torch.equal(rois, before)
    torch.testing.assert_close(pooled, torchvision.ops.roi_align(input, rois.trunc(), 3, 1.0, 2))


def test_boxes_on_an_empty_map_are_an_error(ours: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="2 boxes on an empty feature map"):
        ours(torch.ones(1, 1, 0, 5), torch.zeros(2, 5), 1.0, 2, 2, 2, False)


class Theirs:
    """Stands for torchvision's kernel: notes what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def call_boxed(self, keys: torch._C.DispatchKeySet, *args: Any) -> str:
        assert keys.has(torch._C.DispatchKey.CUDA)
        self.calls.append(args)
        return "theirs"


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.ones(1, 1, 4, 4), torch.zeros(1, 5).double()),
        (torch.ones(1, 4, 4), torch.zeros(1, 5)),
        (torch.ones(1, 1, 4, 4), torch.zeros(1, 4)),
        (torch.ones(1, 1, 4, 4).long(), torch.zeros(1, 5).long()),
    ],
    ids=["dtypes", "rank", "width", "whole numbers"],
)
def test_wrong_arguments_are_for_torchvision_to_refuse(
    arguments: tuple[Tensor, Tensor], ours: Callable[..., Tensor]
) -> None:
    for name, how in (("roi_align", (2, False)), ("roi_pool", ())):
        theirs = Theirs()
        assert gpu.KERNELS[name](theirs)(*arguments, 1.0, 2, 2, *how) == "theirs"
        ((input, rois, *rest),) = theirs.calls
        assert input is arguments[0]
        assert torch.equal(rois, arguments[1])
        assert rest == [1.0, 2, 2, *how]


def test_where_our_kernels_do_not_run_all_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.gpu, "unready", lambda: "no Triton")
    input, rois, grad = torch.ones(1, 1, 4, 4).half(), torch.zeros(1, 5).half(), torch.ones(1, 1, 2, 2).half()
    for name, args in (
        ("roi_align", (input, rois, 1.0, 2, 2, 2, False)),
        ("roi_pool", (input, rois, 1.0, 2, 2)),
        ("_roi_align_backward", (grad, rois, 1.0, 2, 2, 1, 1, 4, 4, 2, False)),
    ):
        theirs = Theirs()
        assert gpu.KERNELS[name](theirs)(*args) == "theirs"
        assert len(theirs.calls) == 1


# Deterministic mode.


@pytest.mark.usefixtures("on_cuda")
def test_deterministic_mode_takes_the_operator_where_ours_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    replaced = gpu.make_deterministic(lambda *args: taken.append("theirs"))
    monkeypatch.setattr(torch.ops.torchvision, "roi_align", lambda *args: taken.append("operator"))
    how = (0.25, 7, 7, 2, False)
    replaced(fake(1, 8, 20, 20), fake(3, 5), *how)
    replaced(torch.ones(1, 8, 20, 20), torch.zeros(3, 5), *how)  # a CPU's is deterministic anyway
    replaced(fake(1, 8, 20, 20), fake(3, 5).double(), *how)  # the operator would refuse
    monkeypatch.setattr(gpu.gpu, "why_not", lambda call: "no Triton")
    replaced(fake(1, 8, 20, 20), fake(3, 5), *how)
    assert taken == ["operator", "theirs", "theirs", "theirs"]


@has_kernels
@pytest.mark.usefixtures("on_cuda")
def test_deterministic_mode_reaches_the_operator_from_torchvisions_function(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = sys.modules["torchvision.ops.roi_align"]
    monkeypatch.setattr(module, "_roi_align", lambda *args: pytest.fail("the fallback was taken"))
    monkeypatch.setattr(module, "is_compile_supported", lambda device: True)  # as where there is a GPU
    torch.use_deterministic_algorithms(True)
    try:
        with roialign.accelerate(), FakeTensorMode():
            pooled = torchvision.ops.roi_align(
                torch.empty(1, 8, 20, 20, device="cuda"), torch.empty(3, 5, device="cuda"), 7
            )
    finally:
        torch.use_deterministic_algorithms(False)
    assert pooled.shape == (3, 8, 7, 7)


def test_accelerating_one_model_works_for_any_device() -> None:
    """Modules are replaced; no kernel is taken over, and each call looks for its backend."""
    before = dumps()
    model = torch.nn.Sequential(torchvision.ops.RoIAlign(2, 0.5, 2))
    replaced = roialign.accelerate(model)
    assert list(replaced.replaced) == ["0"]
    assert dumps() == before
    for device in ("cpu", "meta"):
        assert model[0](torch.ones(1, 3, 8, 8, device=device), torch.zeros(4, 5, device=device)).device.type == device
    with FakeTensorMode():
        pooled = model[0](torch.ones(1, 3, 8, 8, device="cuda"), torch.zeros(4, 5, device="cuda"))
    assert pooled.device.type == "cuda"
    assert pooled.shape == (4, 3, 2, 2)


# On a GPU.


@pytest.mark.skipif(not torch.cuda.is_available() or bool(gpu.gpu.unready()), reason="no GPU, or none of Triton's")
def test_on_a_gpu() -> None:
    """As torchvision's but for the rounding of fused positions; half precision, deterministic mode, bad boxes."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(2, 19, 30, 40, generator=generator)
    corner = torch.rand(50, 2, generator=generator) * 25
    image = torch.randint(2, (50, 1), generator=generator)
    rois = torch.cat([image, corner, corner + torch.rand(50, 2, generator=generator) * 20], 1)
    expected = torchvision.ops.roi_align(input, rois, 5, 0.8, 2)
    on, boxes = input.cuda(), rois.cuda()
    theirs = torchvision.ops.roi_align(on, boxes, 5, 0.8, 2)
    with roialign.accelerate():
        torch.testing.assert_close(torchvision.ops.roi_align(on, boxes, 5, 0.8, 2), theirs, rtol=0, atol=1e-4)
        boxes[7, 0], boxes[9, 1] = 2, torch.nan
        bad = torchvision.ops.roi_align(on, boxes, 5, 0.8, 2)
        assert bad.isnan().flatten(1).all(1).nonzero().flatten().tolist() == [7, 9]
        assert bad.isnan().flatten(1).any(1).nonzero().flatten().tolist() == [7, 9]
        boxes = rois.cuda()
        for dtype, within in ((torch.float16, 2e-2), (torch.bfloat16, 1e-1)):  # boxes are rounded, too
            low = torchvision.ops.roi_align(on.to(dtype), boxes.to(dtype), 5, 0.8, 2)
            exact = torchvision.ops.roi_align(input.to(dtype).double(), rois.to(dtype).double(), 5, 0.8, 2)
            torch.testing.assert_close(low.cpu().double(), exact, rtol=0, atol=within)
        torch.use_deterministic_algorithms(True)
        try:
            leaf = on.clone().requires_grad_()
            grads = []
            for _ in range(3):
                pooled = torchvision.ops.roi_align(leaf, boxes, 5, 0.8, 2)
                grads.append(torch.autograd.grad(pooled.sin().sum(), leaf)[0])
        finally:
            torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(pooled.cpu(), expected, rtol=0, atol=1e-5)
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])
    leaf = input.clone().requires_grad_()
    (slow,) = torch.autograd.grad(torchvision.ops.roi_align(leaf, rois, 5, 0.8, 2).sin().sum(), leaf)
    torch.testing.assert_close(grads[0].cpu(), slow, rtol=1e-4, atol=1e-4)
