"""Which backend serves, and how to force one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import forked
import roialign
from helpers import assert_pooled, generic_case, run_python
from roialign import backends
from roialign.backends import native
from roialign.spec import Call, Pooling
from test_layouts_dtypes import POOLS, truth

PLAIN = Call([torch.ones(1, 1, 4, 4)], torch.tensor([[0.0, 0, 0, 2, 2]]), None, Pooling("avg", (1, 1), (1.0,)))


def test_available_names_each_backend_with_its_reason() -> None:
    status = backends.available()
    assert status["reference"] == (True, "", "")
    for answer in status.values():
        assert answer.ready == (answer.reason == "")


def test_available_for_a_call_in_question() -> None:
    for input in (torch.ones(1, 1, 2, 2, dtype=torch.float16), torch.ones(1, 1, 2, 2, device="meta")):
        assert backends.available(input)["reference"].ready


def test_an_unready_backend_says_why_when_forced() -> None:
    input, rois = generic_case()
    for name, status in backends.available().items():
        with backends.use(name):
            if status.ready:
                assert_pooled(POOLS["avg"](input, rois), truth("avg", input, rois), input)
            else:
                with pytest.raises(RuntimeError, match=f"(?s){name}.*{status.reason[:20]}"):
                    POOLS["avg"](input, rois)


def test_use_serves_the_block_and_no_more(backend: str) -> None:
    """The forced backend is the one called; on leaving, also by an error, the former choice is back."""
    input, rois = generic_case()
    called: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in backends.ORDER:
            module = backends.load(name)
            original = module.pool
            patch.setattr(module, "pool", lambda *a, n=name, f=original, **k: (called.append(n), f(*a, **k))[1])
        with backends.use("reference"):
            POOLS["avg"](input, rois)
        POOLS["avg"](input, rois)
        with pytest.raises(ZeroDivisionError), backends.use("reference"):
            _ = 1 // 0
        POOLS["avg"](input, rois)
    assert called == ["reference", backend, backend]


@pytest.mark.parametrize("first_to_leave", [0, 1])
def test_blocks_of_two_threads_end_in_any_order(first_to_leave: int) -> None:
    """Of the blocks that threads are in the one entered last counts, for all; when all are left, nothing is forced."""
    before = backends.choose(PLAIN)
    blocks = [backends.use("reference"), backends.use("native")]
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        threads = [one, other]

        def in_force() -> set[str]:
            return {backends.choose(PLAIN), *(thread.submit(backends.choose, PLAIN).result() for thread in threads)}

        for thread, block, name in zip(threads, blocks, ["reference", "native"], strict=True):
            thread.submit(block.__enter__).result()
            assert in_force() == {name}
        threads[first_to_leave].submit(blocks[first_to_leave].__exit__, None, None, None).result()
        assert in_force() == {"native" if first_to_leave == 0 else "reference"}
        threads[1 - first_to_leave].submit(blocks[1 - first_to_leave].__exit__, None, None, None).result()
        assert in_force() == {before}


@pytest.mark.parametrize("name", ["", "Reference", "cuda", "native ", "../reference"])
def test_use_of_an_unknown_backend(name: str) -> None:
    with pytest.raises(ValueError, match=r"backend: got .*expected one of .*'reference'"), backends.use(name):
        pass


def test_environment_forces_a_backend(backend: str) -> None:
    code = (
        "import torch, roialign\n"
        "seen = []\n"
        "for name in roialign.backends.ORDER:\n"
        "    module = roialign.backends.load(name)\n"
        "    original = module.pool\n"
        "    module.pool = lambda *a, n=name, f=original, **k: (seen.append(n), f(*a, **k))[1]\n"
        "out = roialign.roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]), 1)\n"
        "print(*seen, out.item())\n"
    )
    assert run_python(code, backend).split() == [backend, "1.0"]


@pytest.mark.parametrize("name", ["nonsense", "REFERENCE"])
def test_environment_with_an_unknown_backend(name: str) -> None:
    """An error that names the value and the choices, on import or on the first call."""
    code = "import torch, roialign\nroialign.roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]), 1)\n"
    status, _, complained = forked.run(code, more={"ROIALIGN_BACKEND": name})
    assert status == 1
    last = complained.strip().splitlines()[-1]
    assert last.startswith("ValueError")
    assert name in last
    assert "'reference'" in last


def test_environment_left_empty_forces_nothing() -> None:
    code = (
        "import torch\n"
        "from roialign import backends, spec\n"
        "pooling = spec.Pooling('avg', (1, 1), (1.0, 1.0))\n"
        "print(backends.choose(spec.Call([torch.ones(1, 1, 1, 1)], torch.zeros(0, 5), None, pooling)))\n"
    )
    first = next(name for name, status in roialign.backends.available().items() if status.ready)
    assert run_python(code, "").strip() == first


@pytest.mark.parametrize("name", POOLS)
def test_backends_agree(backend: str, name: str) -> None:
    """Each backend, forward and gradient, against the specification."""
    input, rois = generic_case(seed=8)
    results = []
    for chosen in (backend, "reference"):
        with backends.use(chosen):
            leaf, box = input.clone().requires_grad_(), rois.clone().requires_grad_(name != "pool")
            pooled = POOLS[name](leaf, box)
            pooled.square().sum().backward()
            results.append([pooled.detach(), leaf.grad, box.grad])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-10)


@pytest.mark.skipif(bool(native.UNREADY), reason=f"there are no kernels: {native.UNREADY}")
def test_a_kind_without_kernels_is_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """By choice in a plain call, and in the operator itself where a graph calls it; forced, it is refused."""
    input, rois = generic_case()
    leaf = input.clone().requires_grad_()
    spec = Pooling("integral", (2, 2), (1.0, 1.0))
    expected = roialign.prroi_pool(leaf, rois, 2)
    (gradient,) = torch.autograd.grad(expected.sin().sum(), leaf)
    monkeypatch.delitem(native.KINDS, "integral")
    assert backends.available(input, rois, spec)["native"].reason == "the core has no kernel of kind 'integral'"
    assert backends.available(input, rois)["native"].ready
    with backends.use("native"), pytest.raises(RuntimeError, match="no kernel of kind 'integral'"):
        roialign.prroi_pool(input, rois, 2)
    for pooled in (roialign.prroi_pool(leaf, rois, 2), torch.ops.roialign.pool([leaf], rois, None, *spec)):
        assert_pooled(pooled.detach(), expected.detach(), input)
        torch.testing.assert_close(torch.autograd.grad(pooled.sin().sum(), leaf)[0], gradient, rtol=1e-9, atol=1e-10)
