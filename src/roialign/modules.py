"""The operators as modules: they hold the arguments, ``functional`` does the work.

Numbers are kept as they come: a module made with one for all axes pools maps of any rank, one made with a number for
each axis only maps that have as many.
"""

from __future__ import annotations

from torch import Tensor, nn

from .deformable import deform_roi_pool
from .functional import prroi_pool, ps_roi_align, ps_roi_pool, roi_align, roi_pool
from .rotated import roi_align_rotated
from .spec import (
    OutputSize,
    SpatialScale,
    check_aligned,
    check_flag,
    check_gamma,
    check_mode,
    check_sampling_ratio,
    check_unit,
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


class RoIAlignRotated(_SimplePool):
    """RoIAlign of rotated boxes with fixed arguments; see :func:`roialign.roi_align_rotated` for their meaning.

    Example:
        >>> import torch
        >>> from roialign import RoIAlignRotated
        >>> pooler = RoIAlignRotated(output_size=(1, 2), spatial_scale=1.0, sampling_ratio=2)
        >>> ramp = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> pooler(ramp, [torch.tensor([[4.0, 4.0, 4.0, 2.0, 90.0]])]).round(decimals=4)
        tensor([[[[39.5000, 23.5000]]]])
    """

    rank = 2

    def __init__(
        self,
        output_size: OutputSize,
        spatial_scale: SpatialScale,
        sampling_ratio: int,
        *,
        aligned: bool = True,
        clockwise: bool = False,
        unit: str = "degrees",
    ) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = check_sampling_ratio(sampling_ratio)
        self.aligned = check_aligned(aligned)
        self.clockwise = check_flag("clockwise", clockwise)
        self.unit = check_unit(unit)

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        """Pool ``input`` ``[N, C, H, W]`` under rotated ``rois``; returns ``[K, C, height, width]``."""
        return roi_align_rotated(
            input,
            rois,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            aligned=self.aligned,
            clockwise=self.clockwise,
            unit=self.unit,
        )

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return (
            f"{super().extra_repr()}, sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, "
            f"clockwise={self.clockwise}, unit={self.unit!r}"
        )


class DeformRoIPool(_SimplePool):
    """Deformable RoI pooling with fixed arguments; see :func:`roialign.deform_roi_pool` for their meaning."""

    rank = 2

    def __init__(
        self, output_size: OutputSize, spatial_scale: SpatialScale = 1.0, sampling_ratio: int = -1, gamma: float = 0.1
    ) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = check_sampling_ratio(sampling_ratio)
        self.gamma = check_gamma(gamma)

    def forward(self, input: Tensor, rois: Tensor | list[Tensor], offset: Tensor | None = None) -> Tensor:
        """Pool ``input`` ``[N, C, H, W]`` under ``rois``, bins moved by ``offset`` ``[K, 2, height, width]``."""
        return deform_roi_pool(
            input, rois, offset, self.output_size, self.spatial_scale, self.sampling_ratio, self.gamma
        )

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"{super().extra_repr()}, sampling_ratio={self.sampling_ratio}, gamma={self.gamma}"
