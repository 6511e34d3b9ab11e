"""Every accepted form of boxes becomes one ``[K, 1 + 4]`` tensor here, and every check of boxes is here.

A row is ``(batch index, x1, y1, x2, y2)``, coordinates in pixels of the image. Its dtype is the dtype in which
positions are computed: float64 if the feature map or any box is float64, else float32. The batch index thus never
passes through half precision, and is exact up to 2**24 images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Boxes = Tensor | Sequence[Tensor]

FORMATS = "Tensor[K, 5] with rows (batch index, x1, y1, x2, y2), or a list of one Tensor[L, 4] per image"


def check_boxes(input: Tensor, boxes: Boxes) -> None:
    """Boxes must be in one of the accepted forms and go with the feature map.

    Args:
        input: the feature map, ``[N, C, H, W]``.
        boxes: what the caller gave.

    Raises:
        TypeError: boxes are neither a tensor nor a list of tensors, or their dtype is no number.
        ValueError: wrong rank, width, list length or device, or boxes on an empty map.
    """
    if isinstance(boxes, Tensor):
        _check_tensor(input, "boxes", boxes, 5)
        count = boxes.shape[0]
    elif isinstance(boxes, list | tuple):
        if len(boxes) != input.shape[0]:
            raise ValueError(
                f"boxes: got a list of {len(boxes)} tensors for an input of {input.shape[0]} images; "
                f"expected one Tensor[L, 4] per image"
            )
        count = 0
        for image, part in enumerate(boxes):
            _check_tensor(input, f"boxes[{image}]", part, 4)
            count += part.shape[0]
    else:
        raise TypeError(f"boxes: got {type(boxes).__name__}; expected {FORMATS}")
    if (input.shape[2] == 0 or input.shape[3] == 0) and count > 0:
        raise on_empty_map(count, input)


def as_rois(input: Tensor, boxes: Boxes) -> Tensor:
    """Bring boxes that were checked, in any accepted form, to one tensor.

    Args:
        input: the feature map, ``[N, C, H, W]``.
        boxes: ``Tensor[K, 5]``, or a list or tuple of one ``Tensor[L, 4]`` per image; any floating or integer dtype.

    Returns:
        ``[K, 5]`` rois, float32 or float64, contiguous, on the input's device, differentiable to the boxes.
    """
    if isinstance(boxes, Tensor):
        return boxes.to(position_dtype(input, [boxes])).contiguous()
    dtype = position_dtype(input, boxes)
    rows = [
        torch.cat([torch.full_like(part[:, :1], image, dtype=dtype), part.to(dtype)], 1)
        for image, part in enumerate(boxes)
    ]
    return torch.cat(rows) if rows else torch.zeros(0, 5, dtype=dtype, device=input.device)


def fpn_levels(boxes: Sequence[Tensor], levels: Sequence[int], canonical_scale: float, canonical_level: int) -> Tensor:
    """Assign each box to a level of a feature pyramid by its area.

    ``floor(canonical_level + log2(sqrt(area) / canonical_scale) + 1e-6)``, clamped to the levels there are: Lin et al.,
    "Feature Pyramid Networks", https://arxiv.org/abs/1612.03144, equation 1, with torchvision's rounding at a border.
    Where the pyramid skips a level, the next coarser one serves. A box without area goes to the finest level, and so
    does one that is not finite.

    Args:
        boxes: one ``Tensor[L, 4]`` per image, pixels of the image.
        levels: the levels there are; level k has the scale ``2**-k``.
        canonical_scale: size in pixels of a box that belongs on the ``canonical_level``.
        canonical_level: that level.

    Returns:
        ``[K]`` int64 index into ``levels``.
    """
    wide = [part.detach() if part.dtype == torch.float64 else part.detach().float() for part in boxes]
    size = torch.cat([(part[:, 2] - part[:, 0]) * (part[:, 3] - part[:, 1]) for part in wide]).clamp(min=0).sqrt()
    target = torch.floor(canonical_level + torch.log2(size / canonical_scale) + torch.full_like(size, 1e-6))
    finest, coarsest = min(levels), max(levels)
    target = target.nan_to_num(finest).clamp(finest, coarsest)
    # Of the levels not finer than the target take the finest. No sorting: while tracing the numbers are symbols.
    chosen = torch.full_like(target, coarsest + 1)
    index = torch.zeros_like(target, dtype=torch.int64)
    for i, level in enumerate(levels):
        better = (level >= target) & (level < chosen)
        chosen, index = torch.where(better, level, chosen), torch.where(better, i, index)
    return index


def usable(rois: Tensor, scales: tuple[float, float]) -> Tensor:
    """``[K]`` bool: position and size of the box stay finite, in the rois' dtype, on a map of these (y, x) scales."""
    y, x = rois[:, 2::2] * scales[0], rois[:, 1::2] * scales[1]
    spans = torch.cat([y, x, y[:, 1:] - y[:, :1], x[:, 1:] - x[:, :1]], 1)
    return spans.isfinite().all(1)


def whole_index(column: Tensor, images: int) -> Tensor:
    """The batch index as int64; -1 where it is no whole number in [0, images)."""
    valid = (column >= 0) & (column < images) & (column == column.floor())
    return torch.where(valid, column, -1).long()


def on_empty_map(count: int, input: Tensor) -> ValueError:
    """What to raise where boxes lie on a map without cells."""
    return ValueError(
        f"boxes: got {count} boxes on an empty feature map of shape {tuple(input.shape)}; "
        f"expected height and width of at least 1"
    )


def raise_bad_index(row: int, value: float, images: int) -> None:
    """The one message for a batch index that names no image."""
    shown = int(value) if math.isfinite(value) and value == int(value) else value
    raise IndexError(
        f"boxes: row {row} has batch index {shown}, but input has {images} images (N = {images}); "
        f"expected a whole number in [0, {images})"
    )


def _check_tensor(input: Tensor, name: str, boxes: object, width: int) -> None:
    if not isinstance(boxes, Tensor):
        raise TypeError(f"{name}: got {type(boxes).__name__}; expected {FORMATS}")
    if boxes.dtype.is_complex or boxes.dtype == torch.bool or boxes.is_quantized or boxes.layout != torch.strided:
        raise TypeError(f"{name}: got {boxes.layout} tensor of {boxes.dtype}; expected floating or integer numbers")
    if boxes.dim() != 2 or boxes.shape[1] != width:
        hint = " (for one image, pass [boxes])" if width == 5 and boxes.dim() == 2 and boxes.shape[1] == 4 else ""
        raise ValueError(f"{name}: got a tensor of shape {tuple(boxes.shape)}; expected {FORMATS}{hint}")
    if boxes.device != input.device:
        raise ValueError(f"{name}: got a tensor on {boxes.device}; expected it on the input's device, {input.device}")


def position_dtype(input: Tensor, boxes: Sequence[Tensor]) -> torch.dtype:
    """The dtype in which positions are computed."""
    return torch.float64 if torch.float64 in [input.dtype, *[part.dtype for part in boxes]] else torch.float32
