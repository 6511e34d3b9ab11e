"""Region pooling for PyTorch: RoIAlign and its family, exact, memory-safe and differentiable."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import backends
from .deformable import deform_roi_pool
from .functional import prroi_pool, ps_roi_align, ps_roi_pool, roi_align, roi_pool
from .integrations import onnx_legacy, torchscript  # noqa: F401, they register themselves with PyTorch
from .integrations.accelerate import accelerate
from .integrations.aten import decomposition_table
from .integrations.onnx import onnx_translation_table
from .modules import DeformRoIPool, PrRoIPool, PSRoIAlign, PSRoIPool, RoIAlign, RoIAlignRotated, RoIPool
from .rotated import roi_align_rotated

if TYPE_CHECKING:
    from .explain import explain
    from .pyramid import MultiScaleRoIAlign

__version__ = "0.1.0"

__all__ = [
    "DeformRoIPool",
    "MultiScaleRoIAlign",
    "PSRoIAlign",
    "PSRoIPool",
    "PrRoIPool",
    "RoIAlign",
    "RoIAlignRotated",
    "RoIPool",
    "accelerate",
    "backends",
    "decomposition_table",
    "deform_roi_pool",
    "explain",
    "onnx_translation_table",
    "prroi_pool",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_align_rotated",
    "roi_pool",
]


def __getattr__(name: str) -> Any:
    """On first use, so that the operators alone cost nothing more: torchvision, where it is, and the drawings."""
    if name == "explain":
        return import_module(".explain", __name__)
    if name == "MultiScaleRoIAlign":
        return import_module(".pyramid", __name__).MultiScaleRoIAlign
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
