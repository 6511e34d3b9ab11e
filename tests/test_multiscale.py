"""MultiScaleRoIAlign: torchvision's numbers in torchvision's detectors, and what it does beyond."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import detection

from helpers import assert_pooled, run_python
from roialign import MultiScaleRoIAlign, prroi_pool, roi_align, roi_pool
from roialign.boxes import fpn_levels

pytestmark = pytest.mark.usefixtures("backend")

Shapes = list[tuple[int, int]]
Pyramid = dict[str, Tensor]


def pyramid(image: tuple[int, int], strides: list[int], images: int, seed: int, dtype: torch.dtype) -> Pyramid:
    """Random feature maps of an image of this size, the image padded to a multiple of the coarsest stride."""
    generator = torch.Generator().manual_seed(seed)
    padded = [math.ceil(side / max(strides)) * max(strides) for side in image]
    shapes = [(images, 2, padded[0] // stride, padded[1] // stride) for stride in strides]
    return {
        str(level): torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for level, shape in enumerate(shapes)
    }


def random_boxes(seed: int, count: int, image: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Boxes of all sizes, log-uniform, some beyond the image's border."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(4, count, generator=generator, dtype=torch.float64)
    side = 4 * (2 * max(image) / 4) ** uniform[0]
    aspect = 2 ** (uniform[1] * 2 - 1)
    size = torch.stack([side * aspect.sqrt(), side / aspect.sqrt()], 1)
    centre = uniform[2:].t() * torch.tensor([image[1], image[0]])
    return torch.cat([centre - size / 2, centre + size / 2], 1).to(dtype)


def level_maps(levels: int = 4, images: int = 1) -> Pyramid:
    """A pyramid of an image of 1024 x 1024 where level i is filled with i, so that the output tells the level."""
    return {str(i): torch.full((images, 1, 256 >> i, 256 >> i), float(i)) for i in range(levels)}


@given(
    seed=st.integers(0, 2**31),
    size=st.sampled_from([(256, 256), (320, 256), (400, 333), (250, 511)]),
    strides=st.sampled_from([[4, 8, 16, 32], [8, 16], [16], [4, 8, 16, 32, 64]]),
    output=st.sampled_from([1, 7, (2, 5)]),
    ratio=st.sampled_from([-1, 0, 1, 2]),
    canonical=st.sampled_from([(224, 4), (112, 4), (224, 3), (64, 2)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_torchvision(
    seed: int,
    size: tuple[int, int],
    strides: list[int],
    output: Any,
    ratio: int,
    canonical: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    x = pyramid(size, strides, 2, seed, dtype)
    boxes = [random_boxes(seed, 9, size, dtype), random_boxes(seed + 1, 4, size, dtype)]
    arguments = {"canonical_scale": canonical[0], "canonical_level": canonical[1]}
    ours = MultiScaleRoIAlign(list(x), output, ratio, **arguments)
    theirs = torchvision.ops.MultiScaleRoIAlign(list(x), output, ratio, **arguments)
    shapes = [size, (size[0] // 2, size[1] - 3)]
    assert_pooled(ours(x, boxes, shapes), theirs(x, boxes, shapes), x["0"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_boxes_on_a_levels_border(dtype: type) -> None:
    """Sizes 112, 224 and 448 and the next numbers below and above, square and not, go where torchvision puts them."""
    sides = []
    for border in (112, 224, 448):
        below = above = dtype(border)
        sides.append(below)
        for _ in range(3):
            below, above = np.nextafter(below, dtype(0)), np.nextafter(above, dtype(1e4))
            sides += [below, above]
        # The rule adds 1e-6 to the level: a size short of the border by less than 2**-1e-6 still goes up.
        sides += [dtype(border * factor) for factor in (1 - 8e-7, 1 - 6e-7, 1 - 1e-6, 1 + 1e-6, 1 - 1e-4)]
    boxes = torch.tensor(np.array([(0, 0, s, s) for s in sides] + [(3, 5, 3 + s / 2, 5 + s * 2) for s in sides], dtype))
    x, shapes = level_maps(), [(1024, 1024)]
    ours = MultiScaleRoIAlign(list(x), 1, 1)(x, [boxes], shapes).flatten()
    theirs = torchvision.ops.MultiScaleRoIAlign(list(x), 1, 1)(x, [boxes.to(x["0"].dtype)], shapes).flatten()
    if dtype is np.float64:  # torchvision pools only boxes of the map's dtype; its mapper takes any
        mapper = torchvision.ops.poolers.initLevelMapper(2, 5)
        theirs = mapper([boxes]).float()
    assert torch.equal(ours.round(), theirs.round())
    assert set(ours.round().tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_levels_by_hand() -> None:
    """floor(4 + log2(size / 224)): 224 is on level 4, the third map; 111 on 2, 112 on 3, 448 on 5, more is clamped."""
    sizes = [0, 1, 111, 112, 223, 224, 447, 448, 900]
    boxes = torch.tensor([(0.0, 0, size, size) for size in sizes])
    x = level_maps()
    pooled = MultiScaleRoIAlign(list(x), 1, 1)(x, [boxes], [(1024, 1024)])
    assert pooled.flatten().tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_levels_of_boxes_smaller_than_a_pixel() -> None:
    boxes = torch.tensor([[0.0, 0, side, side] for side in (0.06, 0.1, 0.15, 0.25, 0.5)])
    assert fpn_levels([boxes], [1, 2, 3], 0.1, 2).tolist() == [0, 1, 1, 2, 2]


def test_of_two_maps_of_one_scale_the_first_serves() -> None:
    """As in torchvision, whose index counts from the finest."""
    x = {"0": torch.zeros(1, 1, 16, 16), "1": torch.ones(1, 1, 16, 16)}
    boxes = [torch.tensor([[0.0, 0, 30, 30], [0, 0, 4, 4], [0, 0, 60, 64]])]
    for pooler in (MultiScaleRoIAlign, torchvision.ops.MultiScaleRoIAlign):
        assert pooler(["0", "1"], 2, 2)(x, boxes, [(64, 64)]).eq(0).all()


def test_order_of_boxes_and_images() -> None:
    """The output is in the order of the boxes, whatever their levels, images without boxes included."""
    x = {name: level.repeat(3, 1, 1, 1) for name, level in level_maps().items()}
    for name in x:
        x[name] = x[name] + 10 * torch.arange(3.0)[:, None, None, None]
    big, small = (0.0, 0, 500, 500), (0.0, 0, 20, 20)
    boxes = [torch.tensor([big, small]), torch.zeros(0, 4), torch.tensor([small, big, small])]
    pooled = MultiScaleRoIAlign(list(x), 1, 1)(x, boxes, [(1024, 1024)] * 3)
    assert pooled.flatten().tolist() == [3, 0, 20, 23, 20]


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("aligned", [False, True])
def test_aligned_and_mode_reach_each_level(mode: str, aligned: bool) -> None:
    x = pyramid((256, 256), [4, 8], 1, 3, torch.float64)
    boxes = random_boxes(3, 12, (256, 256), torch.float64)
    pooler = MultiScaleRoIAlign(["0", "1"], 3, 0, aligned=aligned, mode=mode)
    pooled = pooler(x, [boxes], [(256, 256)])
    fine = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt() < 112
    each = [roi_align(x[str(i)], [boxes], 3, 1 / (4 << i), 0, aligned, mode=mode) for i in range(2)]
    assert fine.any()
    assert not fine.all()
    assert_pooled(pooled, torch.where(fine[:, None, None, None], *each), x["0"])


@pytest.mark.parametrize("operator", [prroi_pool, roi_pool])
def test_any_operator_pools_from_the_levels(operator: Callable[..., Tensor]) -> None:
    """Each box alone on the map of its level, with that level's scale; gradients to the maps too."""
    x, boxes = pyramid((256, 256), [4, 8, 16], 1, 3, torch.float64), random_boxes(3, 20, (256, 256), torch.float64)
    for each in x.values():
        each.requires_grad_()
    pooler = MultiScaleRoIAlign(list(x), 3, 2, canonical_scale=56, operator=operator.__name__)
    pooled = pooler(x, [boxes], [(256, 256)])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = (4 + (area.sqrt() / 56).log2() + 1e-6).floor().clamp(2, 4).long() - 2
    assert len(set(level.tolist())) == 3
    alone = torch.cat([
        operator(x[str(int(at))], [box[None]], 3, 1 / (4 << int(at))) for box, at in zip(boxes, level, strict=True)
    ])  # fmt: skip
    assert_pooled(pooled.detach(), alone.detach(), x["0"])
    mine, theirs = (torch.autograd.grad(out.sin().sum(), list(x.values())) for out in (pooled, alone))
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
    assert f"operator={operator.__name__!r}" in repr(pooler)


def test_operators_that_there_are_not() -> None:
    with pytest.raises(ValueError, match=r"operator: got 'roi_crop'; expected one of 'roi_align', 'prroi_pool', 'roi"):
        MultiScaleRoIAlign(["0"], 3, 2, operator="roi_crop")
    with pytest.raises(ValueError, match=r"mode: got 'max' for prroi_pool; expected 'avg'"):
        MultiScaleRoIAlign(["0"], 3, 2, mode="max", operator="prroi_pool")
    with pytest.raises(ValueError, match=r"mode: got 'median'; expected one of 'avg', 'max'"):
        MultiScaleRoIAlign(["0"], 3, 2, mode="median")


def test_one_class_that_torchvision_takes_for_its_own() -> None:
    pooler = MultiScaleRoIAlign(["0"], 3, 2)
    assert type(pooler) is MultiScaleRoIAlign
    assert isinstance(pooler, torchvision.ops.MultiScaleRoIAlign)


def test_no_state_between_calls() -> None:
    """torchvision keeps the scales of the first batch for ever; here each call is on its own and leaves no trace."""
    pooler = MultiScaleRoIAlign(["0", "1"], 3, 2)
    boxes = random_boxes(1, 10, (256, 256), torch.float64)
    fine, coarse = (pyramid((256, 256), strides, 1, 5, torch.float64) for strides in ([4, 8], [8, 16]))
    first = pooler(fine, [boxes], [(256, 256)])
    before = dict(vars(pooler))
    second = pooler(coarse, [boxes], [(256, 256)])
    fresh = torchvision.ops.MultiScaleRoIAlign(["0", "1"], 3, 2)(coarse, [boxes], [(256, 256)])
    assert_pooled(second, fresh, coarse["0"])
    assert_pooled(pooler(fine, [boxes], [(256, 256)]), first, fine["0"])
    assert dict(vars(pooler)) == before


def test_a_level_that_is_not_asked_for_is_not_used() -> None:
    x = level_maps()
    x["pool"] = torch.full((1, 1, 7, 5), 99.0)
    boxes = [random_boxes(2, 20, (1024, 1024), torch.float32)]
    pooled = MultiScaleRoIAlign(["1", "2"], 1, 1)(x, boxes, [(1024, 1024)]).flatten()
    theirs = torchvision.ops.MultiScaleRoIAlign(["1", "2"], 1, 1)(x, boxes, [(1024, 1024)]).flatten()
    assert_pooled(pooled, theirs, x["1"])


def test_gradients_reach_each_level_and_the_boxes() -> None:
    x = {name: level.double().requires_grad_() for name, level in level_maps().items()}
    boxes = torch.tensor([(9.0, 9, size, size) for size in (50.0, 130.0, 260.0, 500.0)]).double().requires_grad_()
    ramp = torch.arange(256.0, dtype=torch.float64)
    tilted = {name: level + ramp[: level.shape[2], None] for name, level in x.items()}
    MultiScaleRoIAlign(list(x), 2, 2)(tilted, [boxes], [(1024, 1024)]).sum().backward()
    for level in x.values():  # one box of four bins on each: a mean's weights sum to 1
        torch.testing.assert_close(level.grad.sum().item(), 4.0)
    # Bin centres along y are y1 + (y2 - y1) * (1, 3) / 4, times the scale: 2 + 2 bins give slopes 2 * scale each.
    scales = torch.tensor([1 / 4, 1 / 8, 1 / 16, 1 / 32]).double()
    zero = torch.zeros(4, dtype=torch.float64)
    expected = torch.stack([zero, 2 * scales, zero, 2 * scales], 1)
    torch.testing.assert_close(boxes.grad, expected, rtol=0, atol=1e-10)


def test_pickle_deepcopy_and_state_dict() -> None:
    pooler = MultiScaleRoIAlign(["0", "1"], (3, 2), 0, canonical_scale=112, aligned=True, mode="max")
    x = pyramid((256, 256), [4, 8], 1, 3, torch.float32)
    boxes = [random_boxes(3, 12, (256, 256), torch.float32)]
    expected = pooler(x, boxes, [(256, 256)])
    saved = io.BytesIO()
    torch.save(pooler, saved)
    saved.seek(0)
    for other in (
        pickle.loads(pickle.dumps(pooler)),
        copy.deepcopy(pooler),
        torch.load(saved, weights_only=False),
    ):
        assert torch.equal(other(x, boxes, [(256, 256)]), expected)
        assert repr(other) == repr(pooler)
    assert pooler.state_dict() == {}
    pooler.load_state_dict({})
    assert "mode='max'" in repr(pooler)


def test_works_where_torchvision_cannot_be_imported(backend: str) -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import torch, copy, pickle, roialign\n"
        "x = {'0': torch.zeros(1, 1, 64, 64), '1': torch.ones(1, 1, 32, 32)}\n"
        "pooler = roialign.MultiScaleRoIAlign(['0', '1'], 1, 2)\n"
        "boxes = [torch.tensor([[0.0, 0, 40, 40], [0, 0, 250, 250]])]\n"
        "for each in (pooler, copy.deepcopy(pooler), pickle.loads(pickle.dumps(pooler))):\n"
        "    print(each(x, boxes, [(256, 256)]).flatten().tolist())\n"
    )
    assert run_python(code, backend).split("\n")[:3] == ["[0.0, 1.0]"] * 3


def test_the_least_canonical_scale_and_names_for_what_follows() -> None:
    x, boxes = level_maps(), [torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0]])]
    pooler = MultiScaleRoIAlign(list(x), 1, 1, canonical_scale=0.5, canonical_level=2)
    assert pooler(x, boxes, [(1024, 1024)]).flatten().tolist() == [1, 2]
    with pytest.raises(TypeError, match="positional arguments"):
        MultiScaleRoIAlign(list(x), 1, 1, 224)  # type: ignore[misc]


DETECTORS: dict[str, Callable[..., nn.Module]] = {
    "fasterrcnn_resnet50_fpn": detection.fasterrcnn_resnet50_fpn,
    "fasterrcnn_mobilenet_v3_large_320_fpn": detection.fasterrcnn_mobilenet_v3_large_320_fpn,
    "maskrcnn_resnet50_fpn": detection.maskrcnn_resnet50_fpn,
    "keypointrcnn_resnet50_fpn": detection.keypointrcnn_resnet50_fpn,
}


def recorded(module: nn.Module, calls: list[tuple[Any, Any]]) -> nn.Module:
    """Note each call of a module: its arguments and its output."""
    module.register_forward_hook(lambda _, arguments, output: calls.append((arguments, output)))
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_in_torchvisions_detectors(name: str) -> None:
    """Swap their poolers for ours in a whole model: same class scores and boxes, and the same masks' features."""
    torch.manual_seed(0)
    small = {"min_size": 64, "max_size": 128, "rpn_post_nms_top_n_test": 60, "box_detections_per_img": 4}
    model = DETECTORS[name](weights=None, weights_backbone=None, box_score_thresh=0.0, **small)
    model.eval().double()  # so that what follows the pooling does not blow rounding up to where errors would be
    heads: Any = model.roi_heads
    images = [torch.rand(3, 64, 96).double(), torch.rand(3, 90, 64).double()]
    poolers = [part for part in ("box_roi_pool", "mask_roi_pool", "keypoint_roi_pool") if getattr(heads, part, None)]
    assert len(poolers) == (1 if name.startswith("faster") else 2)
    calls: dict[str, list[tuple[Any, Any]]] = {part: [] for part in [*poolers, "box_predictor"]}
    for part, noted in calls.items():
        recorded(getattr(heads, part), noted)
    with torch.no_grad():
        model(images)
        for part in poolers:
            theirs = getattr(heads, part)
            (x, boxes, shapes), pooled = calls[part][0]
            # torchvision passes over names that the backbone does not have; ours calls them missing.
            names = [level for level in theirs.featmap_names if level in x]
            ours = MultiScaleRoIAlign(names, theirs.output_size, theirs.sampling_ratio)
            assert len(pooled) > 0
            assert_pooled(ours(x, boxes, shapes), pooled, torch.cat([x[level].flatten() for level in names]))
            setattr(heads, part, ours)
        model(images)
    theirs_out, ours_out = (noted[1] for noted in calls["box_predictor"])
    for expected, actual in zip(theirs_out, ours_out, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("size", [(64, 64), (64, 66), (64, 33), (200, 67), (96, 35)])
def test_small_and_narrow_images_as_torchvision(size: tuple[int, int]) -> None:
    """Detectors pad images to multiples of 32, so that the map of a narrow image is much wider than its scale says.

    These are images whose height torchvision reads the right scale from, 1/4 to 1/32.
    """
    x = pyramid(size, [4, 8, 16, 32], 1, 0, torch.float64)
    boxes = [random_boxes(4, 20, size, torch.float64)]
    theirs = torchvision.ops.MultiScaleRoIAlign(list(x), 3, 2)(x, boxes, [size])
    assert_pooled(MultiScaleRoIAlign(list(x), 3, 2)(x, boxes, [size]), theirs, x["0"])


def test_torchvision_builds_a_detector_with_it_and_trains() -> None:
    """Its constructor insists on its own class; a training step then has the losses it has with its own pooler."""
    losses = []
    for pooler in (MultiScaleRoIAlign, torchvision.ops.MultiScaleRoIAlign):
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.ReLU())
        backbone.out_channels = 8  # type: ignore[assignment]
        anchors = detection.rpn.AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),))
        model = detection.FasterRCNN(
            backbone, 3, 64, 128, rpn_anchor_generator=anchors, box_roi_pool=pooler(["0"], 7, 2)
        )
        targets = [{"boxes": torch.tensor([[8.0, 8, 40, 40]]).double(), "labels": torch.tensor([1])}]
        loss = model.double()([torch.rand(3, 64, 64).double()], targets)
        sum(loss.values()).backward()
        grad = backbone[0].weight.grad
        losses.append([*loss.values(), grad.abs().sum()])
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("backend")
def test_boxes_on_an_empty_level_are_refused() -> None:
    """As on a single empty map; no box on it, no error."""
    x = {"0": torch.ones(1, 1, 3, 3), "1": torch.ones(1, 1, 1, 1), "2": torch.ones(1, 1, 0, 0)}
    pooler = MultiScaleRoIAlign(["0", "1", "2"], 1, 2, canonical_scale=16, canonical_level=4)
    small, large = [0.0, 0, 7, 7], [0.0, 0, 60, 60]
    assert pooler(x, [torch.tensor([small])], [(15, 15)]).item() == 1
    with pytest.raises(ValueError, match="on an empty feature map"):
        pooler(x, [torch.tensor([small, large])], [(15, 15)])
