"""COCO's measures of a detector, by faster-coco-eval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from .data import CocoData, Entry
from .tiles import Found

MOST = 1000  # detections that count per image; COCO's own 100 is fewer than there are trees in a photo
AREAS = {"s": "small", "m": "medium", "l": "large"}


@dataclass
class Report:
    """What an evaluation found.

    Attributes:
        metrics: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, AR, ARs, ARm, ARl as COCO defines them, with up to
            ``max_detections`` per image in all but AR1, AR10 and AR100 (NaN where there are no such boxes); AP_<class>
            of each class if there are several; and precision, recall and F1 at IoU 0.5 above ``score_threshold``, the
            score with the best F1.
        curve: recall, precision and score at IoU 0.5 over all detections, best score first, ``[3, N]``.
        found: the detections of each image, by the image's id.
    """

    metrics: dict[str, float]
    curve: Tensor
    found: dict[int, Found] = field(repr=False)

    def as_json(self) -> dict[str, float | None]:
        """The metrics as JSON can hold them: None for NaN."""
        return {name: None if math.isnan(value) else value for name, value in self.metrics.items()}


def evaluate_found(data: CocoData, found: dict[int, Found]) -> Report:
    """Judge detections against a data set.

    Args:
        data: the truth.
        found: detections by image id, from :func:`roialign.detection.detect`; images that are not named are not judged.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    judged = [entry for entry in data.entries if entry.id in found]
    truth = COCO(_truth(data, judged), print_function=_silent)
    results = [
        {
            "image_id": image,
            "category_id": data.category_ids[int(label) - 1],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(score),
        }
        for image, each in found.items()
        for (x1, y1, x2, y2), score, label in zip(each.boxes.tolist(), each.scores, each.labels, strict=True)
    ]
    curve = precision_recall(judged, found)
    if not results:
        nothing = dict.fromkeys(_names(data.classes), 0.0)
        return Report(_with_counts(nothing, data, judged, curve), curve, found)
    judge = COCOeval_faster(truth, truth.loadRes(results), "bbox", print_function=_silent)
    judge.params.imgIds = [entry.id for entry in judged]
    judge.params.maxDets = [1, 10, 100, MOST]
    judge.evaluate()
    judge.accumulate()
    precision, recall = judge.eval["precision"], judge.eval["recall"]  # [T, R, K, A, M], [T, K, A, M]
    areas = {label: index for index, label in enumerate(judge.params.areaRngLbl)}
    overall = areas["all"]
    values = {
        "AP": precision[:, :, :, overall, -1],
        "AP50": precision[0, :, :, overall, -1],
        "AP75": precision[5, :, :, overall, -1],
        **{f"AP{short}": precision[:, :, :, areas[name], -1] for short, name in AREAS.items()},
        **{f"AR{most}": recall[:, :, overall, index] for index, most in enumerate((1, 10, 100))},
        "AR": recall[:, :, overall, -1],
        **{f"AR{short}": recall[:, :, areas[name], -1] for short, name in AREAS.items()},
    }
    if len(data.classes) > 1:
        values |= {f"AP_{name}": precision[:, :, index, overall, -1] for index, name in enumerate(data.classes)}
    return Report(
        _with_counts({name: _mean(array) for name, array in values.items()}, data, judged, curve), curve, found
    )


def precision_recall(entries: Sequence[Entry], found: dict[int, Found], iou: float = 0.5) -> Tensor:
    """Recall, precision and score after each detection, best score first, ``[3, N]``."""
    hits, scores = [torch.empty(0, dtype=torch.bool)], [torch.empty(0)]
    total = 0
    for entry in entries:
        each = found[entry.id]
        total += len(entry.boxes)
        hit = match(each, entry, iou)[0] >= 0
        counts = hit | ~within_crowds(each.boxes, entry, iou)
        hits.append(hit[counts])
        scores.append(each.scores[counts])
    score, order = torch.cat(scores).sort(descending=True, stable=True)
    right = torch.cat(hits)[order].cumsum(0)
    return torch.stack([right / max(1, total), right / torch.arange(1, len(score) + 1), score])


def match(found: Found, entry: Entry, iou: float = 0.5) -> tuple[Tensor, Tensor]:
    """Give each true box to the best-scored detection that overlaps it enough, as COCO does.

    Returns:
        For each detection the index of its true box, or -1; and for each true box that of its detection, or -1.
    """
    overlap = box_iou(found.boxes, entry.boxes) * (found.labels[:, None] == entry.labels)
    to_truth = torch.full((len(found.boxes),), -1)
    to_found = torch.full((len(entry.boxes),), -1)
    if len(entry.boxes):
        for index in found.scores.argsort(descending=True, stable=True).tolist():
            best, truth = torch.where(to_found < 0, overlap[index], 0).max(0)
            if best >= iou:
                to_truth[index], to_found[truth] = truth, index
    return to_truth, to_found


def within_crowds(boxes: Tensor, entry: Entry, part: float = 0.5) -> Tensor:
    """Which boxes lie in one of the image's crowds by at least ``part`` of their area, ``[N]`` bool."""
    low = torch.maximum(boxes[:, None, :2], entry.crowds[:, :2])
    high = torch.minimum(boxes[:, None, 2:], entry.crowds[:, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None]
    return ((high - low).clamp(min=0).prod(2) >= part * area).any(1)


def _truth(data: CocoData, entries: Sequence[Entry]) -> dict[str, Any]:
    """The data set with what COCO's evaluator wants to be there, and only the images in question."""
    judged = {entry.id for entry in entries}
    annotations = [
        {"iscrowd": 0, **annotation, "id": number, "area": annotation.get("area", _area(annotation["bbox"]))}
        for number, annotation in enumerate(data.content["annotations"], 1)
        if annotation["image_id"] in judged
    ]
    images = [image for image in data.content["images"] if image["id"] in judged]
    return {"info": {}, "images": images, "annotations": annotations, "categories": data.content["categories"]}


def _area(bbox: Sequence[float]) -> float:
    return float(bbox[2] * bbox[3])


def _names(classes: Sequence[str]) -> list[str]:
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "AR", "ARs", "ARm", "ARl"]
    return names + ([f"AP_{name}" for name in classes] if len(classes) > 1 else [])


def _with_counts(
    metrics: dict[str, float], data: CocoData, entries: Sequence[Entry], curve: Tensor
) -> dict[str, float]:
    recall, precision, score = curve
    f1 = 2 * recall * precision / (recall + precision).clamp(min=1e-9)
    best = int(f1.argmax()) if len(f1) else None
    names = {"precision": precision, "recall": recall, "F1": f1, "score_threshold": score}
    counts = {"images": len(entries), "boxes": sum(len(entry.boxes) for entry in entries), "max_detections": MOST}
    return metrics | {name: 0.0 if best is None else float(row[best]) for name, row in names.items()} | counts


def _mean(values: np.ndarray[Any, Any]) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")


def _silent(*_: object) -> None:
    """The evaluator's own prints are not for our users."""
