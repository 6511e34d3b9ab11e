"""From tensors to addresses: the calls into the C++ core ``roialign._core``, whose source is ``csrc/``.

The core knows nothing of PyTorch but the addresses it is handed and PyTorch's own thread pool, so that one build serves
every PyTorch. Each call has a twin that only makes its result, for tracing.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..boxes import raise_bad_index

KINDS = {"avg": 0, "max": 1, "integral": 2, "cells": 3}
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

try:
    from .. import _core

    _missing = ""
except ImportError as error:  # built without the core, or for another machine
    _missing = f"the package was built without its C++ core ({error})"


def _prepare() -> str:
    """Hand PyTorch's thread pool to the core; say what stands in the way, if anything does."""
    if _missing:
        return _missing
    found = [*(Path(torch.__file__).parent / "lib").glob("*torch_cpu.*")]
    library = ctypes.CDLL(str(found[0]) if found else None)
    try:
        pool = [
            ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
            for name in ("torch_parallel_for", "torch_get_num_threads")
        ]
    except AttributeError as error:
        return f"this PyTorch does not export its thread pool ({error})"
    wanted = os.environ.get("ROIALIGN_CPU", "")
    if not _core.choose_kernels(wanted):
        return f"ROIALIGN_CPU={wanted!r}: expected baseline, avx2 or avx512, and a CPU that has it"
    _core.set_thread_pool(pool[0], pool[1])
    return ""


UNREADY = _prepare()


def pool(
    features: list[Tensor], rois: Tensor, level: Tensor | None, kind: str, output_size: list[int], *how: Any
) -> Tensor:
    """Forward. ``how`` is scales (y and x of each map in turn), sampling ratio, aligned."""
    return pool_into(
        pool_fake(features, rois, level, kind, output_size), features, rois, level, kind, output_size, *how
    )


def pool_into(
    out: Tensor,
    features: list[Tensor],
    rois: Tensor,
    level: Tensor | None,
    kind: str,
    output_size: list[int],
    *how: Any,
) -> Tensor:
    """Forward into an output that exists, contiguous or channels_last whatever the maps are."""
    call = _call(rois, level, kind, output_size, how, out)
    _check_rows(_core.forward(call, _levels(features, how[0], out)), rois, features[0].shape[0])
    return out


def pool_fake(
    features: list[Tensor], rois: Tensor, level: Tensor | None, kind: str, output_size: list[int], *how: Any
) -> Tensor:
    """An output of the right shape, dtype and layout."""
    first = features[0]
    size = (rois.shape[0], first.shape[1], output_size[0], output_size[1])
    if is_channels_last(first):
        return torch.empty(size, dtype=first.dtype, device=first.device, memory_format=torch.channels_last)
    return first.new_empty(size)


def pool_grad(
    grad: Tensor,
    features: list[Tensor],
    shapes: list[int],
    channels_last: bool,
    rois: Tensor,
    level: Tensor | None,
    kind: str,
    output_size: list[int],
    *how: Any,
) -> list[Tensor]:
    """Gradient to the maps, of these shapes. Their values, ``features``, are needed only where a maximum was taken."""
    grads = pool_grad_fake(grad, features, shapes, channels_last)
    grad = _dense(grad)
    call = _call(rois, level, kind, output_size, how, grad)
    targets = _levels(grads, how[0], grad)
    _check_rows(_core.backward_input(call, _levels(features, how[0], grad) or targets, targets), rois, shapes[0])
    return grads


def pool_grad_fake(
    grad: Tensor, features: list[Tensor], shapes: list[int], channels_last: bool, *how: Any
) -> list[Tensor]:
    """Gradients of the right shape, dtype and layout."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    sizes = [shapes[i : i + 4] for i in range(0, len(shapes), 4)]
    return [torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=layout) for size in sizes]


def pool_box_grad(
    grad: Tensor,
    features: list[Tensor],
    rois: Tensor,
    level: Tensor | None,
    kind: str,
    output_size: list[int],
    *how: Any,
) -> Tensor:
    """Gradient to the rois, ``[K, 5]``; that of the batch index is 0."""
    out = torch.empty_like(rois)
    grad = _dense(grad)
    call = _call(rois, level, kind, output_size, how, grad)
    bad = _core.backward_boxes(call, _levels(features, how[0], grad), out.data_ptr())
    _check_rows(bad, rois, features[0].shape[0])
    return out


def pool_box_grad_fake(grad: Tensor, features: list[Tensor], rois: Tensor, *how: Any) -> Tensor:
    """A gradient of the right shape and dtype."""
    return torch.empty_like(rois)


def is_channels_last(tensor: Tensor) -> bool:
    """Channels_last and not also contiguous, as a map of one channel or one cell is."""
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _dense(tensor: Tensor) -> Tensor:
    return tensor if is_channels_last(tensor) else tensor.contiguous()


def _call(
    rois: Tensor, level: Tensor | None, kind: str, size: list[int], how: tuple[Any, ...], pooled: Tensor
) -> tuple[Any, ...]:
    """What the core needs to know beside the maps; ``pooled`` is the output or its gradient.

    ``roialign.functional`` hands over nothing unfit; the checks guard the operators themselves, which anyone may call.
    """
    boxes = rois.shape[0]
    if (
        rois.shape[1:] != (5,)
        or rois.dtype not in (torch.float32, torch.float64)
        or not rois.is_contiguous()
        or (level is not None and (level.shape != (boxes,) or level.dtype != torch.int64 or not level.is_contiguous()))
        or pooled.shape[0] != boxes
        or tuple(pooled.shape[2:]) != tuple(size)
    ):
        raise ValueError("roialign: rois, level or pooled tensor unfit for the operator; call the public functions")
    return (
        KINDS[kind], DTYPES[pooled.dtype], rois.data_ptr(), rois.dtype == torch.float64, boxes,
        0 if level is None else level.data_ptr(), size[0], size[1], how[1], how[2],
        pooled.data_ptr(), is_channels_last(pooled),
    )  # fmt: skip


def _levels(maps: list[Tensor], scales: list[float], pooled: Tensor) -> tuple[tuple[Any, ...], ...]:
    """Address, sizes, strides and scales of each map."""
    levels = []
    for i, map in enumerate(maps):
        if (
            map.dim() != 4
            or map.dtype != pooled.dtype
            or map.shape[1] != pooled.shape[1]
            or len(scales) != 2 * len(maps)
        ):
            raise ValueError("roialign: maps, scales and pooled tensor do not go together; call the public functions")
        levels.append((map.data_ptr(), *map.shape, *map.stride(), scales[2 * i], scales[2 * i + 1]))
    return tuple(levels)


def _check_rows(bad_row: int, rois: Tensor, images: int) -> None:
    if bad_row >= 0:
        raise_bad_index(bad_row, float(rois[bad_row, 0]), images)
