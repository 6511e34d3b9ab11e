"""On what we time: every workload, and the maps and boxes it stands for."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from roialign.spec import KINDS, Pooling

from .directions import Mode

SEED = 0


class Map(NamedTuple):
    """A feature map.

    Attributes:
        size: cells along each axis: (length,), (height, width) or (depth, height, width).
        stride: pixels of the image per cell.
    """

    size: tuple[int, ...]
    stride: int


@dataclass(frozen=True)
class Workload:
    """Maps of one image, boxes on it and the operator's arguments.

    Args:
        name: unique.
        group: ``"six"`` for those that the headline numbers are of, ``"pyramid"``, ``"crowded"``, ``"tiny"``,
            ``"series"``, or one of ``directions.FAMILY_GROUPS``.
        channels: of each map.
        maps: the finest first; more than one is a pyramid.
        boxes: how many.
        output: bins along each axis.
        ratio: samples per bin along each axis, 0 for adaptive.
        aligned: the operator's argument.
        sides: the shortest and the longest side of a box before it is clipped, in pixels.
        threads: how many; None takes the run's.
        spread: of the boxes' centres, around the middle of the image and as a part of it.
        kind: of pooling, by its name in ``roialign.spec.KINDS``.
    """

    name: str
    group: str
    channels: int
    maps: tuple[Map, ...]
    boxes: int
    output: int
    ratio: int
    aligned: bool
    sides: tuple[float, float]
    threads: int | None = None
    spread: float = 1.0
    kind: str = "avg"

    @property
    def rank(self) -> int:
        """How many axes a map has behind N and C."""
        return len(self.maps[0].size)

    @property
    def image(self) -> tuple[int, ...]:
        """Pixels along each axis of the map, (height, width) of ``[N, C, H, W]``."""
        size, stride = self.maps[0]
        return tuple(length * stride for length in size)

    def pooling(self) -> Pooling:
        """As the kernels take it."""
        scales = [1 / map.stride for map in self.maps for _ in map.size]
        samples = (self.ratio, self.aligned) if KINDS[self.kind].samples else ()
        return Pooling(self.kind, (self.output,) * self.rank, scales, *samples)

    def cells(self) -> int:
        """Numbers in all the maps."""
        return self.channels * sum(math.prod(map.size) for map in self.maps)

    def pooled_size(self) -> tuple[int, ...]:
        """The output's."""
        spec = self.pooling()
        return self.boxes, spec.pooled_channels(self.channels), *spec.output_size

    def pooled(self) -> int:
        """Numbers in the output."""
        return math.prod(self.pooled_size())

    def needs(self, mode: Mode) -> frozenset[str]:
        """What an implementation must be able to do."""
        of_rank = {1: "signals", 2: "maps", 3: "volumes"}[self.rank]
        return mode.needs() | {KINDS[self.kind].operator, of_rank} | ({"pyramid"} if len(self.maps) > 1 else set())

    def make_boxes(self) -> Tensor:
        """``[K, 2 * rank]``: both corners, x first, the same every time.

        A box's side is log-uniform and its centre uniform; it is clipped to the image. The side is the root of the
        area (of the volume); by how much each axis differs from it is log-uniform too and the last axis makes up for
        the others: of two axes the aspect is 0.5 to 2, and wide and tall boxes are equally many.
        """
        rank = self.rank
        draw = torch.rand(2 * rank, self.boxes, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
        shortest, longest = self.sides
        stretch = draw[1:rank] - 0.5
        stretch = torch.cat([stretch, -stretch.sum(0, keepdim=True)])
        half = shortest * (longest / shortest) ** draw[0] * 2**stretch / 2
        length = torch.tensor(self.image[::-1], dtype=torch.float64)[:, None]
        centre = (0.5 + (draw[rank:] - 0.5) * self.spread) * length
        corners = (centre - half).clamp(min=0), (centre + half).clamp(max=length)
        return torch.cat(corners).T.float().contiguous()

    def make_rois(self) -> Tensor:
        """The boxes as rows that the kernels take: the index of their image, which is 0, in front.

        Rotated are the same boxes, by their centre, size and a uniform angle in radians; they may leave the image.
        Where bins move, the offset of each is behind, normal with a tenth of the box's size for its deviation.
        """
        boxes, box = self.make_boxes(), KINDS[self.kind].box
        generator = torch.Generator().manual_seed(SEED)
        parts = [boxes]
        if box == "rotated":
            low, high = boxes.chunk(2, 1)
            parts = [(low + high) / 2, high - low, math.pi * (2 * torch.rand(self.boxes, 1, generator=generator) - 1)]
        elif box == "moved":
            parts.append(0.1 * torch.randn(self.boxes, 2 * self.output**2, generator=generator))
        return torch.cat([boxes.new_zeros(self.boxes, 1), *parts], 1)


def strides_log2(workload: Workload) -> list[int]:
    """The levels of a pyramid, as its poolers count them."""
    return [int(math.log2(map.stride)) for map in workload.maps]


@dataclass(frozen=True)
class Case:
    """The tensors of a workload, made for one mode.

    Args:
        workload: which.
        mode: how it is called.
        maps: ``[1, C, H, W]`` each, or of rank 1 or 3.
        rois: ``[K, columns]``, as ``Workload.make_rois`` says.
        grad: the gradient to the output, empty where none is needed.
    """

    workload: Workload
    mode: Mode
    maps: list[Tensor]
    rois: Tensor
    grad: Tensor


def make_case(workload: Workload, mode: Mode) -> Case:
    """Draw the tensors, the same every time; values are bfloat16's, so that every dtype pools nearly the same maps."""
    generator = torch.Generator().manual_seed(SEED)

    def normal(*size: int) -> Tensor:
        values = torch.randn(size, generator=generator).bfloat16().to(mode.device, mode.dtype)
        return values.movedim(1, -1).contiguous().movedim(-1, 1) if mode.channels_last else values  # of any rank

    maps = [normal(1, workload.channels, *map.size) for map in workload.maps]
    rois = workload.make_rois().to(mode.device)
    grad = torch.empty(0, device=mode.device)
    if mode.part != "forward":
        grad = normal(*workload.pooled_size())
        for map in maps:
            map.requires_grad_()
        rois.requires_grad_(mode.box_gradient)
    return Case(workload, mode, maps, rois, grad)


P2, P4, P5 = Map((200, 336), 4), Map((50, 84), 16), Map((25, 42), 32)
MASK = Map((100, 168), 8)

SIX = (
    Workload("fpn_p2", "six", 256, (P2,), 1000, 7, 2, False, (16, 112)),
    Workload("fpn_p4", "six", 256, (P4,), 1000, 7, 2, False, (112, 448)),
    Workload("fpn_p2_adaptive", "six", 256, (P2,), 1000, 7, 0, True, (16, 112)),
    Workload("c4_adaptive", "six", 1024, (P4,), 300, 14, 0, True, (32, 600)),
    Workload("mobilenet", "six", 1280, (P5,), 1000, 7, 2, False, (32, 600)),
    Workload("mask", "six", 256, (MASK,), 100, 14, 2, False, (56, 224)),
)
# The levels that a ResNet-50-FPN makes of an 800 x 1344 image; MultiScaleRoIAlign pools each box from one of them.
PYRAMID = Workload("resnet50_fpn", "pyramid", 256, (P2, MASK, P4, P5), 1000, 7, 2, False, (16, 448))
# What a detector's first stage proposes for one object: nearly the same box a thousand times.
CROWDED = Workload("crowded", "crowded", 256, (P2,), 1000, 7, 2, False, (80, 112), spread=0.01)
TINY = Workload("tiny", "tiny", 8, (Map((16, 16), 4),), 1, 7, 2, False, (16, 48))

# What R-FCN pools: of 7 x 7 bins a score for each of the 20 classes of VOC or the 80 of COCO, and the background.
# torchvision's gradient of ps_roi_pool also goes to the map's last row and column, which nobody reads: there the boxes
# keep off them.
RFCN = Workload(
    "rfcn_voc_align", "position_sensitive", 1029, (Map((38, 63), 16),), 300, 7, 2, True, (32, 600), kind="ps_avg"
)
RFCN_POOL = replace(RFCN, name="rfcn_voc_pool", aligned=False, sides=(32, 256), spread=0.3, kind="ps_cells")
POSITION_SENSITIVE = (
    RFCN,
    replace(RFCN, name="rfcn_coco_align", channels=3969),
    RFCN_POOL,
    replace(RFCN_POOL, name="rfcn_coco_pool", channels=3969),
)
# Boxes of 12 to 16 cells; the second is the same but for the angle, which is none, and the bins, which move.
ROTATED = Workload("rotated", "rotated", 256, (Map((64, 64), 8),), 512, 7, 2, True, (96, 128), kind="rotated")
DEFORMABLE = replace(ROTATED, name="deformable", group="deformable", kind="moved")
# Lesions in a scan, actions in a video.
VOLUMES = Workload("volumes", "volumes", 32, (Map((64, 64, 64), 4),), 200, 7, 2, True, (32, 128))
SIGNALS = Workload("signals", "signals", 256, (Map((4096,), 8),), 200, 7, 2, True, (64, 2048))
FAMILY = (*POSITION_SENSITIVE, ROTATED, DEFORMABLE, VOLUMES, SIGNALS)


def _series() -> list[Workload]:
    """fpn_p2, one thing of it varied."""
    base = replace(SIX[0], group="series")
    threads = [2**i for i in range(int(math.log2(os.cpu_count() or 1)) + 1)]
    return [
        *(replace(base, name=f"boxes_{n}", boxes=n) for n in (1, 10, 100, 1000, 4000)),
        *(replace(base, name=f"channels_{n}", channels=n) for n in (1, 16, 64, 256, 1024)),
        *(replace(base, name=f"side_{n}", sides=(n, n)) for n in (8, 32, 128, 512)),
        *(replace(base, name=f"threads_{n}", threads=n) for n in threads),
    ]


WORKLOADS = {workload.name: workload for workload in (*SIX, PYRAMID, CROWDED, TINY, *FAMILY, *_series())}
GROUPS = tuple(dict.fromkeys(workload.group for workload in WORKLOADS.values()))


def select(names: Sequence[str] = ()) -> list[Workload]:
    """The workloads of these names, or of the groups of these names; without any, all but the series.

    Raises:
        ValueError: there is no such workload or group.
    """
    unknown = [name for name in names if name not in WORKLOADS and name not in GROUPS]
    if unknown:
        raise ValueError(f"workload: got {unknown[0]!r}; expected one of {', '.join((*GROUPS, *WORKLOADS))}")
    wanted = set(names) or set(GROUPS) - {"series"}
    return [workload for workload in WORKLOADS.values() if wanted & {workload.name, workload.group}]
