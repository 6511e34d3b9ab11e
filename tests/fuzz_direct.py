"""Calls of ``torch.ops.roialign`` with good and with broken arguments, at random, for a bounded time.

    python tests/fuzz_direct.py [seed] [first call]

Takes ROIALIGN_CAMPAIGN_SECONDS, 10 unless set. A good call must give the reference's answer, a broken one an exception
of a permitted kind; under AddressSanitizer the same shows what is read or written outside. Call number i depends on the
seed and i alone, so that one call can be repeated: the seed is printed first, the number of the call when it fails, and
every hundredth in between for the case that the process dies.
"""

from __future__ import annotations

import faulthandler
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import roialign  # noqa: F401
from helpers import RELATIVE
from roialign.backends import reference
from roialign.backends.memory import LAST
from roialign.spec import KINDS, Pooling

BIG = (2**24 + 1, 2**31, 2**40, 2**62, 2**63 - 1)

# What PyTorch itself says to nonsense, before or instead of us. Every other RuntimeError is a fault.
PYTORCH_SAYS = (
    "Expected a value of type",  # the schema
    "Could not run",  # no kernel for such a tensor: sparse, quantised
    "not implemented",
    "is not supported",
    "can't allocate",  # memory
    "overflow",
    "No matching",
    "NestedTensor",
    "Cannot access",
    "does not have storage",
    "doesn't have storage",
)

Arguments = dict[str, Any]


class Case(NamedTuple):
    """A call, and whether it must give an answer (True), must raise (False), or may do either (None)."""

    operator: str
    arguments: Arguments
    good: bool | None
    changes: tuple[str, ...]


def good_call(rng: random.Random, operator: str) -> Arguments:
    """Arguments of a call that has an answer."""
    dtype = rng.choice(list(RELATIVE))
    images, channels = rng.randint(1, 3), rng.choice((1, 2, 3, 15, 16, 17, 33))
    kind, levels = rng.choice(list(KINDS)), rng.choice((1, 1, 2, 3))
    rank = rng.choice((2, *KINDS[kind].ranks))
    size = [rng.randint(1, 8 if rank < 3 else 4) for _ in range(rank)]
    group = math.prod(size) if KINDS[kind].sensitive else 1
    features = []
    for _ in range(levels):
        lengths = [rng.randint(1, 24 if rank < 3 else 9) for _ in range(rank)]
        map = torch.randn(images, channels * group, *lengths).to(dtype)
        layout = rng.randrange(3)
        features.append(
            map.to(memory_format=LAST[rank + 2])
            if layout == 1 and rank > 1
            else map.mT.clone().mT  # of rank 1: its channels last
            if layout
            else map
        )
    rois = boxes(rng.randint(0, 6), images, kind, size).to(
        torch.float64 if dtype == torch.float64 else rng.choice((torch.float32, torch.float64))
    )
    count = rois.shape[0]
    level = torch.randint(0, levels, (count,)) if levels > 1 or rng.random() < 0.2 else None
    how = {
        "rois": rois,
        "level": level,
        "kind": kind,
        "output_size": size,
        "scales": [rng.choice((0.25, 0.5, 1.0, 0.3)) for _ in range(rank * levels)],
        "sampling_ratio": rng.choice((-1, 0, 1, 2, 3)),
        "aligned": rng.random() < 0.5,
    }
    if operator == "batch_index":
        return {"column": rois[:, 0], "images": images}
    if operator == "pool":
        return {"features": features, **how}
    grad = torch.randn(count, channels, *size).to(dtype)
    if rank > 1 and rng.random() < 0.3:
        grad = grad.to(memory_format=LAST[rank + 2])
    if operator == "pool_box_grad":
        return {"grad": grad, "features": features, **how}
    shapes = [length for map in features for length in map.shape]
    keep = KINDS[kind].maximum or rng.random() < 0.5
    return {
        "grad": grad,
        "features": features if keep else [],
        "shapes": shapes,
        "channels_last": rng.random() < 0.5,
        **how,
    }


def boxes(count: int, images: int, kind: str, size: list[int]) -> Tensor:
    """Rows of rois as the kind has them, all with an extent."""
    rank, form = len(size), KINDS[kind].box
    index, place = torch.randint(0, images, (count, 1)), torch.rand(count, rank) * 30 - 5
    extent = torch.rand(count, rank) * 20 + 0.5
    if form == "rotated":
        return torch.cat([index, place, extent, torch.randn(count, 1) * 3], 1)
    shift = torch.randn(count, 2 * math.prod(size) if form == "moved" else 0) * 0.3
    return torch.cat([index, place, place + extent, shift], 1)


def freed(tensor: Tensor, left: int = 0) -> Tensor:
    """The tensor with the end of its storage given back."""
    tensor = tensor.clone(memory_format=torch.preserve_format)
    tensor.untyped_storage().resize_(left)
    return tensor


def zeros_without_memory(tensor: Tensor) -> Tensor:
    return torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype)


def spread(tensor: Tensor) -> Tensor:
    """The same values, with gaps in memory before and between them."""
    room = tensor.new_empty(*tensor.shape, 3)
    room[..., 1] = tensor
    return room[..., 1]


HARMLESS: dict[str, Callable[[Tensor], Tensor]] = {
    "spread": spread,
    "negative view": lambda tensor: torch._neg_view(-tensor) if tensor.is_floating_point() else tensor,
    "zeros without memory": zeros_without_memory,
    "requires grad": lambda tensor: tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor,
    "a parameter": lambda tensor: torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor,
}
BREAKING: dict[str, Callable[[Tensor], Any]] = {
    "freed": freed,
    "partly freed": lambda tensor: freed(tensor, max(0, tensor.numel() - 1) * tensor.itemsize),
    "freed and spread": lambda tensor: (lambda it: (it.untyped_storage().resize_(it.itemsize), it)[1])(spread(tensor)),
    "one axis more": lambda tensor: tensor.unsqueeze(0),
    "one axis less": lambda tensor: tensor.sum(0),
    "no axis": lambda tensor: tensor.sum(),
    "five axes more": lambda tensor: tensor[None, None, None, None, None],
    "meta": lambda tensor: tensor.to("meta"),
    "int32": lambda tensor: tensor.int(),
    "bool": lambda tensor: tensor.bool(),
    "complex": lambda tensor: (tensor + 0j).conj(),
    "float8": lambda tensor: tensor.to(torch.float8_e5m2),
    "sparse": lambda tensor: tensor.to_sparse(),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
    "None": lambda tensor: None,
    "a number": lambda tensor: 1.5,
    "2**31 long": lambda tensor: tensor[..., :1].expand(*tensor.shape[:-1], 2**31),
}
# Of these some are answered: an empty axis, a map of another width, another dtype that goes with the rest.
OPEN: dict[str, Callable[[Tensor], Any]] = {
    "longer": lambda tensor: torch.cat([tensor, tensor[-1:], tensor[-1:]]),
    "wider": lambda tensor: torch.cat([tensor, tensor], -1),
    "empty": lambda tensor: tensor[..., :0],
    "empty first": lambda tensor: tensor[:0],
    "2**40 times": lambda tensor: tensor[:1].expand(2**40, *tensor.shape[1:]),
    "other values": lambda tensor: tensor * 1e30,
    "not finite": lambda tensor: tensor / 0,
    "negative": lambda tensor: -tensor - 1,
    "float64": lambda tensor: tensor.double(),
    "float16": lambda tensor: tensor.half(),
    "float32": lambda tensor: tensor.float(),
    "int64": lambda tensor: tensor.long(),
}
SCALARS: dict[str, tuple[Any, ...]] = {
    "kind": ("", "mean", "AVG", "avg\0", "é" * 1000, None, 0),
    "output_size": (
        [], [0], [0, 2], [2, -1], [1, 0, 1], [3], [2, 2], [2, 2, 2], [1, 1, 1, 1], 2.5, None, "22",
        *([big] for big in BIG), *([big, 1] for big in BIG), *([1, big] for big in BIG), *([1, 1, big] for big in BIG),
        [2**63, 1], [2**64, 2**64],
    ),
    "scales": (
        [], [1.0], [1.0] * 7, None, "ab",
    ),
    "sampling_ratio": (2**63, 2**70, None, 1.5, "2"),
    "shapes": (
        [], [1], [-1, 1, 1, 1], [1, 1, 1, 1] * 5, [2**31] * 4, [2**62, 2**62, 1, 1], [1, 0, 2**62, 8], [2**40, 0, 1, 1],
        None, [2**63, 1, 1, 1], [1, -1, 1], [2**31] * 3, [1, 0, 2**62], [1, 1, 1] * 4, [1, 1, 1, 1, -1], [2**31] * 5,
        [1, 0, 2**62, 8, 8], [1, 1, 1, 1, 1] * 4,
    ),
    "images": (2**63, None, 1.5, "1"),
    "aligned": ("yes",),
    "channels_last": ("yes",),
}  # fmt: skip
OPEN_SCALARS: dict[str, tuple[Any, ...]] = {
    "sampling_ratio": (-(2**63), 2**31, 2**55, 2**63 - 1, 300),
    "images": (-1, 0, 2**62),
    "kind": tuple(KINDS),
    "output_size": (
        [1], [1, 1], [1, 1, 1], [2**16], [2**16, 1], [1, 600], [7, 7], [2, 1, 600], [2**24, 2**24], [2**24] * 3,
    ),
}  # fmt: skip
OPEN_SCALES = (1e300, 5e-324, 1e-30, 1e30, 0.0, -1.0, float("nan"), float("inf"))
OF_A_RANK = ([3], [2, 2], [2, 2, 2], [1.0])  # sizes and scales that only maps of other ranks refuse


def change(rng: random.Random, arguments: Arguments, name: str) -> tuple[bool | None, str]:
    """Change one argument; whether the call has an answer still, and in words what was done."""
    value = arguments[name]
    if isinstance(value, list) and (not value or isinstance(value[0], Tensor)):
        if not value or rng.random() < 0.15:
            arguments[name] = rng.choice(([], [None], value * 2, "maps", None, [[]]))
            return None, f"{name} = {str(arguments[name])[:40]}"
        at = rng.randrange(len(value))
        arguments[name] = list(value)
        good, said, arguments[name][at] = change_tensor(rng, value[at])
        return good, f"{name}[{at}]: {said}"
    if isinstance(value, Tensor):
        good, said, arguments[name] = change_tensor(rng, value)
        if name == "rois" and said == "zeros without memory":
            good = None  # boxes that are one cell or none
        if (name, said) == ("level", "None") or (name == "column" and "freed" not in said):
            good = None if good is False else good  # a column may have any axes and any type of number
        return good, f"{name}: {said}"
    if value is None:  # level
        count = arguments["rois"].shape[0] if isinstance(arguments["rois"], Tensor) and arguments["rois"].dim() else 1
        arguments[name] = torch.full((min(count, 99),), rng.choice((0, -1, 1, 7, 2**62, -(2**63))))
        return None, f"level: {arguments[name][:1].tolist()}"
    if name == "scales" and rng.random() < 0.4:
        arguments[name] = [rng.choice((scale, *OPEN_SCALES)) for scale in value]
        return None, f"scales = {arguments[name]}"
    table, good = (SCALARS, False) if rng.random() < 0.6 or name not in OPEN_SCALARS else (OPEN_SCALARS, None)
    arguments[name] = rng.choice(table[name])
    if arguments[name] in OF_A_RANK and len(arguments[name]) == len(value):
        good = None
    return good, f"{name} = {str(arguments[name])[:40]!r}"


def change_tensor(rng: random.Random, tensor: Tensor) -> tuple[bool | None, str, Any]:
    """A changed tensor, before that whether a call with it has an answer still, and what was done."""
    table, good = rng.choice(((HARMLESS, True), (BREAKING, False), (BREAKING, False), (OPEN, None)))
    said = rng.choice(list(table))
    if tensor.dim() == 1 and said in ("2**31 long", "2**40 times"):  # so much is really made: PyTorch's own affair
        return True, "nothing", tensor
    try:
        changed = table[said](tensor)
    except (RuntimeError, IndexError):  # no such form of this tensor
        return True, "nothing", tensor
    return (None if good is False and tensor.numel() == 0 else good), said, changed


def make_case(seed: int, number: int) -> Case:
    """Call number ``number``: as it is, or with one or two arguments changed."""
    rng = random.Random(f"{seed} {number}")
    torch.manual_seed(rng.randrange(2**32))
    operator = rng.choice(("pool", "pool", "pool", "pool_grad", "pool_grad", "pool_box_grad", "batch_index"))
    arguments = good_call(rng, operator)
    good: bool | None = True
    changes = []
    for name in rng.sample(sorted(arguments), rng.choice((0, 1, 1, 2))):
        kept, said = change(rng, arguments, name)
        changes.append(said)
        good = False if kept is False or good is False else None if kept is None or good is None else True
    # Two changes may mend each other, as longer boxes and a longer level do.
    return Case(operator, arguments, None if len(changes) > 1 and not good else good, tuple(changes))


def expected(operator: str, arguments: Arguments) -> list[Tensor]:
    """The reference's answer in float64 on the same numbers."""
    if operator == "batch_index":
        return [arguments["column"].long()]
    kind, size, level = arguments["kind"], tuple(arguments["output_size"]), arguments["level"]
    rank, shapes = len(size), arguments.get("shapes", [])
    sizes = [shapes[i : i + rank + 2] for i in range(0, len(shapes), rank + 2)]
    features = arguments["features"] or [torch.zeros(each) for each in sizes]
    maps = [torch.zeros(map.shape).double() + map.detach().double() for map in features]
    maps = [map.requires_grad_(operator == "pool_grad") for map in maps]
    rois = (arguments["rois"].detach() + 0).requires_grad_(operator == "pool_box_grad")
    scales = [arguments["scales"][i : i + rank] for i in range(0, len(arguments["scales"]), rank)]

    def single(map: Tensor, rows: Tensor, scale: list[float]) -> Tensor:
        how = (max(arguments["sampling_ratio"], 0), arguments["aligned"]) if KINDS[kind].samples else ()
        return reference.pool([map], rows, None, Pooling(kind, size, scale, *how))

    which = torch.zeros(rois.shape[0], dtype=torch.int64) if level is None else level + 0
    rows = [(which == index).nonzero()[:, 0] for index in range(len(maps))]
    parts = [single(map, rois[row], scale) for map, row, scale in zip(maps, rows, scales, strict=True)]
    pooled = torch.cat(parts)[torch.cat(rows).argsort()]
    if operator == "pool":
        return [pooled]
    if operator == "pool_box_grad" and kind in ("cells", "ps_cells"):
        return [torch.zeros_like(rois)]
    wanted = maps if operator == "pool_grad" else [rois]
    grad = arguments["grad"].detach().double() + 0
    return list(torch.autograd.grad(pooled, wanted, grad, allow_unused=True, materialize_grads=True))


def check(case: Case) -> str:
    """Make the call; what came of it. Raises AssertionError if that is none of what may come."""
    raised: Exception | None = None
    try:
        answer = getattr(torch.ops.roialign, case.operator)(**case.arguments)
    except (ValueError, TypeError, IndexError, MemoryError, RuntimeError) as error:
        raised = error
    if raised is not None:
        said = str(raised)
        assert said, type(raised).__name__
        assert case.good is not True, f"a good call raised {type(raised).__name__}: {said}"
        known = not isinstance(raised, RuntimeError) or any(words in said for words in PYTORCH_SAYS)
        assert known, f"{type(raised).__name__}: {said}"
        return type(raised).__name__
    assert case.good is not False, "a broken call was answered"
    answers = answer if isinstance(answer, list) else [answer]
    if case.good is None:
        for each in answers:
            if not each.is_meta:
                each.sum()  # read it all
        return "an answer"
    truth = expected(case.operator, case.arguments)
    assert len(truth) == len(answers)
    for got, wanted in zip(answers, truth, strict=True):
        assert got.shape == wanted.shape, (got.shape, wanted.shape)
        if case.arguments.get("kind") == "rotated" and case.arguments["rois"].dtype != torch.float64:
            continue  # a sample next to a border may round to its other side
        if case.operator == "pool_grad" and case.arguments["kind"] == "max" and got.dtype != torch.float64:
            continue  # which of two nearly equal samples is greater is a matter of rounding
        narrow = case.arguments["grad"].dtype if case.operator == "pool_box_grad" else got.dtype
        tolerance = max(RELATIVE.get(narrow, 0), 2e-5 if case.operator == "pool_box_grad" else 0) * 8
        if case.operator == "pool_box_grad" and case.arguments["kind"] == "max" and narrow != torch.float64:
            continue
        scale = max(1.0, float(wanted.double().abs().max())) if wanted.numel() else 1.0
        error = (got.double() - wanted.double()).abs().max() if wanted.numel() else torch.zeros(())
        assert float(error) <= tolerance * scale, f"{float(error)} off, {tolerance * scale} allowed"
    return "a right answer"


def main(seed: int, first: int = 0, seconds: float | None = None) -> Counter[str]:
    """Make calls until the time is over and count what came of them."""
    faulthandler.enable()
    seconds = float(os.environ.get("ROIALIGN_CAMPAIGN_SECONDS", "10")) if seconds is None else seconds
    print(f"seed: {seed}", flush=True)
    counts: Counter[str] = Counter()
    until, number, boxes = time.monotonic() + seconds, first, 0
    while time.monotonic() < until:
        case = make_case(seed, number)
        if number % 100 == 0:
            print(f"\rcall {number}", end="", file=sys.stderr, flush=True)
        try:
            counts[check(case)] += 1
        except BaseException:
            print(f"\nseed {seed}, call {number}: {case.operator} with {case.changes or 'nothing changed'}", flush=True)
            raise
        rois = case.arguments.get("rois")
        boxes += rois.shape[0] if isinstance(rois, Tensor) and rois.dim() and rois.shape[0] < 100 else 0
        number += 1
    print(f"\n{number - first} direct calls of {boxes} boxes: {dict(sorted(counts.items()))}", flush=True)
    return counts


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3] or [time.time()]))
