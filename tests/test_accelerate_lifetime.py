"""roialign.accelerate(): when it begins and when it ends, by any order, error, thread or stranger's override."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision.ops

import forked
import roialign
from helpers import run_python
from roialign.backends import native
from roialign.integrations import accelerate_gpu
from test_accelerate import dumps, nothing_stays, random_case

pytestmark = pytest.mark.skipif(bool(native.UNREADY), reason=f"nothing to take over with: {native.UNREADY}")
__all__ = ["nothing_stays"]  # a fixture of these tests too


def test_nested_repeated_and_out_of_order() -> None:
    original = dumps()
    first = roialign.accelerate()
    taken = dumps()
    assert taken != original
    second = roialign.accelerate()
    with roialign.accelerate() as third:
        assert dumps() == taken
        first.undo()
        first.undo()  # its own once only
        assert dumps() == taken
    assert dumps() == taken
    third.undo()
    assert dumps() == taken
    assert "active" in repr(second)
    second.undo()
    assert dumps() == original
    assert "undone" in repr(second)
    assert second.devices == (("CPU", "CUDA") if accelerate_gpu.is_here() else ("CPU",))


def test_undone_by_an_error_in_the_block_and_begun_again() -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), roialign.accelerate():
            _ = 1 // 0


def test_a_dropped_handle_goes_on_until_it_is_undone() -> None:
    code = (
        "import gc, torch, torchvision, roialign\n"
        "roialign.accelerate()\n"
        "gc.collect()\n"
        "try: torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[7.0, 0, 0, 2, 2]]), 1)\n"
        "except IndexError as error: print(error)\n"
    )
    assert "batch index 7" in run_python(code, "")


def test_anothers_override_survives_ours() -> None:
    input, rois = random_case()
    expected = torchvision.ops.roi_align(input, rois, 3)
    handle = roialign.accelerate()
    library = torch.library.Library("torchvision", "IMPL")
    library.impl("roi_align", lambda input, rois, *how: input.new_full((1, 1, 1, 1), 5.0), "CPU")
    handle.undo()
    assert torchvision.ops.roi_align(input, rois, 3).item() == 5
    library._destroy()
    assert torch.equal(torchvision.ops.roi_align(input, rois, 3), expected)


def test_silent_even_where_pytorch_always_warns() -> None:
    code = (
        "import warnings, torch, torchvision, roialign\n"
        "warnings.simplefilter('error')\n"
        "torch.set_warn_always(True)\n"
        "for _ in range(2):\n"
        "    with roialign.accelerate():\n"
        "        torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]), 1)\n"
    )
    assert forked.run(code) == (0, "", "")


def test_without_torchvision_the_extra_is_named() -> None:
    code = (
        "import sys\n"
        "sys.modules['torchvision'] = None\n"
        "import torch, roialign\n"
        "try: roialign.accelerate()\n"
        "except ImportError as error: print(error)\n"
        "print(roialign.accelerate(torch.nn.Sequential(torch.nn.ReLU())))\n"
    )
    first, second = run_python(code, "").splitlines()
    assert "roialign[detection]" in first
    assert second == "Replacement(replaced={}, left={})"


def test_without_a_core_it_says_that_nothing_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "UNREADY", "no core here")
    monkeypatch.setattr(accelerate_gpu, "is_here", lambda: False)
    with pytest.warns(UserWarning, match="nothing is taken over: no core here"):
        handle = roialign.accelerate()
    assert handle.devices == ()
    assert "no device" in repr(handle)
    handle.undo()


def test_a_running_thread_sees_both_and_survives() -> None:
    """Threads that pool all the while, as accelerations come and go: each answer is one of the two, none a crash.

    In a process of its own, since what goes wrong here is memory. Whose kernel answered is told by the rounding.
    """
    code = (
        "import sys, threading, torch, torchvision, roialign\n"
        "sys.setswitchinterval(1e-5)\n"
        "torch.set_num_threads(1)\n"
        "torch.manual_seed(0)\n"
        "x, rois = torch.rand(1, 20, 9, 9), torch.tensor([[0, 1.3, 1.1, 7, 6]])\n"
        "call = lambda: str(torchvision.ops.roi_align(x, rois, 3, 1.0, 3).tolist())\n"
        "names = {call(): 'theirs'}\n"
        "with roialign.accelerate(): names[call()] = 'ours'\n"
        "assert len(names) == 2\n"
        "before = torch._C._dispatch_dump('torchvision::roi_align')\n"
        "stop, seen = threading.Event(), [set() for _ in range(4)]\n"
        "counts = [0] * 4\n"
        "def pool(at):\n"
        "    while not stop.is_set():\n"
        "        seen[at].add(names.get(call(), 'neither'))\n"
        "        counts[at] += 1\n"
        "def settle():  # until each thread has begun a call and ended it\n"
        "    goals = [count + 2 for count in counts]\n"
        "    while any(count < goal for count, goal in zip(counts, goals)): stop.wait(1e-3)\n"
        "def watch():\n"
        "    settle()\n"
        "    for mine in seen: mine.clear()\n"
        "    settle()\n"
        "    return set.union(*map(set, seen))\n"
        "threads = [threading.Thread(target=pool, args=(at,)) for at in range(4)]\n"
        "for thread in threads: thread.start()\n"
        "for turn in range(1000):\n"
        "    with roialign.accelerate(): pass\n"
        "assert not any('neither' in mine for mine in seen)\n"
        "with roialign.accelerate(): print(watch())\n"
        "print(watch())\n"
        "stop.set()\n"
        "for thread in threads: thread.join()\n"
        "assert torch._C._dispatch_dump('torchvision::roi_align') == before\n"
    )
    assert run_python(code, "").split("\n") == ["{'ours'}", "{'theirs'}", ""]


def test_threads_begin_and_end_at_once() -> None:
    input, rois = random_case()
    expected = torchvision.ops.roi_align(input, rois, 3)
    together = threading.Barrier(8)

    def run(_: int) -> bool:
        together.wait()
        same = True
        for _ in range(20):
            with roialign.accelerate():
                same &= torch.allclose(torchvision.ops.roi_align(input, rois, 3), expected, atol=1e-5)
        return same

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(8)))
