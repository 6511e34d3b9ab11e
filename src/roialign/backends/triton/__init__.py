"""The GPU: kernels in Triton, for CUDA, ROCm and whatever else Triton drives.

No atomics, no synchronisation, 64-bit offsets, every dtype in either layout, all levels of a pyramid in one set of
launches; the same bits in every run. Triton is imported when a call is first asked of it. With ``TRITON_INTERPRET=1``
the same kernels run on a CPU, slowly, in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from ...spec import KINDS, Call, Pooling, check_kind
from .. import operator, tracing
from .version import version

SERVED = ("avg", "integral", "max", "cells", "ps_avg", "ps_cells", "rotated", "moved")  # which there are kernels of
DEVICES = ("cuda", "xpu")  # PyTorch's names; ROCm is "cuda"
LEAST = (3, 6)  # of Triton's versions, the one that the oldest PyTorch we take comes with
NOTE = (
    "run on an NVIDIA H100: means, integrals, maxima and whole cells of maps; all else, and other GPUs, only in "
    "Triton's interpreter, and compiled for sm_80, sm_90 and gfx942"
)

_INSTALLED = find_spec("triton") is not None


def why_not(call: Call) -> str:
    """Empty if the kernels can serve this call, else the reason why they cannot."""
    input = call.features[0]
    if call.spec.kind not in SERVED:
        return f"there is no kernel of kind {call.spec.kind!r} in Triton"
    on_gpu = input.device.type in DEVICES
    if on_gpu and tracing.hides_values(input):  # a graph, which may run on another machine
        return "" if _INSTALLED else "Triton is not installed"
    if not on_gpu and not input.is_cpu:
        return f"its kernels are for {' and '.join(DEVICES)}; the input is on {input.device}"
    missing = unready()
    if missing:
        return missing
    if input.device.type != _driven():
        return f"Triton's driver runs on {_driven()}; the input is on {input.device}"
    return ""


@cache
def unready() -> str:
    """Empty if Triton is there and has a device; else what is missing."""
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    if version() < LEAST:
        return f"Triton {triton.__version__} is too old; needed is {'.'.join(map(str, LEAST))}"
    if triton.knobs.runtime.interpret:
        return ""
    try:
        target = triton.runtime.driver.active.get_current_target()
    except Exception as error:  # no GPU, no driver, or none that could be compiled: it needs a compiler and Python.h
        return f"Triton has no device ({error or type(error).__name__})"
    if target.backend == "cuda" and target.arch < 80:
        return f"Triton needs a GPU of compute capability 8.0; this one has {target.arch / 10}"
    return ""


@cache
def _driven() -> str:
    """The type of the devices that kernels run on; a CPU where they are interpreted."""
    import triton

    if triton.knobs.runtime.interpret:
        return "cpu"
    return str(triton.runtime.driver.active.get_active_torch_device().type)


def _serves(spec: Pooling) -> bool:
    """Asked no earlier than when an operator runs on such a device."""
    return spec.kind in SERVED and spec.rank in KINDS[spec.kind].ranks and not unready()


class _Directions(NamedTuple):
    """The functions that launch the kernels of some kinds, as ``operator.Kernels`` has them."""

    pool: Callable[[list[Tensor], Tensor, Tensor | None, Pooling], Tensor]
    pool_grad: Callable[[Tensor, list[Tensor], list[int], bool, Tensor, Tensor | None, Pooling], list[Tensor]]
    pool_box_grad: Callable[[Tensor, list[Tensor], Tensor, Tensor | None, Pooling], Tensor]


def _by(spec: Pooling) -> _Directions:
    from . import backward, box_grad, forward, gather, maximum

    kind = KINDS[check_kind(spec.kind)]
    if spec.rank not in kind.ranks:
        raise ValueError(
            f"output_size: got {tuple(spec.output_size)}; expected as many numbers as a map has axes, for a "
            f"kernel of kind {spec.kind!r}, {' or '.join(map(str, kind.ranks))}"
        )
    if kind.maximum:
        return _Directions(maximum.pool, maximum.pool_grad, maximum.pool_box_grad)
    if kind.sensitive or kind.box != "corners" or spec.rank == 3:
        return _Directions(gather.pool, gather.pool_grad, gather.pool_box_grad)
    return _Directions(forward.pool, backward.pool_grad, box_grad.pool_box_grad)


def _pool(features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    from . import arguments

    serve = _by(spec).pool
    maps = arguments.check_maps(features, spec.rank)
    boxes = arguments.check_boxes([each.shape for each in maps], maps[0], rois, level, spec)
    if spec.rank == 1:
        maps, _, boxes = arguments.of_one_row(maps, (), boxes)
    with _on(maps[0].device):
        pooled = serve(maps, *boxes)
    return pooled.squeeze(2).contiguous() if spec.rank == 1 else pooled


def _pool_grad(
    grad: Tensor,
    features: list[Tensor],
    shapes: list[int],
    channels_last: bool,
    rois: Tensor,
    level: Tensor | None,
    spec: Pooling,
) -> list[Tensor]:
    from . import arguments

    serve = _by(spec).pool_grad
    grad, axes = arguments.check_pooled(grad, rois, shapes[1:2], spec), spec.rank + 2
    boxes = arguments.check_boxes([shapes[i : i + axes] for i in range(0, len(shapes), axes)], grad, rois, level, spec)
    maps = arguments.check_values(features, grad, shapes, spec.rank) if KINDS[spec.kind].maximum else []
    if spec.rank == 1:
        (grad, *maps), shapes, boxes = arguments.of_one_row([grad, *maps], shapes, boxes)
    with _on(grad.device):
        grads = serve(grad, maps, shapes, channels_last and spec.rank > 1, *boxes)
    return [each.squeeze(2) for each in grads] if spec.rank == 1 else grads


def _pool_box_grad(grad: Tensor, features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    from . import arguments

    serve = _by(spec).pool_box_grad
    maps = arguments.check_maps(features, spec.rank)
    grad = arguments.check_pooled(grad, rois, maps[0].shape[1:2], spec)
    boxes = arguments.check_boxes([each.shape for each in maps], grad, rois, level, spec)
    if spec.rank == 1:
        (grad, *maps), _, boxes = arguments.of_one_row([grad, *maps], (), boxes)
    with _on(grad.device):
        return serve(grad, maps, *boxes)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    if device.type == "cpu":
        return nullcontext()
    return torch.get_device_module(device).device(device)  # type: ignore[no-any-return]


_kernels = operator.Kernels(_serves, _pool, _pool_grad, _pool_box_grad)
pool = partial(operator.call, _kernels)
if _INSTALLED:
    for _device in DEVICES:
        operator.register(_device, _kernels)
