"""The scales of a feature pyramid's levels, from their sizes and the images'."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor


def infer_scales(features: Mapping[str, Tensor], image_shapes: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    """The (y, x) scale of each feature map: powers of two, from its size and the largest height and width of an image.

    As in torchvision it is the one nearest to the ratio of the heights, if that fits the widths as well: the image lies
    within the map, and padding has not doubled it. If not, because a narrow image was padded by half or more, the one
    nearest to the ratio of the widths, or the next smaller, is tried likewise; and then each axis takes its own.

    Raises:
        ValueError: not one positive (height, width) per image, or no power of two fits.
    """
    images = next(iter(features.values())).shape[0]
    if len(image_shapes) != images:
        raise ValueError(f"image_shapes: got {len(image_shapes)} shapes for {images} images; expected one per image")
    if any(len(shape) != 2 or min(shape) < 1 for shape in image_shapes):
        raise ValueError(f"image_shapes: got {list(image_shapes)}; expected positive (height, width) pairs")
    if not image_shapes:
        return [(1.0, 1.0)] * len(features)  # no images, no boxes: any scale will do
    largest = (max(height for height, _ in image_shapes), max(width for _, width in image_shapes))
    return [_infer_scale(name, (f.shape[2], f.shape[3]), largest) for name, f in features.items()]


def _infer_scale(name: str, cells: tuple[int, int], pixels: tuple[int, int]) -> tuple[float, float]:
    if min(cells) == 0:
        return 1.0, 1.0  # an empty map serves no boxes

    def fits(axis: int, scale: float) -> bool:
        size = pixels[axis] * scale
        return size <= cells[axis] + 1 and cells[axis] < 2 * size

    nearest = [2.0 ** round(math.log2(c / p)) for c, p in zip(cells, pixels, strict=True)]
    for scale in (nearest[0], nearest[1], nearest[0] / 2):
        if fits(0, scale) and fits(1, scale):
            return scale, scale
    if fits(0, nearest[0]) and fits(1, nearest[1]):
        return nearest[0], nearest[1]
    raise ValueError(
        f"image_shapes: the largest image is {pixels}, but x[{name!r}] is {cells}: no "
        f"power of two scales one to the other"
    )
