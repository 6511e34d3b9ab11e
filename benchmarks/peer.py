"""What an implementation is to us: one small interface."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor

from roialign.spec import KINDS

from .directions import Mode
from .workloads import Case, Workload

Call = Callable[[], tuple[Tensor, ...]]
Pool = Callable[[list[Tensor], Tensor], Tensor]


class Peer:
    """An implementation: what it is called, what it can do, and how it does it."""

    name: ClassVar[str]
    can: ClassVar[frozenset[str]]
    slow: ClassVar[bool] = False  # timed only when it is asked for
    packages: ClassVar[tuple[str, ...]] = ()

    def not_installed(self) -> str:
        """Empty if it is installed, else what is missing."""
        missing = [package for package in self.packages if find_spec(package) is None]
        return f"{missing[0]} is not installed" if missing else ""

    def why_not(self, workload: Workload, mode: Mode) -> str:
        """Empty if it can do this, else what is in the way."""
        lacking = ", ".join(sorted(workload.needs(mode) - self.can))
        return f"cannot do {lacking}" if lacking else self.not_installed()

    def eased(self, case: Case) -> Case:
        """What it computes of a case: the case, but where it is there to show what something in it costs.

        Then it is compared with us on what is left.
        """
        return case

    def prepare(self, case: Case) -> Call:
        """Do what need not be timed; what is returned does the rest and gives the output, or the gradients."""
        raise NotImplementedError


class TorchPeer(Peer):
    """An implementation that is a differentiable function of tensors."""

    def pool(self, workload: Workload) -> Pool:
        """The function of maps and rois."""
        raise NotImplementedError

    def prepare(self, case: Case) -> Call:
        """As the mode says."""
        call = self._prepare(case)
        return _deterministically(call) if case.mode.deterministic else call

    def _prepare(self, case: Case) -> Call:
        pool, maps, rois = self.pool(case.workload), case.maps, case.rois
        if case.mode.part == "forward":
            return lambda: (pool(maps, rois),)
        wanted = [*maps, *([rois] if case.mode.box_gradient else [])]
        if case.mode.part == "step":
            return lambda: torch.autograd.grad(pool(maps, rois), wanted, case.grad)
        pooled = pool(maps, rois)
        return lambda: torch.autograd.grad(pooled, wanted, case.grad, retain_graph=True)


def _deterministically(call: Call) -> Call:
    def in_mode() -> tuple[Tensor, ...]:
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            return call()
        finally:
            torch.use_deterministic_algorithms(before)

    return in_mode


def pool_with(library: Any, workload: Workload) -> Pool:
    """The function of a library that names things as torchvision does; what torchvision lacks, as we do."""
    output, ratio, scale = workload.output, workload.ratio, 1 / workload.maps[0].stride
    if len(workload.maps) > 1:
        names = [str(level) for level in range(len(workload.maps))]
        pooler, shapes = library.MultiScaleRoIAlign(names, output, ratio), [workload.image]
        return lambda maps, rois: pooler(dict(zip(names, maps, strict=True)), [rois[:, 1:]], shapes)
    operator = KINDS[workload.kind].operator
    pool, aligned = getattr(library, operator), workload.aligned
    pools: dict[str, Pool] = {
        "roi_align": lambda maps, rois: pool(maps[0], rois, output, scale, ratio, aligned),
        "ps_roi_align": lambda maps, rois: pool(maps[0], rois, output, scale, ratio),
        "ps_roi_pool": lambda maps, rois: pool(maps[0], rois, output, scale),
        "roi_align_rotated": lambda maps, rois: pool(maps[0], rois, output, scale, ratio, unit="radians"),
        "deform_roi_pool": lambda maps, rois: pool(
            maps[0], rois[:, :5], rois[:, 5:].unflatten(1, (2, output, output)), output, scale, ratio, gamma=1.0
        ),
    }
    return pools[operator]
