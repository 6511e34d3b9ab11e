"""From tensors to addresses: the calls into the C++ core ``roialign._core``, whose source is ``csrc/``.

The core knows nothing of PyTorch but the addresses it is handed and PyTorch's own thread pool, so that one build serves
every PyTorch. Each call has a twin that only makes its result, for tracing.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..boxes import check_memory, raise_bad_index, too_large

KINDS = {"avg": 0, "max": 1, "integral": 2, "cells": 3}
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3, torch.int64: 4}
MOST_BINS = 2**24  # along one axis: float32 counts no further

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


# The operators. Anybody may call them, with anything: what they make themselves is checked here before it is made, the
# rest by the core, which knows the addresses.


def pool(
    features: list[Tensor], rois: Tensor, level: Tensor | None, kind: str, output_size: list[int], *how: Any
) -> Tensor:
    """Forward. ``how`` is scales (y and x of each map in turn), sampling ratio, aligned."""
    out = _output(features, rois, output_size)
    return pool_into(out, features, rois, level, kind, output_size, *how)


def pool_into(
    out: Tensor,
    features: list[Tensor],
    rois: Tensor,
    level: Tensor | None,
    kind: str,
    output_size: Sequence[int],
    *how: Any,
) -> Tensor:
    """Forward into an output that exists, contiguous or channels_last whatever the maps are."""
    bad = _core.forward(*_call(features, rois, level, kind, out, output_size, how))
    if bad >= 0:
        _raise_bad_row(bad, rois, level, features[0].shape[0], len(features))
    return out


def pool_fake(
    features: list[Tensor], rois: Tensor, level: Tensor | None, kind: str, output_size: Sequence[int], *how: Any
) -> Tensor:
    """An output of the right shape, dtype and layout."""
    out = _output(features, rois, output_size)
    _check_devices(features[0], features, rois, level)
    return out


def _output(features: list[Tensor], rois: Tensor, output_size: Sequence[int]) -> Tensor:
    if not features:
        raise ValueError("features: got no maps; expected at least one")
    first = features[0]
    if first is None or rois is None:
        raise _none("rois" if rois is None else "features[0]")
    if first.dim() != 4:
        raise ValueError(f"features[0]: got a tensor of shape {tuple(first.shape)}; expected [N, C, H, W]")
    if rois.dim() != 2:
        raise ValueError(f"rois: got a tensor of shape {tuple(rois.shape)}; expected [K, 5]")
    if len(output_size) != 2 or not (0 < output_size[0] <= MOST_BINS and 0 < output_size[1] <= MOST_BINS):
        raise ValueError(f"output_size: got {output_size}; expected (height, width), each from 1 to 2**24")
    size = (rois.shape[0], first.shape[1], output_size[0], output_size[1])
    return allocate(size, first, is_channels_last(first))


def allocate(size: tuple[int, int, int, int], like: Tensor, channels_last: bool) -> Tensor:
    """An output of this size, if there is memory for it."""
    try:
        if not channels_last:
            return like.new_empty(size)
        return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    except RuntimeError as error:
        raise too_large(size) from error


def pool_grad(
    grad: Tensor,
    features: list[Tensor],
    shapes: list[int],
    channels_last: bool,
    rois: Tensor,
    level: Tensor | None,
    kind: str,
    output_size: Sequence[int],
    *how: Any,
) -> list[Tensor]:
    """Gradient to the maps, of these shapes. Their values, ``features``, are needed only where a maximum was taken."""
    grads = _input_gradients(grad, shapes, channels_last)
    if rois is None:
        raise _none("rois")
    grad = _dense(grad, (*rois.shape[:1], shapes[1], *output_size))
    targets = tuple([_array(each) for each in grads])
    bad = _core.backward_input(targets, *_call(features, rois, level, kind, grad, output_size, how))
    if bad >= 0:
        _raise_bad_row(bad, rois, level, shapes[0], len(grads))
    return grads


def pool_grad_fake(
    grad: Tensor,
    features: list[Tensor],
    shapes: list[int],
    channels_last: bool,
    rois: Tensor,
    level: Tensor | None,
    *how: Any,
) -> list[Tensor]:
    """Gradients of the right shape, dtype and layout."""
    _check_devices(grad, features, rois, level)
    return _input_gradients(grad, shapes, channels_last)


def _input_gradients(grad: Tensor, shapes: list[int], channels_last: bool) -> list[Tensor]:
    if grad is None:
        raise _none("grad")
    if not shapes or len(shapes) % 4 or any(length < 0 for length in shapes):
        raise ValueError(f"shapes: got {shapes}; expected N, C, H and W, none negative, of each map in turn")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    sizes = [shapes[i : i + 4] for i in range(0, len(shapes), 4)]
    try:
        return [torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=layout) for size in sizes]
    except RuntimeError as error:
        raise ValueError(f"shapes: got {shapes}; expected maps that fit into memory") from error


def pool_box_grad(
    grad: Tensor,
    features: list[Tensor],
    rois: Tensor,
    level: Tensor | None,
    kind: str,
    output_size: Sequence[int],
    *how: Any,
) -> Tensor:
    """Gradient to the rois, ``[K, 5]``; that of the batch index is 0."""
    if rois is None or grad is None or not features or features[0] is None:
        raise _none("rois" if rois is None else "grad" if grad is None else "features[0]")
    grad = _dense(grad, (*rois.shape[:1], *features[0].shape[1:2], *output_size))
    call = _call(features, rois, level, kind, grad, output_size, how)
    out = torch.empty(rois.shape, dtype=rois.dtype)
    bad = _core.backward_boxes(out.data_ptr(), *call)
    if bad >= 0:
        _raise_bad_row(bad, rois, level, features[0].shape[0], len(features))
    return out


def pool_box_grad_fake(grad: Tensor, features: list[Tensor], rois: Tensor, level: Tensor | None, *how: Any) -> Tensor:
    """A gradient of the right shape and dtype."""
    _check_devices(grad, features, rois, level)
    return torch.empty_like(rois, memory_format=torch.contiguous_format)


def is_channels_last(tensor: Tensor) -> bool:
    """Channels_last and not also contiguous, as a map of one channel or one cell is."""
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _dense(grad: Tensor, shape: tuple[int, ...]) -> Tensor:
    return grad if grad.dim() == 4 and is_channels_last(grad) else _contiguous("grad", grad, shape)


def _contiguous(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor, contiguous if it has the shape it must have: another, which may be huge, is the core's to refuse."""
    if tensor.is_contiguous() or tensor.shape != shape:
        return tensor
    check_memory(name, tensor)
    return tensor.contiguous()


def _call(
    features: Sequence[Tensor],
    rois: Tensor,
    level: Tensor | None,
    kind: str,
    pooled: Tensor,
    output_size: Sequence[int],
    how: tuple[Any, ...],
) -> tuple[Any, ...]:
    """The arguments of the core's functions; ``pooled`` is the output or its gradient."""
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}; expected one of {', '.join(map(repr, KINDS))}")
    return (
        KINDS[kind],
        tuple([_array(feature) for feature in features]),
        _array(_contiguous("rois", rois, (*rois.shape[:1], 5))),
        None if level is None else _array(_contiguous("level", level, rois.shape[:1])),
        _array(pooled),
        output_size,
        *how,
    )


def _array(tensor: Tensor) -> tuple[Any, ...]:
    """A tensor as the core takes it: address, bytes from there on, dtype, shape, strides, and itself to stay alive."""
    if tensor is None:
        raise _none("features")
    address = tensor.data_ptr()
    if not address and tensor._is_zerotensor():  # zeros without memory, which autograd may hand over as a gradient
        tensor = torch.zeros(tensor.shape, dtype=tensor.dtype)
        address = tensor.data_ptr()
    held = tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.itemsize
    return address, held, DTYPES.get(tensor.dtype, -1), tensor.shape, tensor.stride(), tensor


def _none(name: str) -> TypeError:
    """For None in the place of a tensor, which PyTorch lets pass."""
    return TypeError(f"{name}: got None; expected a tensor")


def _check_devices(first: Tensor, features: list[Tensor], rois: Tensor, level: Tensor | None) -> None:
    named = [(f"features[{i}]", feature) for i, feature in enumerate(features)]
    for name, tensor in (*named, ("rois", rois), ("level", level)):
        if tensor is not None and tensor.device != first.device:
            raise ValueError(f"{name}: got a tensor on {tensor.device}; expected one on {first.device}, as the others")


def _raise_bad_row(row: int, rois: Tensor, level: Tensor | None, images: int, levels: int) -> None:
    """Name what is wrong with the first row whose level or image does not exist."""
    if level is not None and not 0 <= int(level[row]) < levels:
        raise IndexError(f"level: row {row} has level {int(level[row])}; expected a whole number in [0, {levels})")
    raise_bad_index(row, float(rois[row, 0]), images)
