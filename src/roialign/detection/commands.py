"""Train and evaluate as the command line does: files in, files and a report on the console out."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..outputs import Folder, check_files, write_atomically
from ..terminal import say, shown
from . import pictures
from .checkpoint import default_checkpoint, draws_masks
from .confusion import confusion
from .datasets import AnnotatedImages, open_photo
from .detector import load
from .devices import PATIENCE, gathered, of_the_first, processes, told
from .evaluation import Report, class_names, evaluate_found
from .inputs import fit_to_model, judged_data, training_data
from .interruption import InterruptedTrainingError, Wish
from .mask_heads import has_masks
from .masks import encode_all
from .model import build_detector
from .precision import slow
from .predict import RECORDS, progress_bar
from .recipe import RECIPE, Recipe, pack
from .tables import classes_table, metrics_table
from .tiles import USUAL, Tiling, detect
from .training import BEST, JUDGED, LOSSES, MASKS, STATE, Trainer, best_epoch
from .views import EpochBatches, TrainingViews

INPUT = 640  # pixels of the network's input in training, unless the crop is given, and at least so many in detection
SHORT = dict(zip((*LOSSES, MASKS), ("obj", "rpn", "cls", "box", "mask"), strict=True))
SHEET, LOG, PLOT = "views.png", "log.csv", "log.png"  # of a training
CURVE, WORST, MATRIX = "precision_recall.png", "worst.png", "confusion.png"  # of an evaluation
OBJECT = 56  # pixels that the network sees of the median object, unless the scale is given

# For images with hundreds of objects: torchvision's own limits are for dozens.
CROWDED: dict[str, Any] = {
    "box_detections_per_img": 300,
    "box_batch_size_per_image": 256,
    "rpn_post_nms_top_n_train": 1000,
    "box_score_thresh": 0.02,
    "box_nms_thresh": 0.4,
}


def train(recipe: Recipe, out: Path, console: Console, *, resume: bool = False) -> list[dict[str, float]]:
    """Train a detector on a data set.

    Args:
        recipe: how. Without ``annotations`` the data are the tree crowns that the package ships, judged by their
            held-out part; without ``weights`` it starts from the detector that the package ships, if that has the same
            backbone; without ``scale`` the median object is 56 pixels wide; without ``crop`` it is 640 in the pixels
            that the network sees.
        out: folder to write: ``train.json`` (the recipe), ``views.png`` (what the model sees), ``log.csv``,
            ``log.png``, ``last.safetensors`` (to go on from) and ``model.safetensors`` (the model).
        console: where to report.
        resume: go on where the training in ``out`` stopped.

    Returns:
        A row of losses and AP per epoch.

    Raises:
        InterruptedTrainingError: somebody wished it, by Ctrl-C or SIGTERM; the state is saved.
        FileExistsError: there is a training in ``out`` and it shall not be resumed, another process writes there, or a
            file is in the way that no run of ours has left.
        ValueError: nothing to learn from, or data, weights or the state to go on from do not fit.
    """
    main = processes(recipe.device).is_main_process
    recipe = replace(recipe, masks=recipe.masks or draws_masks(recipe.weights))
    with _reading(console, recipe.annotations) if main else nullcontext():
        data, held = training_data(recipe)
    if not len(data.boxes):
        raise ValueError(f"{data.path}: no boxes to learn from")
    blind = held is not None and not len(held.boxes)
    notes = held.notes if held and held.notes is not data.notes else []
    if blind:
        held = None
    packed = pack(recipe)
    scale = _scale(data) if recipe.scale is None else recipe.scale
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: got {scale}; expected a positive finite number")
    usual = max(64, round(INPUT / scale / 32) * 32)
    crop = recipe.crop or usual
    if not resume and (out / STATE).exists():
        raise FileExistsError(f"{out}: has a training already; continue it with --resume or name another folder")
    with Folder(out, writes=main) as folder:
        if main:
            folder.protect([*data.files, *(held.files if held else ()), recipe.weights])
            folder.claim(RECIPE, SHEET, LOG, PLOT)
        start = _start(recipe, console if main else None)
        complete = replace(recipe, scale=scale, crop=crop, augment=_profile(recipe))
        # Small crops learn fast, large tiles detect fast.
        trainer = _trainer(data, held, complete, folder, start, max(crop, usual))
        done = trainer.resume() if resume else 0
        if main:
            folder.write(RECIPE, packed)
            _draw_sheet(trainer)
            _announce(console, trainer, done, notes, blind)
        columns = ("epoch {task.fields[epoch]}", "{task.fields[text]}")
        parts = (TextColumn(columns[0]), BarColumn(12), TextColumn(columns[1]), TimeRemainingColumn())
        with Progress(*parts, console=console, disable=not main) as progress:
            display = _Display(progress, trainer, done)
            with Wish(lambda line: say(console, line, "yellow")) as wish:
                try:
                    history = trainer.run(display, wish)
                except InterruptedTrainingError as stop:
                    again = shlex.join(["roialign", "train", "--resume", "--out", str(out)])
                    raise InterruptedTrainingError(f"{stop}; go on with: {again}") from None
        if main:
            told = f"wrote {out / BEST}, the model of epoch {best_epoch(history)}"
            say(console, told if display.wrote else "nothing to do")
    return history


def _reading(console: Console, annotations: Path | None) -> AbstractContextManager[object]:
    """Something moves while the annotations are read, which takes seconds if there are hundreds of thousands."""
    return nullcontext() if annotations is None else console.status(Text(shown(f"reading {annotations}")))


def _announce(console: Console, trainer: Trainer, done: int, notes: list[str], blind: bool) -> None:
    """What is about to be done, and what is peculiar about it."""
    data, held = trainer.data, trainer.held
    judged = f"judged by {len(held.entries)}" if held else "none to judge by"
    say(
        console,
        f"{len(data.entries)} images, {len(data.boxes)} boxes, {judged}; {len(trainer.batches)} steps an epoch on "
        f"{trainer.accelerator.num_processes} x {trainer.device.type}; the model sees {trainer.folder.path / SHEET}",
    )
    if trainer.recipe.augment == "upright":
        say(console, "views are mirrored but not turned; for photos from above: --augment aerial")
    slowly = slow(trainer.recipe.precision, trainer.device)
    for note in (*data.notes, *notes, *filter(None, [slowly])):
        say(console, note, "yellow")
    if blind:
        say(console, "no boxes in the images to judge by: no epoch is judged and the last is kept", "yellow")
    if done or trainer.batches.done:
        steps = f", {trainer.batches.done} steps of the next" if trainer.batches.done else ""
        say(console, f"{done} of {trainer.recipe.epochs} epochs were done{steps}")


def _profile(recipe: Recipe) -> str:
    """How views differ: of a scene that may have an upright nothing is turned, unless the user says so."""
    return recipe.augment or ("aerial" if recipe.annotations is None else "upright")


def _scale(data: AnnotatedImages) -> float:
    """The enlargement at which the network sees the median object as OBJECT pixels wide."""
    sides = (data.boxes[:, 2:] - data.boxes[:, :2]).prod(1).sqrt()
    return min(2.0, max(0.25, round(4 * OBJECT / float(sides.median())) / 4))


def _trainer(
    data: AnnotatedImages, held: AnnotatedImages | None, recipe: Recipe, folder: Folder, start: str | None, tile: int
) -> Trainer:
    """The model for the data, its card, and who trains it."""
    torch.manual_seed(recipe.seed)
    model = build_detector(
        len(data.classes) + 1,
        recipe.backbone,
        recipe.pooling,
        weights=None if (folder.path / STATE).exists() else start,  # the state has them
        norm="frozen" if start else "batch" if recipe.backbone.startswith("timm:") else "group",
        anchors="auto",
        boxes=data.boxes,
        scale=recipe.scale,
        masks=recipe.masks,
        **CROWDED,
    )
    longest = float((data.boxes[:, 2:] - data.boxes[:, :2]).amax(1).quantile(0.99))
    overlap = min(tile // 2, math.ceil(1.25 * longest / 8) * 8)
    return Trainer(model, data, held, recipe, folder, {"tile": tile, "overlap": overlap, "seed": recipe.seed})


def _start(recipe: Recipe, console: Console | None) -> str | None:
    """The weights to start from."""
    if recipe.weights is not None:
        return recipe.weights
    try:
        ours = default_checkpoint()
    except FileNotFoundError:
        ours = None
    if ours is not None and recipe.backbone == "mobilenet_v2_fpn":
        return str(ours)
    if recipe.freeze_backbone:
        raise ValueError(f"freeze-backbone: {recipe.backbone} has no weights yet that could stay; name some: --weights")
    if console:
        say(console, f"no --weights: {recipe.backbone} starts from random ones, which takes long", "yellow")
    return None


def _draw_sheet(trainer: Trainer) -> None:
    """Views as the first epoch will show them."""
    data, crop, recipe = trainer.data, trainer.crop, trainer.recipe
    batches = EpochBatches(data.entries, crop, 1, recipe.repeat, recipe.seed)
    views = [view for (view,), _ in zip(batches, range(12), strict=False)]
    dataset = TrainingViews(data, crop, recipe.seed, trainer.how)
    samples = [sample for sample in map(dataset.__getitem__, views) if not sample.fault]
    if not samples:  # nothing could be decoded, which the training will say
        return
    with trainer.folder.open(SHEET) as sheet:
        pictures.draw_views(samples, data.classes, sheet)


class _Display:
    """Progress on the console; a CSV and a plot after each epoch."""

    def __init__(self, progress: Progress, trainer: Trainer, done: int) -> None:
        self.progress, self.folder, self.epochs = progress, trainer.folder, trainer.recipe.epochs
        self.wrote = False
        steps = len(trainer.batches)
        completed = done * steps + trainer.batches.done
        self.task = progress.add_task("train", total=self.epochs * steps, completed=completed, epoch="", text="")

    def step(self, epoch: int, steps: int, losses: dict[str, float], images: int) -> None:
        speed = (self.progress.tasks[0].speed or 0) * images
        parts = " ".join(f"{SHORT[name]} {value:.3f}" for name, value in losses.items())
        text = f"{parts}  {speed:.1f} img/s"
        self.progress.update(self.task, advance=1, epoch=f"{epoch + 1}/{self.epochs}", text=text)

    def skipped(self, fault: str) -> None:
        say(self.progress.console, f"left out: {fault}", "red")

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
            names = ("AP", "AP40", "AP50", "AP75", "mean_iou", *JUDGED[3:])
            known = {name: report.metrics[name] for name in names if name in report.metrics}
            scores = ", ".join(f"{name} {value:.3f}" for name, value in known.items())
            say(self.progress.console, f"epoch {len(history)}: {scores}")


def evaluate(
    annotations: Path | None,
    images: Path | None,
    out: Path,
    console: Console,
    *,
    weights: Path | None = None,
    json_file: Path | None = None,
    part: str | None = None,
    classes: str | None = None,
    columns: str | None = None,
    tiling: Tiling = USUAL,
    device: str | None = None,
    precision: str = "float32",
) -> Report:
    """Judge a detector on a data set: tables, and in ``out`` three pictures and all detections.

    Processes that a launcher started share the images; the first one prints and writes what one process alone would.

    ``precision_recall.png``, ``worst.png``, ``confusion.png`` and ``detections.json``, which has the form of COCO's
    results and the ids of the data set.

    Args:
        annotations: the data set; None: the held-out part of the tree crowns that the package ships.
        images: the folder of the images; None: as the format has it.
        out: folder for these files.
        console: where to report.
        weights: the detector's file; None: the one that the package ships.
        json_file: where to write the metrics.
        part: ``"train"``, ``"val"`` or ``"test"``; None: ``"val"`` where there are parts.
        classes, columns: as ``--classes`` and ``--columns``.
        tiling: how images are looked at.
        device, precision: as in :class:`roialign.detection.Detector`.

    Raises:
        ValueError: the detector knows other classes.
        FileExistsError: a file is in the way that no run of ours has left.
    """
    team = processes(device, PATIENCE)
    if line := told(team):
        say(console, line)
    if team.is_main_process and (line := slow(precision, team.device)):
        say(console, line, "yellow")
    model = load(weights, device, precision)
    with _reading(console, annotations) if (main := team.is_main_process) else nullcontext():
        data = judged_data(annotations, images, part, classes, columns, masks=has_masks(model))
    data = fit_to_model(data, model)
    inputs = [*data.files, weights, *(entry.file for entry in data.entries)]
    check_files([json_file, *(out / name for name in (CURVE, WORST, MATRIX, RECORDS))], inputs)
    with Folder(out, writes=main) as folder:
        of_the_first(team, lambda: _claim(folder, inputs))
        share = data.entries[team.process_index :: team.num_processes]
        photos = (open_photo(entry.file, entry.width, entry.height) for entry in share)
        with progress_bar(console, main) as progress:
            results = detect(model, photos, **tiling._asdict())
            entries = progress.track(share, description="detecting")
            own = [(entry.id, each) for entry, each in zip(entries, results, strict=True)]
        every = dict(gathered(team, own))
        report = evaluate_found(data, {entry.id: every[entry.id] for entry in data.entries})
        if not main:
            return report
        counts = confusion(data.entries, report.found, len(data.classes), report.metrics["score_threshold"])
        console.print(metrics_table(data, report))
        if len(data.classes) > 1:
            console.print(classes_table(data, report, counts))
        for note in data.notes:
            say(console, note, "yellow")
        with folder.open(CURVE) as curve:
            pictures.plot_curve(report, curve)
        with folder.open(WORST) as worst:
            misses = pictures.draw_worst(data, report, worst)
        with folder.open(MATRIX) as matrix:
            pictures.plot_confusion(counts, class_names(data), matrix)
        folder.write(RECORDS, json.dumps(_records(data, report)).encode())
        files = ", ".join(str(out / name) for name in (CURVE, MATRIX, RECORDS))
        say(console, f"wrote {files} and the worst of {misses} misses, {out / WORST}")
        if json_file:
            write_atomically(json_file, json.dumps(report.as_json(), indent=1).encode())
    return report


def _claim(folder: Folder, inputs: Iterable[str | Path | None]) -> None:
    """What an evaluation will write."""
    folder.protect(inputs)
    folder.claim(CURVE, WORST, MATRIX, RECORDS)


def _records(data: AnnotatedImages, report: Report) -> list[dict[str, Any]]:
    """The detections as COCO's results, with the ids of the user's file."""
    records: list[dict[str, Any]] = []
    for entry in data.entries:
        found = report.found[entry.id]
        rows = [
            {
                "image_id": entry.id,
                "category_id": data.category_ids[label - 1],
                "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(score, 4),
            }
            for (x1, y1, x2, y2), score, label in zip(*(values.tolist() for values in found[:3]), strict=True)
        ]
        if found.grids is not None:
            masks = encode_all(found, entry.width, entry.height)
            rows = [{**row, "segmentation": mask} for row, mask in zip(rows, masks, strict=True)]
        records += rows
    return records
