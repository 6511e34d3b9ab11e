"""Detect in image files as the command line does: each drawn with its boxes, and files of all boxes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from ..outputs import Folder, check_files, write_atomically
from ..samples import HELDOUT
from ..terminal import cell, say
from . import pictures
from .detector import Detector
from .geography import place_of
from .images import DamagedImageError, Photo, find_images, passed_over
from .rasters import open_image
from .records import Category, Result, as_coco, as_geojson, as_table
from .tiles import Found, detect
from .video import Recorder, count_frames, is_video, read_frames

RECORDS = "detections.json"
Draw = Callable[[Photo, Found], None]


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
    tta: bool = False,
    large: bool = False,
    device: str | None = None,
    draw: bool = True,
    table_file: Path | None = None,
    geojson_file: Path | None = None,
) -> list[str]:
    """Detect in images and videos: each drawn with its boxes, and ``detections.json`` in COCO's format, in ``out``.

    A drawing is named after its image, with a number where that name is taken: by another image of the same stem, or by
    any file that a run of ours did not leave there. So no photo is ever written over.

    Args:
        patterns: files, folders and globs; none: a photo that the package ships. Videos are taken where they are named,
            and left aside in folders.
        out: folder to write.
        console: where to report.
        weights: the detector's file; None: the one that the package ships.
        score: the least score of a box; None: what suits the detector by its card, or 0.5.
        tile, overlap, batch, tta, large: as in :func:`roialign.detection.detect`.
        device: as in :class:`roialign.detection.Detector`.
        draw: draw the images with their boxes.
        table_file, geojson_file: where to write all boxes as a CSV and as GeoJSON, too.

    Returns:
        What was wrong with each image that could not be read.

    Raises:
        FileExistsError: ``detections.json`` is there and not ours, another run is writing to ``out``, or a file to
            write is read.
        ModuleNotFoundError: a video without PyAV, or a georeferenced image for GeoJSON without rasterio.
    """
    detector = Detector(weights, device)
    score = detector.score if score is None else score
    categories = [Category(*each) for each in zip(detector.category_ids, detector.classes, strict=True)]
    files = find_images(patterns or [HELDOUT.parent / "YELL_lower.jpg"])
    results: list[Result] = []
    with Folder(out) as folder, progress_bar(console) as progress:
        files = _without_own(files, folder, console)
        named = (table_file, geojson_file)
        check_files([*named, out / RECORDS], [*files, weights])
        folder.protect([*files, weights])
        folder.claim(RECORDS)
        folder.reserve(*named)
        others = ", ".join(f"{count} {suffix}" for suffix, count in passed_over(patterns).items())
        if others:
            say(console, f"left aside, no images by their names: {others}", "yellow")
        photos = _Photos(files, progress)
        found = detect(detector.model, photos, tile=tile, overlap=overlap, batch=batch, tta=tta, large=large)
        pairs = ((photos.opened.popleft(), each.above(score)) for each in found)
        for path, group in groupby(pairs, lambda pair: pair[0].path):
            with _drawing(path, folder, detector.classes) if draw else nullcontext(_not_drawn) as show:
                for photo, each in group:
                    show(photo, each)
                    place, note = (None, "") if geojson_file is None else place_of(photo)
                    if note:
                        say(progress.console, f"{path}: {note}", "yellow")
                    results.append(Result(path, photo.width, photo.height, each, place, photo.frame, photo.time))
                    progress.advance(photos.task)
        folder.write(RECORDS, as_coco(results, categories, out))
        for file, pack in zip(named, (as_table, as_geojson), strict=True):
            if file is not None:
                write_atomically(file, pack(results, categories, file.parent))
    console.print(_table(results))
    images, boxes = len({each.file for each in results}), sum(len(each.found.boxes) for each in results)
    written = ", ".join(str(file) for file in (out / RECORDS, *named) if file is not None)
    drawn = f" and the pictures in {out}" if draw else ""
    what = f"{boxes} boxes of score {score:.2f} or more in {images} of {len(files)} images"
    say(console, f"{what}; wrote {written}{drawn}")
    return photos.faults


class _Photos:
    """The images and frames one after the other; what cannot be read is said, and left out."""

    def __init__(self, files: Sequence[Path], progress: Progress) -> None:
        self.files, self.progress = files, progress
        self.opened: deque[Photo] = deque()  # of which nobody has asked for the boxes yet
        self.faults: list[str] = []
        total = sum(count_frames(file) if is_video(file) else 1 for file in files)
        self.task = progress.add_task("detecting", total=total)

    def __iter__(self) -> Iterator[Photo]:
        for file in self.files:
            try:
                for photo in read_frames(file) if is_video(file) else (open_image(file),):
                    if photo.note:
                        say(self.progress.console, f"{file}: {photo.note}", "yellow")
                    self.opened.append(photo)
                    yield photo
            except DamagedImageError as fault:
                self.faults.append(str(fault))
                say(self.progress.console, f"skipped {fault}", "red")
                self.progress.advance(self.task)


@contextmanager
def _drawing(path: Path, folder: Folder, classes: Sequence[str]) -> Iterator[Draw]:
    """What draws one image, or the frames of one video, into a file of the folder."""
    if not is_video(path):
        with folder.open(folder.pick(path.stem, ".jpg")) as drawing:
            yield lambda photo, found: pictures.draw_found(photo, found, classes).save(drawing, "JPEG", quality=92)
        return
    with folder.stage(folder.pick(path.stem, ".mp4")) as file, Recorder(file) as recorder:
        yield lambda photo, found: recorder.add(pictures.draw_found(photo, found, classes, enlarge=False), photo.time)


def _not_drawn(photo: Photo, found: Found) -> None:
    """With --no-draw."""


def _table(results: Sequence[Result]) -> Table:
    """A row for each image or video."""
    headings = (Column(heading, overflow="fold") for heading in ("image", "size", "boxes", "best score"))
    table = Table(*headings, title="Detections", title_justify="left")
    for file, group in groupby(results, lambda result: result.file):
        first, *others = group
        frames = "" if first.frame is None else f", {1 + len(others)} frames"
        scores = torch.cat([each.found.scores for each in (first, *others)])
        best = f"{float(scores.max()):.2f}" if len(scores) else "-"
        table.add_row(*map(cell, (file, f"{first.width} x {first.height}{frames}", len(scores), best)))
    return table


def _without_own(files: list[Path], folder: Folder, console: Console) -> list[Path]:
    """The files but for what a run of ours drew in the folder."""
    others = [file for file in files if not folder.wrote(file)]
    if len(others) < len(files):
        count = len(files) - len(others)
        say(console, f"{count} files are left out: they are what roialign drew in {folder.path}", "yellow")
    return others


def progress_bar(console: Console) -> Progress:
    """How many images are done; it goes when it ends."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
