"""Native against reference against plain loops, on random calls: forward, and the gradients to the map and the boxes.

Boxes are such as break rules: edges on cells' centres and on the borders, of exactly one cell, tiny, giant, inverted,
not finite; maps may hold infinities and NaN. ``ROIALIGN_FUZZ_SECONDS`` makes it longer; a failure names its seed, and
``ROIALIGN_FUZZ_SEED`` begins with that one.
"""

from __future__ import annotations

import math
import os
import random
import time
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import oracle
import oracle_gather
from helpers import DTYPES, RELATIVE
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
from roialign.spec import KINDS
from strategies import LAYOUTS, lay_out

SECONDS = float(os.environ.get("ROIALIGN_FUZZ_SECONDS", "16"))  # of all kinds together
POOLINGS = [(name, rank) for name, kind in KINDS.items() for rank in kind.ranks]
GATHERED = ("rotated", "moved")
VISITED = 2  # boxes of each call that the loops pool too
needs_native = pytest.mark.skipif(bool(not backends.available()["native"].ready), reason="needs the compiled core")


@dataclass
class Call:
    """One random call; ``grad`` is the gradient to its output."""

    kind: str
    input: Tensor
    rois: Tensor
    grad: Tensor
    scale: float
    ratio: int
    aligned: bool

    def pool(self, input: Tensor, rois: Tensor) -> Tensor:
        size = tuple(self.grad.shape[2:])
        if self.kind == "rotated":
            how = {"aligned": self.aligned, "unit": "radians"}
            return roi_align_rotated(input, rois, size, self.scale, self.ratio, **how)  # type: ignore[arg-type]
        if self.kind == "moved":
            offset = rois[:, 5:].reshape(-1, 2, *size)
            return deform_roi_pool(input, rois[:, :5], offset, size, self.scale, self.ratio, gamma=1.0)
        if self.kind == "cells":
            return roi_pool(input, rois, size, self.scale)
        if self.kind == "ps_avg":
            return ps_roi_align(input, rois, size, self.scale, self.ratio)
        if self.kind == "ps_cells":
            return ps_roi_pool(input, rois, size, self.scale)
        if self.kind == "integral":
            return prroi_pool(input, rois, size, self.scale)
        return roi_align(input, rois, size, self.scale, self.ratio, self.aligned, mode=self.kind)

    def run(self, backend: str) -> list[Tensor]:
        """Forward, gradient to the map and gradient to the rois."""
        input, rois = self.input.detach().requires_grad_(), self.rois.clone().requires_grad_()
        with backends.use(backend):
            out = self.pool(input, rois)
            found = torch.autograd.grad(out, [input, rois], self.grad, allow_unused=True, materialize_grads=True)
        return [tensor.detach().double() for tensor in (out, *found)]


def edges(rng: random.Random, length: int) -> tuple[float, float]:
    """A box along one axis, in cells."""

    def place() -> float:
        if rng.random() < 0.5:
            return rng.choice([-1, 0, length - 1, length, rng.randint(-2, length + 1), rng.randint(0, length) + 0.5])
        return rng.uniform(-2, length + 2)

    low = place()
    sort = rng.randrange(9)
    if sort == 0:
        return low, low + rng.choice([1, 0, 0.5, 1 + 2**-20, 1 - 2**-20])
    if sort == 1:
        return low, low + 10 ** rng.uniform(-16, -3)
    if sort == 2:
        return low - 10 ** rng.uniform(-16, -3), low
    if sort == 3:  # giant
        far = 10 ** rng.uniform(1, rng.choice([4, 9, 38]))
        return rng.choice([(low, far), (-far, low), (-far, far), (far, -far), (-far, far / 3)])
    if sort == 4 and rng.random() < 0.3:  # where float64 ends: no number, a size that is none, tiny ones
        ends = [
            (low, math.nan),
            (math.inf, low),
            (-math.inf, math.inf),
            (1.7e308, -1.7e308),
            (5e-324, 1e-300),
            (0, 1e-310),
        ]
        return rng.choice(ends)
    return low, place()


def random_call(kind: str, rank: int, seed: int) -> Call:
    rng = random.Random(f"{kind} {rank} {seed}")
    generator = torch.Generator().manual_seed(seed)
    channels, size = rng.choice([1, 2, 3, 17]), [rng.randint(1, 4 if rank < 3 else 3) for _ in range(rank)]
    lengths = [rng.randint(1, 8 if rank < 3 else 5) for _ in range(rank)]
    shape = (rng.randint(1, 2), channels * (math.prod(size) if kind.startswith("ps_") else 1), *lengths)
    dtype = rng.choice(DTYPES)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if rng.random() < 0.3:
        for _ in range(rng.randint(1, 2)):
            values.view(-1)[rng.randrange(values.numel())] = rng.choice([math.inf, -math.inf, math.nan])
    scale, aligned = rng.choice([1.0, 1.0, 0.25, 0.3, 2.0]), rng.random() < 0.5 or kind in ("ps_avg", "moved")
    shift = 0.5 if aligned and kind in ("avg", "max", "ps_avg", *GATHERED) else 0.0
    numbers = []
    for _ in range(rng.choice([1, 6, 40])):
        sides = [edges(rng, length) for length in reversed(lengths)]  # x first
        corners = [low for low, _ in sides] + [high for _, high in sides]
        numbers.append([rng.randrange(shape[0]), *((edge + shift) / scale for edge in corners)])
    rois = torch.tensor(numbers, dtype=torch.float64)
    if kind == "rotated":
        rois = turned(rng, rois)
    if kind == "moved":
        shifts = [[shift_of_a_bin(rng) for _ in range(2 * math.prod(size))] for _ in rois]
        rois = torch.cat([rois, torch.tensor(shifts, dtype=torch.float64)], 1)
    if rng.random() < 0.5:
        rois = rois.float()
    grad = torch.randn((len(numbers), channels, *size), generator=generator, dtype=torch.float64)
    return Call(
        kind=kind,
        input=lay_out(values.to(dtype), rng.choice(LAYOUTS)),
        rois=rois,
        grad=grad.to(dtype),
        scale=scale,
        ratio=rng.choice([0, 0, 0, 1, 2, 2, 3, 7, *([100, 2**24 + 1, 2**40, 2**55] if kind != "rotated" else [30])]),
        aligned=aligned,
    )


def turned(rng: random.Random, corners: Tensor) -> Tensor:
    """Boxes turned about their centres. Of what only a rounding of the sine decides, such as a sample on the border of
    the map, there is none: where edges are whole numbers of cells the angle is a quarter turn or any."""
    low, high = corners[:, 1:3], corners[:, 3:]
    size = (high / 2 - low / 2) * 2
    centre = low / 2 + high / 2
    angles = [rng.choice([0.0, rng.uniform(-7, 7), 1e-9, rng.uniform(-1e3, 1e3)]) for _ in corners]
    return torch.cat([corners[:, :1], centre, size, torch.tensor(angles, dtype=torch.float64)[:, None]], 1)


def shift_of_a_bin(rng: random.Random) -> float:
    """In boxes."""
    if rng.random() < 0.01:
        return rng.choice([math.nan, math.inf, 1e30, -1e5])
    return rng.choice([0.0, rng.uniform(-1, 1), rng.choice([0.5, -0.25, 1.0]), rng.uniform(-1e-9, 1e-9)])


def decided(call: Call) -> Tensor:
    """``[K]`` bool: the slope of the box's maxima does not hang on a rounding, as where samples nearly coincide."""
    if call.kind == "moved":  # where positions have no fraction, what moves with the box's size is a rounding times it
        return ((call.rois[:, 3:5] - call.rois[:, 1:3]).double() * call.scale).abs().lt(2.0**40).all(1)
    if call.kind != "max":
        return torch.ones(len(call.rois), dtype=torch.bool)
    rank = call.rois.shape[1] // 2
    size = ((call.rois[:, 1 + rank :] - call.rois[:, 1 : 1 + rank]) * call.scale).double()
    size = size if call.aligned else size.clamp(min=1)
    bins = torch.tensor(call.grad.shape[2:]).flip(0)
    grid = call.ratio if call.ratio > 0 else (size / bins).ceil().clamp(min=1)
    return (size.abs() / bins / grid > 1e-2).all(1) & (size.abs() < 1e4).all(1)


def scales(call: Call) -> tuple[float, ...]:
    return (call.scale,) * (call.input.dim() - 2)


def hangs_on_a_rounding(call: Call, row: int) -> bool:
    """Whether two samples of the box come so close to the greatest that the loops cannot tell which is."""
    one = slice(row, row + 1)
    truth = oracle.pool_with_gradients(
        call.kind, call.input, call.rois[one], call.grad[one], scales(call), call.ratio, call.aligned
    )
    return truth is None or bool(torch.from_numpy(truth[2]).isnan().any())


def compare(call: Call, found: list[Tensor], expected: list[Tensor], by: str) -> None:
    unit = RELATIVE[call.input.dtype]
    finite = call.input.double().nan_to_num(0, 0, 0).abs().max().item() + 1
    weight = call.grad.double().abs()
    sums = (unit * finite, unit * weight.sum().item(), 10 * unit * finite * call.scale * weight.flatten(1).sum(1))
    keep = decided(call)
    for name, tolerance, a, b in zip(("output", "map gradient", "box gradient"), sums, found, expected, strict=True):
        relative = unit
        if name == "box gradient":
            a, b, tolerance = a[keep], b[keep], tolerance[keep, None]
            relative = max(unit, RELATIVE[call.rois.dtype])  # it comes in the boxes' own dtype
        if name == "box gradient" and call.kind == "max":  # a mismatch is none where a rounding decides
            off = ((a - b).abs() > tolerance).any(1).nonzero()[:, 0].tolist()
            kept = keep.nonzero()[:, 0]
            b = b.clone()
            b[b.isnan()] = a[b.isnan()]
            for row in off:
                if hangs_on_a_rounding(call, int(kept[row])):
                    b[row] = a[row]
        same = torch.isclose(a, b, rtol=relative, atol=0, equal_nan=True) | ((a - b).abs() <= tolerance)
        if not bool(same.all()):
            at = tuple((~same).nonzero()[0].tolist())
            rois = {"output": call.rois, "box gradient": call.rois[keep]}.get(name)
            row = "" if rois is None else f", row {rois[at[0]].tolist()}"
            raise AssertionError(f"{by}: {name} at {at}{row}: {a[at]} != {b[at]}")


def check(kind: str, rank: int, seed: int) -> int:
    """One call, and how many boxes it had."""
    call = random_call(kind, rank, seed)
    native, reference = call.run("native"), call.run("reference")
    compare(call, native, reference, "native against reference")
    few = Call(kind, call.input, call.rois[:VISITED], call.grad[:VISITED], call.scale, call.ratio, call.aligned)
    truth = (oracle_gather if kind in GATHERED else oracle).pool_with_gradients(
        kind, few.input, few.rois, few.grad, scales(few), call.ratio, call.aligned
    )
    if truth is not None:
        for backend in ("native", "reference"):
            compare(few, few.run(backend), [torch.from_numpy(part) for part in truth], f"{backend} against loops")
    return len(call.rois)


@needs_native
@pytest.mark.parametrize(("kind", "rank"), POOLINGS)
def test_native_reference_and_loops_agree(kind: str, rank: int) -> None:
    seed = int(os.environ.get("ROIALIGN_FUZZ_SEED", "0" if os.environ.get("CI") else time.time_ns() % 10**9))
    end, boxes, calls = time.process_time() + SECONDS / len(POOLINGS), 0, 0
    while time.process_time() < end:
        try:
            boxes += check(kind, rank, seed)
        except AssertionError as error:
            raise AssertionError(
                f"ROIALIGN_FUZZ_SEED={seed}, kind {kind}, rank {rank}: {error}\n{random_call(kind, rank, seed)}"
            ) from error
        seed, calls = seed + 1, calls + 1
    print(f"{kind} of rank {rank}: {boxes} boxes in {calls} calls agreed")
    assert calls > 0
