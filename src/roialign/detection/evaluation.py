"""COCO's measures of a detector, by faster-coco-eval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from .datasets import AnnotatedImages, Entry, ImageId
from .masks import encode_all
from .tiles import Found

IOUS = np.array([0.4, *np.linspace(0.5, 0.95, 10)])  # COCO's ten, and one below for truths that are roughly drawn
AREAS = ("small", "medium", "large")
MASKS = "mask_"  # before the names of the measures that go by the overlap of masks
PER_CLASS = ("AP", "AP40", "AP50")  # measured of each class


@dataclass
class Report:
    """What an evaluation found.

    All measures have one truth: the boxes cut to their images, those without area left out, crowds apart; and one set
    of detections: all that the model gives, as many as there are.

    Attributes:
        metrics: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, AR, ARs, ARm, ARl as COCO defines them, but without a
            limit of detections per image in all but AR1, AR10 and AR100 (NaN where there are no such boxes); AP40, the
            same at IoU 0.4; AP_<class>, AP40_<class> and AP50_<class> of each class if there are several; precision,
            recall and F1 at IoU 0.5 above ``score_threshold``, half way from the score with the best F1 to the next
            lower one or to 0, and ``mean_iou`` of the detections that are right there with their true boxes (NaN if
            none is); and the numbers of ``images``, ``boxes`` and ``max_detections``, the most in one image. Of masks,
            where both data and detections have them, all to AP50_<class> once more by the overlap of masks, with
            ``mask_`` before the name.
        curve: recall, precision and score at IoU 0.5 over all detections, best score first, ``[3, N]``.
        found: the detections of each image, by the image's id.
    """

    metrics: dict[str, float]
    curve: Tensor
    found: Mapping[ImageId, Found] = field(repr=False)

    def as_json(self) -> dict[str, float | None]:
        """The metrics as JSON can hold them: None for NaN."""
        return {name: None if math.isnan(value) else value for name, value in self.metrics.items()}


def evaluate_found(data: AnnotatedImages, found: Mapping[ImageId, Found]) -> Report:
    """Judge detections against a data set.

    Args:
        data: the truth.
        found: detections by image id, from :func:`roialign.detection.detect`; images that are not named are not judged.
    """
    judged = [entry for entry in data.entries if entry.id in found]
    kinds = {"": "bbox"}
    if data.masks and all(each.grids is not None for each in found.values()):
        kinds[MASKS] = "segm"
    scores = {
        f"{prefix}{name}": value
        for prefix, kind in kinds.items()
        for name, value in _scores(data, judged, found, kind).items()
    }
    return Report(*_at_best(scores, judged, found), found)


def _scores(
    data: AnnotatedImages, judged: Sequence[Entry], found: Mapping[ImageId, Found], kind: str
) -> dict[str, float]:
    """COCO's measures by the overlap of boxes or of masks: ``kind`` is ``"bbox"`` or ``"segm"``."""
    from faster_coco_eval import COCO, COCOeval_faster

    results = _results(judged, found, kind)
    if not results:
        return dict.fromkeys(_names(data), 0.0)
    truth = COCO(_truth(judged, len(data.classes), kind), print_function=_silent)
    judge = COCOeval_faster(truth, truth.loadRes(results), kind, print_function=_silent)
    judge.params.iouThrs = IOUS
    judge.params.maxDets = [1, 10, 100, max(101, _most(found))]
    judge.evaluate()
    judge.accumulate()
    lower, precision = np.split(judge.eval["precision"], [1])  # [T, R, K, A, M] each: IoU 0.4, and COCO's
    recall = judge.eval["recall"][1:]  # [T, K, A, M]
    areas = {label: index for index, label in enumerate(judge.params.areaRngLbl)}
    overall = areas["all"]
    values = [
        precision[:, :, :, overall, -1],
        lower[0, :, :, overall, -1],
        precision[0, :, :, overall, -1],
        precision[5, :, :, overall, -1],
        *(precision[:, :, :, areas[name], -1] for name in AREAS),
        *(recall[:, :, overall, index] for index in range(3)),
        recall[:, :, overall, -1],
        *(recall[:, :, areas[name], -1] for name in AREAS),
        *(
            part[..., index, overall, -1]
            for part in (precision, lower, precision[:1])
            for index in range(len(data.classes))
        ),
    ]
    names = _names(data)  # without those of the classes if there is one
    return {name: _mean(array) for name, array in zip(names, values, strict=False)}


def precision_recall(entries: Sequence[Entry], found: Mapping[ImageId, Found], iou: float = 0.5) -> Tensor:
    """Recall, precision and score after each detection, best score first, ``[3, N]``."""
    hits, scores = [torch.empty(0, dtype=torch.bool)], [torch.empty(0)]
    total = 0
    for entry in entries:
        each = found[entry.id]
        total += len(entry.boxes)
        hit = match(each, entry, iou)[0] >= 0
        counts = hit | ~within_crowds(each, entry, iou)
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


def within_crowds(found: Found, entry: Entry, part: float = 0.5) -> Tensor:
    """Which detections lie in a crowd of their class by at least ``part`` of their area, ``[N]`` bool."""
    low = torch.maximum(found.boxes[:, None, :2], entry.crowds[:, :2])
    high = torch.minimum(found.boxes[:, None, 2:], entry.crowds[:, 2:])
    area = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1)[:, None]
    inside = (high - low).clamp(min=0).prod(2) >= part * area
    return (inside & (found.labels[:, None] == entry.crowd_labels)).any(1)


def _truth(entries: Sequence[Entry], classes: int, kind: str) -> dict[str, Any]:
    """The entries for COCO's evaluator, which wants numbers as ids: an image's place, a class's label."""
    annotations: list[dict[str, Any]] = []
    for image, entry in enumerate(entries):
        objects = zip(entry.boxes.tolist(), entry.labels.tolist(), entry.areas.tolist(), strict=True)
        parts = [(box, label, area, 0) for box, label, area in objects]
        parts += [
            (box, label, 0.0, 1) for box, label in zip(entry.crowds.tolist(), entry.crowd_labels.tolist(), strict=True)
        ]
        drawn: list[dict[str, Any]] = [{}] * len(parts)
        if kind == "segm":
            drawn = [{"segmentation": mask.rle()} for mask in (*entry.masks, *entry.crowd_masks)]
        annotations += [
            {
                "id": len(annotations) + number,
                "image_id": image,
                "category_id": label,
                "bbox": _xywh(box),
                "area": area,
                "iscrowd": crowd,
                **mask,
            }
            for number, ((box, label, area, crowd), mask) in enumerate(zip(parts, drawn, strict=True), 1)
        ]
    images = [{"id": image, "width": entry.width, "height": entry.height} for image, entry in enumerate(entries)]
    categories = [{"id": label, "name": str(label)} for label in range(1, classes + 1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _results(entries: Sequence[Entry], found: Mapping[ImageId, Found], kind: str) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for image, entry in enumerate(entries):
        each = found[entry.id]
        if kind == "segm":  # and no box, whose area would count as the mask's
            shapes: list[dict[str, Any]] = [
                {"segmentation": mask} for mask in encode_all(each, entry.width, entry.height)
            ]
        else:
            shapes = [{"bbox": _xywh(box)} for box in each.boxes.tolist()]
        results += [
            {"image_id": image, "category_id": label, "score": score, **shape}
            for score, label, shape in zip(each.scores.tolist(), each.labels.tolist(), shapes, strict=True)
        ]
    return results


def _xywh(box: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def class_names(data: AnnotatedImages) -> list[str]:
    """The classes, told by their ids where their names do not do."""
    often = Counter(data.classes)
    classes = zip(data.classes, data.category_ids, strict=True)
    return [name if often[name] == 1 else f"{name} ({number})" for name, number in classes]


def _names(data: AnnotatedImages) -> list[str]:
    """Of the measures that COCO's evaluator gives, in order."""
    names = ["AP", "AP40", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "AR", "ARs", "ARm", "ARl"]
    if len(data.classes) == 1:
        return names
    return names + [f"{measure}_{name}" for measure in PER_CLASS for name in class_names(data)]


def _at_best(
    metrics: dict[str, float], entries: Sequence[Entry], found: Mapping[ImageId, Found]
) -> tuple[dict[str, float], Tensor]:
    """The metrics with those at the score of the best F1, and the curve that this score was found on."""
    curve = precision_recall(entries, found)
    recall, precision, score = curve
    f1 = 2 * recall * precision / (recall + precision).clamp(min=1e-9)
    lower = torch.cat([score[1:], score.new_zeros(len(score[:1]))])
    # No threshold parts equal scores, and at a score itself another machine's rounding would decide on its detection.
    f1 = torch.where(lower < score, f1, 0)
    rows = {"precision": precision, "recall": recall, "F1": f1, "score_threshold": (score + lower) / 2}
    best = int(f1.argmax()) if len(f1) else None
    at_best = {name: 0.0 if best is None else float(row[best]) for name, row in rows.items()}
    mean_iou = _mean_iou(entries, found, at_best["score_threshold"])
    counts = {"images": len(entries), "boxes": sum(len(entry.boxes) for entry in entries)}
    return metrics | at_best | {"mean_iou": mean_iou} | counts | {"max_detections": _most(found)}, curve


def _mean_iou(entries: Sequence[Entry], found: Mapping[ImageId, Found], least: float) -> float:
    """Of the right detections of at least this score with their true boxes; NaN if there are none."""
    overlaps = [torch.empty(0)]
    for entry in entries:
        each = found[entry.id].above(least)
        to_truth, _ = match(each, entry)
        hit = to_truth >= 0
        overlaps.append(box_iou(each.boxes[hit], entry.boxes[to_truth[hit]]).diagonal())
    return float(torch.cat(overlaps).mean())


def _most(found: Mapping[ImageId, Found]) -> int:
    return max((len(each.boxes) for each in found.values()), default=0)


def _mean(values: np.ndarray[Any, Any]) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")


def _silent(*_: object) -> None:
    """The evaluator's own prints are not for our users."""
