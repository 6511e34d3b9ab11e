"""Faster R-CNN on torchvision's building blocks with this package's pooling: build, train, judge and use one.

Needs ``roialign[detection]``. The command line's ``train``, ``evaluate`` and ``detect`` are these functions.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import load_detector, save_detector
    from .detector import Detections, Detector
    from .model import POOLINGS, build_detector, fit_anchors
    from .tiles import Found, detect
    from .weights import load_weights

__all__ = [
    "POOLINGS",
    "Detections",
    "Detector",
    "Found",
    "build_detector",
    "detect",
    "fit_anchors",
    "load_detector",
    "load_weights",
    "save_detector",
]


def __getattr__(name: str) -> Any:  # on first use: the command line asks for a recipe where torchvision may be missing
    if name in __all__:
        parts = (import_module(f".{part}", __name__) for part in ("tiles", "checkpoint", "model", "detector"))
        return next(getattr(part, name) for part in parts if hasattr(part, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
