"""The operators themselves, called past the public functions: an answer or a clear error, never foreign memory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import roialign  # noqa: F401
from helpers import rows, run_python
from hostile_arguments import freed
from roialign import prroi_pool, roi_align, roi_pool
from roialign.backends import available
from roialign.spec import KINDS, Pooling

native = pytest.mark.skipif(not available()["native"].ready, reason=available()["native"].reason)


def map_(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape or (2, 3, 8, 8), dtype=dtype)


def pool(**changes: Any) -> Any:
    """The forward operator on harmless arguments but those given."""
    call: dict[str, Any] = {
        "features": [map_()], "rois": rows((0, 1, 1, 5, 5), (1, 2, 2, 6, 6)).float(), "level": None, "kind": "avg",
        "output_size": [2, 2], "scales": [1.0, 1.0], "sampling_ratio": 2, "aligned": False,
    }  # fmt: skip
    return torch.ops.roialign.pool(**(call | changes))


def pool_grad(**changes: Any) -> Any:
    """The gradient to the map on harmless arguments but those given."""
    call: dict[str, Any] = {
        "grad": map_(2, 3, 2, 2), "features": [], "shapes": [2, 3, 8, 8], "channels_last": False,
        "rois": rows((0, 1, 1, 5, 5), (1, 2, 2, 6, 6)).float(), "level": None, "kind": "avg", "output_size": [2, 2],
        "scales": [1.0, 1.0], "sampling_ratio": 2, "aligned": False,
    }  # fmt: skip
    return torch.ops.roialign.pool_grad(**(call | changes))


def box_grad(**changes: Any) -> Any:
    """The gradient to the boxes on harmless arguments but those given."""
    call: dict[str, Any] = {
        "grad": map_(2, 3, 2, 2), "features": [map_()], "rois": rows((0, 1, 1, 5, 5), (1, 2, 2, 6, 6)).float(),
        "level": None, "kind": "avg", "output_size": [2, 2], "scales": [1.0, 1.0], "sampling_ratio": 2,
        "aligned": False,
    }  # fmt: skip
    return torch.ops.roialign.pool_box_grad(**(call | changes))


def index(column: Any, images: int = 2) -> Any:
    return torch.ops.roialign.batch_index(column, images)


def two_maps(level: Tensor | None) -> dict[str, Any]:
    return {"features": [map_(), map_(2, 3, 4, 4)], "scales": [1.0, 1.0, 0.5, 0.5], "level": level}


ROIS = rows((0, 1, 1, 5, 5), (1, 2, 2, 6, 6)).float()
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "no maps": (lambda: pool(features=[]), ValueError, ("features", "no maps", "expected")),
    "map None": (lambda: pool(features=[None]), RuntimeError, ("features", "None", "Tensor")),  # PyTorch's words
    "map rank": (lambda: pool(features=[map_(3, 8, 8)]), ValueError, ("features[0]", "(3, 8, 8)", "[N, C, H, W]")),
    "map dtype": (lambda: pool(features=[map_().int()]), TypeError, ("int32", "expected float16")),
    "map freed": (lambda: pool(features=[freed(map_())]), ValueError, ("features[0]", "0 bytes", "1536")),
    "map cut": (lambda: pool(features=[freed(map_(), 1532)]), ValueError, ("features[0]", "1532 bytes", "1536")),
    "map cut, channels_last": (
        lambda: pool(features=[freed(map_().to(memory_format=torch.channels_last), 1532)]), ValueError, ("1532",),
    ),
    "map too long": (
        lambda: pool(features=[map_(2, 3, 1, 1).expand(2, 3, 2**30 + 1, 1)]), ValueError, ("features[0]", "2**30"),
    ),
    "empty height": (lambda: pool(features=[map_(2, 3, 0, 8)]), ValueError, ("row 0", "height 0", "expected")),
    "empty width": (lambda: pool(features=[map_(2, 3, 8, 0)], kind="cells"), ValueError, ("row 0", "width 0")),
    "empty second map": (
        lambda: pool(**two_maps(torch.tensor([0, 1])) | {"features": [map_(), map_(2, 3, 0, 4)]}),
        ValueError, ("row 1", "height 0"),
    ),
    "maps differ": (
        lambda: pool(**two_maps(torch.tensor([0, 1])) | {"features": [map_(), map_(2, 4, 4, 4)]}),
        ValueError, ("features[1]", "(2, 4, 4, 4)", "3 channels"),
    ),
    "maps differ in images": (
        lambda: pool(**two_maps(torch.tensor([0, 1])) | {"features": [map_(), map_(1, 3, 4, 4)]}),
        ValueError, ("features[1]", "(1, 3, 4, 4)", "2 images"),
    ),
    "maps differ in dtype": (
        lambda: pool(**two_maps(torch.tensor([0, 1])) | {"features": [map_(), map_(2, 3, 4, 4).double()]}),
        TypeError, ("features[1]", "torch.float64", "one dtype"),
    ),
    "level missing": (lambda: pool(**two_maps(None)), ValueError, ("level", "None for 2 maps", "expected")),
    "level out of range": (
        lambda: pool(**two_maps(torch.tensor([0, 7]))), IndexError, ("level: row 1", "level 7", "[0, 2)"),
    ),
    "level negative": (lambda: pool(level=torch.tensor([0, -1])), IndexError, ("level: row 1", "level -1", "[0, 1)")),
    "level count": (lambda: pool(level=torch.tensor([0])), ValueError, ("level", "(1)", "each of 2 boxes")),
    "level dtype": (lambda: pool(level=torch.tensor([0, 0]).int()), TypeError, ("level", "int32", "int64")),
    "level freed": (lambda: pool(level=freed(torch.tensor([0, 0]), 8)), ValueError, ("level", "8 bytes", "16")),
    "rois rank": (lambda: pool(rois=torch.ones(5)), ValueError, ("rois", "(5,)", "[K, 5]")),
    "rois width": (lambda: pool(rois=torch.ones(2, 4)), ValueError, ("rois", "(2, 4)", "[K, 5]")),
    "rois wide beyond memory": (lambda: pool(rois=torch.ones(2, 1).expand(2, 2**40)), ValueError, ("rois", "[K, 5]")),
    "rois dtype": (lambda: pool(rois=ROIS.half()), TypeError, ("rois", "float16", "float32 or float64")),
    "rois freed": (lambda: pool(rois=freed(ROIS.clone(), 36)), ValueError, ("rois", "36 bytes", "40")),
    "rois freed, columns": (
        lambda: pool(rois=freed(ROIS.t().contiguous().t(), 36)), ValueError, ("rois", "36 bytes", "40"),
    ),
    "rois None": (lambda: pool(rois=None), TypeError, ("rois", "None", "expected")),
    "rois on meta": (lambda: pool(rois=ROIS.to("meta")), ValueError, ("rois", "meta", "cpu")),
    "map on meta": (lambda: pool(features=[map_().to("meta")]), ValueError, ("rois", "cpu", "meta")),
    "level on meta": (lambda: pool(level=torch.tensor([0, 0]).to("meta")), ValueError, ("level", "meta", "cpu")),
    "image": (lambda: pool(rois=ROIS + torch.tensor([9.0, 0, 0, 0, 0])), IndexError, ("row 0", "index 9", "N = 2")),
    "kind": (lambda: pool(kind="mean"), ValueError, ("kind", "'mean'", "'avg'", "'cells'")),
    "size of one": (lambda: pool(output_size=[2]), ValueError, ("features[0]", "[N, C, L]", "output_size=[2]")),
    "size zero": (lambda: pool(output_size=[2, 0]), ValueError, ("output_size", "[2, 0]", "1 to 2**24")),
    "size beyond": (lambda: pool(output_size=[2**24 + 1, 1]), ValueError, ("output_size", "16777217", "2**24")),
    "size beyond memory": (lambda: pool(output_size=[2**24, 2**24]), ValueError, ("output_size", "2 boxes", "memory")),
    "scales too few": (lambda: pool(scales=[1.0]), ValueError, ("scales", "[1.0]", "each of 1 maps")),
    "grad shape": (lambda: pool_grad(grad=map_(2, 3, 2, 1)), ValueError, ("grad", "(2, 3, 2, 1)", "(2, 3, 2, 2)")),
    "grad channels": (lambda: pool_grad(grad=map_(2, 4, 2, 2)), ValueError, ("grad", "(2, 4, 2, 2)", "(2, 3, 2, 2)")),
    "grad rank": (lambda: pool_grad(grad=map_(2, 3)), ValueError, ("grad", "(2, 3)", "[K, C, height, width]")),
    "grad dtype": (
        lambda: pool_grad(grad=map_(2, 3, 2, 2).double(), features=[map_()]), TypeError, ("features[0]", "one dtype"),
    ),
    "grad int": (lambda: pool_grad(grad=map_(2, 3, 2, 2).int()), TypeError, ("grad", "int32", "float16")),
    "grad freed": (lambda: pool_grad(grad=freed(map_(2, 3, 2, 2))), ValueError, ("grad", "0 bytes", "96")),
    "grad None": (lambda: pool_grad(grad=None), TypeError, ("grad", "None", "expected")),
    "grad on meta": (lambda: pool_grad(grad=map_(2, 3, 2, 2).to("meta")), ValueError, ("rois", "cpu", "meta")),
    "shapes none": (lambda: pool_grad(shapes=[]), ValueError, ("shapes", "[]", "[N, C, H, W]")),
    "shapes of three": (lambda: pool_grad(shapes=[2, 3, 8]), ValueError, ("shapes", "[2, 3, 8]", "[N, C, H, W]")),
    "shapes negative": (lambda: pool_grad(shapes=[2, 3, -8, 8]), ValueError, ("shapes", "-8", "none negative")),
    "shapes beyond memory": (lambda: pool_grad(shapes=[2, 3, 2**30, 2**30]), ValueError, ("shapes", "memory")),
    "shapes beyond int64": (lambda: pool_grad(shapes=[2**62, 2**62, 8, 8]), ValueError, ("shapes", "memory")),
    "shapes empty": (lambda: pool_grad(shapes=[2, 3, 0, 8]), ValueError, ("row 0", "height 0")),
    "shapes of two maps": (lambda: pool_grad(shapes=[2, 3, 8, 8] * 2), ValueError, ("scales", "each of 2 maps")),
    "shapes smaller": (
        lambda: pool_grad(shapes=[2, 3, 4, 4], features=[map_()]), ValueError, ("shapes[0]", "(2, 3, 4, 4)", "8"),
    ),
    "shapes fewer": (
        lambda: pool_grad(**two_maps(torch.tensor([0, 1]))), ValueError, ("shapes", "1 maps", "expected 2"),
    ),
    "maximum without map": (lambda: pool_grad(kind="max"), ValueError, ("features", "no maps", "maximum")),
    "cells without map": (lambda: pool_grad(kind="cells"), ValueError, ("features", "no maps", "maximum")),
    "box gradient without map": (lambda: box_grad(features=[]), TypeError, ("features", "expected")),
    "box gradient of another map": (lambda: box_grad(features=[map_(2, 4, 8, 8)]), ValueError, ("grad", "4, 2, 2)")),
    "box gradient of other bins": (lambda: box_grad(grad=map_(2, 3, 2, 3)), ValueError, ("grad", "(2, 3, 2, 2)")),
    "box gradient of more boxes": (
        lambda: box_grad(grad=map_(1, 1, 1, 1).expand(2**40, 3, 2, 2)), ValueError, ("grad", "expected (2, 3, 2, 2)"),
    ),
    "box gradient, map freed": (lambda: box_grad(features=[freed(map_())]), ValueError, ("features[0]", "0 bytes")),
    "box gradient, empty map": (lambda: box_grad(features=[map_(2, 3, 0, 0)]), ValueError, ("row 0", "height 0")),
    "index of no axis": (lambda: index(torch.tensor(1.0)), ValueError, ("column", "()", "axis")),
    "index complex": (lambda: index(torch.ones(2) + 0j), ValueError, ("column", "complex64", "real")),
    "index None": (lambda: index(None), TypeError, ("column", "None", "expected")),
    "index freed": (lambda: index(freed(torch.ones(2), 4)), ValueError, ("column", "4 bytes", "8")),
    "index of no images": (lambda: index(torch.zeros(2), -3), IndexError, ("row 0", "N = -3")),
}  # fmt: skip


@native
@pytest.mark.parametrize("name", REFUSED)
def test_nonsense_is_refused_in_words(name: str) -> None:
    run, error, words = REFUSED[name]
    with pytest.raises(error) as raised:
        run()
    missing = [word for word in words if word not in str(raised.value)]
    assert not missing, f"{missing} not in {raised.value!s:.300}"


TURNED, MOVED = torch.ones(2, 6), torch.ones(2, 13)
REFUSED_ANYWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "rotated in many samples": (
        {"kind": "rotated", "rois": TURNED, "sampling_ratio": 2**62},
        f"sampling_ratio: got {2**62} for output_size=(2, 2); expected at most 2**26 samples of a box, since each is "
        "visited",
    ),
    "rotated in one sample too many": (
        {"kind": "rotated", "rois": TURNED, "sampling_ratio": 2**12 + 1},
        "sampling_ratio: got 4097 for output_size=(2, 2); expected at most 2**26 samples of a box, since each is "
        "visited",
    ),
    "rotated without an angle": (
        {"kind": "rotated", "rois": ROIS}, "rois: got a tensor of shape (2, 5); expected [K, 6]",
    ),
    "rotated with a number more": (
        {"kind": "rotated", "rois": MOVED[:, :7]}, "rois: got a tensor of shape (2, 7); expected [K, 6]",
    ),
    "rotated line": (
        {"kind": "rotated", "features": [map_(2, 3, 8)], "rois": TURNED, "output_size": [2], "scales": [1.0]},
        "output_size: got [2]; expected (height, width), each from 1 to 2**24",
    ),
    "moved without shifts": (
        {"kind": "moved", "rois": ROIS}, "rois: got a tensor of shape (2, 5); expected [K, 13]",
    ),
    "moved with a shift less": (
        {"kind": "moved", "rois": MOVED[:, :12]}, "rois: got a tensor of shape (2, 12); expected [K, 13]",
    ),
    "moved with the shifts of other bins": (
        {"kind": "moved", "rois": MOVED, "output_size": [2, 3]},
        "rois: got a tensor of shape (2, 13); expected [K, 17]",
    ),
}  # fmt: skip


@native
@pytest.mark.parametrize("name", REFUSED_ANYWHERE)
def test_rotated_and_moved_are_refused_by_the_core(name: str) -> None:
    changes, words = REFUSED_ANYWHERE[name]
    with pytest.raises(ValueError, match=re.escape(words) + "$"):
        pool(**changes)


def test_and_in_the_same_words_where_there_is_no_core() -> None:
    """Then the reference serves the operator."""
    code = """
import os
os.environ["ROIALIGN_CPU"] = "none"
from test_direct_calls import REFUSED_ANYWHERE, available, pool
assert not available()["native"].ready
for changes, _ in REFUSED_ANYWHERE.values():
    try:
        pool(**changes)
    except ValueError as error:
        print(error)
"""
    assert run_python(code, "").splitlines() == [words for _, words in REFUSED_ANYWHERE.values()]


@native
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_refuses_an_empty_map(kind: str) -> None:
    for shape in (2, 4, 0, 8), (2, 4, 8, 0), (2, 4, 0, 0):
        columns = Pooling(kind, (2, 2), (1.0, 1.0)).columns
        rois = torch.cat([ROIS, torch.zeros(2, columns - 5)], 1)
        map, how = map_(*shape), {"kind": kind, "aligned": KINDS[kind].sensitive, "rois": rois}
        grad = map_(2, 1 if KINDS[kind].sensitive else 4, 2, 2)
        for call in (
            lambda: pool(features=[map], **how),  # noqa: B023
            lambda: pool_grad(grad=grad, features=[map], shapes=list(shape), **how),  # noqa: B023
            lambda: box_grad(grad=grad, features=[map], **how),  # noqa: B023
        ):
            with pytest.raises(
                ValueError, match=f"row 0 on an empty feature map of height {shape[2]} and width {shape[3]}"
            ):
                call()


@native
def test_what_is_odd_but_right_is_answered() -> None:
    """Two boxes of ones have the mean 1, in whatever form the ones come; a third of each is their own gradient."""
    expected = torch.ones(2, 3, 2, 2)
    spread = torch.zeros(2, 5, 2)
    spread[..., 0] = ROIS
    level = torch.zeros(2, 2, dtype=torch.int64)
    for changes in (
        {"features": [map_(1, 1, 1, 1).expand(2, 3, 8, 8)]},
        {"features": [map_(1, 3, 8, 8).expand(2**40, 3, 8, 8)]},  # no memory for a number per image
        {"features": [torch._neg_view(-map_())]},
        {"rois": spread[..., 0], "level": level[:, 0]},
        {"rois": ROIS.double()},
        {"sampling_ratio": -(2**63)},
        two_maps(torch.tensor([1, 0])),
    ):
        assert torch.equal(pool(**changes), expected)
    grad = map_(1, 1, 1, 1).expand(2, 3, 2, 2)
    assert torch.equal(pool_grad(grad=grad)[0].sum((2, 3)), torch.full((2, 3), 4.0))
    assert pool_grad(grad=map_(0, 0, 2, 2), shapes=[2**40, 0, 8, 8], rois=ROIS[:0])[0].shape == (2**40, 0, 8, 8)
    assert torch.equal(box_grad(grad=grad, rois=spread[..., 0]), torch.zeros(2, 5))  # a constant map


POOLS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "avg": lambda input, boxes: roi_align(input, boxes, 2),
    "max": lambda input, boxes: roi_align(input, boxes, 2, 1.0, 2, True, mode="max"),
    "prroi": lambda input, boxes: prroi_pool(input, boxes, 2),
    "pool": lambda input, boxes: roi_pool(input, boxes, 2),
}


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros without memory, as autograd makes them of what it knows to be zero."""
    found: Tensor = torch._efficientzerotensor(shape, dtype=dtype)
    assert found.data_ptr() == 0
    return found


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("kind", POOLS)
def test_zeros_without_memory(kind: str) -> None:
    """As a map, as boxes in both forms, and as the gradient of either: what zeros with memory give."""
    pool = POOLS[kind]
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert torch.equal(pool(zeros(2, 3, 8, 8, dtype=dtype), ROIS), torch.zeros(2, 3, 2, 2, dtype=dtype))
    input = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for boxes, plain in ((zeros(2, 5), torch.zeros(2, 5)), ([zeros(1, 4)] * 2, [torch.zeros(1, 4)] * 2)):
        assert torch.equal(pool(input, boxes), pool(input, plain))
    leaves = [input.requires_grad_(), ROIS.clone().requires_grad_(kind != "pool")]
    pooled = pool(*leaves)
    for leaf in leaves[: 1 if kind == "pool" else 2]:
        (grad,) = torch.autograd.grad(pooled, leaf, zeros(*pooled.shape), retain_graph=True)
        assert torch.equal(grad, torch.zeros_like(leaf))


@native
def test_random_direct_calls() -> None:
    """Good and broken ones, in a process of their own; ``fuzz_direct.py`` repeats a seed that failed."""
    seed = 0 if os.environ.get("CI") else int(time.time())
    said = run_python("import sys, fuzz_direct; fuzz_direct.main(int(sys.argv[1]), seconds=4)", "", str(seed))
    assert "direct calls" in said
    assert "a right answer" in said
