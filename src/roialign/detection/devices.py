"""Processes, their devices, and the trackers that are told of a training: Accelerate's, as somebody asked for them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from .recipe import Recipe


def processes(device: str | None = None) -> PartialState:
    """Those that Accelerate or torchrun started, and the device of this one.

    Args:
        device: cpu, cuda, cuda:1, ...; None: the machine's accelerator, if it has one.

    Raises:
        ValueError: there is no such device, or the launcher decides about it.
    """
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built for CUDA
            raise ValueError(f"device: got {device!r}; {str(error).splitlines()[0]}") from None
        if torch.device(device).index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(f"device: got {device!r} for several processes; the launcher gives each its own")
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    cpu = not torch.accelerator.is_available() if device is None else torch.device(device).type == "cpu"
    return PartialState(cpu=cpu)


def make_accelerator(recipe: Recipe, folder: Path) -> Accelerator:
    """Of a training in a folder.

    Raises:
        ValueError: the device, the precision or the tracker is none, or cannot be had here.
    """
    names = [name.strip() for name in recipe.tracker.split(",")] if recipe.tracker else []
    for name in names:  # Accelerate leaves out whom it cannot tell
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(f"tracker: got {name!r}; expected one of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
        if name not in map(str, get_available_trackers()):
            raise ValueError(f"tracker: got {name!r}, whose package is not installed")
    cpu = processes(recipe.device).device.type == "cpu"
    return Accelerator(cpu=cpu, mixed_precision=recipe.precision, log_with=names or None, project_dir=folder)
