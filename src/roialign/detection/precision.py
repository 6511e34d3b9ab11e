"""The precision in which a detector computes: low in its backbone, which is most of the work, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

PRECISIONS = ("float32", "bfloat16")
# What PyTorch calls the instructions of CPUs that multiply bfloat16.
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")

Maps = Tensor | dict[str, Tensor]


def lower(model: FasterRCNN, precision: str) -> None:
    """Have a detector's backbone, with its pyramid, compute in a precision, in place.

    By autocast: parameters stay as they are, and what needs more than bfloat16's eight bits has it. The maps that come
    out are float32, and so is all that is made of them: in bfloat16, boxes beyond pixel 256 would be even numbers.

    Args:
        model: a detector; copies of it compute likewise.
        precision: ``"float32"``, which changes nothing, or ``"bfloat16"``.

    Raises:
        ValueError: another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}; expected {' or '.join(map(repr, PRECISIONS))}")
    if precision != "float32":
        model.backbone.forward = partial(_lowered, model.backbone, getattr(torch, precision))


def _lowered(backbone: nn.Module, dtype: torch.dtype, pixels: Tensor) -> Maps:
    with torch.autocast(pixels.device.type, dtype):
        maps = cast(Maps, type(backbone).forward(backbone, pixels))
    return maps.float() if isinstance(maps, Tensor) else {name: each.float() for name, each in maps.items()}


def slow(precision: str, device: torch.device) -> str:
    """What to say of a CPU that is slow in a precision. Mostly nothing."""
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # from PyTorch 2.11 on
    if precision == "float32" or device.type != "cpu" or not known or any(map(known.get, INSTRUCTIONS)):
        return ""
    return f"this CPU has no instructions for {precision}: float32 is faster"
