"""The Triton kernels that pool bin by bin, in Triton's interpreter or on a GPU: against the reference, numerical
differences and numbers worked by hand.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from helpers import generic_case
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
    call_of,
    check,
    gradients,
    kernel,
    placed,
    pooled,
)
from triton_device import DEVICE, needs_kernels

tl = pytest.importorskip("triton.language")
pytestmark = needs_kernels

from roialign.backends.triton import backward, blocks, gather, tables  # noqa: E402

POOLINGS = {
    "fixed": Pooling("ps_avg", (2, 1), (0.9, 0.8), 2, True),
    "adaptive": Pooling("ps_avg", (1, 2), (0.9, 0.8), 0, True),
    "many samples": Pooling("ps_avg", (1, 2), (0.9, 0.8), 20, True),
    "cells": Pooling("ps_cells", (2, 1), (0.9, 0.8)),
    "rotated": Pooling("rotated", (2, 1), (0.9, 0.8), 2, True),
    "rotated adaptive": Pooling("rotated", (1, 2), (0.9, 0.8), 0, False),
    "moved": Pooling("moved", (2, 1), (0.9, 0.8), 2, True),
    "moved adaptive": Pooling("moved", (1, 2), (0.9, 0.8), 0, True),
    "moved, many samples": Pooling("moved", (1, 2), (0.9, 0.8), 20, True),
    "volume": Pooling("avg", (2, 1, 1), (0.7, 0.9, 0.8), 2, False),
    "volume adaptive": Pooling("avg", (1, 1, 2), (0.7, 0.9, 0.8), 0, True),
    "volume integral": Pooling("integral", (1, 2, 1), (0.7, 0.9, 0.8)),
}
KINDS = {"ps_avg": "fixed", "ps_cells": "cells", "rotated": "rotated", "moved": "moved", "volume": "volume"}
LAYOUTS = ("contiguous", "channels_last")


# Every pooling in one layout or the other, and those that all the rest hangs on in both.
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *((name, LAYOUTS[i % 2]) for i, name in enumerate(POOLINGS)),
        ("rotated", "channels_last"),
        ("fixed", "channels_last"),
    ],
)
def test_values_and_gradients_are_the_reference_s(name: str, layout: str) -> None:
    input, rois = call_of(POOLINGS[name])
    check([lay_out(input, layout)], rois[[0, 1, 3]], POOLINGS[name])


EDGES = [("ps_avg", 2), ("ps_cells", 2), ("rotated", 2), ("moved", 2), ("avg", 3), ("integral", 3)]


@pytest.mark.parametrize(("kind", "rank"), EDGES)
def test_boxes_at_every_edge_of_the_rules(kind: str, rank: int) -> None:
    """Borders, centres, tiny, giant, inverted and infinite boxes, cells that are not finite, samples beyond count."""
    for seed in range(3):
        call = random_call(kind, rank, seed)
        call.rois, call.grad = call.rois[:1], call.grad[:1]
        compare(call, by_triton(call), call.run("reference"), "Triton against reference")


@pytest.mark.parametrize("name", ["adaptive", "rotated adaptive", "moved adaptive"])
def test_a_giant_box_costs_what_the_map_does(name: str) -> None:
    """Either way round: of two billion samples along an axis a handful lie on the map."""
    rois = torch.tensor([[0.0, -1e9, -1e9, 1e9, 1e9], [1.0, 1e9, 1e9, -1e9, -1e9]])
    spec = POOLINGS[name]
    input, _ = call_of(spec)
    check([input[..., :3, :3].contiguous()], placed(rois, spec), spec)


@pytest.mark.parametrize("kind", ["moved", "rotated"])
@pytest.mark.parametrize("along", [0, 1])
def test_of_more_samples_than_a_double_counts_none_counts(along: int, kind: str) -> None:
    """Of 2**50 along either axis, in two bins; with two samples fewer the last bin has those on the map, and a NaN."""
    input = torch.ones(1, 1, 8, 8, dtype=torch.float64, device=DEVICE)
    input[0, 0, 5, 5] = math.nan
    low, high = torch.ones(2, 2, dtype=torch.float64), torch.full((2, 2), 8, dtype=torch.float64)  # x and y
    low[:, 1 - along] = 8 - torch.tensor([2.0**50, 2.0**50 - 2], dtype=torch.float64)
    rois = [low, high, torch.zeros(2, 4)] if kind == "moved" else [(low + high) / 2, high - low, torch.zeros(2, 1)]
    spec = Pooling(kind, (2, 1) if along == 0 else (1, 2), (1.0, 1.0), 0, True)
    out = kernel.pool([input], torch.cat([torch.zeros(2, 1), *rois], 1).to(DEVICE), None, spec)
    assert out.flatten().tolist() == pytest.approx([0.0, 0.0, 0.0, math.nan], nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind: str, dtype: torch.dtype) -> None:
    spec = POOLINGS[KINDS[kind]]
    input, rois = call_of(spec, dtype=dtype)
    check([lay_out(input, "channels_last")], rois[:1], spec)


@pytest.mark.parametrize(
    ("layout", "name"), [("transposed", "fixed"), ("strided", "rotated"), ("strided", "volume"), ("expanded", "moved")]
)
def test_any_strides(layout: str, name: str) -> None:
    """Also more channels than one program takes; memory that belongs to no element is NaN."""
    spec = POOLINGS[name]
    input, rois = call_of(spec, channels=66)
    check([lay_out(input, layout)], rois[1:2], spec)


@pytest.mark.parametrize("name", ["fixed", "volume"])
def test_more_channels_than_one_launch_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks of 32 at once, the last one alone, each bin with channels of its own or not: the same bits."""
    spec = POOLINGS[name]
    input, rois = (each.to(DEVICE) for each in call_of(spec, channels=66))
    expected = kernel.pool([input], rois[1:3], None, spec)
    monkeypatch.setattr(gather, "SECOND", 2)
    monkeypatch.setattr(gather, "bin_blocks", lambda out: blocks.Blocks(32, 1, 2))
    assert torch.equal(kernel.pool([input], rois[1:3], None, spec), expected)


@pytest.mark.parametrize("name", ["fixed", "rotated", "moved", "volume"])
def test_boxes_in_groups(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time: the gradient to the boxes has the same bits."""
    spec = POOLINGS[name]
    input, rois = (each.to(DEVICE) for each in call_of(spec))
    grad = torch.ones_like(kernel.pool([input], rois[1:4], None, spec))
    expected = kernel.pool_box_grad(grad, [input], rois[1:4], None, spec)
    monkeypatch.setattr(tables, "TOGETHER", 1)
    assert torch.equal(kernel.pool_box_grad(grad, [input], rois[1:4], None, spec), expected)


@pytest.mark.parametrize("strides", STRIDES)
def test_a_gradient_of_any_strides(strides: str) -> None:
    input, rois = (each.to(DEVICE) for each in call_of(POOLINGS["fixed"]))
    plain = torch.randn(2, 2, 2, 1, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    grad = STRIDES[strides](plain) if strides != "every second" else plain.repeat_interleave(2, 1)[:, ::2]
    found, expected = (gradients(each, input, rois[:2], POOLINGS["fixed"]) for each in (grad, grad.contiguous()))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("kind", KINDS)
def test_levels_of_a_pyramid(kind: str) -> None:
    """Each box from its own map with its own scale; a level that does not exist gives NaN and takes no part."""
    spec = POOLINGS[KINDS[kind]]
    spec = spec._replace(scales=(*spec.scales, *(each / 2 for each in spec.scales)))
    first, rois = call_of(spec)
    second = first[:, :, :2] if spec.rank == 3 else first
    maps, rois = [first, second[..., :3, :4].contiguous()], rois[1:4]
    check(maps, rois, spec, torch.tensor([0, 1, 1]))
    assert_unknown_levels_take_no_part(maps, rois, [1], spec)


@pytest.mark.parametrize("name", KINDS.values())
def test_a_bad_box_is_nan_and_takes_no_part(name: str) -> None:
    spec = POOLINGS[name]._replace(output_size=(1,) * (POOLINGS[name].rank - 2) + (2, 1))
    input, good = call_of(spec)
    bad = placed(BAD, spec)
    if spec.kind in ("rotated", "moved"):  # the angle, or the last shift
        bad = torch.cat([bad, good[:2]])
        bad[-2:, -1] = torch.tensor([math.nan, math.inf])
    assert_bad_boxes_take_no_part(input, good[:2], bad, spec)


def test_which_channels_a_bin_reads() -> None:
    """Channels of 0, 1, 2, ...: bin (p, q) of channel c has (c * PH + p) * PW + q, and sends its gradient there."""
    spec = Pooling("ps_avg", (2, 3), (1.0, 1.0), 1, True)
    input = torch.arange(12.0, device=DEVICE).reshape(1, 12, 1, 1).expand(1, 12, 2, 2)
    rois = torch.tensor([[0.0, 0, 0, 2, 2]], device=DEVICE)
    out = kernel.pool([input], rois, None, spec)
    assert out.flatten().tolist() == list(range(12))
    (grad,) = kernel.pool_grad(out, [], [1, 12, 2, 2], False, rois, None, spec)
    assert grad.sum((0, 2, 3)).tolist() == pytest.approx(list(range(12)), abs=1e-5)


def test_the_mean_of_whole_cells_by_hand() -> None:
    """From cell 1 to 4 - 1 of 0, 1, 4, 9, 16: two bins of 1, 4 and of 4, 9; of a map that ends there the last never."""
    row = torch.tensor([0.0, 1, 4, 9, 16], device=DEVICE).expand(1, 2, 2, 5)
    rois = torch.tensor([[0.0, 1, 0, 4, 1], [0, 3, 0, 6, 1], [0, 4, 0, 9, 1]], device=DEVICE)
    out = kernel.pool([row], rois, None, Pooling("ps_cells", (1, 2), (1.0, 1.0)))
    assert out.flatten(1).tolist() == [[2.5, 6.5], [9.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("kind", ["ps_avg", "rotated"])
@pytest.mark.parametrize("shape", [(0, 4, 4, 5), (2, 0, 4, 5), (2, 4, 4, 5), (2, 4, 0, 5)])
def test_calls_without_boxes_images_or_channels(shape: tuple[int, int, int, int], kind: str) -> None:
    for rois in (torch.zeros(0, 5), torch.tensor([[0.0, 0, 0, 2, 2]] * 2)):
        if 0 in shape[2:] and len(rois):
            continue
        spec = Pooling(kind, (1, 2), (1.0, 1.0), 1, True)
        rois = placed(rois, spec)
        out, to_map, to_boxes = pooled("triton", [torch.ones(shape)], rois, None, spec)
        assert out.shape == (len(rois), shape[1] // spec.group, 1, 2)
        assert bool(out.isnan().all() if shape[0] == 0 else (out == 1).all())
        assert to_map.shape == shape
        assert len(rois) or not to_map.any()
        assert to_boxes.shape == rois.shape


def test_the_same_bits_whoever_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes of more words than one: by image, in other tiles and blocks, with wide offsets."""
    generator = torch.Generator().manual_seed(3)
    input = torch.randn(2, 17, 5, 17, generator=generator).to(DEVICE)
    corner = torch.rand(34, 2, generator=generator) * torch.tensor([16.0, 4.0]) - 1
    image = torch.randint(2, (34, 1), generator=generator)
    rois = torch.cat([image, corner, corner + torch.rand(34, 2, generator=generator) * 4], 1).to(DEVICE)
    grad = torch.randn(34, 17, 1, 1, generator=generator).to(DEVICE)
    spec = Pooling("ps_avg", (1, 1), (1.0, 1.0), 1, True)

    def gradient(tile: blocks.Tile) -> Tensor:
        monkeypatch.setattr(gather, "backward_tile", lambda *of: tile)
        return kernel.pool_grad(grad, [], [2, 17, 5, 17], False, rois, None, spec)[0]

    first = gradient(blocks.Tile(8, 16, 32, 4))
    (expected,) = torch.autograd.grad(by_reference(input.requires_grad_(), rois, spec), input, grad)
    torch.testing.assert_close(first, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
    monkeypatch.setattr(backward, "WORDS", 1)
    monkeypatch.setattr(gather, "offset_type", lambda *reach: tl.int64)
    assert torch.equal(gradient(blocks.Tile(4, 8, 16, 4)), first)


def by_reference(input: Tensor, rois: Tensor, spec: Pooling) -> Tensor:
    with backends.use("reference"):
        return backends.pool([input], rois, None, spec)


@pytest.mark.parametrize("name", ["rotated", "moved"])
def test_numerical_differences(name: str) -> None:
    """To all that places a box: the angle, and the shifts of the bins."""
    spec = POOLINGS[name]._replace(output_size=(1, 1))
    input = torch.randn(1, 1, 2, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    box = placed(torch.tensor([[0.0, 0.63, 0.71, 2.87, 1.83]], dtype=torch.float64), spec)[:, 1:]
    with backends.use("triton"):
        leaves = input.to(DEVICE).requires_grad_(), box.to(DEVICE).requires_grad_()

        def pool(input: Tensor, box: Tensor) -> Tensor:
            return backends.pool([input], torch.nn.functional.pad(box, (1, 0)), None, spec)

        assert torch.autograd.gradcheck(pool, leaves, atol=1e-6)


def test_quarter_turns_by_hand() -> None:
    """One sample of a box 4 wide and 2 high on cells 0, 1, 2, ...: after a quarter turn bins along x run up."""
    input = torch.arange(25.0, device=DEVICE).reshape(1, 1, 5, 5)
    spec = Pooling("rotated", (1, 2), (1.0, 1.0), 1, True)
    angles = torch.tensor([0.0, 0.5, 1.0, -0.5], dtype=torch.float64) * math.pi
    rois = torch.tensor([[0.0, 2.5, 2.5, 4, 2, 0]], dtype=torch.float64).repeat(4, 1)
    rois[:, 5] = angles
    found = kernel.pool([input.double()], rois.to(DEVICE), None, spec).flatten(1).cpu()
    # The centre is on cell (2, 2), which is 12; the bins' samples are one cell away from it.
    expected = torch.tensor([[11.0, 13], [17, 7], [13, 11], [7, 17]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


LINES = {
    "avg": Pooling("avg", (3,), (0.9,), 2, False),
    "avg adaptive": Pooling("avg", (3,), (0.9,), 0, True),
    "integral": Pooling("integral", (3,), (0.9,)),
    "max": Pooling("max", (3,), (0.9,), 2, True),
    "cells": Pooling("cells", (3,), (0.9,)),
}


@pytest.mark.parametrize("name", LINES)
def test_signals(name: str) -> None:
    """Maps of one row; also where the channels lie side by side, which PyTorch has no name for."""
    _, rois = generic_case(dtype=torch.float32)
    signal = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(7))
    if name == "avg":
        signal = signal.transpose(1, 2).contiguous().transpose(1, 2)
    check([signal], rois[:4, [0, 1, 3]], LINES[name])


@pytest.mark.parametrize("kind", ["avg", "integral", "max", "cells"])
def test_signals_and_boxes_at_every_edge_of_the_rules(kind: str) -> None:
    for seed in range(3):
        call = random_call(kind, 1, seed)
        call.rois, call.grad = call.rois[:2], call.grad[:2]
        compare(call, by_triton(call), call.run("reference"), "Triton against reference")


def test_bad_boxes_of_a_signal() -> None:
    signal = torch.ones(2, 1, 4, device=DEVICE)
    rois = torch.tensor([[0.0, 1, 2], [2, 1, 2], [0, math.nan, 2], [1, 1, math.inf], [1, 0, 2]], device=DEVICE)
    found = kernel.pool([signal], rois, None, Pooling("integral", (1,), (1.0,))).flatten().tolist()
    assert found == pytest.approx([1.0, math.nan, math.nan, math.nan, 1.0], nan_ok=True)
