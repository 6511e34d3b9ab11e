"""The scales of a feature pyramid's levels, from their sizes and the images'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def infer_scales(features: Mapping[str, Tensor], image_shapes: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    """The (y, x) scale of each feature map: a power of two, the same along both axes.

    The finest map, that of most cells, decides: its scale is the largest at which the largest height and width of an
    image lie within it, less than one cell over, since backbones may round down. Each coarser map follows from the next
    finer one likewise. So it does not matter how far an image was padded along one axis. One that was padded to twice
    its size or more along both looks like one of twice the scale, and gets that.

    Args:
        features: maps ``[N, C, H, W]`` by name, in any order.
        image_shapes: (height, width) of each of the N images, in pixels, before it was padded into the batch.

    Returns:
        One scale per map, in the order of ``features``, in cells per pixel.

    Raises:
        ValueError: not one positive (height, width) per image, or maps that are no halvings of the finest one.
    """
    images = next(iter(features.values())).shape[0]
    if len(image_shapes) != images:
        raise ValueError(f"image_shapes: got {len(image_shapes)} shapes for {images} images; expected one per image")
    if any(len(shape) != 2 or min(shape) < 1 for shape in image_shapes):
        raise ValueError(f"image_shapes: got {list(image_shapes)}; expected positive (height, width) pairs")
    if not image_shapes:
        return [(1.0, 1.0)] * len(features)  # no images, no boxes: any scale will do
    finer = (max(height for height, _ in image_shapes), max(width for _, width in image_shapes))
    finer_name, scale, scales = "", 1.0, {}
    for name, size in _finest_first(features):
        step = _largest_scale(finer, size)
        # Rounding up and padding add one cell in a halving, so less than two in a row of them.
        if finer_name and any(cells >= side * step + 2 for side, cells in zip(finer, size, strict=True)):
            raise ValueError(
                f"x[{name!r}]: got {size} cells, where x[{finer_name!r}] has {finer}; "
                f"expected both sides divided by the same power of two"
            )
        scales[name] = scale * step
        if min(size) > 0:  # an empty map tells nothing of those coarser still
            finer, finer_name, scale = size, name, scales[name]
    return [(scales[name], scales[name]) for name in features]


def _finest_first(features: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, int]]]:
    """Names and (height, width), by falling number of cells; without ``sorted``, which takes no symbolic sizes."""
    ordered: list[tuple[str, tuple[int, int]]] = []
    for name, feature in features.items():
        height, width = feature.shape[2:]
        place = 0
        while place < len(ordered) and ordered[place][1][0] * ordered[place][1][1] >= height * width:
            place += 1
        ordered.insert(place, (name, (height, width)))
    return ordered


def _largest_scale(sides: tuple[int, int], cells: tuple[int, int]) -> float:
    """The largest power of two at which ``sides`` lie within ``cells``, less than one cell over."""

    def fits(scale: float) -> bool:
        return sides[0] * scale < cells[0] + 1 and sides[1] * scale < cells[1] + 1

    scale = 1.0
    while fits(2 * scale):
        scale *= 2
    while not fits(scale):
        scale /= 2
    return scale
