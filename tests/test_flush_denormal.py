"""Under ``torch.set_flush_denormal(True)`` a float16 keeps its small values: a float32 holds them as normal numbers."""

from __future__ import annotations

import pytest

from helpers import run_python
from roialign.backends import available

pytestmark = pytest.mark.skipif(not available()["native"].ready, reason=available()["native"].reason)

EVERY_HALF = """
import sys, torch
from roialign import prroi_pool, ps_roi_align, ps_roi_pool, roi_align, roi_pool
from roialign.backends import available
if not available()["native"].ready:
    print("lacks it:", available()["native"].reason)
    sys.exit()
every = torch.arange(-2**15, 2**15, dtype=torch.int16).view(torch.float16)
every = every[every.isfinite() & (every != 0)]
every = every[: len(every) // 200 * 200].reshape(200, -1)
height, width = every.shape
whole = torch.tensor([[0.0, 0, 0, width - 1, height - 1]])
assert torch.set_flush_denormal(True)
for channels in (1, 16, 17):
    for layout in (torch.contiguous_format, torch.channels_last):
        map = every.expand(1, channels, height, width).contiguous(memory_format=layout).requires_grad_()
        pooled = roi_pool(map, whole, (height, width))  # a bin for each cell
        assert torch.equal(pooled.detach().view(torch.int16), map.detach().view(torch.int16)), (channels, layout)
        pooled.backward(map.detach())
        assert torch.equal(map.grad.view(torch.int16), map.detach().view(torch.int16)), (channels, layout)
        small = torch.full((1, channels, 4, 4), 2.0**-24, dtype=torch.float16).contiguous(memory_format=layout)
        for mode in ("avg", "max"):
            pooled = roi_align(small.requires_grad_(), torch.tensor([[0.0, 0, 0, 2, 2]]), 2, 1.0, 2, mode=mode)
            assert bool((pooled == 2.0**-24).all()), (channels, layout, mode)
            (grad,) = torch.autograd.grad(pooled, small, torch.full_like(pooled, 2.0**-14))
            assert bool((grad.float().sum((2, 3)) == 4 * 2.0**-14).all()), (channels, layout, mode)
        for pool in (prroi_pool, ps_roi_align, ps_roi_pool):
            pooled = pool(small, torch.tensor([[0.0, 0, 0, 2, 2]]), 1)
            assert bool((pooled == 2.0**-24).all()), (channels, layout, pool)
            (grad,) = torch.autograd.grad(pooled, small, torch.full_like(pooled, 2.0**-14))
            assert bool((grad.float().sum((2, 3)) == 2.0**-14).all()), (channels, layout, pool)
print("kept", every.numel())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_every_float16_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In scalar and in vector code, forward and backward: what comes out is what went in, bit for bit."""
    monkeypatch.setenv("ROIALIGN_CPU", name)
    said = run_python(EVERY_HALF, "")
    if "lacks it" in said:
        pytest.skip(said.strip())
    assert said.split() == ["kept", "63400"]


THREADS = """
import torch
from roialign import roi_align
map = torch.full((1, 64, 16, 16), 1e-39)
rois = torch.tensor([[0.0, 0, 0, 12, 12]]).repeat(200, 1)
answers = []
torch.set_num_threads(2)
torch.ones(10**6).add_(1)  # the pool's threads begin
for flush in (False, True):
    torch.set_flush_denormal(flush)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        answers.append(int((roi_align(map, rois, 7, 1.0, 2).view(torch.int32) != 0).sum()))
print(*answers)
"""


def test_threads_flush_as_their_caller_does() -> None:
    """A subnormal float32 is kept by every thread or by none: 200 x 64 x 49 values, or no value."""
    assert run_python(THREADS, "native").split() == ["627200", "627200", "0", "0"]
