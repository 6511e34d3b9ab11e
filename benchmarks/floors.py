"""What the memory alone costs, in the same rounds as the calls."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

import torch
from torch import Tensor

from . import roofline
from .device import Cpu, Device
from .directions import Mode
from .peer import Call
from .report import FLOOR, FLOOR_AT_HAND, PLAIN_FLOOR, ROOFLINE
from .workloads import Workload


def memory_alone(workload: Workload, mode: Mode, device: Device) -> dict[str, Call]:
    """What takes its turn for the memory: on a CPU the floors, elsewhere the copy whose speed makes the roofline."""
    if isinstance(device, Cpu):
        return {
            FLOOR: floor(workload, mode, huge_pages=True),
            PLAIN_FLOOR: floor(workload, mode, huge_pages=False),
            FLOOR_AT_HAND: floor(workload, mode, huge_pages=True, fresh=False),
        }
    return {ROOFLINE: roofline.copy(device.device)}


def floor(workload: Workload, mode: Mode, huge_pages: bool, fresh: bool = True) -> Call:
    """What the memory alone costs: read as many bytes as the call must, allocate and write as many as it must.

    A forward reads the maps and writes the output; a backward reads the output's gradient and writes that of the maps;
    a step does both. With ``huge_pages`` the fresh memory is asked for in huge pages, as our core does and as is
    fastest; without, as PyTorch gives it. Not ``fresh``: into memory that is written again and again; the difference is
    what the system takes for new pages.
    """
    maps, pooled = (numbers * mode.dtype.itemsize // 4 for numbers in (workload.cells(), workload.pooled()))
    reads = {"forward": [maps], "backward": [pooled], "step": [maps, pooled]}[mode.part]
    writes = {"forward": [pooled], "backward": [maps], "step": [pooled, maps]}[mode.part]
    sources = [torch.ones(numbers) for numbers in reads]  # float32 whatever the dtype: a sum of halves is no bare read
    kept = [torch.empty(numbers) for numbers in writes] if mode.reuse_output or not fresh else None

    def call() -> tuple[Tensor, ...]:
        for source in sources:
            source.sum()
        targets = kept or [torch.empty(numbers) for numbers in writes]
        for target in targets:
            if huge_pages:
                ask_for_huge_pages(target)
            target.fill_(1)
        return tuple(targets)

    return call


def _huge_page_advice() -> Callable[[Tensor], None]:
    """``madvise(MADV_HUGEPAGE)`` where there is such a thing, else nothing."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return lambda tensor: None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def advise(tensor: Tensor) -> None:
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
        if start < last:
            madvise(start, last - start, mmap.MADV_HUGEPAGE)

    return advise


ask_for_huge_pages = _huge_page_advice()
