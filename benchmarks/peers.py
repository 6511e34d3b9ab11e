"""Against whom we time: ourselves, and every implementation that there is."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

import roialign
from roialign import backends
from roialign.backends import native, operator
from roialign.boxes import fpn_levels

from .directions import EXTRA_DTYPES, Mode
from .peer import Call, Peer, Pool, TorchPeer, pool_with
from .runtimes import OnnxRuntime, OpenVino
from .workloads import Case, Workload, strides_log2

ON_GPU = frozenset(
    {
        "roi_align",
        "maps",
        "forward",
        "backward",
        "channels_last",
        "float16",
        "bfloat16",
        "pyramid",
        "box_gradient",
        "deterministic",
        "gpu",
    }
)
EVERYTHING = ON_GPU | {
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align_rotated",
    "deform_roi_pool",
    "signals",
    "volumes",
    "reuse_output",
}


class Ours(TorchPeer):
    """This package, as a user calls it; the backend is whichever serves first."""

    name = "roialign"
    can = EVERYTHING - ({"reuse_output"} if native.UNREADY else set())
    backend: ClassVar[str] = ""

    def why_not(self, workload: Workload, mode: Mode) -> str:
        """There is something to time only where there is a gradient."""
        if mode.box_gradient and workload.kind == "ps_cells":
            return "its gradient to the boxes is 0 almost everywhere"
        return super().why_not(workload, mode)

    def pool(self, workload: Workload) -> Pool:
        """Its operator, or ``MultiScaleRoIAlign`` on a pyramid."""
        pool = pool_with(roialign, workload)

        def with_backend(maps: list[Tensor], rois: Tensor) -> Tensor:
            with backends.use(self.backend) if self.backend else nullcontext():
                return pool(maps, rois)

        return with_backend if self.backend else pool

    def prepare(self, case: Case) -> Call:
        """As the mode says."""
        return _into_one_output(case) if case.mode.reuse_output else super().prepare(case)


class OurTriton(Ours):
    """Our kernels on a GPU, also for calls that we leave to torchvision: to find out who is faster."""

    can = ON_GPU
    backend = "triton"


class AsServed(Ours):
    """On a GPU: whoever of our backends serves a call there."""

    name = "as served"
    can = ON_GPU

    def why_not(self, workload: Workload, mode: Mode) -> str:
        """On a CPU that is us."""
        return super().why_not(workload, mode) if mode.device != "cpu" else "that is what is timed"


class Reference(Ours):
    """Our specification in plain PyTorch: the truth, and slow."""

    name = "reference"
    can = EVERYTHING - {"reuse_output"}
    slow = True
    backend = "reference"


class Torchvision(TorchPeer):
    """``torchvision.ops``."""

    name = "torchvision"
    can = frozenset(
        {
            "roi_align",
            "ps_roi_align",
            "ps_roi_pool",
            "signals",
            "maps",
            "forward",
            "backward",
            "channels_last",
            "float16",
            "pyramid",
            "deterministic",
            "gpu",
        }
    )
    packages = ("torchvision",)

    def pool(self, workload: Workload) -> Pool:
        """Its operator, or ``MultiScaleRoIAlign`` on a pyramid; of a signal, that of a map of one row."""
        library = importlib.import_module("torchvision.ops")
        pool = _pool_of_one_row(library.roi_align, workload) if workload.rank == 1 else pool_with(library, workload)
        # It wants the boxes in the map's dtype.
        return lambda maps, rois: pool(maps, rois.to(maps[0].dtype))


class Autocast(Torchvision):
    """torchvision on half precision as models call it: within autocast it pools in float32."""

    name = "torchvision, autocast"
    can = Torchvision.can | {"bfloat16"}

    def why_not(self, workload: Workload, mode: Mode) -> str:
        """It is another only in half precision, which a CPU is not asked for."""
        if mode.device == "cpu" or mode.dtype not in EXTRA_DTYPES:
            return "autocast changes nothing here"
        return super().why_not(workload, mode)

    def pool(self, workload: Workload) -> Pool:
        """The same in autocast."""
        pool = pool_with(importlib.import_module("torchvision.ops"), workload)

        def in_autocast(maps: list[Tensor], rois: Tensor) -> Tensor:
            with torch.autocast(maps[0].device.type, maps[0].dtype):
                return pool(maps, rois)

        return in_autocast


class Mmcv(TorchPeer):
    """``mmcv.ops`` where it was built with its operators; of bins that move it has no kernel for a CPU."""

    name = "mmcv"
    can = frozenset({"roi_align_rotated", "maps", "forward", "backward"})
    packages = ("mmcv",)

    def pool(self, workload: Workload) -> Pool:
        """It takes arguments by place only: the last two are ``aligned`` and ``clockwise``."""
        pool, scale = importlib.import_module("mmcv.ops").roi_align_rotated, 1 / workload.maps[0].stride
        size, ratio, aligned = (workload.output,) * 2, workload.ratio, workload.aligned
        return lambda maps, rois: pool(maps[0], rois, size, scale, ratio, aligned, False)


class Upright(Ours):
    """Our ``roi_align`` of the same boxes, not rotated and with no bin moved: what the angle and the offsets cost."""

    name = "our roi_align"
    can = frozenset(
        {
            "roi_align_rotated",
            "deform_roi_pool",
            "maps",
            "forward",
            "backward",
            "channels_last",
            "float16",
            "bfloat16",
        }
    )

    def eased(self, case: Case) -> Case:
        """Of angle 0, of offsets 0."""
        rois = case.rois.detach().clone()
        rois[:, 5:] = 0
        return replace(case, rois=rois)

    def prepare(self, case: Case) -> Call:
        """As the mode says."""
        index, first, second = case.rois[:, :5].split([1, 2, 2], 1)
        if case.workload.kind == "rotated":  # centre and size
            first, second = first - second / 2, first + second / 2
        rois = torch.cat([index, first, second], 1)
        return super().prepare(replace(case, workload=replace(case.workload, kind="avg", aligned=True), rois=rois))


class GridSample(TorchPeer):
    """What there is for volumes without us: all samples of a box by ``grid_sample``, then their means, box by box.

    Only of boxes within the image, with half a cell's shift: then no sample is further out than the border's padding
    is right for.
    """

    name = "grid_sample"
    can = frozenset({"roi_align", "volumes", "forward", "backward"})

    def pool(self, workload: Workload) -> Pool:
        """The positions are those of ``roi_align``, in float64 up to where ``grid_sample`` wants them."""
        stride, count = workload.maps[0].stride, workload.output * workload.ratio

        def pool(maps: list[Tensor], rois: Tensor) -> Tensor:
            (map,) = maps
            part = (torch.arange(count, dtype=torch.float64) + 0.5) / count
            last = torch.tensor(map.shape[:1:-1])[:, None] - 1  # x first, as in boxes
            lower, upper = (corner[..., None] / stride - 0.5 for corner in rois[:, 1:].double().split(3, 1))
            positions = ((lower + (upper - lower) * part) * 2 / last - 1).to(map.dtype)
            means = []
            for x, y, z in positions:
                at = torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1], -1)[None]
                samples = functional.grid_sample(map, at, padding_mode="border", align_corners=True)
                means.append(functional.avg_pool3d(samples, workload.ratio))
            return torch.cat(means)

        return pool


OURS, TRITON = Ours(), OurTriton()
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Torchvision(),
        Autocast(),
        AsServed(),
        OnnxRuntime(),
        OpenVino(),
        Mmcv(),
        GridSample(),
        Upright(),
        Reference(),
    )
}


def ours_on(device: str) -> Ours:
    """What is timed as ours."""
    return OURS if device == "cpu" else TRITON


def _pool_of_one_row(roi_align: Callable[..., Tensor], workload: Workload) -> Pool:
    """What there is for signals without us: ``roi_align`` of a map of one row, in the middle of which each box lies."""
    (_, stride), output, ratio = workload.maps[0], workload.output, workload.ratio

    def pool(maps: list[Tensor], rois: Tensor) -> Tensor:
        index, left, right = rois.unbind(1)
        rows = torch.stack([index, left, torch.zeros_like(left), right, torch.full_like(right, stride)], 1)
        return roi_align(maps[0][:, :, None], rows, (1, output), 1 / stride, ratio, workload.aligned)[:, :, 0]

    return pool


def _into_one_output(case: Case) -> Call:
    """Our forward into one output, which no public function offers."""
    workload, maps, rois = case.workload, case.maps, case.rois
    level = None
    if len(maps) > 1:
        level = fpn_levels([rois[:, 1:]], strides_log2(workload), 224, 4)
    spec = workload.pooling()
    out = operator.make_output(maps, rois, spec)
    return lambda: (native.pool_into(out, maps, rois, level, spec),)
