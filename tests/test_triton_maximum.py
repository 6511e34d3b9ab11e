"""The Triton kernels that take a maximum, in Triton's interpreter or on a GPU: against the reference, numerical
differences and numbers worked by hand.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from helpers import crosswise, generic_case
from roialign import backends
from roialign.spec import Pooling
from strategies import lay_out
from test_differential import compare, random_call
from triton_calls import (
    BAD,
    STRIDES,
    assert_bad_boxes_take_no_part,
    assert_unknown_levels_take_no_part,
    by_triton,
    check,
    gradients,
    kernel,
    pooled,
)
from triton_device import DEVICE, needs_kernels

pytest.importorskip("triton")
pytestmark = needs_kernels

import triton.language as tl  # noqa: E402

from roialign.backends.triton import backward, blocks, maximum  # noqa: E402

LAYOUTS = ("contiguous", "channels_last")
POOLINGS = {
    "fixed": Pooling("max", (2, 3), (0.9, 0.8), 2, False),
    "adaptive": Pooling("max", (2, 3), (0.9, 0.8), 0, True),
    "many samples": Pooling("max", (1, 1), (0.9, 0.8), 20, True),
    "cells": Pooling("cells", (2, 3), (0.9, 0.8)),
}
# All directions.


@pytest.mark.parametrize(("name", "layout"), crosswise(POOLINGS, LAYOUTS))
def test_maxima_and_their_gradients_are_the_reference_s(name: str, layout: str) -> None:
    input, rois = generic_case(dtype=torch.float32)
    few = rois[2:4] if name == "many samples" else rois[1:5]
    check([lay_out(input - 0.5, layout)], few, POOLINGS[name])


def test_a_giant_box_is_pooled_like_any_other() -> None:
    """Either way round: of two billion samples along an axis a handful lie on the map."""
    rois = torch.tensor([[0.0, -1e9, -1e9, 1e9, 1e9], [0.0, 1e9, 1e9, -1e9, -1e9]])
    values = torch.randn(1, 2, 2, 3, generator=torch.Generator().manual_seed(5))
    check([values], rois, Pooling("max", (1, 1), (1.0, 1.0), 0, True))


@pytest.mark.parametrize("kind", ["max", "cells"])
def test_boxes_at_every_edge_of_the_rules(kind: str) -> None:
    """Borders, centres, tiny, giant, inverted and infinite boxes, cells that are not finite, samples beyond count."""
    for seed in range(6):
        call = random_call(kind, 2, seed)
        call.rois, call.grad = call.rois[:2], call.grad[:2]
        compare(call, by_triton(call), call.run("reference"), "Triton against reference")


@pytest.mark.parametrize(("dtype", "kind"), crosswise([torch.float64, torch.float16, torch.bfloat16], ["max", "cells"]))
def test_dtypes(kind: str, dtype: torch.dtype) -> None:
    input, rois = generic_case()
    rois = rois[:3].to(torch.promote_types(dtype, torch.float32))
    check([lay_out(input.to(dtype), "channels_last")], rois, Pooling(kind, (2, 2), (0.9, 0.9), 2 * (kind == "max")))


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_any_strides(layout: str) -> None:
    """Also more channels than one program takes, and more bins; memory that belongs to no element is NaN."""
    values = torch.randn(2, 66, 3, 4, generator=torch.Generator().manual_seed(1))
    _, rois = generic_case(dtype=torch.float32)
    check([lay_out(values, layout)], rois[1:2], Pooling("max", (1, 18), (0.9, 0.9), 1, True))


@pytest.mark.parametrize("kind", ["max", "cells"])
def test_levels_of_a_pyramid(kind: str) -> None:
    """Each box from its own map with its own scale; a level that does not exist gives NaN and takes no part."""
    generator = torch.Generator().manual_seed(2)
    maps = [torch.randn(2, 3, 9 >> i, 12 >> i, generator=generator) for i in range(3)]
    _, rois = generic_case(dtype=torch.float32)
    rois, level = rois[:4], torch.tensor([0, 2, 1, 0])
    spec = Pooling(kind, (1, 2), (1.0, 1.0, 0.5, 0.4, 0.25, 0.25))
    check(maps, rois, spec, level)
    assert_unknown_levels_take_no_part(maps, rois, [0, 2], spec)


@pytest.mark.parametrize("kind", ["max", "cells"])
def test_a_bad_box_is_nan_and_takes_no_part(kind: str) -> None:
    input, good = generic_case(dtype=torch.float32)
    assert_bad_boxes_take_no_part(input, good[:3], BAD, Pooling(kind, (1, 2), (2.0, 2.0)))


# Which is the first.


def hand(cells: list[float], box: tuple[float, float], spec: Pooling) -> tuple[list[float], list[float]]:
    """Pooled values and gradient to the map, of one row of cells and a box along it, for an output gradient of ones."""
    input = torch.tensor(cells, device=DEVICE).reshape(1, 1, 1, -1)
    rois = torch.tensor([[0.0, box[0], 0.0, box[1], 1.0]], device=DEVICE)
    out = kernel.pool([input], rois, None, spec)
    return out.flatten().tolist(), gradients(torch.ones_like(out), input, rois, spec)[0].flatten().tolist()


@pytest.mark.parametrize(
    ("cells", "box", "ratio", "value", "gradient"),
    [
        # Samples at 0.5, 1.5, 2.5, 3.5: 0.5, 1.5, 1.5 and 0.5, of which the second is the first greatest.
        ([0.0, 1, 2, 1, 0], (0, 4), 4, 1.5, [0, 0.5, 0.5, 0, 0]),
        # Of equals the first, 0 and -0 included.
        ([3.0, 3, 3, 3, 3], (0, 4), 4, 3.0, [0.5, 0.5, 0, 0, 0]),
        ([-0.0, -0.0, 0, 0, 0], (0, 4), 4, 0.0, [0.5, 0.5, 0, 0, 0]),
        # The first sample, at -2, lies outside and counts 0, as much as the next, at 0, has: it is the first.
        ([0.0, 0, -1, -1, -1], (-3, 5), 4, 0.0, [0, 0, 0, 0, 0]),
        # Outside is more than anything inside.
        ([-1.0, -1, -1, -1, -1], (-3, 5), 4, 0.0, [0, 0, 0, 0, 0]),
        # More samples than are listed: of each cell the first and the last, at 0.02 and 3.98.
        ([1.0, 1, 1, 1, 1], (0, 4), 100, 1.0, [0.98, 0.02, 0, 0, 0]),
        ([math.nan, 1, math.inf, 1, 1], (1, 5), 2, math.inf, [0, 0, 1, 0, 0]),
        ([1.0, math.inf, 1, math.nan, math.nan], (0, 4), 2, math.nan, [0, 0, 0, 1, 0]),
        ([-math.inf] * 5, (0, 4), 2, -math.inf, [0, 1, 0, 0, 0]),
    ],
)
def test_the_first_maximum_of_samples_by_hand(
    cells: list[float], box: tuple[float, float], ratio: int, value: float, gradient: list[float]
) -> None:
    found = hand(cells, box, Pooling("max", (1, 1), (1.0, 1.0), ratio))
    assert found[0] == [pytest.approx(value, nan_ok=True)]
    assert found[1] == pytest.approx(gradient, abs=1e-6)


@pytest.mark.parametrize(
    ("cells", "box", "value", "gradient"),
    [
        ([1.0, 3, 3, 3, 5], (0, 3), [3.0, 3.0], [0, 1, 1, 0, 0]),
        ([1.0, 3, math.nan, math.nan, 5], (0, 3), [3.0, math.nan], [0, 1, 1, 0, 0]),
        ([-math.inf] * 5, (0, 3), [-math.inf] * 2, [1, 0, 1, 0, 0]),
        ([-1.0] * 5, (3, 6), [-1.0, 0.0], [0, 0, 0, 1, 0]),  # nothing outside takes part, and an empty bin is 0
    ],
)
def test_the_first_maximum_of_cells_by_hand(
    cells: list[float], box: tuple[float, float], value: list[float], gradient: list[float]
) -> None:
    found = hand(cells, box, Pooling("cells", (1, 2), (1.0, 1.0)))
    assert found[0] == pytest.approx(value, nan_ok=True)
    assert found[1] == gradient


@pytest.mark.parametrize("ratio", [4, 100])
def test_an_inverted_box_s_samples_run_backwards(ratio: int) -> None:
    """From 5 to -3 on cells 0 to 4: those beyond 4 are clamped to it or lie outside, the first at 4 or nearly so."""
    found = hand([1.0, 0, 1, 0, 1], (5.5, -2.5), Pooling("max", (1, 1), (1.0, 1.0), ratio, True))
    assert found == ([1.0], [0, 0, 0, 0, 1])


@pytest.mark.parametrize(("ratio", "layout"), [(2, "contiguous"), (0, "channels_last")])
def test_ties_go_to_the_first(ratio: int, layout: str) -> None:
    """Few values, and positions and weights without rounding, so that equals are equal: all as the reference has it."""
    generator = torch.Generator().manual_seed(6)
    input = torch.randint(-1, 2, (1, 3, 6, 7), generator=generator).float()
    boxes = torch.tensor([[0.0, 0, 4, 4], [-2, -3, 6, 5], [6, 5, -2, 1], [2, -4, 10, 12]])
    rois = torch.nn.functional.pad(boxes + 0.5 * (ratio == 0), (1, 0))
    check([lay_out(input, layout)], rois, Pooling("max", (2, 1), (1.0, 1.0), ratio, ratio == 0))


# Not all at once.


def test_the_same_bits_whoever_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes of more words than one: few channels and one image at a time with wide offsets, and in other tiles."""
    generator = torch.Generator().manual_seed(3)
    input = torch.randn(2, 17, 5, 17, generator=generator).to(DEVICE)
    corner = torch.rand(34, 2, generator=generator) * torch.tensor([16.0, 4.0]) - 1
    image = torch.randint(2, (34, 1), generator=generator)
    rois = torch.cat([image, corner, corner + torch.rand(34, 2, generator=generator) * 4], 1).to(DEVICE)
    grad = torch.randn(34, 17, 1, 1, generator=generator).to(DEVICE)
    spec = Pooling("cells", (1, 1), (1.0, 1.0))

    def gradient(tile: blocks.Tile) -> Tensor:
        monkeypatch.setattr(maximum, "backward_tile", lambda *of: tile)
        return kernel.pool_grad(grad, [input], [2, 17, 5, 17], False, rois, None, spec)[0]

    first = gradient(blocks.Tile(8, 16, 32, 4))
    assert torch.equal(gradient(blocks.Tile(4, 8, 16, 4)), first)
    monkeypatch.setattr(maximum, "WINNERS", 1)
    monkeypatch.setattr(backward, "WORDS", 1)
    monkeypatch.setattr(maximum, "offset_type", lambda *reach: tl.int64)
    assert torch.equal(gradient(blocks.Tile(8, 16, 16, 4)), first)


@pytest.mark.parametrize("strides", STRIDES)
def test_a_gradient_of_any_strides(strides: str) -> None:
    input, rois = (each.to(DEVICE) for each in generic_case(dtype=torch.float32))
    spec = POOLINGS["fixed"]
    plain = torch.randn(2, 2, 2, 3, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    grad = STRIDES[strides](plain)
    found, expected = (gradients(each, input, rois[:2], spec) for each in (grad, grad.contiguous()))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("kind", ["max", "cells"])
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 4, 5), (2, 3, 0, 5)])
def test_calls_without_boxes_images_or_channels(shape: tuple[int, int, int, int], kind: str) -> None:
    for rois in (torch.zeros(0, 5), torch.zeros(2, 5)):
        if 0 in shape[2:] and len(rois):
            continue
        out, to_map, to_boxes = pooled("triton", [torch.ones(shape)], rois, None, Pooling(kind, (2, 2), (1.0, 1.0)))
        assert out.shape == (len(rois), shape[1], 2, 2)
        assert bool(out.isnan().all() if shape[0] == 0 else (out == 1).all())
        assert to_map.shape == shape
        assert len(rois) or not to_map.any()
        assert torch.equal(to_boxes, torch.zeros_like(rois))


def test_numerical_differences() -> None:
    generator = torch.Generator().manual_seed(8)
    input = torch.randn(1, 1, 2, 3, generator=generator, dtype=torch.float64).to(DEVICE)
    box = torch.tensor([[0.63, 0.71, 2.87, 1.83]], device=DEVICE, dtype=torch.float64)
    spec = Pooling("max", (1, 2), (1.0, 0.9), 2, True)
    with backends.use("triton"):
        leaves = input.requires_grad_(), box.requires_grad_()

        def pool(input: Tensor, box: Tensor) -> Tensor:
            return backends.pool([input], torch.nn.functional.pad(box, (1, 0)), None, spec)

        assert torch.autograd.gradcheck(pool, leaves, atol=1e-6)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([], "got no maps"),
        ([torch.ones(1, 1, 3, 5)], r"features\[0\]: got a tensor of shape \(1, 1, 3, 5\)"),
        ([torch.ones(1, 1, 4, 5)] * 2, "expected the shapes"),
    ],
)
def test_a_gradient_needs_the_maps_again(maps: list[Tensor], message: str) -> None:
    grad, rois = torch.ones(1, 1, 2, 2, device=DEVICE), torch.zeros(1, 5, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        kernel.pool_grad(
            grad,
            [each.to(DEVICE) for each in maps],
            [1, 1, 4, 5],
            False,
            rois,
            None,
            Pooling("max", (2, 2), (1.0, 1.0)),
        )


@pytest.mark.slow
def test_offsets_beyond_31_bits() -> None:
    """Channels so far apart that a block of them spans 2**31 numbers; the memory between is never touched."""
    far = 2**26
    memory = torch.empty(33 * far, dtype=torch.float16, device=DEVICE)
    input, rois = generic_case(dtype=torch.float32)
    input = input[:1].half().repeat(1, 17, 1, 1)[:, :33].to(DEVICE)
    rois, spec = rois[[0, 3]].to(DEVICE), POOLINGS["adaptive"]
    wide = memory.as_strided(input.shape, (2**31, far, 6, 1)).copy_(input)
    out = kernel.pool([input], rois, None, spec)
    assert torch.equal(kernel.pool([wide], rois, None, spec), out)
    expected = gradients(out, input, rois, spec)
    assert all(map(torch.equal, gradients(out, wide, rois, spec), expected))
    spread = memory[5000:].as_strided(out.shape, (6, far, 3, 1)).copy_(out)
    assert all(map(torch.equal, gradients(spread, input, rois, spec), expected))
