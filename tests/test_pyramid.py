"""The scales of a pyramid's levels: what padding and rounding leave of an image tells the strides of its maps."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torchvision.models import detection

import roialign
from roialign.detection import build_detector
from roialign.levels import infer_scales

Size = tuple[int, int]

# How a backbone halves a side.
ROUNDING: dict[str, Callable[[int], int]] = {"up": lambda side: (side + 1) // 2, "down": lambda side: side // 2}


def features(sizes: list[Size], images: int = 1, names: str = "0123456") -> dict[str, Tensor]:
    """Maps of these sizes, without memory."""
    return {name: torch.empty(images, 0, *size) for name, size in zip(names, sizes, strict=False)}


def pyramid(padded: Size, strides: tuple[int, ...], rounding: str) -> list[Size]:
    """The levels' sizes: the image halved as often as the stride says, a cell rounded up or down each time."""
    sizes = []
    for stride in strides:
        size = padded
        for _ in range(stride.bit_length() - 1):
            size = (ROUNDING[rounding](size[0]), ROUNDING[rounding](size[1]))
        sizes.append(size)
    return sizes


def told(image: Size, padded: Size, strides: tuple[int, ...], rounding: str) -> bool:
    """Whether the finest map tells its scale: at twice the scale the image would lie outside it by a cell or more."""
    (finest,) = pyramid(padded, strides[:1], rounding)
    # In whole numbers: twice the image's cells, 2 * image / stride, against the map's and one.
    return min(finest) > 0 and any(
        2 * side >= (cells + 1) * strides[0] for side, cells in zip(image, finest, strict=True)
    )


def repeated(sizes: list[Size]) -> bool:
    """Two levels of a single cell, or an empty one, do not tell how often one was halved into the other."""
    return sizes.count((1, 1)) > 1 or min(map(min, sizes)) == 0


def expected(strides: tuple[int, ...]) -> list[Size]:
    return [(1 / stride, 1 / stride) for stride in strides]


STRIDES = [(4, 8, 16, 32), (4, 8, 16, 32, 64), (8, 16, 32), (2, 4, 8), (1, 2), (4,), (16,), (32,), (64,)]
PADDING = [1, 32, 64, 128]
SIDES = sorted({*range(1, 70), 96, 97, 100, 127, 128, 129, 255, 257, 300, 480, 511, 513, 640, 799, 800, 1023, 1333})


def batches() -> Iterator[tuple[list[Size], Size, tuple[int, ...], str]]:
    """Batches of one to three images, the size they are padded to together, the levels' strides, the rounding."""
    draw = random.Random(0)
    for strides, divisible, rounding in itertools.product(STRIDES, PADDING, ROUNDING):
        for count in draw.choices((1, 2, 3), k=130):
            images = [(draw.choice(SIDES), draw.choice(SIDES)) for _ in range(count)]
            padded = [-(-max(side) // divisible) * divisible for side in zip(*images, strict=True)]
            yield images, (padded[0], padded[1]), strides, rounding


def test_the_scales_are_the_strides() -> None:
    """Whatever the image, its padding and the backbone's rounding, wherever the finest map tells its scale."""
    right = oblong = 0
    for images, padded, strides, rounding in batches():
        largest = (max(height for height, _ in images), max(width for _, width in images))
        sizes = pyramid(padded, strides, rounding)
        if not told(largest, padded, strides, rounding) or repeated(sizes):
            continue
        scales = infer_scales(features(sizes, len(images)), images)
        assert scales == expected(strides), (images, padded, strides, rounding)
        right += 1
        oblong += padded[0] > 2 * largest[0] or padded[1] > 2 * largest[1]
    assert right > 6000
    assert oblong > 500


def test_only_what_is_doubled_on_both_sides_is_not_told() -> None:
    """Of images padded to a multiple of 32 or more, not one else to half a cell."""
    for images, padded, strides, rounding in batches():
        if padded[0] % 32 or padded[1] % 32:
            continue
        largest = [max(side) for side in zip(*images, strict=True)]
        doubled = all(2 * side <= whole for side, whole in zip(largest, padded, strict=True))
        nearly = all(2 * side < whole + strides[0] for side, whole in zip(largest, padded, strict=True))
        assert not doubled or not told((largest[0], largest[1]), padded, strides, rounding)
        assert nearly or min(padded) < strides[0] or told((largest[0], largest[1]), padded, strides, rounding)


@pytest.mark.parametrize("side", [8, 12, 13, 14, 15, 16])
@pytest.mark.parametrize("stride", [4, 8])
def test_doubled_on_both_sides_it_is_torchvisions_guess(side: int, stride: int) -> None:
    """Where that holds the image: 8 pixels in 8 cells are of scale 1, whatever the stride that padding hides."""
    side = side * stride // 4
    padded = 8 * stride
    assert padded >= 2 * side
    maps = features(pyramid((padded, padded), (stride, 2 * stride), "down"))
    guesses = [torchvision.ops.poolers._infer_scale(map, [side, side]) for map in maps.values()]
    assert infer_scales(maps, [(side, side)]) == [(guess, guess) for guess in guesses]
    assert guesses[0] > 1 / stride


@pytest.mark.parametrize("side", range(1, 33))
def test_a_doubled_image_lies_within_its_map_all_the_same(side: int) -> None:
    """torchvision takes 11 pixels for 11 cells of a map of 8."""
    ((scale, _),) = infer_scales(features([(8, 8)]), [(side, side)])
    assert side * scale < 9 <= 2 * side * scale


# Rule by rule, by hand.

BY_HAND: dict[str, tuple[list[Size], list[Size], list[float]]] = {
    # Images, maps, scales. The image may be over by less than one cell, along each axis: 35 pixels at 1/4 are 8.75.
    "less than a cell over": ([(35, 35)], [(8, 8)], [1 / 4]),
    "a cell over in height": ([(36, 32)], [(8, 8)], [1 / 8]),
    "a cell over in width": ([(32, 36)], [(8, 8)], [1 / 8]),
    "a cell over in a large map": ([(2052, 1)], [(512, 512)], [1 / 8]),
    "less in a large map": ([(2051, 1)], [(512, 512)], [1 / 4]),
    "exactly as large": ([(8, 8)], [(8, 8)], [1]),
    "finer than the image": ([(8, 5)], [(32, 32)], [4]),
    "finer by less": ([(8, 8)], [(31, 31)], [2]),
    "one pixel": ([(1, 1)], [(1, 1)], [1]),
    "a line of pixels": ([(1, 1024)], [(8, 256), (1, 32)], [1 / 4, 1 / 32]),
    "largest height and width are of two images": ([(64, 8), (8, 64)], [(16, 16)], [1 / 4]),
    "as one of them alone": ([(8, 8), (8, 64)], [(16, 16)], [1 / 4]),
    # Coarser maps: the power of two that leaves less than one cell over, on both sides.
    "rounded up": ([(33, 33)], [(9, 9), (5, 5), (3, 3), (2, 2), (1, 1)], [1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64]),
    "rounded down": ([(31, 31)], [(7, 7), (3, 3), (1, 1)], [1 / 4, 1 / 8, 1 / 16]),
    "one side tells more": ([(4, 8)], [(1, 2), (1, 1)], [1 / 4, 1 / 8]),
    "the other side tells more": ([(8, 4)], [(2, 1), (1, 1)], [1 / 4, 1 / 8]),
    "one side rounded, the other not": ([(36, 32)], [(9, 8), (2, 1)], [1 / 4, 1 / 32]),
    "levels left out": ([(512, 512)], [(128, 128), (16, 16)], [1 / 4, 1 / 32]),
    "two levels of one stride": ([(512, 512)], [(64, 64), (64, 64), (32, 32)], [1 / 8, 1 / 8, 1 / 16]),
    "a cell more by padding": ([(128, 128)], [(32, 32), (17, 17)], [1 / 4, 1 / 8]),
    "in any order": ([(300, 16)], [(10, 1), (80, 8), (20, 2), (40, 4)], [1 / 32, 1 / 4, 1 / 16, 1 / 8]),
    # A map without cells comes after those that have some, and says nothing of the next.
    "empty": ([(15, 15)], [(3, 3), (1, 1), (0, 0), (0, 0)], [1 / 4, 1 / 8, 1 / 16, 1 / 16]),
    "empty first": ([(15, 15)], [(0, 0), (3, 3)], [1 / 16, 1 / 4]),
    "empty on one side": ([(7, 60)], [(1, 15), (0, 7), (0, 3)], [1 / 4, 1 / 8, 1 / 16]),
    "two empty on one side": ([(7, 28)], [(1, 7), (0, 4), (0, 2), (0, 1)], [1 / 4, 1 / 8, 1 / 16, 1 / 16]),
    "all empty": ([(3, 3)], [(0, 0)], [1 / 4]),
    "no images": ([], [(8, 8), (4, 4)], [1, 1]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    images, sizes, scales = BY_HAND[name]
    assert infer_scales(features(sizes, len(images)), images) == [(scale, scale) for scale in scales]


@pytest.mark.parametrize("size", [(10, 10), (9, 10), (10, 9), (16, 7), (1, 16)])
def test_maps_that_are_no_halvings_are_refused(size: Size) -> None:
    """More than one cell beside half of 16."""
    with pytest.raises(ValueError, match=r"x\['1'\]: got .* cells, where x\['0'\] has \(16, 16\); expected all sides"):
        infer_scales(features([(16, 16), size]), [(64, 64)])


@pytest.mark.parametrize(
    ("image", "padded", "rounding"), [((300, 16), (320, 32), "down"), ((36, 36), (36, 36), "up")], ids=["down", "up"]
)
def test_the_order_of_the_levels_does_not_matter(image: Size, padded: Size, rounding: str) -> None:
    sizes = pyramid(padded, (4, 8, 16, 32), rounding)
    scales = dict(zip(sizes, expected((4, 8, 16, 32)), strict=True))
    for order in itertools.permutations(sizes):
        assert infer_scales(features(list(order)), [image]) == [scales[size] for size in order]


def test_of_maps_with_as_many_cells_the_first_is_the_finest() -> None:
    for sizes in itertools.permutations([(4, 8), (8, 4)]):
        with pytest.raises(ValueError, match=re.escape(f"x['1']: got {sizes[1]} cells, where x['0'] has {sizes[0]};")):
            infer_scales(features(list(sizes)), [(16, 16)])


# What is pooled.

OBLONG = {(1333, 8): (1344, 32), (8, 1333): (32, 1344), (10, 100): (32, 128), (100, 9): (128, 32), (16, 300): (32, 320)}
NAMES = ("0", "1", "2", "3")


def explicit(names: tuple[str, ...], size: int, ratio: int) -> nn.Module:
    """torchvision's pooler, told that the levels' strides are 4, 8, 16 and 32."""
    pooler = torchvision.ops.MultiScaleRoIAlign(list(names), size, ratio)
    pooler.scales = [1 / (4 << level) for level in range(len(names))]
    pooler.map_levels = torchvision.ops.poolers.initLevelMapper(2, 1 + len(names))
    return pooler


@pytest.mark.parametrize("image", OBLONG)
@pytest.mark.parametrize("names", [NAMES, NAMES[:1]])
def test_an_oblong_image_is_pooled_where_its_boxes_are(image: Size, names: tuple[str, ...], backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = pyramid(OBLONG[image], (4, 8, 16, 32), "down")
    maps = {
        name: torch.rand(1, 2, *size, generator=generator).double() for name, size in zip(NAMES, sizes, strict=True)
    }
    corners = torch.rand(12, 2, 2, generator=generator).double().sort(1).values * torch.tensor([image[1], image[0]])
    boxes = torch.cat([corners.flatten(1), torch.tensor([[0.0, 0, image[1], image[0]]])])
    pooled = roialign.MultiScaleRoIAlign(list(names), 3, 2)(maps, [boxes], [image])
    theirs = explicit(names, 3, 2)(maps, [boxes], [image])
    torch.testing.assert_close(pooled, theirs, rtol=0, atol=1e-12)


class Stages(nn.Module):
    """Four levels of stride 4, 8, 16 and 32."""

    out_channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 4, 4, 4)] + [nn.Conv2d(4, 4, 2, 2) for _ in range(3)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = {}
        for name, stage in zip(NAMES, self.stages, strict=True):
            levels[name] = x = stage(x)
        return levels


@pytest.mark.parametrize("images", [[(320, 16)], [(300, 9), (200, 20)], [(16, 320)], [(9, 300), (20, 200)], [(90, 70)]])
def test_accelerate_leaves_a_right_model_right(images: list[Size]) -> None:
    """In tall images torchvision's pooler is right and ours equals it; in wide ones ours equals the strides it has."""
    torch.manual_seed(0)
    anchors = detection.rpn.AnchorGenerator(((8,), (16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 4)
    options: Any = {"min_size": 1, "max_size": 9999, "rpn_post_nms_top_n_test": 30, "box_score_thresh": 0.0}
    model = detection.FasterRCNN(
        Stages(), 3, rpn_anchor_generator=anchors, box_roi_pool=explicit(NAMES, 7, 2), **options
    )
    # Images as they are: no resizing.
    model.transform.resize = lambda image, target=None: (image, target)
    model.eval()
    calls: list[tuple[Any, Tensor]] = []
    model.roi_heads.box_roi_pool.register_forward_hook(lambda _, given, pooled: calls.append((given, pooled)))
    batch = [torch.rand(3, *size) for size in images]
    with torch.no_grad():
        model(batch)
        assert roialign.accelerate(model).replaced
        assert isinstance(model.roi_heads.box_roi_pool, roialign.MultiScaleRoIAlign)
        model(batch)
        (given, theirs), (_, ours) = calls
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
        guessed = torchvision.ops.MultiScaleRoIAlign(list(NAMES), 7, 2)
        same = torch.allclose(guessed(*given), theirs, atol=1e-4)
    tall = all(height > width for height, width in images)
    assert same == tall, "torchvision asks the heights alone"


def test_our_detector_on_a_strip_at_its_least_scale() -> None:
    """A quarter of 64 x 512 pixels is 16 x 128, padded to 32 x 128."""
    model = build_detector(2, "mobilenet_v2_fpn", scale=0.25).eval()
    given: list[Any] = []
    model.roi_heads.box_roi_pool.register_forward_hook(lambda _, arguments, __: given.append(arguments))
    with torch.no_grad():
        model([torch.rand(3, 64, 512)])
    maps, _, shapes = given[0]
    assert shapes == [(16, 128)]
    assert infer_scales({name: maps[name] for name in NAMES}, shapes) == expected((4, 8, 16, 32))


class Resized(nn.Module):
    """A pyramid of whatever image comes, and its pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.pooler = roialign.MultiScaleRoIAlign(["0", "1"], 2, 2)

    def forward(self, image: Tensor, boxes: Tensor) -> Tensor:
        fine = nn.functional.max_pool2d(image, 4)
        maps = {"0": fine, "1": nn.functional.max_pool2d(fine, 2)}
        return self.pooler(maps, [boxes], [(image.shape[2], image.shape[3])])


@pytest.mark.parametrize("how", ["export", "compile"])
def test_sizes_may_be_symbols(how: str) -> None:
    """One graph serves images of every size, tall and wide."""
    model = Resized()
    boxes = torch.tensor([[1.0, 2, 30, 40], [0, 0, 60, 60]])
    if how == "export":
        height, width = (8 * torch.export.Dim(name, min=2, max=64) for name in ("height", "width"))
        dims = ({2: height, 3: width}, None)
        run: Any = torch.export.export(model, (torch.rand(1, 3, 64, 96), boxes), dynamic_shapes=dims).module()
    else:
        counter = CompileCounterWithBackend("eager")
        run = torch.compile(model, backend=counter, dynamic=True, fullgraph=True)
    for size in ((64, 96), (160, 96), (80, 400), (16, 512)):
        image = torch.rand(1, 3, *size)
        torch.testing.assert_close(run(image, boxes), model(image, boxes), rtol=0, atol=1e-6)
    assert how == "export" or counter.frame_count == 1
