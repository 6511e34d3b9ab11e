"""What the detector's commands draw."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import to_pil_image

from ..terminal import shown
from .confusion import NOTHING, judge
from .datasets import AnnotatedImages, Entry, open_photo
from .evaluation import Report, class_names, match, within_crowds
from .images import Photo
from .labels import (
    SKY,
    SMALLEST,
    VERMILION,
    YELLOW,
    Tag,
    colour_of,
    draw_tags,
    elided,
    enlarged,
    font_file,
    font_for,
    tags_of,
)
from .masks import Patch
from .overlays import draw_masks, shade
from .tiles import Found
from .views import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, WRONG, MISSED, UNJUDGED = YELLOW, VERMILION, SKY, "#9a9a9a"
LONGEST = 4096  # pixels of a drawn photo; a larger one is drawn smaller
COLUMNS, PATCH = 6, 200  # of a sheet of misses
LETTERS, LINE = 13, 18  # pixels of its letters and lines
NUMBERED, MOST = 20, 60  # classes of a confusion matrix, at most: with its numbers, and in all

Output = Path | BinaryIO


def draw_boxes(image: Image.Image, boxes: Tensor, colour: str, scale: float = 1, width: int = 1) -> None:
    """Draw boxes ``[N, 4]``, in pixels of the unscaled photo, on its picture."""
    pen = ImageDraw.Draw(image)
    for box in (boxes * scale).tolist():
        pen.rectangle(box, outline=colour, width=width)


def draw_found(photo: Photo, found: Found, classes: Sequence[str], enlarge: bool = True) -> Image.Image:
    """The photo with its detections, each with its class and score; if need be so large that these can be read."""
    picture = photo.preview(LONGEST)
    scale = picture.width / photo.width
    if enlarge:
        picture, times = enlarged(picture, found.boxes * scale, LONGEST)
        scale *= times
    if found.grids is not None:
        draw_masks(picture, found, scale)
    draw_tags(picture, tags_of(found.boxes, found.scores, found.labels, classes, scale))
    return picture


def draw_views(samples: Sequence[Sample], classes: Sequence[str], path: Output) -> None:
    """One sheet of what the model sees in training, with the boxes it shall find."""
    size = samples[0].image.shape[-1]
    columns = min(4, len(samples))
    sheet = Image.new("RGB", (columns * size, -(-len(samples) // columns) * size))
    for place, sample in enumerate(samples):
        picture = to_pil_image(sample.image)
        for mask, label in zip(sample.target.get("masks", ()), sample.target["labels"].tolist(), strict=False):
            shade(picture, Patch(0, 0, mask.bool().numpy()), colour_of(label))
        tags = []
        for box, label in zip(sample.target["boxes"].tolist(), sample.target["labels"].tolist(), strict=True):
            name = shown(classes[label - 1])
            fits = len(classes) > 1 and font_for(name, SMALLEST).getlength(name) <= box[2] - box[0]
            tags.append(Tag(box, colour_of(label), (name,) if fits else ()))
        draw_tags(picture, tags)
        sheet.paste(picture, (place % columns * size, place // columns * size))
    sheet.save(path, "PNG")


class _Miss(NamedTuple):
    """A detection that is false, or a true box that was not found."""

    rank: float  # of its kind, the highest first
    image: int
    box: Tensor
    colour: str
    name: str  # its class, and of a detection its score
    fault: str


def draw_worst(data: AnnotatedImages, report: Report, path: Output, rows: int = 5) -> int:
    """One sheet of the worst misses at IoU 0.5, above the score of the best F1; returns how many there are.

    The surest false detections, then the largest objects that were not found, turn by turn, each in the middle of its
    patch, and below it its class and score, what is wrong with it, and the file.
    """
    wrong, missed = _misses(data, report)
    turns = [
        part[place] for place in range(max(len(wrong), len(missed))) for part in (wrong, missed) if place < len(part)
    ]
    worst = turns[: rows * COLUMNS]
    step = PATCH + 3 * LINE + 4
    sheet = Image.new("RGB", (COLUMNS * PATCH, 2 * LINE + -(-len(worst) // COLUMNS) * step), "white")
    pen = ImageDraw.Draw(sheet)
    score = f"score {report.metrics['score_threshold']:.2f}, IoU 0.5"
    title = f"The worst {len(worst)} of {len(turns)} misses at {score}. In the middle:"
    x = 4.0
    for colour, text in (
        ("white", title),
        (WRONG, "found, but false"),
        (MISSED, "not found"),
        (RIGHT, "all true boxes"),
    ):
        pen.rectangle((x, LINE - 6, x + 12, LINE + 6), fill=colour)
        x += 0 if colour == "white" else 17
        pen.text((x, LINE), text, fill="black", font=font_for(text, LETTERS), anchor="lm")
        x += font_for(text, LETTERS).getlength(text) + 14
    for index in sorted({miss.image for miss in worst}):  # one photo in memory at a time
        entry = data.entries[index]
        photo = open_photo(entry.file, entry.width, entry.height)
        for place, miss in enumerate(worst):
            if miss.image == index:
                x, y = place % COLUMNS * PATCH, 2 * LINE + place // COLUMNS * step
                sheet.paste(_patch(photo, entry.boxes, miss.box, miss.colour), (round(x), y))
                for line, text in enumerate((miss.name, miss.fault, shown(entry.file.name))):
                    text = elided(text, LETTERS, PATCH - 8)
                    middle = (x + 3, y + PATCH + (line + 0.5) * LINE)
                    pen.text(middle, text, fill="black", font=font_for(text, LETTERS), anchor="lm")
    sheet.save(path, "PNG")
    return len(turns)


def _misses(data: AnnotatedImages, report: Report) -> tuple[list[_Miss], list[_Miss]]:
    """False detections, the surest first, and true boxes that nobody found, the largest first."""
    names = [shown(name) for name in class_names(data)]
    wrong: list[_Miss] = []
    missed: list[_Miss] = []
    for index, entry in enumerate(data.entries):
        each = report.found[entry.id].above(report.metrics["score_threshold"])
        verdict = judge(each, entry)
        for box, score, label, true in zip(*each[:3], verdict.detections.tolist(), strict=True):
            if true != label and true >= NOTHING:
                name = f"{names[int(label) - 1]} {float(score):.2f}"
                again = bool((box_iou(box[None], entry.boxes) >= 0.5).any())
                fault = f"is {names[true - 1]}" if true else "one too many" if again else "no true box"
                wrong.append(_Miss(float(score), index, box, WRONG, name, fault))
        for box, label, given in zip(entry.boxes, entry.labels.tolist(), verdict.truths.tolist(), strict=True):
            if given == NOTHING:
                size = float((box[2:] - box[:2]).prod())
                missed.append(_Miss(size, index, box, MISSED, names[label - 1], "not found"))
    by_rank = partial(sorted, key=lambda miss: -miss.rank)
    return by_rank(wrong), by_rank(missed)


def draw_beside(entry: Entry, found: Found, path: Output) -> tuple[int, int]:
    """Save what was found above what is true, matched at IoU 0.5; returns how many are right and how many wrong."""
    to_truth, to_found = match(found, entry)
    right, hit = to_truth >= 0, to_found >= 0
    unjudged = ~right & within_crowds(found, entry)
    wrong = ~right & ~unjudged
    photo = open_photo(entry.file, entry.width, entry.height)
    from matplotlib.patches import Rectangle  # not before it is needed, as in _figure

    figure = _figure(16, 32.6 * photo.height / photo.width + 0.9, 100)
    titles = (
        f"Found: {int(right.sum())} right (yellow), {int(wrong.sum())} wrong (orange)",
        f"Truth: {len(entry.boxes)} trees, {int(hit.sum())} found (yellow), {int((~hit).sum())} missed (blue)",
    )
    rows = (
        ((found.boxes[unjudged], UNJUDGED), (found.boxes[right], RIGHT), (found.boxes[wrong], WRONG)),
        ((entry.crowds, UNJUDGED), (entry.boxes[hit], RIGHT), (entry.boxes[~hit], MISSED)),
    )
    rest = ", outside the part judged (grey)" if len(entry.crowds) else ""
    for axes, title, groups in zip(figure.subplots(2), titles, rows, strict=True):
        axes.imshow(photo.preview(LONGEST), extent=(0, photo.width, photo.height, 0))
        for boxes, colour in groups:
            for x1, y1, x2, y2 in boxes.tolist():
                axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.8))
        axes.set_title(title + rest, fontsize=17, loc="left")
        axes.set_axis_off()
    figure.savefig(path, format="png")
    return int(right.sum()), int(wrong.sum())


def _patch(photo: Photo, truth: Tensor, box: Tensor, colour: str) -> Image.Image:
    """The surroundings of a box, three times as wide."""
    side = max(32.0, 3 * float((box[2:] - box[:2]).max()))
    corner = ((box[:2] + box[2:] - side) / 2).floor()
    x, y = (int(v) for v in corner)
    window = (max(0, x), max(0, y), min(photo.width, x + round(side)), min(photo.height, y + round(side)))
    whole = Image.new("RGB", (round(side), round(side)), "#dddddd")  # what lies outside the photo
    whole.paste(photo.crop(window), (window[0] - x, window[1] - y))
    factor = (PATCH - 2) / round(side)
    patch = whole.resize((PATCH - 2, PATCH - 2), Image.Resampling.BICUBIC)
    draw_boxes(patch, truth - corner.repeat(2), RIGHT, factor)
    draw_boxes(patch, box[None] - corner.repeat(2), colour, factor, 3)
    return patch


def plot_curve(report: Report, path: Output) -> None:
    """Precision over recall at IoU 0.5, with the threshold of the best F1."""
    figure = _figure(6, 5, 120)
    axes = figure.subplots()
    axes.plot(report.curve[0].numpy(), report.curve[1].numpy(), linewidth=2)
    metrics = report.metrics
    label = f"best F1 {metrics['F1']:.3f} at score {metrics['score_threshold']:.2f}"
    axes.plot(metrics["recall"], metrics["precision"], "o", label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title(f"IoU 0.5: AP50 {metrics['AP50']:.3f}, {metrics['boxes']:.0f} boxes, {metrics['images']:.0f} images")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(path, format="png")


def plot_confusion(counts: Tensor, names: Sequence[str], path: Output) -> None:
    """Which class was taken for which, a true class in each row, shaded by its shares of the row.

    Of many classes those are shown about which most mistakes were made.
    """
    mistakes = (counts.sum(0) + counts.sum(1) - 2 * counts.diagonal())[1:]
    chosen = sorted(mistakes.argsort(descending=True, stable=True)[:MOST].tolist())
    order = [*(index + 1 for index in chosen), NOTHING]
    table = counts[order][:, order]
    shares = (table / counts[order].sum(1, keepdim=True).clamp(min=1)).numpy()
    shares[-1] = 0  # of what is not there all are false
    side = max(4.0, min(20.0, 2.5 + 0.55 * len(table)))
    figure = _figure(side + 1, side, 120)
    axes = figure.subplots()
    shade = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(table))
    for axis, last in ((axes.xaxis, "not found"), (axes.yaxis, "nothing there")):
        texts = [elided(shown(names[index]), LETTERS, PATCH) for index in chosen]
        axis.set_ticks(places, [*texts, last])
        for label in axis.get_ticklabels():
            label.set_fontproperties(Path(font_file(label.get_text())))
            label.set_parse_math(False)
    axes.tick_params(axis="x", rotation=90 if len(table) > 4 else 0)
    if len(table) <= NUMBERED:
        for row in places:
            for column in places:
                if (row, column) != (len(table) - 1, len(table) - 1):
                    ink = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(column, row, str(int(table[row, column])), ha="center", va="center", color=ink)
    axes.set(xlabel="detected as", ylabel="true class")
    if len(names) > MOST:
        axes.set_title(f"the {MOST} of {len(names)} classes with most mistakes")
    figure.colorbar(shade, label="share of the class", shrink=0.8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # no font of the system has such letters
        figure.savefig(path, format="png")


def plot_history(history: Sequence[dict[str, float]], path: Output) -> None:
    """Losses and AP over the epochs."""
    figure = _figure(11, 4.2, 100)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for axes, names, title in (
        (left, [name for name in history[0] if name.startswith("loss_")], "losses"),
        (right, [name for name in history[0] if "AP" in name], "AP of the averaged model"),
    ):
        for name in names:
            axes.plot(epochs, [row[name] for row in history], label=name.removeprefix("loss_"), marker=".")
        axes.set(xlabel="epoch", title=title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if names:
            axes.legend()
    figure.savefig(path, format="png")


def _figure(width: float, height: float, dpi: int) -> Figure:
    """One that belongs to no window, in inches: pyplot would list it for the whole process, and choose its windows."""
    from matplotlib.figure import Figure  # not before it is needed

    return Figure((width, height), dpi, layout="constrained")
