"""Memory layouts and dtypes: what may differ is where the numbers lie and how they are rounded, not what they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import oracle
from helpers import DTYPES, RELATIVE, assert_pooled, generic_case, rows
from roialign import prroi_pool, roi_align, roi_pool
from strategies import BOX_DTYPES, LAYOUTS, lay_out

pytestmark = pytest.mark.usefixtures("backend")

Pool = Callable[[Tensor, Tensor], Tensor]
POOLS: dict[str, Pool] = {
    "avg": lambda input, rois: roi_align(input, rois, (2, 3), 0.9),
    "avg fixed": lambda input, rois: roi_align(input, rois, (2, 3), 0.9, 2, True),
    "max": lambda input, rois: roi_align(input, rois, (2, 3), 0.9, mode="max"),
    "prroi": lambda input, rois: prroi_pool(input, rois, (2, 3), 0.9),
    "pool": lambda input, rois: roi_pool(input, rois, (2, 3), 0.9),
}
HALVES = (torch.float16, torch.bfloat16)


def truth(name: str, input: Tensor, rois: Tensor) -> Tensor:
    """The loops' answer to a call of POOLS."""
    size, scale = (2, 3), (0.9, 0.9)
    if name == "prroi":
        return oracle.prroi_pool(input, rois, size, scale)
    if name == "pool":
        return oracle.roi_pool(input, rois, size, scale)
    fixed = name == "avg fixed"
    return oracle.roi_align(input, rois, size, scale, 2 if fixed else 0, fixed, "max" if name == "max" else "avg")


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("channels", [1, 3, 37])
def test_channels_last_in_channels_last_out(name: str, channels: int) -> None:
    _, rois = generic_case()
    input = torch.randn(2, channels, 5, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = POOLS[name](input, rois)
    pooled = POOLS[name](input.contiguous(memory_format=torch.channels_last), rois)
    assert_pooled(pooled, expected, input)
    assert expected.is_contiguous()
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    assert_pooled(expected, truth(name, input, rois), input)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_many_channels_in_each_layout(name: str, layout: str, dtype: torch.dtype) -> None:
    """More channels than fit one vector or one block, which small random cases have not, and not a multiple of it."""
    values = torch.randn(2, 71, 5, 6, generator=torch.Generator().manual_seed(5)).to(dtype)
    _, rois = generic_case(dtype=torch.float32)
    input = lay_out(values, layout)
    assert_pooled(POOLS[name](input, rois), truth(name, input, rois), input)
    leaf, plain = input.detach().requires_grad_(), input.detach().clone(memory_format=torch.contiguous_format)
    POOLS[name](leaf, rois).square().sum().backward()
    POOLS[name](plain.requires_grad_(), rois).square().sum().backward()
    torch.testing.assert_close(leaf.grad, plain.grad, rtol=RELATIVE[dtype], atol=50 * RELATIVE[dtype])


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("shape", [(40, 3), (3, 70), (33, 33)])
def test_maps_longer_than_a_vector(name: str, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(6)
    input = torch.randn(1, 17, *shape, generator=generator)
    corner = (torch.rand(12, 2, generator=generator) * 1.4 - 0.2) * torch.tensor(shape[::-1])
    extent = torch.rand(12, 2, generator=generator) * torch.tensor(shape[::-1])
    rois = torch.cat([torch.zeros(12, 1), corner, corner + extent], 1)
    assert_pooled(POOLS[name](input, rois), truth(name, input, rois), input)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("box_layout", ["transposed", "offset", "strided", "flipped columns"])
def test_boxes_of_any_strides(name: str, box_layout: str) -> None:
    input, rois = generic_case()
    if box_layout == "transposed":
        boxes = rois.t().contiguous().t()
    elif box_layout == "offset":
        boxes = torch.cat([torch.full((1, 5), torch.nan, dtype=rois.dtype), rois])[1:]
    elif box_layout == "strided":
        boxes = torch.full((len(rois) * 2, 9), torch.nan, dtype=rois.dtype)[::2, 2:7].copy_(rois)
    else:
        boxes = rois.flip(1).contiguous()[:, [4, 3, 2, 1, 0]]
    assert_pooled(POOLS[name](input, boxes), POOLS[name](input, rois), input)
    listed = [boxes[boxes[:, 0] == 0][:, 1:], boxes[boxes[:, 0] == 1][:, 1:]]
    order = rois[:, 0].argsort(stable=True)
    assert_pooled(POOLS[name](input, listed), POOLS[name](input, rois[order]), input)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("box_dtype", BOX_DTYPES)
def test_mixed_dtypes(name: str, dtype: torch.dtype, box_dtype: torch.dtype) -> None:
    """The output has the map's dtype; the boxes' dtype only says how finely they are given."""
    input, rois = generic_case(dtype=dtype)
    rois = rois.to(box_dtype)
    pooled = POOLS[name](input, rois)
    assert_pooled(pooled, truth(name, input, rois), input)
    listed = [rois[rois[:, 0] == image, 1:] for image in range(2)]
    mixed = [listed[0], listed[1].to(torch.float64)]
    order = rois[:, 0].argsort(stable=True)
    assert_pooled(POOLS[name](input, mixed), truth(name, input, rois[order].double()), input)  # type: ignore[arg-type]


def test_float64_boxes_keep_their_digits() -> None:
    """On a float32 map too: in float32 these two boxes would be one, at the map's very border."""
    row = torch.ones(1, 1, 1, 4)
    rois = rows((3.5, 0, 4.5, 1), (3.5 + 1e-9, 0, 4.5 + 1e-9, 1))
    assert roi_align(row, rois, 1, 1.0, 1).flatten().tolist() == [1.0, 0.0]
    assert roi_align(row, rois.float(), 1, 1.0, 1).flatten().tolist() == [1.0, 1.0]
    assert roi_align(row.double(), rois.float(), 1, 1.0, 1).flatten().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("ratio", [0, 2])
def test_a_map_of_ones_pools_to_ones(dtype: torch.dtype, ratio: int) -> None:
    """Up to boxes of 4096 pixels. Summed in half precision, as torchvision does, 512 pixels already give 0.374."""
    sizes = sorted({*range(1, 4097, 149), *(2**p + d for p in range(1, 13) for d in (-1, 0, 1)), 4096} - {4097})
    for shape, axis in (((1, 2, 3, 4097), 3), ((1, 2, 4097, 3), 4)):
        rois = torch.tensor([[0.0, 0, 0, 2, 2]]).repeat(len(sizes), 1)
        rois[:, axis] = torch.tensor(sizes)
        ones = torch.ones(shape, dtype=dtype)
        assert_pooled(roi_align(ones, rois, 7, 1.0, ratio), torch.ones(len(sizes), 2, 7, 7), ones)
        few = rois[-2:]
        assert_pooled(roi_align(ones, few, 7, 1.0, ratio, mode="max"), torch.ones(2, 2, 7, 7), ones)
    square = torch.ones(1, 1, 1025, 1025, dtype=dtype)
    pooled = roi_align(square, rows((0, 0, 4096, 4096), (64, 64, 3000, 4096), dtype=torch.float32), 7, 0.25, ratio)
    assert_pooled(pooled, torch.ones(2, 1, 7, 7), square)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_sums_are_accumulated_in_float32(dtype: torch.dtype) -> None:
    """The mean of values near 1000 and of a gradient of many small parts, to the dtype's own rounding."""
    generator = torch.Generator().manual_seed(7)
    input = (torch.rand(1, 2, 60, 60, generator=generator) * 1000).to(dtype)
    rois = torch.tensor([[0.0, 1, 1, 58, 57]])
    assert_pooled(roi_align(input, rois, 1), oracle.roi_align(input, rois, (1, 1), (1.0, 1.0), 0, False), input)
    # 3000 boxes of one cell each on the same place: each cell of the four gets a quarter of each box's 1/3000.
    flat = torch.zeros(1, 1, 4, 4, dtype=dtype, requires_grad=True)
    same = torch.tensor([[0.0, 1, 1, 2, 2]]).repeat(3000, 1)
    roi_align(flat, same, 1, 1.0, 1).backward(torch.full((3000, 1, 1, 1), 1 / 3000, dtype=dtype))
    assert flat.grad is not None
    assert flat.grad.dtype == dtype
    sent = float(torch.tensor(1 / 3000, dtype=dtype)) * 3000 / 4
    torch.testing.assert_close(
        flat.grad[0, 0, 1:3, 1:3].double(), torch.full((2, 2), sent).double(), rtol=RELATIVE[dtype], atol=0
    )


@pytest.mark.parametrize("box_dtype", HALVES)
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("image", [257, 2049, 3001])
def test_image_3001_of_a_batch(box_dtype: torch.dtype, dtype: torch.dtype, image: int) -> None:
    """No half precision holds these indices, so a list of boxes must not pass through it."""
    input = torch.zeros(3002, 1, 2, 2, dtype=dtype)
    input[image] = 7
    boxes = [torch.tensor([[0.0, 0, 1, 1]], dtype=box_dtype)] * 3002
    for pooled in (roi_align(input, boxes, 1), prroi_pool(input, boxes, 1), roi_pool(input, boxes, 1)):
        assert pooled.flatten().nonzero().flatten().tolist() == [image]


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_changes_nothing(name: str, dtype: torch.dtype) -> None:
    """Autocast is for operators that gain from half precision. This one keeps its input's dtype and its accuracy."""
    input, rois = generic_case(dtype=dtype)
    leaf = input.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = POOLS[name](leaf, rois)
    assert_pooled(pooled, truth(name, input, rois), input)
    pooled.sum().backward()
    plain = input.clone().requires_grad_()
    POOLS[name](plain, rois).sum().backward()
    torch.testing.assert_close(leaf.grad, plain.grad, rtol=RELATIVE[dtype], atol=10 * RELATIVE[dtype])


@given(
    seed=st.integers(0, 2**31),
    value=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    name=st.sampled_from(sorted(POOLS)),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS[:-1]),
)
def test_what_a_box_does_not_read_does_not_leak(
    seed: int, value: float, name: str, dtype: torch.dtype, layout: str
) -> None:
    """Make every cell that the box does not touch NaN or infinite, in its own image and in others."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(3, 2, 9, 10, generator=generator).to(dtype)
    corner = torch.randint(1, 5, (2,), generator=generator).tolist()
    low = torch.tensor(corner) + torch.rand(2, generator=generator)
    rois = torch.cat([torch.ones(1), low, low + 1 + torch.rand(2, generator=generator)])[None]
    dirty = torch.full_like(clean, value)
    # 0.9 of the box lies in [0.9, 6.3]; the cells that any operator reads lie within one and a half of it.
    (x1, y1), (x2, y2) = (rois[0, 1:3] * 0.9 - 1.5).floor().int().tolist(), (rois[0, 3:] * 0.9 + 2.5).int().tolist()
    window = (1, slice(None), slice(max(y1, 0), y2 + 1), slice(max(x1, 0), x2 + 1))
    dirty[window] = clean[window]
    assert_pooled(POOLS[name](lay_out(dirty, layout), rois), truth(name, clean, rois), clean)


def test_the_input_is_not_written_to() -> None:
    input, rois = generic_case(dtype=torch.float32)
    rois[2, 1] = torch.nan
    before = input.clone(), rois.clone()
    for pool in POOLS.values():
        pool(input, rois)
    assert torch.equal(input, before[0])
    assert torch.equal(rois.nan_to_num(-1), before[1].nan_to_num(-1))
