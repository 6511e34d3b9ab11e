"""Deformable RoI pooling: its checks, and the call."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import backends
from .backends.memory import check_memory
from .backends.tracing import unrecorded
from .boxes import Boxes
from .functional import checked_rois, overrides, relevant
from .spec import (
    PLANAR,
    OutputSize,
    Pooling,
    SpatialScale,
    check_gamma,
    check_input,
    check_offset,
    check_output_size,
    check_sampling_ratio,
    check_scale,
)


def deform_roi_pool(
    input: Tensor,
    boxes: Boxes,
    offset: Tensor | None,
    output_size: OutputSize,
    spatial_scale: SpatialScale = 1.0,
    sampling_ratio: int = -1,
    gamma: float = 0.1,
) -> Tensor:
    """Pool the region under each box by bilinear sampling, every bin moved by an offset (deformable RoI pooling).

    Bin (p, q) of box k is that of :func:`roialign.roi_align` with ``aligned=True``, moved along x by
    ``gamma * offset[k, 0, p, q]`` widths of the box and along y by ``gamma * offset[k, 1, p, q]`` of its heights. The
    offsets are what a network predicts, from this very pooling without them. Drop-in for mmcv's ``deform_roi_pool``.

    Example:
        >>> import torch
        >>> from roialign import deform_roi_pool
        >>> ramp = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> boxes = [torch.tensor([[1.0, 1.0, 5.0, 5.0]])]
        >>> deform_roi_pool(ramp, boxes, None, output_size=(1, 2), sampling_ratio=2)
        tensor([[[[21.5000, 23.5000]]]])
        >>> offset = torch.zeros(1, 2, 1, 2)
        >>> offset[0, 0, 0, 1] = 5  # the second bin goes right by 0.1 * 5 of the box's 4 pixels
        >>> deform_roi_pool(ramp, boxes, offset, output_size=(1, 2), sampling_ratio=2)
        tensor([[[[21.5000, 25.5000]]]])

    Args:
        input: feature map ``[N, C, H, W]``; float16, bfloat16, float32 or float64, any strides.
        boxes: as in :func:`roialign.roi_align`.
        offset: ``[K, 2, height, width]``, x and then y, in the order of the boxes; None moves no bin.
        output_size: bins, an int or (height, width).
        spatial_scale: cells of the feature map per pixel of the image; or (y, x) scales.
        sampling_ratio: samples per bin along each axis; 0 or less takes ``ceil(box size in cells / bins)``.
        gamma: what an offset is multiplied by.

    Returns:
        ``[K, C, height, width]`` in the input's dtype; differentiable to the input, to the offset and to the boxes,
        twice. A box with a NaN or infinite number, an offset included, gives NaN.

    Raises:
        IndexError, TypeError, ValueError: as :func:`roialign.roi_align` does, and of the offset likewise.

    References:
        Dai et al., "Deformable Convolutional Networks", https://arxiv.org/abs/1703.06211, section 2.2, with the samples
        of He et al., "Mask R-CNN", https://arxiv.org/abs/1703.06870.
    """
    if overrides(input, boxes) or has_torch_function((offset,)):
        args = (input, boxes, offset, output_size, spatial_scale, sampling_ratio, gamma)
        return handle_torch_function(deform_roi_pool, (*relevant(input, boxes), offset), *args)
    rank = check_input(input, ranks=PLANAR)
    size, scale = check_output_size(output_size, rank), check_scale(spatial_scale, rank)
    spec = Pooling("moved", size, scale, check_sampling_ratio(sampling_ratio), aligned=True)
    factor = check_gamma(gamma)
    rois = checked_rois(input, boxes)
    unrecorded(check_memory, "boxes", rois)  # since PyTorch reads them here
    if offset is None:
        shift = rois.new_zeros(rois.shape[0], 2 * math.prod(size))
    else:
        unrecorded(_check_offset, offset, rois, size)
        dtype = torch.float64 if offset.dtype == torch.float64 else rois.dtype
        shift = (offset.to(dtype) * factor).flatten(1)
    return backends.pool([input], torch.cat([rois, shift], 1), None, spec)


def _check_offset(offset: Tensor, rois: Tensor, size: tuple[int, ...]) -> None:
    check_offset(offset, rois, size)
    check_memory("offset", offset)
