"""Train and evaluate as the command line does: files in, files and a report on the console out."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..outputs import Folder, check_files, write_atomically
from ..samples import HELDOUT, TRAIN
from ..terminal import cell, say
from . import pictures, recipe
from .checkpoint import default_checkpoint
from .datasets import CocoData, open_photo
from .evaluation import Report, evaluate_found
from .model import build_detector
from .predict import RECORDS, load, processes, progress_bar
from .tiles import detect
from .training import BEST, LOSSES, STATE, Settings, Trainer
from .views import EpochBatches, TrainingViews

INPUT = 640  # pixels of the network's input in training, unless the crop is given, and at least so many in detection
SHORT = dict(zip(LOSSES, ("obj", "rpn", "cls", "box"), strict=True))
SHEET, LOG, PLOT = "views.png", "log.csv", "log.png"  # of a training
CURVE, WORST = "precision_recall.png", "worst.png"  # of an evaluation
OBJECT = 56  # pixels that the network sees of the median object, unless the scale is given

# For images with hundreds of objects: torchvision's own limits are for dozens.
CROWDED: dict[str, Any] = {
    "box_detections_per_img": 300,
    "box_batch_size_per_image": 256,
    "rpn_post_nms_top_n_train": 1000,
    "box_score_thresh": 0.02,
    "box_nms_thresh": 0.4,
}


def train(
    annotations: Path | None,
    images: Path | None,
    out: Path,
    settings: Settings,
    console: Console,
    *,
    val: Path | None = None,
    val_split: float = 0.2,
    backbone: str = "mobilenet_v2_fpn",
    pooling: str = "roi_align",
    weights: str | None = None,
    scale: float | None = None,
    crop: int | None = None,
    resume: bool = False,
) -> list[dict[str, float]]:
    """Train a detector on a COCO data set.

    Args:
        annotations: the data set; None: the tree crowns that the package ships, judged by their held-out part.
        images: the folder of the images; None: that of the annotations.
        out: folder to write: ``train.json`` (this command), ``views.png`` (what the model sees), ``log.csv``,
            ``log.png``, ``last.safetensors`` (to go on from) and ``model.safetensors`` (the model).
        settings: of the training; its crop is replaced by ``crop``.
        console: where to report.
        val: a second data set, of the same classes, to judge by.
        val_split: without one, this part of the images is held out; 0 judges by nothing.
        backbone: as in :func:`build_detector`.
        pooling: as in :func:`build_detector`.
        weights: to start from; None: the detector that the package ships, if it has the same backbone.
        scale: pixels that the network sees per pixel of the image; None: the median object is 56 pixels wide.
        crop: side of the crops that the network is trained on, in pixels of the image; None: 640 in its own pixels.
        resume: go on where the training in ``out`` stopped.

    Returns:
        A row of losses and AP per epoch.

    Raises:
        FileExistsError: there is a training in ``out`` and it shall not be resumed, another process writes there, or a
            file is in the way that no run of ours has left.
        ValueError: nothing to learn from, or data, weights or the state to go on from do not fit.
    """
    data, held = _data(annotations, images, val, val_split, settings.seed)
    if not len(data.boxes):
        raise ValueError(f"{data.path}: no boxes to learn from")
    blind = held is not None and not len(held.boxes)
    if blind:
        held = None
    given = {"annotations": annotations, "images": images, "val": val, "val_split": val_split, "weights": weights}
    given |= {"backbone": backbone, "pooling": pooling, "scale": scale, "crop": crop}
    command = recipe.pack({**settings.__dict__, **given})
    scale = _scale(data) if scale is None else scale
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: got {scale}; expected a positive finite number")
    usual = max(64, round(INPUT / scale / 32) * 32)
    settings = Settings(**{**settings.__dict__, "crop": crop or usual})
    if not resume and (out / STATE).exists():
        raise FileExistsError(f"{out}: has a training already; continue it with --resume or name another folder")
    main = processes().is_main_process
    with Folder(out, writes=main) as folder:
        if main:
            folder.protect([annotations, val, weights])
            folder.claim(recipe.RECIPE, SHEET, LOG, PLOT)
        start = _start(backbone, weights, console if main else None)
        trainer = _trainer(data, held, settings, folder, start, backbone, pooling, scale, usual)
        done = trainer.resume() if resume else 0
        if main:
            folder.write(recipe.RECIPE, command)
            _draw_sheet(data, settings, folder)
            _announce(console, trainer, done, held.notes if held and val else [], blind)
        columns = ("epoch {task.fields[epoch]}", "{task.fields[text]}")
        parts = (TextColumn(columns[0]), BarColumn(12), TextColumn(columns[1]), TimeRemainingColumn())
        with Progress(*parts, console=console, disable=not main) as progress:
            display = _Display(progress, settings, folder, done, len(trainer.batches))
            history = trainer.run(display)
        if main:
            say(console, f"wrote {out / BEST}" if display.wrote else "nothing to do")
    return history


def _announce(console: Console, trainer: Trainer, done: int, notes: list[str], blind: bool) -> None:
    """What is about to be done, and what is peculiar about it."""
    data, held, settings = trainer.data, trainer.held, trainer.settings
    judged = f"judged by {len(held.entries)}" if held else "none to judge by"
    say(
        console,
        f"{len(data.entries)} images, {len(data.boxes)} boxes, {judged}; {len(trainer.batches)} steps an epoch on "
        f"{trainer.accelerator.num_processes} x {trainer.device.type}; the model sees {trainer.folder.path / SHEET}",
    )
    for note in (*data.notes, *notes):
        say(console, note, "yellow")
    if blind:
        say(console, "no boxes in the images to judge by: no epoch is judged and the last is kept", "yellow")
    if done:
        say(console, f"{done} of {settings.epochs} epochs were done")


def _scale(data: CocoData) -> float:
    """The enlargement at which the network sees the median object as OBJECT pixels wide."""
    sides = (data.boxes[:, 2:] - data.boxes[:, :2]).prod(1).sqrt()
    return min(2.0, max(0.25, round(4 * OBJECT / float(sides.median())) / 4))


def _trainer(
    data: CocoData,
    held: CocoData | None,
    settings: Settings,
    folder: Folder,
    start: str | None,
    backbone: str,
    pooling: str,
    scale: float,
    usual: int,
) -> Trainer:
    """The model for the data, its card, and who trains it."""
    torch.manual_seed(settings.seed)
    model = build_detector(
        len(data.classes) + 1,
        backbone,
        pooling,
        weights=None if (folder.path / STATE).exists() else start,  # the state has them
        norm="frozen" if start else "batch" if backbone.startswith("timm:") else "group",
        anchors="auto",
        boxes=data.boxes,
        scale=scale,
        **CROWDED,
    )
    longest = float((data.boxes[:, 2:] - data.boxes[:, :2]).amax(1).quantile(0.99))
    tile = max(settings.crop, usual)  # small crops learn fast, large tiles detect fast
    overlap = min(tile // 2, math.ceil(1.25 * longest / 8) * 8)
    return Trainer(model, data, held, settings, folder, {"tile": tile, "overlap": overlap, "seed": settings.seed})


def _data(
    annotations: Path | None, images: Path | None, val: Path | None, val_split: float, seed: int
) -> tuple[CocoData, CocoData | None]:
    if annotations is None:
        return CocoData(TRAIN), CocoData(HELDOUT)
    data = CocoData(annotations, images)
    if val is not None:
        held = CocoData(val, images)
        if held.classes != data.classes:
            raise ValueError(f"{val}: its classes are {held.classes}; those of {annotations} are {data.classes}")
        return data, held
    return data.split(val_split, seed) if val_split else (data, None)


def _start(backbone: str, weights: str | None, console: Console | None) -> str | None:
    if weights is not None:
        return weights
    try:
        ours = default_checkpoint()
    except FileNotFoundError:
        ours = None
    if ours is not None and backbone == "mobilenet_v2_fpn":
        return str(ours)
    if console:
        say(console, f"no --weights: {backbone} starts from random ones, which takes long", "yellow")
    return None


def _draw_sheet(data: CocoData, settings: Settings, folder: Folder) -> None:
    """Views as the first epoch will show them."""
    batches = EpochBatches(data.entries, settings.crop, 1, settings.repeat, settings.seed)
    views = [view for (view,), _ in zip(batches, range(12), strict=False)]
    dataset = TrainingViews(data, settings.crop, settings.seed)
    with folder.open(SHEET) as sheet:
        pictures.draw_views([dataset[view] for view in views], sheet)


class _Display:
    """Progress on the console; a CSV and a plot after each epoch."""

    def __init__(self, progress: Progress, settings: Settings, folder: Folder, done: int, steps: int) -> None:
        self.progress, self.settings, self.folder = progress, settings, folder
        self.wrote = False
        self.task = progress.add_task("train", total=settings.epochs * steps, completed=done * steps, epoch="", text="")

    def step(self, epoch: int, steps: int, losses: dict[str, float], images: int) -> None:
        speed = (self.progress.tasks[0].speed or 0) * images
        parts = " ".join(f"{SHORT[name]} {value:.3f}" for name, value in losses.items())
        text = f"{parts}  {speed:.1f} img/s"
        self.progress.update(self.task, advance=1, epoch=f"{epoch + 1}/{self.settings.epochs}", text=text)

    def epoch(self, history: list[dict[str, float]], report: Report | None) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
        self.folder.write(LOG, text.getvalue().encode())
        with self.folder.open(PLOT) as plot:
            pictures.plot_history(history, plot)
        self.wrote = True
        if report:
            names = ("AP", "AP40", "AP50", "AP75", "mean_iou")
            scores = ", ".join(f"{name} {report.metrics[name]:.3f}" for name in names)
            say(self.progress.console, f"epoch {len(history)}: {scores}")


def evaluate(
    annotations: Path | None,
    images: Path | None,
    out: Path,
    console: Console,
    *,
    weights: Path | None = None,
    json_file: Path | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    batch: int = 1,
) -> Report:
    """Judge a detector on a COCO data set: a table, and in ``out`` two pictures and all detections.

    ``precision_recall.png``, ``worst.png`` and ``detections.json``, which has the form of COCO's results and the ids of
    the data set.

    Args:
        annotations: the data set; None: the held-out part of the tree crowns that the package ships.
        images: the folder of the images; None: that of the annotations.
        out: folder for these files.
        console: where to report.
        weights: the detector's file; None: the one that the package ships.
        json_file: where to write the metrics.
        tile, overlap, batch: as in :func:`roialign.detection.detect`.

    Raises:
        ValueError: the detector knows other classes.
        FileExistsError: a file is in the way that no run of ours has left.
    """
    data = CocoData(HELDOUT) if annotations is None else CocoData(annotations, images)
    model = load(weights)
    count = model.description["num_classes"] - 1
    classes = model.card.get("classes", data.classes if len(data.classes) == count else f"{count} without names")
    if classes != data.classes:
        raise ValueError(f"{data.path}: its classes are {data.classes}; the detector's are {classes}")
    inputs = [data.path, weights, *(entry.file for entry in data.entries)]
    check_files([json_file, *(out / name for name in (CURVE, WORST, RECORDS))], inputs)
    with Folder(out) as folder:
        folder.protect(inputs)
        folder.claim(CURVE, WORST, RECORDS)
        photos = (open_photo(entry.file, entry.width, entry.height) for entry in data.entries)
        with progress_bar(console) as progress:
            results = detect(model, photos, tile=tile, overlap=overlap, batch=batch)
            entries = progress.track(data.entries, description="detecting")
            found = {entry.id: each for entry, each in zip(entries, results, strict=True)}
        report = evaluate_found(data, found)
        console.print(_table(data, report))
        for note in data.notes:
            say(console, note, "yellow")
        with folder.open(CURVE) as curve:
            pictures.plot_curve(report, curve)
        with folder.open(WORST) as worst:
            misses = pictures.draw_worst(data, report, worst)
        folder.write(RECORDS, json.dumps(_records(data, report)).encode())
        say(console, f"wrote {out / CURVE}, {out / RECORDS} and the worst of {misses} misses, {out / WORST}")
        if json_file:
            write_atomically(json_file, json.dumps(report.as_json(), indent=1).encode())
    return report


def _table(data: CocoData, report: Report) -> Table:
    title = cell(f"{data.path.name}: {len(data.entries)} images, {len(data.boxes)} boxes")
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in report.metrics.items():
        told = "-" if math.isnan(value) else f"{value:.3f}" if isinstance(value, float) else str(value)
        table.add_row(cell(name), told)
    return table


def _records(data: CocoData, report: Report) -> list[dict[str, Any]]:
    """The detections as COCO's results, with the ids of the user's file."""
    return [
        {
            "image_id": image,
            "category_id": data.category_ids[label - 1],
            "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 4),
        }
        for image, found in report.found.items()
        for (x1, y1, x2, y2), score, label in zip(*(values.tolist() for values in found), strict=True)
    ]
