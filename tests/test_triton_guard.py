"""torchvision's kernels behind our rules, on a GPU or in Triton's interpreter: what is replaced, and what is marked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchvision.ops  # noqa: F401 its operators
from torch import Tensor

from roialign.integrations import accelerate_gpu as gpu
from triton_device import DEVICE, needs_kernels

pytestmark = needs_kernels

ROWS = {  # box: whether it can be pooled from two images
    (0, 1, 2, 9, 8): True,
    (1, -3, -2, 9, 8): True,
    (1.9, 5, 6, 7, 8): True,  # the fraction is cut
    (-0.5, 0, 0, 4, 4): True,
    (2, 1, 2, 3, 4): False,
    (-1, 0, 0, 1, 1): False,
    (math.nan, 0, 0, 1, 1): False,
    (math.inf, 0, 0, 1, 1): False,
    (0, math.nan, 0, 1, 1): False,
    (0, 1, math.inf, 1, 1): False,
    (0, 1, 1, -math.inf, 1): False,
    (1, 1, 1, 1, math.nan): False,
}
GOOD = torch.tensor(list(ROWS.values()))


def boxes(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(list(ROWS), dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("scale", [0.25, 1.0, -0.5, 3.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_replaced_is_what_is_not_usable_by_a_box_beside_the_map(dtype: torch.dtype, scale: float) -> None:
    from roialign.backends.triton import guard

    rois = boxes(dtype)
    safe = guard.safe_boxes(rois.T.contiguous().T, 2, scale)
    assert torch.equal(safe[GOOD.to(DEVICE)], rois[GOOD.to(DEVICE)])
    replaced = safe[~GOOD.to(DEVICE)]
    assert (replaced[:, 0] == 0).all()
    assert (replaced[:, 1:] * scale + 1 < -1).all()  # even made a cell large it ends before the map's border


def test_marked_is_what_is_not_usable_and_nothing_else_written() -> None:
    from roialign.backends.triton import guard

    for numbers in (1, 1024, 1030):
        pooled = torch.randn(len(ROWS), numbers, device=DEVICE)
        expected = pooled.clone()
        expected[~GOOD.to(DEVICE)] = math.nan
        torch.testing.assert_close(guard.mark(pooled, boxes(), 2, 0.5), expected, rtol=0, atol=0, equal_nan=True)


def test_finite_numbers_that_overflow_on_the_map_are_not_usable() -> None:
    from roialign.backends.triton import guard

    far = [[0.0, 1e30, 0, 0, 0], [0.0, 1, 1, 2, 2]]
    for dtype, bad in ((torch.float32, [True, False]), (torch.float64, [False, False])):
        pooled = guard.mark(torch.zeros(2, 3, device=DEVICE), torch.tensor(far, dtype=dtype, device=DEVICE), 1, 1e10)
        assert pooled.isnan().all(1).tolist() == pooled.isnan().any(1).tolist() == bad


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """torchvision's kernels of this device, for calls that stay with them."""
    key = "CUDA" if DEVICE == "cuda" else "CPU"
    monkeypatch.setattr(gpu, "KEY", torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)))
    monkeypatch.setattr(gpu, "is_ours", lambda *call: False)
    return {name: torch.library.get_kernel(f"torchvision::{name}", key) for name in gpu.KERNELS}


@pytest.mark.parametrize(("ratio", "aligned"), [(2, False), (-1, True), (0, False), (3, True)])
def test_torchvisions_answers_for_good_boxes_and_nan_for_bad_ones(
    ratio: int, aligned: bool, theirs: dict[str, Any]
) -> None:
    input, rois, good = torch.randn(2, 3, 10, 12, device=DEVICE), boxes(), GOOD.to(DEVICE)
    how = (0.5, 2, 3, ratio, aligned)
    pooled = gpu.KERNELS["roi_align"](theirs["roi_align"])(input, rois, *how)
    torch.testing.assert_close(pooled[good], torch.ops.torchvision.roi_align(input, rois[good], *how), rtol=0, atol=0)
    assert pooled[~good].isnan().all()

    grad = torch.randn_like(pooled)
    shape = (0.5, 2, 3, *input.shape, ratio, aligned)
    found = gpu.KERNELS["_roi_align_backward"](theirs["_roi_align_backward"])(grad, rois, *shape)
    alone = torch.ops.torchvision._roi_align_backward(grad[good], rois[good], *shape)
    torch.testing.assert_close(found, alone, rtol=1e-6, atol=1e-6)


def test_roi_pool_has_no_winner_where_a_box_is_bad(theirs: dict[str, Any]) -> None:
    input, rois, good = torch.randn(2, 3, 10, 12, device=DEVICE), boxes(), GOOD.to(DEVICE)
    pooled, argmax = gpu.KERNELS["roi_pool"](theirs["roi_pool"])(input, rois, 0.5, 2, 3)
    expected = torch.ops.torchvision.roi_pool(input, rois[good], 0.5, 2, 3)
    assert torch.equal(pooled[good], expected[0])
    assert torch.equal(argmax[good], expected[1])
    assert pooled[~good].isnan().all()
    assert (argmax[~good] == -1).all()
