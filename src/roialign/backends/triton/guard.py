"""Another's kernels behind our rules, where to look at a box would mean to wait for the device.

Boxes whose image does not exist, or that are not finite, are replaced by one beside the map, which reads nothing and
sends no gradient; what was pooled of them becomes NaN. Both are small launches, and a pooled box that is well is not
touched.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks import cdiv

BOXES, NUMBERS = 128, 1024  # of a program, at once
BESIDE = -8.0  # cells; no sample of a box there lies on the map, not even of one that is made a cell large


def safe_boxes(rois: Tensor, images: int, scale: float) -> Tensor:
    """The rois ``[K, 5]``, contiguous, with those replaced that are not usable."""
    rois = rois.contiguous()
    safe = torch.empty_like(rois)
    beside = BESIDE / scale if scale and math.isfinite(scale) else 0.0
    if rois.shape[0]:
        with torch.accelerator.device_index(rois.device.index):
            _replace[(cdiv(rois.shape[0], BOXES),)](rois, safe, rois.shape[0], images, scale, beside, BOXES)
    return safe


def mark(pooled: Tensor, rois: Tensor, images: int, scale: float) -> Tensor:
    """The output ``[K, ...]``, contiguous, with NaN written over what was pooled of the rois that are not usable."""
    if pooled.numel():
        with torch.accelerator.device_index(rois.device.index):
            numbers = pooled.numel() // pooled.shape[0]
            _mark[(pooled.shape[0],)](rois.contiguous(), pooled, numbers, images, scale, NUMBERS)
    return pooled


@triton.jit
def _unusable(rois, k, live, images, scale):
    """1 where a box names no image, or is not finite on the map; of an index with a fraction the whole part counts."""
    row = rois + k.to(tl.int64) * 5
    n = tl.load(row, mask=live, other=0).to(tl.float32)
    bad = tl.where((n > -1) & (n < images), 0, 1)
    for i in tl.static_range(1, 5):
        x = tl.load(row + i, mask=live, other=0)
        if x.dtype != tl.float64:
            x = x.to(tl.float32)
        bad = tl.where(tl.abs(x * scale) < float("inf"), bad, 1)
    return bad


@triton.jit(do_not_specialize=["count", "images", "scale", "beside"])
def _replace(rois, safe, count, images, scale, beside, BLOCK: tl.constexpr):
    """Grid (blocks of boxes)."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = k < count
    bad = _unusable(rois, k, live, images, scale)
    at = k.to(tl.int64) * 5
    for i in tl.static_range(5):
        x = tl.load(rois + at + i, mask=live, other=0)
        other = 0.0 if i == 0 else beside
        tl.store(safe + at + i, tl.where(bad == 1, other, x).to(x.dtype), mask=live)


@triton.jit(do_not_specialize=["numbers", "images", "scale"])
def _mark(rois, pooled, numbers, images, scale, BLOCK: tl.constexpr):
    """Grid (boxes)."""
    k = tl.program_id(0)
    if _unusable(rois, k, True, images, scale) == 1:
        at = pooled + k.to(tl.int64) * numbers
        for begin in range(0, numbers, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            tl.store(at + i, tl.full([BLOCK], float("nan"), tl.float32).to(pooled.dtype.element_ty), mask=i < numbers)
