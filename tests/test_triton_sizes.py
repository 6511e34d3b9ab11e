"""The kernels in Triton at sizes and scales that could build them anew, and with boxes in several groups."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import rows
from roialign import backends
from roialign.spec import Pooling
from triton_device import DEVICE, needs_kernels

TOLERANCE = 2e-6
SPECS = {
    "fixed": Pooling("avg", (2, 3), (0.5, 0.4), 2),
    "integral": Pooling("integral", (2, 3), (0.5, 0.4)),
    "max": Pooling("max", (2, 3), (0.5, 0.4), 2),
    "cells": Pooling("cells", (2, 3), (0.5, 0.4)),
}
BOXES = [(0, 3.1, 2.2, 17.3, 9.4), (1, -4.3, -3.2, 8.1, 5.3), (1, 25.7, 3.3, 44.9, 15.1), (0, 31.2, 4.3, 12.1, 3.2)]


def everything(maps: Tensor, rois: Tensor, spec: Pooling, backend: str) -> list[Tensor]:
    """What is pooled and both gradients."""
    maps, rois = maps.detach().requires_grad_(), rois.detach().requires_grad_()
    with backends.use(backend):
        pooled = backends.pool([maps], rois, None, spec)
        grad = torch.linspace(-1, 1, pooled.numel(), device=pooled.device).view(pooled.shape)
        return [pooled.detach(), *torch.autograd.grad(pooled, (maps, rois), grad, materialize_grads=True)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        atol = TOLERANCE * float(other.nan_to_num().abs().max())
        torch.testing.assert_close(one.cpu(), other, rtol=TOLERANCE, atol=atol, equal_nan=True)


@pytest.mark.parametrize(("version", "least"), [("3.8.1", 8), ("3.10.0", 8), ("3.7.1+git", 16), ("main", 8)])
def test_bins_that_a_product_sums_over(version: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Triton 3.8 no fewer than 16."""
    triton = pytest.importorskip("triton")
    from roialign.backends.triton.blocks import bins_summed

    monkeypatch.setattr(triton, "__version__", version)
    assert (bins_summed(7), bins_summed(14)) == (least, 16)


@needs_kernels
@pytest.mark.parametrize("name", SPECS)
def test_boxes_in_groups_are_pooled_as_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of one box at a time, gone before the next's are made, since memory is counted in those of one group;
    tiles of one image at a time; winners of some channels at a time, the last fewer."""
    from roialign.backends.triton import backward, box_grad, forward, maximum, tables

    made: list[weakref.ref[Tensor]] = []

    def watched(make: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        def alone(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
            assert not any(each() is not None for each in made)
            tables = make(*args, **kwargs)
            made.extend(map(weakref.ref, tables))
            return tables

        return alone

    maps = torch.randn(2, 35, 5, 19, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor(BOXES)
    expected = everything(maps, rois, SPECS[name], "reference")
    maximal = name in ("max", "cells")
    for module in (maximum,) if maximal else (forward, box_grad):
        make = "make_candidates" if maximal else "make_tables"
        monkeypatch.setattr(module, make, watched(getattr(module, make)))
    monkeypatch.setattr(tables, "TOGETHER", 1)
    monkeypatch.setattr(backward, "WORDS", 1)
    monkeypatch.setattr(maximum, "WINNERS", 1)
    assert_same(everything(maps.to(DEVICE), rois.to(DEVICE), SPECS[name], "triton"), expected)
    assert len(made) > 4 * len(BOXES)


@needs_kernels
@pytest.mark.parametrize("scale", [0.0, 1e-320, 5e-324, 1 / 3, 2.0**-40])
def test_any_scale(scale: float) -> None:
    """Whichever half of its bits is 0, 1 or neither: through the operator, as the functions refuse 0."""
    maps, rois = torch.arange(12.0).view(1, 1, 3, 4), rows((0, 1, 1, 3, 3))
    spec = Pooling("avg", (1, 1), (scale, 1.0), 2)
    expected = everything(maps, rois, spec, "reference")
    assert_same(everything(maps.to(DEVICE), rois.to(DEVICE), spec, "triton"), expected)


BUILDS = """
import json, torch, triton_builds
from roialign.backends.triton import backward, box_grad, forward, maximum, search
from roialign.spec import Pooling
from triton.runtime import driver
from triton.runtime.jit import JITFunction
driver.set_active(triton_builds.Driver(triton_builds.TARGETS["sm_90"]))
run, JITFunction.run = JITFunction.run, lambda self, *a, grid, warmup, **k: run(self, *a, grid=grid, warmup=True, **k)
avg, most = (Pooling(kind, (7, 7), (0.25, 0.25, 0.125, 0.125), 2) for kind in ("avg", "max"))
for (height, width), boxes in (((16, 32), 16), ((17, 33), 1), ((1, 48), 7), ((64, 1), 32)):
    maps = [torch.empty(2, 32, height, width), torch.empty(2, 32, width, height)]
    rois, level, grad = torch.zeros(boxes, 5), torch.zeros(boxes, dtype=torch.int64), torch.empty(boxes, 32, 7, 7)
    shapes = [size for each in maps for size in each.shape]
    forward.pool(maps, rois, level, avg)
    backward.pool_grad(grad, [], shapes, False, rois, level, avg)
    box_grad.pool_box_grad(grad, maps, rois, level, avg)
    maximum.pool(maps, rois, level, most)
kernels = {"tables": forward.make_tables.__globals__["_tables"], "rows": forward._rows, "mark": backward._mark,
           "gather": backward._gather, "slopes": box_grad._sum_slopes, "choose": search._choose}
print(json.dumps({name: len(kernel.device_caches[0][0]) for name, kernel in kernels.items()}))
"""


def test_images_of_any_size_take_one_build() -> None:
    """Lengths that are 1, a multiple of 16 and neither, and as many boxes, by Triton's compiler without a GPU."""
    pytest.importorskip("triton")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run([sys.executable, "-c", BUILDS], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout)
    # The tables are built with slopes and without.
    assert built == {"tables": 2, "rows": 1, "mark": 1, "gather": 1, "slopes": 1, "choose": 1}
