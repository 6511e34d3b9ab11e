"""The reference's own machinery: values that are hidden, chunks, limits, what is not usable. What it computes is tested
together with the other backends."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from roialign.backends import contraction, gather, reference
from roialign.spec import KINDS, Pooling

SIZE = (2, 3)
SCALES = (0.5, 0.5, 0.25, 0.25, 0.125, 0.125)  # of three levels


class Watcher(TorchDispatchMode):
    """Hides values, as a recorder does, and yet has them."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class ReachedError(Exception):
    """The call has come this far."""


def reach(*_: Any, **__: Any) -> Any:
    raise ReachedError


def case(kind: str, dtype: torch.dtype, images: int = 2, count: int = 9) -> tuple[list[Tensor], Tensor, Tensor]:
    """Maps of three levels, boxes and their levels."""
    generator = torch.Generator().manual_seed(1)
    channels = 2 * math.prod(SIZE) if KINDS[kind].sensitive else 3
    maps = [torch.randn(images, channels, 16 >> k, 20 >> k, generator=generator, dtype=dtype) for k in range(3)]
    corner = 24 * torch.rand(count, 2, generator=generator, dtype=dtype)
    size = 1 + 12 * torch.rand(count, 2, generator=generator, dtype=dtype)
    columns = [torch.arange(count, dtype=dtype)[:, None] % images]
    if kind == "rotated":
        columns += [corner, size, torch.rand(count, 1, generator=generator, dtype=dtype)]
    else:
        columns += [corner, corner + size]
    if kind == "moved":
        columns.append(0.1 * torch.randn(count, 2 * math.prod(SIZE), generator=generator, dtype=dtype))
    return maps, torch.cat(columns, 1), torch.arange(count) % 3


def spec_of(kind: str, scales: tuple[float, ...] = SCALES[:2], ratio: int = 2) -> Pooling:
    return Pooling(kind, SIZE, scales, ratio if KINDS[kind].samples else 0, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_values_change_no_answer(kind: str, dtype: torch.dtype) -> None:
    """With a box too large for float32's positions, and cells that are not finite."""
    assert gather.POOLS is reference.POOLS
    (map, *_), rois, _ = case(kind, dtype)
    rois[4, 3] = 3e8
    map[0, 1, 3, 4], map[1, 0, 5, 5], map[1, 2, 6, 7] = torch.inf, -torch.inf, torch.nan
    for each, size in ((map, 9), (map[:1], 1), (map[..., :1], 2), (map, 1)):
        these = rois[:size].clone()
        these[:, 0].clamp_(max=len(each) - 1)
        expected = reference.pool([each], these, None, spec_of(kind))
        with Watcher():
            found = reference.pool([each], these, None, spec_of(kind))
        torch.testing.assert_close(found, expected, equal_nan=True)
    assert expected.isfinite().any()


@pytest.mark.parametrize("kind", KINDS)
def test_each_box_is_pooled_from_its_level(kind: str) -> None:
    """Whether the levels are hidden or not; against one call for each box."""
    maps, rois, level = case(kind, torch.float64)
    spec = spec_of(kind, SCALES)
    alone = [
        reference.pool([maps[k]], rois[i : i + 1], None, spec_of(kind, SCALES[2 * k : 2 * k + 2]))
        for i, k in enumerate(level.tolist())
    ]
    torch.testing.assert_close(reference.pool(maps, rois, level, spec), torch.cat(alone), atol=1e-12, rtol=0)
    with Watcher():
        hidden = reference.pool(maps, rois, level, spec)
    torch.testing.assert_close(hidden, torch.cat(alone), atol=1e-12, rtol=0)
    last = [maps[0], *(each.contiguous(memory_format=torch.channels_last) for each in maps[1:])]
    assert reference.pool(last, rois, level, spec).is_contiguous()  # as the first


def test_a_bad_image_is_named_by_its_row_among_all() -> None:
    maps, rois, level = case("avg", torch.float32)
    rois[5, 0] = 2  # of two images; the map has more channels and cells
    with pytest.raises(IndexError, match=r"\b5\b"):
        reference.pool(maps, rois, level, spec_of("avg", SCALES))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_no_answer_and_hold_what_they_promise(
    kind: str, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No product of a chunk has more numbers than CHUNK, unless one box of one channel has; some have near it."""
    (map, *_), rois, _ = case(kind, torch.float64, images, 40)
    expected = reference.pool([map], rois, None, spec_of(kind))
    largest: list[int] = []

    def spy(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            out = function(*arguments)
            largest.append(out.numel())
            return out

        return call

    for name in ("along", "along_own"):
        monkeypatch.setattr(contraction, name, spy(getattr(contraction, name)))
    monkeypatch.setattr(Tensor, "index_select", spy(Tensor.index_select))
    alone = 0
    for chunk in (1, 700, 5000, 20000):
        monkeypatch.setattr(reference, "CHUNK", chunk)
        largest.clear()
        torch.testing.assert_close(reference.pool([map], rois, None, spec_of(kind)), expected, atol=1e-12, rtol=0)
        if KINDS[kind].box == "corners" and largest:
            alone = alone or max(largest)
            assert chunk / 20 < max(largest) <= max(chunk, alone)


def test_what_one_box_needs_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples in each of 2 x 3 bins on 4 x 6 cells: matrices of 4 x 4 and 6 x 6, products of 4 x 6 and 4 x 6."""
    needed = 8 * (4 * 4 + 6 * 6) + 4 * 6 + 4 * 6
    map, rois = torch.zeros(1, 1, 4, 6), torch.tensor([[0.0, 0, 0, 4, 4]])
    monkeypatch.setattr(reference, "MOST", needed)
    assert reference.pool([map], rois, None, spec_of("max")).shape == (1, 1, *SIZE)
    monkeypatch.setattr(reference, "MOST", needed - 1)
    with pytest.raises(MemoryError, match=r"4\.6e\+02 numbers at once for one box on a map of 4 x 6 cells"):
        reference.pool([map], rois, None, spec_of("max"))
    assert reference.pool([map], rois[:0], None, spec_of("max")).shape == (0, 1, *SIZE)
    with Watcher():
        assert reference.pool([map], rois, None, spec_of("max")).shape == (1, 1, *SIZE)


def test_a_box_may_need_two_thousand_million_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 samples on a row of cells: 8 matrices of 100 and 6 rows of samples."""
    monkeypatch.setattr(reference, "over_boxes", reach)
    spec = Pooling("max", (1, 1), (1.0, 1.0), 100)
    for length, error in ((2**21, ReachedError), (2**22, MemoryError)):
        with pytest.raises(error):
            reference.pool([torch.zeros(1).expand(1, 1, 1, length)], torch.ones(1, 5) - 1, None, spec)


def test_an_adaptive_grid_needs_what_its_largest_box_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what a box of the whole map would; and none where there are no boxes."""
    monkeypatch.setattr(reference, "over_boxes", reach)
    map, spec = torch.zeros(1).expand(1, 1, 20000, 1), Pooling("max", (1, 1), (1.0, 1.0), 0)
    for rois in (torch.tensor([[0.0, 0, 0, 9, 9], [0, 0, 0, torch.nan, 9]]), torch.empty(0, 5)):
        with pytest.raises(ReachedError):
            reference.pool([map], rois, None, spec)
    with pytest.raises(MemoryError):
        reference.pool([map], torch.tensor([[0.0, 0, 0, 9, 20000]]), None, spec)


def test_no_more_bytes_than_an_address_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^19 boxes, 2^5 channels, 2^21 bins of 4 bytes are 2^47."""
    monkeypatch.setattr(reference, "batch_index", reach)
    input, spec = torch.zeros(1).expand(1, 32, 1, 1), Pooling("avg", (2**10, 2**11), (1.0, 1.0), 1)
    for boxes, error in ((2**19 - 1, ReachedError), (2**19, ValueError)):
        with pytest.raises(error):
            reference.pool([input], torch.zeros(1, 5).expand(boxes, 5), None, spec)
    with Watcher(), pytest.raises(ReachedError):
        reference.pool([input], torch.zeros(1, 5).expand(2**19, 5), None, spec)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_usable_gives_nan_and_no_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that is no number, and an image that there is not, which only a CPU refuses."""
    (map, *_), rois, _ = case(kind, torch.float64)
    index = rois[:, 0].long()
    index[3] = -1
    rois[5, 3] = torch.nan
    monkeypatch.setattr(reference, "batch_index", lambda *_: index)
    map.requires_grad_()
    rois.requires_grad_()
    pooled = reference.pool([map], rois, None, spec_of(kind))
    bad = [3, 5]
    good = [row for row in range(9) if row not in bad]
    assert pooled[bad].isnan().all()
    assert pooled[good].isfinite().all()
    to_map, to_rois = torch.autograd.grad(pooled.nan_to_num(0).sum(), [map, rois], allow_unused=True)
    assert to_rois is None or (to_rois[bad] == 0).all()
    alone = rois.detach()[good]
    monkeypatch.setattr(reference, "batch_index", lambda *_: index[good])
    (expected,) = torch.autograd.grad(reference.pool([map], alone, None, spec_of(kind)).sum(), map)
    torch.testing.assert_close(to_map, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_cell_that_is_not_finite_has_no_slope(hidden: bool) -> None:
    """The box's gradient is that with the cell 0, and the bins that a large number shows in have the cell's value."""
    (map, *_), rois, _ = case("avg", torch.float64, 1, 1)
    rois[0] = torch.tensor([0.0, 4, 4, 22, 18])

    def pooled_and_slope(value: float) -> tuple[Tensor, Tensor]:
        map[0, :, 4, 5] = value
        boxes = rois.clone().requires_grad_()
        with Watcher() if hidden else contextlib.nullcontext():
            pooled = reference.pool([map], boxes, None, spec_of("avg"))
        return pooled.detach(), torch.autograd.grad(pooled.sum(), boxes)[0]

    without, slope = pooled_and_slope(0.0)
    reached = (pooled_and_slope(1e6)[0] - without).abs() > 1
    assert reached.any()
    assert not reached.all()
    assert slope[0, 1:].abs().max() > 0.01
    for value in (torch.inf, -torch.inf, torch.nan):
        pooled, same = pooled_and_slope(value)
        torch.testing.assert_close(pooled, torch.where(reached, value, without), equal_nan=True)
        torch.testing.assert_close(same, slope)


def test_maps_are_gathered_again_rather_than_kept_for_each_box() -> None:
    (map, *_), rois, _ = case("avg", torch.float32, 2, 200)
    numbers = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal numbers
        numbers += tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        reference.pool([map], rois.requires_grad_(), None, spec_of("avg"))
    assert numbers < 200 * map[0].numel() / 4


@pytest.mark.parametrize("kind", KINDS)
def test_meta_tensors_and_maps_without_cells(kind: str) -> None:
    (map, *_), rois, _ = case(kind, torch.float32)
    expected = reference.pool([map], rois, None, spec_of(kind))
    pooled = reference.pool([map.to("meta")], rois.to("meta"), None, spec_of(kind))
    assert (pooled.shape, pooled.dtype, pooled.device.type) == (expected.shape, expected.dtype, "meta")
    for empty in (map[:, :, :0], map[..., :0]):
        none = reference.pool([empty], rois[:0], None, spec_of(kind))
        assert none.shape == (0, *expected.shape[1:])
        for count in (1, 2):
            with pytest.raises(ValueError, match=r"cells|empty"):
                reference.pool([empty], rois[:count], None, spec_of(kind))
