"""The operators as modules: they hold the arguments, ``functional`` does the work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from . import backends
from .backends.tracing import unrecorded
from .boxes import fpn_levels
from .functional import (
    OutputSize,
    SpatialScale,
    check_aligned,
    check_input,
    check_mode,
    check_output_size,
    check_sampling_ratio,
    check_scale,
    checked_rois,
    prroi_pool,
    roi_align,
    roi_pool,
)
from .levels import infer_scales

if TYPE_CHECKING:
    from typing_extensions import Self


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
        self.output_size = check_output_size(output_size)
        self.spatial_scale = check_scale(spatial_scale)
        self.sampling_ratio = check_sampling_ratio(sampling_ratio)
        self.aligned = check_aligned(aligned)
        self.mode = check_mode(mode)

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        """Pool ``input`` ``[N, C, H, W]`` under ``rois``; returns ``[K, C, height, width]``."""
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
    """What the two operators without options share."""

    def __init__(self, output_size: OutputSize, spatial_scale: SpatialScale) -> None:
        super().__init__()
        self.output_size = check_output_size(output_size)
        self.spatial_scale = check_scale(spatial_scale)

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


class PrRoIPool(_SimplePool):
    """Precise RoI pooling with fixed arguments; see :func:`roialign.prroi_pool`."""

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        """Pool ``input`` ``[N, C, H, W]`` under ``rois``; returns ``[K, C, height, width]``."""
        return prroi_pool(input, rois, self.output_size, self.spatial_scale)


class RoIPool(_SimplePool):
    """RoIPool with fixed arguments; see :func:`roialign.roi_pool`."""

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        """Pool ``input`` ``[N, C, H, W]`` under ``rois``; returns ``[K, C, height, width]``."""
        return roi_pool(input, rois, self.output_size, self.spatial_scale)


class MultiScaleRoIAlign(nn.Module):
    """RoIAlign over the levels of a feature pyramid, each box on the level that fits its size.

    Serves torchvision's detectors as ``box_roi_pool`` and ``mask_roi_pool``. The scale of each level is taken from
    each call's own images, see :func:`infer_scales`.

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
        output_size: bins, an int or (height, width).
        sampling_ratio: samples per bin along each axis; 0 or less means adaptive.
        canonical_scale: box size in pixels of the image that is pooled from ``canonical_level``.
        canonical_level: that level; level k has the scale ``2**-k``.
        aligned: as in :func:`roialign.roi_align`.
        mode: as in :func:`roialign.roi_align`.

    References:
        Lin et al., "Feature Pyramid Networks for Object Detection", https://arxiv.org/abs/1612.03144, equation 1.
    """

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Make an instance that torchvision's detectors accept: they insist on torchvision's own class."""
        if cls is MultiScaleRoIAlign:
            # torchvision may be absent (ImportError) or built for another torch (RuntimeError).
            with suppress(ImportError, RuntimeError):
                from .integrations import pooler

                return super().__new__(pooler.MultiScaleRoIAlign)
        return super().__new__(cls)

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
    ) -> None:
        nn.Module.__init__(self)
        if isinstance(featmap_names, str) or not featmap_names:
            raise ValueError(f"featmap_names: got {featmap_names!r}; expected a list of at least one name")
        if not 0 < canonical_scale < math.inf:
            raise ValueError(f"canonical_scale: got {canonical_scale!r}; expected a positive number of pixels")
        self.featmap_names = list(featmap_names)
        self.output_size = check_output_size(output_size)
        self.sampling_ratio = check_sampling_ratio(sampling_ratio)
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        self.aligned = check_aligned(aligned)
        self.mode = check_mode(mode)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pool each box from its level.

        Args:
            x: feature maps by name, ``[N, C, H, W]`` each, with the same N, C, dtype and device.
            boxes: one ``Tensor[L, 4]`` per image, pixels of the image.
            image_shapes: (height, width) of each image before it was padded into the batch.

        Returns:
            ``[K, C, height, width]``, the boxes in the order given.

        Raises:
            ValueError: a level is missing or empty under a box, or levels do not go together; and as
                :func:`roialign.roi_align` does.
        """
        return multi_scale_roi_align(
            x,
            boxes,
            image_shapes,
            self.featmap_names,
            self.output_size,
            self.sampling_ratio,
            float(self.canonical_scale),
            self.canonical_level,
            self.aligned,
            self.mode,
        )

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"sampling_ratio={self.sampling_ratio}, canonical_scale={self.canonical_scale}, "
            f"canonical_level={self.canonical_level}, aligned={self.aligned}, mode={self.mode!r}"
        )

    def __repr__(self) -> str:
        return f"MultiScaleRoIAlign({self.extra_repr()})"


def multi_scale_roi_align(
    x: Mapping[str, Tensor],
    boxes: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, int]],
    featmap_names: Sequence[str],
    output_size: OutputSize,
    sampling_ratio: int,
    canonical_scale: float,
    canonical_level: int,
    aligned: bool,
    mode: str,
) -> Tensor:
    """What :class:`MultiScaleRoIAlign` does, as a function, so that ``torch.fx`` records it as one node."""
    maps = tuple(x.values()) if isinstance(x, Mapping) else (x,)
    if has_torch_function(maps) or has_torch_function(boxes):
        how = (featmap_names, output_size, sampling_ratio, canonical_scale, canonical_level, aligned, mode)
        watching = (*maps, *boxes) if isinstance(boxes, list | tuple) else (*maps, boxes)
        return handle_torch_function(multi_scale_roi_align, watching, x, boxes, image_shapes, *how)
    features, rois, level, scales = assign_levels(
        x, boxes, image_shapes, featmap_names, canonical_scale, canonical_level
    )
    size, ratio = check_output_size(output_size), check_sampling_ratio(sampling_ratio)
    return backends.choose(features[0]).roi_align(features, rois, level, size, scales, ratio, aligned, mode)


class Assigned(NamedTuple):
    """A pyramid and the boxes on it.

    Attributes:
        features: the feature maps.
        rois: ``[K, 5]``, see ``boxes.as_rois``.
        level: ``[K]`` index of each box's map, or None with one map.
        scales: the maps' (y, x) scales.
    """

    features: list[Tensor]
    rois: Tensor
    level: Tensor | None
    scales: list[tuple[float, float]]


def assign_levels(
    x: Mapping[str, Tensor],
    boxes: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, int]],
    featmap_names: Sequence[str],
    canonical_scale: float,
    canonical_level: int,
) -> Assigned:
    """Choose the maps by name, and each box's map by its size; see :meth:`MultiScaleRoIAlign.forward`."""
    named = unrecorded(_named_features, x, featmap_names)
    features = list(named.values())
    if not isinstance(boxes, list | tuple):
        raise TypeError(f"boxes: got {type(boxes).__name__}; expected a list of one Tensor[L, 4] per image")
    rois = checked_rois(features[0], boxes)
    scales = unrecorded(infer_scales, named, image_shapes)
    level = None
    if len(features) > 1:
        # A level's number is -log2 of its scale; with unequal scales along y and x, of their geometric mean.
        levels = [round(-math.log2(y * x) / 2) for y, x in scales]
        level = fpn_levels(boxes, levels, canonical_scale, canonical_level)
    return Assigned(features, rois, level, scales)


def _named_features(x: Mapping[str, Tensor], featmap_names: Sequence[str]) -> dict[str, Tensor]:
    if not isinstance(x, Mapping):
        raise TypeError(f"x: got {type(x).__name__}; expected a dict of feature maps by level name")
    # torchvision's detectors ask for levels "0" to "3" of a backbone that may end earlier: levels coarser than the
    # pyramid's are left out. Any other name that is not there is a mistake.
    coarsest = max((int(name) for name in x if name.isdecimal()), default=math.inf)
    names = [name for name in featmap_names if name in x or not (name.isdecimal() and int(name) > coarsest)]
    missing = [name for name in names if name not in x] or ([] if names else featmap_names)
    if missing:
        raise ValueError(f"x: has no level {', '.join(map(repr, missing))}; it has {list(x)}")
    features = {name: x[name] for name in names}
    first = features[names[0]]
    for name, feature in features.items():
        check_input(feature, f"x[{name!r}]")
        if (*feature.shape[:2], feature.dtype, feature.device) != (*first.shape[:2], first.dtype, first.device):
            raise ValueError(
                f"x[{name!r}]: got shape {tuple(feature.shape)}, {feature.dtype}, {feature.device}; expected "
                f"images, channels, dtype and device of x[{names[0]!r}]: {tuple(first.shape)}, "
                f"{first.dtype}, {first.device}"
            )
    return features
