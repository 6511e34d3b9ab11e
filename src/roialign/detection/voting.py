"""Test-time augmentation: an image is looked at in several ways, and the boxes that are found vote.

Box voting is by Gidaris and Komodakis, "Object detection via a multi-region and semantic segmentation-aware CNN model",
https://arxiv.org/abs/1505.01749. That a box's score is the mean over the views, 0 where one lacks it, is as in Solovyev
et al., "Weighted boxes fusion", https://arxiv.org/abs/1910.13302.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import batched_nms, box_iou

from .masks import regrid

# boxes [N, 4], scores [N], labels [N], as torchvision's detectors give them; and of one with masks grids [N, G, G]
Boxes = dict[str, Tensor]


class View(NamedTuple):
    """One way to look at an image."""

    mirrored: tuple[int, ...] = ()  # axes of [3, H, W]
    zoom: float = 1


# A training shows images mirrored both ways, too, and zoomed by more.
VIEWS = (View(), View((2,)), View((1,)), View((2,), 0.8), View((2,), 1.25))


def look(model: Callable[[list[Tensor]], list[Boxes]], images: list[Tensor]) -> list[list[Boxes]]:
    """What a detector finds in each of the VIEWS, one after the other, in pixels of the images.

    Args:
        model: the detector.
        images: ``[3, H, W]`` each.

    Returns:
        A list for each image, of what each view shows.
    """
    seen = []
    for view in VIEWS:
        found = model([_shown(image, view) for image in images])
        seen.append([_back(each, view, image.shape[1:]) for each, image in zip(found, images, strict=True)])
    return [list(each) for each in zip(*seen, strict=True)]


def _shown(image: Tensor, view: View) -> Tensor:
    if view.zoom != 1:
        size = _size(image.shape[1:], view)
        image = interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    return image.flip(view.mirrored)


def _back(found: Boxes, view: View, size: Sequence[int]) -> Boxes:
    """The view's boxes in the image, which is ``size`` (height, width)."""
    boxes, shown = found["boxes"], _size(size, view)
    for axis in view.mirrored:
        low, high = (0, 2) if axis == 2 else (1, 3)
        boxes = boxes.clone()
        boxes[:, [low, high]] = shown[axis - 1] - boxes[:, [high, low]]
    factors = [whole / part for whole, part in zip(size, shown, strict=True)]
    back = {**found, "boxes": boxes * boxes.new_tensor(factors[::-1] * 2)}
    if "grids" in found:
        back["grids"] = found["grids"].flip(view.mirrored)  # whose axes are the image's, too
    return back


def _size(size: Sequence[int], view: View) -> list[int]:
    return [round(side * view.zoom) for side in size]


def vote(seen: Sequence[Boxes], threshold: float) -> Boxes:
    """One box from all that several views show of an object.

    By non-maximum suppression over all views each box stands for itself or goes to the one that suppresses it. A box is
    then the mean of those that went to it, weighted by their scores; its score is the mean over the views of the best
    that each gave it, 0 if none. Its mask is the mean of theirs, laid over it and weighted likewise.

    Args:
        seen: of each view, in the same pixels.
        threshold: the IoU above which two boxes of one class are of one object.
    """
    every = {name: torch.cat([each[name] for each in seen]) for name in seen[0]}
    boxes, scores, labels = every["boxes"], every["scores"], every["labels"]
    view = torch.cat([torch.full_like(each["labels"], number) for number, each in enumerate(seen)])
    kept = batched_nms(boxes, scores, labels, threshold)
    if not len(kept):
        return every
    owner = (box_iou(boxes, boxes[kept]) * (labels[:, None] == labels[kept])).argmax(1)
    sums = torch.zeros_like(boxes[kept]).index_add(0, owner, boxes * scores[:, None])
    weights = torch.zeros_like(scores[kept]).index_add(0, owner, scores)
    ballots = scores.new_zeros(len(kept) * len(seen))
    means = ballots.scatter_reduce(0, owner * len(seen) + view, scores, "amax").reshape(-1, len(seen)).mean(1)
    order = means.argsort(descending=True, stable=True)
    voted = {"boxes": sums / weights[:, None], "scores": means, "labels": labels[kept]}
    if "grids" in every:
        laid = regrid(every["grids"], boxes, voted["boxes"][owner]) * scores[:, None, None]
        sums = torch.zeros_like(every["grids"][kept]).index_add(0, owner, laid)
        voted["grids"] = sums / weights[:, None, None]
    return {name: values[order] for name, values in voted.items()}
