"""The pooler of a feature pyramid, which torchvision's detectors take as their own. Loaded on first use."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from torch import Tensor, nn

from .levels import multi_scale_roi_align
from .spec import OutputSize, check_aligned, check_operator, check_sampling_ratio, kept_output_size

# torchvision's detectors insist on an instance of its own class. Nothing but its name is inherited.
try:
    from torchvision.ops import MultiScaleRoIAlign as _Base
except (ImportError, RuntimeError) as error:  # absent, or broken, or built for another torch
    if getattr(error, "name", "") != "torchvision":
        warnings.warn(f"torchvision's detectors will not take roialign.MultiScaleRoIAlign: {error}", stacklevel=2)
    _Base = nn.Module


class MultiScaleRoIAlign(_Base):  # type: ignore[misc]
    """RoIAlign over the levels of a feature pyramid, each box on the level that fits its size.

    Serves torchvision's detectors as ``box_roi_pool`` and ``mask_roi_pool``. The scale of each level is taken from
    each call's own images, see :func:`roialign.levels.infer_scales`.

    Example:
        >>> import torch
        >>> from roialign import MultiScaleRoIAlign
        >>> pooler = MultiScaleRoIAlign(featmap_names=["0", "1"], output_size=1, sampling_ratio=2)
        >>> pyramid = {"0": torch.zeros(1, 1, 64, 64), "1": torch.ones(1, 1, 32, 32)}
        >>> boxes = [torch.tensor([[0.0, 0.0, 40.0, 40.0], [0.0, 0.0, 250.0, 250.0]])]
        >>> pooler(pyramid, boxes, image_shapes=[(256, 256)]).flatten()
        tensor([0., 1.])

    Args:
        featmap_names: the names of the levels to pool from.
        output_size: bins, an int or (height, width); or one for each axis of maps of rank 1 or 3.
        sampling_ratio: samples per bin along each axis; 0 or less means adaptive.
        canonical_scale: box size in pixels of the image that is pooled from ``canonical_level``.
        canonical_level: that level; level k has the scale ``2**-k``.
        aligned: as in :func:`roialign.roi_align`.
        mode: as in :func:`roialign.roi_align`.
        operator: what pools: ``"roi_align"``; ``"prroi_pool"`` or ``"roi_pool"``, which take no samples, so that
            ``sampling_ratio`` and ``aligned`` mean nothing to them; ``"ps_roi_align"`` or ``"ps_roi_pool"``; or
            ``"roi_align_rotated"``, always aligned, on boxes ``[L, 5]`` with angles in degrees, counter-clockwise.

    References:
        Lin et al., "Feature Pyramid Networks for Object Detection", https://arxiv.org/abs/1612.03144, equation 1.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: OutputSize,
        sampling_ratio: int,
        *,
        canonical_scale: float = 224,
        canonical_level: int = 4,
        aligned: bool = False,
        mode: str = "avg",
        operator: str = "roi_align",
    ) -> None:
        nn.Module.__init__(self)
        if isinstance(featmap_names, str) or not featmap_names:
            raise ValueError(f"featmap_names: got {featmap_names!r}; expected a list of at least one name")
        if not 0 < canonical_scale < math.inf:
            raise ValueError(f"canonical_scale: got {canonical_scale!r}; expected a positive number of pixels")
        self.featmap_names = list(featmap_names)
        self.bins = kept_output_size(output_size)  # a number goes with any rank
        # torchvision's detectors ask the first of two.
        self.output_size = self.bins if isinstance(self.bins, tuple) else (self.bins, self.bins)
        self.sampling_ratio = check_sampling_ratio(sampling_ratio)
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        self.aligned = check_aligned(aligned)
        self.mode = mode
        self.operator = operator
        self.kind = check_operator(operator, mode)

    def forward(
        self,
        x: dict[str, Tensor],
        boxes: list[Tensor],
        image_shapes: list[tuple[int, int]] | list[tuple[int, int, int]] | list[tuple[int]],
    ) -> Tensor:
        """Pool each box from its level.

        Args:
            x: feature maps by name, ``[N, C, H, W]`` each, with the same N, C, dtype and device; or of rank 1 or 3.
            boxes: one ``Tensor[L, 4]`` per image, pixels of the image; ``[L, 2 * rank]`` of another rank, ``[L, 5]`` of
                rotated ones.
            image_shapes: (height, width) of each image before it was padded into the batch; or its sizes along the axes
                that the maps have.

        Returns:
            ``[K, C, *output_size]``, the boxes in the order given.

        Raises:
            ValueError: a level is missing or empty under a box, or levels do not go together; and as
                :func:`roialign.roi_align` does.
        """
        return multi_scale_roi_align(
            x,
            boxes,
            image_shapes,
            self.featmap_names,
            self.bins,
            self.sampling_ratio,
            float(self.canonical_scale),
            self.canonical_level,
            self.aligned,
            self.kind,
        )

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        operator = "" if self.operator == "roi_align" else f", operator={self.operator!r}"
        return (
            f"featmap_names={self.featmap_names}, output_size={self.bins}, "
            f"sampling_ratio={self.sampling_ratio}, canonical_scale={self.canonical_scale}, "
            f"canonical_level={self.canonical_level}, aligned={self.aligned}, mode={self.mode!r}"
            f"{operator}"
        )

    def __repr__(self) -> str:
        return f"MultiScaleRoIAlign({self.extra_repr()})"
