"""Faster R-CNN on torchvision's building blocks with this package's pooling. Needs torchvision."""

from __future__ import annotations

from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

from ..modules import MultiScaleRoIAlign

__all__ = ["build_detector"]


def build_detector(num_classes: int) -> FasterRCNN:
    """Faster R-CNN on MobileNetV2's features: one level of 1280 channels and stride 32, randomly initialised.

    Args:
        num_classes: classes to tell apart, the background (class 0) included.

    Example:
        >>> from roialign.detection import build_detector
        >>> build_detector(num_classes=2).roi_heads.box_roi_pool.output_size
        (7, 7)

    References:
        Ren et al., "Faster R-CNN", https://arxiv.org/abs/1506.01497.
    """
    backbone = mobilenet_v2(weights=None).features
    backbone.out_channels = 1280
    return FasterRCNN(
        backbone,
        num_classes=num_classes,
        rpn_anchor_generator=AnchorGenerator(sizes=((32, 64, 128, 256, 512),), aspect_ratios=((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(featmap_names=["0"], output_size=7, sampling_ratio=2),
    )
