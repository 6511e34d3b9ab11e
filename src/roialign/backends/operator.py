"""The CPU backend: the C++ core as PyTorch operators, with shapes for tracing, autograd and vmap.

    torch.ops.roialign.pool           pooled
    torch.ops.roialign.pool_grad      gradient to the maps: the transposed contraction
    torch.ops.roialign.pool_box_grad  gradient to the rois: the contraction with the matrices' derivative

What the core has no kernel for is the reference's: forward-mode AD, functorch's gradients, second derivatives that
involve the boxes, and other devices, where a recorded graph may run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..boxes import batch_index
from . import native as core, reference, tracing

NEEDS_MAP = ("max", "cells")  # where a maximum lies depends on the map, so its gradient needs the map again


def why_not(input: Tensor) -> str:
    """Empty if the core can pool from this feature map, else the reason why it cannot."""
    if input.is_meta:
        return ""  # a shape is all there is to it, and the operators know it without the core
    if core.UNREADY:
        return core.UNREADY
    if not input.is_cpu:
        return f"the core runs on a CPU; the input is on {input.device}"
    return ""


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
    """All levels and all boxes in one call of the core."""
    flat = [scale for pair in scales for scale in pair]
    return _pool(list(features), rois, level, mode, output_size, flat, sampling_ratio, aligned)


def prroi_pool(input: Tensor, rois: Tensor, output_size: tuple[int, int], scales: tuple[float, float]) -> Tensor:
    """The exact integral."""
    return _pool([input], rois, None, "integral", output_size, scales, 0, False)


def roi_pool(input: Tensor, rois: Tensor, output_size: tuple[int, int], scales: tuple[float, float]) -> Tensor:
    """The maximum over whole cells."""
    return _pool([input], rois, None, "cells", output_size, scales, 0, False)


def _pool(features: list[Tensor], rois: Tensor, level: Tensor | None, *how: Any) -> Tensor:
    """The operator, or in plain eager mode what it comes to: dispatching in Python outweighs a small call."""
    if tracing.differentiates_forward():
        return _reference_pool(features, rois, level, *how)
    if tracing.watched(*features, rois):
        return torch.ops.roialign.pool(features, rois, level, *how)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*features, rois):
        return _EagerPool.apply(rois, level, how, *features)  # type: ignore[no-any-return]
    return core.pool(features, rois, level, *how)


# Autograd. ``how`` is (kind, output_size, scales, sampling_ratio, aligned).


def _save(ctx: Any, features: Sequence[Tensor], rois: Tensor, level: Tensor | None, how: Sequence[Any]) -> None:
    # What is wanted is settled here: requires_grad of a leaf may be another when the backward pass runs.
    ctx.wanted = [feature.requires_grad for feature in features]
    ctx.wants_boxes = rois.requires_grad
    keep = ctx.wants_boxes or how[0] in NEEDS_MAP
    ctx.save_for_backward(rois, level, *(features if keep else ()))
    ctx.shapes = [size for feature in features for size in feature.shape]
    ctx.channels_last = core.is_channels_last(features[0])
    ctx.how = how


def _gradients(ctx: Any, grad: Tensor) -> tuple[Sequence[Tensor | None], Tensor | None]:
    """Gradients to the maps and to the rois, themselves differentiable."""
    rois, level, *features = ctx.saved_tensors
    twice = ctx.wants_boxes and torch.is_grad_enabled()
    if twice or tracing.batches(grad) or why_not(grad):
        return _reference_gradients(ctx, grad, features, rois, level)
    operators = torch.ops.roialign if torch.is_grad_enabled() or tracing.watched(grad, rois) else core
    grads: Sequence[Tensor | None] = [None] * len(ctx.wanted)
    if any(ctx.wanted):
        values = features if ctx.how[0] in NEEDS_MAP else []
        grads = operators.pool_grad(grad, values, ctx.shapes, ctx.channels_last, rois, level, *ctx.how)
    return grads, operators.pool_box_grad(grad, features, rois, level, *ctx.how) if ctx.wants_boxes else None


def _reference_gradients(
    ctx: Any, grad: Tensor, features: Sequence[Tensor], rois: Tensor, level: Tensor | None
) -> tuple[Sequence[Tensor | None], Tensor | None]:
    """The same by the reference's graph: differentiable in everything, and made of operators that batch."""
    if not features:  # not kept, because their values do not matter
        features = [grad.new_zeros(ctx.shapes[4 * i : 4 * i + 4]) for i in range(len(ctx.wanted))]

    def leaf(tensor: Tensor, wanted: bool) -> Tensor:
        return tensor if tensor.requires_grad == wanted else tensor.detach().requires_grad_(wanted)

    again = torch.is_grad_enabled()
    inputs = [*map(leaf, features, ctx.wanted), leaf(rois, ctx.wants_boxes)]
    with torch.enable_grad():
        pooled = _reference_pool(inputs[:-1], inputs[-1], level, *ctx.how)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    found = torch.autograd.grad(pooled, wanted, grad, create_graph=again, allow_unused=True, materialize_grads=True)
    each = iter(found)
    *grads, box_grad = [next(each) if tensor.requires_grad else None for tensor in inputs]
    return grads, box_grad


def _reference_pool(
    features: Sequence[Tensor],
    rois: Tensor,
    level: Tensor | None,
    kind: str,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    size = (output_size[0], output_size[1])
    pairs = [(scales[i], scales[i + 1]) for i in range(0, len(scales), 2)]
    if kind == "integral":
        return reference.prroi_pool(features[0], rois, size, pairs[0])
    if kind == "cells":
        return reference.roi_pool(features[0], rois, size, pairs[0])
    return reference.roi_align(features, rois, level, size, pairs, sampling_ratio, aligned, kind)


def _pool_anywhere(features: Sequence[Tensor], rois: Tensor, level: Tensor | None, *how: Any) -> Tensor:
    """The operator where no kernel of ours is, as on a GPU that runs a graph which was recorded elsewhere."""
    for tensor in (*features, rois, *([] if level is None else [level])):
        if not isinstance(tensor, Tensor) or tensor.is_quantized or tensor.layout != torch.strided:
            what = (
                f"a {tensor.layout} tensor of {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            )
            raise TypeError(f"roialign: got {what}; expected dense, not quantised tensors")
    return _reference_pool(features, rois, level, *how)


class _EagerPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rois: Tensor, level: Tensor | None, how: Sequence[Any], *features: Tensor) -> Tensor:
        _save(ctx, features, rois, level, how)
        return core.pool(list(features), rois, level, *how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads, box_grad = _gradients(ctx, grad)
        return box_grad, None, None, *grads


def _setup_pool(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, level, *how = inputs
    _save(ctx, features, rois, level, how)


def _backward_pool(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *_gradients(ctx, grad), None, None, None, None, None, None


def _setup_pool_grad(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, features, shapes, _, rois, level, *how = inputs
    ctx.save_for_backward(rois, level, *features)
    ctx.shapes, ctx.how = shapes, how


def _backward_pool_grad(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    """The operator is linear in the maps, so the gradient of its transpose is itself; a maximum's choice stays."""
    rois, level, *features = ctx.saved_tensors
    sizes = [ctx.shapes[i : i + 4] for i in range(0, len(ctx.shapes), 4)]
    like = next(grad for grad in grads if grad is not None)
    full = [like.new_zeros(size) if grad is None else grad for grad, size in zip(grads, sizes, strict=True)]
    if not features:
        return torch.ops.roialign.pool(full, rois, level, *ctx.how), [], *[None] * 9
    with torch.enable_grad():
        at = [feature.detach().requires_grad_() for feature in features]
        pooled = _reference_pool(at, rois.detach(), level, *ctx.how)
        weight = torch.zeros_like(pooled, requires_grad=True)
        transposed = torch.autograd.grad(
            pooled, at, weight, create_graph=True, allow_unused=True, materialize_grads=True
        )
        (out,) = torch.autograd.grad(transposed, weight, full)
    return out, [None] * len(features), *[None] * 9


def _vmap_pool(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    """The batch becomes part of the images and of the boxes."""
    features, rois, level, *how = args
    size = info.batch_size

    def spread(tensor: Tensor, dim: int | None) -> Tensor:
        return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    rois = spread(rois, in_dims[1])
    images = features[0].shape[1 if in_dims[0][0] == 0 else 0]
    batch_index(rois[..., 0], images)  # now, while a row is the caller's row and a batch has only its own images
    if level is not None:
        level = spread(level, in_dims[2]).flatten()
    if any(dim is not None for dim in in_dims[0]):
        features = [spread(*pair).flatten(0, 1) for pair in zip(features, in_dims[0], strict=True)]
        if size * images > 2**24:  # float32 counts no further
            rois = rois.double()
        shift = torch.arange(size, dtype=rois.dtype)[:, None, None] * images
        rois = torch.cat([rois[..., :1] + shift, rois[..., 1:]], -1)
    out = torch.ops.roialign.pool(features, rois.flatten(0, 1).contiguous(), level, *how)
    return out.reshape(size, rois.shape[1], *out.shape[1:]), 0


_library = torch.library.Library("roialign", "FRAGMENT")
_HOW = "Tensor? level, str kind, SymInt[] output_size, float[] scales, SymInt sampling_ratio, bool aligned"
_library.define(f"pool(Tensor[] features, Tensor rois, {_HOW}) -> Tensor")
_library.define(
    f"pool_grad(Tensor grad, Tensor[] features, SymInt[] shapes, bool channels_last, Tensor rois, {_HOW}) -> Tensor[]"
)
_library.define(f"pool_box_grad(Tensor grad, Tensor[] features, Tensor rois, {_HOW}) -> Tensor")
_library.impl("pool", _pool_anywhere, "CompositeExplicitAutograd")
for _name in ("pool", "pool_grad", "pool_box_grad"):
    if not core.UNREADY:
        _library.impl(_name, getattr(core, _name), "CPU")
    torch.library.register_fake(f"roialign::{_name}", getattr(core, f"{_name}_fake"), lib=_library)
torch.library.register_autograd("roialign::pool", _backward_pool, setup_context=_setup_pool, lib=_library)
torch.library.register_autograd(
    "roialign::pool_grad", _backward_pool_grad, setup_context=_setup_pool_grad, lib=_library
)
torch.library.register_vmap("roialign::pool", _vmap_pool, lib=_library)
