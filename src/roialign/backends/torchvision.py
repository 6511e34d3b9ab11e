"""torchvision's kernels, for devices that none of ours serves: CUDA, XPU and MPS in plain eager mode.

It has none for ``mode="max"``, exact integration, gradients to the boxes, unequal scales, 2**31 numbers and more. Of
the position-sensitive ones only that of fixed grids is right. Second derivatives are the reference's. Boxes that its
kernels cannot bear are taken out before and answer NaN; half precision is pooled in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..axis import FLOAT_CELLS
from ..boxes import usable
from ..spec import KINDS, MAPS, PLANAR, Call, Pooling
from . import reference, tracing
from .index import batch_index
from .memory import laid_out_as

DEVICES = ("cuda", "xpu", "mps")


# Not its ps_roi_pool, whose gradient goes to cells that it never reads.
OPERATORS = {"avg": "roi_align", "cells": "roi_pool", "ps_avg": "ps_roi_align"}


def why_not(call: Call) -> str:
    """Empty if torchvision can serve this call in our place, else the reason why it cannot."""
    input = call.features[0]
    if input.device.type not in DEVICES:
        return f"it serves devices that ours do not, {', '.join(DEVICES)}; the input is on {input.device}"
    if tracing.transforms() or tracing.differentiates_forward():
        return "its kernels know no torch.func and no forward-mode derivative"
    if tracing.hides_values():
        return "it serves eager calls only, and this one is traced"
    if torch.are_deterministic_algorithms_enabled():
        return "its gradients are not deterministic, and torch.use_deterministic_algorithms is on"
    if call.spec.kind not in OPERATORS:
        return f"it has no operator of kind {call.spec.kind!r}"
    if call.spec.kind == "ps_avg" and call.spec.sampling_ratio == 0:
        return "its adaptive ps_roi_align divides by zero for a box without extent"
    if call.spec.rank not in PLANAR:
        return f"its kernels take maps {MAPS[2]} only"
    if torch.is_grad_enabled() and call.rois.requires_grad:
        return "it has no gradient to the boxes"
    if input.dtype == torch.bfloat16 and input.device.type != "mps":  # where nobody else has
        return "it has no bfloat16"
    return _too_much(call) or _missing(input.device.type, OPERATORS[call.spec.kind])


def _too_much(call: Call) -> str:
    """What is out of its kernels' reach: they count in int32, place in float32 and know one scale."""
    bins = call.rois.shape[0] * call.features[0].shape[1] * math.prod(call.spec.output_size) // call.spec.group
    if max(bins, *(feature.numel() for feature in call.features)) >= 2**31:
        return "its kernels count no further than 2**31 numbers"
    if call.rois.dtype != torch.float64 and max(max(feature.shape[2:]) for feature in call.features) > FLOAT_CELLS:
        return f"its kernels place no float32 box on a map longer than {FLOAT_CELLS} cells"
    if any(len(set(call.spec.scale(level))) > 1 for level in range(len(call.features))):
        return "its kernels know one scale for both axes"
    return ""


@cache
def _missing(device: str, operator: str) -> str:
    try:
        from torchvision.extension import _has_ops
    except (ImportError, RuntimeError) as error:  # absent, or built for another torch
        return f"torchvision cannot be imported ({error})"
    if not _has_ops():
        return "torchvision's operators do not load with this PyTorch"
    key = torch._C._dispatch_key_for_device(device)
    absent = [
        name
        for name in (operator, f"_{operator}_backward")
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{name}", key)
    ]
    return f"this torchvision has no kernel of {', '.join(absent)} for {key}" if absent else ""


def pool(features: Sequence[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    """A call per level, each box on its own."""
    if level is None:
        return _pool(features[0], rois, spec)
    return reference.by_level(features, rois, level, spec, _pool)


def _pool(input: Tensor, rois: Tensor, spec: Pooling) -> Tensor:
    index = batch_index(rois[:, 0].detach(), input.shape[0])
    valid = (index >= 0) & usable(rois, spec.scale(0))
    safe = torch.where(valid[:, None], rois, 0).detach()
    with torch.autocast(input.device.type, enabled=False):
        pooled: Tensor = _Pool.apply(input.to(rois.dtype), safe, spec)
    out = torch.where(valid[:, None, None, None], pooled, torch.nan).to(input.dtype)
    return laid_out_as(input, out)


class _Pool(torch.autograd.Function):
    """torchvision's forward and backward; where that backward is itself differentiated, the reference's."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, rois: Tensor, spec: Pooling) -> Tensor:
        ctx.spec, ctx.shape = spec, input.shape
        name, arguments = _named(spec)
        found = getattr(torch.ops.torchvision, name)(input, rois, *arguments.size, *arguments.samples)
        kind = KINDS[spec.kind]
        indexed = kind.maximum or kind.sensitive
        pooled: Tensor = found[0] if indexed else found
        # The gradient wants to know where a maximum was, or which channel was read; that of a maximum's needs the map.
        ctx.save_for_backward(rois, input if kind.maximum else None, *(found[1:] if indexed else ()))
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rois, input, *index = ctx.saved_tensors
        if not torch.is_grad_enabled():
            name, arguments = _named(ctx.spec)
            operator = getattr(torch.ops.torchvision, f"_{name}_backward")
            samples, shape = arguments.samples, ctx.shape
            middle = (*samples, *shape) if KINDS[ctx.spec.kind].sensitive else (*shape, *samples)
            return operator(grad.contiguous(), rois, *index, *arguments.size, *middle), None, None
        at = (grad.new_zeros(ctx.shape) if input is None else input.detach()).requires_grad_()
        pooled = reference.pool([at], rois, None, ctx.spec)
        (found,) = torch.autograd.grad(pooled, at, grad, create_graph=True)
        return found, None, None


class _Arguments(NamedTuple):
    """Of torchvision's operators: (scale, height, width), and those of samples, if the kind takes some."""

    size: tuple[float, ...]
    samples: tuple[int, ...]


def _named(spec: Pooling) -> tuple[str, _Arguments]:
    kind = KINDS[spec.kind]
    samples = (spec.sampling_ratio, *(() if kind.sensitive else (spec.aligned,))) if kind.samples else ()
    return OPERATORS[spec.kind], _Arguments((spec.scales[0], *spec.output_size), samples)
