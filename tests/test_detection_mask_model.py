"""Detectors that draw masks: held to torchvision's Mask R-CNN, to plain pooling, and to themselves seen otherwise."""

from __future__ import annotations

import copy
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import roi_align
from typer.testing import CliRunner

from masked import write_scenes
from roialign.cli import app
from roialign.detection import POOLINGS, Detector, build_detector, detect, load_detector, save_detector
from roialign.detection import export as exporting
from roialign.detection.checkpoint import draws_masks
from roialign.detection.datasets import AnnotatedImages
from roialign.detection.images import Photo
from roialign.detection.mask_heads import mask_targets, not_pasted
from roialign.detection.masks import GRID, decode
from roialign.detection.overlays import OUTLINE, SHADE, draw_masks
from roialign.detection.recipe import Recipe
from roialign.detection.tiles import Found, _merge, _Tile
from roialign.detection.training import Trainer
from roialign.detection.voting import Boxes, look, vote
from roialign.samples import HELDOUT, PHOTO_FILE
from test_detection_export import wake

YELLOWSTONE = HELDOUT.parent / "YELL_lower.jpg"

SMALL: dict[str, Any] = {
    "rpn_pre_nms_top_n_test": 60, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 8, "box_score_thresh": 0.0,
    "fpn_channels": 16, "head_channels": 32,
}  # fmt: skip


def small(pooling: str = "roi_align", classes: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    return build_detector(
        classes, "mobilenet_v2_fpn", pooling, masks=True, norm="group", **{"scale": 1.0, **SMALL, **options}
    )


def test_targets_by_pooling_whole_masks() -> None:
    """By torchvision's operator on the whole masks in float64, also where boxes reach beyond them."""
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(4, 50, 70, generator=generator) < 0.5).to(torch.uint8)
    corner = torch.rand(40, 2, generator=generator, dtype=torch.float64) * torch.tensor([75, 55]) - 5
    boxes = torch.cat([corner, corner + torch.rand(40, 2, generator=generator, dtype=torch.float64) * 50 + 0.1], 1)
    boxes = torch.cat([boxes, boxes.round(), torch.tensor([[0, 0, 70, 50.0]], dtype=torch.float64)])
    boxes = boxes.clamp(min=0).minimum(torch.tensor([70.0, 50, 70, 50]))
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
    owners = torch.arange(len(boxes)) % 4
    rois = torch.cat([owners[:, None], boxes], 1)
    expected = roi_align(masks[:, None].double(), rois, GRID, aligned=True)[:, 0]
    torch.testing.assert_close(mask_targets(masks, boxes, owners), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(mask_targets(masks, boxes.float(), owners).double(), expected, rtol=0, atol=1e-4)
    assert mask_targets(masks[:0], boxes[:0], owners[:0]).shape == (0, GRID, GRID)


def images_and_targets(masks: bool = True) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, *size, generator=generator) for size in ((96, 128), (110, 90))]
    boxes = [torch.tensor([[10.0, 10, 50, 60], [40, 30, 90, 90]]), torch.tensor([[5.0, 5, 60, 70]])]
    targets = []
    for image, box in zip(images, boxes, strict=True):
        drawn = torch.zeros(len(box), *image.shape[1:], dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(drawn, box.int().tolist(), strict=True):
            mask[y1:y2, x1 : (x1 + x2) // 2] = 1
        target = {"boxes": box, "labels": torch.arange(1, len(box) + 1)}
        targets.append({**target, "masks": drawn} if masks else target)
    return images, targets


@pytest.mark.parametrize("scale", [None, 1.0])
def test_answers_are_torchvisions(scale: float | None) -> None:
    """The same weights under torchvision's own heads, which paste too."""
    model = small(scale=scale, min_size=128, max_size=200).eval()
    assert isinstance(model, MaskRCNN)
    theirs = copy.deepcopy(model)
    heads = RoIHeads.__new__(RoIHeads)
    heads.__dict__.update(theirs.roi_heads.__dict__)
    theirs.roi_heads = heads
    images, _ = images_and_targets()
    with torch.no_grad():
        for ours, expected in zip(model(images), theirs(images), strict=True):
            assert list(ours) == list(expected)
            assert len(ours["masks"]) > 0
            for name, value in ours.items():
                torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)
        with not_pasted(model):
            grids = [each["grids"] for each in model(images)]
        assert [each.shape for each in grids] == [(8, GRID, GRID)] * 2
        assert "masks" in model(images)[0]


@pytest.mark.parametrize("scale", [None, 1.0, 1.5])
def test_the_loss_by_hand(scale: float | None) -> None:
    """Of a head that says the same everywhere it is known from the targets, which are halves of boxes."""
    model = small(scale=scale, min_size=128, max_size=200).train()
    for parameter in model.roi_heads.mask_predictor.mask_fcn_logits.parameters():
        nn.init.zeros_(parameter)
    images, targets = images_and_targets()
    assert float(model(images, targets)["loss_mask"].detach()) == pytest.approx(0.6931472, abs=1e-6)
    nn.init.constant_(model.roi_heads.mask_predictor.mask_fcn_logits.bias, 30)  # sure of all: costs 30 where it is not
    torch.manual_seed(0)
    model.roi_heads.box_batch_size_per_image = 1
    model.roi_heads.add_gt_proposals = lambda proposals, boxes: boxes  # proposals without a fault
    cost = float(model(images, targets)["loss_mask"].detach())
    assert cost == pytest.approx(15, abs=30 / GRID)
    with pytest.raises(ValueError, match=r"targets: got no masks; expected masks \[N, H, W\]"):
        model(images, images_and_targets(masks=False)[1])


def test_a_file_tells_that_its_detector_draws(tmp_path: Path) -> None:
    model = small().eval()
    save_detector(model, tmp_path / "m.safetensors")
    assert draws_masks(str(tmp_path / "m.safetensors"))
    again = load_detector(tmp_path / "m.safetensors")
    images, _ = images_and_targets()
    with torch.no_grad():
        for ours, theirs in zip(model(images), again(images), strict=True):
            assert torch.equal(ours["masks"], theirs["masks"])
    boxes = build_detector(3, "mobilenet_v2_fpn", norm="group", scale=1.0, **SMALL)
    save_detector(boxes, tmp_path / "b.safetensors")
    (tmp_path / "no.safetensors").write_bytes(b"1234567890")
    assert "masks" not in boxes.description
    assert not draws_masks(str(tmp_path / "b.safetensors"))
    assert not draws_masks("MobileNet_V2_Weights.IMAGENET1K_V1")
    with pytest.raises(ValueError, match=r"no\.safetensors: not a safetensors file"):
        draws_masks(str(tmp_path / "no.safetensors"))
    model.description["masks"] = 1
    with pytest.raises(ValueError, match="model: masks: got 1; expected true, if it is there"):
        save_detector(model, tmp_path / "m.safetensors")
    model.description |= {"masks": True, "box_detections_per_img": 20_000, "num_classes": 200}
    with pytest.raises(ValueError, match=r"model: asks for 3\.136e\+09 values of masks per image"):
        save_detector(model, tmp_path / "m.safetensors")


class Halves(nn.Module):
    """Finds the bright box of an image, and in it the half where green is."""

    def forward(self, images: list[Tensor]) -> list[Boxes]:
        found = []
        for image in images:
            places = (image[0] > 0.5).nonzero().float()
            low, high = places.amin(0), places.amax(0) + 1
            box = torch.tensor([[low[1], low[0], high[1], high[0]]])
            grid = roi_align(image[None, 1:2], [box], GRID, aligned=True)[0]
            found.append({"boxes": box, "scores": torch.ones(1), "labels": torch.ones(1).long(), "grids": grid})
        return found


def test_views_vote_on_masks() -> None:
    image = torch.zeros(3, 100, 150)
    image[0, 20:60, 30:110] = 1
    image[1, 20:60, 30:70] = 1  # the left half
    image[1, 20:40, 70:110] = 1  # and the upper right
    (seen,) = look(Halves(), [image])
    voted = vote(seen, 0.5)
    grid = voted["grids"][0]
    assert voted["grids"].shape == (1, GRID, GRID)
    for rows, columns, value in ((slice(2, 12), slice(2, 12), 1), (slice(16, 26), slice(2, 12), 1)):
        assert (grid[rows, columns] - value).abs().max() < 0.1
    assert (grid[2:12, 16:26] - 1).abs().max() < 0.1
    assert grid[16:26, 16:26].abs().max() < 0.1
    # Two boxes beside each other with weights 3 and 1: their mean lies a quarter of the way, and so does the mask.
    boxes = torch.tensor([[0.0, 0, 28, 28], [4, 0, 32, 28]])
    grids = torch.zeros(2, GRID, GRID)
    grids[:, :, :14] = 1  # columns up to 14, and up to 18 of the image
    parts = [
        {"boxes": boxes[k, None], "scores": torch.tensor([(0.9, 0.3)[k]]), "labels": torch.ones(1).long()}
        | {"grids": grids[k, None]}
        for k in range(2)
    ]
    voted = vote(parts, 0.5)
    torch.testing.assert_close(voted["boxes"], torch.tensor([[1.0, 0, 29, 28]]), rtol=0, atol=1e-5)
    row = voted["grids"][0, 14]
    expected = torch.tensor([0.75] * 3 + [1.0] * 10 + [0.25] * 4 + [0.0] * 11)
    # Columns 1 and 2 are not the second box's; 3 is half a cell from its edge, where rounding decides.
    torch.testing.assert_close(row[[0, 1, *range(3, 28)]], expected[[0, 1, *range(3, 28)]], rtol=0, atol=1e-5)


def test_masks_of_tiles(tmp_path: Path) -> None:
    """A detection's mask is that of its tile; of a box that the edge of a small image cuts, the part that stays."""
    grids = torch.rand(2, GRID, GRID, generator=torch.Generator().manual_seed(3))
    ends = float("-inf"), float("inf")
    box = torch.tensor([[10.0, 10, 38, 38]])
    one = [
        Found(box, torch.tensor([score]), torch.tensor([1]), grid[None])
        for score, grid in ((0.3, grids[0]), (0.8, grids[1]))
    ]
    tiles = [_Tile(0, (x, 0, x + 64, 64), (ends[0], ends[0], ends[1], ends[1]), 1, (104, 64)) for x in (0, 40)]
    merged = _merge(
        list(zip(tiles, [one[0], one[1]._replace(boxes=box - torch.tensor([39.0, 0, 39, 0]))], strict=True)), 0.5, 24
    )
    assert merged.boxes.tolist() == [[11, 10, 39, 38]]
    assert merged.grids is not None
    assert torch.equal(merged.grids, grids[1:])
    small_tile = _Tile(0, (0, 0, 24, 64), (ends[0], ends[0], ends[1], ends[1]), 1, (24, 64))
    cut = _merge([(small_tile, one[0])], 0.5, 24)
    assert cut.boxes.tolist() == [[10, 10, 24, 38]]
    assert cut.grids is not None
    halves = grids[0, :, :15].double()
    torch.testing.assert_close(
        cut.grids[0, :, 1:-1:2].double(), 0.75 * halves[:, :-2] + 0.25 * halves[:, 1:-1], rtol=0, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_detector_on_three_photos(pooling: str) -> None:
    """Random weights; photos of three sizes, one of them grown."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    few = {"rpn_post_nms_top_n_test": 50, "box_detections_per_img": 12}
    model = build_detector(4, "mobilenet_v2_fpn", pooling, masks=True, min_size=192, max_size=300, **few).eval()
    wake(model, 3 * Photo(PHOTO_FILE).read()[:, :256, :256] - 1.5)
    content = exporting.onnx_of(model)
    drawn = 0.0
    for file, (height, width) in ((PHOTO_FILE, (300, 300)), (YELLOWSTONE, (231, 253)), (YELLOWSTONE, (130, 400))):
        found = exporting.check(content, model, Photo(file).read()[:, :height, :width], pooling)
        assert found.boxes >= 8
        drawn = max(drawn, found.difference.drawn)
    assert drawn > 0


def test_an_export_whose_masks_are_others_is_refused() -> None:
    pytest.importorskip("onnxruntime")
    model = small(scale=0.5).eval()
    content = exporting.onnx_of(model)
    photo = Photo(YELLOWSTONE).read()[:, :160, :200]
    nn.init.constant_(model.roi_heads.mask_predictor.mask_fcn_logits.bias, 0.1)
    with pytest.raises(ValueError, match=r"told: ONNX Runtime's boxes differ .*, masks by 0\.0.* expected at most"):
        exporting.check(content, model, photo, "told")


def roialign(*arguments: Any) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.output


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_train_evaluate_detect_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the segmentations of a file to masks: only the training is told of them."""
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path / "in", 4)
    options = ("--scale", 1, "--crop", 96, "--batch", 2, "--augment", "aerial", "--repeat", 4, "--lr", 1e-3)
    roialign("train", "in/eggs.json", "--masks", "--epochs", 2, "--out", "a", *options)
    history = [line.split(",") for line in Path("a/log.csv").read_text().splitlines()]
    assert {"loss_mask", "mask_AP", "mask_AP50"} <= set(history[0])
    roialign("train", "in/eggs.json", "--weights", "a/model.safetensors", "--epochs", 1, "--out", "c", *options[:-4])
    assert load_detector("c/model.safetensors").description["masks"] is True  # as its --weights
    metrics = roialign(
        "evaluate", "in/eggs.json", "--weights", "a/model.safetensors", "--json", "ap.json", "--out", "e"
    )
    assert "masks" in metrics
    assert json.loads(Path("ap.json").read_text())["mask_AP50"] > 0.5
    records = json.loads(Path("e/detections.json").read_text())
    assert all(record["segmentation"]["size"] == [120, 150] for record in records)
    arguments = ("--weights", "a/model.safetensors", "--geojson", "o.geojson", "--tile", 100, "--overlap", 48)
    roialign("detect", "in/0.png", *arguments, "--score", 0.4, "--out", "d")
    coco = json.loads(Path("d/detections.json").read_text())
    found = Detector("a/model.safetensors").detect("in/0.png", score=0.4, tile=100, overlap=48)
    assert len(found.boxes) > 0
    for index, (annotation, mask) in enumerate(zip(coco["annotations"], found.masks or [], strict=True)):
        drawn = decode(annotation["segmentation"])
        assert annotation["area"] == int(drawn.sum())
        truth = found.mask(index)  # from boxes that are not rounded to a hundredth
        assert (drawn & truth).sum() / (drawn | truth).sum() > 0.95
        assert mask["size"] == [120, 150]
    kinds = {each["geometry"]["type"] for each in json.loads(Path("o.geojson").read_text())["features"]}
    assert kinds <= {"Polygon", "MultiPolygon"}
    Image.open("in/1.png").resize((300, 240)).save("large.png")
    said = roialign("export", "a/model.safetensors", "--out", "m.onnx", "--photo", "large.png")
    assert "and masks that differ by" in " ".join(said.split())
    run_onnx = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "run_onnx.py"))
    theirs = run_onnx["detect"]("m.onnx", "large.png", 0.4)
    whole = Detector("a/model.safetensors").detect("large.png", score=0.4, tile=0)
    assert len(theirs) == len(whole.boxes) > 0
    for index, each in enumerate(theirs):
        ours = whole.mask(index).numpy()
        assert (ours & each.mask).sum() / (ours | each.mask).sum() > 0.99  # a few pixels lie at one half
    plain = CliRunner().invoke(app, ["train", "--masks", "--out", "f"])  # the package's crowns have boxes only
    assert plain.exit_code == 1
    assert "segmentation: got null; expected polygons" in " ".join(str(plain.output + str(plain.exception)).split())


def test_a_detector_of_boxes_has_no_masks() -> None:
    found = Detector().detect(YELLOWSTONE, tile=0)
    assert found.masks is None
    with pytest.raises(ValueError, match="masks: got a detector of boxes; train one with --masks"):
        found.mask(0)


def test_a_training_needs_masks_for_masks(tmp_path: Path) -> None:
    data = AnnotatedImages(write_scenes(tmp_path / "in", 1))
    with pytest.raises(ValueError, match="data: got boxes only"):
        Trainer(small(classes=2), data, None, Recipe(crop=96, augment="none", device="cpu"), tmp_path / "out")


def test_drawn_masks_have_the_colour_of_their_class(tmp_path: Path) -> None:
    grids = torch.zeros(2, GRID, GRID)
    grids[0] = 1
    picture = Image.new("RGB", (60, 40), "#000000")
    found = Found(torch.tensor([[5.0, 5, 25, 35], [-9, 0, 3, 9]]), torch.ones(2), torch.tensor([2, 1]), grids)
    draw_masks(picture, found, 1)
    sky = (0x56, 0xB4, 0xE9)
    assert picture.getpixel((5, 20)) == sky  # the outline
    assert picture.getpixel((5 + OUTLINE // 2, 20)) == tuple(round(part * SHADE / 255) for part in sky)
    assert picture.getpixel((4, 20)) == picture.getpixel((25, 20)) == picture.getpixel((1, 4)) == (0, 0, 0)
    assert len(list(detect(small().eval(), [Photo(YELLOWSTONE)], tile=0))) == 1


def test_torchvisions_weights_fit() -> None:
    """Of its Mask R-CNN, by names and shapes: ``weights="MaskRCNN_ResNet50_FPN_Weights.COCO_V1"`` gives all of them."""
    with torch.device("meta"):
        ours = build_detector(91, "resnet50_fpn", masks=True, norm="frozen")
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (ours, theirs)]
    counted = {name for name in shapes[1] if name.endswith("num_batches_tracked")}  # which frozen norms have not
    assert shapes[0] == {name: shape for name, shape in shapes[1].items() if name not in counted}
