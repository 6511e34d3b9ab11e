"""``roialign convert`` keeps masks: as COCO's own decoder has those of the source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco

from annotated import SCENES, paint
from masked import write_scenes
from roialign.detection.datasets import AnnotatedImages
from test_detection_formats import run, said

Array = np.ndarray[Any, np.dtype[Any]]


def decoded(segmentation: Any, height: int, width: int) -> Array:
    """A mask by COCO's own functions, whatever form it has."""
    if isinstance(segmentation, list):
        return np.maximum.reduce([coco.decode(each) for each in coco.frPyObjects(segmentation, height, width)])
    packed = isinstance(segmentation["counts"], str)
    return np.asarray(coco.decode(segmentation if packed else coco.frPyObjects(segmentation, height, width)))


def test_polygons_and_runs_keep_their_pixels(tmp_path: Path) -> None:
    source = write_scenes(tmp_path / "set", 2)
    content = json.loads(source.read_text())
    content["annotations"][1] |= {"iscrowd": 1}
    content["annotations"][2] |= {"iscrowd": 1, "segmentation": None}  # a crowd may be its box
    source.write_text(json.dumps(content))
    out = tmp_path / "new.json"
    result = run("convert", source, "--out", out)
    assert result.exit_code == 0, said(result)
    assert "2 images, 6 boxes with their masks, 1 classes" in said(result)
    assert "no masks" not in said(result)
    written = {(each["image_id"], tuple(each["bbox"])): each for each in json.loads(out.read_text())["annotations"]}
    assert len(written) == 8
    for number, each in enumerate(content["annotations"]):
        again = written[each["image_id"], tuple(each["bbox"])]
        mask = decoded(again["segmentation"], 120, 150)
        if number == 2:
            x, y, width, height = each["bbox"]
            assert (mask.sum(), mask[y : y + height, x : x + width].sum()) == (width * height, width * height)
        else:
            assert np.array_equal(mask, decoded(each["segmentation"], 120, 150))
            assert again["iscrowd"] or again["area"] == mask.sum()
    for old, new in zip(*(AnnotatedImages(file, masks=True).entries for file in (source, out)), strict=True):
        for before, after in zip(old[4:9], new[4:9], strict=True):  # boxes, crowds, their labels and areas
            assert before.tolist() == after.tolist()


def test_yolos_outlines_become_masks_and_boxes_stay_boxes(tmp_path: Path) -> None:
    paint(tmp_path / "images", SCENES[:1])  # 100 x 80 pixels
    (tmp_path / "labels").mkdir()
    labels = tmp_path / "labels" / (Path(SCENES[0].name).stem + ".txt")
    points = [10, 10, 50, 10, 50, 40, 10, 40]
    row = " ".join(str(value / side) for value, side in zip(points, (100, 80) * 4, strict=True))
    labels.write_text(f"0 {row}\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [tree]\n")
    result = run("convert", tmp_path / "data.yaml", "--out", tmp_path / "masks.json")
    assert "1 boxes with their masks" in said(result)
    (record,) = json.loads((tmp_path / "masks.json").read_text())["annotations"]
    expected = np.zeros((80, 100))
    expected[10:40, 10:50] = 1
    assert np.array_equal(decoded(record["segmentation"], 80, 100), expected)
    assert (record["bbox"], record["area"]) == ([10, 10, 40, 30], 1200)

    labels.write_text(f"0 {row}\n0 0.5 0.5 0.2 0.2\n")  # a box among outlines
    result = run("convert", tmp_path / "data.yaml", "--out", tmp_path / "boxes.json")
    assert result.exit_code == 0, said(result)
    assert "line 2: got a box; expected class and the points of an outline" in said(result).split("no masks: ")[1]
    assert ": 1 images, 2 boxes, 1 classes" in said(result)
    records = json.loads((tmp_path / "boxes.json").read_text())["annotations"]
    assert [each.keys() & {"segmentation"} for each in records] == [set(), set()]

    labels.write_text("0 0.5 0.5 0.2\n")  # wrong whatever is wanted
    result = run("convert", tmp_path / "data.yaml", "--out", tmp_path / "none.json")
    assert result.exit_code == 1
    assert "line 1: got 4 numbers" in said(result)
    assert not (tmp_path / "none.json").exists()
