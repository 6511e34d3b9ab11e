"""What the tests of the kernels in Triton share: calls in all directions, and what must hold of any kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from helpers import as_rotated, generic_case, rows, some_offset
from roialign import backends
from roialign.backends import triton as kernels
from roialign.backends.memory import is_channels_last
from roialign.backends.operator import Kernels
from roialign.spec import Pooling
from test_differential import Call
from triton_device import DEVICE

# Of the largest value. A sample is the sum of four products, a gradient one of a few dozen; one rounding for half
# precision, and for bfloat16, which the interpreter cuts off, another.
WITHIN = {torch.float64: 1e-14, torch.float32: 2e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
kernel: Kernels = kernels._kernels


def pooled(backend: str, maps: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> list[Tensor]:
    """The output, and the gradients to the maps and to the rois."""
    maps = [each.to(DEVICE).detach().requires_grad_() for each in maps]
    rois = rois.to(DEVICE).detach().requires_grad_()
    with backends.use(backend):
        out = backends.pool(maps, rois, None if level is None else level.to(DEVICE), spec)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(out)
    found = torch.autograd.grad(out, [*maps, rois], grad, allow_unused=True, materialize_grads=True)
    return [each.detach().cpu() for each in (out, *found)]


def check(maps: list[Tensor], rois: Tensor, spec: Pooling, level: Tensor | None = None) -> None:
    """All three directions against the reference."""
    found, expected = (pooled(backend, maps, rois, level, spec) for backend in ("triton", "reference"))
    assert is_channels_last(found[0]) == is_channels_last(expected[0])
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        finite = other.double().nan_to_num(0, 0, 0).abs()
        # Half precision's maps are exact in float32, in which the boxes' gradient is summed.
        within = WITHIN[other.dtype] * (float(finite.max()) if finite.numel() else 0.0)
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=within, equal_nan=True)
    if spec.kind == "cells":  # copied, not summed
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0, equal_nan=True)
        assert not found[-1].any()


def gradients(grad: Tensor, input: Tensor, rois: Tensor, spec: Pooling) -> tuple[Tensor, Tensor]:
    """By the kernels, to the map and to the rois."""
    last = input.stride(1) == 1
    (to_map,) = kernel.pool_grad(grad, [input], list(input.shape), last, rois, None, spec)
    return to_map, kernel.pool_box_grad(grad, [input], rois, None, spec)


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda grad: grad[:1, :1, :1, :1].expand(grad.shape),
    "transposed": lambda grad: grad.transpose(2, 3).contiguous().transpose(2, 3),
    "every second": lambda grad: grad.repeat_interleave(2, 3)[..., ::2],
}


def call_of(spec: Pooling, channels: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A map of so many channels for each bin that has its own, and six boxes of two images."""
    generator = torch.Generator().manual_seed(7)
    lengths = (3, 5, 6)[-spec.rank :]
    input = torch.randn(2, channels * spec.group, *lengths, generator=generator, dtype=torch.float64)
    return input.to(dtype), placed(generic_case(dtype=torch.promote_types(dtype, torch.float32))[1], spec)


def placed(rois: Tensor, spec: Pooling) -> Tensor:
    """Corners on a plane as the kind has them: turned, with a shift for each bin, with a z like their y, or along x."""
    if spec.kind == "rotated":
        return as_rotated(rois)
    if spec.kind == "moved":
        return torch.cat([rois, 0.3 * some_offset(rois, *spec.output_size).flatten(1)], 1)
    if spec.rank == 3:
        return torch.cat([rois[:, :3], 0.6 * rois[:, 2:3], rois[:, 3:], 0.7 * rois[:, 4:]], 1)
    return rois[:, [0, 1, 3]] if spec.rank == 1 else rois


def by_triton(call: Call) -> list[Tensor]:
    """What the kernels make of a random call, wherever they run."""
    there = replace(call, input=call.input.to(DEVICE), rois=call.rois.to(DEVICE), grad=call.grad.to(DEVICE))
    return [each.cpu() for each in there.run("triton")]


NO_IMAGES = (2, 0, 0, 3, 3), (-1, 0, 0, 3, 3), (0.5, 0, 0, 3, 3)
BAD = rows(*NO_IMAGES, (1, math.nan, 0, 3, 3), (0, 0, -math.inf, 3, 3)).float()


def assert_bad_boxes_take_no_part(input: Tensor, good: Tensor, bad: Tensor, spec: Pooling) -> None:
    """They are NaN, and send nothing even where the gradient to their output is NaN: the others' are theirs alone, bit
    for bit."""
    input, mixed = input.to(DEVICE), torch.cat([good[:1], bad, good[1:]]).to(DEVICE)
    is_good = torch.tensor([True] + [False] * len(bad) + [True] * (len(good) - 1), device=DEVICE)
    out, alone = (kernel.pool([input], rois, None, spec) for rois in (mixed, mixed[is_good]))
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    grad[~is_good] = math.nan
    assert bool(out[~is_good].isnan().all())
    assert torch.equal(out[is_good], alone)
    to_maps, to_boxes = gradients(grad, input, mixed, spec)
    assert torch.equal(to_maps, gradients(grad[is_good], input, mixed[is_good], spec)[0])
    assert not to_boxes[~is_good].any()
    assert bool(to_boxes.isfinite().all())


def assert_unknown_levels_take_no_part(
    maps: Sequence[Tensor], rois: Tensor, known: Sequence[int], spec: Pooling
) -> None:
    """Of boxes of these levels and two more of levels that do not exist: those are NaN and take no part."""
    features = [each.to(DEVICE) for each in maps]
    shapes = [size for each in maps for size in each.shape]

    def run(level: Sequence[int]) -> list[Tensor]:
        at = rois[: len(level)].to(DEVICE), torch.tensor(level, device=DEVICE)
        out = kernel.pool(features, *at, spec)
        grad = torch.ones_like(out)
        grads = kernel.pool_grad(grad, features, shapes, False, *at, spec)
        return [out, kernel.pool_box_grad(grad, features, *at, spec), *grads]

    count = len(known)
    out, to_boxes, *to_maps = run([*known, len(maps), -(2**40)])
    alone, boxes_alone, *maps_alone = run(known)
    assert bool(out[count:].isnan().all())
    assert not to_boxes[count:].any()
    assert all(map(torch.equal, [out[:count], to_boxes[:count], *to_maps], [alone, boxes_alone, *maps_alone]))
