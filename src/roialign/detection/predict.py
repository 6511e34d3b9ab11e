"""Detect in image files as the command line does: each drawn with its boxes, and files of all boxes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from ..outputs import Folder, check_files, write_atomically
from ..samples import HELDOUT
from ..terminal import cell, say
from . import pictures
from .detector import Detector
from .devices import gathered, of_the_first, processes, told
from .fields import some
from .geography import place_of
from .geopackage import check_geopackage
from .images import DamagedImageError, Photo, find_images, passed_over
from .pages import count_images, read_images
from .precision import slow
from .records import Category, Result, as_coco, as_geojson, as_geopackage, as_table
from .tiles import USUAL, Found, Tiling, detect
from .video import Recorder, is_video

RECORDS = "detections.json"
Draw = Callable[[Photo, Found], None]


def detect_files(
    patterns: Sequence[str],
    out: Path,
    console: Console,
    *,
    weights: Path | None = None,
    score: float | None = None,
    tiling: Tiling = USUAL,
    device: str | None = None,
    precision: str = "float32",
    draw: bool = True,
    table_file: Path | None = None,
    geojson_file: Path | None = None,
    geopackage_file: Path | None = None,
) -> list[str]:
    """Detect in images and videos: each drawn with its boxes, and ``detections.json`` in COCO's format, in ``out``.

    Processes that a launcher started share the files; they draw into ``out``, and the first one writes the rest: what
    one process alone would write, to the byte if ``batch`` is 1.

    A drawing is named after its image, or file and frame, with a number where that name is taken: by another image of
    the same stem, or by any file that a run of ours did not leave there. So no photo is ever written over.

    Args:
        patterns: files, folders and globs; none: a photo that the package ships. Videos are taken where they are named,
            and left aside in folders.
        out: folder to write.
        console: where to report.
        weights: the detector's file; None: the one that the package ships.
        score: the least score of a box; None: what suits the detector by its card, or 0.5.
        tiling: how images are looked at.
        device, precision: as in :class:`roialign.detection.Detector`.
        draw: draw the images with their boxes.
        table_file, geojson_file, geopackage_file: to write all boxes to, the last for georeferenced images only.

    Returns:
        What was wrong with each image that could not be read; in processes beside the first one nothing.

    Raises:
        FileExistsError: ``detections.json`` is there and not ours, another run is writing to ``out``, or a file to
            write is read.
        ModuleNotFoundError: a video without PyAV, or what GeoJSON or a GeoPackage takes is missing.
    """
    if geopackage_file is not None:
        check_geopackage(geopackage_file)
    detector = Detector(weights, device, precision)
    score = detector.score if score is None else score
    categories = [Category(*each) for each in zip(detector.category_ids, detector.classes, strict=True)]
    named = (table_file, geojson_file, geopackage_file)
    team = processes(device)
    main = team.is_main_process
    _say_beforehand(team, console, bool(patterns) and weights is None, precision)
    with Folder(out, writes=main) as folder, progress_bar(console, main) as progress:
        tasks = of_the_first(team, lambda: _plan(patterns, folder, console, [weights], named, draw))
        share = tasks[team.process_index :: team.num_processes]
        if draw and not main:
            folder.join(name for task in share for name in task.drawings)
        photos = _Photos(share, progress)
        found = detect(detector.model, photos, **tiling._asdict())
        sure = (each.above(score) for each in found)
        own = list(_results(photos, sure, partial(_drawing, folder, detector.classes), any(named[1:])))
        order = {task.file: number for number, task in enumerate(tasks)}
        results = sorted(gathered(team, own), key=lambda result: order[result.file])
        faults = dict(sorted(gathered(team, list(photos.faults.items())), key=lambda fault: order[fault[0]]))
        if not main:
            return []
        folder.write(RECORDS, as_coco(results, categories, out))
        for file, pack in zip(named, (as_table, as_geojson, as_geopackage), strict=True):
            if file is not None:
                write_atomically(file, pack(results, categories, file.parent))
    written = ", ".join(str(file) for file in (out / RECORDS, *named) if file is not None)
    drawn = f" and the pictures in {out}" if draw else ""
    _report(console, results, f"of score {score:.2f} or more", len(tasks), f"{written}{drawn}")
    if geopackage_file is not None:
        _say_who_is_missing(console, results, geopackage_file)
    return list(faults.values())


def _say_beforehand(team: PartialState, console: Console, ours: bool, precision: str) -> None:
    """How many processes there are, that the detector is ours for images that are not, and that a precision is slow."""
    if line := told(team):
        say(console, line)
    if team.is_main_process and ours:
        say(console, "no --weights: the detector is the package's, of tree crowns", "yellow")
    if team.is_main_process and (line := slow(precision, team.device)):
        say(console, line, "yellow")


class _Task(NamedTuple):
    """A file to look at."""

    file: Path
    images: int  # in it, as it says
    drawings: tuple[str, ...]  # their names in the folder; none: not drawn


def _plan(
    patterns: Sequence[str],
    folder: Folder,
    console: Console,
    others: Sequence[Path | None],
    named: Sequence[Path | None],
    draw: bool,
) -> list[_Task]:
    """All files, in order, and what will be written, once nothing is in its way; ``others`` are read, too."""
    files = _without_own(find_images(patterns or [HELDOUT.parent / "YELL_lower.jpg"]), folder, console)
    check_files([*named, folder.path / RECORDS], [*files, *others])
    folder.protect([*files, *others])
    folder.claim(RECORDS)
    folder.reserve(*named)
    aside = ", ".join(f"{count} {suffix}" for suffix, count in passed_over(patterns).items())
    if aside:
        say(console, f"left aside, no images by their names: {aside}", "yellow")
    counts = map(count_images, files)
    return [
        _Task(file, count, _drawings(folder, file, count) if draw else ())
        for file, count in zip(files, counts, strict=True)
    ]


def _drawings(folder: Folder, file: Path, images: int) -> tuple[str, ...]:
    """Names of one drawing for a video, and for each of several images."""
    if is_video(file) or images == 1:
        return (folder.pick(file.stem, ".mp4" if is_video(file) else ".jpg"),)
    digits = len(str(images - 1))
    return tuple(folder.pick(f"{file.stem}-frame{number:0{digits}}", ".jpg") for number in range(images))


class _Photos:
    """The images and frames one after the other; what cannot be read is said, and left out."""

    def __init__(self, tasks: Sequence[_Task], progress: Progress) -> None:
        self.tasks, self.progress = {task.file: task for task in tasks}, progress
        self.opened: deque[Photo] = deque()  # of which nobody has asked for the boxes yet
        self.faults: dict[Path, str] = {}
        self.bar = progress.add_task("detecting", total=sum(task.images for task in tasks))

    def __iter__(self) -> Iterator[Photo]:
        for file in self.tasks:
            try:
                for photo in read_images(file):
                    if photo.note and not photo.frame:
                        say(self.progress.console, f"{file}: {photo.note}", "yellow")
                    self.opened.append(photo)
                    yield photo
            except DamagedImageError as fault:
                self.faults[file] = str(fault)
                say(self.progress.console, f"skipped {fault}", "red")
                self.progress.advance(self.bar)


def _results(
    photos: _Photos,
    found: Iterable[Found],
    drawing: Callable[[_Task], AbstractContextManager[Draw]],
    placed: bool,
) -> Iterator[Result]:
    """What was found, with its place on earth if ``placed``, drawn."""
    pairs = ((photos.opened.popleft(), each) for each in found)
    for path, group in groupby(pairs, lambda pair: pair[0].path):
        with drawing(photos.tasks[path]) as show:
            for photo, each in group:
                show(photo, each)
                place, note = place_of(photo) if placed else (None, "")
                if note and not photo.frame:
                    say(photos.progress.console, f"{path}: {note}", "yellow")
                yield Result(path, photo.width, photo.height, each, place, photo.frame, photo.time)
                photos.progress.advance(photos.bar)


@contextmanager
def _drawing(folder: Folder, classes: Sequence[str], task: _Task) -> Iterator[Draw]:
    """What draws the images of a file, each into one of the folder, or the frames of a video into one together."""
    if not task.drawings:
        yield _not_drawn
    elif not is_video(task.file):
        yield partial(_draw, folder, task.drawings, classes)
    else:
        with folder.stage(task.drawings[0]) as file, Recorder(file) as recorder:
            yield lambda photo, found: recorder.add(
                pictures.draw_found(photo, found, classes, enlarge=False), photo.time
            )


def _draw(folder: Folder, drawings: Sequence[str], classes: Sequence[str], photo: Photo, found: Found) -> None:
    with folder.open(drawings[photo.frame or 0]) as drawing:
        pictures.draw_found(photo, found, classes).save(drawing, "JPEG", quality=92)


def _not_drawn(photo: Photo, found: Found) -> None:
    """With --no-draw."""


def _report(console: Console, results: Sequence[Result], which: str, files: int, written: str) -> None:
    """A table of the images, and a line of how much there is of what, and where."""
    console.print(_table(results))
    images, boxes = len({each.file for each in results}), sum(len(each.found.boxes) for each in results)
    say(console, f"{boxes} boxes {which} in {images} of {files} images; wrote {written}")


def _say_who_is_missing(console: Console, results: Sequence[Result], geopackage: Path) -> None:
    missing = dict.fromkeys(repr(str(each.file)) for each in results if each.place is None)
    if missing:
        heading = f"{geopackage}: {len(missing)} images are not in it, since their place on earth is not known"
        say(console, some(heading, missing), "yellow")


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


def progress_bar(console: Console, shown: bool = True) -> Progress:
    """How many images are done; it goes when it ends."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not shown)
