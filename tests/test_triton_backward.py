"""The backward kernels in Triton, on a GPU or in Triton's interpreter: against the reference's autograd, numerical
differences and numbers worked by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import crosswise
from roialign import backends, prroi_pool, roi_align
from roialign.spec import Pooling
from triton_device import DEVICE, needs_kernels

tl = pytest.importorskip("triton.language")
from roialign.backends.triton import backward, blocks, box_grad  # noqa: E402

pytestmark = needs_kernels

# What single numbers may differ by, per unit of the largest: sums of a few dozen products, in either order.
RELATIVE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
POOLINGS = {
    "fixed": Pooling("avg", (2, 3), (0.5, 0.4), 2, False),
    "fixed aligned": Pooling("avg", (2, 3), (0.5, 0.4), 1, True),
    "adaptive": Pooling("avg", (2, 3), (0.5, 0.4), 0, True),
    "many samples": Pooling("avg", (2, 3), (0.5, 0.4), 20, False),
    "integral": Pooling("integral", (2, 3), (0.5, 0.4)),
}


def make_maps(*sizes: tuple[int, int], channels: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, channels, *size, generator=generator).to(DEVICE, dtype) for size in sizes]


def make_rois(dtype: torch.dtype = torch.float32) -> Tensor:
    """Inside, across the border, covering all, inverted, empty, beyond the map of 9 x 19 cells."""
    boxes = [
        (0, 3.1, 2.2, 17.3, 9.4),
        (1, -4.3, -3.2, 8.1, 5.3),
        (1, -30.2, -20.3, 70.1, 40.2),
        (0, 31.2, 14.3, 12.1, 3.2),
        (0, 7.3, 7.3, 7.3, 7.3),
        (1, 90.1, 60.2, 99.3, 70.1),
        (1, 25.7, 3.3, 44.9, 15.1),
    ]
    return torch.tensor(boxes, dtype=dtype, device=DEVICE)


def reference_gradients(
    maps: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling, grad: Tensor
) -> tuple[list[Tensor], Tensor]:
    maps, rois = [each.detach().requires_grad_() for each in maps], rois.detach().requires_grad_()
    with backends.use("reference"):
        pooled = backends.pool(maps, rois, level, spec)
    *grads, box_grad = torch.autograd.grad(pooled, [*maps, rois], grad, allow_unused=True, materialize_grads=True)
    return grads, box_grad


def kernel_gradients(
    maps: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling, grad: Tensor
) -> tuple[list[Tensor], Tensor]:
    shapes = [size for each in maps for size in each.shape]
    last = not maps[0].is_contiguous() and maps[0].is_contiguous(memory_format=torch.channels_last)
    grads = backward.pool_grad(grad, [], shapes, last, rois, level, spec)
    layout = LAYOUTS["channels_last" if last else "contiguous"]
    assert all(each.is_contiguous(memory_format=layout) for each in grads)
    return grads, box_grad.pool_box_grad(grad, maps, rois, level, spec)


def output_grad(maps: list[Tensor], rois: Tensor, spec: Pooling) -> Tensor:
    shape = (rois.shape[0], maps[0].shape[1], *spec.output_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(DEVICE, maps[0].dtype)


def assert_close(found: Tensor, expected: Tensor, unit: float) -> None:
    assert found.dtype == expected.dtype
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found.double(), expected.double(), rtol=unit, atol=unit * largest)


def assert_gradients(
    maps: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling, grad: Tensor | None = None
) -> None:
    grad = output_grad(maps, rois, spec) if grad is None else grad
    found, expected = (of(maps, rois, level, spec, grad) for of in (kernel_gradients, reference_gradients))
    for one, other in zip(found[0], expected[0], strict=True):
        assert_close(one, other, RELATIVE[maps[0].dtype])
    # Half precision's maps are exact in float32, in which the boxes' gradient is summed.
    assert_close(found[1], expected[1], RELATIVE[torch.promote_types(maps[0].dtype, torch.float32)])


@pytest.mark.parametrize(("name", "layout"), crosswise(POOLINGS, LAYOUTS))
def test_gradients_are_the_reference_s(name: str, layout: str) -> None:
    """Two tiles along y and two along x, neither full; channels that fill no block."""
    (input,) = make_maps((9, 19))
    assert_gradients([input.contiguous(memory_format=LAYOUTS[layout])], make_rois(), None, POOLINGS[name])


@pytest.mark.parametrize(("name", "layout"), crosswise(["fixed", "adaptive", "integral"], LAYOUTS))
def test_float64(name: str, layout: str) -> None:
    (input,) = make_maps((9, 19), dtype=torch.float64)
    rois = make_rois(torch.float64)
    assert_gradients([input.contiguous(memory_format=LAYOUTS[layout])], rois, None, POOLINGS[name])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision_and_more_channels_than_one_block(layout: str) -> None:
    (input,) = make_maps((9, 19), channels=37, dtype=torch.float16)
    input = input.contiguous(memory_format=LAYOUTS[layout])
    assert_gradients([input], make_rois()[:4], None, POOLINGS["fixed aligned"])


def test_half_precision_is_summed_in_float32() -> None:
    """Of 20 boxes on one cell the first sends 2048 and the others 1: summed in float16 they would be lost."""
    rois = torch.tensor([[0.0, 1, 1, 3, 3]], device=DEVICE).repeat(20, 1)  # one sample, on cell 2 of either axis
    grad = torch.ones(20, 1, 1, 1, device=DEVICE, dtype=torch.float16)
    grad[0] = 2048
    (found,) = backward.pool_grad(grad, [], [1, 1, 5, 5], False, rois, None, Pooling("avg", (1, 1), (1.0, 1.0), 1))
    expected = torch.zeros_like(found)
    expected[0, 0, 2, 2] = 2068  # the float16 next to 2067
    assert torch.equal(found, expected)


def test_more_columns_than_one_product_takes() -> None:
    (input,) = make_maps((4, 19), channels=2)
    assert_gradients([input], make_rois()[:4], None, Pooling("avg", (1, 37), (0.5, 0.4), 0, True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_levels_of_a_pyramid(layout: str) -> None:
    """One has no box, one is smaller than a tile. The boxes' rows are not in the order of their levels."""
    maps = [each.contiguous(memory_format=LAYOUTS[layout]) for each in make_maps((9, 19), (5, 10), (3, 5), (2, 3))]
    level = torch.tensor([3, 0, 1, 0, 3, 0, 1], device=DEVICE)
    spec = Pooling("avg", (2, 3), (0.5, 0.4, 0.25, 0.2, 0.12, 0.1, 0.06, 0.05), 2, True)
    assert_gradients(maps, make_rois(), level, spec)


def many_boxes(count: int) -> tuple[Tensor, Tensor, Pooling]:
    """Rois, the gradient to their output, and the pooling, for maps ``[2, 3, 9, 19]``."""
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([18.0, 8.0]) - 1
    extent = torch.rand(count, 2, generator=generator) * 2
    image = torch.randint(2, (count, 1), generator=generator)
    rois = torch.cat([image, corner, corner + extent], 1).to(DEVICE)
    grad = torch.randn(count, 3, 1, 1, generator=generator).to(DEVICE)
    return rois, grad, Pooling("avg", (1, 1), (1.0, 1.0), 1, True)


def test_the_same_bits_whoever_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes of more words than one, the last not full: again, in other tiles, by image, and with wide offsets."""
    rois, grad, spec = many_boxes(40)
    maps = make_maps((9, 19))
    tables = backward.make_tables([each.shape for each in maps], rois, None, spec, torch.float32)
    monkeypatch.setattr(backward, "make_tables", lambda *of: tables)  # once: they are no part of this

    def gradient() -> Tensor:
        return backward.pool_grad(grad, [], [2, 3, 9, 19], False, rois, None, spec)[0]

    first = gradient()
    assert_close(first, reference_gradients(maps, rois, None, spec, grad)[0][0], RELATIVE[torch.float32])
    assert torch.equal(gradient(), first)
    changes: list[tuple[str, Any]] = [
        ("WORDS", 1),
        ("offset_type", lambda *reach: tl.int64),
        ("backward_tile", lambda *of: blocks.Tile(4, 16, 32, 4)),
        ("backward_tile", lambda *of: blocks.Tile(8, 8, 16, 2)),
    ]
    for name, value in changes:
        with monkeypatch.context() as patch:
            patch.setattr(backward, name, value)
            assert torch.equal(gradient(), first), (name, value)


def test_deterministic_mode_needs_nothing() -> None:
    """PyTorch then fills new memory with NaN: no number is left unwritten, and none that is unwritten is read."""
    maps = make_maps((9, 19), (5, 10))
    rois, level = make_rois()[:4], torch.tensor([0, 1, 0, 1], device=DEVICE)
    spec = Pooling("avg", (2, 3), (0.5, 0.4, 0.25, 0.2), 1)
    grad = output_grad(maps, rois, spec)
    grads, boxes = kernel_gradients(maps, rois, level, spec, grad)
    torch.use_deterministic_algorithms(True)
    try:
        assert bool(torch.empty(3).isnan().all())
        filled, boxes_filled = kernel_gradients(maps, rois, level, spec, grad)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, grads, filled))
    assert torch.equal(boxes, boxes_filled)


BAD = [
    (-1, 0, 0, 4, 4),
    (2, 0, 0, 4, 4),
    (0.5, 0, 0, 4, 4),
    (float("nan"), 0, 0, 4, 4),
    (0, float("inf"), 0, 4, 4),
    (0, 0, float("nan"), 4, 4),
    (1, 0, 0, 3e38, 4),  # its size on the map is infinite
]


def test_bad_boxes_take_no_part() -> None:
    """Not even where the gradient to their output is NaN: the others' gradients are theirs alone, bit for bit."""
    (input,) = make_maps((9, 19))
    spec = POOLINGS["fixed"]._replace(scales=(1.5, 1.5))
    good = make_rois()[[0, 1, 3]]
    rois = torch.cat([good[:2], torch.tensor(BAD, device=DEVICE), good[2:]])
    is_good = torch.tensor([True, True, *[False] * len(BAD), True])
    grad = output_grad([input], rois, spec)
    grad[~is_good] = torch.nan
    (alone,), boxes_alone = kernel_gradients([input], good, None, spec, grad[is_good])
    (found,), boxes_found = kernel_gradients([input], rois, None, spec, grad)
    assert torch.equal(found, alone)
    assert torch.equal(boxes_found[is_good], boxes_alone)
    assert torch.equal(boxes_found[~is_good], torch.zeros(len(BAD), 5, device=DEVICE))


def test_boxes_of_no_level_take_no_part() -> None:
    maps = make_maps((9, 19), (5, 10))
    spec = Pooling("avg", (2, 3), (0.5, 0.4, 0.25, 0.2), 1)
    rois = make_rois()[:5]
    level = torch.tensor([1, 0, -1, 2, 2**40], device=DEVICE)
    grad = output_grad(maps, rois, spec)
    alone, boxes_alone = kernel_gradients(maps, rois[:2], level[:2], spec, grad[:2])
    found, boxes_found = kernel_gradients(maps, rois, level, spec, grad)
    assert all(map(torch.equal, found, alone))
    assert torch.equal(boxes_found[:2], boxes_alone)
    assert torch.equal(boxes_found[2:], torch.zeros(3, 5, device=DEVICE))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_boxes_the_gradient_is_zero(layout: str) -> None:
    rois = torch.empty(0, 5, device=DEVICE)
    grad = torch.empty(0, 3, 2, 3, device=DEVICE)
    shapes = [2, 3, 9, 19, 2, 3, 0, 4]
    spec = Pooling("avg", (2, 3), (0.5, 0.4, 0.25, 0.2), 2)
    level = torch.empty(0, device=DEVICE, dtype=torch.int64)
    found = backward.pool_grad(grad, [], shapes, layout == "channels_last", rois, level, spec)
    assert torch.equal(found[0], torch.zeros(2, 3, 9, 19, device=DEVICE))
    assert found[1].shape == (2, 3, 0, 4)


def test_without_channels_or_images() -> None:
    spec = POOLINGS["fixed"]
    none = torch.empty(2, 0, 9, 19, device=DEVICE)
    found, to_boxes = kernel_gradients([none], make_rois(), None, spec, torch.empty(7, 0, 2, 3, device=DEVICE))
    assert found[0].shape == none.shape
    assert torch.equal(to_boxes, torch.zeros(7, 5, device=DEVICE))
    grad = torch.empty(0, 3, 2, 3, device=DEVICE)
    found = backward.pool_grad(grad, [], [0, 3, 9, 19], False, torch.empty(0, 5, device=DEVICE), None, spec)
    assert found[0].shape == (0, 3, 9, 19)


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda grad: grad[:1, :1, :1, :1].expand(grad.shape),
    "transposed": lambda grad: grad.transpose(2, 3).contiguous().transpose(2, 3),
    "channels_last": lambda grad: grad.contiguous(memory_format=torch.channels_last),
    "every second": lambda grad: grad.repeat_interleave(2, 3)[..., ::2],
    "offset": lambda grad: torch.cat([grad[:1] * torch.nan, grad])[1:],
}


@pytest.mark.parametrize(
    ("strides", "layout"), [*((name, "contiguous") for name in STRIDES), ("offset", "channels_last")]
)
def test_a_gradient_of_any_strides(strides: str, layout: str) -> None:
    (input,) = make_maps((9, 19))
    rois, spec = make_rois()[:3], POOLINGS["fixed aligned"]
    grad = STRIDES[strides](output_grad([input], rois, spec))
    assert_gradients([input.contiguous(memory_format=LAYOUTS[layout])], rois, None, spec, grad)


def test_maps_of_any_strides() -> None:
    """The gradient to the boxes reads the map, here one row and two columns apart."""
    (plain,) = make_maps((9, 19))
    spread = torch.full((2, 3, 18, 57), torch.nan, device=DEVICE)[:, :, ::2, ::3].copy_(plain)
    grad = output_grad([plain], make_rois(), POOLINGS["fixed"])
    found = box_grad.pool_box_grad(grad, [spread], make_rois(), None, POOLINGS["fixed"])
    _, expected = reference_gradients([plain], make_rois(), None, POOLINGS["fixed"], grad)
    assert_close(found, expected, RELATIVE[torch.float32])


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_cell_that_is_not_finite_has_no_slope(value: float) -> None:
    (input,) = make_maps((9, 19))
    input[:, 1, 2:4, 5] = value
    rois, spec = make_rois()[:4], POOLINGS["fixed"]
    grad = output_grad([input], rois, spec)
    found = box_grad.pool_box_grad(grad, [input], rois, None, spec)
    _, expected = reference_gradients([input], rois, None, spec, grad)
    assert bool(expected.isfinite().all())
    assert_close(found, expected, RELATIVE[torch.float32])


def test_at_a_cell_s_centre_the_slope_is_the_right_hand_one() -> None:
    """One sample, on cell 1 of 0, 1, 5 along x: the value follows it by 4, and half of that is each edge's."""
    row = torch.tensor([0.0, 1, 5, 7], device=DEVICE).repeat(3, 1)[None, None]
    rois = torch.tensor([[0.0, 0, 0, 2, 2]], device=DEVICE)
    one = torch.ones(1, 1, 1, 1, device=DEVICE)
    found = box_grad.pool_box_grad(one, [row], rois, None, Pooling("avg", (1, 1), (1.0, 1.0), 1))
    assert found.tolist() == [[0.0, 2.0, 0.0, 2.0, 0.0]]


@pytest.mark.parametrize("kind", ["avg", "integral"])
def test_numerical_differences(kind: str) -> None:
    (input,) = make_maps((3, 4), channels=1, dtype=torch.float64)
    box = torch.tensor([[0.63, 0.71, 6.37, 3.93]], device=DEVICE, dtype=torch.float64)

    def pool(input: Tensor, box: Tensor) -> Tensor:
        if kind == "integral":
            return prroi_pool(input, [box], (1, 2), (0.5, 0.4))
        return roi_align(input, [box], (1, 2), (0.5, 0.4), 2)

    with backends.use("triton"):
        assert torch.autograd.gradcheck(pool, (input[:1].requires_grad_(), box.requires_grad_()))


def test_offsets_beyond_31_bits() -> None:
    """Channels so far apart that a block of them spans 2**31 numbers; the memory between is never touched."""
    far = 2**26
    memory = torch.empty(33 * far, dtype=torch.float16, device=DEVICE)
    (input,) = make_maps((9, 19), channels=33, dtype=torch.float16)
    rois, spec = make_rois()[:2], POOLINGS["fixed aligned"]
    plain = output_grad([input], rois, spec)
    grad = memory.as_strided(plain.shape, (6, far, 3, 1)).copy_(plain)
    (found,), _ = kernel_gradients([input], rois, None, spec, grad)
    (expected,), _ = kernel_gradients([input], rois, None, spec, plain)
    assert torch.equal(found, expected)
    wide = memory[5000:].as_strided(input[:1].shape, (2**31, far, 19, 1)).copy_(input[:1])
    rois[:, 0] = 0
    narrow, spread = (box_grad.pool_box_grad(plain, [each], rois, None, spec) for each in (input[:1], wide))
    assert torch.equal(narrow, spread)
