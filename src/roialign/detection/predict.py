"""Detect in image files as the command line does: each drawn with its boxes, and a COCO file of all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torchvision.models.detection import FasterRCNN

from ..outputs import Folder
from ..samples import HELDOUT
from ..terminal import cell, say
from . import pictures
from .checkpoint import load_detector
from .images import DamagedImageError, Photo, find_images, passed_over
from .model import memory_format
from .tiles import Found, detect

RECORDS = "detections.json"
Records = dict[str, list[dict[str, Any]]]


def load(weights: Path | None) -> FasterRCNN:
    """The detector of a file, or the package's, on the device that Accelerate chooses."""
    device = processes().device
    return load_detector(weights).to(device, memory_format=memory_format(device))


def processes() -> PartialState:
    """Those that Accelerate or torchrun started, and the device of this one."""
    return PartialState(cpu=not torch.accelerator.is_available())


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

    A drawing is named after its image, with a number where that name is taken: by another image of the same stem, or by
    any file that a run of ours did not leave there. So no photo is ever written over.

    Args:
        patterns: files, folders and globs; none: a photo that the package ships.
        out: folder to write.
        console: where to report.
        weights: the detector's file; None: the one that the package ships.
        score: the least score of a box; None: what suits the detector by its card, or 0.5.
        tile, overlap, batch: as in :func:`roialign.detection.detect`.

    Returns:
        What was wrong with each image that could not be read.

    Raises:
        FileExistsError: ``detections.json`` is there and not ours, or another run is writing to ``out``.
    """
    model = load(weights)
    score = (model.card.get("metrics") or {}).get("score_threshold", 0.5) if score is None else score
    categories = _categories(model)
    files = find_images(patterns or [HELDOUT.parent / "YELL_lower.jpg"])
    faults: list[str] = []
    photos: dict[Path, Photo] = {}
    records: Records = {"images": [], "annotations": [], "categories": categories}
    table = Table(title="Detections", title_justify="left")
    for heading in ("image", "size", "boxes", "best score"):
        table.add_column(heading, overflow="fold")
    with Folder(out) as folder, progress_bar(console) as progress:
        files = _without_own(files, folder, console)
        folder.protect([*files, weights])
        folder.claim(RECORDS)
        others = ", ".join(f"{count} {suffix}" for suffix, count in passed_over(patterns).items())
        if others:
            say(console, f"left aside, no images by their names: {others}", "yellow")
        task = progress.add_task("detecting", total=len(files))

        def readable() -> Iterator[Photo]:
            for file in files:
                try:
                    photos[file] = Photo(file)
                except DamagedImageError as fault:
                    faults.append(str(fault))
                    say(progress.console, f"skipped {fault}", "red")
                    progress.advance(task)
                else:
                    if photos[file].note:
                        say(progress.console, f"{file}: {photos[file].note}", "yellow")
                    yield photos[file]

        for found in detect(model, readable(), tile=tile, overlap=overlap, batch=batch):
            file = next(iter(photos))
            photo = photos.pop(file)
            found = found.above(score)
            with folder.open(folder.pick(file.stem, ".jpg")) as drawing:
                pictures.draw_found(photo, found, drawing)
            _record(records, photo, found)
            best = f"{float(found.scores[0]):.2f}" if len(found.scores) else "-"
            table.add_row(*map(cell, (file, f"{photo.width} x {photo.height}", len(found.boxes), best)))
            progress.advance(task)
        folder.write(RECORDS, json.dumps(records).encode())
    console.print(table)
    say(
        console,
        f"{len(records['annotations'])} boxes of score {score:.2f} or more in {len(records['images'])} of "
        f"{len(files)} images; wrote {out / RECORDS} and the pictures beside it",
    )
    return faults


def _categories(model: FasterRCNN) -> list[dict[str, Any]]:
    """The detector's classes, with the ids of the data set that it learned from."""
    classes = model.card.get("classes", [str(label) for label in range(1, model.description["num_classes"])])
    numbers = model.card.get("category_ids", list(range(1, len(classes) + 1)))
    return [{"id": number, "name": name} for number, name in zip(numbers, classes, strict=True)]


def _without_own(files: list[Path], folder: Folder, console: Console) -> list[Path]:
    """The files but for what a run of ours drew in the folder."""
    others = [file for file in files if not folder.wrote(file)]
    if len(others) < len(files):
        count = len(files) - len(others)
        say(console, f"{count} files are left out: they are what roialign drew in {folder.path}", "yellow")
    return others


def _record(records: Records, photo: Photo, found: Found) -> None:
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
            "category_id": records["categories"][label - 1]["id"],
            "bbox": bbox,
            "area": round(bbox[2] * bbox[3], 2),
            "score": round(value, 4),
            "iscrowd": 0,
        })  # fmt: skip


def progress_bar(console: Console) -> Progress:
    """How many images are done; it goes when it ends."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
