"""The operators as modules: they hold the arguments, ``functional`` does the work.

Numbers are kept as they come: a module made with one for all axes pools maps of any rank, one made with a number for
each axis only maps that have as many.
"""

from __future__ import annotations

from torch import Tensor, nn

from .functional import prroi_pool, ps_roi_align, ps_roi_pool, roi_align, roi_pool
from .spec import (
    OutputSize,
    SpatialScale,
    check_aligned,
    check_mode,
    check_sampling_ratio,
    kept_output_size,
    kept_scale,
)


class RoIAlign(nn.Module):
    """RoIAlign with fixed arguments; see :func:`roialign.roi_align` for their meaning.

    Example:
        >>> import torch
        >>> from roialign import RoIAlign
        >>> pooler = RoIAlign(output_size=2, sampling_ratio=2, spatial_scale=5)
        >>> ramp = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> pooler(ramp, [torch.tensor([[0.0, 0.375, 0.875, 0.625]])])
        tensor([[[[18.5938, 20.7812],
                  [23.5938, 25.7812]]]])
    """

    def __init__(
        self,
        output_size: OutputSize,
        spatial_scale: SpatialScale,
        sampling_ratio: int,
        aligned: bool = False,
        *,
        mode: str = "avg",
    ) -> None:
        super().__init__()
        self.output_size = kept_output_size(output_size)
        self.spatial_scale = kept_scale(spatial_scale)
        self.sampling_ratio = check_sampling_ratio(sampling_ratio)
        self.aligned = check_aligned(aligned)
        self.mode = check_mode(mode)

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        """Pool ``input`` ``[N, C, *cells]`` under ``rois``; returns ``[K, C, *output_size]``."""
        return roi_align(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned, mode=self.mode
        )

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, mode={self.mode!r}"
        )


class _SimplePool(nn.Module):
    """What the operators without options share."""

    rank = 0  # of the maps; 0 is any

    def __init__(self, output_size: OutputSize, spatial_scale: SpatialScale) -> None:
        super().__init__()
        self.output_size = kept_output_size(output_size, self.rank)
        self.spatial_scale = kept_scale(spatial_scale, self.rank)

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


class PrRoIPool(_SimplePool):
    """Precise RoI pooling with fixed arguments; see :func:`roialign.prroi_pool`."""

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        """Pool ``input`` ``[N, C, *cells]`` under ``rois``; returns ``[K, C, *output_size]``."""
        return prroi_pool(input, rois, self.output_size, self.spatial_scale)


class RoIPool(_SimplePool):
    """RoIPool with fixed arguments; see :func:`roialign.roi_pool`."""

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        """Pool ``input`` ``[N, C, *cells]`` under ``rois``; returns ``[K, C, *output_size]``."""
        return roi_pool(input, rois, self.output_size, self.spatial_scale)


class PSRoIAlign(_SimplePool):
    """Position-sensitive RoIAlign with fixed arguments; see :func:`roialign.ps_roi_align`."""

    rank = 2

    def __init__(self, output_size: OutputSize, spatial_scale: SpatialScale, sampling_ratio: int) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = check_sampling_ratio(sampling_ratio)

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        """Pool ``input`` ``[N, C, H, W]`` under ``rois``; returns ``[K, C / (height * width), height, width]``."""
        return ps_roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"{super().extra_repr()}, sampling_ratio={self.sampling_ratio}"


class PSRoIPool(_SimplePool):
    """Position-sensitive RoI pooling with fixed arguments; see :func:`roialign.ps_roi_pool`."""

    rank = 2

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        """Pool ``input`` ``[N, C, H, W]`` under ``rois``; returns ``[K, C / (height * width), height, width]``."""
        return ps_roi_pool(input, rois, self.output_size, self.spatial_scale)
