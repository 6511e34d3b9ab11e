"""A detector as one graph from the pixels to the boxes, for runtimes that know no Python.

torchvision's detector and its parts can be traced: sizes are then recorded as values, so that the graph takes an image
of any size, and any number of boxes passes through, also none. What it lacks is here: our transform, and the poolings
that ONNX has no node for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ..backends import reference
from ..levels import pyramid
from ..pyramid import MultiScaleRoIAlign
from .mask_heads import not_pasted
from .model import ScaledTransform


class Graph(nn.Module):
    """A detector of one image, to be traced.

    Args:
        model: the detector, in evaluation mode.
    """

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """What ``model([image])`` finds.

        Args:
            image: ``[3, H, W]`` float32, red, green, blue in [0, 1].

        Returns:
            boxes: ``[N, 4]`` float32 (x1, y1, x2, y2), pixels of the image.
            scores: ``[N]`` float32, best first.
            labels: ``[N]`` int64, from 1.
            grids: of a detector with masks, ``[N, 28, 28]`` float32: how likely each cell of the box is the object's.
        """
        model, transform = self.model, self.model.transform
        seen = resized(transform.normalize(image), transform)
        size = (seen.shape[-2], seen.shape[-1])
        images = ImageList(transform.batch_images([seen], transform.size_divisible), [size])
        features = model.backbone(images.tensors)
        features = {"0": features} if isinstance(features, Tensor) else features
        proposals, _ = model.rpn(images, features)
        with not_pasted(model):
            (found,), _ = model.roi_heads(features, proposals, [size])
        ratio = (_sides(image) / _sides(seen)).to(found["boxes"].dtype)
        found["boxes"] = found["boxes"] * ratio.flip(0).repeat(2)
        return tuple(found[name] for name in ("boxes", "scores", "labels", "grids") if name in found)


class PlainPooler(MultiScaleRoIAlign):
    """The same pooling as matrix products instead of one operator, where ONNX has no node for it.

    It takes memory for the boxes of a level x channels x bins x cells along x.
    """

    @classmethod
    def of(cls, pooler: MultiScaleRoIAlign) -> PlainPooler:
        """Such a pooler."""
        plain = cls.__new__(cls)
        plain.__dict__.update(pooler.__dict__)
        return plain

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[Any]) -> Tensor:
        """As the pooler that it stands for."""
        how = (self.featmap_names, self.bins, self.sampling_ratio, float(self.canonical_scale), self.canonical_level)
        features, rois, level, spec = pyramid(x, boxes, image_shapes, *how, self.aligned, self.kind)
        pool = reference.POOLS[spec.kind]
        if level is None:
            return pool(features[0], rois, spec)
        return reference.by_level(features, rois, level, spec, pool)


def resized(image: Tensor, transform: GeneralizedRCNNTransform) -> Tensor:
    """``image`` as the detector's transform resizes it, by arithmetic that a graph repeats for each image."""
    # In float64, as Python's own numbers, or a side may be a pixel longer. The exporter makes float32 of numbers and of
    # tensors without an axis, and a number above a tensor would be multiplied by a reciprocal, which is rounded twice.
    sides = _sides(image).double()
    if isinstance(transform, ScaledTransform):
        sides = (sides * _wide(transform.scale)).round().clamp(min=1)
    else:
        least = _wide(transform.min_size[-1]) / sides.amin(0, keepdim=True)
        most = _wide(transform.max_size) / sides.amax(0, keepdim=True)
        sides = (sides * torch.minimum(least, most)).floor()
    size: list[Any] = list(sides.long().unbind())
    return functional.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


def _wide(number: float) -> Tensor:
    return torch.tensor([number], dtype=torch.float64)


def _sides(image: Tensor) -> Tensor:
    """Height and width as a tensor, which a graph computes with."""
    return torch._shape_as_tensor(image)[-2:]
