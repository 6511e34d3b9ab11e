"""Masks beside torchvision's way: pasting what was found, making what shall be learned, and both one after the other.

python -m benchmarks.masks
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask as coco
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from roialign.detection.mask_heads import mask_targets
from roialign.detection.masks import GRID, INSIDE, decode, encode_all
from roialign.detection.tiles import Found

ROUNDS = 5


def boxes(count: int, width: int, height: int, least: float, most: float) -> Tensor:
    """Log-uniform sides, aspect 0.5 to 2, within the image; a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    side, aspect, x, y = torch.rand(4, count, generator=generator)
    side, aspect = least * (most / least) ** side, 2 ** (2 * aspect - 1)
    sides = torch.stack([side * aspect.sqrt(), side / aspect.sqrt()], 1).minimum(torch.tensor([width, height]))
    corner = torch.stack([x, y], 1) * (torch.tensor([width, height]) - sides)
    return torch.cat([corner, corner + sides], 1)


def torchvisions(found: Found, width: int, height: int) -> list[Any]:
    """One mask after the other, since all together would take count x height x width."""
    assert found.grids is not None
    masks = []
    for grid, box in zip(found.grids, found.boxes, strict=True):
        pasted = paste_masks_in_image(grid[None, None], box[None], (height, width))[0, 0]
        masks.append(coco.encode(np.asfortranarray((pasted >= INSIDE).numpy().astype(np.uint8))))
    return masks


def seconds(calls: list[Callable[[], object]], rounds: int = ROUNDS) -> list[float]:
    """Medians of calls that take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, each in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            each.append(time.perf_counter() - begin)
    return [median(each) for each in times]


def round_trip(side: int, count: int = 60) -> tuple[float, float]:
    """Mean IoU of ellipses in their boxes with what a detector without a fault would draw: torchvision's way, ours."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(2 * side) + 0.5, torch.arange(2 * side) + 0.5, indexing="ij")
    zero, overlaps = torch.zeros(1, dtype=torch.int64), []
    for _ in range(count):
        shape = torch.rand(5, generator=generator)
        middle, radius, turn = side + 4 * shape[:2], side / 2 * (0.6 + 0.4 * shape[2:4]), 3.14 * shape[4]
        u = (x - middle[0]) * turn.cos() + (y - middle[1]) * turn.sin()
        v = (y - middle[1]) * turn.cos() - (x - middle[0]) * turn.sin()
        mask = (u / radius[0]) ** 2 + (v / radius[1]) ** 2 <= 1
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        box = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])[None].float()
        theirs = project_masks_on_boxes(mask[None], box, zero, GRID)[None]
        ours = Found(box, torch.ones(1), zero + 1, mask_targets(mask[None], box, zero))
        drawn = (
            paste_masks_in_image(theirs, box, tuple(mask.shape))[0, 0] >= INSIDE,
            decode(encode_all(ours, *mask.shape)[0]),
        )
        overlaps.append([float((each & mask).sum() / (each | mask).sum()) for each in drawn])
    first, second = np.mean(overlaps, 0).tolist()
    return first, second


def main() -> None:
    """Print a line for each workload."""
    for side in (20, 40, 80, 160):
        overlap = round_trip(side)
        print(
            f"masks about {side} wide, learned and pasted: IoU by torchvision {overlap[0]:.3f}, ours {overlap[1]:.3f}"
        )
    generator = torch.Generator().manual_seed(1)
    for count, width, height in ((100, 1216, 800), (300, 4000, 3000)):
        coarse = torch.rand(count, 1, 7, 7, generator=generator)
        grids = torch.nn.functional.interpolate(coarse, GRID, mode="bilinear")[:, 0]
        found = Found(boxes(count, width, height, 32, 400), torch.ones(count), torch.ones(count).long(), grids)
        calls: list[Callable[[], object]] = [
            partial(torchvisions, found, width, height),
            partial(encode_all, found, width, height),
        ]
        theirs, ours = seconds(calls, 3 if width > 2000 else ROUNDS)
        print(
            f"paste and encode {count} in {width} x {height}: torchvision {1e3 * theirs:.0f} ms, "
            f"ours {1e3 * ours:.1f} ms, {theirs / ours:.0f}x"
        )
    for objects, side, count in ((40, 288, 64), (100, 640, 64)):
        true = boxes(objects, side, side, 30, 150)
        masks = torch.zeros(objects, side, side, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, true.int().tolist(), strict=True):
            mask[y1:y2, x1 : math.ceil((x1 + x2) / 2)] = 1
        owners = torch.randint(objects, (count,), generator=generator)
        proposals = (true[owners] + torch.randn(count, 4, generator=generator) * 3).clamp(0, side)
        calls = [
            partial(project_masks_on_boxes, masks, proposals, owners, GRID),
            partial(mask_targets, masks, proposals, owners),
        ]
        theirs, ours = seconds(calls)
        print(
            f"targets of {count} proposals, {objects} masks of {side} x {side}: torchvision {1e3 * theirs:.1f} ms, "
            f"ours {1e3 * ours:.1f} ms, {theirs / ours:.1f}x"
        )


if __name__ == "__main__":
    main()
