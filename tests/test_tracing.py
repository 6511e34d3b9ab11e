"""Who is watching: every recorder PyTorch has is noticed, and no ordinary call is taken for a recorded one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import roialign
from roialign.backends import tracing

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch.jit's own


class Watcher(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class Wrapper(Tensor):
    """A tensor that answers every operator itself."""

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return torch.zeros(2)


class Named(Tensor):
    """A tensor that is one but for its name."""


def under(context: Callable[[], Any]) -> Callable[[Callable[[Tensor], Tensor], Tensor], object]:
    def call(function: Callable[[Tensor], Tensor], x: Tensor) -> object:
        with context():
            return function(x)

    return call


@contextlib.contextmanager
def profiler() -> Iterator[None]:
    with torch.autograd.profiler.profile():
        yield


RECORDERS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], object]] = {
    "jit.trace": lambda f, x: torch.jit.trace(f, x, check_trace=False),
    "jit.trace of a module": lambda f, x: torch.jit.trace_module(
        type("M", (torch.nn.Module,), {"forward": lambda self, x: f(x)})(), {"forward": x}, check_trace=False
    ),
    **{
        f"make_fx {mode}{', pre-dispatch' * pre}": lambda f, x, mode=mode, pre=pre: make_fx(
            f, tracing_mode=mode, pre_dispatch=pre
        )(x)
        for mode in ("real", "fake", "symbolic")
        for pre in (False, True)
    },
    "vmap": lambda f, x: torch.vmap(f)(x),
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
    "dispatch mode": under(Watcher),
    "flop counter": under(lambda: FlopCounterMode(display=False)),
    "python dispatcher": under(enable_python_dispatcher),
    "profiler": under(profiler),
    "fake tensor": lambda f, x: f(FakeTensorMode().from_tensor(x)),
    "meta": lambda f, x: f(x.to("meta")),
    "subclass": lambda f, x: f(x.as_subclass(Wrapper)),
    "functional tensor": lambda f, x: f(torch._to_functional_tensor(x)),
    "zero tensor": lambda f, x: f(torch._efficientzerotensor(x.shape)),
    "negative view": lambda f, x: f(torch._neg_view(x)),
    "conjugate": lambda f, x: f(torch.complex(x, x).conj().imag),
    "sparse": lambda f, x: f(x.to_sparse()),
}


@pytest.mark.parametrize("name", RECORDERS)
def test_a_recorder_is_noticed(name: str) -> None:
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        seen.append(tracing.watched(torch.ones(2), x))
        return x * 1

    RECORDERS[name](look, torch.ones(2))
    assert seen
    assert all(seen)
    assert not tracing.watched(torch.ones(2))  # and nothing of it stays


@pytest.mark.parametrize("strict", [False, True])
def test_export_and_compile_are_noticed(strict: bool) -> None:
    class Look(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if tracing.watched(x) else x + 2

    assert torch.export.export(Look(), (torch.ones(2),), strict=strict).module()(torch.zeros(2)).tolist() == [1, 1]
    torch._dynamo.reset()
    assert torch.compile(Look(), backend="eager", fullgraph=True)(torch.zeros(2)).tolist() == [1, 1]


PLAIN: dict[str, Callable[[], Any]] = {
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomaly detection": lambda: torch.autograd.detect_anomaly(check_nan=False),
    "saved tensors hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
    "default device": lambda: torch.device("cpu"),
    "deterministic": lambda: torch.autograd.set_multithreading_enabled(False),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_an_ordinary_call_is_not_watched(name: str) -> None:
    """Or every call would pay for a dispatch in Python."""
    with PLAIN[name]():
        x = torch.ones(2)
        for plain in (
            x,
            x.clone().requires_grad_(x.dtype.is_floating_point),
            torch.nn.Parameter(torch.ones(2)),
            x[::2],
        ):
            assert not tracing.watched(plain)
    assert not tracing.watched(torch.ones(2).as_subclass(Named))  # its functions were asked before


def test_threads_are_watched_each_for_itself() -> None:
    seen: list[bool] = []
    with Watcher():
        thread = threading.Thread(target=lambda: seen.append(tracing.watched(torch.ones(1))))
        thread.start()
        thread.join()
        seen.append(tracing.watched(torch.ones(1)))
    assert seen == [False, True]


def test_what_only_looks_is_not_recorded() -> None:
    """And the tracer goes on afterwards, after an error too."""

    def look(x: Tensor) -> int:
        return int(x.shape[0]) * 10

    def fail(x: Tensor) -> None:
        raise ValueError("no")

    def traced(x: Tensor) -> Tensor:
        assert tracing.unrecorded(look, x) == 30  # a warning, and so an error, if it were recorded
        with pytest.raises(ValueError, match="no"):
            tracing.unrecorded(fail, x)
        return x + 1

    graph = torch.jit.trace(traced, torch.ones(3))
    assert [node.kind() for node in graph.graph.nodes()][-1] == "aten::add"
    assert graph(torch.zeros(5)).tolist() == [1] * 5


def test_torchscripts_recorder_is_told_from_the_others() -> None:
    seen: dict[str, bool] = {}

    def look(name: str) -> Callable[[Tensor], Tensor]:
        def record(x: Tensor) -> Tensor:
            seen[name] = tracing.records_torchscript()
            return x * 1

        return record

    look("nothing")(torch.ones(2))
    torch.jit.trace(look("jit.trace"), torch.ones(2), check_trace=False)
    make_fx(look("make_fx"))(torch.ones(2))
    torch.compile(look("compile"), backend="eager", fullgraph=True)(torch.ones(2))
    assert seen == {"nothing": False, "jit.trace": True, "make_fx": False, "compile": False}


# Who differentiates, and who may look at values.


def test_what_is_answered_while_a_graph_is_compiled() -> None:
    """Values are hidden, and nobody transforms what dynamo itself will transform."""

    def look(x: Tensor) -> Tensor:
        return x + 1 if tracing.hides_values(x) and not tracing.differentiates_forward() else x + 2

    assert torch.compile(look, backend="eager", fullgraph=True)(torch.zeros(2)).tolist() == [1, 1]


def test_gradients_that_come_many_at_once() -> None:
    seen: list[bool] = []
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: seen.append(tracing.batches(grad)))
    grads = torch.eye(2)
    for many in (
        torch.stack([torch.autograd.grad(y, x, grad, retain_graph=True)[0] for grad in grads]),
        torch.autograd.grad(y, x, grads, retain_graph=True, is_grads_batched=True)[0],
        torch.vmap(lambda grad: torch.autograd.grad(y, x, grad, retain_graph=True)[0])(grads),
    ):
        assert torch.equal(many, 2 * grads)
    assert seen == [False, False, True, True]


DIFFERENTIATED: dict[str, tuple[Callable[[Callable[[Tensor], Tensor], Tensor], object], bool]] = {
    "nothing": (lambda f, x: f(x), False),
    "autograd": (lambda f, x: f(x.requires_grad_()).sum().backward(), False),
    "vmap": (lambda f, x: torch.vmap(f)(x), False),
    "vmap twice": (lambda f, x: torch.vmap(torch.vmap(f))(x.reshape(1, -1)), False),
    "dual level": (under(torch.autograd.forward_ad.dual_level), True),
    "grad": (lambda f, x: torch.func.grad(lambda x: f(x).sum())(x), True),
    "jvp": (lambda f, x: torch.func.jvp(f, (x,), (x,)), True),
    "grad in vmap": (lambda f, x: torch.vmap(torch.func.grad(f))(x), True),
    "vmap in grad": (lambda f, x: torch.func.grad(lambda x: torch.vmap(f)(x).sum())(x), True),
}


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_who_differentiates_by_other_means_than_autograd(name: str) -> None:
    differentiate, expected = DIFFERENTIATED[name]
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        seen.append(tracing.differentiates_forward())
        return x * 1

    differentiate(look, torch.ones(2))
    assert set(seen) == {expected}
    assert not tracing.differentiates_forward()


def test_values_may_be_looked_at_in_an_ordinary_call() -> None:
    x = torch.ones(2)
    assert not tracing.hides_values(x, torch.nn.Parameter(x), x.clone().requires_grad_())
    assert tracing.hides_values(x, x.to("meta"))
    assert tracing.hides_values(x.as_subclass(Named))
    with Watcher():
        assert tracing.hides_values()
        with tracing.values_seen():
            assert not tracing.hides_values(x.to("meta"))
            with tracing.values_seen():
                pass
            assert not tracing.hides_values()
        assert tracing.hides_values()


class Watching:
    """Takes a call over, as PyTorch's protocol lets any argument do."""

    @classmethod
    def __torch_function__(cls, function: object, types: object, args: object = (), kwargs: object = None) -> str:
        return getattr(function, "__name__", "")


def test_any_one_argument_may_take_a_call_over() -> None:
    maps, rois = torch.ones(1, 1, 8, 8), torch.ones(1, 4)
    watching: Any = Watching()
    for arguments in ((watching, [rois]), (maps, watching), (maps, [watching]), (maps, (watching,))):
        assert roialign.roi_align(*arguments, 2) == "roi_align"
    pooler = roialign.MultiScaleRoIAlign(["0"], 2, 2)
    given: list[tuple[Any, Any]] = [
        (watching, [rois]),
        ({"0": watching}, [rois]),
        ({"0": maps}, watching),
        ({"0": maps}, [watching]),
    ]
    for x, boxes in given:
        assert pooler(x, boxes, [(8, 8)]) == "multi_scale_roi_align"
