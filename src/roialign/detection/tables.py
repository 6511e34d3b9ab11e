"""What an evaluation prints."""

from __future__ import annotations

import math

from rich.table import Column, Table
from torch import Tensor

from ..terminal import cell
from .datasets import AnnotatedImages
from .evaluation import MASKS, PER_CLASS, Report, class_names


def metrics_table(data: AnnotatedImages, report: Report) -> Table:
    """The measures over all classes, those of masks beside those of boxes."""
    title = cell(f"{data.path.name}: {len(data.entries)} images, {len(data.boxes)} boxes")
    apart = {f"{measure}_{name}" for measure in PER_CLASS for name in class_names(data)}
    apart |= {name for name in report.metrics if name.startswith(MASKS)}
    headings = ("boxes", "masks") if _with_masks(report) else ("value",)
    columns = (Column(heading, justify="right") for heading in headings)
    table = Table("metric", *columns, title=title, title_justify="left", min_width=title.cell_len)
    for name, value in report.metrics.items():
        if name not in apart:
            masks = report.metrics.get(f"{MASKS}{name}")
            table.add_row(cell(name), _told(value), *([_told(masks)] if masks is not None else []))
    return table


def classes_table(data: AnnotatedImages, report: Report, counts: Tensor) -> Table:
    """The measures of each class; ``counts`` is the confusion matrix."""
    measures = (*PER_CLASS, f"{MASKS}AP") if _with_masks(report) else PER_CLASS  # more have no room
    headings = ("boxes", *measures, "precision", "recall")
    title = cell(f"by class; precision and recall at score {report.metrics['score_threshold']:.2f}, IoU 0.5")
    columns = (Column(heading, justify="right") for heading in headings)
    table = Table("class", *columns, title=title, title_justify="left")
    for label, name in enumerate(class_names(data), 1):
        right, boxes, given = (
            int(part) for part in (counts[label, label], counts[label].sum(), counts[:, label].sum())
        )
        shares = (right / whole if whole else math.nan for whole in (given, boxes))
        values = [*(report.metrics[f"{measure}_{name}"] for measure in measures), *shares]
        table.add_row(cell(name), str(boxes), *map(_told, values))
    return table


def _with_masks(report: Report) -> bool:
    return f"{MASKS}AP" in report.metrics


def _told(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}" if isinstance(value, float) else str(value)
