"""The C++ core as PyTorch sees it: its operators, every instruction set, and more boxes than it takes at a time."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

import roialign
from helpers import run_python
from roialign.backends import available, use

pytestmark = pytest.mark.skipif(not available()["native"].ready, reason=available()["native"].reason)

# PyTorch's opcheck looks at the gradients of tensors that have none.
opcheck = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

KINDS = ("avg", "max", "integral", "cells", "ps_avg", "ps_cells")
HOW = ([1, 3], [1.0, 1.0], 2, False)  # output size, scales, sampling ratio, aligned


def case() -> tuple[Tensor, Tensor]:
    """A map of two images and five boxes, some of them across its border."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(5, 4, generator=generator) * 10
    rois = torch.cat([torch.tensor([[0.0], [1], [1], [0], [1]]), corners], 1)
    return torch.randn(2, 3, 9, 8, generator=generator), rois


@opcheck
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck_pool(kind: str) -> None:
    map, rois = case()
    for box_gradient in (False, not kind.endswith("cells")):
        args = ([map.clone().requires_grad_()], rois.clone().requires_grad_(box_gradient), None, kind, *HOW)
        torch.library.opcheck(torch.ops.roialign.pool.default, args)


@opcheck
def test_opcheck_pool_of_two_levels() -> None:
    map, rois = case()
    levels = [map, torch.randn(2, 3, 5, 4).requires_grad_()]
    level = torch.tensor([0, 1, 1, 0, 1])
    args = (levels, rois, level, "avg", [2, 3], [1.0, 1.0, 0.5, 0.5], 2, False)
    torch.library.opcheck(torch.ops.roialign.pool.default, args)


@opcheck
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck_gradients(kind: str) -> None:
    map, rois = case()
    grad = torch.randn(5, 1 if kind.startswith("ps_") else 3, 1, 3)
    values = [map] if kind in ("max", "cells") else []
    args = (grad.clone().requires_grad_(), values, [2, 3, 9, 8], False, rois, None, kind, *HOW)
    torch.library.opcheck(torch.ops.roialign.pool_grad.default, args)
    torch.library.opcheck(torch.ops.roialign.pool_box_grad.default, (grad, [map], rois, None, kind, *HOW))


ONE_SET = """
import itertools, sys, torch
from roialign import _core, prroi_pool, ps_roi_align, ps_roi_pool, roi_align, roi_pool
from roialign.backends import available, use
if not available()["native"].ready:
    print("lacks it:", available()["native"].reason)
    sys.exit()
assert _core.kernels() == sys.argv[1], _core.kernels()
generator = torch.Generator().manual_seed(0)
POOLS = [
    lambda map, rois: roi_align(map, rois, (3, 7), 0.5, 2),
    lambda map, rois: roi_align(map, rois, 7, 0.5, aligned=True),
    lambda map, rois: roi_align(map, rois, 3, 0.5, mode="max"),
    lambda map, rois: prroi_pool(map, rois, (5, 2), 0.5),
    lambda map, rois: roi_pool(map, rois, 4, 0.5),
    lambda map, rois: ps_roi_align(map.repeat_interleave(6, 1), rois, (2, 3), 0.5, 2),
    lambda map, rois: ps_roi_pool(map.repeat_interleave(6, 1), rois, (3, 2), 0.5),
]
LAYOUTS = (torch.contiguous_format, torch.channels_last)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
checked = 0
for channels, pool, (dtype, tolerance), layout in itertools.product(
    (1, 15, 37), POOLS, TOLERANCE.items(), LAYOUTS
):
    map = torch.randn(2, channels, 21, 18, generator=generator).to(dtype).contiguous(memory_format=layout)
    corner = torch.rand(9, 2, generator=generator) * 50 - 10
    rois = torch.cat([torch.arange(9)[:, None] % 2, corner, corner + torch.rand(9, 2, generator=generator) * 40], 1)
    rois[3, 2] = float("nan")
    results = []
    # The truth: the reference in float64 on the same numbers.
    for name, input in (("native", map), ("reference", map.double())):
        input, boxes = input.detach().requires_grad_(), rois.to(input.dtype if name == "reference" else rois.dtype)
        boxes.requires_grad_()
        with use(name):
            pooled = pool(input, boxes)
        weight = torch.arange(pooled.numel()).reshape(pooled.shape).sin().nan_to_num()
        (pooled.double() * weight).nan_to_num().sum().backward()
        results.append([pooled, input.grad] + ([boxes.grad] if boxes.grad is not None else []))
    for got, wanted in zip(*results):
        scale = max(1.0, float(wanted.detach().nan_to_num().abs().max()))
        torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=tolerance * scale, equal_nan=True)
        checked += 1
print("checked", checked)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROIALIGN_CPU", name)
    said = run_python(ONE_SET, "", name)
    if "lacks it" in said:
        pytest.skip(said.strip())
    assert int(said.split()[-1]) >= 3 * 7 * 4 * 2 * 2


def test_an_unknown_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROIALIGN_CPU", "mmx")
    said = run_python("from roialign import backends; print(backends.available()['native'].reason)", "")
    assert said.strip() == "ROIALIGN_CPU='mmx': expected baseline, avx2 or avx512, and a CPU that has it"


@pytest.mark.parametrize("channels_last", [False, True])
def test_more_boxes_than_tables_exist_at_a_time(channels_last: bool) -> None:
    """40,000 boxes are five of them 8,000 times over: so are their pooled values, and the gradient is 8,000 fold."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    map = torch.randn(2, 3, 9, 8, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    rois = case()[1].double()
    rois[4, 3] = float("inf")
    with use("native"):
        many = roialign.roi_align(map, rois.repeat(8000, 1), 2, 1.0, 2)
    with use("reference"):
        few = roialign.roi_align(map, rois, 2, 1.0, 2)
    torch.testing.assert_close(many, few.repeat(8000, 1, 1, 1), rtol=0, atol=1e-12, equal_nan=True)
    grad = torch.randn(few.shape, dtype=torch.float64)
    (expected,) = torch.autograd.grad(few, map, grad)
    (actual,) = torch.autograd.grad(many, map, grad.repeat(8000, 1, 1, 1))
    torch.testing.assert_close(actual, 8000 * expected, rtol=1e-10, atol=1e-7)


TABLES = """
import resource, torch, roialign
torch.set_num_threads(1)
map = torch.rand(1, 1, 8, 8, requires_grad=True)
boxes = torch.tensor([[0, 1.0, 1, 6, 6]]).repeat(4000, 1)
roialign.roi_align(map, boxes[:9], 7, 1.0, 2).sum().backward()
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) for line in status if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, ((used << 10) + (64 << 20),) * 2)
roialign.roi_align(map, boxes, 7, 1.0, 2).sum().backward()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: its limit on memory, and how much is in use")
def test_tables_take_little() -> None:
    """In 64 MB there are 16 KB for each box, some ten times what its tables take."""
    run_python(TABLES, "native")
