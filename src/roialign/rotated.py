"""RoIAlign of rotated boxes: its conventions of an angle, its checks, and the call."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from . import backends
from .backends.memory import check_memory
from .backends.tracing import unrecorded
from .boxes import Boxes
from .functional import checked_rois, overrides, relevant
from .spec import (
    KINDS,
    PLANAR,
    OutputSize,
    Pooling,
    SpatialScale,
    check_aligned,
    check_flag,
    check_input,
    check_output_size,
    check_sampling_ratio,
    check_scale,
    check_unit,
    check_visited,
)


def roi_align_rotated(
    input: Tensor,
    boxes: Boxes,
    output_size: OutputSize,
    spatial_scale: SpatialScale = 1.0,
    sampling_ratio: int = -1,
    *,
    aligned: bool = True,
    clockwise: bool = False,
    unit: str = "degrees",
) -> Tensor:
    """Pool the region under each rotated box to a fixed size by bilinear sampling (RoIAlign of rotated boxes).

    The bins and their grids of samples are those of :func:`roialign.roi_align`, laid into the box's own frame: the
    output's rows run along the box's width, wherever that points. Drop-in for detectron2's ``ROIAlignRotated``, and
    with ``unit="radians"`` for mmcv's ``roi_align_rotated``.

    Example:
        >>> import torch
        >>> from roialign import roi_align_rotated
        >>> ramp = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> boxes = torch.tensor([[4.0, 4.0, 4.0, 2.0, 0.0], [4.0, 4.0, 4.0, 2.0, 90.0]])  # cx, cy, w, h, angle
        >>> roi_align_rotated(ramp, [boxes], output_size=(1, 2), sampling_ratio=2).flatten(1).round(decimals=4)
        tensor([[30.5000, 32.5000],
                [39.5000, 23.5000]])

    Args:
        input: feature map ``[N, C, H, W]``; float16, bfloat16, float32 or float64, any strides.
        boxes: ``Tensor[K, 6]`` of (batch index, centre x, centre y, width, height, angle), or a list of one
            ``Tensor[L, 5]`` without the index per image; pixels of the image; any floating or integer dtype.
        output_size: bins, an int or (height, width), along the box's own height and width.
        spatial_scale: cells of the feature map per pixel of the image; or (y, x) scales, which stretch the box's sides:
            the width by that of x, whatever the angle.
        sampling_ratio: samples per bin along each axis; 0 or less takes ``ceil(box size in cells / bins)``. At most
            2**26 samples of a box. Where a graph is recorded that this package does not run, it must be positive.
        aligned: shift positions by half a cell, so that a pixel stands for its centre; False also takes sides of less
            than a cell for one, as mmcv does.
        clockwise: the sense in which the angle turns the box, as the image is seen.
        unit: of the angle, ``"degrees"`` or ``"radians"``.

    Returns:
        ``[K, C, height, width]`` in the input's dtype, accumulated in at least float32, channels_last if the input is.
        It is differentiable to the input and to all five numbers of the boxes, twice. A box with a NaN or infinite
        number gives NaN.

    Raises:
        IndexError, TypeError, ValueError: as :func:`roialign.roi_align` does.

    References:
        Ma et al., "Arbitrary-Oriented Scene Text Detection via Rotation Proposals", https://arxiv.org/abs/1703.01086,
        with the samples of He et al., "Mask R-CNN", https://arxiv.org/abs/1703.06870.
    """
    if overrides(input, boxes):
        return handle_torch_function(
            roi_align_rotated,
            relevant(input, boxes),
            *(input, boxes, output_size, spatial_scale, sampling_ratio),
            aligned=aligned,
            clockwise=clockwise,
            unit=unit,
        )
    rank = check_input(input, ranks=PLANAR)
    size, scale = check_output_size(output_size, rank), check_scale(spatial_scale, rank)
    spec = Pooling("rotated", size, scale, check_sampling_ratio(sampling_ratio), check_aligned(aligned))
    rois = rotated_rois(input, boxes, check_flag("clockwise", clockwise), check_unit(unit))
    return backends.pool([input], rois, None, check_visited(spec))


def rotated_rois(input: Tensor, boxes: Boxes, clockwise: bool = False, unit: str = "degrees") -> Tensor:
    """Rotated boxes in any accepted form as one ``[K, 6]`` tensor, angles counter-clockwise in radians."""
    rois = checked_rois(input, boxes, KINDS["rotated"].columns(rank=2))
    unrecorded(check_memory, "boxes", rois)  # since PyTorch reads them here
    turn = (math.pi / 180 if unit == "degrees" else 1.0) * (-1.0 if clockwise else 1.0)
    return rois if turn == 1.0 else torch.cat([rois[:, :5], rois[:, 5:] * turn], 1)
