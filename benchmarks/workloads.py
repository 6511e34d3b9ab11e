"""On what we time: every workload, and the maps and boxes it stands for."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .directions import Mode

SEED = 0


@dataclass(frozen=True)
class Workload:
    """Maps of one image, boxes on it and the operator's arguments.

    Args:
        name: unique.
        group: ``"six"`` for those that the headline numbers are of, ``"pyramid"``, ``"crowded"``, ``"tiny"`` or
            ``"series"``.
        channels: of each map.
        maps: (height, width, stride) of each map, the finest first; more than one is a pyramid.
        boxes: how many.
        output: bins along each axis.
        ratio: samples per bin along each axis, 0 for adaptive.
        aligned: the operator's argument.
        sides: the shortest and the longest side of a box before it is clipped, in pixels.
        threads: how many; None takes the run's.
        spread: of the boxes' centres, around the middle of the image and as a part of it.
    """

    name: str
    group: str
    channels: int
    maps: tuple[tuple[int, int, int], ...]
    boxes: int
    output: int
    ratio: int
    aligned: bool
    sides: tuple[float, float]
    threads: int | None = None
    spread: float = 1.0

    @property
    def image(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width, stride = self.maps[0]
        return height * stride, width * stride

    def cells(self) -> int:
        """Numbers in all the maps."""
        return self.channels * sum(height * width for height, width, _ in self.maps)

    def pooled(self) -> int:
        """Numbers in the output."""
        return self.boxes * self.channels * self.output**2

    def needs(self, mode: Mode) -> frozenset[str]:
        """What an implementation must be able to do."""
        return mode.needs() | ({"pyramid"} if len(self.maps) > 1 else set())

    def make_boxes(self) -> Tensor:
        """``[K, 4]``: log-uniform side, aspect 0.5 to 2, centres uniform, clipped to the image, the same every time.

        The side is the root of the area; the aspect, width by height, is log-uniform too, so that wide and tall boxes
        are equally many.
        """
        generator = torch.Generator().manual_seed(SEED)
        draw = torch.rand(4, self.boxes, generator=generator, dtype=torch.float64)
        height, width = self.image
        shortest, longest = self.sides
        side = shortest * (longest / shortest) ** draw[0]
        half_width, half_height = side * 2 ** (draw[1] - 0.5) / 2, side * 2 ** (0.5 - draw[1]) / 2
        x, y = (
            (0.5 + (each - 0.5) * self.spread) * length for each, length in zip(draw[2:], (width, height), strict=True)
        )
        left, right = (x - half_width).clamp(min=0), (x + half_width).clamp(max=width)
        top, bottom = (y - half_height).clamp(min=0), (y + half_height).clamp(max=height)
        return torch.stack([left, top, right, bottom], 1).float()


def strides_log2(workload: Workload) -> list[int]:
    """The levels of a pyramid, as its poolers count them."""
    return [int(math.log2(stride)) for _, _, stride in workload.maps]


@dataclass(frozen=True)
class Case:
    """The tensors of a workload, made for one mode.

    Args:
        workload: which.
        mode: how it is called.
        maps: ``[1, C, H, W]`` each.
        rois: ``[K, 5]``, the boxes with the index of their image in front.
        grad: the gradient to the output, ``[K, C, output, output]``, empty where none is needed.
    """

    workload: Workload
    mode: Mode
    maps: list[Tensor]
    rois: Tensor
    grad: Tensor


def make_case(workload: Workload, mode: Mode) -> Case:
    """Draw the tensors, the same every time; values are bfloat16's, so that every dtype pools nearly the same maps."""
    generator = torch.Generator().manual_seed(SEED)
    layout = torch.channels_last if mode.channels_last else torch.contiguous_format

    def normal(*size: int) -> Tensor:
        values = torch.randn(size, generator=generator).bfloat16()
        return values.to(mode.device, mode.dtype).contiguous(memory_format=layout)

    maps = [normal(1, workload.channels, height, width) for height, width, _ in workload.maps]
    boxes = workload.make_boxes().to(mode.device)
    rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], 1)
    grad = torch.empty(0, device=mode.device)
    if mode.part != "forward":
        grad = normal(workload.boxes, workload.channels, workload.output, workload.output)
        for map in maps:
            map.requires_grad_()
        rois.requires_grad_(mode.box_gradient)
    return Case(workload, mode, maps, rois, grad)


P2, P4, P5 = (200, 336, 4), (50, 84, 16), (25, 42, 32)
MASK = (100, 168, 8)

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
TINY = Workload("tiny", "tiny", 8, ((16, 16, 4),), 1, 7, 2, False, (16, 48))


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


WORKLOADS = {workload.name: workload for workload in (*SIX, PYRAMID, CROWDED, TINY, *_series())}
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
