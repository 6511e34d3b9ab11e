"""What the kernels are handed, checked: whatever a caller says, what passes here is read inside its memory only.

Nothing here looks at a value, which would mean waiting for the device: a box whose index names no image, or whose level
names no map, gets NaN from the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...boxes import on_empty_map
from ...spec import MAPS, MOST_BINS, SIZES, Pooling
from .. import operator
from ..memory import check_memory

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_CELLS = 2**30  # along one axis


class Boxes(NamedTuple):
    """Rois and levels, contiguous, and the pooling, in plain numbers."""

    rois: Tensor
    level: Tensor | None
    spec: Pooling


def check_maps(maps: Sequence[Tensor], rank: int) -> list[Tensor]:
    """Maps of this rank and any strides, all of one dtype and on one device."""
    if not maps:
        raise ValueError("features: got no maps; expected at least one")
    if maps[0] is None:
        raise operator.none_given("features[0]")
    form, axes = MAPS[rank], rank + 2
    first = _check("features[0]", maps[0], form, axes, DTYPES, maps[0])
    rest = [_check(f"features[{i}]", map, form, axes, (first.dtype,), first) for i, map in enumerate(maps[1:], 1)]
    return [first, *rest]


def check_values(features: Sequence[Tensor], grad: Tensor, shapes: Sequence[int], rank: int) -> list[Tensor]:
    """The maps again, of these shapes: their values decide where a maximum lies."""
    maps, axes = check_maps(features, rank), rank + 2
    for i, map in enumerate(maps):
        expected = tuple(shapes[axes * i : axes * i + axes])
        if tuple(map.shape) != expected or axes * len(maps) != len(shapes):
            raise ValueError(f"features[{i}]: got a tensor of shape {tuple(map.shape)}; expected the shapes {shapes}")
    _check("features[0]", maps[0], MAPS[rank], axes, (grad.dtype,), grad)
    return maps


def check_pooled(grad: Tensor, rois: Tensor, channels: Sequence[int], spec: Pooling) -> Tensor:
    """The gradient to the pooled values."""
    if grad is None or rois is None:
        raise operator.none_given("grad" if grad is None else "rois")
    grad = _check("grad", grad, "[K, C, *output_size]", spec.rank + 2, DTYPES, grad)
    expected = (*rois.shape[:1], *map(spec.pooled_channels, channels), *spec.output_size)
    if tuple(grad.shape) != expected:
        raise ValueError(f"grad: got a tensor of shape {tuple(grad.shape)}; expected {expected}")
    return grad


def check_boxes(
    shapes: Sequence[Sequence[int]], like: Tensor, rois: Tensor, level: Tensor | None, spec: Pooling
) -> Boxes:
    """Boxes on maps of these shapes."""
    if not shapes:
        raise ValueError("features: got no maps; expected at least one")
    images, channels = shapes[0][:2]
    for i, shape in enumerate(shapes):
        if tuple(shape[:2]) != (images, channels):
            raise ValueError(
                f"features[{i}]: got a tensor of shape {tuple(shape)}; "
                f"expected the {images} images and {channels} channels of features[0]"
            )
        if max(shape[2:]) > MOST_CELLS:
            raise ValueError(
                f"features[{i}]: got a tensor of shape {tuple(shape)}; expected at most 2**30 cells an axis"
            )
    columns = spec.columns
    rois = _check("rois", rois, f"[K, {columns}]", 2, (torch.float32, torch.float64), like)
    count = rois.shape[0]
    if rois.shape[1] != columns:
        raise ValueError(f"rois: got a tensor of shape {tuple(rois.shape)}; expected [K, {columns}]")
    if count and len(shapes) == 1 and 0 in shapes[0][2:]:
        raise on_empty_map(count, torch.empty(*shapes[0], device="meta"))
    if level is not None:
        level = _check("level", level, "[K]", 1, (torch.int64,), like)
        if level.shape[0] != count:
            raise ValueError(
                f"level: got a tensor of shape {tuple(level.shape)}; expected one number for each of {count} boxes"
            )
    elif len(shapes) > 1:
        raise ValueError(f"level: got None for {len(shapes)} maps; expected the index of each box's map")
    if len(spec.scales) != spec.rank * len(shapes):
        raise ValueError(f"scales: got {list(spec.scales)}; expected {spec.rank} for each of {len(shapes)} maps")
    size = tuple(spec.output_size)
    if not (min(size) > 0 and max(size) <= MOST_BINS):
        raise ValueError(f"output_size: got {size}; expected {SIZES[spec.rank]}, each from 1 to 2**24")
    return Boxes(
        rois.contiguous(),
        None if level is None else level.contiguous(),
        spec._replace(output_size=size, sampling_ratio=max(spec.sampling_ratio, 0)),
    )


def of_one_row(
    features: Sequence[Tensor], shapes: Sequence[int], boxes: Boxes
) -> tuple[list[Tensor], list[int], Boxes]:
    """Signals ``[N, C, L]`` and their shapes as maps ``[N, C, 1, L]``; the rois stay as they are."""
    spec = boxes.spec
    scales = [each for scale in spec.scales for each in (1.0, scale)]
    spec = spec._replace(output_size=(1, *spec.output_size), scales=scales)
    sizes = [size for i in range(0, len(shapes), 3) for size in (*shapes[i : i + 2], 1, shapes[i + 2])]
    return [each.unsqueeze(2) for each in features], sizes, boxes._replace(spec=spec)


def _check(name: str, tensor: Tensor, form: str, rank: int, dtypes: Sequence[torch.dtype], like: Tensor) -> Tensor:
    if tensor is None:
        raise operator.none_given(name)
    if tensor.is_quantized or tensor.layout != torch.strided:
        raise TypeError(f"{name}: got a {tensor.layout} tensor of {tensor.dtype}; expected a dense, not quantised one")
    if tensor.dim() != rank:
        raise ValueError(f"{name}: got a tensor of shape {tuple(tensor.shape)}; expected {form}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: got {tensor.dtype}; expected {' or '.join(str(each)[6:] for each in dtypes)}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: got a tensor on {tensor.device}; expected one on {like.device}, as the others")
    if tensor._is_zerotensor():  # zeros without memory, which autograd may hand over as a gradient
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    check_memory(name, tensor)
    return tensor
