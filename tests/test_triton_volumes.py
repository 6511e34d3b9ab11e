"""The Triton kernels that take a maximum of volumes, in Triton's interpreter or on a GPU."""

from __future__ import annotations

import pytest
import torch

from helpers import crosswise
from roialign import backends
from roialign.spec import Pooling
from strategies import lay_out
from test_differential import compare, random_call
from triton_calls import (
    BAD,
    assert_bad_boxes_take_no_part,
    assert_unknown_levels_take_no_part,
    by_triton,
    call_of,
    check,
    gradients,
    kernel,
    placed,
)
from triton_device import DEVICE, needs_kernels

pytestmark = needs_kernels

SCALES = (0.7, 0.9, 0.8)
POOLINGS = {
    "fixed": Pooling("max", (2, 1, 2), SCALES, 2, False),
    "adaptive": Pooling("max", (1, 2, 1), SCALES, 0, True),
    "many samples": Pooling("max", (1, 1, 1), SCALES, 20, True),
    "cells": Pooling("cells", (2, 1, 2), SCALES),
}


@pytest.mark.parametrize(("name", "layout"), crosswise(POOLINGS, ("contiguous", "channels_last")))
def test_maxima_and_their_gradients_are_the_reference_s(name: str, layout: str) -> None:
    input, rois = call_of(POOLINGS[name])
    rois = rois[[0, 1, 3]]
    if name == "many samples":
        input, rois = input[:, :1, :2, :3, :4].contiguous(), rois[:1]
    check([lay_out(input - 0.5, layout)], rois, POOLINGS[name])


@pytest.mark.parametrize("kind", [pytest.param("max", marks=pytest.mark.slow), "cells"])
def test_boxes_at_every_edge_of_the_rules(kind: str) -> None:
    """Borders, centres, tiny, giant, inverted and infinite boxes, cells that are not finite, samples beyond count."""
    for seed in range(3):
        call = random_call(kind, 3, seed)
        call.rois, call.grad = call.rois[:1], call.grad[:1]
        compare(call, by_triton(call), call.run("reference"), "Triton against reference")


@pytest.mark.parametrize(("dtype", "kind"), crosswise([torch.float64, torch.float16], ["max", "cells"]))
def test_dtypes(kind: str, dtype: torch.dtype) -> None:
    spec = Pooling(kind, (1, 2, 1), SCALES, 2 * (kind == "max"))
    input, rois = call_of(spec, dtype=dtype)
    check([lay_out(input, "channels_last")], rois[:1], spec)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_any_strides(layout: str) -> None:
    """Also more channels than one program takes; memory that belongs to no element is NaN."""
    spec = Pooling("max", (2, 1, 2), SCALES, 1, True)
    input, rois = call_of(spec, channels=66)
    check([lay_out(input, layout)], rois[1:2], spec)


@pytest.mark.parametrize("kind", ["max", "cells"])
def test_levels_of_a_pyramid(kind: str) -> None:
    """Each box from its own map with its own scale, of fewer planes; a level that does not exist takes no part."""
    spec = Pooling(kind, (2, 1, 1), (*SCALES, *(each / 2 for each in SCALES)), 0, kind == "max")
    first, rois = call_of(spec)
    maps = [first, first[:, :, :2, :3, :4].contiguous()]
    check(maps, rois[1:4], spec, torch.tensor([0, 1, 1]))
    assert_unknown_levels_take_no_part(maps, rois[1:4], [1], spec)


@pytest.mark.parametrize("kind", ["max", "cells"])
def test_a_bad_box_is_nan_and_takes_no_part(kind: str) -> None:
    spec = Pooling(kind, (1, 2, 1), SCALES, 1 * (kind == "max"))
    input, good = call_of(spec)
    assert_bad_boxes_take_no_part(input, good[:2], placed(BAD, spec), spec)


@pytest.mark.parametrize(
    ("cells", "value", "first"),
    [
        ([1.0, 1, 1, 1, 1, 1, 1, 1], 1.0, 0),
        ([0.0, 0, 0, 2, 0, 2, 2, 2], 2.0, 3),  # the last of the first plane, not the second one's first
        ([0.0, 0, 0, 0, 5, 0, 5, 5], 5.0, 4),
        ([-torch.inf] * 8, -torch.inf, 0),
        ([0.0, 9, 0, 0, torch.nan, 0, torch.nan, 0], torch.nan, 4),
    ],
)
@pytest.mark.parametrize("kind", ["max", "cells"])
def test_the_first_maximum_by_hand(kind: str, cells: list[float], value: float, first: int) -> None:
    """In the order of memory, planes first; the two samples along each axis lie on two cells."""
    input = torch.tensor(cells, device=DEVICE).reshape(1, 1, 2, 2, 2)
    size = 2.0 if kind == "max" else 1.0
    rois = torch.tensor([[0.0, 0, 0, 0, size, size, size]], device=DEVICE)
    spec = Pooling(kind, (1, 1, 1), (1.0, 1.0, 1.0), 2 * (kind == "max"), kind == "max")
    out = kernel.pool([input], rois, None, spec)
    assert out.flatten().tolist() == pytest.approx([value], nan_ok=True)
    to_map, _ = gradients(torch.ones_like(out), input, rois, spec)
    assert to_map.flatten().tolist() == [float(i == first) for i in range(8)]


def test_ties_go_to_the_first() -> None:
    """Few values, and positions and weights without rounding, so that equals are equal: all as the reference has it."""
    input = torch.randint(-1, 2, (1, 3, 4, 5, 6), generator=torch.Generator().manual_seed(6)).float()
    boxes = torch.tensor([[0.0, 0, 0, 4, 4, 2], [-2, -3, -1, 6, 5, 5], [6, 5, 3, -2, 1, -1]])
    check([input], torch.nn.functional.pad(boxes, (1, 0)), Pooling("max", (1, 2, 1), (1.0, 1.0, 1.0), 2))


@pytest.mark.slow
def test_numerical_differences() -> None:
    generator = torch.Generator().manual_seed(8)
    input = torch.randn(1, 1, 2, 3, 2, generator=generator, dtype=torch.float64).to(DEVICE)
    box = torch.tensor([[0.23, 0.71, 0.37, 1.87, 1.83, 1.61]], device=DEVICE, dtype=torch.float64)
    spec = Pooling("max", (1, 1, 1), (1.0, 0.9, 0.8), 2, True)
    with backends.use("triton"):
        leaves = input.requires_grad_(), box.requires_grad_()

        def pool(input: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
            return backends.pool([input], torch.nn.functional.pad(box, (1, 0)), None, spec)

        assert torch.autograd.gradcheck(pool, leaves, atol=1e-6)
