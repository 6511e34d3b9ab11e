"""Which backend serves a call, and why another cannot: the one place where a call falls through to the next.

A backend is a module with the two functions of :class:`Backend`. Each is imported when it is first asked.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from ..boxes import Boxes, as_rois, check_boxes
from ..spec import KINDS, Call, Pooling
from . import operator, tracing


class Backend(Protocol):
    """What a backend's module offers."""

    def why_not(self, call: Call) -> str:
        """Empty if the backend can serve the call, else the reason why it cannot."""

    def pool(self, features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
        """Pool from one feature map, or each box from the map of its level, as :class:`Call` describes them."""


# The first that can serve a call does.
ORDER = (
    "native",  # CPU
    "triton",  # CUDA, ROCm, XPU, whatever Triton drives
    "torchvision",  # CUDA, XPU, MPS, where torchvision is installed
    "reference",  # any device, any call
)
# Where a kernel in Triton was measured slower than torchvision's, as the gradient of RoIPool was, or not yet at all
# (docs/gpu.md), what torchvision can pool rightly stays with it.
LATER = dict.fromkeys(("cells", "ps_avg", "ps_cells"), ("native", "torchvision", "triton", "reference"))


class Availability(NamedTuple):
    """Whether a backend can serve, and if not, why; and what else should be known of it."""

    ready: bool
    reason: str
    note: str = ""


class _Forced:
    """A wish for one backend, or none, as long as it is in ``_forced``."""

    def __init__(self, name: str | None) -> None:
        self.name = name


# The wishes of the whole process, read when a call is traced; the last one counts. Blocks of several threads end in any
# order, so each takes back its own wish, and none puts back what it found. A tuple, so that whoever reads the last one
# while others come and go finds it: a list may shrink between the look at its length and the look at its end.
_forced: tuple[_Forced, ...] = (_Forced(os.environ.get("ROIALIGN_BACKEND") or None),)
_forcing = threading.Lock()


def available(
    input: Tensor | None = None, boxes: Boxes | None = None, spec: Pooling | None = None
) -> dict[str, Availability]:
    """Say for each backend, in order of preference, whether it can serve a call, and if not, why.

    Args:
        input: the feature map of the call in question; None asks for a float32 map on a CPU.
        boxes: the boxes of the call, as its function takes them: their gradient may be wanted; None for none.
        spec: the pooling; None asks for :func:`roialign.roi_align` with 7 bins along each axis at scale 1.

    Example:
        >>> from roialign import backends
        >>> backends.available()["reference"].ready
        True
    """
    feature = torch.empty(0, 0, 0, 0) if input is None else input
    rank = feature.dim() - 2
    spec = spec or Pooling("avg", (7,) * rank, (1.0,) * rank)
    columns = KINDS[spec.kind].columns(rank)
    if boxes is not None:
        check_boxes(feature, boxes, columns)
    rois = feature.new_empty(0, columns) if boxes is None else as_rois(feature, boxes, columns)
    call = Call([feature], rois, None, spec)
    found = {}
    for name in LATER.get(spec.kind, ORDER):
        backend = load(name)
        reason = backend.why_not(call)
        found[name] = Availability(not reason, reason, getattr(backend, "NOTE", ""))
    return found


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force one backend for every call inside the block, in all threads.

    Of blocks in several threads at once, the one entered last counts, for all threads. The environment variable
    ``ROIALIGN_BACKEND`` forces one from the start.

    Example:
        >>> import torch
        >>> from roialign import backends, roi_align
        >>> with backends.use("reference"):
        ...     roi_align(torch.ones(1, 1, 4, 4), [torch.tensor([[0.0, 0.0, 2.0, 2.0]])], 1)
        tensor([[[[1.]]]])
    """
    global _forced
    _check_name(name)
    mine = _Forced(name)
    with _forcing:
        _forced = (*_forced, mine)
    try:
        yield
    finally:
        with _forcing:
            _forced = tuple(each for each in _forced if each is not mine)


def pool(features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    """Let the backend that serves the call pool.

    Raises:
        RuntimeError: a backend is forced and cannot serve the call.
        ValueError: the forced backend does not exist.
    """
    if tracing.records_torchscript():  # the operator: the graph that is recorded runs it on whatever device it meets
        return operator.DISPATCHED.pool(features, rois, level, spec)
    call = Call(features, rois, level, spec)
    return load(choose(call)).pool(*call)


def choose(call: Call) -> str:
    """The name of the backend that serves a call; raises as :func:`pool` does."""
    forced = _forced[-1].name
    if forced is not None:
        _check_name(forced)
        reason = load(forced).why_not(call)
        if reason:
            raise RuntimeError(f"backend {forced!r} is forced and cannot serve this call: {reason}")
        return forced
    for name in LATER.get(call.spec.kind, ORDER):  # a loop: a generator would cost a tiny call a microsecond
        if not load(name).why_not(call):
            return name
    raise AssertionError("the reference serves every call")


def load(name: str) -> Backend:
    """A backend by its name."""
    if name not in _loaded:
        _loaded[name] = cast(Backend, import_module(f".{name}", __name__))
    return _loaded[name]


_loaded: dict[str, Backend] = {}
load("native")  # now: its kernels also run graphs that were recorded elsewhere
load("triton")  # likewise; it imports Triton when it is first needed
load("reference")  # now: code that is traced imports nothing


def _check_name(name: str) -> None:
    if name not in ORDER:
        raise ValueError(f"backend: got {name!r}; expected one of {list(ORDER)}")
