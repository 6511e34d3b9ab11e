"""detectron2's pyramid pooler with its own convention, lists of maps and of ``Boxes``. detectron2 is not imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import backends
from ..boxes import as_rois
from ..functional import check_aligned, check_output_size, check_sampling_ratio, check_scale


class ROIPooler(nn.Module):
    """What :func:`roialign.accelerate` puts in the place of detectron2's ``ROIPooler``: all levels in one call.

    Args:
        level_poolers: detectron2's pooler of each level, the finest first, all ``ROIAlign``.
        min_level: the number of the finest level; level k has the scale ``2**-k``.
        canonical_box_size: box size in pixels of the image that is pooled from ``canonical_level``.
        canonical_level: that level.

    Raises:
        ValueError: the levels' poolers are no ``ROIAlign``, or differ in more than their scale.
    """

    def __init__(
        self, level_poolers: Sequence[Any], min_level: int, canonical_box_size: float, canonical_level: int
    ) -> None:
        super().__init__()
        kinds = {type(pooler).__name__ for pooler in level_poolers}
        if kinds != {"ROIAlign"}:
            raise ValueError(f"its levels are pooled by {', '.join(sorted(kinds))}; expected ROIAlign")
        arguments = {
            (check_output_size(it.output_size), check_sampling_ratio(it.sampling_ratio), check_aligned(it.aligned))
            for it in level_poolers
        }
        if len(arguments) > 1:
            raise ValueError("its levels differ in output size, sampling ratio or alignment")
        ((self.output_size, self.sampling_ratio, self.aligned),) = arguments
        self.scales = [check_scale(pooler.spatial_scale) for pooler in level_poolers]
        self.min_level = min_level
        self.canonical_box_size = canonical_box_size
        self.canonical_level = canonical_level

    def forward(self, x: list[Tensor], box_lists: list[Any]) -> Tensor:
        """Pool each box from its level.

        Args:
            x: feature maps ``[N, C, H, W]``, the finest first, one per level.
            box_lists: one ``Boxes`` per image, whose ``tensor`` is ``[L, 4]``, pixels of the image.

        Returns:
            ``[K, C, height, width]``, the boxes in the order given.

        Raises:
            ValueError: the number of maps is not that of the levels; and as :func:`roialign.roi_align` does.
        """
        if len(x) != len(self.scales):
            raise ValueError(f"x: got {len(x)} feature maps; expected {len(self.scales)}, one per level")
        boxes = [each.tensor for each in box_lists]
        rois = as_rois(x[0], boxes)
        level = self._levels(rois) if len(x) > 1 else None
        return backends.choose(x[0]).roi_align(
            x, rois, level, self.output_size, self.scales, self.sampling_ratio, self.aligned, "avg"
        )

    def _levels(self, rois: Tensor) -> Tensor:
        """Index of each box's level by detectron2's rule, which unlike torchvision's adds nothing at a border."""
        corner = rois.detach()[:, 1:]
        size = ((corner[:, 2] - corner[:, 0]) * (corner[:, 3] - corner[:, 1])).sqrt()
        target = torch.floor(self.canonical_level + torch.log2(size / self.canonical_box_size + 2.0**-52))
        return (target.nan_to_num(0) - self.min_level).clamp(0, len(self.scales) - 1).long()

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return (
            f"output_size={self.output_size}, scales={[y for y, _ in self.scales]}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )
