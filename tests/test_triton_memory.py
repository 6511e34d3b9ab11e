"""What the Triton kernels' own functions hold beside input and output, at sizes as detectors have them: counted where
they allocate, on a CPU, with nothing launched and no memory touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from weakref import finalize

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(triton.knobs.runtime.interpret, reason="Triton interprets here, and launches nothing")

from triton.runtime.jit import JITFunction  # noqa: E402

from roialign.backends import triton as kernels  # noqa: E402
from triton_builds import Case  # noqa: E402


class Held(TorchDispatchMode):
    """Counts the bytes that are allocated while it watches, as long as a tensor has them, and the most at a time."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.known = {each.untyped_storage().data_ptr() for each in known}
        self.holders: Counter[int] = Counter()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            storage = result.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in self.known:
                self._hold(storage.data_ptr(), storage.nbytes(), 1)
                finalize(result, self._hold, storage.data_ptr(), storage.nbytes(), -1)
        return result

    def _hold(self, where: int, size: int, more: int) -> None:
        before = self.holders[where]
        self.holders[where] += more
        if (before == 0) != (self.holders[where] == 0):
            self.now += more * size
            self.most = max(self.most, self.now)


def beside(case: Case) -> list[float]:
    """Forward, of the gradient to the maps, and of that to the boxes: the share of maps and output."""
    maps, rois, level, spec, grad = case.tensors()
    shapes = [size for each in maps for size in each.shape]
    of_maps = sum(each.nbytes for each in maps)
    calls: list[tuple[Callable[[], object], int]] = [
        (lambda: kernels._pool(maps, rois, level, spec), grad.nbytes),
        (lambda: kernels._pool_grad(grad, maps, shapes, case.last, rois, level, spec), of_maps),
        (lambda: kernels._pool_box_grad(grad, maps, rois, level, spec), rois.nbytes),
    ]
    shares = []
    for call, result in calls:
        with Held([*maps, rois, grad]) as held:
            call()
        assert held.most >= result
        shares.append((held.most - result) / (of_maps + grad.nbytes))
    return shares


CASES = (
    *(Case(kind=kind, ratio=ratio) for kind, ratio in (("avg", 2), ("avg", 0), ("integral", 0), ("ps_avg", 2))),
    *(Case(kind=kind) for kind in ("rotated", "moved")),
    *(Case(last=True), Case(bins=14), Case(maps=4), Case(rank=3)),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_at_most_five_percent(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, **options: None)
    assert max(beside(case)) <= 0.05


@pytest.mark.parametrize(("kind", "ratio", "rank", "most"), [
    ("max", 2, 2, 0.065), ("max", 0, 2, 0.19), ("cells", 0, 2, 0.06), ("max", 2, 3, 0.15),
])  # fmt: skip
def test_the_gradient_of_a_maximum_takes_more(
    kind: str, ratio: int, rank: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The places of the winners of 32 channels, and the candidates of all boxes, of which an adaptive grid has most."""
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, **options: None)
    forward, to_maps, to_boxes = beside(Case(kind=kind, ratio=ratio, rank=rank))
    assert max(forward, to_boxes) <= 0.05
    assert 0.05 < to_maps <= most
