"""Faster R-CNN on torchvision's building blocks with this package's pooling: build, train, judge and use one.

Needs ``roialign[detection]``. The command line's ``train``, ``evaluate`` and ``detect`` are these functions.
"""

from .checkpoint import load_detector, load_weights, save_detector
from .model import POOLINGS, build_detector, fit_anchors
from .tiles import Found, detect

__all__ = [
    "POOLINGS",
    "Found",
    "build_detector",
    "detect",
    "fit_anchors",
    "load_detector",
    "load_weights",
    "save_detector",
]
