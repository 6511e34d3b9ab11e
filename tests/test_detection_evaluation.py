"""One truth for all measures: hand-worked numbers for boxes over the edge, without area, crowds, odd ids."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from roialign.detection.datasets import AnnotatedImages
from roialign.detection.evaluation import Report, evaluate_found, match, precision_recall, within_crowds
from roialign.detection.tiles import Found

GOOD = [10, 10, 20, 20]


def coco(folder: Path, annotations: list[dict[str, Any]], ids: tuple[Any, ...] = (1,), **more: Any) -> AnnotatedImages:
    """Images of 100 x 80 pixels; the annotations are of the first image and category where they do not say."""
    Image.new("RGB", (100, 80)).save(folder / "blank.png")
    content: dict[str, Any] = {
        "images": [{"id": each, "file_name": "blank.png", "width": 100, "height": 80} for each in ids],
        "annotations": [
            {"id": i, "image_id": ids[0], "category_id": 1, "iscrowd": 0, **each}
            for i, each in enumerate(annotations, 1)
        ],
        "categories": [{"id": 1, "name": "tree"}],
    } | more
    (folder / "coco.json").write_text(json.dumps(content))
    return AnnotatedImages(folder / "coco.json")


def found(*rows: tuple[float, ...]) -> Found:
    """Rows of x1, y1, x2, y2, score and perhaps a label."""
    table = torch.tensor([row if len(row) == 6 else (*row, 1) for row in rows]).reshape(-1, 6)
    return Found(table[:, :4], table[:, 4], table[:, 5].long())


@pytest.mark.parametrize(
    ("bbox", "seen", "left_out"),
    [
        ([50, 50, 0, 10], None, 1),
        ([50, 50, 10, -10], None, 1),
        ([500, 5, 10, 10], None, 1),
        ([5, 80, 10, 10], None, 1),  # begins where the image ends
        ([-20, 10, 50, 20], (0, 10, 30, 30), 0),
        ([90, 70, 1e6, 1e6], (90, 70, 100, 80), 0),
        ([-5, -5, 200, 200], (0, 0, 100, 80), 0),
    ],
)
def test_a_perfect_detector_has_one_in_every_measure(
    bbox: list[float], seen: tuple[float, ...] | None, left_out: int, tmp_path: Path
) -> None:
    data = coco(tmp_path, [{"bbox": [40, 40, 8, 8], "area": 64}, {"bbox": bbox, "area": 300}])
    rows = [(40, 40, 48, 48, 0.9)] + ([(*seen, 0.8)] if seen else [])
    metrics = evaluate_found(data, {1: found(*rows)}).metrics
    assert (data.left_out, metrics["boxes"]) == (left_out, 2 - left_out)
    for name in ("AP", "AP40", "AP50", "AP75", "APs", "AR", "ARs", "precision", "recall", "F1", "mean_iou"):
        assert metrics[name] == pytest.approx(1), name


def test_an_objects_size_is_its_area_within_the_image(tmp_path: Path) -> None:
    """COCO's small ends at 32 x 32: a thin object in a large box is small, so is a large box that is mostly outside."""
    data = coco(tmp_path, [{"bbox": [0, 0, 50, 50], "area": 900}, {"bbox": [-60, 60, 70, 20], "area": 1400}])
    metrics = evaluate_found(data, {1: found((0, 0, 50, 50, 0.9), (0, 60, 10, 80, 0.8))}).metrics
    assert metrics["ARs"] == pytest.approx(1)
    assert math.isnan(metrics["ARm"])


def test_a_crowd_excuses_detections_of_its_own_class_only(tmp_path: Path) -> None:
    both = [{"id": 7, "name": "bush"}, {"id": 3, "name": "tree"}]
    boxes = [{"bbox": GOOD, "category_id": 3}, {"bbox": GOOD, "category_id": 7}]
    crowd = {"bbox": [50, 0, 50, 80], "category_id": 7, "iscrowd": 1}
    data = coco(tmp_path, [*boxes, crowd], categories=both)
    rows = [(10, 10, 30, 30, 0.5, 1), (10, 10, 30, 30, 0.5, 2), (60, 20, 80, 40, 0.9, 1), (60, 20, 80, 40, 0.8, 2)]
    report = evaluate_found(data, {1: found(*rows)})
    assert report.metrics["AP_bush"] == pytest.approx(1)
    assert report.metrics["AP_tree"] == pytest.approx(0.5)  # the false one comes first
    assert within_crowds(report.found[1], data.entries[0]).tolist() == [False, False, False, True]
    assert report.metrics["precision"] == pytest.approx(2 / 3)
    assert report.curve.shape[1] == 3


@pytest.mark.parametrize("ids", [("north/1", "süd"), (2**60, -4)])
def test_images_and_classes_keep_the_ids_of_the_file(ids: tuple[Any, ...], tmp_path: Path) -> None:
    annotations = [{"bbox": GOOD, "image_id": ids[1], "category_id": 90}]
    data = coco(tmp_path, annotations, ids, categories=[{"id": 90, "name": "tree"}, {"id": 12, "name": "bush"}])
    report = evaluate_found(data, {ids[0]: found(), ids[1]: found((10, 10, 30, 30, 0.5, 2))})
    assert report.metrics["AP"] == pytest.approx(1)
    assert report.found.keys() == set(ids)


def test_classes_of_one_name_are_told_by_their_ids(tmp_path: Path) -> None:
    annotations = [{"bbox": GOOD, "category_id": 4}]
    data = coco(tmp_path, annotations, categories=[{"id": 4, "name": "tree"}, {"id": 5, "name": "tree"}])
    for rows, expected in ((((10, 10, 30, 30, 0.5, 1),), 1), ((), 0)):
        metrics = evaluate_found(data, {1: found(*rows)}).metrics
        assert metrics["AP_tree (4)"] == pytest.approx(expected)
        assert "AP_tree (5)" in metrics


def test_every_detection_counts_however_many_there_are(tmp_path: Path) -> None:
    """Of 1,100 detections the one that is right comes last: precision 1 / 1100, in AP as in the curve."""
    data = coco(tmp_path, [{"bbox": GOOD}], categories=[{"id": 1, "name": "tree"}, {"id": 2, "name": "bush"}])
    rows = [(60.0, 40.0, 70.0, 50.0, 0.9)] * 1099 + [(10.0, 10.0, 30.0, 30.0, 0.1)]
    metrics = evaluate_found(data, {1: found(*rows)}).metrics
    for name in ("AP", "AP40", "AP50", "AP75", "APs", "AP_tree", "precision"):
        assert metrics[name] == pytest.approx(1 / 1100), name
    assert [metrics[name] for name in ("AR", "ARs", "AR100")] == pytest.approx([1, 1, 0])
    assert metrics["max_detections"] == 1100


@pytest.mark.parametrize("place", [1, 2, 10, 11, 100, 101])
def test_the_recall_of_the_first_detections_asks_no_further(place: int, tmp_path: Path) -> None:
    rows = [(60, 40, 70, 50, 0.9)] * (place - 1) + [(10, 10, 30, 30, 0.1)]
    metrics = evaluate_found(coco(tmp_path, [{"bbox": GOOD}]), {1: found(*rows)}).metrics
    for most in (1, 10, 100):
        assert metrics[f"AR{most}"] == pytest.approx(int(place <= most))
    assert metrics["AR"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("shift", "right"),  # of a box 40 wide: IoU 35/45, 34/46, 27/53, 23/57
    [(5, ("AP40", "AP50", "AP75")), (6, ("AP40", "AP50")), (13, ("AP40", "AP50")), (17, ("AP40",))],
)
def test_each_threshold_is_where_its_name_says(shift: int, right: tuple[str, ...], tmp_path: Path) -> None:
    data = coco(tmp_path, [{"bbox": [10, 10, 40, 20]}])
    report = evaluate_found(data, {1: found((10 + shift, 10, 50 + shift, 30, 0.9))})
    for name in ("AP40", "AP50", "AP75"):
        assert report.metrics[name] == pytest.approx(int(name in right)), name
    assert "AP_tree" not in report.metrics  # of a single class it would be AP again
    assert "Found" not in repr(report)  # thousands of boxes


def test_half_is_enough_and_another_class_is_not(tmp_path: Path) -> None:
    """An IoU of exactly 0.5 is a match, as COCO says."""
    entry = coco(tmp_path, [{"bbox": [10, 40, 20, 20]}, {"bbox": [60, 40, 20, 20]}]).entries[0]
    to_truth, to_found = match(found((60, 40, 80, 50, 0.9), (10, 40, 30, 60, 0.8, 2), (60, 40, 80, 60, 0.7)), entry)
    assert (to_truth.tolist(), to_found.tolist()) == ([1, -1, -1], [-1, 0])


def test_a_crowd_excuses_what_lies_in_it_by_half(tmp_path: Path) -> None:
    entry = coco(tmp_path, [{"bbox": [20, 10, 60, 35], "iscrowd": 1}]).entries[0]
    boxes = [
        (30, 40, 50, 50, 0.9),  # to exactly a half
        (30, 41, 50, 51, 0.9),  # to 0.4
        (10, 50, 11, 51, 0.9),  # one pixel, left of it and below
        (10, 40, 30, 44, 0.9),  # to a half, from the left
    ]
    assert within_crowds(found(*boxes), entry).tolist() == [True, False, False, True]


def test_detections_where_nothing_is_have_no_recall(tmp_path: Path) -> None:
    data = coco(tmp_path, [{"bbox": GOOD}], ids=(1, 2))
    curve = precision_recall(data.entries[1:], {2: found((10, 10, 30, 30, 0.75))})
    assert curve.tolist() == [[0], [0], [0.75]]
    both = {1: found(*[(50, 50, 60, 60, 0.5)] * 3), 2: found((10, 10, 30, 30, 0.75))}
    assert evaluate_found(data, both).metrics["max_detections"] == 3
    assert evaluate_found(data, {}).metrics["max_detections"] == 0


def shifted(folder: Path) -> Report:
    """IoU 320 / 480 = 0.67, 240 / 560 = 0.43 and 160 / 640 = 0.25 with three boxes of 20 x 20."""
    data = coco(folder, [{"bbox": [x, 10, 20, 20]} for x in (0, 30, 70)])
    return evaluate_found(data, {1: found((4, 10, 24, 30, 0.9), (38, 10, 58, 30, 0.8), (82, 10, 102, 30, 0.7))})


def test_ap40_is_the_same_measure_at_a_lower_threshold(tmp_path: Path) -> None:
    metrics = shifted(tmp_path).metrics
    assert metrics["AP40"] == pytest.approx(67 / 101)  # recall 2/3 at precision 1, of 101 points
    assert metrics["AP50"] == pytest.approx(34 / 101)
    assert metrics["AP"] == pytest.approx(4 * 34 / 101 / 10)  # 0.5, 0.55, 0.6, 0.65


def test_the_mean_iou_is_that_of_the_right_detections(tmp_path: Path) -> None:
    assert shifted(tmp_path).metrics["mean_iou"] == pytest.approx(2 / 3)
    data = coco(tmp_path, [{"bbox": [x, 10, 20, 20]} for x in (0, 30)])
    rows = [(4, 10, 24, 30, 0.9), (32, 10, 52, 30, 0.8), (60, 60, 70, 70, 0.7)]
    assert evaluate_found(data, {1: found(*rows)}).metrics["mean_iou"] == pytest.approx((2 / 3 + 360 / 440) / 2)
    nothing = evaluate_found(data, {1: found((60, 60, 70, 70, 0.7))})
    assert math.isnan(nothing.metrics["mean_iou"])
    assert nothing.as_json()["mean_iou"] is None
