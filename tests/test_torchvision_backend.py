"""torchvision's kernels on devices that we do not serve; where there is no GPU its CPU kernels stand in."""

from __future__ import annotations

import pytest
import torch
import torchvision.ops
from torch import Tensor

import roialign
from helpers import assert_pooled, for_bins, generic_case, run_python
from roialign import backends
from roialign.backends import torchvision as backend
from roialign.spec import Pooling
from test_layouts_dtypes import POOLS, truth

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device of the test, on which the backend is made to serve."""
    monkeypatch.setattr(backend, "DEVICES", (request.param,))
    monkeypatch.setattr(backends, "ORDER", ("torchvision", "reference"))
    monkeypatch.setattr(backends, "LATER", {})
    return str(request.param)


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of torchvision's operators as they are called through the backend."""
    noted: list[str] = []
    forward = backend._Pool.forward

    def noting(ctx: object, input: Tensor, rois: Tensor, spec: Pooling) -> Tensor:
        noted.append(backend.OPERATORS[spec.kind])
        return forward(ctx, input, rois, spec)

    monkeypatch.setattr(backend._Pool, "forward", staticmethod(noting))
    return noted


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_our_answers(device: str, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle's values; average and cells by torchvision's kernel, other kinds and bfloat16 by the reference."""
    noted = calls(monkeypatch)
    input, rois = generic_case(dtype=dtype)
    if name == "avg":
        rois = rois[:4]  # torchvision refuses adaptive inverted boxes on a CPU
    pooled = POOLS[name](input.to(device), rois.to(device))
    assert pooled.device.type == device
    assert_pooled(pooled.cpu(), truth(name, input, rois), input)
    served = {"avg": ["roi_align"], "avg fixed": ["roi_align"], "pool": ["roi_pool"]}
    assert noted == ([] if dtype == torch.bfloat16 else served.get(name, []))


@pytest.mark.parametrize("name", ["avg fixed", "pool"])
def test_gradients_once_and_twice(device: str, name: str) -> None:
    """Against the reference; the second derivative is the reference's own."""
    input, rois = generic_case()
    results = []
    for chosen in ("torchvision", "reference"):
        with backends.use(chosen):
            leaf = input.to(device).requires_grad_()
            weight = torch.ones((), device=device, dtype=input.dtype, requires_grad=True)
            pooled = POOLS[name](leaf * weight, rois.to(device))
            (plain,) = torch.autograd.grad(pooled.sin().sum(), leaf, retain_graph=True)
            (first,) = torch.autograd.grad(pooled.sin().sum(), leaf, create_graph=True)
            second = torch.autograd.grad(first.square().sum(), [leaf, weight])
            results.append([plain.cpu(), first.detach().cpu(), *(each.cpu() for each in second)])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-10)


def test_position_sensitive(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed grid by its kernel, once and twice; what its kernels get wrong is the reference's."""
    noted = calls(monkeypatch)
    small, rois = generic_case()
    input, rois = for_bins(small, 6).to(device), rois.to(device)
    results = []
    for order in (("reference",), ("torchvision", "reference")):
        monkeypatch.setattr(backends, "ORDER", order)
        leaf = input.clone().requires_grad_()
        pooled = roialign.ps_roi_align(leaf, rois, (2, 3), 0.9, 2)
        (plain,) = torch.autograd.grad(pooled.sin().sum(), leaf, retain_graph=True)
        (first,) = torch.autograd.grad(pooled.sin().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        results.append([each.detach() for each in (pooled, plain, first, second)])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-10)
    assert noted == ["ps_roi_align"]
    one = (1.0, 1.0)
    for spec in (Pooling("ps_avg", (2, 3), one, 0, True), Pooling("ps_cells", (2, 3), one)):
        assert not backends.available(input, rois, spec)["torchvision"].ready


def test_forced_it_serves_what_it_can_and_refuses_the_rest(device: str) -> None:
    """Never another backend behind the name; what is refused is what ``available`` says of the very call."""
    input, rois = (each.to(device) for each in generic_case())
    wanting = rois.clone().requires_grad_()
    one = (1.0, 1.0)
    refused = {
        "no operator of kind 'max'": (lambda: roialign.roi_align(input, rois, 2, mode="max"), rois, ("max", one)),
        "no operator of kind 'integral'": (lambda: roialign.prroi_pool(input, rois, 2), rois, ("integral", one)),
        "no gradient to the boxes": (lambda: roialign.roi_align(input, wanting, 2), wanting, ("avg", one)),
        "one scale for both": (lambda: roialign.roi_align(input, rois, 2, (0.5, 0.7)), rois, ("avg", (0.5, 0.7))),
    }
    for reason, (call, boxes, (kind, scale)) in refused.items():
        status = backends.available(input, boxes, Pooling(kind, (2, 2), scale))["torchvision"]
        assert not status.ready
        assert reason in status.reason
        with backends.use("torchvision"), pytest.raises(RuntimeError, match=f"'torchvision' is forced.*{reason}"):
            call()
        assert call().isfinite().any()  # not forced: the reference's
    with backends.use("torchvision"):
        fixed = roialign.roi_align(input, rois, 2, 1.0, 2)
    torch.testing.assert_close(fixed, torchvision.ops.roi_align(input, rois, 2, 1.0, 2))


def test_gradients_to_boxes_and_unequal_scales_are_the_references(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = calls(monkeypatch)
    input, rois = (each.to(device) for each in generic_case())
    rois.requires_grad_()
    (grad,) = torch.autograd.grad(roialign.roi_align(input, rois, 2).sum(), rois)
    pooled = roialign.roi_align(input, rois.detach(), 2, (0.5, 0.7))
    with backends.use("reference"):
        (expected,) = torch.autograd.grad(roialign.roi_align(input, rois, 2).sum(), rois)
        torch.testing.assert_close(pooled, roialign.roi_align(input, rois.detach(), 2, (0.5, 0.7)))
    torch.testing.assert_close(grad, expected)
    assert noted == []


def test_a_pyramid(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = calls(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    x = {str(i): torch.randn(2, 3, 32 >> i, 48 >> i, generator=generator).to(device) for i in range(3)}
    corner = torch.rand(2, 30, 2, generator=generator) * 100
    boxes = list(torch.cat([corner, corner + torch.rand(2, 30, 2, generator=generator) * 90], 2).to(device))
    pooler = roialign.MultiScaleRoIAlign(["0", "1", "2"], 3, 2, canonical_scale=40, canonical_level=3)
    pooled = pooler(x, boxes, [(128, 192)] * 2)
    with backends.use("reference"):
        expected = pooler(x, boxes, [(128, 192)] * 2)
    assert_pooled(pooled, expected, x["0"])
    assert noted == ["roi_align"] * 3


def test_odd_boxes_layout_and_autocast(device: str) -> None:
    input, rois = (each.to(device) for each in generic_case(dtype=torch.float32))
    bad = rois.clone()
    bad[1, 3] = torch.nan
    leaf = input.contiguous(memory_format=torch.channels_last).requires_grad_()
    pooled = roialign.roi_align(leaf, bad, 2, 1.0, 2)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    assert pooled[1].isnan().all()
    pooled.nan_to_num().sum().backward()
    keep = torch.arange(len(rois)) != 1
    (expected,) = torch.autograd.grad(roialign.roi_align(leaf, rois[keep], 2, 1.0, 2).sum(), leaf)
    torch.testing.assert_close(leaf.grad, expected)
    with torch.autocast(device, dtype=torch.bfloat16):
        low = roialign.roi_align(input.bfloat16(), rois, 2, 1.0, 2)
    assert_pooled(low, roialign.roi_align(input.bfloat16(), rois, 2, 1.0, 2), low)
    bad[2, 0] = 7
    if device == "cpu":
        with pytest.raises(IndexError, match=r"row 2 .*N = 2"):
            roialign.roi_align(input, bad, 2)
    else:
        assert roialign.roi_align(input, bad, 2)[2].isnan().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_serves_cuda_by_itself() -> None:
    """Without being forced, unless a backend of our own comes before it."""
    input, rois = (each.cuda() for each in generic_case(dtype=torch.float32))
    status = backends.available(input)
    assert status["torchvision"] == (True, "", "")
    first = next(name for name, answer in status.items() if answer.ready)
    assert first != "reference"
    with torch.no_grad():
        expected = torchvision.ops.roi_align(input, rois, 2, 1.0, 2)
        torch.testing.assert_close(roialign.roi_align(input, rois, 2, 1.0, 2), expected, rtol=1e-5, atol=1e-5)


def test_available_says_which_device_goes_where(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(backends.ORDER)[-3:] == ["triton", "torchvision", "reference"]
    assert "cuda, xpu, mps" in backends.available()["torchvision"].reason
    assert "on meta" in backends.available(torch.empty(1, 1, 2, 2, device="meta"))["torchvision"].reason
    monkeypatch.setattr(backend, "DEVICES", ("cpu", "meta"))
    input = torch.ones(1, 1, 2, 2)
    assert backends.available(input)["torchvision"] == (True, "", "")
    torch.use_deterministic_algorithms(True)
    try:
        assert "deterministic" in backends.available(input)["torchvision"].reason
    finally:
        torch.use_deterministic_algorithms(False)
    reasons = []
    torch.func.vmap(lambda each: (reasons.append(backends.available(each)["torchvision"].reason), each)[1])(input[None])
    assert "torch.func" in reasons[0]


def test_a_device_without_torchvisions_kernel_or_without_torchvision() -> None:
    """What a machine with such a device would be told; only the device is made up."""
    missing = "this torchvision has no kernel of roi_pool, _roi_pool_backward for HPU"
    assert backend._missing("hpu", "roi_pool") == missing
    code = (
        "import sys\n"
        "sys.modules['torchvision'] = None\n"
        "import torch, roialign\n"
        "from roialign import backends\n"
        "backends.load('torchvision').DEVICES = ('cpu',)\n"
        "backends.ORDER = ('torchvision', 'reference')\n"
        "x = torch.ones(1, 1, 2, 2)\n"
        "print(backends.available(x)['torchvision'].reason)\n"
        "pooling = roialign.spec.Pooling('avg', (1, 1), (1.0, 1.0))\n"
        "print(backends.choose(roialign.spec.Call([x], torch.zeros(0, 5), None, pooling)))\n"
    )
    reason, chosen = run_python(code, "").splitlines()
    assert reason.startswith("torchvision cannot be imported")
    assert chosen == "reference"


def test_traced_calls_are_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "DEVICES", ("cpu",))
    monkeypatch.setattr(backends, "ORDER", ("torchvision", "reference"))
    monkeypatch.setattr(backends, "LATER", {})
    noted = calls(monkeypatch)
    input, rois = generic_case(dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(POOLS["avg fixed"], backend="eager", fullgraph=True)
    assert_pooled(compiled(input, rois), POOLS["avg fixed"](input, rois), input)
    torch._dynamo.reset()
    assert noted == ["roi_align"]  # the eager call's


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")  # PyTorch's plan to drop quantised tensors
def test_quantised_input_names_the_way_out() -> None:
    quantised = torch.quantize_per_tensor(torch.ones(1, 1, 4, 4), 0.1, 0, torch.quint8)
    rois = torch.tensor([[0.0, 0, 0, 2, 2]])
    for pool in (roialign.roi_align, roialign.roi_pool, roialign.prroi_pool):
        with pytest.raises(TypeError, match=r"input: got .*quint8.*expected .*not quantised.*input\.dequantize\(\)"):
            pool(quantised, rois, 2)
        assert pool(quantised.dequantize(), rois, 1).shape == (1, 1, 1, 1)
    with pytest.raises(TypeError, match=r"x\['0'\]: got .*quint8.*dequantize"):
        roialign.MultiScaleRoIAlign(["0"], 2, 2)({"0": quantised}, [rois[:, 1:]], [(4, 4)])
