"""The operators: their documentation, their checks, and the call."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import backends
from .backends.memory import check_memory
from .backends.tracing import unrecorded
from .boxes import Boxes, as_rois, check_boxes, position_dtype
from .spec import (
    PLANAR,
    OutputSize,
    Pooling,
    SpatialScale,
    check_aligned,
    check_input,
    check_mode,
    check_output_size,
    check_sampling_ratio,
    check_scale,
)


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
        input: feature map ``[N, C, H, W]``, or ``[N, C, L]`` or ``[N, C, D, H, W]``: its rank decides. float16,
            bfloat16, float32 or float64, any strides.
        boxes: ``Tensor[K, 5]`` of (batch index, x1, y1, x2, y2), or a list of one ``Tensor[L, 4]`` of (x1, y1, x2, y2)
            per image; pixels of the image; any floating or integer dtype. Rows are (batch index, x1, x2) on a map of
            rank 1, (batch index, x1, y1, z1, x2, y2, z2) on one of rank 3.
        output_size: bins, an int or one for each axis of the map, as (height, width); at most 2**24 along an axis.
        spatial_scale: cells of the feature map per pixel of the image, such as 1/16; or one for each axis of the map,
            as (y, x).
        sampling_ratio: samples per bin along each axis; 0 or less takes ``ceil(box size in cells / bins)``.
        aligned: shift positions by half a cell, so that a pixel stands for its centre. torchvision's and our default
            is False; detectron2 and mmcv use True.
        mode: ``"avg"`` is the mean of a bin's samples, ``"max"`` their maximum. A sample outside the map counts 0.

    Returns:
        ``[K, C, height, width]``, or as many axes as the map has, in the input's dtype, accumulated in at least
        float32, channels_last if the input is. It is differentiable to the input and to the boxes, twice. A box with a
        NaN or infinite coordinate gives NaN.

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
    rank = check_input(input)
    size, scale = check_output_size(output_size, rank), check_scale(spatial_scale, rank)
    spec = Pooling(check_mode(mode), size, scale, check_sampling_ratio(sampling_ratio), check_aligned(aligned))
    return backends.pool([input], checked_rois(input, boxes), None, spec)


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
        input: feature map of any rank, as in :func:`roi_align`.
        boxes: as there.
        output_size: bins, an int or one for each axis of the map, as (height, width); at most 2**24 along an axis.
        spatial_scale: cells of the feature map per pixel of the image; or one for each axis, as (y, x).

    Returns:
        ``[K, C, *output_size]`` in the input's dtype; differentiable to the input and to the boxes, twice.

    Raises:
        IndexError, TypeError, ValueError: as :func:`roi_align` does.

    References:
        Jiang et al., "Acquisition of Localization Confidence", https://arxiv.org/abs/1807.11590, equation 5.
    """
    if overrides(input, boxes):
        args = (input, boxes, output_size, spatial_scale)
        return handle_torch_function(prroi_pool, relevant(input, boxes), *args)
    rank = check_input(input)
    spec = Pooling("integral", check_output_size(output_size, rank), check_scale(spatial_scale, rank))
    return backends.pool([input], checked_rois(input, boxes), None, spec)


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
        input: feature map of any rank, as in :func:`roi_align`.
        boxes: as there.
        output_size: bins, an int or one for each axis of the map, as (height, width); at most 2**24 along an axis.
        spatial_scale: cells of the feature map per pixel of the image; or one for each axis, as (y, x).

    Returns:
        ``[K, C, *output_size]`` in the input's dtype; differentiable to the input. It is constant in the boxes almost
        everywhere, so they get no gradient. A bin off the map gives 0.

    Raises:
        IndexError, TypeError, ValueError: as :func:`roi_align` does.

    References:
        Girshick, "Fast R-CNN", https://arxiv.org/abs/1504.08083, section 2.1.
    """
    if overrides(input, boxes):
        args = (input, boxes, output_size, spatial_scale)
        return handle_torch_function(roi_pool, relevant(input, boxes), *args)
    rank = check_input(input)
    spec = Pooling("cells", check_output_size(output_size, rank), check_scale(spatial_scale, rank))
    return backends.pool([input], checked_rois(input, boxes), None, spec)


def ps_roi_align(
    input: Tensor,
    boxes: Boxes,
    output_size: OutputSize,
    spatial_scale: SpatialScale = 1.0,
    sampling_ratio: int = -1,
) -> Tensor:
    """Pool each bin of a box from channels of its own by bilinear sampling (position-sensitive RoIAlign).

    The map has ``C = Cout * height * width`` channels, and bin (p, q) of the output's channel c is pooled from channel
    ``(c * height + p) * width + q``: the mean of its samples, as :func:`roi_align` with ``aligned=True`` places them.
    Drop-in for ``torchvision.ops.ps_roi_align``.

    Example:
        >>> import torch
        >>> from roialign import ps_roi_align
        >>> left, right = torch.ones(8, 8), torch.full((8, 8), 5.0)
        >>> ps_roi_align(torch.stack([left, right])[None], [torch.tensor([[1.0, 1.0, 5.0, 5.0]])], (1, 2))
        tensor([[[[1., 5.]]]])

    Args:
        input: feature map ``[N, C, H, W]``; float16, bfloat16, float32 or float64, any strides.
        boxes: as in :func:`roi_align`.
        output_size: bins, an int or (height, width); height * width divides C.
        spatial_scale: cells of the feature map per pixel of the image; or (y, x) scales.
        sampling_ratio: samples per bin along each axis; 0 or less takes ``ceil(box size in cells / bins)``.

    Returns:
        ``[K, C / (height * width), height, width]`` in the input's dtype; differentiable to the input and to the boxes,
        twice. A box without extent gives 0 where the grid is adaptive (torchvision: NaN).

    Raises:
        IndexError, TypeError, ValueError: as :func:`roi_align` does; ValueError also if C is no multiple of the bins.

    References:
        Dai et al., "R-FCN", https://arxiv.org/abs/1605.06409, section 2, with RoIAlign's samples, as in Li et al.,
        "Light-Head R-CNN", https://arxiv.org/abs/1711.07264.
    """
    if overrides(input, boxes):
        args = (input, boxes, output_size, spatial_scale, sampling_ratio)
        return handle_torch_function(ps_roi_align, relevant(input, boxes), *args)
    rank = check_input(input, ranks=PLANAR)
    size, scale = check_output_size(output_size, rank), check_scale(spatial_scale, rank)
    spec = Pooling("ps_avg", size, scale, check_sampling_ratio(sampling_ratio), aligned=True)
    return backends.pool([input], checked_rois(input, boxes), None, spec)


def ps_roi_pool(input: Tensor, boxes: Boxes, output_size: OutputSize, spatial_scale: SpatialScale = 1.0) -> Tensor:
    """Pool each bin of a box from channels of its own by the mean over whole cells (position-sensitive RoI pooling).

    The channels are those of :func:`ps_roi_align`. The box and its bins are rounded to whole cells; the cell of the
    upper edge does not count, and nor do the map's last row and column. Drop-in for ``torchvision.ops.ps_roi_pool``.

    Example:
        >>> import torch
        >>> from roialign import ps_roi_pool
        >>> ramp = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> ps_roi_pool(torch.cat([ramp, -ramp], 1), [torch.tensor([[0.0, 0.0, 4.0, 2.0]])], (1, 2))
        tensor([[[[ 4.5000, -6.5000]]]])

    Args:
        input: feature map ``[N, C, H, W]``; float16, bfloat16, float32 or float64, any strides.
        boxes: as in :func:`roi_align`.
        output_size: bins, an int or (height, width); height * width divides C.
        spatial_scale: cells of the feature map per pixel of the image; or (y, x) scales.

    Returns:
        ``[K, C / (height * width), height, width]`` in the input's dtype; differentiable to the input. It is constant
        in the boxes almost everywhere, so they get no gradient. A bin without cells gives 0.

    Raises:
        IndexError, TypeError, ValueError: as :func:`ps_roi_align` does.

    References:
        Dai et al., "R-FCN", https://arxiv.org/abs/1605.06409, section 2.
    """
    if overrides(input, boxes):
        args = (input, boxes, output_size, spatial_scale)
        return handle_torch_function(ps_roi_pool, relevant(input, boxes), *args)
    rank = check_input(input, ranks=PLANAR)
    spec = Pooling("ps_cells", check_output_size(output_size, rank), check_scale(spatial_scale, rank))
    return backends.pool([input], checked_rois(input, boxes), None, spec)


def overrides(input: Tensor, boxes: Boxes) -> bool:
    """Whether an argument takes the call over by PyTorch's protocol, as the proxies of ``torch.fx`` do to record it."""
    return has_torch_function((input, boxes)) or (isinstance(boxes, list | tuple) and has_torch_function(boxes))


def relevant(input: Tensor, boxes: Boxes) -> tuple[Any, ...]:
    """The arguments that may take the call over."""
    return (input, *boxes) if isinstance(boxes, list | tuple) else (input, boxes)


def checked_rois(input: Tensor, boxes: Boxes, columns: int | None = None) -> Tensor:
    """Boxes in any accepted form as one tensor of rows; see ``boxes.check_boxes`` and ``boxes.as_rois``.

    ``columns`` None: as many as two corners take on a map of this rank.
    """
    columns = columns or 2 * input.dim() - 3
    unrecorded(_check_boxes, input, boxes, columns)
    return as_rois(input, boxes, columns)


def _check_boxes(input: Tensor, boxes: Boxes, columns: int) -> None:
    check_boxes(input, boxes, columns)
    if not isinstance(boxes, Tensor):
        for image, part in enumerate(boxes):
            check_memory(f"boxes[{image}]", part)
    elif boxes.dtype != position_dtype(input, [boxes]) or not boxes.is_contiguous():  # then PyTorch reads them
        check_memory("boxes", boxes)
