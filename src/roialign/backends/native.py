"""The CPU: from tensors to addresses, and the calls into the C++ core ``roialign._core``, whose source is ``csrc/``.

The core knows nothing of PyTorch but the addresses it is handed and PyTorch's own thread pool, so that one build serves
every PyTorch.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..boxes import raise_bad_index
from ..spec import Call, Pooling, check_kind
from . import operator
from .memory import check_memory, is_channels_last

try:
    from .. import _core

    _missing = ""
    KINDS = _core.KINDS
    DTYPES = {getattr(torch, name): number for name, number in _core.DTYPES.items()}
except ImportError as error:  # built without the core, or for another machine
    _missing = f"the package was built without its C++ core ({error})"
    KINDS, DTYPES = {}, {}


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


def why_not(call: Call) -> str:
    """Empty if the core can serve this call, else the reason why it cannot."""
    input = call.features[0]
    if input.is_meta:
        return ""  # a shape is all there is to it, and the operators know it without the core
    if UNREADY:
        return UNREADY
    if not input.is_cpu:
        return f"the core runs on a CPU; the input is on {input.device}"
    if call.spec.kind not in KINDS:
        return f"the core has no kernel of kind {call.spec.kind!r}"
    return ""


# The kernels. What they make themselves is checked here before it is made, the rest by the core, which knows the
# addresses.


def _pool(features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    return pool_into(operator.make_output(features, rois, spec), features, rois, level, spec)


def pool_grad(
    grad: Tensor,
    features: list[Tensor],
    shapes: list[int],
    channels_last: bool,
    rois: Tensor,
    level: Tensor | None,
    spec: Pooling,
) -> list[Tensor]:
    """Gradient to the maps, see ``operator.Kernels``."""
    grads = operator.make_gradients(grad, shapes, channels_last, spec.rank)
    if rois is None:
        raise operator.none_given("rois")
    grad = _dense(grad, (*rois.shape[:1], spec.pooled_channels(shapes[1]), *spec.output_size))
    targets = tuple([_array(each) for each in grads])
    bad = _core.backward_input(targets, *_arguments(features, rois, level, grad, spec))
    if bad >= 0:
        _raise_bad_row(bad, rois, level, shapes[0], len(grads))
    return grads


def _pool_box_grad(grad: Tensor, features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    if rois is None or grad is None or not features or features[0] is None:
        raise operator.none_given("rois" if rois is None else "grad" if grad is None else "features[0]")
    channels = [spec.pooled_channels(length) for length in features[0].shape[1:2]]
    grad = _dense(grad, (*rois.shape[:1], *channels, *spec.output_size))
    arguments = _arguments(features, rois, level, grad, spec)
    out = torch.empty(rois.shape, dtype=rois.dtype)
    bad = _core.backward_boxes(out.data_ptr(), *arguments)
    if bad >= 0:
        _raise_bad_row(bad, rois, level, features[0].shape[0], len(features))
    return out


def pool_into(out: Tensor, features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    """Forward into an output that exists, contiguous or channels_last whatever the maps are."""
    bad = _core.forward(*_arguments(features, rois, level, out, spec))
    if bad >= 0:
        _raise_bad_row(bad, rois, level, features[0].shape[0], len(features))
    return out


def _dense(grad: Tensor, shape: tuple[int, ...]) -> Tensor:
    return grad if is_channels_last(grad) else _contiguous("grad", grad, shape)


def _contiguous(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor, contiguous if it has the shape it must have: another, which may be huge, is the core's to refuse."""
    if tensor.is_contiguous() or tensor.shape != shape:
        return tensor
    check_memory(name, tensor)
    return tensor.contiguous()


def _arguments(
    features: Sequence[Tensor], rois: Tensor, level: Tensor | None, pooled: Tensor, spec: Pooling
) -> tuple[Any, ...]:
    """Those of the core's functions; ``pooled`` is the output or its gradient."""
    kind, *how = spec
    return (
        KINDS[check_kind(kind)],
        tuple([_array(feature) for feature in features]),
        _array(rois if rois.is_contiguous() else _contiguous("rois", rois, (*rois.shape[:1], spec.columns))),
        None if level is None else _array(_contiguous("level", level, rois.shape[:1])),
        _array(pooled),
        *how,
    )


def _array(tensor: Tensor) -> tuple[Any, ...]:
    """A tensor as the core takes it: address, bytes from there on, dtype, shape, strides, and itself to stay alive."""
    if tensor is None:
        raise operator.none_given("features")
    address = tensor.data_ptr()
    if not address and tensor._is_zerotensor():  # zeros without memory, which autograd may hand over as a gradient
        tensor = torch.zeros(tensor.shape, dtype=tensor.dtype)
        address = tensor.data_ptr()
    held = tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.itemsize
    return address, held, DTYPES.get(tensor.dtype, -1), tensor.shape, tensor.stride(), tensor


def _raise_bad_row(row: int, rois: Tensor, level: Tensor | None, images: int, levels: int) -> None:
    """Name what is wrong with the first row whose level or image does not exist."""
    if level is not None and not 0 <= int(level[row]) < levels:
        raise IndexError(f"level: row {row} has level {int(level[row])}; expected a whole number in [0, {levels})")
    raise_bad_index(row, float(rois[row, 0]), images)


_kernels = operator.Kernels(lambda spec: spec.kind in KINDS and operator.known(spec), _pool, pool_grad, _pool_box_grad)
pool = partial(operator.call, _kernels)
if not UNREADY:
    operator.register("cpu", _kernels)
