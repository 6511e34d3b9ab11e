"""ONNX: our operator as the standard ``RoiAlign`` node, in the exporter of ``torch.onnx``. Needs onnxscript."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..backends import operator  # noqa: F401, it defines torch.ops.roialign.pool

__all__ = ["onnx_translation_table"]

INT64, DOUBLE = 7, 11  # of ONNX's TensorProto

AOT = "deploy with AOTInductor, which runs our own operator (see the documentation on ONNX Runtime)"
ATEN = (
    "Export the program once it is plain ATen, "
    "torch.export.export(...).run_decompositions(roialign.decomposition_table()), or " + AOT
)
SENSITIVE = "ONNX has no position-sensitive pooling. " + ATEN
VOLUME = "ONNX pools no maps [N, C, D, H, W]. " + ATEN
REFUSED = {
    "max": "ONNX's RoiAlign takes the maximum over a sample's four weighted corners, not over interpolated samples as "
    "mode='max' means (https://github.com/onnx/onnx/issues/4764). It can be said of a fixed grid, sampling_ratio above "
    "0. Use that, mode='avg', or " + AOT,
    "integral": "ONNX has no exact integration (Precise RoI pooling). Use roi_align, which comes close to it with "
    "aligned=False and a large sampling_ratio, or " + AOT,
    "ps_avg": SENSITIVE,
    "ps_cells": SENSITIVE,
    "rotated": "ONNX has no pooling of rotated boxes. " + ATEN,
    "moved": "ONNX has no deformable pooling. " + ATEN,
}


def onnx_translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How ``torch.onnx.export`` writes our operators: pass it as ``custom_translation_table``.

    On maps of rank 1 and 2 ``roi_align``, ``RoIAlign`` and ``MultiScaleRoIAlign`` become ONNX's standard ``RoiAlign``
    (opset 16 and above, an adaptive grid as 0; ``mode="max"`` of a fixed grid becomes one bin per sample and a
    ``MaxPool``), ``roi_pool`` becomes ``MaxRoiPool``; the number of boxes may be dynamic. float16 and bfloat16 maps are
    pooled in float32, as here. A runtime checks less: a batch index without an image and a coordinate that is not
    finite are its own affair.

    Example:
        >>> import torch, roialign
        >>> pooler = roialign.RoIAlign(output_size=7, spatial_scale=0.25, sampling_ratio=2).eval()
        >>> example = torch.rand(1, 16, 50, 50), torch.tensor([[0.0, 10.0, 10.0, 90.0, 90.0]])
        >>> program = torch.onnx.export(
        ...     pooler, example, dynamo=True, verbose=False, dynamic_shapes=(None, {0: torch.export.Dim("boxes")}),
        ...     custom_translation_table=roialign.onnx_translation_table(),
        ... )
        >>> [node.op_type for node in program.model.graph if "Roi" in node.op_type]
        ['RoiAlign']

    Raises:
        ImportError: onnxscript is not installed.
        NotImplementedError: at export, for what ONNX cannot say: ``mode="max"`` of an adaptive grid, ``prroi_pool``,
            maps of rank 3, what is position-sensitive, rotated or deformable, and float64 boxes on a map of another
            dtype. It names the way out.
    """
    try:
        from onnxscript import opset18
    except ImportError as error:
        raise ImportError(f"ONNX export needs {error.name}; install it with: pip install 'roialign[onnx]'") from error
    op: Any = opset18  # Python's numbers become constants, which its annotations do not say

    def pool(features: Sequence[Any], *arguments: Any) -> Any:
        return write_pool(op, lambda value: int(value.dtype), features, *arguments)

    return {torch.ops.roialign.pool.default: pool}


def write_pool(
    op: Any,
    dtype_of: Callable[[Any], int],
    features: Sequence[Any],
    rois: Any,
    level: Any,
    kind: str,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Any:
    """``torch.ops.roialign.pool`` as ONNX's nodes, which are the methods of ``op``; ``dtype_of`` tells ONNX's types."""
    if kind in REFUSED and not (kind == "max" and sampling_ratio > 0):
        raise NotImplementedError(f"roialign: {REFUSED[kind]}.")
    rank = len(output_size)
    if rank == 3:
        raise NotImplementedError(f"roialign: {VOLUME}.")
    positions, pixels = dtype_of(rois), dtype_of(features[0])
    if DOUBLE in (positions, pixels) and positions != pixels:
        raise NotImplementedError(
            "roialign: ONNX's RoiAlign wants map and boxes of one dtype, but the boxes are float64 and the map is "
            "not. Pass boxes.float(), or the map as float64."
        )

    def node(feature: Any, rois: Any, *scales: float) -> Any:
        if pixels != positions:  # halves; the boxes are float32
            feature = op.Cast(feature, to=positions)
        if rank == 2:
            return planar(feature, rois, *scales)
        # A map of height 1. The box begins in its row and is one cell high or rounded to that, so that each sample lies
        # in the row or is clamped to it: it weighs what it does along x.
        edges = op.Gather(op.Pad(rois, [0, 0, 0, 1]), [0, 1, 3, 2, 3], axis=1)
        high = 0.0 if kind == "cells" else 1 / scales[0]
        rois = op.Add(edges, op.Cast([0.0, 0.0, 0.0, 0.0, high], to=positions))
        return op.Squeeze(planar(op.Unsqueeze(feature, [2]), rois, scales[0], scales[0]), [2])

    def planar(feature: Any, rois: Any, y: float, x: float) -> Any:
        size, scale = (1, *output_size)[-2:], y
        if y != x:  # ONNX has one scale, so scale the boxes
            rois, scale = op.Mul(rois, op.Cast([1.0, x, y, x, y], to=positions)), 1.0
        if kind == "cells":
            return op.MaxRoiPool(feature, rois, pooled_shape=list(size), spatial_scale=scale)
        image = op.Cast(op.Squeeze(op.Slice(rois, [0], [1], [1]), [1]), to=INT64)
        # The interpolated samples of a maximum are bins of one sample each.
        samples = [sampling_ratio, sampling_ratio] if kind == "max" else [1, 1]
        pooled = op.RoiAlign(
            feature,
            op.Slice(rois, [1], [5], [1]),
            image,
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            mode="avg",
            output_height=size[0] * samples[0],
            output_width=size[1] * samples[1],
            sampling_ratio=sampling_ratio // samples[0],
            spatial_scale=scale,
        )
        if kind == "max":
            pooled = op.MaxPool(pooled, kernel_shape=samples, strides=samples)
            pooled = pooled[0] if isinstance(pooled, tuple | list) else pooled  # in onnxscript with where it is
        return pooled

    each = [scales[i : i + rank] for i in range(0, len(scales), rank)]  # level's
    if level is None:
        pooled = node(features[0], rois, *each[0])
    else:
        rows = [op.Reshape(op.NonZero(op.Equal(level, index)), [-1]) for index in range(len(features))]
        levels = zip(features, rows, each, strict=True)
        parts = [node(feature, op.Gather(rois, row), *scale) for feature, row, scale in levels]
        mixed = op.Concat(*parts, axis=0)
        # Every row has its place, so what they are scattered into is overwritten and does not matter.
        pooled = op.ScatterND(mixed, op.Unsqueeze(op.Concat(*rows, axis=0), [1]), mixed)
    return pooled if pixels == positions else op.Cast(pooled, to=pixels)
