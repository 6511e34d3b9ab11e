"""Which backend serves a call, and why another cannot.

A backend is a module with the functions of :class:`Backend`. ``features`` is one ``[N, C, H, W]`` map or several (a
pyramid), ``scales`` their (y, x) scales, ``level`` the ``[K]`` index of each box's map (None with one map). Arguments
come checked: ``rois`` is what ``boxes.as_rois`` returns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import operator, reference, torchvision, tracing

Scales = tuple[float, float]


class Backend(Protocol):
    """What a backend's module offers."""

    def why_not(self, input: Tensor) -> str:
        """Empty if the backend can serve calls on such a feature map, else the reason why it cannot."""

    def roi_align(
        self,
        features: Sequence[Tensor],
        rois: Tensor,
        level: Tensor | None,
        output_size: tuple[int, int],
        scales: Sequence[tuple[float, float]],
        sampling_ratio: int,
        aligned: bool,
        mode: str,
    ) -> Tensor:
        """Pool from one feature map, or each box from the map of its level."""

    def prroi_pool(self, input: Tensor, rois: Tensor, output_size: tuple[int, int], scales: Scales) -> Tensor:
        """Pool by exact integration."""

    def roi_pool(self, input: Tensor, rois: Tensor, output_size: tuple[int, int], scales: Scales) -> Tensor:
        """Pool by the maximum over whole cells."""


# The first that can serve a call does.
ORDER: dict[str, Backend] = {
    "native": operator,  # CPU
    "torchvision": torchvision,  # CUDA, XPU, MPS, where torchvision is installed
    "reference": reference,  # any device
}


class Availability(NamedTuple):
    """Whether a backend can serve, and if not, why."""

    ready: bool
    reason: str


class _Forced:
    """The backend that every call must use, if any. One slot for the whole process, read when a call is traced."""

    name: str | None = os.environ.get("ROIALIGN_BACKEND") or None


def available(input: Tensor | None = None) -> dict[str, Availability]:
    """Say for each backend, in order of preference, whether it can serve a call, and if not, why.

    Args:
        input: the feature map of the call in question; None asks for a float32 map on a CPU.

    Example:
        >>> from roialign import backends
        >>> backends.available()["reference"].ready
        True
    """
    probe = torch.empty(0, 0, 0, 0) if input is None else input
    reasons = {name: backend.why_not(probe) for name, backend in ORDER.items()}
    return {name: Availability(not reason, reason) for name, reason in reasons.items()}


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force one backend for every call inside the block, in all threads.

    The environment variable ``ROIALIGN_BACKEND`` forces one from the start.

    Example:
        >>> import torch
        >>> from roialign import backends, roi_align
        >>> with backends.use("reference"):
        ...     roi_align(torch.ones(1, 1, 4, 4), [torch.tensor([[0.0, 0.0, 2.0, 2.0]])], 1)
        tensor([[[[1.]]]])
    """
    _known(name)
    previous, _Forced.name = _Forced.name, name
    try:
        yield
    finally:
        _Forced.name = previous


def choose(input: Tensor) -> Backend:
    """The backend that serves a call on this feature map.

    Raises:
        RuntimeError: a backend is forced and cannot serve the call.
        ValueError: the forced backend does not exist.
    """
    if tracing.records_torchscript():
        return operator  # the operator: the graph that is recorded runs it on whatever device it meets
    if _Forced.name is not None:
        backend = _known(_Forced.name)
        reason = backend.why_not(input)
        if reason:
            raise RuntimeError(f"backend {_Forced.name!r} is forced and cannot serve this call: {reason}")
        return backend
    return next(backend for backend in ORDER.values() if not backend.why_not(input))


def _known(name: str) -> Backend:
    if name not in ORDER:
        raise ValueError(f"backend: got {name!r}; expected one of {list(ORDER)}")
    return ORDER[name]
