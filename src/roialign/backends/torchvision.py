"""torchvision's kernels, for devices that none of ours serves: CUDA, XPU and MPS in plain eager mode.

What torchvision has no kernel for is the reference's: ``mode="max"``, exact integration, gradients to the boxes, second
derivatives, unequal scales, 2**31 numbers and more. Boxes that its kernels cannot bear are taken out before and answer
NaN; half precision is pooled in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..axis import FLOAT_CELLS
from ..boxes import batch_index, pool_by_level, usable
from . import reference, tracing

DEVICES = ("cuda", "xpu", "mps")


def why_not(input: Tensor) -> str:
    """Empty if torchvision can pool from this feature map in our place, else the reason why it cannot."""
    if input.device.type not in DEVICES:
        return f"it serves devices that ours do not, {', '.join(DEVICES)}; the input is on {input.device}"
    if tracing.hides_values():
        return "it serves eager calls only, and this one is traced"
    if tracing.differentiates_forward():
        return "its kernels know no torch.func and no forward-mode derivative"
    if torch.are_deterministic_algorithms_enabled():
        return "its gradients are not deterministic, and torch.use_deterministic_algorithms is on"
    return _missing(input.device.type)


@cache
def _missing(device: str) -> str:
    try:
        from torchvision.extension import _has_ops
    except (ImportError, RuntimeError) as error:  # absent, or built for another torch
        return f"torchvision cannot be imported ({error})"
    if not _has_ops():
        return "torchvision's operators do not load with this PyTorch"
    key = torch._C._dispatch_key_for_device(device)
    absent = [
        name
        for name in ("roi_align", "_roi_align_backward", "roi_pool", "_roi_pool_backward")
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{name}", key)
    ]
    return f"this torchvision has no kernel of {', '.join(absent)} for {key}" if absent else ""


def roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    level: Tensor | None,
    output_size: tuple[int, int],
    scales: Sequence[tuple[float, float]],
    sampling_ratio: int,
    aligned: bool,
    mode: str,
) -> Tensor:
    """A call per level, each box on its own."""
    how = (sampling_ratio, aligned)
    able = all(_is_able(feature, rois, output_size, scale) for feature, scale in zip(features, scales, strict=True))
    if mode != "avg" or not able:
        return reference.roi_align(features, rois, level, output_size, scales, sampling_ratio, aligned, mode)
    if level is None:
        return _pool("roi_align", features[0], rois, output_size, scales[0], how)
    batch_index(rois[:, 0].detach(), features[0].shape[0])  # here, where a message can name the caller's row

    def pool(index: int, row: Tensor) -> Tensor:
        return _pool("roi_align", features[index], rois[row], output_size, scales[index], how)

    return reference.laid_out_as(features[0], pool_by_level(level, len(features), pool))


def prroi_pool(input: Tensor, rois: Tensor, output_size: tuple[int, int], scales: tuple[float, float]) -> Tensor:
    """The reference's: torchvision has none."""
    return reference.prroi_pool(input, rois, output_size, scales)


def roi_pool(input: Tensor, rois: Tensor, output_size: tuple[int, int], scales: tuple[float, float]) -> Tensor:
    """The maximum over whole cells."""
    if not _is_able(input, rois, output_size, scales):
        return reference.roi_pool(input, rois, output_size, scales)
    return _pool("roi_pool", input, rois, output_size, scales, ())


def _is_able(input: Tensor, rois: Tensor, size: tuple[int, int], scales: tuple[float, float]) -> bool:
    pooled = rois.shape[0] * input.shape[1] * size[0] * size[1]
    differentiates_boxes = torch.is_grad_enabled() and rois.requires_grad
    placed = rois.dtype == torch.float64 or max(input.shape[2:]) <= FLOAT_CELLS
    return scales[0] == scales[1] and not differentiates_boxes and max(pooled, input.numel()) < 2**31 and placed


def _pool(
    name: str, input: Tensor, rois: Tensor, size: tuple[int, int], scales: tuple[float, float], how: tuple[Any, ...]
) -> Tensor:
    index = batch_index(rois[:, 0].detach(), input.shape[0])
    valid = (index >= 0) & usable(rois, scales)
    safe = torch.where(valid[:, None], rois, 0).detach()
    with torch.autocast(input.device.type, enabled=False):
        pooled: Tensor = _Pool.apply(input.to(rois.dtype), safe, name, size, scales[0], how)
    out = torch.where(valid[:, None, None, None], pooled, torch.nan).to(input.dtype)
    return reference.laid_out_as(input, out)


class _Pool(torch.autograd.Function):
    """torchvision's forward and backward; where that backward is itself differentiated, the reference's."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, rois: Tensor, name: str, size: tuple[int, int], scale: float, how: tuple[Any, ...]
    ) -> Tensor:
        ctx.name, ctx.size, ctx.scale, ctx.how, ctx.shape = name, size, scale, how, input.shape
        found = getattr(torch.ops.torchvision, name)(input, rois, scale, *size, *how)
        pooled: Tensor = found if name == "roi_align" else found[0]
        # The gradient of a maximum needs to know where it was, and the gradient of that needs the map.
        ctx.save_for_backward(rois, *(() if name == "roi_align" else (input, found[1])))
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rois, *kept = ctx.saved_tensors
        if not torch.is_grad_enabled():
            argmax = kept[1:]
            operator = getattr(torch.ops.torchvision, f"_{ctx.name}_backward")
            found = operator(grad.contiguous(), rois, *argmax, ctx.scale, *ctx.size, *ctx.shape, *ctx.how)
            return found, None, None, None, None, None
        scales = (ctx.scale, ctx.scale)
        at = (kept[0].detach() if kept else grad.new_zeros(ctx.shape)).requires_grad_()
        if kept:
            pooled = reference.roi_pool(at, rois, ctx.size, scales)
        else:
            ratio, aligned = ctx.how
            pooled = reference.roi_align([at], rois, None, ctx.size, [scales], ratio, aligned, "avg")
        (found,) = torch.autograd.grad(pooled, at, grad, create_graph=True)
        return found, None, None, None, None, None
