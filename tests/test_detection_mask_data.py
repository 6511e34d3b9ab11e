"""Masks of annotations: read from every form, cut with their images, judged as COCO's own evaluator judges them."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco
from PIL import Image

from masked import ellipse, runs, write_scenes
from roialign.detection.datasets import AnnotatedImages
from roialign.detection.evaluation import evaluate_found
from roialign.detection.images import Photo
from roialign.detection.masks import GRID, decode, paste
from roialign.detection.tables import classes_table, metrics_table
from roialign.detection.tiles import Found
from roialign.detection.views import TrainingViews, View, augment, augmentation
from test_detection_mutations import MUTATIONS, NASTY


def write(folder: Path, *annotations: dict[str, Any], size: tuple[int, int] | None = (100, 80)) -> Path:
    Image.new("RGB", (100, 80)).save(folder / "a.png")
    sides = {} if size is None else {"width": size[0], "height": size[1]}
    content = {
        "images": [{"id": 5, "file_name": "a.png", **sides}],
        "annotations": [{"id": 10 + k, "image_id": 5, "category_id": 1, **each} for k, each in enumerate(annotations)],
        "categories": [{"id": 1, "name": "tree"}],
    }
    (folder / "c.json").write_text(json.dumps(content))
    return folder / "c.json"


TRIANGLE = [10, 10, 30, 10, 10, 30]
SQUARE = np.zeros((80, 100), dtype=np.uint8)
SQUARE[20:30, 40:45] = 1
PACKED = coco.encode(np.asfortranarray(SQUARE))
COUNTS = PACKED["counts"] if isinstance(PACKED["counts"], str) else PACKED["counts"].decode()


@pytest.mark.parametrize("size", [(100, 80), None])
def test_every_form_is_read(size: tuple[int, int] | None, tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {"segmentation": [TRIANGLE], "bbox": [10, 10, 20, 20]},
        {"segmentation": {"size": [80, 100], "counts": COUNTS}},
        {"segmentation": {"size": [80, 100], "counts": runs(SQUARE)}, "bbox": [40, 20, 5, 10], "area": 30},
        {"segmentation": [TRIANGLE, [90, 70, 120, 70, 120, 90, 90, 90]], "bbox": [10, 10, 110, 80]},
        {"segmentation": {"size": [80, 100], "counts": runs(SQUARE)}, "bbox": [40, 20, 5, 10], "iscrowd": 1},
        {"bbox": [60, 10, 2, 3], "ignore": 1},
        {"segmentation": [[50, 50, 50, 50, 50, 50]], "bbox": [50, 50, 9, 9]},
        size=size,
    )
    data = AnnotatedImages(file, masks=True)
    (entry,) = data.entries
    drawn = [decode(mask.rle()).numpy() for mask in entry.masks]
    first = coco.decode(coco.frPyObjects([TRIANGLE], 80, 100)[0])
    corner = np.zeros((80, 100), dtype=np.uint8)
    corner[70:, 90:] = 1
    for got, expected in zip(drawn, (first, SQUARE, SQUARE, first | corner), strict=True):
        assert np.array_equal(got, expected)
    assert entry.boxes.tolist() == [[10, 10, 30, 30], [40, 20, 45, 30], [40, 20, 45, 30], [10, 10, 100, 80]]
    assert entry.areas.tolist() == [first.sum(), 50, 30, first.sum() + 100]
    crowd, box = (decode(mask.rle()).numpy() for mask in entry.crowd_masks)
    assert np.array_equal(crowd, SQUARE)
    assert [tuple(place) for place in np.argwhere(box)] == [(y, x) for y in (10, 11, 12) for x in (60, 61)]
    assert entry.left_out == 1
    assert data.notes[0].endswith("boxes are left out: annotations[6] (id 16): no pixel of its mask inside its image")
    plain = AnnotatedImages(file)
    assert (plain.masks, plain.entries[0].masks) == (False, ())
    assert plain.entries[0].left_out == 0
    assert plain.digest() != data.digest()


def test_masks_go_with_their_boxes_when_classes_are_chosen(tmp_path: Path) -> None:
    data = AnnotatedImages(write_scenes(tmp_path, 2), masks=True)
    entry = data.entries[0]._replace(labels=torch.tensor([1, 2, 1, 2]), crowds=torch.ones(1, 4))
    entry = entry._replace(crowd_labels=torch.tensor([2]), crowd_masks=entry.masks[:1])
    data.entries, data.classes = [entry], ["egg", "stone"]
    kept = data.with_classes(["stone"], [1], {2: 1}).entries[0]
    assert kept.masks == (entry.masks[1], entry.masks[3])
    assert kept.crowd_masks == entry.crowd_masks
    assert data.with_classes(["egg"], [1], {1: 1}).entries[0].crowd_masks == ()


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({}, "segmentation: got null; expected polygons, each a list"),
        ({"segmentation": []}, r"segmentation: got \[\]; expected polygons"),
        ({"segmentation": [[1, 2, 3, 4]]}, r"segmentation: got \[1, 2, 3, 4\]; expected polygons"),
        (
            {"segmentation": [[1, 2, 3, 4, 5, 1e9]]},
            r"segmentation: got the point \[5.0, 1000000000.0\]; expected points",
        ),
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, r"segmentation: got the point \[5.0, nan\]; expected"),
        (
            {"segmentation": {"size": [8, 10], "counts": [80]}},
            r"segmentation: size: got \[8, 10\]; expected the image's",
        ),
        ({"segmentation": {"size": [80, 100], "counts": [80]}}, r"segmentation: counts: got \[80\]; expected runs"),
    ],
)
@pytest.mark.parametrize("size", [(100, 80), None])
def test_what_has_no_mask(
    annotation: dict[str, Any], message: str, size: tuple[int, int] | None, tmp_path: Path
) -> None:
    file = write(tmp_path, {"bbox": [1, 1, 5, 5], **annotation}, size=size)
    with pytest.raises(ValueError, match=rf"^{file}: annotations\[0\] \(id 10\): {message}"):
        AnnotatedImages(file, masks=True)


def attempt(file: Path) -> tuple[AnnotatedImages | None, Exception | None]:
    try:
        return AnnotatedImages(file, masks=True), None
    except ValueError as error:
        return None, error


def test_mutated_masks_are_read_or_refused(tmp_path: Path) -> None:
    """In one line, and without a crash in what draws and decodes them; what is read lies in its image."""
    chance = random.Random(6)
    good = json.loads(write_scenes(tmp_path, 1).read_text())
    read = 0
    for _ in range(MUTATIONS):
        content = copy.deepcopy(good)
        for _ in range(chance.randrange(1, 3)):
            node: Any = chance.choice(content["annotations"])
            key: Any = "segmentation"
            while isinstance(node[key], dict | list) and node[key] and chance.random() < 0.8:
                node = node[key]
                key = chance.choice(sorted(node)) if isinstance(node, dict) else chance.randrange(len(node))
            value = node[key]
            if isinstance(value, int | float) and abs(value) < 1e9 and chance.random() < 0.9:
                node[key] = value + chance.choice((-200, -1, 0.5, 1, 90))
            else:
                node[key] = copy.deepcopy(chance.choice(NASTY))
        (tmp_path / "eggs.json").write_text(json.dumps(content))
        data, refused = attempt(tmp_path / "eggs.json")
        if data is None:
            assert str(refused).startswith(f"{tmp_path / 'eggs.json'}: annotations[")
            assert len(str(refused).splitlines()) == 1
            continue
        read += 1
        for entry in data.entries:
            assert len(entry.masks) == len(entry.boxes)
            for mask in entry.masks:
                assert 0 <= mask.x < mask.x + mask.width <= 150
                assert 0 <= mask.y < mask.y + mask.height <= 120
                assert mask.pixels().sum() == mask.area > 0
    assert MUTATIONS / 10 < read < MUTATIONS * 9 / 10


def test_yolos_outlines(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (100, 80)).save(tmp_path / "images" / "a.png")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [tree]\n")
    labels = tmp_path / "labels" / "a.txt"
    labels.write_text("0 0.1 0.125 0.3 0.125 0.1 0.375\n")
    ((mask,),) = [entry.masks for entry in AnnotatedImages(tmp_path / "data.yaml", masks=True).entries]
    assert np.array_equal(decode(mask.rle()).numpy(), coco.decode(coco.frPyObjects([TRIANGLE], 80, 100)[0]))
    labels.write_text("0 0.5 0.5 0.25 0.25\n")
    with pytest.raises(ValueError, match=r"a\.txt: line 1: got a box; expected class and the points of an outline"):
        AnnotatedImages(tmp_path / "data.yaml", masks=True)
    (tmp_path / "boxes.csv").write_text("image_path,xmin,ymin,xmax,ymax,label\nimages/a.png,1,1,5,5,tree\n")
    with pytest.raises(ValueError, match="has boxes only; masks are in COCO's JSON"):
        AnnotatedImages(tmp_path / "boxes.csv", masks=True)


@pytest.mark.parametrize("profile", ["aerial", "upright", "none"])
def test_masks_are_cut_turned_and_enlarged_with_their_image(profile: str, tmp_path: Path) -> None:
    """Objects are white on black, so that a view's pixels say where its masks must be, but for blurred edges."""
    white = np.zeros((120, 150), dtype=bool)
    shapes = [(10, 10, 50, 40), (70, 20, 130, 90), (20, 70, 60, 118)]
    for box in shapes:
        white |= ellipse(120, 150, box)
    file = write_scenes(tmp_path, 1)
    Image.fromarray(np.repeat(white[..., None] * np.uint8(255), 3, 2)).save(tmp_path / "0.png")
    content = json.loads(file.read_text())
    content["annotations"] = [
        {"id": k, "image_id": 0, "category_id": 7, "segmentation": {"size": [120, 150], "counts": runs(each)}}
        for k, each in enumerate(ellipse(120, 150, box) for box in shapes)
    ]
    file.write_text(json.dumps(content))
    (entry,) = AnnotatedImages(file, masks=True).entries
    torch.manual_seed(4)
    kept = 0
    for _ in range(30):
        sight = augment(Photo(entry.file), entry, 96, augmentation(profile, colour=0))
        assert sight.masks.shape == (len(sight.boxes), 96, 96)
        for box, mask in zip(sight.boxes, sight.masks.bool(), strict=True):
            kept += 1
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            around = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert (around - box).abs().max() <= 2.5  # a pixel of the photo, enlarged
            assert sight.image[0][mask].mean() > 0.9
        if len(sight.boxes) == len(shapes):
            bright = sight.image[0] > 0.5
            union = sight.masks.bool().any(0)
            assert (bright & union).sum() / (bright | union).sum() > 0.93
    assert kept > 20


def test_views_without_objects_have_masks_all_the_same(tmp_path: Path) -> None:
    file = write_scenes(tmp_path, 1)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": []}))
    (tmp_path / "0.png").write_bytes(b"no image" + (tmp_path / "0.png").read_bytes()[8:])
    data = AnnotatedImages(write_scenes(tmp_path / "b", 1), masks=True)
    data.entries = [entry._replace(masks=(), boxes=entry.boxes[:0], labels=entry.labels[:0]) for entry in data.entries]
    views = TrainingViews(data, 64, 0, augmentation("aerial"))
    assert views[View(0, 0, 0)].target["masks"].shape == (0, 64, 64)
    data.entries = [entry._replace(file=tmp_path / "0.png") for entry in data.entries]
    damaged = views[View(0, 0, 0)]
    assert damaged.fault
    assert damaged.target["masks"].shape == (0, 64, 64)


def test_masks_are_judged_as_coco_judges_them(tmp_path: Path) -> None:
    """Boxes that are right with grids of any quality, against COCO's evaluator fed with whole masks."""
    data = AnnotatedImages(write_scenes(tmp_path, 3), masks=True)
    generator = torch.Generator().manual_seed(5)
    found = {}
    results: list[dict[str, Any]] = []
    for entry in data.entries:
        place = (torch.arange(GRID) + 0.5) / GRID - 0.5
        size = torch.rand(len(entry.boxes), 1, 1, generator=generator) * 0.3 + 0.25
        grids = ((size - (place**2 + place[:, None] ** 2).sqrt()) * 20).sigmoid()
        scores = torch.rand(len(entry.boxes), generator=generator).sort(descending=True)[0]
        found[entry.id] = Found(entry.boxes, scores, entry.labels, grids)
        for grid, box, score in zip(grids, entry.boxes.tolist(), scores.tolist(), strict=True):
            patch = paste(grid, box, 150, 120)
            full = np.zeros((120, 150), dtype=np.uint8, order="F")
            full[patch.y : patch.y + len(patch.inside), patch.x : patch.x + patch.inside.shape[1]] = patch.inside
            mask = coco.encode(full)
            results.append({"image_id": entry.id, "category_id": 7, "score": score, "segmentation": mask})
    report = evaluate_found(data, found)
    truth = json.loads((tmp_path / "eggs.json").read_text())
    for annotation in truth["annotations"]:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            segmentation = coco.frPyObjects(segmentation, 120, 150)[0]
        else:
            segmentation = coco.frPyObjects(segmentation, 120, 150)
        annotation |= {"segmentation": segmentation, "area": float(coco.area(segmentation))}
    known = COCO({"info": {}, **truth})
    judge = COCOeval_faster(known, known.loadRes(results), "segm")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert 0.2 < judge.stats[0] < 0.9
    for name, value in zip(("AP", "AP50", "AP75"), judge.stats[:3], strict=True):
        assert report.metrics[f"mask_{name}"] == pytest.approx(float(value)), name
    assert report.metrics["AP"] == pytest.approx(1)
    cells = [list(column.cells) for column in metrics_table(data, report).columns]
    assert [cells[1][0], cells[2][0]] == ["1.000", f"{judge.stats[0]:.3f}"]
    without = evaluate_found(data, {key: each._replace(grids=None) for key, each in found.items()})
    assert not any(name.startswith("mask_") for name in without.metrics)
    nothing = Found(torch.empty(0, 4), torch.empty(0), torch.empty(0).long(), torch.empty(0, GRID, GRID))
    assert evaluate_found(data, dict.fromkeys(found, nothing)).metrics["mask_AP"] == 0
    data.classes, data.category_ids = ["egg", "stone"], [7, 8]
    table = classes_table(data, evaluate_found(data, found), torch.ones(3, 3))
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["mask_AP"] == [f"{judge.stats[0]:.3f}", "-"]
