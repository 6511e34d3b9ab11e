"""Every accepted form of boxes becomes one ``[K, 1 + 2 * rank]`` tensor here, and every check of boxes is here.

A row is the batch index, the lower corner and the upper one, x first, in pixels of the image: ``(i, x1, y1, x2, y2)``
on a map ``[N, C, H, W]``, ``(i, x1, x2)`` on one of rank 1, ``(i, x1, y1, z1, x2, y2, z2)`` on one of rank 3; that of a
rotated box is ``(i, cx, cy, w, h, angle)``. Its dtype is the dtype in which positions are computed: float64 if the
feature map or any box is float64, else float32. The batch index thus never passes through half precision, and is exact
up to 2**24 images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Boxes = Tensor | Sequence[Tensor]

FORMATS = {  # by the numbers in a row
    columns: f"Tensor[K, {columns}] with rows (batch index, {place}), "
    f"or a list of one Tensor[L, {columns - 1}] per image, on a map {map}"
    for columns, place, map in (
        (3, "x1, x2", "[N, C, L]"),
        (5, "x1, y1, x2, y2", "[N, C, H, W]"),
        (6, "cx, cy, w, h, angle", "[N, C, H, W]"),
        (7, "x1, y1, z1, x2, y2, z2", "[N, C, D, H, W]"),
    )
}


def check_boxes(input: Tensor, boxes: Boxes, columns: int = 5) -> None:
    """Boxes must be in one of the accepted forms and go with the feature map.

    Args:
        input: the feature map, of rank 1, 2 or 3.
        boxes: what the caller gave.
        columns: numbers in a row, see ``FORMATS``.

    Raises:
        TypeError: boxes are neither a tensor nor a list of tensors, or their dtype is no number.
        ValueError: wrong rank, width, list length or device, or boxes on an empty map.
    """
    if isinstance(boxes, Tensor):
        _check_tensor(input, "boxes", boxes, columns, columns)
        count = boxes.shape[0]
    elif isinstance(boxes, list | tuple):
        if len(boxes) != input.shape[0]:
            raise ValueError(
                f"boxes: got a list of {len(boxes)} tensors for an input of {input.shape[0]} images; "
                f"expected one Tensor[L, {columns - 1}] per image"
            )
        count = 0
        for image, part in enumerate(boxes):
            _check_tensor(input, f"boxes[{image}]", part, columns - 1, columns)
            count += part.shape[0]
    else:
        raise TypeError(f"boxes: got {type(boxes).__name__}; expected {FORMATS[columns]}")
    if 0 in input.shape[2:] and count > 0:
        raise on_empty_map(count, input)


def as_rois(input: Tensor, boxes: Boxes, columns: int = 5) -> Tensor:
    """Bring boxes that were checked, in any accepted form, to one tensor.

    Args:
        input: the feature map, of rank 1, 2 or 3.
        boxes: ``Tensor[K, columns]``, or a list or tuple of one ``Tensor[L, columns - 1]`` per image; any floating or
            integer dtype.
        columns: numbers in a row, see ``FORMATS``.

    Returns:
        ``[K, columns]`` rois, float32 or float64, contiguous, on the input's device, differentiable to the boxes.
    """
    if isinstance(boxes, Tensor):
        return boxes.to(position_dtype(input, [boxes])).contiguous()
    dtype = position_dtype(input, boxes)
    rows = [
        torch.cat([torch.full_like(part[:, :1], image, dtype=dtype), part.to(dtype)], 1)
        for image, part in enumerate(boxes)
    ]
    return torch.cat(rows) if rows else torch.zeros(0, columns, dtype=dtype, device=input.device)


def fpn_levels(
    boxes: Sequence[Tensor],
    levels: Sequence[int],
    canonical_scale: float,
    canonical_level: int,
    rotated: bool = False,
) -> Tensor:
    """Assign each box to a level of a feature pyramid by its size.

    The size is the square root of the box's area on a map of rank 2, its length on one of rank 1, the cube root of its
    volume on one of rank 3. The level is ``floor(canonical_level + log2(size / canonical_scale) + 1e-6)``, clamped to
    the levels there are: Lin et al., "Feature Pyramid Networks", https://arxiv.org/abs/1612.03144, equation 1, with
    torchvision's rounding at a border. Where the pyramid skips a level, the next coarser one serves. A box without area
    goes to the finest level, and so does one that is not finite.

    Args:
        boxes: one ``Tensor[L, 2 * rank]`` per image, or ``Tensor[L, 5]`` of rotated boxes; pixels of the image.
        levels: the levels there are; level k has the scale ``2**-k``.
        canonical_scale: size in pixels of a box that belongs on the ``canonical_level``.
        canonical_level: that level.
        rotated: the boxes are rotated ones.

    Returns:
        ``[K]`` int64 index into ``levels``.
    """
    wide = [part.detach() if part.dtype == torch.float64 else part.detach().float() for part in boxes]
    rank = wide[0].shape[1] // 2
    sides = torch.cat([part[:, 2:4] if rotated else part[:, rank:] - part[:, :rank] for part in wide])
    size = sides.prod(1).clamp(min=0).pow(1 / rank)
    target = torch.floor(canonical_level + torch.log2(size / canonical_scale) + torch.full_like(size, 1e-6))
    finest, coarsest = min(levels), max(levels)
    target = target.nan_to_num(finest).clamp(finest, coarsest)
    # Levels one after the other, as most pyramids have them: of four the search below takes 20 launches more on a GPU.
    if all(type(level) is int for level in levels) and list(levels) == list(range(finest, coarsest + 1)):
        return (target - finest).to(torch.int64)
    # Of the levels not finer than the target take the finest. No sorting: while tracing the numbers are symbols.
    chosen = torch.full_like(target, coarsest + 1)
    index = torch.zeros_like(target, dtype=torch.int64)
    for i, level in enumerate(levels):
        better = (level >= target) & (level < chosen)
        chosen, index = torch.where(better, level, chosen), torch.where(better, i, index)
    return index


def edges(rois: Tensor, along: int, rank: int) -> tuple[Tensor, Tensor]:
    """Lower and upper edges of the boxes along an axis of the map, counted as its sizes are: a row has x first."""
    return rois[:, rank - along], rois[:, 2 * rank - along]


def usable(rois: Tensor, scale: Sequence[float], form: str = "corners") -> Tensor:
    """``[K]`` bool: position and size of the box stay finite, in the rois' dtype, on a map of this scale.

    ``form`` is the ``spec.Kind``'s ``box``.
    """
    rank = len(scale)
    places = [torch.stack(edges(rois, along, rank), 1) * each for along, each in enumerate(scale)]
    if form == "rotated":
        return torch.cat([*places, rois[:, 5:]], 1).isfinite().all(1)
    sizes = [place[:, 1:] - place[:, :1] for place in places]
    if form == "moved":
        places += [size * shift for size, shift in zip(sizes[::-1], rois[:, 5:].chunk(2, 1), strict=True)]
    return torch.cat([*places, *sizes], 1).isfinite().all(1)


def whole_index(column: Tensor, images: int) -> Tensor:
    """The batch index as int64; -1 where it is no whole number in [0, images)."""
    valid = (column >= 0) & (column < images) & (column == column.floor())
    return torch.where(valid, column, -1).long()


def on_empty_map(count: int, input: Tensor) -> ValueError:
    """What to raise where boxes lie on a map without cells."""
    return ValueError(
        f"boxes: got {count} boxes on an empty feature map of shape {tuple(input.shape)}; "
        f"expected at least one cell along every axis"
    )


def raise_bad_index(row: int, value: float, images: int) -> None:
    """The one message for a batch index that names no image."""
    shown = int(value) if math.isfinite(value) and value == int(value) else value
    raise IndexError(
        f"boxes: row {row} has batch index {shown}, but input has {images} images (N = {images}); "
        f"expected a whole number in [0, {images})"
    )


def check_numbers(name: str, tensor: Tensor) -> None:
    """A tensor of boxes, or of what moves them, must hold real numbers."""
    if tensor.dtype.is_complex or tensor.dtype == torch.bool or tensor.is_quantized or tensor.layout != torch.strided:
        raise TypeError(f"{name}: got {tensor.layout} tensor of {tensor.dtype}; expected floating or integer numbers")


def _check_tensor(input: Tensor, name: str, boxes: object, width: int, columns: int) -> None:
    if not isinstance(boxes, Tensor):
        raise TypeError(f"{name}: got {type(boxes).__name__}; expected {FORMATS[columns]}")
    check_numbers(name, boxes)
    if boxes.dim() != 2 or boxes.shape[1] != width:
        listed = width == columns and boxes.dim() == 2 and boxes.shape[1] == columns - 1
        hint = " (for one image, pass [boxes])" if listed else ""
        raise ValueError(f"{name}: got a tensor of shape {tuple(boxes.shape)}; expected {FORMATS[columns]}{hint}")
    if boxes.device != input.device:
        raise ValueError(f"{name}: got a tensor on {boxes.device}; expected it on the input's device, {input.device}")


def position_dtype(input: Tensor, boxes: Sequence[Tensor]) -> torch.dtype:
    """The dtype in which positions are computed."""
    return torch.float64 if torch.float64 in [input.dtype, *[part.dtype for part in boxes]] else torch.float32
