"""Annotations of any format as COCO's JSON."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from ..terminal import say
from .datasets import AnnotatedImages
from .formats import parts
from .formats.coco import pack
from .inputs import headings


def convert(
    source: Path,
    out: Path,
    console: Console,
    *,
    images: Path | None = None,
    part: str | None = None,
    columns: str | None = None,
) -> None:
    """Write annotations as COCO's JSON, which says what training and judging make of them.

    Where every object has a mask, as training with masks asks for, ``segmentation`` has it, run-length encoded. Boxes
    are cut to their images, those without area left out, and the names of images lead there from the new file.

    Args:
        source: COCO's JSON, YOLO's yaml, Pascal VOC's folder, a table of boxes, or a folder with one of them.
        out: the file to write.
        console: where to report.
        images: the folder of the images; None: as the format has it.
        part: ``"train"``, ``"val"`` or ``"test"``; None: everything.
        columns: of a table: six headings, as ``--columns`` takes them.

    Raises:
        FileExistsError: something is there already.
        FileNotFoundError: the annotations or some images are not there.
        ValueError: what is wrong where, in one line.
    """
    if os.path.lexists(out):
        raise FileExistsError(f"{out}: is there already; name another file")
    how = (source, images, part, headings(columns))
    bare = ""
    try:
        data = AnnotatedImages(*how, masks=True)
    except ValueError as error:  # or what is wrong has to do with no mask, and is met once more
        data, bare = AnnotatedImages(*how), str(error)
    content = pack(data.entries, dict(zip(data.category_ids, data.classes, strict=True)), out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with out.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise FileExistsError(f"{out}: is there already; name another file") from None
    for note in data.notes:
        say(console, note, "yellow")
    there = parts(source)
    whole = f" of all parts ({', '.join(there)}: --part gives one)" if part is None and len(there) > 1 else ""
    boxes = f"{len(data.boxes)} boxes" if bare else f"{len(data.boxes)} boxes with their masks"
    if bare:
        say(console, f"no masks: {bare}")
    counts = f"{len(data.entries)} images{whole}, {boxes}, {len(data.classes)} classes"
    say(console, f"wrote {out}: {counts}")
