"""Which class is taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .annotations import Entry, ImageId
from .evaluation import match, within_crowds
from .tiles import Found

NOTHING, EXCUSED = 0, -1  # in place of a label


class Verdict(NamedTuple):
    """What became of an image's detections and true boxes."""

    detections: Tensor  # [N] int64: the label of the true box that each is about; NOTHING; or EXCUSED by a crowd
    truths: Tensor  # [M] int64: the label that each true box was given; NOTHING if it was missed


def judge(found: Found, entry: Entry, iou: float = 0.5) -> Verdict:
    """Give detections to true boxes of their class first, as all measures do, and the rest to any that are left."""
    to_truth, to_found = match(found, entry, iou)
    detections = torch.where(to_truth >= 0, found.labels, NOTHING)
    truths = torch.where(to_found >= 0, entry.labels, NOTHING)
    detections[(to_truth < 0) & within_crowds(found, entry, iou)] = EXCUSED
    rest, left = (detections == NOTHING).nonzero()[:, 0], (truths == NOTHING).nonzero()[:, 0]
    others = Found(found.boxes[rest], found.scores[rest], torch.ones_like(rest))
    to_truth, to_found = match(others, entry._replace(boxes=entry.boxes[left], labels=torch.ones_like(left)), iou)
    detections[rest[to_truth >= 0]] = entry.labels[left[to_truth[to_truth >= 0]]]
    truths[left[to_found >= 0]] = found.labels[rest[to_found[to_found >= 0]]]
    return Verdict(detections, truths)


def confusion(entries: Sequence[Entry], found: Mapping[ImageId, Found], classes: int, score: float) -> Tensor:
    """How often which class was taken for which, at IoU 0.5, by the detections of at least this score.

    Returns:
        ``[1 + classes, 1 + classes]`` int64: in row t and column p the true boxes of class t that were taken for p. In
        column 0 those that were missed, in row 0 detections of p where nothing is.
    """
    counts = torch.zeros(1 + classes, 1 + classes, dtype=torch.int64)
    for entry in entries:
        each = found[entry.id].above(score)
        verdict = judge(each, entry)
        counts.index_put_((entry.labels, verdict.truths), torch.tensor(1), accumulate=True)
        nowhere = each.labels[verdict.detections == NOTHING]
        counts[NOTHING] += nowhere.bincount(minlength=1 + classes)
    return counts
