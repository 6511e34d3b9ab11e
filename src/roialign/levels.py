"""The levels of a feature pyramid: their scales, the level of each box, and pooling from all of them at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import backends
from .backends.tracing import unrecorded
from .boxes import fpn_levels
from .functional import checked_rois
from .rotated import rotated_rois
from .spec import (
    KINDS,
    SIZES,
    OutputSize,
    Pooling,
    Scale,
    check_input,
    check_output_size,
    check_sampling_ratio,
    check_visited,
)


def multi_scale_roi_align(
    x: Mapping[str, Tensor],
    boxes: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, ...]],
    featmap_names: Sequence[str],
    output_size: OutputSize,
    sampling_ratio: int,
    canonical_scale: float,
    canonical_level: int,
    aligned: bool,
    kind: str,
) -> Tensor:
    """What :class:`roialign.MultiScaleRoIAlign` does, as a function, so that ``torch.fx`` records it as one node."""
    maps = tuple(x.values()) if isinstance(x, Mapping) else (x,)
    watching = (*maps, *boxes) if isinstance(boxes, list | tuple) else (*maps, boxes)
    how = (featmap_names, output_size, sampling_ratio, canonical_scale, canonical_level, aligned, kind)
    if has_torch_function(watching):
        return handle_torch_function(multi_scale_roi_align, watching, x, boxes, image_shapes, *how)
    return backends.pool(*pyramid(x, boxes, image_shapes, *how))


class Pyramid(NamedTuple):
    """What is pooled from the levels of a pyramid: what every backend takes.

    Attributes:
        features: the maps of the levels.
        rois: ``[K, 5]``.
        level: ``[K]``, which of the maps; None if there is one.
        spec: how.
    """

    features: list[Tensor]
    rois: Tensor
    level: Tensor | None
    spec: Pooling


def pyramid(
    x: Mapping[str, Tensor],
    boxes: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, ...]],
    featmap_names: Sequence[str],
    output_size: OutputSize,
    sampling_ratio: int,
    canonical_scale: float,
    canonical_level: int,
    aligned: bool,
    kind: str,
) -> Pyramid:
    """The call of the operator that :func:`multi_scale_roi_align` with these arguments comes to."""
    named = unrecorded(_named_features, x, featmap_names, KINDS[kind].ranks)
    features = list(named.values())
    if not isinstance(boxes, list | tuple):
        raise TypeError(f"boxes: got {type(boxes).__name__}; expected a list of one Tensor per image")
    rank = features[0].dim() - 2
    rotated = KINDS[kind].box == "rotated"
    rois = rotated_rois(features[0], boxes) if rotated else checked_rois(features[0], boxes)
    scales = unrecorded(infer_scales, named, image_shapes)
    level = None
    if len(features) > 1:
        # A level's number is -log2 of its scale; with unequal scales along the axes, of their geometric mean.
        levels = [round(-math.log2(math.prod(scale)) / rank) for scale in scales]
        level = fpn_levels(boxes, levels, canonical_scale, canonical_level, rotated)
    spec = Pooling(kind, check_output_size(output_size, rank), [each for scale in scales for each in scale])
    if KINDS[kind].samples:
        aligned = aligned or KINDS[kind].sensitive or rotated
        spec = spec._replace(sampling_ratio=check_sampling_ratio(sampling_ratio), aligned=aligned)
    return Pyramid(features, rois, level, check_visited(spec))


def _named_features(x: Mapping[str, Tensor], featmap_names: Sequence[str], ranks: Sequence[int]) -> dict[str, Tensor]:
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
        ranks = (check_input(feature, f"x[{name!r}]", ranks),)  # all have the first one's
        if (*feature.shape[:2], feature.dtype, feature.device) != (*first.shape[:2], first.dtype, first.device):
            raise ValueError(
                f"x[{name!r}]: got shape {tuple(feature.shape)}, {feature.dtype}, {feature.device}; expected "
                f"images, channels, dtype and device of x[{names[0]!r}]: {tuple(first.shape)}, "
                f"{first.dtype}, {first.device}"
            )
    return features


def infer_scales(features: Mapping[str, Tensor], image_shapes: Sequence[tuple[int, ...]]) -> list[Scale]:
    """The scale of each feature map: a power of two, the same along all axes.

    The finest map, that of most cells, decides: its scale is the largest at which the largest height and width of an
    image lie within it, less than one cell over, since backbones may round down. Each coarser map follows from the next
    finer one likewise. So it does not matter how far an image was padded along one axis. One that was padded to twice
    its size or more along all of them looks like one of twice the scale, and gets that.

    Args:
        features: maps ``[N, C, H, W]`` by name, in any order; or of rank 1 or 3.
        image_shapes: (height, width) of each of the N images, in pixels, before it was padded into the batch; or the
            sizes along the axes that the maps have.

    Returns:
        One scale per map, in the order of ``features``, in cells per pixel, along each axis.

    Raises:
        ValueError: not one positive size per image and axis, or maps that are no halvings of the finest one.
    """
    first = next(iter(features.values()))
    images, rank = first.shape[0], first.dim() - 2
    if len(image_shapes) != images:
        raise ValueError(f"image_shapes: got {len(image_shapes)} shapes for {images} images; expected one per image")
    if any(len(shape) != rank or min(shape) < 1 for shape in image_shapes):
        raise ValueError(f"image_shapes: got {list(image_shapes)}; expected positive {SIZES[rank]} of each image")
    if not image_shapes:
        return [(1.0,) * rank] * len(features)  # no images, no boxes: any scale will do
    finer = tuple(max(sides) for sides in zip(*image_shapes, strict=True))
    finer_name, scale, scales = "", 1.0, {}
    for name, size in _finest_first(features):
        step = _largest_scale(finer, size)
        # Rounding up and padding add one cell in a halving, so less than two in a row of them.
        if finer_name and any(cells >= side * step + 2 for side, cells in zip(finer, size, strict=True)):
            raise ValueError(
                f"x[{name!r}]: got {size} cells, where x[{finer_name!r}] has {finer}; "
                f"expected all sides divided by the same power of two"
            )
        scales[name] = scale * step
        if min(size) > 0:  # an empty map tells nothing of those coarser still
            finer, finer_name, scale = size, name, scales[name]
    return [(scales[name],) * rank for name in features]


def _finest_first(features: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and sizes, by falling number of cells; without ``sorted``, which takes no symbolic sizes."""
    ordered: list[tuple[str, tuple[int, ...]]] = []
    for name, feature in features.items():
        size = tuple(feature.shape[2:])
        place = 0
        while place < len(ordered) and math.prod(ordered[place][1]) >= math.prod(size):
            place += 1
        ordered.insert(place, (name, size))
    return ordered


def _largest_scale(sides: Sequence[int], cells: Sequence[int]) -> float:
    """The largest power of two at which ``sides`` lie within ``cells``, less than one cell over."""

    def fits(scale: float) -> bool:
        return all(side * scale < length + 1 for side, length in zip(sides, cells, strict=True))

    scale = 1.0
    while fits(2 * scale):
        scale *= 2
    while not fits(scale):
        scale /= 2
    return scale
