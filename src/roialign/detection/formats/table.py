"""A table of boxes with a line for each: CSV, as DeepForest has it or with other headings."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..annotations import Annotations, Box, Picture
from ..fields import frame_fault, number_in, shown
from .source import Source, locate, read_text

DELIMITERS = ",;\t"


def parts(path: Path) -> tuple[str, ...]:
    """A table has no parts."""
    return ()


def read(source: Source) -> Annotations:
    """Read a table in UTF-8 whose first line has headings; columns may be parted by commas, semicolons or tabs.

    Edges are positions in pixels, as COCO's. A line with an image and nothing else in these columns is an image without
    boxes. Images are in the order of the table, classes in the alphabet's.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: what is wrong, with its line.
    """
    lines: dict[str, int] = {}  # of an image: the first
    found: list[tuple[str, str, tuple[float, ...]]] = []
    places: list[str] = []
    frames: dict[str, str] = {}
    for line, (image, *edges, label), frame in _rows(read_text(source.path), source.columns):
        if not image:
            raise ValueError(f"line {line}: {source.columns[0]}: got ''; expected the name of an image")
        lines.setdefault(image, line)
        if frames.setdefault(image, frame) != frame:
            raise ValueError(f"line {line}: {frame_fault(frame, frames[image])}")
        if not any(edges) and not label:
            continue
        corners = [number_in(edge) for edge in edges]
        for column, edge, value in zip(source.columns[1:], edges, corners, strict=False):
            if value is None:
                raise ValueError(f"line {line}: {column}: got {shown(edge)}; expected a number")
        if not label:
            raise ValueError(f"line {line}: {source.columns[-1]}: got ''; expected the name of a class")
        found.append((image, label, tuple(value for value in corners if value is not None)))
        places.append(f"line {line}")
    if not found:
        raise ValueError("no boxes below the headings")
    files, told = locate(list(lines), [source.images or source.path.parent])
    pictures = [
        Picture(number, image, file, f"line {line}")
        for number, ((image, line), file) in enumerate(zip(lines.items(), files, strict=True), 1)
    ]
    index = {image: place for place, image in enumerate(lines)}
    numbers = {name: number for number, name in enumerate(sorted({label for _, label, _ in found}), 1)}
    boxes = [Box(index[image], numbers[label], (x1, y1, x2, y2)) for image, label, (x1, y1, x2, y2) in found]
    categories = {number: name for name, number in numbers.items()}
    return Annotations(pictures, boxes, categories, places.__getitem__, [source.path], told)


def _rows(content: str, columns: Sequence[str]) -> Iterator[tuple[int, list[str], str]]:
    """Of each line its number, the fields of the columns, and that of a column ``frame`` if there is one."""
    head = content.partition("\n")[0]
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=max(DELIMITERS, key=head.count), strict=True)
    places: list[int] = []
    width, frame = 0, None
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            if not any(fields):
                continue
            if not places:
                places, width = _places(fields, columns), len(fields)
                frame = fields.index("frame") if "frame" in fields else None
            elif len(fields) != width:
                raise ValueError(f"line {reader.line_num}: got {len(fields)} fields; the first line has {width}")
            else:
                yield reader.line_num, [fields[place] for place in places], "" if frame is None else fields[frame]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None


def _places(headings: list[str], columns: Sequence[str]) -> list[int]:
    """Where the columns are."""
    for column in columns:
        if headings.count(column) != 1:
            fault = f"{headings.count(column)} columns {shown(column)}" if column in headings else f"no {shown(column)}"
            raise ValueError(
                f"line 1: {fault} among the headings {shown(headings)}; --columns names those of image, x1, y1, x2, y2 "
                "and class"
            )
    return [headings.index(column) for column in columns]
