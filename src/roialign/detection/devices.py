"""Processes, their devices, and the trackers that are told of a training: Accelerate's, as somebody asked for them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import broadcast_object_list, gather_object

from .recipe import Recipe

LAUNCHERS = {"RANK", "ACCELERATE_USE_CPU"}  # variables by which torchrun and accelerate launch tell of themselves
PATIENCE = timedelta(days=30)  # that a process waits for another one's share, which may have the largest images

Made = TypeVar("Made")

# Accelerate's answer is the process's, given at the first question: a thread that asks meanwhile would find half of it.
_asking = threading.Lock()


def processes(device: str | None = None, patience: timedelta | None = None) -> PartialState:
    """Those that Accelerate or torchrun started, and the device of this one.

    Args:
        device: cpu, cuda, cuda:1, ...; None: the machine's accelerator, if it has one.
        patience: how long processes wait for each other; None: as long as PyTorch has it, half an hour or less. The
            first call decides.

    Raises:
        ValueError: there is no such device, or the launcher decides about it.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if device is not None:
        try:
            torch.device(device)
        except RuntimeError:
            raise ValueError(f"device: got {device!r}; expected cpu, cuda, cuda:1, mps, ...") from None
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built for CUDA
            raise ValueError(f"device: got {device!r}; {str(error).splitlines()[0]}") from None
        if not alone and torch.device(device).index is not None:
            raise ValueError(f"device: got {device!r} for several processes; the launcher gives each its own")
    cpu = not torch.accelerator.is_available() if device is None else torch.device(device).type == "cpu"
    waiting = {} if patience is None else {"timeout": patience}
    with _asking:
        if device is not None and alone:
            os.environ["ACCELERATE_TORCH_DEVICE"] = device
        return PartialState(cpu=cpu, **waiting)


def told(team: PartialState) -> str:
    """How many processes share the work, if this is the first of those that a launcher started; else nothing."""
    if not (team.is_main_process and LAUNCHERS & os.environ.keys()):
        return ""
    if team.num_processes > 1:
        return f"{team.num_processes} processes on {team.device.type} share the work"
    return f"1 process on {team.device.type}; for more on CPUs: torchrun --nproc-per-node 2 -m roialign ..."


def of_the_first(team: PartialState, make: Callable[[], Made]) -> Made:
    """What the first process makes, in all of them; they wait for it, and raise what it raises."""
    if team.num_processes == 1:
        return make()
    made: list[Made | Exception | None] = [None]
    if team.is_main_process:
        try:
            made = [make()]
        except Exception as error:
            made = [error]
    (result,) = broadcast_object_list(made)
    if isinstance(result, Exception):
        raise result
    return result  # type: ignore[no-any-return]


def gathered(team: PartialState, share: list[Made]) -> list[Made]:
    """The shares of all processes in all of them, those of the first process first."""
    return share if team.num_processes == 1 else list(gather_object(share))


def make_accelerator(recipe: Recipe, folder: Path) -> Accelerator:
    """Of a training in a folder.

    Raises:
        ValueError: the device or the tracker is none, or cannot be had here.
    """
    names = [name.strip() for name in recipe.tracker.split(",")] if recipe.tracker else []
    for name in names:  # Accelerate leaves out whom it cannot tell
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(f"tracker: got {name!r}; expected one of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
        if name not in map(str, get_available_trackers()):
            raise ValueError(f"tracker: got {name!r}, whose package is not installed")
    cpu = processes(recipe.device).device.type == "cpu"
    # The precision is ours to see to, whatever a launcher was told.
    return Accelerator(cpu=cpu, mixed_precision="no", log_with=names or None, project_dir=folder)
