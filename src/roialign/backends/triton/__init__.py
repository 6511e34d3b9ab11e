"""The GPU: kernels in Triton, for CUDA, ROCm and whatever else Triton drives.

No atomics, no synchronisation, 64-bit offsets, every dtype in either layout, all levels of a pyramid in one set of
launches; the same bits in every run. Triton is imported when a call is first asked of it. With ``TRITON_INTERPRET=1``
the same kernels run on a CPU, slowly, in Triton's interpreter.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from importlib.util import find_spec

import torch
from torch import Tensor

from ...spec import KINDS, MAPS, PLANAR, Call, Pooling
from .. import operator, tracing

SERVED = ("avg", "max", "integral", "cells")
DEVICES = ("cuda", "xpu")  # PyTorch's names; ROCm is "cuda"
LEAST = (3, 6)  # of Triton's versions, the one that the oldest PyTorch we take comes with
NOTE = "not yet run on a GPU: only in Triton's interpreter, and compiled for sm_80, sm_90 and gfx942"

_INSTALLED = find_spec("triton") is not None


def why_not(call: Call) -> str:
    """Empty if the kernels can serve this call, else the reason why they cannot."""
    input = call.features[0]
    if call.spec.kind not in SERVED:
        return f"there is no kernel of kind {call.spec.kind!r} in Triton"
    if call.spec.rank not in PLANAR:
        return f"its kernels take maps {MAPS[2]} only"
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
    if _version(triton.__version__) < LEAST:
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


def _version(text: str) -> tuple[int, ...]:
    """The first two numbers; what has none, such as a build of Triton's main branch, counts as the newest."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else (LEAST[0] + 1,)


@cache
def _driven() -> str:
    """The type of the devices that kernels run on; a CPU where they are interpreted."""
    import triton

    if triton.knobs.runtime.interpret:
        return "cpu"
    return str(triton.runtime.driver.active.get_active_torch_device().type)


class _Kinds(Collection[str]):
    """``SERVED`` where kernels can run, else none; asked no earlier than when an operator runs on such a device."""

    def __contains__(self, kind: object) -> bool:
        return kind in SERVED and not unready()

    def __iter__(self) -> Iterator[str]:
        return iter(() if unready() else SERVED)

    def __len__(self) -> int:
        return 0 if unready() else len(SERVED)


def _pool(features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    from . import arguments, forward, maximum

    maps = arguments.check_maps(features)
    boxes = arguments.check_boxes([each.shape for each in maps], maps[0], rois, level, spec)
    serve = maximum.pool if KINDS[spec.kind].maximum else forward.pool
    with _on(maps[0].device):
        return serve(maps, *boxes)


def _pool_grad(
    grad: Tensor,
    features: list[Tensor],
    shapes: list[int],
    channels_last: bool,
    rois: Tensor,
    level: Tensor | None,
    spec: Pooling,
) -> list[Tensor]:
    from . import arguments, backward, maximum

    grad = arguments.check_pooled(grad, rois, shapes[1:2], spec)
    boxes = arguments.check_boxes([shapes[i : i + 4] for i in range(0, len(shapes), 4)], grad, rois, level, spec)
    with _on(grad.device):
        if not KINDS[spec.kind].maximum:
            return backward.pool_grad(grad, [], shapes, channels_last, *boxes)
        maps = arguments.check_values(features, grad, shapes)
        return maximum.pool_grad(grad, maps, shapes, channels_last, *boxes)


def _pool_box_grad(grad: Tensor, features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    from . import arguments, box_grad, maximum

    maps = arguments.check_maps(features)
    grad = arguments.check_pooled(grad, rois, maps[0].shape[1:2], spec)
    boxes = arguments.check_boxes([each.shape for each in maps], grad, rois, level, spec)
    serve = maximum.pool_box_grad if KINDS[spec.kind].maximum else box_grad.pool_box_grad
    with _on(grad.device):
        return serve(grad, maps, *boxes)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    if device.type == "cpu":
        return nullcontext()
    return torch.get_device_module(device).device(device)  # type: ignore[no-any-return]


_kernels = operator.Kernels(_Kinds(), PLANAR, _pool, _pool_grad, _pool_box_grad)
pool = partial(operator.call, _kernels)
if _INSTALLED:
    for _device in DEVICES:
        operator.register(_device, _kernels)
