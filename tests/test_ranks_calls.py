"""Maps of rank 1 and 3 as callers meet them: what is wrong, modules, pyramids, transforms, scripts, and who serves."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import roialign
from helpers import assert_pooled, by_image, rows
from roialign import MultiScaleRoIAlign, PrRoIPool, PSRoIAlign, RoIAlign, RoIPool, prroi_pool, roi_align, roi_pool
from roialign.backends import native, torchvision
from roialign.spec import Call, Pooling
from test_ranks import POOLS, random_call

LINE, PLANE, VOLUME = torch.ones(2, 3, 8), torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8, 8)
MAPS = {1: LINE, 2: PLANE, 3: VOLUME}
FORMS = "[N, C, L] or [N, C, H, W] or [N, C, D, H, W]"


def box(rank: int, index: float = 0) -> Tensor:
    return torch.tensor([[index, *[1.0] * rank, *[5.0] * rank]])


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no axis": (lambda: roi_align(torch.ones(2, 3), box(1), 2), ValueError, f"(2, 3); expected {FORMS}"),
    "four axes": (lambda: prroi_pool(torch.ones(1, 1, 2, 2, 2, 2), box(3), 2), ValueError, f"expected {FORMS}"),
    "no tensor": (
        lambda: roi_pool([1.0], box(1), 2),
        TypeError,
        f"input: got list; expected a Tensor of shape {FORMS}",
    ),
    "a batch forgotten": (
        lambda: roi_align(PLANE[0], box(2), 2),
        ValueError,
        "boxes: got a tensor of shape (1, 5); expected Tensor[K, 3] with rows (batch index, x1, x2), or a list of one "
        "Tensor[L, 2] per image, on a map [N, C, L]",
    ),
    "a plane's boxes on a volume": (
        lambda: roi_align(VOLUME, box(2), 2),
        ValueError,
        "(1, 5); expected Tensor[K, 7] with rows (batch index, x1, y1, z1, x2, y2, z2), or a list of one Tensor[L, 6]",
    ),
    "no index on a line": (lambda: roi_align(LINE, box(1)[:, 1:], 2), ValueError, "(for one image, pass [boxes])"),
    "no index in a volume": (lambda: roi_align(VOLUME, box(3)[:, 1:], 2), ValueError, "(for one image, pass [boxes])"),
    "a list of rows": (
        lambda: roi_align(LINE, [box(1), box(1)], 2),
        ValueError,
        "boxes[0]: got a tensor of shape (1, 3)",
    ),
    "a short list": (lambda: roi_align(VOLUME, [box(3)], 2), ValueError, "expected one Tensor[L, 6] per image"),
    "two sizes on a line": (
        lambda: roi_align(LINE, box(1), (2, 2)),
        ValueError,
        "got (2, 2); expected a positive int or (length,) of positive ints, at most 2**24, for a map [N, C, L]",
    ),
    "two sizes in a volume": (
        lambda: roi_pool(VOLUME, box(3), (2, 2)),
        ValueError,
        "expected a positive int or (depth, height, width) of positive ints, at most 2**24, for a map [N, C, D, H, W]",
    ),
    "three sizes on a plane": (lambda: prroi_pool(PLANE, box(2), (2, 2, 2)), ValueError, "(height, width) of positive"),
    "a size of 0": (lambda: roi_align(VOLUME, box(3), (2, 0, 2)), ValueError, "output_size: got (2, 0, 2); expected"),
    "two scales on a line": (
        lambda: roi_align(LINE, box(1), 2, (1.0, 1.0)),
        ValueError,
        "spatial_scale: got (1.0, 1.0); expected a positive finite number, or one as (x,), for a map [N, C, L]",
    ),
    "two scales in a volume": (
        lambda: roi_align(VOLUME, box(3), 2, (1.0, 1.0)),
        ValueError,
        "or three as (z, y, x), for a map [N, C, D, H, W]",
    ),
    "no image on a line": (
        lambda: roi_align(LINE, box(1, 2), 2),
        IndexError,
        "row 0 has batch index 2, but input has 2",
    ),
    "no image in a volume": (lambda: roi_align(VOLUME, box(3, -1), 2), IndexError, "row 0 has batch index -1"),
    "an empty line": (lambda: roi_align(LINE[:, :, :0], box(1), 2), ValueError, "1 boxes on an empty feature map"),
    "an empty volume": (
        lambda: roi_pool(VOLUME[..., :0, :], box(3), 2),
        ValueError,
        "1 boxes on an empty feature map of shape (2, 3, 8, 0, 8); expected at least one cell along every axis",
    ),
    "a sensitive line": (
        lambda: roialign.ps_roi_align(LINE, box(1), 1),
        ValueError,
        "(2, 3, 8); expected [N, C, H, W]",
    ),
    "a sensitive volume": (lambda: roialign.ps_roi_pool(VOLUME, box(3), 1), ValueError, "expected [N, C, H, W]"),
    "a sensitive module": (lambda: PSRoIAlign((2, 2, 2), 1.0, 2), ValueError, "(height, width)"),
    "a module of four": (
        lambda: RoIAlign((2, 2, 2, 2), 1.0, 2),
        ValueError,
        "output_size: got (2, 2, 2, 2); expected a positive int or one for each axis of the map of positive ints",
    ),
    "a module of no scales": (
        lambda: RoIPool(2, ()),
        ValueError,
        "positive finite number, or one for each axis of the map",
    ),
    "a plane's module on a volume": (
        lambda: RoIAlign((2, 2), 1.0, 2)(VOLUME, box(3)),
        ValueError,
        "output_size: got (2, 2); expected a positive int or (depth, height, width)",
    ),
    "a volume's scale on a line": (lambda: PrRoIPool(2, (1.0, 1.0, 1.0))(LINE, box(1)), ValueError, "or one as (x,)"),
    "levels of two ranks": (
        lambda: MultiScaleRoIAlign(["0", "1"], 2, 2)({"0": VOLUME, "1": PLANE}, [box(3)[:, 1:]] * 2, [(8, 8, 8)] * 2),
        ValueError,
        "x['1']: got a tensor of shape (2, 3, 8, 8); expected [N, C, D, H, W]",
    ),
    "images of two sizes": (
        lambda: MultiScaleRoIAlign(["0"], 2, 2)({"0": VOLUME}, [box(3)[:, 1:]] * 2, [(8, 8)] * 2),
        ValueError,
        "image_shapes: got [(8, 8), (8, 8)]; expected positive (depth, height, width) of each image",
    ),
    "a sensitive pyramid": (
        lambda: MultiScaleRoIAlign(["0"], 1, 2, operator="ps_roi_align")({"0": LINE}, [box(1)[:, 1:]] * 2, [(8,)] * 2),
        ValueError,
        "x['0']: got a tensor of shape (2, 3, 8); expected [N, C, H, W]",
    ),
    "an explanation": (lambda: roialign.explain(VOLUME[0, 0], (1, 1, 5, 5), 2), ValueError, "expected a Tensor [H, W]"),
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_for_the_rank(name: str) -> None:
    call, error, message = WRONG[name]
    with pytest.raises(error, match=re.escape(message)):
        call()


OPERATORS: dict[str, tuple[Callable[[], object], str]] = {
    "sizes": (
        lambda: torch.ops.roialign.pool([VOLUME], box(3), None, "avg", [2] * 4, [1.0] * 4, 2, False),
        "output_size: got [2, 2, 2, 2]; expected (length,) or (height, width) or (depth, height, width)",
    ),
    "no size": (lambda: torch.ops.roialign.pool([LINE], box(1), None, "avg", [], [], 2, False), "output_size: got []"),
    "sensitive": (
        lambda: torch.ops.roialign.pool([VOLUME], box(3), None, "ps_avg", [1] * 3, [1.0] * 3, 2, True),
        "output_size: got [1, 1, 1]; expected (height, width), each",
    ),
    "a plane": (
        lambda: torch.ops.roialign.pool([PLANE], box(2), None, "avg", [2] * 3, [1.0] * 3, 2, False),
        "features[0]: got a tensor of shape (2, 3, 8, 8); expected [N, C, D, H, W]",
    ),
    "rows": (lambda: torch.ops.roialign.pool([LINE], box(2), None, "avg", [2], [1.0], 2, False), "rois: got"),
    "scales": (lambda: torch.ops.roialign.pool([VOLUME], box(3), None, "avg", [2] * 3, [1.0], 2, False), "scales: got"),
    "shapes": (
        lambda: torch.ops.roialign.pool_grad(
            torch.ones(1, 3, 2), [], [2, 3, 8, 8], False, box(1), None, "avg", [2], [1.0], 2, False
        ),
        "shapes: got [2, 3, 8, 8]; expected [N, C, L], none negative, of each map in turn",
    ),
}


@pytest.mark.skipif(bool(native.UNREADY), reason="needs the compiled core")
@pytest.mark.parametrize("name", OPERATORS)
def test_the_operators_refuse_what_does_not_go_together(name: str) -> None:
    call, message = OPERATORS[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("rank", MAPS)
@pytest.mark.parametrize("name", POOLS)
def test_a_box_that_is_not_finite_and_nothing_at_all(name: str, rank: int) -> None:
    """Its output is NaN, its gradient 0, and its neighbours do not notice. No boxes give none, on an empty map too."""
    input, rois = random_call(rank)
    expected = POOLS[name](input, rois[[0, 2]], 2)
    for column in range(1, 1 + 2 * rank):
        bad = rois[:3].clone()
        bad[1, column] = float("nan")
        leaf, boxes = input.clone().requires_grad_(), bad.requires_grad_(name != "cells")
        pooled = POOLS[name](leaf, boxes, 2)
        assert pooled[1].isnan().all()
        torch.testing.assert_close(pooled[[0, 2]], expected, rtol=0, atol=1e-14)
        pooled.nansum().backward()
        assert leaf.grad.isfinite().all()
        if name != "cells":
            assert torch.equal(boxes.grad[1], torch.zeros(1 + 2 * rank, dtype=torch.float64))
    for empty in (input, input[..., :0]):
        leaf = empty.clone().requires_grad_()
        pooled = POOLS[name](leaf, rois[:0], 2)
        assert pooled.shape == (0, 2, *[2] * rank)
        pooled.sum().backward()
        assert torch.equal(leaf.grad, torch.zeros_like(empty))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("rank", MAPS)
def test_a_cell_that_is_not_finite_reaches_those_that_read_it(rank: int) -> None:
    input = torch.rand(1, 2, *[7] * rank, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    far, near = rows((*[1.0] * rank, *[3.4] * rank)), rows((*[4.2] * rank, *[5.8] * rank))
    for value in (float("nan"), float("inf")):
        dirty = input.clone()
        dirty[(0, 0, *[5] * rank)] = value
        for pool in POOLS.values():
            torch.testing.assert_close(pool(dirty, far, 2), pool(input, far, 2), rtol=0, atol=1e-14)
            touched = pool(dirty, near, 2)
            assert touched[:, 1].isfinite().all()
            assert not touched[:, 0].isfinite().all()


@pytest.mark.usefixtures("backend")
def test_a_module_made_with_one_number_pools_every_rank() -> None:
    modules = (
        (RoIAlign(2, 0.5, 2), lambda input, rois: roi_align(input, rois, 2, 0.5, 2)),
        (PrRoIPool(2, 0.5), lambda input, rois: prroi_pool(input, rois, 2, 0.5)),
        (RoIPool(2, 0.5), lambda input, rois: roi_pool(input, rois, 2, 0.5)),
    )
    for rank in MAPS:
        input, rois = random_call(rank)
        for module, function in modules:
            assert torch.equal(module(input, rois), function(input, rois))
        fixed = RoIAlign((3, 1, 2)[:rank], (0.5, 0.7, 0.9)[:rank], 2)
        assert torch.equal(fixed(input, rois), roi_align(input, rois, (3, 1, 2)[:rank], (0.5, 0.7, 0.9)[:rank], 2))


def pyramid(rank: int, operator: str = "roi_align") -> tuple[MultiScaleRoIAlign, dict[str, Tensor], Tensor]:
    """Two levels of a batch of two, and boxes of 2 and of 9 pixels: the canonical size is 8, on the finer level 1."""
    generator = torch.Generator().manual_seed(rank)
    pooler = MultiScaleRoIAlign(["0", "1"], 2, 2, canonical_scale=8, canonical_level=2, operator=operator)
    fine, coarse = (torch.rand(2, 2, *[side] * rank, generator=generator, dtype=torch.float64) for side in (8, 4))
    low = torch.rand(6, rank, generator=generator, dtype=torch.float64) * 6
    index = torch.tensor([0.0, 0, 0, 1, 1, 1])[:, None].double()
    side = torch.tensor([2.0, 9, 2, 9, 2, 9])[:, None].double()
    return pooler, {"0": fine, "1": coarse}, torch.cat([index, low, low + side], 1)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("rank", MAPS)
@pytest.mark.parametrize("operator", ["roi_align", "prroi_pool", "roi_pool"])
def test_a_pyramid_pools_each_box_on_its_level(operator: str, rank: int) -> None:
    """By its length, the root of its area, the cube root of its volume: of equal sides each is the side."""
    pooler, maps, rois = pyramid(rank, operator)
    pooled = pooler(maps, by_image(rois, 2), [(16,) * rank, (14,) * rank])
    how = (2,) if operator == "roi_align" else ()
    fine, coarse = (
        getattr(roialign, operator)(maps[name], rois, 2, scale, *how) for name, scale in (("0", 0.5), ("1", 0.25))
    )
    large = (rois[:, 1 + rank] - rois[:, 1] > 5)[(slice(None), *[None] * (rank + 1))]
    torch.testing.assert_close(pooled, torch.where(large, coarse, fine), rtol=0, atol=1e-14)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", POOLS)
def test_vmap_is_a_loop(name: str, rank: int) -> None:
    input, rois = random_call(rank)
    maps, boxes = torch.stack([input, 2 * input + 1]), torch.stack([rois, rois.roll(1, 0)])
    together = torch.vmap(lambda map, rows: POOLS[name](map, rows, 2))(maps, boxes)
    each = [POOLS[name](map, rows, 2) for map, rows in zip(maps, boxes, strict=True)]
    torch.testing.assert_close(together, torch.stack(each), rtol=0, atol=1e-13)


@pytest.mark.parametrize("rank", [1, 3])
def test_forward_and_backward_derivatives_agree(rank: int) -> None:
    """Forward mode is the reference's, whoever serves: the same number as the gradient times the direction."""
    input, rois = random_call(rank)
    direction = torch.rand(rois.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def total(rois: Tensor) -> Tensor:
        return roi_align(input, rois, 2, 1.0, 2).square().sum()

    _, forward = torch.func.jvp(total, (rois,), (direction,))
    leaf = rois.clone().requires_grad_()
    total(leaf).backward()
    torch.testing.assert_close(forward, (leaf.grad * direction).sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch.jit's own
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("rank", MAPS)
def test_jit_script(rank: int) -> None:
    input, rois = random_call(rank, dtype=torch.float32)
    fixed = RoIAlign((2, 1, 3)[:rank], (0.5, 0.6, 0.7)[:rank], 0)
    each: tuple[nn.Module, ...] = RoIAlign(2, 0.5, 2, mode="max"), fixed, PrRoIPool(2, 1), RoIPool(2, 1.0)
    for module in each:
        scripted = torch.jit.script(module)
        for boxes in (rois, by_image(rois, 2)):
            assert_pooled(scripted(input, boxes), module(input, boxes), input)
    pooler, maps, rois = pyramid(rank)
    arguments = maps, by_image(rois, 2), [(16,) * rank] * 2
    assert_pooled(torch.jit.script(pooler)(*arguments), pooler(*arguments), maps["0"])


@pytest.mark.parametrize("rank", [1, 3])
def test_backends_that_do_not_serve_a_rank_say_so(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a call that they would serve on a plane."""
    spec = Pooling("avg", (2,) * rank, (1.0,) * rank)
    call = Call([MAPS[rank]], box(rank), None, spec)
    monkeypatch.setattr(torchvision, "DEVICES", ("cpu",))
    assert torchvision.why_not(call) == "its kernels take maps [N, C, H, W] only"
    assert roialign.backends.available(MAPS[rank])["reference"].ready
