"""The branch of Mask R-CNN that draws masks.

He et al., "Mask R-CNN", https://arxiv.org/abs/1703.06870.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads

from ..functional import roi_align
from .masks import GRID

POOLED = GRID // 2  # bins along each side of a box that is pooled for its mask
WIDEST = 256  # channels of its convolutions, unless the features have fewer


def mask_parts(channels: int, num_classes: int) -> dict[str, Any]:
    """The head and the predictor for torchvision's ``MaskRCNN``, on features of so many channels."""
    width = min(WIDEST, channels)
    return {
        "mask_head": MaskRCNNHeads(channels, (width,) * 4, 1),
        "mask_predictor": MaskRCNNPredictor(width, width, num_classes),
    }


def has_masks(model: FasterRCNN) -> bool:
    """Whether a detector draws masks."""
    return isinstance(model, MaskRCNN)


class MaskHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's heads, whose masks are learned from windows of the true ones and need not be pasted.

    A target is the share of each cell that is the object's, by aligned RoIAlign of the true mask. Where torchvision
    makes all masks of an image float32, this pools the window of each box.

    Attributes:
        pasted: whether answers have ``masks`` ``[N, 1, H, W]``, as torchvision's; else ``grids`` ``[N, GRID, GRID]``,
            probabilities over the boxes.
    """

    pasted = True

    @classmethod
    def of(cls, heads: RoIHeads) -> MaskHeads:
        """The same heads."""
        ours = cls.__new__(cls)
        ours.__dict__.update(heads.__dict__)
        return ours

    def has_mask(self) -> bool:
        """No: the branch is here and not in torchvision's ``forward``."""
        return False

    def check_targets(self, targets: list[dict[str, Tensor]] | None) -> None:
        """As torchvision's, which is told that there is no mask."""
        super().check_targets(targets)
        if any("masks" not in target for target in targets or []):
            raise ValueError("targets: got no masks; expected masks [N, H, W] of 0 and 1")

    def select_training_samples(self, proposals: list[Tensor], targets: list[dict[str, Tensor]] | None) -> Any:
        """As torchvision's, and kept for the masks."""
        chosen = super().select_training_samples(proposals, targets)
        self._chosen = chosen[:3]
        return chosen

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's."""
        result, losses = super().forward(features, proposals, image_shapes, targets)
        if self.training:
            losses["loss_mask"] = self._loss(features, image_shapes, targets or [])
            return result, losses
        boxes, labels = [each["boxes"] for each in result], torch.cat([each["labels"] for each in result])
        logits = self._logits(features, boxes, image_shapes, labels)
        grids = logits.sigmoid().split([len(each) for each in boxes]) if len(boxes) > 1 else [logits.sigmoid()]
        for each, grid in zip(result, grids, strict=True):
            each.update({"masks": grid[:, None]} if self.pasted else {"grids": grid})
        return result, losses

    def _logits(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]], labels: Tensor
    ) -> Tensor:
        """Of the class of each box, ``[N, GRID, GRID]``."""
        pooled = self.mask_roi_pool(features, boxes, image_shapes)
        logits = cast(Tensor, self.mask_predictor(self.mask_head(pooled)))
        return logits[torch.arange(labels.shape[0], device=labels.device), labels]

    def _loss(
        self, features: dict[str, Tensor], image_shapes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> Tensor:
        proposals, matched, labels = self._chosen
        del self._chosen
        positive = [each > 0 for each in labels]
        boxes = [each[where] for each, where in zip(proposals, positive, strict=True)]
        chosen = torch.cat([each[where] for each, where in zip(labels, positive, strict=True)])
        logits = self._logits(features, boxes, image_shapes, chosen)
        if not len(chosen):
            return logits.sum() * 0
        wanted = [
            mask_targets(target["masks"], box * _ratio(target["masks"], size), index[where])
            for target, box, size, index, where in zip(targets, boxes, image_shapes, matched, positive, strict=True)
        ]
        return binary_cross_entropy_with_logits(logits, torch.cat(wanted).to(logits.dtype))


def mask_targets(masks: Tensor, boxes: Tensor, owners: Tensor) -> Tensor:
    """What of each cell of each box is its object's.

    Args:
        masks: ``[M, H, W]``: of the objects of an image, 0 or 1.
        boxes: ``[N, 4]``: x1, y1, x2, y2 in the masks' pixels.
        owners: ``[N]`` int64: the object of each box.

    Returns:
        ``[N, GRID, GRID]`` in the boxes' dtype.
    """
    height, width = masks.shape[1:]
    found = [boxes.new_zeros(0, GRID, GRID)]
    for box, values, owner in zip(boxes, boxes.tolist(), owners.tolist(), strict=True):
        x1, y1, x2, y2 = values
        left, top = max(0, math.floor(x1) - 1), max(0, math.floor(y1) - 1)  # a pixel more, to interpolate with
        right, bottom = min(width, math.ceil(x2) + 1), min(height, math.ceil(y2) + 1)
        window = masks[owner, top:bottom, left:right].to(boxes.dtype)[None, None]
        roi = torch.cat([box.new_zeros(1), box - box.new_tensor([left, top, left, top])])[None]
        found.append(roi_align(window, roi, GRID, aligned=True)[0])
    return torch.cat(found)


def _ratio(masks: Tensor, image: tuple[int, int]) -> Tensor:
    """Pixels of the masks per pixel that the network sees, for x1, y1, x2, y2: masks are not enlarged with images."""
    return torch.tensor([masks.shape[2] / image[1], masks.shape[1] / image[0]] * 2, device=masks.device)


@contextmanager
def not_pasted(model: FasterRCNN) -> Iterator[None]:
    """Answers of a detector with masks have ``grids`` in place of ``masks``."""
    if not has_masks(model):
        yield
        return
    model.roi_heads.pasted = False
    try:
        yield
    finally:
        model.roi_heads.pasted = True
