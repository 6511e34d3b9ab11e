"""``roialign.accelerate`` on CUDA and ROCm: torchvision's kernels for what they do well and right, ours for the rest.

Which calls those are is for :mod:`roialign.backends` to say, where it is known what torchvision cannot do and what ours
was shown to do faster; beside that only half precision, which torchvision's operator sums in half precision. A box that
names no image, which torchvision's kernels would read foreign memory for, could be seen only by waiting for the device:
it is replaced before them, and marked after them, by two small launches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..backends import operator
from ..backends import triton as gpu
from ..boxes import on_empty_map
from ..spec import Call, Pooling

KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)  # ROCm's, too
OURS = "triton"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)

Kernel = Callable[..., Any]


def is_here() -> bool:
    """Whether there is such a device, as is found without waking it up: a process may yet fork."""
    return torch.cuda.device_count() > 0


def _make_roi_align(theirs: Any) -> Kernel:
    def roi_align(
        input: Tensor, rois: Tensor, scale: float, height: int, width: int, ratio: int, aligned: bool
    ) -> Tensor:
        rois = rois.detach()
        spec = Pooling("avg", (height, width), (scale, scale), max(ratio, 0), aligned)
        if not _fits(input, rois) or height < 1 or width < 1 or gpu.unready():
            return theirs.call_boxed(KEY, input, rois, scale, height, width, ratio, aligned)  # type: ignore[no-any-return]
        if rois.shape[0] and not input.shape[2] * input.shape[3]:
            raise on_empty_map(rois.shape[0], input)
        if is_ours(input, rois, spec):
            pooled: Tensor = operator.DISPATCHED.pool([input], _positions(rois), None, spec)
            return pooled.contiguous()  # as torchvision's shape rule promises to compiled code
        from ..backends.triton import guard  # not before it is needed: Triton comes with it

        safe = guard.safe_boxes(rois, input.shape[0], scale)
        out: Tensor = theirs.call_boxed(KEY, input, safe, scale, height, width, ratio, aligned)
        return guard.mark(out, rois, input.shape[0], scale)

    return roi_align


def _make_roi_align_backward(theirs: Any) -> Kernel:
    def roi_align_backward(
        grad: Tensor, rois: Tensor, scale: float, height: int, width: int, *map_shape_and_how: Any
    ) -> Tensor:
        rois = rois.detach()
        *shape, ratio, aligned = map_shape_and_how
        spec = Pooling("avg", (height, width), (scale, scale), max(ratio, 0), aligned)
        fits = _fits(grad, rois) and grad.shape == (rois.shape[0], shape[1], height, width)
        if not fits or grad.numel() == 0 or gpu.unready():
            return theirs.call_boxed(KEY, grad, rois, scale, height, width, *map_shape_and_how)  # type: ignore[no-any-return]
        input = grad.new_empty(1).expand(shape)  # a map of this shape, but without its memory
        if is_ours(input, rois, spec):
            return operator.DISPATCHED.pool_grad(grad, [], shape, False, _positions(rois), None, spec)[0]
        from ..backends.triton import guard  # not before it is needed: Triton comes with it

        safe = guard.safe_boxes(rois, shape[0], scale)
        return theirs.call_boxed(KEY, grad, safe, scale, height, width, *map_shape_and_how)  # type: ignore[no-any-return]

    return roi_align_backward


def _make_roi_pool(theirs: Any) -> Kernel:
    """torchvision's own kernel, which tells where each maximum is, behind our rules."""

    def roi_pool(input: Tensor, rois: Tensor, scale: float, height: int, width: int) -> tuple[Tensor, Tensor]:
        rois = rois.detach()
        if not _fits(input, rois) or height < 1 or width < 1 or gpu.unready():
            return theirs.call_boxed(KEY, input, rois, scale, height, width)  # type: ignore[no-any-return]
        from ..backends.triton import guard  # not before it is needed: Triton comes with it

        safe = guard.safe_boxes(rois, input.shape[0], scale)
        pooled, argmax = theirs.call_boxed(KEY, input, safe, scale, height, width)  # nowhere: -1, beside the map
        return guard.mark(pooled, rois, input.shape[0], scale), argmax

    return roi_pool


KERNELS: dict[str, Callable[[Any], Kernel]] = {
    "roi_align": _make_roi_align,
    "_roi_align_backward": _make_roi_align_backward,
    "roi_pool": _make_roi_pool,
}


def is_ours(input: Tensor, rois: Tensor, spec: Pooling) -> bool:
    """Whether our kernels serve a call of torchvision's operator."""
    call = Call([input], rois, None, spec)
    if input.dtype in HALVES:
        return not backends.load(OURS).why_not(call)
    try:
        return backends.choose(call) == OURS
    except RuntimeError:  # another backend is forced, for calls of ours
        return False


def make_deterministic(theirs: Kernel) -> Kernel:
    """The operator where its gradient is ours, else what torchvision takes in its place in deterministic mode."""

    def roi_align(
        input: Tensor, rois: Tensor, scale: float, height: int, width: int, ratio: int, aligned: bool
    ) -> Tensor:
        device = input.device.type
        same = input.dtype is rois.dtype or torch.is_autocast_enabled(device)  # else it is for them to refuse
        call = Call([input], rois, None, Pooling("avg", (height, width), (scale, scale), max(ratio, 0), aligned))
        if device == "cuda" and same and not backends.load(OURS).why_not(call):
            return torch.ops.torchvision.roi_align(input, rois, scale, height, width, ratio, aligned)  # type: ignore[no-any-return]
        return theirs(input, rois, scale, height, width, ratio, aligned)  # type: ignore[no-any-return]

    return roi_align


class DeterministicFallback:
    """The function in torchvision's module that is called in deterministic mode, and its replacement by ours."""

    def __init__(self) -> None:
        self.module = sys.modules["torchvision.ops.roi_align"]  # the attribute of that name is the function
        self.theirs = getattr(self.module, "_roi_align", None)
        self.ours = self.theirs and make_deterministic(self.theirs)
        if self.ours:
            self.module._roi_align = self.ours  # type: ignore[attr-defined]

    def undo(self) -> None:
        """Put theirs back, unless somebody else has put something there since."""
        if self.ours and self.module._roi_align is self.ours:
            self.module._roi_align = self.theirs  # type: ignore[attr-defined]


def _fits(pixels: Tensor, rois: Tensor) -> bool:
    """Whether there is an answer to such tensors: torchvision's, or to bfloat16 ours."""
    return pixels.dtype is rois.dtype and pixels.dtype in DTYPES and pixels.dim() == 4 and rois.shape[1:] == (5,)


def _positions(rois: Tensor) -> Tensor:
    """Rois as ours take them: at least float32, without a fraction in the image's index, which torchvision cuts."""
    rois = rois.to(torch.promote_types(rois.dtype, torch.float32), copy=True)
    rois[:, 0].trunc_()
    return rois
