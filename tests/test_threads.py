"""Many threads at once, and forked children: right answers, no hang."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from helpers import RELATIVE, as_rotated, run_python, some_offset
from roialign import (
    backends,
    deform_roi_pool,
    prroi_pool,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    roi_align_rotated,
    roi_pool,
)
from test_backends import PLAIN

pytestmark = pytest.mark.usefixtures("backend")


def work(seed: int) -> list[Tensor]:
    """Forward and backward of each operator on maps and boxes that depend on the seed."""
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(2, 19, 20 + seed, 23, generator=generator)
    corner = torch.rand(30, 2, generator=generator) * 20 - 3
    rois = torch.cat(
        [torch.randint(2, (30, 1), generator=generator), corner, corner + torch.rand(30, 2, generator=generator) * 15],
        1,
    )
    results = []
    for pool in (
        lambda map, box: roi_align(map, box, 3, 1.0, 2),
        lambda map, box: roi_align(map, box, 3, aligned=True),
        lambda map, box: roi_align(map, box, 2, 1.0, 2, mode="max"),
        lambda map, box: prroi_pool(map, box, 3),
        lambda map, box: roi_pool(map, box, 3),
        lambda map, box: ps_roi_align(map[:, :18], box, 3),
        lambda map, box: ps_roi_pool(map[:, :18], box, 3),
        lambda map, box: roi_align_rotated(map, as_rotated(box), 3),
        lambda map, box: deform_roi_pool(map, box, some_offset(box, 3, 3), 3, 1.0, 2),
    ):
        leaf = input.clone().requires_grad_()
        pooled = pool(leaf, rois)
        pooled.square().sum().backward()
        assert leaf.grad is not None
        results += [pooled.detach(), leaf.grad]
    return results


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for got, wanted in zip(actual, expected, strict=True):
        atol = RELATIVE[got.dtype] * max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


def test_eight_threads_at_once() -> None:
    expected = [work(seed) for seed in range(8)]
    together = threading.Barrier(8)

    def run(seed: int) -> list[list[Tensor]]:
        together.wait()
        return [work(seed) for _ in range(3)]

    with ThreadPoolExecutor(8) as pool:
        for seed, results in enumerate(pool.map(run, range(8))):
            for result in results:
                assert_same(result, expected[seed])


def test_an_error_in_one_thread_is_that_threads_alone() -> None:
    expected = work(1)
    bad = torch.tensor([[5.0, 0, 0, 1, 1]])

    def run(turn: int) -> list[Tensor] | None:
        if turn % 2:
            with pytest.raises(IndexError, match="N = 1"):
                roi_align(torch.ones(1, 1, 4, 4), bad, 2)
            return None
        return work(1)

    with ThreadPoolExecutor(8) as pool:
        for result in filter(None, pool.map(run, range(16))):
            assert_same(result, expected)


def test_some_force_a_backend_while_others_choose(backend: str) -> None:
    """Everybody finds a choice, one that somebody made; in Python without a GIL a list may shrink under its reader."""
    together = threading.Barrier(8)

    def run(turn: int) -> set[str]:
        together.wait()
        if turn % 2:
            return {backends.choose(PLAIN) for _ in range(3000)}
        for _ in range(3000):
            with backends.use("reference"):
                pass
        return set()

    with ThreadPoolExecutor(8) as pool:
        assert set().union(*pool.map(run, range(8))) <= {backend, "reference"}
    assert backends.choose(PLAIN) == backend


FIRST = """
import sys, threading, torch
from concurrent.futures import ThreadPoolExecutor
together = threading.Barrier(8)
has_gil = getattr(sys, "_is_gil_enabled", lambda: True)
before = has_gil()
def run(_):
    together.wait()
    import roialign
    map = torch.arange(36.0).reshape(1, 1, 6, 6)
    pooled = roialign.roi_align(map, torch.tensor([[0.0, 1, 1, 5, 5]]), 1, 1.0, 2)
    assert has_gil() == before
    together.wait()
    return pooled.item(), id(roialign.MultiScaleRoIAlign), id(roialign.explain)
with ThreadPoolExecutor(8) as pool:
    found = set(pool.map(run, range(8)))
assert len(found) == 1
print(*[pooled for pooled, *_ in found])
"""


def test_eight_threads_import_at_once(backend: str) -> None:
    """Each part is loaded once, pools right, the box's middle, and a Python without a GIL stays without."""
    assert run_python(FIRST, backend).strip() == "21.0"


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    """Bit for bit, forward and backward."""
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(work(2))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_the_same_call_gives_the_same_bits() -> None:
    assert all(torch.equal(a, b) for a, b in zip(work(3), work(3), strict=True))


FORK = """
import os, sys, torch
import roialign
from test_threads import assert_same, work
expected = work(0)
rois = torch.tensor([[1.0, 2, 2, 40, 40]] * 200)
image = torch.rand(4, 64, 50, 50).requires_grad_()
grad = torch.rand(200, 64, 7, 7)
def large():  # our own calls only: forward and backward, enough work for many threads
    pooled = roialign.roi_align(image, rois, 7, 1.0, 2)
    return [pooled.detach(), *torch.autograd.grad(pooled, image, grad)]
expected_large = large()  # the parent's thread pools are up
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        try:
            if sys.argv[1] == "worker":
                torch.set_num_threads(1)  # as a DataLoader's worker does
                assert_same(work(0), expected)
            pooled, gradient = large()
            torch.set_num_threads(1)
            assert_same([pooled, gradient], expected_large)
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    children.append(child)
statuses = [os.waitpid(child, 0)[1] for child in children]
assert statuses == [0, 0, 0], statuses
assert_same(work(0), expected)
print("right")
"""


@pytest.mark.parametrize("child", ["worker", "plain"])
def test_a_forked_child(backend: str, child: str) -> None:
    """A pool of threads does not survive a fork, and waiting for it hangs."""
    if (backend, child) == ("reference", "plain"):
        pytest.skip("PyTorch's own operators, a sum of two tensors even, hang in a child that keeps many threads")
    assert run_python(FORK, backend, child, timeout=120).strip() == "right"
