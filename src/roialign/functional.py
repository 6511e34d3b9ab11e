"""The operators: their documentation, their checks, and the choice of the backend that runs them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import backends
from .backends.native import MOST_BINS
from .backends.tracing import unrecorded
from .boxes import Boxes, as_rois, check_boxes

OutputSize = int | Sequence[int]
SpatialScale = float | Sequence[float]

MODES = ("avg", "max")
MOST_SAMPLES = 2**63 - 1


def roi_align(
    input: Tensor,
    boxes: Boxes,
    output_size: OutputSize,
    spatial_scale: SpatialScale = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    mode: str = "avg",
) -> Tensor:
    """Pool the region under each box to a fixed size by bilinear sampling (RoIAlign).

    Each box is cut into ``output_size`` equal bins without rounding; a bin is the mean (or the maximum) of a regular
    grid of bilinear samples. Drop-in for ``torchvision.ops.roi_align``.

    Example:
        >>> import torch
        >>> from roialign import roi_align
        >>> ramp = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> roi_align(ramp, [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], output_size=2, sampling_ratio=2)
        tensor([[[[ 9., 11.],
                  [25., 27.]]]])

    Args:
        input: feature map ``[N, C, H, W]``; float16, bfloat16, float32 or float64, any strides.
        boxes: ``Tensor[K, 5]`` of (batch index, x1, y1, x2, y2), or a list of one ``Tensor[L, 4]`` of (x1, y1, x2, y2)
            per image; pixels of the image; any floating or integer dtype.
        output_size: bins, an int or (height, width); at most 2**24 along an axis.
        spatial_scale: cells of the feature map per pixel of the image, such as 1/16; or (y, x) scales.
        sampling_ratio: samples per bin along each axis; 0 or less takes ``ceil(box size in cells / bins)``.
        aligned: shift positions by half a cell, so that a pixel stands for its centre. torchvision's and our default
            is False; detectron2 and mmcv use True.
        mode: ``"avg"`` is the mean of a bin's samples, ``"max"`` their maximum. A sample outside the map counts 0.

    Returns:
        ``[K, C, height, width]`` in the input's dtype, accumulated in at least float32, channels_last if the input is.
        It is differentiable to the input and to the boxes, twice. A box with a NaN or infinite coordinate gives NaN.

    Raises:
        IndexError: a batch index is no whole number in [0, N) (CPU; on a GPU that box gives NaN).
        TypeError: an argument is of the wrong type or dtype.
        ValueError: an argument has the wrong rank, shape, length, device or range, or boxes lie on an empty map.

    References:
        He et al., "Mask R-CNN", https://arxiv.org/abs/1703.06870, section 3.
    """
    if overrides(input, boxes):
        args = (input, boxes, output_size, spatial_scale, sampling_ratio, aligned)
        return handle_torch_function(roi_align, relevant(input, boxes), *args, mode=mode)
    check_input(input)
    size, scales = check_output_size(output_size), check_scale(spatial_scale)
    ratio = check_sampling_ratio(sampling_ratio)
    aligned = check_aligned(aligned)
    check_mode(mode)
    rois = checked_rois(input, boxes)
    return backends.choose(input).roi_align([input], rois, None, size, [scales], ratio, aligned, mode)


def prroi_pool(input: Tensor, boxes: Boxes, output_size: OutputSize, spatial_scale: SpatialScale = 1.0) -> Tensor:
    """Pool the region under each box to a fixed size by exact integration (Precise RoI pooling).

    A bin is the integral of the bilinearly interpolated map over it, divided by its area: RoIAlign with infinitely many
    samples, and smooth in the box's coordinates. There is no half-cell shift, the map is 0 outside, and a box without
    area gives 0.

    Example:
        >>> import torch
        >>> from roialign import prroi_pool
        >>> ramp = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> prroi_pool(ramp, [torch.tensor([[1.0, 1.0, 5.0, 5.0]])], output_size=2)
        tensor([[[[18., 20.],
                  [34., 36.]]]])

    Args:
        input: feature map ``[N, C, H, W]``; float16, bfloat16, float32 or float64, any strides.
        boxes: as in :func:`roi_align`.
        output_size: bins, an int or (height, width); at most 2**24 along an axis.
        spatial_scale: cells of the feature map per pixel of the image; or (y, x) scales.

    Returns:
        ``[K, C, height, width]`` in the input's dtype; differentiable to the input and to the boxes, twice.

    Raises:
        IndexError, TypeError, ValueError: as :func:`roi_align` does.

    References:
        Jiang et al., "Acquisition of Localization Confidence", https://arxiv.org/abs/1807.11590, equation 5.
    """
    if overrides(input, boxes):
        args = (input, boxes, output_size, spatial_scale)
        return handle_torch_function(prroi_pool, relevant(input, boxes), *args)
    check_input(input)
    size, scales = check_output_size(output_size), check_scale(spatial_scale)
    return backends.choose(input).prroi_pool(input, checked_rois(input, boxes), size, scales)


def roi_pool(input: Tensor, boxes: Boxes, output_size: OutputSize, spatial_scale: SpatialScale = 1.0) -> Tensor:
    """Pool the region under each box to a fixed size by the maximum over whole cells (RoIPool).

    The box and its bins are rounded to whole cells, which is what RoIAlign was made to avoid. Drop-in for
    ``torchvision.ops.roi_pool``.

    Example:
        >>> import torch
        >>> from roialign import roi_pool
        >>> ramp = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> roi_pool(ramp, [torch.tensor([[0.0, 0.0, 3.0, 3.0]])], output_size=2)
        tensor([[[[ 9., 11.],
                  [25., 27.]]]])

    Args:
        input: feature map ``[N, C, H, W]``; float16, bfloat16, float32 or float64, any strides.
        boxes: as in :func:`roi_align`.
        output_size: bins, an int or (height, width); at most 2**24 along an axis.
        spatial_scale: cells of the feature map per pixel of the image; or (y, x) scales.

    Returns:
        ``[K, C, height, width]`` in the input's dtype; differentiable to the input. It is constant in the boxes almost
        everywhere, so they get no gradient. A bin off the map gives 0.

    Raises:
        IndexError, TypeError, ValueError: as :func:`roi_align` does.

    References:
        Girshick, "Fast R-CNN", https://arxiv.org/abs/1504.08083, section 2.1.
    """
    if overrides(input, boxes):
        args = (input, boxes, output_size, spatial_scale)
        return handle_torch_function(roi_pool, relevant(input, boxes), *args)
    check_input(input)
    size, scales = check_output_size(output_size), check_scale(spatial_scale)
    return backends.choose(input).roi_pool(input, checked_rois(input, boxes), size, scales)


def overrides(input: Tensor, boxes: Boxes) -> bool:
    """Whether an argument takes the call over by PyTorch's protocol, as the proxies of ``torch.fx`` do to record it."""
    return has_torch_function((input, boxes)) or (isinstance(boxes, list | tuple) and has_torch_function(boxes))


def relevant(input: Tensor, boxes: Boxes) -> tuple[Any, ...]:
    """The arguments that may take the call over."""
    return (input, *boxes) if isinstance(boxes, list | tuple) else (input, boxes)


def checked_rois(input: Tensor, boxes: Boxes) -> Tensor:
    """Boxes in any accepted form as one ``[K, 5]`` tensor; see ``boxes.check_boxes`` and ``boxes.as_rois``."""
    unrecorded(check_boxes, input, boxes)
    return as_rois(input, boxes)


def check_output_size(output_size: OutputSize) -> tuple[int, int]:
    """``output_size`` as (height, width)."""
    # The usual cases come first here and below: a tiny call costs little more than these.
    if type(output_size) is int and 0 < output_size <= MOST_BINS:
        return output_size, output_size
    message = (
        f"output_size: got {output_size!r}; expected a positive int or (height, width) of positive ints, at most 2**24"
    )
    size = _plain(output_size, message)
    parts = list(size) if isinstance(size, Sequence) and not isinstance(size, str | bytes) else [size, size]
    if len(parts) != 2:
        raise ValueError(message)
    height, width = (_as_int(part, message) for part in parts)
    if not (0 < height <= MOST_BINS and 0 < width <= MOST_BINS):
        raise ValueError(message)
    return height, width


def check_sampling_ratio(sampling_ratio: int) -> int:
    """``sampling_ratio`` as an int, every adaptive one as 0."""
    if type(sampling_ratio) is int and sampling_ratio <= MOST_SAMPLES:
        return max(sampling_ratio, 0)
    message = f"sampling_ratio: got {sampling_ratio!r}; expected an int below 2**63, 0 or less for adaptive"
    ratio = _as_int(sampling_ratio, message)
    if ratio > MOST_SAMPLES:
        raise ValueError(message)
    return max(ratio, 0)


def check_aligned(aligned: bool) -> bool:
    """``aligned`` as a bool; a NumPy bool, a 0-dim tensor of one and the ints 0 and 1 say as much."""
    if isinstance(aligned, bool):
        return aligned
    message = f"aligned: got {aligned!r}; expected True or False"
    value = _plain(aligned, message)
    if not isinstance(value, int) or value not in (0, 1):
        raise TypeError(message)
    return bool(value)


def check_mode(mode: str) -> str:
    """``mode`` as it came, if there is such a mode."""
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}; expected one of {', '.join(map(repr, MODES))}")
    return mode


def check_scale(spatial_scale: SpatialScale) -> tuple[float, float]:
    """``spatial_scale`` as (y, x)."""
    if type(spatial_scale) is float and 0 < spatial_scale < math.inf:
        return spatial_scale, spatial_scale
    message = f"spatial_scale: got {spatial_scale!r}; expected a positive finite number, or two as (y, x)"
    scale = _plain(spatial_scale, message)
    parts: list[Any] = [_plain(part, message) for part in (scale if isinstance(scale, list | tuple) else [scale] * 2)]
    if len(parts) != 2:
        raise ValueError(message)
    if any(isinstance(part, bool | str) or not hasattr(part, "__float__") for part in parts):
        raise TypeError(message)
    try:
        y, x = (float(part) for part in parts)
    except OverflowError:
        raise ValueError(message) from None
    if not (0 < y < math.inf and 0 < x < math.inf):
        raise ValueError(message)
    return y, x


def check_input(input: Tensor, name: str = "input") -> None:
    """A feature map must be a dense floating ``[N, C, H, W]`` tensor."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: got {type(input).__name__}; expected a Tensor of shape [N, C, H, W]")
    if input.is_quantized or input.layout != torch.strided:
        way_out = "input.dequantize()" if input.is_quantized else "input.to_dense()"
        raise TypeError(
            f"{name}: got a {input.layout} tensor of {input.dtype}; expected a dense, not quantised tensor. "
            f"Pass {way_out}"
        )
    if input.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"{name}: got {input.dtype}; expected float16, bfloat16, float32 or float64")
    if input.dim() != 4:
        raise ValueError(f"{name}: got a tensor of shape {tuple(input.shape)}; expected [N, C, H, W]")


def _as_int(value: object, message: str) -> int:
    value = _plain(value, message)
    if isinstance(value, bool):
        raise TypeError(message)
    if isinstance(value, int):  # also a symbolic int while tracing
        return value
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(message) from None


def _plain(value: Any, message: str) -> Any:
    """Tensors and NumPy's arrays and scalars as Python's numbers and lists of them, anything else as it came."""
    if isinstance(value, int | float | str | list | tuple) or not hasattr(value, "tolist"):
        return value
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(f"{message}. It would get no gradient: pass its number, as .item() gives it")
    try:
        if isinstance(value, Tensor) and value.numel() == 1:  # of any rank, as torchvision takes it
            return value.item()
        return value.tolist()
    except RuntimeError:  # a meta tensor has no value
        raise TypeError(message) from None
