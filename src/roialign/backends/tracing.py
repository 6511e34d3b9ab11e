"""Who is watching a call: the one place that asks PyTorch.

An eager call may skip the dispatcher, which costs more than a small pooling does, only where nobody stands in it: no
tracer, exporter, transform, dispatch mode or profiler, and no tensor that is other than it seems. They all show in the
dispatch keys, those that the thread carries and those of the tensors, so no list of recorders is kept here: what is not
known to be plain is watched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet, _functorch
from torch.autograd import forward_ad

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _not_plain() -> int:
    """Every dispatch key but those of an ordinary tensor in an ordinary thread, on a device that backends have kernels
    for. Autocast's rules are not for us."""
    plain = DispatchKeySet(DispatchKey.ADInplaceOrView).add(DispatchKey.BackendSelect)
    for device in ("CPU", "CUDA", "XPU"):
        for key in (device, f"Autograd{device}", f"Autocast{device}"):
            plain = plain.add(getattr(DispatchKey, key))
    return ~plain.raw_repr()


_NOT_PLAIN = _not_plain()
_repeated = threading.local()


def watched(*tensors: Tensor) -> bool:
    """Whether anything but plain eager autograd wants to see the operator itself."""
    if torch.compiler.is_compiling():
        return True
    keys = torch._C._dispatch_tls_local_include_set().raw_repr()
    for tensor in tensors:  # a loop, because a generator would cost as much as all the rest
        keys |= torch._C._dispatch_keys(tensor).raw_repr()
    return keys & _NOT_PLAIN != 0 or torch._C._autograd._profiler_enabled()


def hides_values(*tensors: Tensor) -> bool:
    """Whether values cannot be asked for, or must not decide: they are not there, or a graph outlives them."""
    if torch.compiler.is_compiling():
        return True
    if getattr(_repeated, "now", False):
        return False
    return torch._C._dispatch_tls_local_include_set().raw_repr() & _NOT_PLAIN != 0 or any(
        type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_meta for tensor in tensors
    )


@contextmanager
def values_seen() -> Iterator[None]:
    """Inside, ``hides_values`` is False: what saw values is done again in a backward pass, whoever watches that."""
    before = getattr(_repeated, "now", False)
    _repeated.now = True
    try:
        yield
    finally:
        _repeated.now = before


def any_requires_grad(*tensors: Tensor) -> bool:
    """Whether autograd wants to know of any of them."""
    return torch._C._any_requires_grad(*tensors)


def records_torchscript() -> bool:
    """Inside ``torch.jit.trace``, and so in the ONNX exporter that is built on it."""
    return not torch.compiler.is_compiling() and torch._C._is_tracing()


def transforms() -> bool:
    """Inside a transform of ``torch.func``."""
    return torch._C._are_functorch_transforms_active()


def batches(grad: Tensor) -> bool:
    """Whether a gradient is many at once, by ``torch.func`` or by ``torch.autograd.grad(is_grads_batched=True)``."""
    return transforms() or _functorch.is_legacy_batchedtensor(grad)


def differentiates_forward() -> bool:
    """Inside forward-mode AD or a transform of ``torch.func`` other than vmap."""
    if torch.compiler.is_compiling():
        return False
    if forward_ad._current_level >= 0:
        return True
    if not transforms():
        return False
    stack = _functorch.get_interpreter_stack() or []
    return any(layer.key() != _functorch.TransformType.Vmap for layer in stack)


def unrecorded(check: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
    """Call what only looks: while ``torch.jit.trace`` records, sizes would be tensors and every question a warning."""
    if not records_torchscript():
        return check(*args, **kwargs)
    state = torch._C._get_tracing_state()
    set_state = torch._C._set_tracing_state  # type: ignore[attr-defined]
    set_state(None)
    try:
        return check(*args, **kwargs)
    finally:
        set_state(state)
