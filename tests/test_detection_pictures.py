"""What is drawn: no label covers another, colours are told apart, and a confusion matrix is as counted by hand."""

from __future__ import annotations

import io
import itertools
import json
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from PIL import Image, ImageColor
from rich.console import Console

from roialign.detection import Found
from roialign.detection.confusion import confusion, judge
from roialign.detection.datasets import AnnotatedImages
from roialign.detection.evaluation import class_names, evaluate_found
from roialign.detection.images import Photo
from roialign.detection.labels import (
    COLOURS,
    SMALLEST,
    Tag,
    colour_of,
    draw_tags,
    elided,
    enlarged,
    font_file,
    font_for,
    letters,
    places,
    tags_of,
)
from roialign.detection.pictures import draw_found, plot_confusion
from roialign.detection.tables import classes_table, metrics_table

Array = np.ndarray[Any, Any]
CROWDED = [(seed, count) for seed in range(3) for count in (5, 60, 300)]


def found(*rows: tuple[float, ...]) -> Found:
    """Rows of x1, y1, x2, y2, score and label."""
    table = torch.tensor(rows).reshape(-1, 6)
    return Found(table[:, :4], table[:, 4], table[:, 5].long())


def some_tags(seed: int, count: int) -> list[Tag]:
    """Boxes of all sizes in a picture of 400 x 300, some of them beyond its edges."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([420.0, 320]) - 10
    size = 150 * torch.rand(count, 2, generator=generator) ** 3 + 2
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    labels = torch.arange(count) % 3 + 1
    return tags_of(torch.cat([corner, corner + size], 1), scores, labels, ["ox", "traffic light", "sheep"])


@pytest.mark.parametrize(("seed", "count"), CROWDED)
def test_no_label_covers_another_or_leaves_its_box_or_the_picture(seed: int, count: int) -> None:
    tags = some_tags(seed, count)
    written = [(tag, place) for tag, place in zip(tags, places(tags, (400, 300), 11), strict=True) if place]
    assert len(written) >= min(count, 20)
    for tag, place in written:
        assert place.text in tag.texts
        assert place.x >= 0
        assert place.y >= 0
        assert place.x + place.width <= 400
        assert place.y + place.height <= 300
        assert font_for(place.text, 11).getlength(place.text) <= place.width
        x1, y1, x2, y2 = tag.box  # to the pixels that its ends are rounded to
        assert place.x <= x2 + 2
        assert place.x + place.width >= x1 - 1
        assert place.y <= y2 + 2
        assert place.y + place.height >= y1 - 1
    for (_, a), (_, b) in itertools.combinations(written, 2):
        apart = a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y or b.y + b.height <= a.y
        assert apart, (a, b)


def test_a_label_is_above_its_box_and_where_that_is_taken_elsewhere() -> None:
    tags = [Tag((50, 50, 90, 90), COLOURS[0], ("a 0.9",)), Tag((50, 0, 90, 20), COLOURS[0], ("a 0.8",))]
    first, second, third = places([*tags, tags[0]], (200, 100), 10)
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.x, first.y + first.height) == (50, 50)
    assert (second.x, second.y) == (50, 21)  # above is the picture's edge
    assert (third.x, third.y) == (91, 50)  # above is the first label, and below the picture's edge
    narrow = Tag((0, 12, 20, 20), COLOURS[0], ("much too long for this picture", ".9"))
    (place,) = places([narrow], (40, 30), 10)
    assert place is not None
    assert place.text == ".9"
    assert places([Tag((0, 0, 20, 20), COLOURS[0], ("0.9",))], (20, 20), 10) == [None]


def test_a_box_is_drawn_at_its_edges_and_labels_can_be_read() -> None:
    """Every colour: the box's pixels, and letters of the contrast that WCAG asks for."""

    def luminance(colour: tuple[int, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in COLOURS:
        image = Image.new("RGB", (120, 100), "gray")
        tags = [Tag((20, 40, 80, 90), colour, ("tree",))]
        (place,) = places(tags, image.size, SMALLEST)
        assert place is not None
        draw_tags(image, tags)
        pixels = np.asarray(image)
        paint = ImageColor.getrgb(colour)
        for y, x in ((40, 50), (90, 50), (65, 20), (65, 80), (40, 20), (90, 80)):
            assert tuple(pixels[y, x]) == paint
        assert (pixels[45:86, 25:76] == 128).all()
        label = pixels[place.y : place.y + place.height, place.x : place.x + place.width].reshape(-1, 3)
        ink = max(label.tolist(), key=lambda pixel: abs(luminance(tuple(pixel)) - luminance(paint)))
        low, high = sorted((luminance(tuple(ink)), luminance(paint)))
        assert (high + 0.05) / (low + 0.05) > 4.5


# Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision deficiency", 2009:
# their matrices of severity 1, for linear RGB.
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(linear: Array) -> Array:
    """CIELAB of linear sRGB, white D65."""
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    f = np.cbrt(np.maximum(linear @ np.transpose(matrix), 0.0089) / [0.9505, 1, 1.089])
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


@pytest.mark.parametrize("vision", BLIND)
def test_colours_are_told_apart_by_every_vision(vision: str) -> None:
    """A difference of 2.3 in CIELAB is just seen; these are at least five times as far apart."""
    colours = np.array([ImageColor.getrgb(colour) for colour in COLOURS]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = lab(np.clip(linear @ np.transpose(BLIND[vision]), 0, 1))
    for (k, one), (j, other) in itertools.combinations(enumerate(seen), 2):
        assert np.linalg.norm(one - other) > 5 * 2.3, (COLOURS[k], COLOURS[j])
    assert [colour_of(label) for label in (1, 7, 8)] == [COLOURS[0], COLOURS[6], COLOURS[0]]


def test_small_objects_are_drawn_bigger() -> None:
    image = Image.new("RGB", (400, 300))
    for side, most, times in ((30, 4096, 3), (200, 4096, 1), (30, 1000, 2), (1, 4096, 4)):
        boxes = torch.tensor([[10.0, 10, 10 + side, 10 + side]] * 3)
        larger, factor = enlarged(image, boxes, most)
        assert factor == times
        assert larger.size == (400 * times, 300 * times)
    assert enlarged(image, torch.empty(0, 4), 4096)[1] == 1
    mixed = torch.tensor([[0.0, 0, 400, 300], [5.0, 7, 50, 27], [50.0, 50, 59, 59]])  # the median side is 30
    assert enlarged(image, mixed, 4096)[1] == 3


def test_letters_go_with_the_boxes_and_the_picture() -> None:
    """A sixth of the median side; from 10 pixels on, and up to a fiftieth of the picture."""
    boxes = [(0, 0, 400, 300), (5, 7, 155, 103), (50, 50, 59, 59)]  # sides 346, 120 and 9
    for extent, size in (((2000, 1000), 20), ((600, 700), 14), ((300, 200), 10)):
        assert letters(extent, boxes) == size
    assert letters((4000, 4000), []) == letters((4000, 4000), [(0, 0, 30, 30)]) == SMALLEST


def test_a_photo_is_drawn_with_its_boxes_where_they_are(tmp_path: Path) -> None:
    Image.new("RGB", (100, 60), "gray").save(tmp_path / "a.png")
    one = found((20, 30, 60, 50, 0.8, 2))
    for enlarge, times in ((True, 3), (False, 1)):
        picture = draw_found(Photo(tmp_path / "a.png"), one, ["bush", "tree"], enlarge)
        assert picture.size == (100 * times, 60 * times)
        ys, xs = (np.asarray(picture) == ImageColor.getrgb(colour_of(2))).all(2).nonzero()
        assert xs.min() == 20 * times
        assert ys.max() == 50 * times
        rest = np.asarray(picture)[: 10 * times]
        assert (rest == 128).all()


def test_long_names_lose_their_middle() -> None:
    name = "a very long name of a file, IMG_20260714_112233.jpg"
    short = elided(name, 13, 150)
    assert font_for(short, 13).getlength(short) <= 150
    head, tail = short.split("…")
    assert name.startswith(head)
    assert name.endswith(tail)
    assert len(head) >= 5
    assert elided("tree.jpg", 13, 150) == "tree.jpg"


def test_letters_that_the_usual_font_lacks_come_from_another() -> None:
    usual = font_file("tree")
    has = {entry.fname: font_manager.get_font(entry.fname).get_charmap() for entry in font_manager.fontManager.ttflist}
    known = {code for file, codes in has.items() if "LastResort" not in file for code in codes}
    character = chr(min(known - has.get(usual, font_manager.get_font(usual).get_charmap()).keys()))
    other = font_file(f"{character}")
    assert other != usual
    assert ord(character) in has[other]
    assert font_file("\U0010fffe") == usual  # which nobody has


# Which class is taken for which.


def data_of(
    folder: Path, boxes: list[tuple[list[float], int]], crowds: list[tuple[list[float], int]]
) -> AnnotatedImages:
    """One image of 200 x 100 pixels, classes bush (1), tree (2) and rock (3)."""
    Image.new("RGB", (200, 100)).save(folder / "blank.png")
    annotations = [
        {"id": k, "image_id": 1, "category_id": kind, "bbox": bbox, "iscrowd": crowd}
        for k, (bbox, kind, crowd) in enumerate([(*each, 0) for each in boxes] + [(*each, 1) for each in crowds], 1)
    ]
    names = ("bush", "tree", "rock")
    content = {
        "images": [{"id": 1, "file_name": "blank.png", "width": 200, "height": 100}],
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, 1)],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return AnnotatedImages(folder / "coco.json")


def test_classes_are_confused_as_counted_by_hand(tmp_path: Path) -> None:
    boxes = [([0.0, 0, 20, 20], 1), ([40.0, 0, 20, 20], 2), ([80.0, 0, 20, 20], 2), ([120.0, 0, 20, 20], 3)]
    data = data_of(tmp_path, boxes, [([0.0, 50, 200, 50], 2)])
    rows = [
        (0, 0, 20, 20, 0.95, 2),  # surer, but of another class: the bush is the next one's
        (0, 0, 20, 20, 0.9, 1),
        (40, 0, 60, 20, 0.8, 1),  # a tree taken for a bush
        (40, 0, 60, 19, 0.7, 3),  # too late for it
        (150, 60, 170, 80, 0.6, 2),  # within a crowd of trees
        (150, 60, 170, 80, 0.6, 1),  # which excuses no bush
        (80, 0, 100, 20, 0.1, 2),  # below the score
    ]
    verdict = judge(found(*rows[:6]), data.entries[0])
    assert verdict.detections.tolist() == [0, 1, 2, 0, -1, 0]
    assert verdict.truths.tolist() == [1, 1, 0, 0]
    counts = confusion(data.entries, {1: found(*rows)}, 3, 0.5)
    # Columns: missed, taken for a bush, a tree, a rock.
    assert counts.tolist() == [[0, 1, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert confusion(data.entries, {1: found()}, 3, 0.5).tolist() == [[0] * 4, [1, 0, 0, 0], [2, 0, 0, 0], [1, 0, 0, 0]]


def test_the_first_is_counted_as_the_others(tmp_path: Path) -> None:
    data = data_of(tmp_path, [([0.0, 0, 20, 20], 2)], [([0.0, 0, 100, 100], 2)])
    for label, of_detection, of_truth in ((1, 2, 1), (2, 2, 2)):  # confused; right, and within a crowd
        verdict = judge(found((0, 0, 20, 20, 0.9, label)), data.entries[0])
        assert (verdict.detections.tolist(), verdict.truths.tolist()) == ([of_detection], [of_truth])


def test_the_table_has_a_row_for_each_class(tmp_path: Path) -> None:
    """By hand: of two bushes one is found at IoU 0.43 and one exactly; both trees; there is no rock."""
    boxes = [([0.0, 0, 20, 20], 1), ([40.0, 0, 20, 20], 1), ([80.0, 0, 20, 20], 2), ([120.0, 0, 20, 20], 2)]
    data = data_of(tmp_path, boxes, [])
    rows = [(8, 0, 28, 20, 0.6, 1), (40, 0, 60, 20, 0.9, 1), (80, 0, 100, 20, 0.9, 2), (120, 0, 140, 20, 0.8, 2)]
    report = evaluate_found(data, {1: found(*rows)})
    metrics = report.metrics
    assert [metrics[f"{name}_bush"] for name in ("AP40", "AP50", "AP")] == pytest.approx([1, 51 / 101, 51 / 101])
    assert [metrics[f"{name}_tree"] for name in ("AP40", "AP50", "AP")] == pytest.approx([1, 1, 1])
    assert np.isnan([metrics[f"{name}_rock"] for name in ("AP40", "AP50", "AP")]).all()
    assert metrics["score_threshold"] == pytest.approx(0.7)
    counts = confusion(data.entries, report.found, 3, metrics["score_threshold"])
    assert int(counts.diagonal().sum()) / 4 == metrics["recall"]
    console = Console(width=120, file=io.StringIO())
    console.print(metrics_table(data, report))
    console.print(classes_table(data, report, counts))
    first, second = cast(io.StringIO, console.file).getvalue().split("by class")
    assert "bush" not in first
    lines = [[part.strip() for part in line.split("│")[1:-1]] for line in second.splitlines()]
    assert [line for line in lines if line and line[0] in ("bush", "tree", "rock")] == [
        ["bush", "2", "0.505", "1.000", "0.505", "1.000", "0.500"],
        ["tree", "2", "1.000", "1.000", "1.000", "1.000", "1.000"],
        ["rock", "0", "-", "-", "-", "-", "-"],
    ]


def test_the_matrix_is_drawn_in_the_classes_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Array] = []
    imshow = Axes.imshow

    def watched(self: Axes, shares: Array, **rest: Any) -> Any:
        drawn.append(shares)
        return imshow(self, shares, **rest)

    monkeypatch.setattr(Axes, "imshow", watched)
    names = class_names(data_of(tmp_path, [([0.0, 0, 20, 20], 1)], []))
    counts = torch.tensor([[0, 2, 6, 0], [1, 3, 0, 0], [2, 0, 6, 0], [0, 0, 0, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusion(counts, [names[0], "木 $\\frac$ \n", "a long name " * 20], tmp_path / "matrix.png")
    expected = [[0.75, 0, 0, 0.25], [0, 0.75, 0, 0.25], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert drawn[0].tolist() == expected
    assert Photo(tmp_path / "matrix.png").width > 300


def test_of_many_classes_those_with_most_mistakes_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[list[str]] = []
    set_ticks = Axis.set_ticks

    def watched(self: Axis, places: Any, *texts: list[str], **rest: Any) -> Any:
        ticks.extend(texts)
        return set_ticks(self, places, *texts, **rest)

    counts = torch.zeros(71, 71, dtype=torch.int64)
    for label in range(1, 71):
        counts[label, label] = 1000
        counts[label, 0] = label
    with monkeypatch.context() as patch:
        patch.setattr(Axis, "set_ticks", watched)
        plot_confusion(counts, [f"c{label}" for label in range(1, 71)], tmp_path / "matrix.png")
    assert ticks[1] == [*(f"c{label}" for label in range(11, 71)), "nothing there"]


def test_names_and_scores_are_written_as_they_are() -> None:
    one = found((0, 0, 9, 9, 1.0, 1), (0, 0, 9, 9, 0.5, 2))
    tags = tags_of(*one[:3], ["two\nlines", "tree"])
    assert [tag.texts for tag in tags] == [("two\\nlines 1.00", "1.00"), ("tree 0.50", ".50")]
    draw_tags(Image.new("RGB", (200, 100)), tags)
