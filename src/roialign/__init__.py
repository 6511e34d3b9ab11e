"""Region pooling for PyTorch: RoIAlign and its family, exact, memory-safe and differentiable."""

from . import backends
from .functional import prroi_pool, roi_align, roi_pool
from .integrations.export import decomposition_table
from .integrations.onnx import onnx_translation_table
from .integrations.torchvision import accelerate
from .modules import MultiScaleRoIAlign, PrRoIPool, RoIAlign, RoIPool

__version__ = "0.1.0"

__all__ = [
    "MultiScaleRoIAlign",
    "PrRoIPool",
    "RoIAlign",
    "RoIPool",
    "accelerate",
    "backends",
    "decomposition_table",
    "onnx_translation_table",
    "prroi_pool",
    "roi_align",
    "roi_pool",
]
