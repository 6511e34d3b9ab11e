"""``roialign demo``: the main job, on the photos that the package ships."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torchvision
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from torch import Tensor

from .. import RoIAlign, backends, roi_align
from ..explain import explain
from ..outputs import Folder
from ..samples import HELDOUT, load_photo
from ..terminal import say, shown

EXPLAINED, PAGE, CROWNS, TREES = "explain.png", "explain.html", "crowns.png", "detection.png"
CROWN = 96  # pixels of a pooled crown on the contact sheet

Note = Callable[[str, str], None]


def run(out: Path, console: Console) -> None:
    """Run every part, save the pictures in ``out`` and close with a table."""
    with Folder(out) as folder:
        folder.claim(EXPLAINED, PAGE, CROWNS, TREES)
        _run(folder, console)


def _run(folder: Folder, console: Console) -> None:
    table = Table(title="What was computed", title_justify="left")
    for heading in ("part", "result", "time"):
        table.add_column(heading, overflow="fold")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:

        @contextmanager
        def part(name: str) -> Iterator[Note]:
            task = progress.add_task(name)
            start = time.perf_counter()
            notes: list[str] = []
            yield lambda label, value: notes.append(shown(f"{label}: {value}"))
            progress.remove_task(task)
            table.add_row(name, Text("\n".join(notes)), f"{time.perf_counter() - start:.2f} s")

        with part("The simple example") as note:
            simple_example(note)
        with part("The same, explained") as note:
            explain_example(folder, note)
        image, boxes = load_photo()
        with part("Every tree crown, pooled from the pixels") as note:
            crowns = pool_crowns(image, boxes, note)
        with part("Drawing") as note:
            with folder.open(CROWNS) as picture:
                draw_crowns(image, boxes, crowns, picture)
            note("picture", str(folder.path / CROWNS))
        with part("Faster R-CNN: a training step, an inference") as note:
            detector_step(image, boxes, note)
        with part("Tree crowns found where the package's detector was not trained") as note:
            with folder.open(TREES) as picture:
                detect_trees(picture, note)
            note("picture", str(folder.path / TREES))
    serving = next(name for name, status in backends.available().items() if status.ready)
    console.print(table)
    console.print(f"backend {serving}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    say(console, f"Look at {folder.path / CROWNS}, {folder.path / TREES} and {folder.path / PAGE}")


def simple_example(note: Note) -> None:
    """The tutorial's example, beside torchvision's answer."""
    feature_map = torch.arange(64.0).reshape(1, 1, 8, 8)
    boxes = [torch.tensor([[0.0, 0.375, 0.875, 0.625]])]
    ours = RoIAlign(output_size=2, sampling_ratio=2, spatial_scale=5)(feature_map, boxes)
    theirs = torchvision.ops.RoIAlign(output_size=2, sampling_ratio=2, spatial_scale=5)(feature_map, boxes)
    note("roialign", str(ours.flatten().tolist()))
    note("torchvision", str(theirs.flatten().tolist()))
    note("largest difference", f"{float((ours - theirs).abs().max()):.1g}")


def explain_example(folder: Folder, note: Note) -> None:
    """Every number of the tutorial's example as a picture, and as a page to play with."""
    from ..explain.figures import save

    told = explain(torch.arange(64.0).reshape(8, 8), (0.0, 0.375, 0.875, 0.625), 2, 5.0, 2)
    with folder.open(EXPLAINED) as picture:
        save(told, picture)
    folder.write(PAGE, told.to_html().encode())
    note("picture", str(folder.path / EXPLAINED))
    note("page to play with", str(folder.path / PAGE))


def pool_crowns(image: Tensor, boxes: Tensor, note: Note) -> Tensor:
    """Pool every box of the photo in one call: ``[K, 3, CROWN, CROWN]``, values in [0, 1]."""
    # aligned=True: a pixel's centre is its position, so the picture is not shifted by half a pixel.
    crowns = roi_align(image[None], [boxes], CROWN, sampling_ratio=0, aligned=True)
    note("input", f"{tuple(image.shape)} photo, {len(boxes)} boxes")
    note("output", str(tuple(crowns.shape)))
    return crowns


def draw_crowns(image: Tensor, boxes: Tensor, crowns: Tensor, path: BinaryIO) -> None:
    """The photo with its boxes on the left, the pooled crowns on the right, both in order of size."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = area.argsort(descending=True).tolist()
    colours = colormaps["viridis"](torch.linspace(1, 0.15, len(order)).numpy())
    columns = 8
    rows = -(-len(order) // columns)
    figure = Figure(figsize=(16, 8.4), dpi=100, facecolor="white")
    left = figure.add_axes((0.01, 0.01, 0.485, 0.93))
    left.imshow(image.permute(1, 2, 0).numpy(), extent=(0, image.shape[2], image.shape[1], 0))
    right = figure.add_axes((0.505, 0.01, 0.485, 0.93))
    smallest, largest = int(area.min().sqrt()), int(area.max().sqrt())
    figure.text(0.01, 0.955, f"{len(order)} tree crowns, {smallest} to {largest} pixels wide", fontsize=17)
    figure.text(0.505, 0.955, f"after one roi_align call: {len(order)} crowns, {CROWN} x {CROWN} each", fontsize=17)
    label: dict[str, Any] = {
        "fontsize": 7, "color": "white", "va": "top", "clip_on": True,
        "bbox": {"boxstyle": "square,pad=0.12", "facecolor": "black", "alpha": 0.6, "linewidth": 0},
    }  # fmt: skip
    for place, (k, colour) in enumerate(zip(order, colours, strict=True)):
        x1, y1, x2, y2 = boxes[k].tolist()
        left.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.8))
        left.text(x1 + 1, y1 + 1, str(place + 1), **label)
        row, column = divmod(place, columns)
        box = (column + 0.04, column + 0.96, row + 0.96, row + 0.04)
        right.imshow(crowns[k].permute(1, 2, 0).clamp(0, 1).numpy(), extent=box)
        frame = Rectangle((box[0], box[3]), 0.92, 0.92, fill=False, edgecolor=colour, linewidth=2)
        right.add_patch(frame)
        right.text(box[0] + 0.04, box[3] + 0.05, str(place + 1), **label)
    for axes, width, height in ((left, image.shape[2], image.shape[1]), (right, columns, rows)):
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        axes.set_axis_off()
    figure.savefig(path, format="png")


def detector_step(image: Tensor, boxes: Tensor, note: Note) -> None:
    """One training step and one inference of the tutorial's detector on the photo, from random weights."""
    from ..detection import build_detector

    torch.manual_seed(0)
    model = build_detector(num_classes=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    losses = model([image], [{"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}])
    total = sum(losses.values())
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    for name, loss in losses.items():
        note(name, f"{loss.item():.4f}")
    with torch.inference_mode():
        found = model.eval()([image])[0]
    note("boxes of the untrained model", str(len(found["boxes"])))


def detect_trees(path: BinaryIO, note: Note) -> None:
    """The package's detector on the part of a photo that was held out of its training, beside the truth."""
    from ..detection import detect, load_detector
    from ..detection.datasets import AnnotatedImages, open_photo
    from ..detection.evaluation import evaluate_found
    from ..detection.pictures import draw_beside

    model = load_detector()
    data = AnnotatedImages(HELDOUT)
    entry = next(entry for entry in data.entries if entry.file.name == "YELL_lower.jpg")
    (found,) = detect(model, [open_photo(entry.file, entry.width, entry.height)])
    ap50 = evaluate_found(data, {entry.id: found}).metrics["AP50"]
    right, wrong = draw_beside(entry, found.above(model.card["metrics"]["score_threshold"]), path)
    note("found", f"{right} of {len(entry.boxes)} trees, and {wrong} boxes that are none")
    note("AP50", f"{ap50:.3f}")
