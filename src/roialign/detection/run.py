"""Train, evaluate and detect as the command line does: files in, files and a report on the console out."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torchvision.models.detection import FasterRCNN

from ..data import HELDOUT, TRAIN
from . import pictures
from .checkpoint import default_checkpoint, load_detector, write_atomically
from .data import CocoData, EpochBatches, TrainingViews, open_photo
from .evaluation import Report, evaluate_found
from .images import DamagedImageError, Photo, find_images
from .model import build_detector, memory_format
from .tiles import Found, detect
from .training import BEST, LOSSES, Settings, Trainer

INPUT = 640  # pixels of the network's input in training, unless the crop is given, and at least so many in detection
SHORT = dict(zip(LOSSES, ("obj", "rpn", "cls", "box"), strict=True))
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
        out: folder to write: ``views.png`` (what the model sees), ``log.csv``, ``log.png``, ``last.safetensors`` (to go
            on from) and ``model.safetensors`` (the model).
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
        FileExistsError: there is a training in ``out`` and it shall not be resumed.
        ValueError: nothing to learn from, or data, weights or the state to go on from do not fit.
    """
    data, held = _data(annotations, images, val, val_split, settings.seed)
    if not len(data.boxes):
        raise ValueError(f"{data.path}: no boxes to learn from")
    if scale is None:
        sides = (data.boxes[:, 2:] - data.boxes[:, :2]).prod(1).sqrt()
        scale = min(2.0, max(0.25, round(4 * OBJECT / float(sides.median())) / 4))
    usual = round(INPUT / scale / 32) * 32
    settings = Settings(**{**settings.__dict__, "crop": crop or usual})
    if not resume and (out / "last.safetensors").exists():
        raise FileExistsError(f"{out}: has a training already; continue it with --resume or name another folder")
    main = _processes().is_main_process
    start = _start(backbone, weights, console if main else None)
    torch.manual_seed(settings.seed)
    model = build_detector(
        len(data.classes) + 1,
        backbone,
        pooling,
        weights=start,
        norm="frozen" if start else "batch" if backbone.startswith("timm:") else "group",
        anchors="auto",
        boxes=data.boxes,
        scale=scale,
        **CROWDED,
    )
    longest = float((data.boxes[:, 2:] - data.boxes[:, :2]).amax(1).quantile(0.99))
    tile = max(settings.crop, usual)  # small crops learn fast, large tiles detect fast
    overlap = min(tile // 2, math.ceil(1.25 * longest / 8) * 8)
    card = {"tile": tile, "overlap": overlap, "seed": settings.seed}
    trainer = Trainer(model, data, held, settings, out, card)
    done = trainer.resume() if resume else 0
    if main:
        _draw_sheet(data, settings, out)
        judged = f"judged by {len(held.entries)}" if held else "none to judge by"
        console.print(
            f"{len(data.entries)} images, {len(data.boxes)} boxes, {judged}; {len(trainer.batches)} steps an epoch on "
            f"{trainer.accelerator.num_processes} x {trainer.device.type}; the model sees {out / 'views.png'}",
            soft_wrap=True,
        )
        if data.left_out:
            console.print(f"[yellow]{data.left_out} boxes without area were left out")
        if done:
            console.print(f"{done} of {settings.epochs} epochs were done")
    with Progress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(12),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not main,
    ) as progress:
        history = trainer.run(_Display(progress, settings, out, done, len(trainer.batches)))
    if main:
        console.print(f"wrote {out / BEST}" if history else "nothing to do", soft_wrap=True)
    return history


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
        console.print(f"[yellow]no --weights: {backbone} starts from random ones, which takes long")
    return None


def _processes() -> PartialState:
    return PartialState(cpu=not torch.accelerator.is_available())


def _draw_sheet(data: CocoData, settings: Settings, out: Path) -> None:
    """Views as the first epoch will show them."""
    batches = EpochBatches(data.entries, settings.crop, 1, settings.repeat, settings.seed)
    views = [view for (view,), _ in zip(batches, range(12), strict=False)]
    dataset = TrainingViews(data, settings.crop, settings.seed)
    pictures.draw_views([dataset[view] for view in views], out / "views.png")


class _Display:
    """Progress on the console; a CSV and a plot after each epoch."""

    def __init__(self, progress: Progress, settings: Settings, out: Path, done: int, steps: int) -> None:
        self.progress, self.settings, self.out = progress, settings, out
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
        write_atomically(self.out / "log.csv", text.getvalue().encode())
        pictures.plot_history(history, self.out / "log.png")
        if report:
            row = history[-1]
            scores = ", ".join(f"{name} {row[name]:.3f}" for name in ("AP", "AP50", "AP75"))
            self.progress.console.print(f"epoch {len(history)}: {scores}")


def load(weights: Path | None) -> FasterRCNN:
    """The detector of a file, or the package's, on the device that Accelerate chooses."""
    device = _processes().device
    return load_detector(weights).to(device, memory_format=memory_format(device))


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
    """Judge a detector on a COCO data set: a table, ``precision_recall.png`` and ``worst.png`` in ``out``, a JSON.

    Args:
        annotations: the data set; None: the held-out part of the tree crowns that the package ships.
        images: the folder of the images; None: that of the annotations.
        out: folder for the pictures.
        console: where to report.
        weights: the detector's file; None: the one that the package ships.
        json_file: where to write the metrics.
        tile, overlap, batch: as in :func:`roialign.detection.detect`.

    Raises:
        ValueError: the detector knows other classes.
    """
    data = CocoData(HELDOUT) if annotations is None else CocoData(annotations, images)
    model = load(weights)
    classes = model.card.get("classes", data.classes)
    if classes != data.classes:
        raise ValueError(f"{data.path}: its classes are {data.classes}; the detector's are {classes}")
    photos = (open_photo(entry.file, entry.width, entry.height) for entry in data.entries)
    with _progress(console) as progress:
        results = detect(model, photos, tile=tile, overlap=overlap, batch=batch)
        entries = progress.track(data.entries, description="detecting")
        found = {entry.id: each for entry, each in zip(entries, results, strict=True)}
    report = evaluate_found(data, found)
    table = Table(title=f"{data.path.name}: {len(data.entries)} images, {len(data.boxes)} boxes", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in report.metrics.items():
        table.add_row(name, "-" if math.isnan(value) else f"{value:.3f}" if isinstance(value, float) else str(value))
    console.print(table)
    out.mkdir(parents=True, exist_ok=True)
    pictures.plot_curve(report, out / "precision_recall.png")
    misses = pictures.draw_worst(data, report, out / "worst.png")
    console.print(
        f"wrote {out / 'precision_recall.png'} and the worst of {misses} misses, {out / 'worst.png'}", soft_wrap=True
    )
    if json_file:
        write_atomically(json_file, json.dumps(report.as_json(), indent=1).encode())
    return report


def detect_files(
    patterns: Sequence[str],
    out: Path,
    console: Console,
    *,
    weights: Path | None = None,
    score: float | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    batch: int = 1,
) -> list[str]:
    """Detect in image files: each drawn with its boxes, and ``detections.json`` in COCO's format, in ``out``.

    Args:
        patterns: files, folders and globs; none: a photo that the package ships.
        out: folder to write.
        console: where to report.
        weights: the detector's file; None: the one that the package ships.
        score: the least score of a box; None: what suits the detector by its card, or 0.5.
        tile, overlap, batch: as in :func:`roialign.detection.detect`.

    Returns:
        What was wrong with each image that could not be read.
    """
    model = load(weights)
    out.mkdir(parents=True, exist_ok=True)
    files = find_images(patterns or [HELDOUT.parent / "YELL_lower.jpg"])
    score = (model.card.get("metrics") or {}).get("score_threshold", 0.5) if score is None else score
    classes = model.card.get("classes", [str(label) for label in range(1, model.description["num_classes"])])
    drawn = _names(files)
    faults: list[str] = []
    photos: dict[Path, Photo] = {}
    records: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, 1)],
    }
    table = Table(title="Detections", title_justify="left")
    for heading in ("image", "size", "boxes", "best score"):
        table.add_column(heading, overflow="fold")
    with _progress(console) as progress:
        task = progress.add_task("detecting", total=len(files))

        def readable() -> Iterator[Photo]:
            for file in files:
                try:
                    photos[file] = Photo(file)
                except DamagedImageError as fault:
                    faults.append(str(fault))
                    progress.console.print(f"[red]skipped[/] {fault}", soft_wrap=True, highlight=False)
                    progress.advance(task)
                else:
                    yield photos[file]

        for found in detect(model, readable(), tile=tile, overlap=overlap, batch=batch):
            file = next(iter(photos))
            photo = photos.pop(file)
            found = found.above(score)
            pictures.draw_found(photo, found, out / drawn[file])
            _record(records, photo, found)
            best = f"{float(found.scores[0]):.2f}" if len(found.scores) else "-"
            table.add_row(str(file), f"{photo.width} x {photo.height}", str(len(found.boxes)), best)
            progress.advance(task)
    write_atomically(out / "detections.json", json.dumps(records).encode())
    console.print(table)
    console.print(
        f"{len(records['annotations'])} boxes of score {score:.2f} or more in {len(records['images'])} of "
        f"{len(files)} images; wrote {out / 'detections.json'} and the pictures beside it",
        soft_wrap=True,
    )
    return faults


def _record(records: dict[str, list[dict[str, Any]]], photo: Photo, found: Found) -> None:
    image = {
        "id": len(records["images"]) + 1,
        "file_name": str(photo.path),
        "width": photo.width,
        "height": photo.height,
    }
    records["images"].append(image)
    for (x1, y1, x2, y2), value, label in zip(
        found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
    ):
        bbox = [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]
        records["annotations"].append({
            "id": len(records["annotations"]) + 1,
            "image_id": image["id"],
            "category_id": label,
            "bbox": bbox,
            "area": round(bbox[2] * bbox[3], 2),
            "score": round(value, 4),
            "iscrowd": 0,
        })  # fmt: skip


def _names(files: Sequence[Path]) -> dict[Path, str]:
    """A file name for each drawn image: its own, numbered where two would be the same."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for file in files:
        name, count = f"{file.stem}.jpg", 1
        while name in taken:
            count += 1
            name = f"{file.stem}-{count}.jpg"
        taken.add(name)
        names[file] = name
    return names


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
