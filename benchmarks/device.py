"""Where the calls run, and how long they take there: a CPU by the process's clock, a GPU by its own events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from roialign import backends

from .peers import TRITON

Work = Callable[[], object]

SAMPLE = 2e-3  # seconds: a shorter call is repeated within a sample, so that the clock does not matter
PAUSE = 2e-3  # seconds before a sample, in which the threads of whoever came before stop spinning
WARM_UP = 3  # calls: kernels are compiled and loaded in the first, memory is kept from the second on
COLD = 2**29  # bytes that are read before a sample: more than any cache between a GPU's cores and its memory
BUSY = 12  # times over: 2 ms on an H100, where the host takes up to 0.5 ms to put a call into the queue


class Device(Protocol):
    """What runs the calls.

    Attributes:
        device: as PyTorch names it.
    """

    device: torch.device

    def warm_up(self, call: Work, back_to_back: bool = False) -> int:
        """Call until it is as fast as it gets; how many calls shall make a sample."""

    def seconds(self, call: Work, repeat: int) -> float:
        """One sample: seconds per call. To free a result belongs to the call, as for a user."""

    def peak(self, call: Work) -> int | None:
        """Bytes that a call takes at most, its result among them, beside what was there; None where nobody counts."""

    def about(self) -> str:
        """What it is."""


class Cpu:
    """The CPU, where a short call is always repeated."""

    device = torch.device("cpu")

    def warm_up(self, call: Work, back_to_back: bool = False) -> int:
        """One call."""
        start = time.perf_counter()
        call()
        return max(1, math.ceil(SAMPLE / (time.perf_counter() - start)))

    def seconds(self, call: Work, repeat: int) -> float:
        """By the clock."""
        time.sleep(PAUSE)
        repeats = range(repeat)
        start = time.perf_counter()
        for _ in repeats:
            call()
        return (time.perf_counter() - start) / repeat

    def peak(self, call: Work) -> None:
        """Nobody counts."""

    def about(self) -> str:
        """The report tells about the CPU anyway."""
        return "cpu"


class Gpu:
    """A device that works through a queue, by PyTorch's module of it: ``torch.cuda``, ROCm's too, or ``torch.xpu``.

    A sample is one call, between two events in the queue, with cold caches: they are filled with something else before.
    That takes the device longer than the host needs to put a call into the queue, so that the call's time is the
    device's, unless the host has to wait within it. Back to back it is the other way round: calls follow each other,
    nothing is cold, and the clock is the host's, so that a small call costs what it costs to launch it.
    """

    def __init__(self, device: torch.device, module: Any = None) -> None:
        self.device = device
        self.module = module or torch.get_device_module(device)
        self.cold = torch.ones(COLD // 4, device=device)

    def warm_up(self, call: Work, back_to_back: bool = False) -> int:
        """A few calls; back to back as many to a sample as fill it."""
        for _ in range(WARM_UP):
            call()
        self.module.synchronize(self.device)
        if not back_to_back:
            return 1
        start = time.perf_counter()
        call()
        self.module.synchronize(self.device)
        return max(2, math.ceil(SAMPLE / (time.perf_counter() - start)))

    def seconds(self, call: Work, repeat: int) -> float:
        """Of one call by events, of several by the clock."""
        self.module.synchronize(self.device)
        if repeat > 1:
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            self.module.synchronize(self.device)
            return (time.perf_counter() - start) / repeat
        begin, end = (self.module.Event(enable_timing=True) for _ in range(2))
        for _ in range(BUSY):
            self.cold.sum()  # read, not written: what is only read need not be written back while the call runs
        begin.record()
        call()
        end.record()
        end.synchronize()
        return 1e-3 * float(begin.elapsed_time(end))

    def peak(self, call: Work) -> int:
        """By PyTorch's allocator, which hands out all memory on such devices."""
        self.module.synchronize(self.device)
        self.module.reset_peak_memory_stats(self.device)
        before = self.module.memory_allocated(self.device)
        call()
        self.module.synchronize(self.device)
        return int(self.module.max_memory_allocated(self.device) - before)

    def about(self) -> str:
        """Its name, and what drives it."""
        version = torch.version
        driver = f"ROCm {version.hip}" if version.hip else f"CUDA {version.cuda}" if self.device.type == "cuda" else ""
        return ", ".join(filter(None, [self.module.get_device_name(self.device), driver]))


CPU = Cpu()


def find_device(name: str) -> Device:
    """The device of this name.

    Raises:
        ValueError: it is none, or is not here, or our kernels do not run on it.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: got {name!r}; expected cpu, cuda (ROCm's name, too) or xpu") from None
    if device.type == "cpu":
        return CPU
    if device.type not in ("cuda", "xpu"):  # what has events and counts its memory
        raise ValueError(f"device: got {name!r}; expected cpu, cuda (ROCm's name, too) or xpu")
    module = torch.get_device_module(device)
    if (device.index or 0) >= module.device_count():
        raise ValueError(
            f"device: got {name!r}; PyTorch {torch.__version__} finds {module.device_count()} such devices"
        )
    if TRITON.backend not in backends.ORDER:
        raise ValueError(f"device: got {name!r}; this version has no backend {TRITON.backend!r}")
    reason = backends.available(torch.empty(0, 0, 0, 0, device=device))[TRITON.backend].reason
    if reason:
        raise ValueError(f"device: got {name!r}; our kernels do not run on it: {reason}")
    if device.index is not None:
        module.set_device(device)  # events are noted in the current device's queue
    return Gpu(device)
