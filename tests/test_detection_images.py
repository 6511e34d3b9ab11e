"""Image files of every kind, tiles, and the measures: held against what can be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from roialign.detection import Found, detect
from roialign.detection.datasets import AnnotatedImages, open_photo
from roialign.detection.evaluation import evaluate_found, precision_recall
from roialign.detection.images import FILL, DamagedImageError, Photo, find_images, passed_over
from roialign.detection.labels import SKY, VERMILION
from roialign.detection.pictures import LINE, PATCH, draw_worst, plot_curve
from roialign.detection.tiles import _merge, _pad, _spans, _Tile
from roialign.samples import PHOTO_FILE

RAMP = (np.arange(20 * 30).reshape(20, 30) % 256).astype(np.uint8)
TURNS: dict[int, Any] = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip


def pixels(path: Path) -> np.ndarray[Any, Any]:
    photo = Photo(path)
    return np.asarray(photo.crop((0, 0, photo.width, photo.height)))


def test_16_bit_values_are_scaled_not_cut(tmp_path: Path) -> None:
    grey = np.repeat(RAMP[..., None], 3, 2)
    for name, bits in (("16.png", 16), ("12.png", 12), ("16.tif", 16)):
        wide = np.round(RAMP.astype(np.float64) / 255 * (2**bits - 1)).astype(np.uint16)
        Image.fromarray(wide).save(tmp_path / name)
        assert np.abs(pixels(tmp_path / name).astype(int) - grey).max() <= 1, name
    for name, white in (("unit.tif", 1.0), ("byte.tif", 255.0)):
        Image.fromarray((RAMP / 255 * white).astype(np.float32)).save(tmp_path / name)
        assert np.abs(pixels(tmp_path / name).astype(int) - grey).max() <= 1, name


def test_grey_palette_and_alpha(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "grey.png")
    assert (pixels(tmp_path / "grey.png") == RAMP[..., None]).all()
    photo = Image.open(PHOTO_FILE)
    quantised = photo.quantize(64)
    quantised.save(tmp_path / "palette.png")
    assert (pixels(tmp_path / "palette.png") == np.asarray(quantised.convert("RGB"))).all()
    alpha = Image.fromarray(np.where(np.arange(30) < 10, 0, 255).astype(np.uint8)[None].repeat(20, 0))
    clear = Image.merge("LA", (Image.fromarray(RAMP), alpha))
    for name, picture in (("la.png", clear), ("rgba.png", clear.convert("RGBA"))):
        picture.save(tmp_path / name)
        got = pixels(tmp_path / name)
        assert (got[:, :10] == FILL).all(), name
        assert (got[:, 10:] == RAMP[:, 10:, None]).all(), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RAMP).save(tmp_path / "turned.png", exif=exif)
    assert (pixels(tmp_path / "turned.png")[..., 0] == TURNS[orientation](RAMP)).all()
    # Annotations made by a tool that ignores EXIF keep the stored orientation.
    if orientation >= 5:
        assert open_photo(tmp_path / "turned.png", 30, 20).width == 30
        assert open_photo(tmp_path / "turned.png", 20, 30).width == 20
    with pytest.raises(ValueError, match="the annotations say 7 x 7"):
        open_photo(tmp_path / "turned.png", 7, 7)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = PHOTO_FILE.read_bytes()
    for name, content in (("cut.jpg", whole[:20000]), ("text.png", b"hello"), ("empty.tif", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DamagedImageError, match=name):
            Photo(tmp_path / name)
    with pytest.raises(DamagedImageError, match=r"gone\.png"):
        Photo(tmp_path / "gone.png")


def test_a_preview_of_a_large_image_is_its_mean_over_blocks(tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / "large.png")
    small = np.asarray(Photo(tmp_path / "large.png").preview(30))
    assert np.abs(small - large.reshape(20, 3, 30, 3, 3).mean((1, 3))).max() <= 1


def test_names_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", "deep/c.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in find_images([tmp_path])] == ["a.jpg", "b.PNG", "c.tif"]
    for name in ("deep/d.HEIC", "e.heic", "README"):
        (tmp_path / name).touch()
    assert passed_over([tmp_path, tmp_path / "deep", tmp_path / "a.jpg"]) == {".heic": 2, ".txt": 1, "README": 1}
    assert [file.name for file in find_images([tmp_path / "*.jpg", tmp_path / "a.jpg"])] == ["a.jpg"]
    assert [file.name for file in find_images([tmp_path / "**" / "*.tif"])] == ["c.tif"]
    with pytest.raises(FileNotFoundError, match=r"none\*: no images"):
        find_images([tmp_path / "none*"])


class Finder(nn.Module):
    """Finds every grey value above 0 exactly: one box around all pixels that have it, as far as it sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))
        self.roi_heads = nn.Module()
        self.roi_heads.nms_thresh = 0.4
        self.batches: list[int] = []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        self.batches.append(len(images))
        return [self._find((image[0] * 255).round()) for image in images]

    def _find(self, grey: Tensor) -> dict[str, Tensor]:
        values = [value for value in grey.unique().tolist() if value not in (0, FILL[0])]
        places = [(grey == value).nonzero() for value in values]
        boxes = [
            [float(p[:, 1].min()), float(p[:, 0].min()), float(p[:, 1].max()) + 1, float(p[:, 0].max()) + 1]
            for p in places
        ]
        scores = torch.tensor([len(place) / 1e4 for place in places])
        return {
            "boxes": torch.tensor(boxes).reshape(-1, 4),
            "scores": scores,
            "labels": torch.ones(len(boxes), dtype=torch.int64),
        }


def scatter(path: Path, width: int, height: int, most: int) -> Tensor:
    """Rectangles up to ``most`` pixels wide that do not touch, each in a grey of its own."""
    generator = np.random.default_rng(5)
    canvas = np.zeros((height, width), dtype=np.uint8)
    boxes = []
    greys = [value for value in range(1, 256) if value != FILL[0]]
    while greys and len(boxes) < 60:
        w, h = generator.integers(6, most + 1, 2)
        x, y = generator.integers(0, width - w), generator.integers(0, height - h)
        if not canvas[max(0, y - 1) : y + h + 1, max(0, x - 1) : x + w + 1].any():
            canvas[y : y + h, x : x + w] = greys.pop()
            boxes.append([float(x), float(y), float(x + w), float(y + h)])
        elif generator.random() < 0.01:
            break
    Image.fromarray(canvas).save(path)
    return torch.tensor(boxes)


@pytest.mark.parametrize(("tile", "batch"), [(0, 1), (100, 1), (100, 3), (90, 4), (64, 2)])
def test_tiles_find_what_the_whole_image_shows(tmp_path: Path, tile: int, batch: int) -> None:
    expected = scatter(tmp_path / "scene.png", 333, 257, most=32)
    (found,) = detect(Finder(), [Photo(tmp_path / "scene.png")], tile=tile, overlap=40, batch=batch)
    assert len(expected) > 15
    key = [tuple(box) for box in expected.tolist()]
    assert sorted(tuple(box) for box in found.boxes.tolist()) == sorted(key)
    assert (found.scores.diff() <= 0).all()


class Components(Finder):
    """Finds all that is brighter than a half and hangs together; the more of it, the surer."""

    def _find(self, grey: Tensor) -> dict[str, Tensor]:
        bright = (grey > 127).float()
        own = torch.arange(1.0, 1 + bright.numel()).reshape(bright.shape) * bright
        while not torch.equal(own, spread := max_pool2d(own[None], 3, 1, 1)[0] * bright):
            own = spread
        return super()._find(own)


@pytest.mark.parametrize("batch", [1, 3])
def test_large_objects_are_reported_once_and_whole(tmp_path: Path, batch: int) -> None:
    """Small ones as ever; large ones to a pixel of the smaller image that showed them."""
    small = [[5.0, 10, 35, 30], [100, 20, 120, 40], [400, 20, 430, 30], [460, 200, 490, 240], [20, 380, 30, 390]]
    large = [[30.0, 50, 330, 250], [340, 260, 440, 400]]  # one that fills tiles, one in parts of four
    canvas = np.zeros((420, 500), np.uint8)
    for x1, y1, x2, y2 in (map(int, box) for box in small + large):
        canvas[y1:y2, x1:x2] = 255
    Image.fromarray(canvas).save(tmp_path / "scene.png")

    def found(large: bool) -> Tensor:
        photos = [Photo(tmp_path / "scene.png")]
        (each,) = detect(Components(), photos, tile=120, overlap=40, batch=batch, large=large)
        return each.boxes[each.boxes[:, 0].argsort(stable=True)]

    assert len(found(large=False)) > len(small) + 4  # the large ones in pieces
    boxes = found(large=True)
    wide = (boxes[:, 2:] - boxes[:, :2]).amax(1) > 40
    assert sorted(boxes[~wide].tolist()) == sorted(small)
    torch.testing.assert_close(boxes[wide], torch.tensor(large), atol=8, rtol=0)  # two pixels of a fourth of the size


def test_photos_share_batches_and_keep_their_order(tmp_path: Path) -> None:
    expected = []
    for index, (width, height) in enumerate([(80, 80), (80, 80), (200, 90), (1, 1), (80, 80)]):
        expected.append(scatter(tmp_path / f"{index}.png", width, height, 12) if width > 1 else torch.empty(0, 4))
        if width == 1:
            Image.new("L", (1, 1)).save(tmp_path / f"{index}.png")
    finder = Finder()
    opened: list[int] = []

    def photos() -> Any:
        for index in range(5):
            opened.append(index)
            yield Photo(tmp_path / f"{index}.png")

    results = []
    for found in detect(finder, photos(), tile=80, overlap=20, batch=2):
        results.append(found)
        assert len(opened) - len(results) <= 2  # photos do not pile up in memory
    assert finder.batches[0] == 2
    for found, boxes in zip(results, expected, strict=True):
        assert sorted(found.boxes.tolist()) == sorted(boxes.tolist())


INF = float("inf")


def test_tiles_and_their_cores_by_hand() -> None:
    """Cores reach beyond the middle of an overlap by an eighth of the least overlap."""
    assert _spans(1000, 512, 128) == [(0, 512, -INF, 394), (244, 756, 362, 638), (488, 1000, 606, INF)]
    assert _spans(896, 512, 128) == [(0, 512, -INF, 464), (384, 896, 432, INF)]  # the least overlap, exactly
    assert _spans(897, 512, 128)[1:] == [(192, 704, 336, 560.5), (385, 897, 528.5, INF)]
    assert _spans(513, 512, 128) == [(0, 512, -INF, 272.5), (1, 513, 240.5, INF)]
    assert _spans(6, 2, 0) == [(0, 2, -INF, 2), (2, 4, 2, 4), (4, 6, 4, INF)]
    for tile in (0, 512):
        assert _spans(512, tile, 128) == [(0, 512, -INF, INF)]


@pytest.mark.parametrize(("width", "tiles"), [(512, 1), (513, 2), (896, 2), (897, 3)])
def test_a_model_that_says_nothing_gets_tiles_of_512_with_128_in_common(width: int, tiles: int, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((width, 64)).save(tmp_path / "wide.png")
    finder = Finder()
    list(detect(finder, [Photo(tmp_path / "wide.png")]))
    assert finder.batches == [1] * tiles


def test_a_small_image_is_padded_with_the_mean_colour() -> None:
    colour = torch.tensor(FILL)[:, None, None] / 255
    for height, width in (64, 63), (63, 64), (1, 100), (100, 1):
        pixels = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
        expected = colour.repeat(1, max(64, height), max(64, width))
        expected[:, :height, :width] = pixels
        torch.testing.assert_close(_pad(pixels), expected)
    whole = torch.rand(3, 64, 64)
    assert _pad(whole) is whole


def test_a_tile_reports_what_is_centred_in_its_core() -> None:
    """The lower edge belongs to the core and the upper one does not; what lies in the padding is nobody's."""
    tile = _Tile(0, (100, 10, 150, 40), (110, 10, 120, INF))
    rows = [
        (5, 0, 15, 10, 0.1),  # centred at (110, 15)
        (15, 0, 25, 10, 0.9),  # at (120, 15)
        (14, 0, 24, 10, 0.2),
        (4, 0, 14, 10, 0.8),  # at (109, 15)
        (10, 20, 20, 60, 0.3),  # to 30 below the image
        (10, 30, 20, 60, 0.4),  # below it
    ]
    merged = _merge([(tile, found(*rows))], 0.5, 16)
    assert merged.boxes.tolist() == [[110, 30, 120, 40], [114, 10, 124, 20], [105, 10, 115, 20]]
    assert merged.scores.tolist() == pytest.approx([0.3, 0.2, 0.1])
    assert merged.labels.tolist() == [1, 1, 1]


def test_impossible_tiles_are_refused() -> None:
    for arguments in (
        {"tile": 64, "overlap": 64},
        {"tile": -1},
        {"batch": 0},
        {"tile": 64, "overlap": -1},
        {"tile": 64},
    ):
        with pytest.raises(ValueError, match="got"):
            next(detect(Finder(), [Photo(PHOTO_FILE)], **arguments))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="positional"):
        detect(Finder(), [], 64)  # type: ignore[misc]


def test_tiles_may_have_nothing_in_common(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((130, 60)).save(tmp_path / "wide.png")
    for tile, tiles in ((0, 1), (65, 2), (64, 3)):
        finder = Finder()
        next(detect(finder, [Photo(tmp_path / "wide.png")], tile=tile, overlap=0))
        assert len(finder.batches) == tiles


def coco(folder: Path, boxes: list[list[float]], crowds: list[list[float]] | None = None) -> AnnotatedImages:
    """One image of 200 x 100 pixels with boxes (x, y, width, height) of one class."""
    Image.new("RGB", (200, 100)).save(folder / "blank.png")
    annotations = [
        {"id": 0, "image_id": 3, "category_id": 9, "bbox": bbox, "iscrowd": crowd, "area": bbox[2] * bbox[3]}
        for crowd, group in enumerate((boxes, crowds or []))
        for bbox in group
    ]
    content = {
        "images": [{"id": 3, "file_name": "blank.png", "width": 200, "height": 100}],
        "annotations": annotations,
        "categories": [{"id": 9, "name": "tree"}],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return AnnotatedImages(folder / "coco.json")


def found(*rows: tuple[float, float, float, float, float]) -> Found:
    table = torch.tensor(rows).reshape(-1, 5)
    return Found(table[:, :4], table[:, 4], torch.ones(len(table), dtype=torch.int64))


def test_ap_of_a_hit_a_miss_and_a_hit(tmp_path: Path) -> None:
    data = coco(tmp_path, [[0, 0, 10, 10], [50, 50, 20, 20]])
    # The second hit overlaps by 20 x 16 of 20 x 20: IoU 0.8.
    report = evaluate_found(data, {3: found((0, 0, 10, 10, 0.9), (100, 0, 110, 10, 0.8), (50, 50, 70, 66, 0.7))})
    # Precision is 1 up to recall 0.5 (51 of COCO's 101 points), then 2/3; above IoU 0.8 the second box is lost.
    high, low = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert report.metrics["AP50"] == pytest.approx(high)
    assert report.metrics["AP75"] == pytest.approx(high)
    assert report.metrics["AP"] == pytest.approx((7 * high + 3 * low) / 10)
    assert report.metrics["AR1"] == pytest.approx(0.5)
    assert report.metrics["AR"] == pytest.approx((7 * 1 + 3 * 0.5) / 10)
    assert np.isnan(report.metrics["APl"])
    assert report.as_json()["APl"] is None
    torch.testing.assert_close(report.curve, torch.tensor([[0.5, 0.5, 1], [1, 0.5, 2 / 3], [0.9, 0.8, 0.7]]))
    assert report.metrics["F1"] == pytest.approx(0.8)
    assert report.metrics["score_threshold"] == pytest.approx(0.35)  # below 0.7 there is none


def test_the_threshold_lies_between_two_scores_and_parts_no_equal_ones(tmp_path: Path) -> None:
    """Below 0.9: 1 of 2 trees, 1 of 2 boxes; below 0.8: both trees, 2 of 3 boxes; below 0.5: 2 of 4."""
    data = coco(tmp_path, [[0, 0, 10, 10], [50, 50, 20, 20]])
    rows = [(0, 0, 10, 10, 0.9), (100, 0, 110, 10, 0.9), (50, 50, 70, 70, 0.8), (120, 0, 130, 10, 0.5)]
    metrics = evaluate_found(data, {3: found(*rows)}).metrics
    assert metrics["score_threshold"] == pytest.approx(0.65)
    assert (metrics["recall"], metrics["precision"], metrics["F1"]) == pytest.approx((1, 2 / 3, 0.8))
    # Alone the first would have F1 2/3; as it cannot be had alone, 1/2 is the best, where both boxes of 0.9 are taken.
    metrics = evaluate_found(data, {3: found(*rows[:2])}).metrics
    assert (metrics["score_threshold"], metrics["F1"]) == pytest.approx((0.45, 0.5))


def test_hundreds_of_objects_count(tmp_path: Path) -> None:
    """COCO's own limit of 100 detections would make this half an AP."""
    boxes = [[x, y, 8.0, 8.0] for x in range(0, 200, 10) for y in range(0, 100, 10)]
    data = coco(tmp_path, boxes)
    rows = [(x, y, x + w, y + h, 0.5 + 0.001 * k) for k, (x, y, w, h) in enumerate(boxes)]
    report = evaluate_found(data, {3: found(*rows)})
    assert report.metrics["AP"] == pytest.approx(1)
    assert report.metrics["AR100"] == pytest.approx(0.5)


def test_crowds_count_neither_way(tmp_path: Path) -> None:
    data = coco(tmp_path, [[0, 0, 10, 10]], crowds=[[100, 0, 100, 100]])
    assert len(data.boxes) == 1
    report = evaluate_found(data, {3: found((0, 0, 10, 10, 0.5), (120, 20, 140, 40, 0.9), (50, 50, 60, 60, 0.4))})
    assert report.metrics["AP"] == pytest.approx(1)
    torch.testing.assert_close(report.curve[:2], torch.tensor([[1.0, 1.0], [1.0, 0.5]]))


def test_nothing_found(tmp_path: Path) -> None:
    data = coco(tmp_path, [[0, 0, 10, 10]])
    report = evaluate_found(data, {3: found()})
    assert report.metrics["AP"] == 0
    assert report.metrics["F1"] == 0
    plot_curve(report, tmp_path / "curve.png")
    assert draw_worst(data, report, tmp_path / "worst.png") == 1


def test_a_second_detection_of_the_same_object_is_wrong(tmp_path: Path) -> None:
    data = coco(tmp_path, [[0, 0, 10, 10]])
    curve = precision_recall(data.entries, {3: found((0, 0, 10, 10, 0.9), (0, 0, 10, 9, 0.8))})
    torch.testing.assert_close(curve[:2], torch.tensor([[1.0, 1.0], [1.0, 0.5]]))


def test_the_worst_misses_are_shown_where_they_are(tmp_path: Path) -> None:
    """In a sheet of patches of 200 pixels, below a title: the false one, and then the missed one, amid its patch."""
    data = coco(tmp_path, [[20, 20, 10, 10], [150, 50, 20, 20]])
    report = evaluate_found(data, {3: found((20, 20, 30, 30, 0.6), (100, 40, 112, 52, 0.9))})
    assert draw_worst(data, report, tmp_path / "worst.png") == 2
    with Image.open(tmp_path / "worst.png") as sheet:
        top = 2 * LINE
        for place, (colour, side) in enumerate(((VERMILION, 12 * PATCH / 36), (SKY, 20 * PATCH / 60))):
            patch = sheet.convert("RGB").crop((place * PATCH, top, (place + 1) * PATCH, top + PATCH))
            ys, xs = (np.asarray(patch) == ImageColor.getrgb(colour)).all(2).nonzero()
            edges = [PATCH / 2 - side / 2, PATCH / 2 + side / 2]
            assert [xs.min(), xs.max()] == pytest.approx(edges, abs=3)
            assert [ys.min(), ys.max()] == pytest.approx(edges, abs=3)
        below = np.asarray(sheet.convert("L").crop((0, top + PATCH, 2 * PATCH, sheet.height)))
        assert (below < 100).any()  # something is written
