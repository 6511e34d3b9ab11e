"""What the detector's commands draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from .datasets import AnnotatedImages, Entry, open_photo
from .evaluation import Report, match, within_crowds
from .images import Photo
from .tiles import Found
from .views import Sample

RIGHT, WRONG, MISSED, UNJUDGED = "#ffd400", "#ff3b30", "#00e5ff", "#9a9a9a"
LONGEST = 4096  # pixels of a drawn photo; a larger one is drawn smaller
COLUMNS, PATCH = 6, 160  # of a sheet of misses

Output = Path | BinaryIO


def draw_boxes(image: Image.Image, boxes: Tensor, colour: str, scale: float = 1) -> None:
    """Draw boxes ``[N, 4]``, in pixels of the unscaled photo, on its picture."""
    pen = ImageDraw.Draw(image)
    width = max(1, round(max(image.size) / 800))
    for box in (boxes * scale).tolist():
        pen.rectangle(box, outline=colour, width=width)


def draw_found(photo: Photo, found: Found) -> Image.Image:
    """The photo with its detections."""
    picture = photo.preview(LONGEST)
    draw_boxes(picture, found.boxes, RIGHT, picture.width / photo.width)
    return picture


def draw_views(samples: Sequence[Sample], path: Output) -> None:
    """One sheet of what the model sees in training, with the boxes it shall find."""
    size = samples[0].image.shape[-1]
    columns = min(4, len(samples))
    sheet = Image.new("RGB", (columns * size, -(-len(samples) // columns) * size))
    for place, sample in enumerate(samples):
        picture = to_pil_image(sample.image)
        draw_boxes(picture, sample.target["boxes"], RIGHT)
        sheet.paste(picture, (place % columns * size, place // columns * size))
    sheet.save(path, "PNG")


def draw_worst(data: AnnotatedImages, report: Report, path: Output, rows: int = 5) -> int:
    """One sheet of the worst misses at IoU 0.5, above the score of the best F1; returns how many there are.

    The surest false detections in red, then the largest objects that were not found in blue, turn by turn, each in the
    middle of its patch. True boxes that were found are yellow.
    """
    threshold = report.metrics["score_threshold"]
    wrong: list[tuple[float, int, Tensor]] = []
    missed: list[tuple[float, int, Tensor]] = []
    for index, entry in enumerate(data.entries):
        each = report.found[entry.id].above(threshold)
        to_truth, to_found = match(each, entry)
        false = (to_truth < 0) & ~within_crowds(each, entry)
        wrong += [(float(s), index, box) for s, box in zip(each.scores[false], each.boxes[false], strict=True)]
        left = entry.boxes[to_found < 0]
        missed += [(float((box[2:] - box[:2]).prod()), index, box) for box in left]
    most = rows * COLUMNS
    worst: list[tuple[int, Tensor, str]] = []
    ranked = [sorted(part, key=lambda item: -item[0]) for part in (wrong, missed)]
    for place in range(max(map(len, ranked), default=0)):
        for part, colour in zip(ranked, (WRONG, MISSED), strict=True):
            if place < len(part):
                worst.append((part[place][1], part[place][2], colour))
    worst = worst[:most]
    sheet = Image.new("RGB", (COLUMNS * PATCH, max(1, -(-len(worst) // COLUMNS)) * PATCH), "white")
    for index in sorted({index for index, _, _ in worst}):  # one photo in memory at a time
        entry = data.entries[index]
        photo = open_photo(entry.file, entry.width, entry.height)
        for place, (which, box, colour) in enumerate(worst):
            if which == index:
                patch = _patch(photo, entry.boxes, box, colour)
                sheet.paste(patch, (place % COLUMNS * PATCH, place // COLUMNS * PATCH))
    sheet.save(path, "PNG")
    return len(wrong) + len(missed)


def draw_beside(entry: Entry, found: Found, path: Output) -> tuple[int, int]:
    """Save what was found above what is true, matched at IoU 0.5; returns how many are right and how many wrong."""
    to_truth, to_found = match(found, entry)
    right, hit = to_truth >= 0, to_found >= 0
    unjudged = ~right & within_crowds(found, entry)
    wrong = ~right & ~unjudged
    photo = open_photo(entry.file, entry.width, entry.height)
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(
        2, figsize=(16, 32.6 * photo.height / photo.width + 0.9), dpi=100, layout="constrained"
    )
    titles = (
        f"Found: {int(right.sum())} right (yellow), {int(wrong.sum())} wrong (red)",
        f"Truth: {len(entry.boxes)} trees, {int(hit.sum())} found (yellow), {int((~hit).sum())} missed (blue)",
    )
    rows = (
        ((found.boxes[unjudged], UNJUDGED), (found.boxes[right], RIGHT), (found.boxes[wrong], WRONG)),
        ((entry.crowds, UNJUDGED), (entry.boxes[hit], RIGHT), (entry.boxes[~hit], MISSED)),
    )
    rest = ", outside the part judged (grey)" if len(entry.crowds) else ""
    for axes, title, groups in zip(panels, titles, rows, strict=True):
        axes.imshow(photo.preview(LONGEST), extent=(0, photo.width, photo.height, 0))
        for boxes, colour in groups:
            for x1, y1, x2, y2 in boxes.tolist():
                axes.add_patch(
                    pyplot.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.8)
                )
        axes.set_title(title + rest, fontsize=17, loc="left")
        axes.set_axis_off()
    figure.savefig(path, format="png")
    pyplot.close(figure)
    return int(right.sum()), int(wrong.sum())


def _patch(photo: Photo, truth: Tensor, box: Tensor, colour: str) -> Image.Image:
    """The surroundings of a box, three times as wide."""
    side = max(32.0, 3 * float((box[2:] - box[:2]).max()))
    corner = ((box[:2] + box[2:] - side) / 2).floor()
    x, y = (int(v) for v in corner)
    window = (max(0, x), max(0, y), min(photo.width, x + round(side)), min(photo.height, y + round(side)))
    whole = Image.new("RGB", (round(side), round(side)), "white")
    whole.paste(photo.crop(window), (window[0] - x, window[1] - y))
    factor = (PATCH - 2) / round(side)
    patch = whole.resize((PATCH - 2, PATCH - 2), Image.Resampling.BICUBIC)
    draw_boxes(patch, truth - corner.repeat(2), RIGHT, factor)
    draw_boxes(patch, box[None] - corner.repeat(2), colour, factor)
    return patch


def plot_curve(report: Report, path: Output) -> None:
    """Precision over recall at IoU 0.5, with the threshold of the best F1."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(6, 5), dpi=120, layout="constrained")
    axes.plot(report.curve[0].numpy(), report.curve[1].numpy(), linewidth=2)
    metrics = report.metrics
    label = f"best F1 {metrics['F1']:.3f} at score {metrics['score_threshold']:.2f}"
    axes.plot(metrics["recall"], metrics["precision"], "o", label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title(f"IoU 0.5: AP50 {metrics['AP50']:.3f}, {metrics['boxes']:.0f} boxes, {metrics['images']:.0f} images")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(path, format="png")
    pyplot.close(figure)


def plot_history(history: Sequence[dict[str, float]], path: Output) -> None:
    """Losses and AP over the epochs."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), dpi=100, layout="constrained")
    epochs = [row["epoch"] + 1 for row in history]
    for axes, names, title in (
        (left, [name for name in history[0] if name.startswith("loss_")], "losses"),
        (right, [name for name in history[0] if name.startswith("AP")], "AP of the averaged model"),
    ):
        for name in names:
            axes.plot(epochs, [row[name] for row in history], label=name.removeprefix("loss_"), marker=".")
        axes.set(xlabel="epoch", title=title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if names:
            axes.legend()
    figure.savefig(path, format="png")
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
