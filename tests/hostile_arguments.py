"""What hostile calls are made of: harmless arguments, of which each call changes some, and words of the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from roialign import MultiScaleRoIAlign, deform_roi_pool, roi_align, roi_align_rotated

INF, NAN = float("inf"), float("nan")


class Call(NamedTuple):
    """What is called, the exception it must raise, and what its message must contain: argument, came, expected."""

    run: Callable[[], object]
    error: type[Exception]
    words: tuple[str, ...]


def map_(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A feature map of ones, ``[2, 3, 8, 8]`` unless told."""
    return torch.ones(shape or (2, 3, 8, 8), dtype=dtype)


def boxes(*indices: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """One harmless box per batch index."""
    return torch.tensor([[index, 1, 1, 5, 5] for index in indices or (0,)], dtype=dtype).reshape(-1, 5)


def freed(tensor: Tensor, left: int = 0) -> Tensor:
    """The tensor with all but ``left`` bytes of its storage given back, as FSDP does."""
    tensor.untyped_storage().resize_(left)
    return tensor


def align(*args: Any, **options: Any) -> Callable[[], object]:
    """``roi_align`` on harmless arguments but those given: input, boxes and output_size by position, others by name."""
    filled = (*args, *(map_(), boxes(), 2)[len(args) :])
    return lambda: roi_align(*filled, **options)


def rotated(*args: Any, **options: Any) -> Callable[[], object]:
    """``roi_align_rotated`` likewise."""
    filled = (*args, *(map_(), turned(), 2)[len(args) :])
    return lambda: roi_align_rotated(*filled, **options)


def turned(*indices: float) -> Tensor:
    """One harmless rotated box per batch index."""
    return torch.tensor([[index, 4.0, 4.0, 3.0, 2.0, 30.0] for index in indices or (0,)])


def deform(*args: Any, **options: Any) -> Callable[[], object]:
    """``deform_roi_pool`` likewise, whose offset stands between the boxes and the size."""
    filled = (*args, *(map_(), boxes(), torch.zeros(1, 2, 2, 2), 2)[len(args) :])
    return lambda: deform_roi_pool(*filled, **options)


def line(*args: Any, **options: Any) -> Callable[[], object]:
    """``roi_align`` likewise of a signal ``[2, 3, 8]``."""
    filled = (*args, *(map_(2, 3, 8), torch.tensor([[0.0, 1, 5]]), 2)[len(args) :])
    return lambda: roi_align(*filled, **options)


def volume(*args: Any, **options: Any) -> Callable[[], object]:
    """``roi_align`` likewise of a volume ``[2, 3, 8, 8, 8]``."""
    filled = (*args, *(map_(2, 3, 8, 8, 8), torch.tensor([[0.0, 1, 1, 1, 5, 5, 5]]), 2)[len(args) :])
    return lambda: roi_align(*filled, **options)


def pyramid(**changes: Any) -> Callable[[], object]:
    """``MultiScaleRoIAlign`` on harmless arguments but those given."""
    call: dict[str, Any] = {
        "x": {"0": map_(2, 3, 16, 16), "1": map_()},
        "boxes": [torch.tensor([[1.0, 1, 9, 9]])] * 2,
        "image_shapes": [(64, 64)] * 2,
        "featmap_names": ["0", "1"],
        "output_size": 2,
        "sampling_ratio": 2,
    } | changes
    built = ("featmap_names", "output_size", "sampling_ratio", "canonical_scale", "aligned", "mode", "operator")
    options = {name: call.pop(name) for name in built if name in call}
    return lambda: MultiScaleRoIAlign(**options)(call["x"], call["boxes"], call["image_shapes"])


def bad_index(index: float, shown: str, **options: Any) -> Call:
    """A batch index that names no image must be reported with its row, its value and N."""
    rois = boxes(0, 1, index, **options)
    return Call(align(map_(), rois), IndexError, ("boxes", "row 2", shown, "N = 2", "expected", "[0, 2)"))


SIZE = ("output_size", "expected", "positive int")
SCALE = ("spatial_scale", "expected", "positive finite number")
RATIO = ("sampling_ratio", "expected an int")
BOXES = ("boxes", "expected", "Tensor[K, 5]")
INPUT = ("input", "expected")
OFFSET = ("offset", "expected")
GAMMA = ("gamma", "expected a finite number")
TURNED = ("boxes", "expected", "Tensor[K, 6]", "cx, cy, w, h, angle")
