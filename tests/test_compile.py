"""torch.compile and torch.export: one graph for any number of boxes, the same numbers, the same errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers import as_rotated, assert_pooled, for_bins, generic_case, reference_is_slow
from roialign import (
    MultiScaleRoIAlign,
    deform_roi_pool,
    prroi_pool,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    roi_align_rotated,
    roi_pool,
)

pytestmark = pytest.mark.usefixtures("backend", "fresh_compiler")

Pool = Callable[[Tensor, Tensor], Tensor]
POOLS: dict[str, Pool] = {
    "avg": lambda input, rois: roi_align(input, rois, 2),
    "avg fixed": lambda input, rois: roi_align(input, rois, 2, 1.0, 2, True),
    "max": lambda input, rois: roi_align(input, rois, 2, mode="max"),
    "max fixed": lambda input, rois: roi_align(input, rois, 2, 1.0, 2, True, mode="max"),
    "prroi": lambda input, rois: prroi_pool(input, rois, 2),
    "pool": lambda input, rois: roi_pool(input, rois, 2),
    "ps_align": lambda input, rois: ps_roi_align(for_bins(input, 4), rois, 2),
    "ps_pool": lambda input, rois: ps_roi_pool(for_bins(input, 4), rois, 2),
    "line": lambda input, rois: roi_align(input[..., 3], rois[:, [0, 1, 3]], 2),
    "volume": lambda input, rois: roi_align(torch.stack([input, 2 * input], 2), rois[:, [0, 1, 2, 1, 3, 4, 3]], 2),
    "rotated": lambda input, rois: roi_align_rotated(input, as_rotated(rois), 2, 1.0, 2),
    "deform": lambda input, rois: deform_roi_pool(input, rois, rois[:, 1:3, None, None].expand(-1, -1, 2, 2), 2),
}


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No graph of one test serves another."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def boxes(count: int) -> Tensor:
    """This many boxes in general position, some of them inverted or outside."""
    _, rois = generic_case(dtype=torch.float32)
    moved = torch.linspace(0, 0.3, 4 * count).reshape(count, 4)
    return rois[torch.arange(count) % len(rois)] + nn.functional.pad(moved, (1, 0))


@reference_is_slow
@pytest.mark.parametrize(
    "name",
    ["avg", "max fixed", "prroi", "pool", "ps_align", "ps_pool", "line", "volume", "rotated", "deform"],
)
def test_compiled_forward_and_backward(name: str) -> None:
    input, _ = generic_case(dtype=torch.float32)
    compiled = torch.compile(POOLS[name], backend="aot_eager", fullgraph=True, dynamic=True)
    for count in (3, 7):
        gradients = []
        for pool in (compiled, POOLS[name]):
            leaf, rois = input.clone().requires_grad_(), boxes(count).requires_grad_(not name.endswith("pool"))
            pooled = pool(leaf, rois)
            pooled.square().sum().backward()
            gradients.append((pooled, leaf.grad, rois.grad))
        (actual, *actual_grads), (expected, *expected_grads) = gradients
        assert_pooled(actual, expected, input)
        torch.testing.assert_close(actual_grads, expected_grads, rtol=1e-4, atol=1e-4)


@reference_is_slow
@pytest.mark.parametrize("name", POOLS)
def test_a_new_number_of_boxes_is_no_new_graph(name: str) -> None:
    counter = CompileCounterWithBackend("eager")
    input, _ = generic_case(dtype=torch.float32)
    compiled = torch.compile(POOLS[name], backend=counter, fullgraph=True)  # dynamic is left for dynamo to find out
    for count in (4, 5, 6, 9, 17, 2):
        assert_pooled(compiled(input, boxes(count)), POOLS[name](input, boxes(count)), input)
    assert counter.frame_count <= 2


@reference_is_slow
def test_compiled_list_of_boxes() -> None:
    input, _ = generic_case(dtype=torch.float32)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(lambda map, parts: roi_align(map, parts, 2), backend=counter, fullgraph=True, dynamic=True)
    for first, second in ((3, 4), (5, 2), (2, 8)):
        parts = [boxes(first)[:, 1:], boxes(second)[:, 1:]]
        assert_pooled(compiled(input, parts), roi_align(input, parts, 2), input)
    assert counter.frame_count <= 2


def pyramid_case(count: int) -> tuple[dict[str, Tensor], list[Tensor], list[tuple[int, int]]]:
    """Two levels of an image of 64 x 64, and boxes on both."""
    generator = torch.Generator().manual_seed(count)
    x = {"0": torch.randn(1, 2, 16, 16, generator=generator), "1": torch.randn(1, 2, 8, 8, generator=generator)}
    sides = torch.linspace(3, 50, count)[:, None]
    return x, [torch.cat([torch.full((count, 2), 1.3), 1.7 + sides, 1.1 + sides], 1)], [(64, 64)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_compiled_pyramid(mode: str) -> None:
    pooler = MultiScaleRoIAlign(["0", "1"], 2, 2, canonical_scale=28, canonical_level=3, mode=mode)
    counter = CompileCounterWithBackend("aot_eager" if mode == "avg" else "eager")
    compiled = torch.compile(pooler, backend=counter, fullgraph=True, dynamic=True)
    for count in (3, 6, 11):
        x, parts, shapes = pyramid_case(count)
        assert_pooled(compiled(x, parts, shapes), pooler(x, parts, shapes), x["0"])
    assert counter.frame_count <= 2


@pytest.mark.slow
def test_inductor() -> None:
    """The default compiler, once: it is slow to start."""
    input, _ = generic_case(dtype=torch.float32)
    compiled = torch.compile(POOLS["avg fixed"], fullgraph=True, dynamic=True)
    for count in (3, 8):
        assert_pooled(compiled(input, boxes(count)), POOLS["avg fixed"](input, boxes(count)), input)


class Exportable(nn.Module):
    """A module around one of POOLS."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool."""
        return self.pool(input, rois)


@reference_is_slow
@pytest.mark.parametrize("name", POOLS)
def test_export_with_a_dynamic_number_of_boxes(name: str) -> None:
    input, _ = generic_case(dtype=torch.float32)
    shapes = {"input": None, "rois": {0: torch.export.Dim("boxes", min=0)}}
    program = torch.export.export(Exportable(POOLS[name]), (input, boxes(5)), dynamic_shapes=shapes)
    for count in (1, 2, 9):
        assert_pooled(program.module()(input, boxes(count)), POOLS[name](input, boxes(count)), input)


@reference_is_slow
def test_export_with_a_dynamic_map() -> None:
    input, _ = generic_case(dtype=torch.float32)
    dims = {0: torch.export.Dim("images"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.export.export(
        Exportable(POOLS["avg"]),
        (input, boxes(5)),
        dynamic_shapes={"input": dims, "rois": {0: torch.export.Dim("boxes")}},
    )
    larger = torch.randn(3, 2, 9, 12, generator=torch.Generator().manual_seed(0))
    assert_pooled(program.module()(larger, boxes(7)), POOLS["avg"](larger, boxes(7)), larger)


@reference_is_slow
@pytest.mark.parametrize("name", ["avg", "max fixed", "prroi", "pool", "ps_align", "ps_pool", "rotated", "deform"])
def test_a_wrong_box_in_compiled_code_too(name: str) -> None:
    """An index that names no image raises, a box that is not finite gives NaN, and the graph serves on."""
    input, _ = generic_case(dtype=torch.float32)
    compiled = torch.compile(POOLS[name], backend="eager", fullgraph=True, dynamic=True)
    rois = boxes(4)
    expected = POOLS[name](input, rois)
    assert_pooled(compiled(input, rois), expected, input)
    for index in (2.0, -1.0, 0.5, torch.nan):
        bad = rois.clone()
        bad[3, 0] = index
        with pytest.raises(IndexError, match=r"row 3 .*N = 2"):
            compiled(input, bad)
    bad = rois.clone()
    bad[2, 3] = torch.nan
    expected[2] = torch.nan
    assert_pooled(compiled(input, bad), expected, input)
    assert_pooled(compiled(input, rois)[2:3].isnan().to(input.dtype), torch.zeros(1, 2, 2, 2), input)


def test_a_wrong_index_is_an_error_in_an_exported_program_too() -> None:
    input, _ = generic_case(dtype=torch.float32)
    program = torch.export.export(Exportable(POOLS["avg"]), (input, boxes(5)))
    bad = boxes(5)
    bad[1, 0] = 7
    with pytest.raises(IndexError, match=r"row 1 .*index 7.*N = 2"):
        program.module()(input, bad)


@reference_is_slow
def test_fake_tensors_have_the_result_s_properties() -> None:
    """Shape, dtype and memory layout known to the compiler are those that come out."""
    input, _ = generic_case(dtype=torch.bfloat16)
    for layout in (torch.contiguous_format, torch.channels_last):
        arranged = input.contiguous(memory_format=layout)
        for pool in POOLS.values():
            real = pool(arranged, boxes(4))
            with FakeTensorMode() as mode:
                fake = pool(mode.from_tensor(arranged), mode.from_tensor(boxes(4)))
            assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())
