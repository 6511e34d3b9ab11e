"""Arguments in every form that torchvision takes and that has one meaning; limits in words of our own."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import roialign
from roialign import RoIAlign, roi_align, spec

torchvision = pytest.importorskip("torchvision")

INPUT = torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(0))
ROIS = torch.tensor([[0, 1.3, 0.7, 12.1, 14.9]])
SCALES = (np.float64(0.5), np.float32(0.5), np.float16(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor([0.5]))
RATIOS = (np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor([3]))
TRUE = (1, np.bool_(True), np.int64(1), np.array(True), torch.tensor(True), torch.tensor(1), torch.tensor([True]))
SIZES = (
    [2, 3], torch.Size([2, 3]), (np.int64(2), np.int32(3)), np.array([2, 3]), torch.tensor([2, 3]), range(2, 4),
    (torch.tensor(2), np.uint8(3)),
)  # fmt: skip


def same(**changes: Any) -> None:
    """Ours and torchvision's on the same arguments; and the module's, where torchvision's module takes as much."""
    call: dict[str, Any] = {"output_size": (2, 3), "spatial_scale": 0.5, "sampling_ratio": 3, "aligned": True} | changes
    expected = torchvision.ops.roi_align(INPUT, ROIS, **call)
    torch.testing.assert_close(roi_align(INPUT, ROIS, **call), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(RoIAlign(**call)(INPUT, ROIS), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("backend")
def test_numbers_in_every_form() -> None:
    for scale in (*SCALES, Fraction(1, 2), Decimal("0.5")):
        same(spatial_scale=scale)
    for scale in (1, np.int64(1), torch.tensor(1)):
        same(spatial_scale=scale)
    for ratio in RATIOS:
        same(sampling_ratio=ratio)
    for size in SIZES:
        same(output_size=size)
    for size in (np.int64(3), torch.tensor(3), np.array(3)):
        assert torch.equal(roi_align(INPUT, ROIS, size), roi_align(INPUT, ROIS, 3))


@pytest.mark.usefixtures("backend")
def test_true_and_false_in_every_form() -> None:
    for true in TRUE:
        same(aligned=true)
    for false in (0, np.bool_(False), torch.tensor(0), torch.tensor(False)):
        same(aligned=false)
    assert RoIAlign(2, 1.0, 2, aligned=np.bool_(True)).aligned is True  # so that repr and state are Python's


def test_the_largest_numbers(backend: str) -> None:
    """An answer up to the limits. A ramp's mean under a box is its value in the middle, whatever the ratio."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    box = torch.tensor([[0, 1.0, 1, 6, 6]])
    for ratio in (2**24 + 1, 2**31):
        assert roi_align(ramp, box, 1, 1.0, ratio).item() == pytest.approx(3.5, abs=1e-4)
    long = roi_align(torch.ones(1, 1, 2, 2), torch.tensor([[0.0, 0, 0, 1, 1]]), (2**16, 1), 1.0, 2)
    assert long.shape == (1, 1, 2**16, 1)
    assert bool((long == 1).all())
    bins = 2**24 if backend == "native" else 2**20  # the reference keeps some numbers of each: a gigabyte for 2**24
    assert roi_align(ramp, box[:0], bins).shape == (0, 1, bins, bins)
    assert roi_align(ramp, box, 1, 1.0, -(2**70)).shape == (1, 1, 1, 1)  # adaptive, as every negative ratio


def test_limits_when_torchvision_is_accelerated() -> None:
    """Through torchvision's own function our errors name the argument too."""
    if not roialign.backends.available()["native"].ready:
        pytest.skip("the core is not built")
    with roialign.accelerate():
        for size in (2**24, (2**24 + 1, 1), 2**31):
            with pytest.raises(ValueError, match="output_size"):
                torchvision.ops.roi_align(INPUT, ROIS, size, 1.0, 2)
        with pytest.raises(RuntimeError, match="pooled_height"):  # PyTorch's binder, before us
            torchvision.ops.roi_align(INPUT, ROIS, 2**63, 1.0, 2)
        assert torchvision.ops.roi_align(INPUT, ROIS, 1, 1.0, 2**31).isfinite().all()


def test_the_least_and_the_most_of_each_number() -> None:
    for size in (1, 2**24, (1, 2**24), [2**24, 1]):
        expected = (size, size) if isinstance(size, int) else tuple(size)
        assert spec.check_output_size(size, 2) == expected
    for size in (0, -1, 2**24 + 1, (0, 2), (2, 0), (2**24 + 1, 2), (2, 2**24 + 1), (2,), (2, 2, 2)):
        with pytest.raises(ValueError, match="output_size: got"):
            spec.check_output_size(size, 2)
    most = 2**63 - 1
    for ratio, expected in (
        (most, most),
        (np.uint64(most), most),
        (1, 1),
        (0, 0),
        (np.int8(0), 0),
        (np.int8(-3), 0),
        (-(2**70), 0),
    ):
        assert spec.check_sampling_ratio(ratio) == expected
    for ratio in (2**63, np.uint64(2**63)):
        with pytest.raises(ValueError, match=f"sampling_ratio: got .*{int(ratio)}"):
            spec.check_sampling_ratio(ratio)
    tiny, large = 5e-324, 1.7e308
    for scale in (tiny, large, (tiny, large), [1, large]):
        assert spec.check_scale(scale, 2) == (tuple(scale) if isinstance(scale, tuple | list) else (scale, scale))
    for scale in (0.0, -1.0, np.inf, np.nan, (0, 1), (1, 0), (np.inf, 1), (1, np.inf), (-1, 1), (1, -1), (1,), 10**400):
        with pytest.raises(ValueError, match="spatial_scale: got"):
            spec.check_scale(scale, 2)


def test_a_pooling_is_adaptive_and_not_aligned_unless_it_says_so() -> None:
    assert spec.Pooling("avg", (1, 1), (1.0, 1.0))[3:] == (0, False)


def test_kinds_that_are_no_modes() -> None:
    for mode in ("integral", "cells", "AVG", ""):
        with pytest.raises(ValueError, match="mode: got"):
            roi_align(INPUT, ROIS, 2, mode=mode)


def test_what_is_kept_for_the_gradient() -> None:
    """The map where a maximum lies in it or the boxes want a gradient, and only there."""
    pools = {
        "avg": lambda x, rois: roi_align(x, rois, 2),
        "max": lambda x, rois: roi_align(x, rois, 2, mode="max"),
        "integral": lambda x, rois: roialign.prroi_pool(x, rois, 2),
        "cells": lambda x, rois: roialign.roi_pool(x, rois, 2),
    }
    for name, pool in pools.items():
        for wanted in (False, True) if name != "cells" else (False,):
            x, rois = INPUT.clone().requires_grad_(), ROIS.clone().requires_grad_(wanted)
            kept: list[tuple[int, ...]] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.shape) or t, lambda t: t):
                pool(x, rois)
            assert (x.shape in kept) == (wanted or name in ("max", "cells")), name
