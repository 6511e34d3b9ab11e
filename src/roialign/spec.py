"""What a pooling is: its kind and its numbers, what each kind needs, and every check of an argument."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .boxes import check_numbers

OutputSize = int | Sequence[int]
SpatialScale = float | Sequence[float]
Scale = tuple[float, ...]  # one for each axis of the map: (y, x) of [N, C, H, W]

RANKS = (1, 2, 3)  # of maps: how many axes are behind N and C
PLANAR = (2,)
MAPS = {1: "[N, C, L]", 2: "[N, C, H, W]", 3: "[N, C, D, H, W]"}
SIZES = {0: "one for each axis of the map", 1: "(length,)", 2: "(height, width)", 3: "(depth, height, width)"}
SCALES = {0: "one for each axis of the map", 1: "one as (x,)", 2: "two as (y, x)", 3: "three as (z, y, x)"}
MOST_BINS = 2**24  # along one axis: float32 counts no further
MOST_SAMPLES = 2**63 - 1
MOST_VISITED = 2**26  # samples of one box, of a kind that visits each


class Kind(NamedTuple):
    """What a kind of pooling needs, and what it has.

    Attributes:
        operator: the name of its function.
        maximum: it takes a maximum; where that lies depends on the map, so its gradient needs the map again.
        samples: it takes bilinear samples, so that it has a sampling ratio and may be aligned.
        sensitive: to the position: each bin has channels of the map for itself. Samples are always aligned then.
        ranks: of the maps that it pools.
        box: what places a box's samples: its ``"corners"``; ``"rotated"``: centre, size and angle, counter-clockwise in
            radians; ``"moved"``: corners, and the shift of each bin in units of the box's size, all x and then all y.
    """

    operator: str
    maximum: bool
    samples: bool
    sensitive: bool = False
    ranks: tuple[int, ...] = RANKS
    box: str = "corners"

    def columns(self, rank: int) -> int:
        """Numbers in a row of boxes on a map of this rank, the image's index included and shifts of bins left out."""
        return 6 if self.box == "rotated" else 1 + 2 * rank


KINDS = {
    "avg": Kind("roi_align", maximum=False, samples=True),
    "max": Kind("roi_align", maximum=True, samples=True),
    "integral": Kind("prroi_pool", maximum=False, samples=False),
    "cells": Kind("roi_pool", maximum=True, samples=False),  # whole ones
    "ps_avg": Kind("ps_roi_align", maximum=False, samples=True, sensitive=True, ranks=PLANAR),
    "ps_cells": Kind("ps_roi_pool", maximum=False, samples=False, sensitive=True, ranks=PLANAR),
    "rotated": Kind("roi_align_rotated", maximum=False, samples=True, ranks=PLANAR, box="rotated"),
    "moved": Kind("deform_roi_pool", maximum=False, samples=True, ranks=PLANAR, box="moved"),
}
MODES = tuple(name for name, kind in KINDS.items() if kind.operator == "roi_align")


class Pooling(NamedTuple):
    """All that a pooling is but its tensors, checked; in the order in which the operators take it.

    Attributes:
        kind: one of ``KINDS``.
        output_size: bins along each axis of the map, (height, width) of ``[N, C, H, W]``. So it tells the maps' rank.
        scales: cells per pixel along the same axes, of each feature map in turn.
        sampling_ratio: samples per bin along each axis, 0 for an adaptive grid; 0 where a kind takes no samples.
        aligned: whether positions are shifted by half a cell; False where a kind takes no samples.
    """

    kind: str
    output_size: tuple[int, ...]
    scales: Sequence[float]
    sampling_ratio: int = 0
    aligned: bool = False

    @property
    def rank(self) -> int:
        """How many axes a map has behind N and C."""
        return len(self.output_size)

    def scale(self, level: int) -> Scale:
        """The scale of one feature map along each axis."""
        rank = len(self.output_size)
        return tuple(self.scales[rank * level : rank * level + rank])

    @property
    def group(self) -> int:
        """Channels of the map from which one channel of the output is pooled."""
        return math.prod(self.output_size) if KINDS[check_kind(self.kind)].sensitive else 1

    @property
    def columns(self) -> int:
        """Numbers in a row of rois, the batch index included."""
        kind = KINDS[check_kind(self.kind)]
        return kind.columns(self.rank) + (2 * math.prod(self.output_size) if kind.box == "moved" else 0)

    def pooled_channels(self, channels: int) -> int:
        """Channels of the output of a map that has so many."""
        if not KINDS[check_kind(self.kind)].sensitive:
            return channels
        group = self.group
        if group < 1 or channels % group:
            raise ValueError(
                f"input: got {channels} channels; expected a multiple of height * width of "
                f"output_size={tuple(self.output_size)}, since each bin has channels of its own"
            )
        return channels // group

    def on(self, level: int) -> Pooling:
        """The same on one feature map."""
        return self._replace(scales=self.scale(level))


class Call(NamedTuple):
    """A pooling and its tensors, as a backend is asked whether it can serve it.

    Attributes:
        features: feature maps ``[N, C, H, W]``, or of rank 1 or 3: one, or the levels of a pyramid.
        rois: ``[K, columns]``, as ``boxes.as_rois`` makes them; bins that move have their shifts behind it.
        level: ``[K]`` index of each box's map, or None with one map.
        spec: the pooling.
    """

    features: list[Tensor]
    rois: Tensor
    level: Tensor | None
    spec: Pooling


def check_output_size(output_size: OutputSize, rank: int) -> tuple[int, ...]:
    """``output_size`` along each axis of a map of this rank."""
    # The usual cases come first here and below: a tiny call costs little more than these.
    if type(output_size) is int and 0 < output_size <= MOST_BINS:
        return (output_size,) * rank
    if type(output_size) is tuple and [*map(type, output_size)] == [int] * rank:
        least, most = min(output_size), max(output_size)
        if least > 0 and most <= MOST_BINS:
            return output_size
    size = kept_output_size(output_size, rank)
    return size if isinstance(size, tuple) else (size,) * rank


def kept_output_size(output_size: OutputSize, rank: int = 0) -> int | tuple[int, ...]:
    """``output_size`` as a module keeps it, which does not know a map's rank (0) yet: an int goes with any."""
    message = (
        f"output_size: got {output_size!r}; expected a positive int or {SIZES[rank]} of positive ints, at most 2**24"
        f"{_on_map(rank)}"
    )
    size = _plain(output_size, message)
    listed = isinstance(size, Sequence) and not isinstance(size, str | bytes)
    parts = [_as_int(part, message) for part in (size if listed else [size])]
    if not all(0 < part <= MOST_BINS for part in parts) or (listed and not _goes_with(len(parts), rank)):
        raise ValueError(message)
    return tuple(parts) if listed else parts[0]


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
    """``aligned`` as a bool."""
    return aligned if isinstance(aligned, bool) else check_flag("aligned", aligned)


def check_flag(name: str, flag: bool) -> bool:
    """A flag as a bool; a NumPy bool, a 0-dim tensor of one and the ints 0 and 1 say as much."""
    message = f"{name}: got {flag!r}; expected True or False"
    value = _plain(flag, message)
    if not isinstance(value, int) or value not in (0, 1):
        raise TypeError(message)
    return bool(value)


def check_unit(unit: str) -> str:
    """``unit`` of an angle as it came, if there is such a unit."""
    if unit not in ("degrees", "radians"):
        raise ValueError(f"unit: got {unit!r}; expected 'degrees' or 'radians'")
    return unit


def check_gamma(gamma: float) -> float:
    """``gamma`` as a float."""
    message = f"gamma: got {gamma!r}; expected a finite number"
    number = _as_float(gamma, message)
    if not -math.inf < number < math.inf:
        raise ValueError(message)
    return number


def check_offset(offset: Tensor, rois: Tensor, size: tuple[int, ...]) -> None:
    """The offsets of the bins of these boxes must be real ``[K, 2, height, width]`` numbers."""
    if not isinstance(offset, Tensor):
        raise TypeError(f"offset: got {type(offset).__name__}; expected a Tensor [K, 2, height, width], or None")
    check_numbers("offset", offset)
    if tuple(offset.shape) != (rois.shape[0], 2, *size):  # said only then: in a compiled graph the number is a symbol
        expected = f"[K, 2, height, width] = [{rois.shape[0]}, 2, {size[0]}, {size[1]}]"
        raise ValueError(f"offset: got a tensor of shape {tuple(offset.shape)}; expected {expected}")
    if offset.device != rois.device:
        raise ValueError(f"offset: got a tensor on {offset.device}; expected it on the boxes' device, {rois.device}")


def check_kind(kind: str) -> str:
    """``kind`` as it came, if there is such a kind."""
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}; expected one of {', '.join(map(repr, KINDS))}")
    return kind


def check_mode(mode: str) -> str:
    """``mode`` as it came, if there is such a mode."""
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}; expected one of {', '.join(map(repr, MODES))}")
    return mode


def check_operator(operator: str, mode: str = "avg") -> str:
    """The kind of pooling that an operator of this name does to boxes alone; only ``roi_align`` has modes."""
    kinds = [name for name, kind in KINDS.items() if kind.operator == operator and kind.box != "moved"]
    if not kinds:
        names = dict.fromkeys(kind.operator for kind in KINDS.values() if kind.box != "moved")
        raise ValueError(f"operator: got {operator!r}; expected one of {', '.join(map(repr, names))}")
    if check_mode(mode) in kinds:
        return mode
    if mode != MODES[0]:
        raise ValueError(f"mode: got {mode!r} for {operator}; expected {MODES[0]!r}, since it has no other")
    return kinds[0]


def check_scale(spatial_scale: SpatialScale, rank: int) -> Scale:
    """``spatial_scale`` along each axis of a map of this rank."""
    if type(spatial_scale) is float and 0 < spatial_scale < math.inf:
        return (spatial_scale,) * rank
    scale = kept_scale(spatial_scale, rank)
    return scale if isinstance(scale, tuple) else (scale,) * rank


def kept_scale(spatial_scale: SpatialScale, rank: int = 0) -> float | Scale:
    """``spatial_scale`` as a module keeps it, which does not know a map's rank (0) yet: a number goes with any."""
    message = (
        f"spatial_scale: got {spatial_scale!r}; expected a positive finite number, or {SCALES[rank]}{_on_map(rank)}"
    )
    scale = _plain(spatial_scale, message)
    listed = isinstance(scale, list | tuple)
    if listed and not _goes_with(len(scale), rank):
        raise ValueError(message)
    numbers = [_as_float(part, message) for part in (scale if listed else [scale])]
    if not all(0 < number < math.inf for number in numbers):
        raise ValueError(message)
    return tuple(numbers) if listed else numbers[0]


def _goes_with(count: int, rank: int) -> bool:
    return count == rank if rank else count in RANKS


def _on_map(rank: int) -> str:
    return f", for a map {MAPS[rank]}" if rank else ""


def check_input(input: Tensor, name: str = "input", ranks: Sequence[int] = RANKS) -> int:
    """The rank of a feature map, which must be a dense floating tensor of one of these ranks."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: got {type(input).__name__}; expected a Tensor of shape {_maps(ranks)}")
    if input.is_quantized or input.layout != torch.strided:
        way_out = "input.dequantize()" if input.is_quantized else "input.to_dense()"
        raise TypeError(
            f"{name}: got a {input.layout} tensor of {input.dtype}; expected a dense, not quantised tensor. "
            f"Pass {way_out}"
        )
    if input.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"{name}: got {input.dtype}; expected float16, bfloat16, float32 or float64")
    rank = input.dim() - 2
    if rank not in ranks:
        raise ValueError(f"{name}: got a tensor of shape {tuple(input.shape)}; expected {_maps(ranks)}")
    return rank


def _maps(ranks: Sequence[int]) -> str:
    return " or ".join(MAPS[rank] for rank in ranks)


def check_visited(spec: Pooling) -> Pooling:
    """``spec`` as it came, if nobody has to wait in vain: a rotated box's samples are visited one by one."""
    samples = math.prod(spec.output_size) * spec.sampling_ratio**2
    if samples > MOST_VISITED and KINDS[spec.kind].box == "rotated":
        raise ValueError(
            f"sampling_ratio: got {spec.sampling_ratio} for output_size={tuple(spec.output_size)}; "
            f"expected at most 2**26 samples of a box, since each is visited"
        )
    return spec


def _as_float(value: object, message: str) -> float:
    value = _plain(value, message)
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise TypeError(message)
    try:
        return float(value)
    except OverflowError:
        raise ValueError(message) from None


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


def too_large(size: Sequence[int]) -> ValueError:
    """What to raise where no memory holds a result ``[K, C, *output_size]``."""
    return ValueError(
        f"output_size: got {tuple(size[2:])} for {size[0]} boxes of {size[1]} channels; "
        f"expected a result that fits into memory"
    )
