"""Boxes on a picture, each in the colour of its class, with a label that covers no other.

Drawn with Pillow and not by the supervision package: of 60 labels on a crowded picture of 400 x 300 pixels its smart
positions left 22 pairs that overlap (version 0.31.2), and it would bring SciPy and PyAV, 250 megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..terminal import shown

# By Masataka Okabe and Kei Ito, Color Universal Design, https://jfly.uni-koeln.de/color/, who chose them so that people
# of every colour vision tell them apart; without their black, and first those that stand out on most photos.
YELLOW, SKY, VERMILION, GREEN, PURPLE, ORANGE, BLUE = COLOURS = (
    "#f0e442", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#0072b2"
)  # fmt: skip
SMALLEST = 10  # pixels of letters that can be read
ROOM = 90  # pixels of a box that a label fits
MARGIN = 2  # pixels around a label's letters


class Tag(NamedTuple):
    """A box to draw, in pixels of the picture."""

    box: Sequence[float]  # x1, y1, x2, y2
    colour: str
    texts: Sequence[str] = ()  # what to write, and what if there is no room for that


class _Place(NamedTuple):
    text: str
    x: int
    y: int
    width: int
    height: int


def colour_of(label: int) -> str:
    """The colour of a class, counted from 1. After seven they begin again, and the name tells."""
    return COLOURS[(label - 1) % len(COLOURS)]


def tags_of(boxes: Tensor, scores: Tensor, labels: Tensor, classes: Sequence[str], scale: float = 1) -> list[Tag]:
    """Detections as tags with class and score; or the score alone, the colour being the class's."""
    tags = []
    for box, score, label in zip((boxes * scale).tolist(), scores.tolist(), labels.tolist(), strict=True):
        told = f"{score:.2f}"
        tags.append(Tag(box, colour_of(label), (f"{shown(classes[label - 1])} {told}", told.lstrip("0"))))
    return tags


def draw_tags(image: Image.Image, tags: Sequence[Tag]) -> None:
    """Draw boxes and their labels; of those that would cover each other the first one's is written.

    A label lies at its box, outside if there is room. Without any room a box has none.
    """
    pen = ImageDraw.Draw(image)
    size = letters(image.size, [tag.box for tag in tags])
    for tag in reversed(tags):  # the first on top
        pen.rectangle([round(value) for value in tag.box], outline=tag.colour, width=max(2, round(size / 6)))
    for tag, place in zip(tags, places(tags, image.size, size), strict=True):
        if place is not None:
            pen.rectangle((place.x, place.y, place.x + place.width - 1, place.y + place.height - 1), fill=tag.colour)
            ink = "black" if _luminance(tag.colour) > 0.18 else "white"  # of which each has the higher contrast there
            middle = (place.x + MARGIN, place.y + place.height / 2)
            pen.text(middle, place.text, fill=ink, font=font_for(place.text, size), anchor="lm")


def enlarged(image: Image.Image, boxes: Tensor, most: int) -> tuple[Image.Image, int]:
    """The picture, and how many times it was enlarged so that a box of median size has room for its label.

    Args:
        image: the picture.
        boxes: ``[N, 4]``, in its pixels.
        most: pixels of a side.
    """
    if not len(boxes):
        return image, 1
    median = float((boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt().median())
    factor = max(1, min(round(ROOM / max(median, 1)), most // max(image.size), 4))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC), factor


def letters(extent: tuple[int, int], boxes: Sequence[Sequence[float]]) -> int:
    """How large to write, in pixels: a sixth of the median box, within what can be read and what leaves room."""
    sides = sorted((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes)
    median = max(0.0, sides[len(sides) // 2]) ** 0.5 if sides else 0
    return max(SMALLEST, min(round(median / 6), round(max(extent) / 50)))


def places(tags: Sequence[Tag], extent: tuple[int, int], size: int) -> list[_Place | None]:
    """Where the labels go on a picture of ``extent`` (width, height): the first free place of each, or none."""
    taken = np.zeros((extent[1], extent[0]), dtype=bool)
    found: list[_Place | None] = []
    for tag in tags:
        place = next(
            (
                place
                for place in _choices(tag, extent, size)
                if not taken[place.y : place.y + place.height, place.x : place.x + place.width].any()
            ),
            None,
        )
        if place is not None:
            taken[place.y : place.y + place.height, place.x : place.x + place.width] = True
        found.append(place)
    return found


def _choices(tag: Tag, extent: tuple[int, int], size: int) -> Iterator[_Place]:
    """Places within the picture, the best first: above the box, below, beside it, within it if it stays visible."""
    x1, y1, x2, y2 = (round(value) for value in tag.box)
    for text in tag.texts:
        font = font_for(text, size)
        width, height = round(font.getlength(text)) + 2 * MARGIN, sum(font.getmetrics())
        above, below, last = y1 - height, y2 + 1, extent[0] - width
        corners = [(max(0, min(x, last)), y) for y in (above, below) for x in (x1, x2 + 1 - width)]
        corners += [(x2 + 1, y1), (x1 - width, y1)]
        if 2 * height <= y2 - y1 and width <= x2 - x1:
            corners += [(x1, y1), (x1, y2 + 1 - height)]
        for x, y in corners:
            if 0 <= x <= last and 0 <= y <= extent[1] - height and x <= x2 + 1 and x + width >= x1:
                yield _Place(text, x, y, width, height)


@lru_cache(maxsize=1024)
def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font, which has the letters of Europe; for a text that it lacks, one of the system's."""
    return ImageFont.truetype(font_file(text), size)


def elided(text: str, size: int, width: int) -> str:
    """The text, with its middle left out if it is wider than ``width`` pixels."""
    whole = text
    for kept in range(len(whole) - 1, 0, -1):
        if font_for(text, size).getlength(text) <= width:
            break
        text = f"{whole[: kept // 2]}…{whole[len(whole) - (kept - kept // 2) :]}"
    return text


@lru_cache(maxsize=256)
def font_file(text: str) -> str:
    """The font's file, as :func:`font_for` takes it."""
    import matplotlib
    from matplotlib import font_manager

    own = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    others = {
        entry.fname for entry in font_manager.fontManager.ttflist if "LastResort" not in entry.fname
    }  # no letters
    files = (own, *sorted(others))
    codes = {ord(character) for character in text}
    return next((file for file in files if codes <= font_manager.get_font(file).get_charmap().keys()), own)


def _luminance(colour: str) -> float:
    """The relative luminance of sRGB, from 0 for black to 1 for white: https://www.w3.org/TR/WCAG21/."""
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
