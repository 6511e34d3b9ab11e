"""detectron2's pyramid pooler with its own convention, lists of maps and of ``Boxes``. detectron2 is not imported."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from .. import backends
from ..functional import checked_rois
from ..spec import (
    PLANAR,
    Pooling,
    Scale,
    check_aligned,
    check_input,
    check_output_size,
    check_sampling_ratio,
    check_scale,
)
from .torchscript import register

if TYPE_CHECKING:
    Boxes = Any


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
            (check_output_size(it.output_size, 2), check_sampling_ratio(it.sampling_ratio), check_aligned(it.aligned))
            for it in level_poolers
        }
        if len(arguments) > 1:
            raise ValueError("its levels differ in output size, sampling ratio or alignment")
        ((self.output_size, self.sampling_ratio, self.aligned),) = arguments
        self.scales = [check_scale(pooler.spatial_scale, 2) for pooler in level_poolers]
        self.min_level = min_level
        self.canonical_box_size = canonical_box_size
        self.canonical_level = canonical_level

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pool each box from its level.

        Args:
            x: feature maps ``[N, C, H, W]``, the finest first, one per level.
            box_lists: one ``Boxes`` per image, whose ``tensor`` is ``[L, 4]``, pixels of the image.

        Returns:
            ``[K, C, height, width]``, the boxes in the order given.

        Raises:
            ValueError: the number of maps is not that of the levels; and as :func:`roialign.roi_align` does.
        """
        return roi_pooler(
            x,
            [each.tensor for each in box_lists],
            self.output_size,
            self.scales,
            self.sampling_ratio,
            self.aligned,
            self.min_level,
            float(self.canonical_box_size),
            self.canonical_level,
        )

    def __prepare_scriptable__(self) -> nn.Module:
        """TorchScript wants to know what ``Boxes`` is; only here detectron2 is imported."""
        globals()["Boxes"] = import_module("detectron2.structures").Boxes
        return self

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return (
            f"output_size={self.output_size}, scales={[y for y, _ in self.scales]}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


def roi_pooler(
    x: list[Tensor],
    boxes: list[Tensor],
    output_size: tuple[int, ...],
    scales: list[Scale],
    sampling_ratio: int,
    aligned: bool,
    min_level: int,
    canonical_box_size: float,
    canonical_level: int,
) -> Tensor:
    """What :class:`ROIPooler` does, as a function, so that ``torch.fx`` records it as one node."""
    if has_torch_function((*x, *boxes)):
        how = (output_size, scales, sampling_ratio, aligned, min_level, canonical_box_size, canonical_level)
        return handle_torch_function(roi_pooler, (*x, *boxes), x, boxes, *how)
    if len(x) != len(scales):
        raise ValueError(f"x: got {len(x)} feature maps; expected {len(scales)}, one per level")
    for index, feature in enumerate(x):
        check_input(feature, f"x[{index}]", PLANAR)
    rois = checked_rois(x[0], boxes)
    level = None
    if len(x) > 1:
        # detectron2's rule, which unlike torchvision's adds nothing at a border.
        corner = rois.detach()[:, 1:]
        size = ((corner[:, 2] - corner[:, 0]) * (corner[:, 3] - corner[:, 1])).sqrt()
        target = torch.floor(canonical_level + torch.log2(size / canonical_box_size + 2.0**-52))
        level = (target.nan_to_num(0) - min_level).clamp(0, len(scales) - 1).long()
    flat = [scale for pair in scales for scale in pair]
    return backends.pool(x, rois, level, Pooling("avg", output_size, flat, sampling_ratio, aligned))


def _scriptable_roi_pooler(
    x: list[Tensor],
    boxes: list[Tensor],
    output_size: tuple[int, int],
    scales: list[tuple[float, float]],
    sampling_ratio: int,
    aligned: bool,
    min_level: int,
    canonical_box_size: float,
    canonical_level: int,
) -> Tensor:
    scales_y, scales_x = [scale[0] for scale in scales], [scale[1] for scale in scales]
    how = (sampling_ratio, aligned, min_level, canonical_box_size, canonical_level)
    pooled: Tensor = torch.ops.roialign.roi_pooler(x, boxes, output_size, scales_y, scales_x, *how)
    return pooled


register(
    roi_pooler,
    _scriptable_roi_pooler,
    "Tensor[] x, Tensor[] boxes, SymInt[] output_size, float[] scales_y, float[] scales_x, SymInt sampling_ratio, "
    "bool aligned, int min_level, float canonical_box_size, int canonical_level",
    lambda x, boxes, size, y, x_, *how: roi_pooler(x, boxes, tuple(size), list(zip(y, x_, strict=True)), *how),
)
