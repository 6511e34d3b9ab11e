"""What is timed: which part of a call, in which layout and dtype, on how many threads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

Part = Literal["forward", "backward", "step"]

EXTRA_DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}  # what an implementation may lack


@dataclass(frozen=True)
class Mode:
    """How one implementation is called.

    Args:
        part: ``"forward"``; ``"backward"``, the forward having been done beforehand; or ``"step"``, both together.
        dtype: of the maps.
        channels_last: whether the maps are.
        box_gradient: whether the gradient to the boxes is computed beside that to the maps.
        reuse_output: whether a call writes into memory that it wrote before, so that no page is new to it.
        threads: how many; None takes the run's.
        deterministic: whether ``torch.use_deterministic_algorithms`` is on.
        device: where the tensors are; the run's, whatever a direction says.
    """

    part: Part = "forward"
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    box_gradient: bool = False
    reuse_output: bool = False
    threads: int | None = None
    deterministic: bool = False
    device: str = "cpu"

    def needs(self) -> frozenset[str]:
        """What an implementation must be able to do."""
        needs = {"forward" if self.part == "forward" else "backward"}
        if self.dtype in EXTRA_DTYPES:
            needs.add(EXTRA_DTYPES[self.dtype])
        for option in ("channels_last", "box_gradient", "reuse_output", "deterministic"):
            if getattr(self, option):
                needs.add(option)
        if self.device != "cpu":
            needs.add("gpu")
        return frozenset(needs)


@dataclass(frozen=True)
class Direction:
    """One thing to time: our mode, which peers share if they can, and perhaps another of our own modes beside it.

    Args:
        mode: what is timed.
        groups: the workloads that are timed so unless others are asked for.
        yardstick: the name of our own other mode.
        beside: that mode.
        where: ``"cpu"`` or ``"gpu"`` if it has a meaning there only.
        back_to_back: whether calls follow each other at once, so that what is timed on a GPU is to launch them.
    """

    mode: Mode
    groups: tuple[str, ...] = ("six",)
    yardstick: str = ""
    beside: Mode | None = None
    where: str = ""
    back_to_back: bool = False


# Of the operators and ranks that only a CPU's kernels serve.
FAMILY_GROUPS = ("position_sensitive", "rotated", "deformable", "volumes", "signals")

DIRECTIONS = {
    "forward": Direction(Mode(), ("six", "pyramid", "crowded", "tiny", "series", *FAMILY_GROUPS)),
    "channels_last": Direction(Mode(channels_last=True)),
    "bfloat16": Direction(Mode(dtype=torch.bfloat16), yardstick="our float32", beside=Mode()),
    "float16": Direction(Mode(dtype=torch.float16), yardstick="our float32", beside=Mode()),
    "threads": Direction(
        Mode(reuse_output=True), yardstick="our 1 thread", beside=Mode(reuse_output=True, threads=1), where="cpu"
    ),
    "launch": Direction(Mode(), ("tiny",), where="gpu", back_to_back=True),
    "backward": Direction(Mode("backward"), ("six", "pyramid", "crowded", "series", *FAMILY_GROUPS)),
    "channels_last_backward": Direction(Mode("backward", channels_last=True), where="gpu"),
    "box_gradient": Direction(
        Mode("backward", box_gradient=True), yardstick="our input only", beside=Mode("backward")
    ),
    "step": Direction(Mode("step"), ("six", "pyramid")),
    "deterministic": Direction(
        Mode("step", deterministic=True), ("six", "pyramid"), yardstick="ours, not so", beside=Mode("step"), where="gpu"
    ),
}  # fmt: skip


def directions_on(device: str) -> dict[str, Direction]:
    """Those that have a meaning on a device, with its name in their modes."""
    here = "cpu" if device == "cpu" else "gpu"
    return {
        name: replace(it, mode=replace(it.mode, device=device), beside=it.beside and replace(it.beside, device=device))
        for name, it in DIRECTIONS.items()
        if it.where in ("", here)
    }
