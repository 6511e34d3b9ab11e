"""What the kernels in Triton compile to for a GPU that is not there: ``python tests/triton_builds.py sm_90 CASES``.

The package's own functions are called, on CPU tensors of real sizes, so that each kernel is built just as it would be
launched; but Triton's driver is a stand-in, and nothing is launched. Prints one JSON object: by case and kernel its
``Resources``. Not for a process in which Triton interprets.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from roialign.backends import triton as kernels
from roialign.backends.triton import blocks, guard
from roialign.spec import KINDS, Pooling

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
SIZES = {1: (33600,), 2: (200, 336), 3: (24, 64, 80)}  # of a map


class Case(NamedTuple):
    """A call: 1000 boxes on one map or several, 256 channels pooled, 10 of a position-sensitive kind; ``sparse`` with
    too few for the machine."""

    bins: int = 7
    dtype: str = "float32"
    last: bool = False
    kind: str = "avg"
    ratio: int = 2
    maps: int = 1
    sparse: bool = False
    rank: int = 2

    def tensors(self) -> tuple[list[Tensor], Tensor, Tensor | None, Pooling, Tensor]:
        """Maps, rois, levels, the pooling, and the gradient to its output."""
        dtype = getattr(torch, self.dtype)
        layout = LAST[self.rank + 2] if self.last else torch.contiguous_format
        kind = KINDS[self.kind]
        spec = Pooling(self.kind, (self.bins,) * self.rank, [], self.ratio, kind.sensitive or kind.box != "corners")
        channels = 10 if kind.sensitive else 256
        shapes = [(1, channels * spec.group, *(size >> i for size in SIZES[self.rank])) for i in range(self.maps)]
        maps = [torch.empty(shape, dtype=dtype, memory_format=layout) for shape in shapes]
        grad = torch.empty(1000, channels, *spec.output_size, dtype=dtype, memory_format=layout)
        rois = torch.zeros(1000, spec.columns, dtype=torch.promote_types(dtype, torch.float32))
        level = torch.zeros(1000, dtype=torch.int64) if self.maps > 1 else None
        scales = [0.25 / 2 ** (i // self.rank) for i in range(self.rank * self.maps)]
        return maps, rois, level, spec._replace(scales=scales), grad


def build(case: Case, **options: Any) -> dict[str, Any]:
    """Every kernel that the three directions of a call launch, by name."""
    maps, rois, level, spec, grad = case.tensors()
    shapes = [size for each in maps for size in each.shape]
    blocks.multiprocessors = lambda device: 10**6 if case.sparse else 1
    built: dict[str, Any] = {}

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **{**kwargs, **options})
        name = f"{self.fn.__module__.split('.')[-1]}.{self.fn.__name__.lstrip('_')}"
        variant = " with slopes" if kwargs.get("SLOPES") else " of winners" if kwargs.get("WINNERS") else ""
        variant += f" {kwargs['FORM']}" if kwargs.get("FORM", "tables") != "tables" else ""
        built[name + variant] = kernel

    run, JITFunction.run = JITFunction.run, compile_only
    try:
        kernels._pool(maps, rois, level, spec)
        kernels._pool_grad(grad, maps, shapes, case.last, rois, level, spec)
        kernels._pool_box_grad(grad, maps, rois, level, spec)
        if case == Case():
            guard.mark(grad, guard.safe_boxes(rois, 1, 0.25), 1, 0.25)
    finally:
        JITFunction.run = run
    return built


class Driver:
    """What Triton asks of a driver before it launches."""

    def __init__(self, target: GPUTarget) -> None:
        self.get_current_target = lambda: target
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0


class Resources(NamedTuple):
    """What a kernel takes: registers and spilled bytes of a thread, shared bytes of a program; fused multiply-adds."""

    registers: int
    spilled: int
    shared: int
    fused: int


def resources(kernel: Any) -> Resources:
    """Read from the machine code."""
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        registers, spilled = (
            int(re.findall(rf"\.vgpr_{name}:\s+(\d+)", text)[-1]) for name in ("count", "spill_count")
        )
        # A division is rounded by five of its own. Of halves, which need no conversion then, a product is written as a
        # sum with -0 and a difference as one with a product by -1: each rounds once all the same.
        fused = re.findall(r"\bv_(?:pk_)?(?:fma|fmac|mad|mac)_\w*f(?:32|64)(?!.*, (?:neg\(0\)|-?1\.0,))", text)
        return Resources(registers, 4 * spilled, kernel.metadata.shared, len(fused) - 5 * text.count("v_div_fmas_f"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        program = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        text = subprocess.run([program, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.findall(rf"{name}:(\d+)", text)[-1]) for name in ("REG", "STACK"))
    return Resources(registers, stack, kernel.metadata.shared, len(re.findall(r"\bfma\.", kernel.asm["ptx"])))


if __name__ == "__main__":
    driver.set_active(Driver(TARGETS[sys.argv[1]]))
    found = {}
    for argument in sys.argv[2:]:
        case = Case(**json.loads(argument))
        found[argument] = {name: resources(kernel) for name, kernel in build(case).items()}
    print(json.dumps(found))
