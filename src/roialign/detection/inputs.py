"""Which data a command is about: parts of annotations, classes, what to learn from and what to judge by."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from torchvision.models.detection import FasterRCNN

from ..samples import HELDOUT, TRAIN
from .classes import match, parse, select
from .datasets import AnnotatedImages
from .fields import shown, some
from .formats import COLUMNS, parts
from .recipe import Recipe


def training_data(recipe: Recipe) -> tuple[AnnotatedImages, AnnotatedImages | None]:
    """What to learn from, and what to judge by, with the same classes.

    Raises:
        FileNotFoundError: the annotations or some images are not there.
        ValueError: what is wrong in them, or their classes do not fit.
    """
    if recipe.val_images is not None and recipe.val is None:
        raise ValueError("--val-images: there is no --val whose images it could name")
    if recipe.annotations is None:
        own = (AnnotatedImages(part, masks=recipe.masks) for part in (TRAIN, HELDOUT))
        data, held = (_choose(part, recipe.classes) for part in own)
        return data, held
    columns, masks = headings(recipe.columns), recipe.masks
    data = _choose(_take(recipe.annotations, recipe.images, "train", columns, masks), recipe.classes)
    if recipe.val is not None:
        held = _take(recipe.val, recipe.val_images or recipe.images, "val", columns, masks)
    elif "val" in parts(recipe.annotations):
        held = AnnotatedImages(recipe.annotations, recipe.images, "val", columns, masks)
    else:
        return data.split(recipe.val_split, recipe.seed) if recipe.val_split else (data, None)
    held = _matched(_choose(held, recipe.classes, all=False), data.classes, data.category_ids, str(data.path))
    learned = {os.path.realpath(entry.file) for entry in data.entries}
    both = [repr(str(entry.file)) for entry in held.entries if os.path.realpath(entry.file) in learned]
    if both:
        heading = f"{held.path}: {len(both)} images to judge by are learned from too, so the measures flatter"
        held.notes = [*held.notes, some(heading, both)]
    return data, held


def judged_data(
    annotations: Path | None,
    images: Path | None = None,
    part: str | None = None,
    classes: str | None = None,
    columns: str | None = None,
    masks: bool = False,
) -> AnnotatedImages:
    """What to judge by, ``masks`` too: a part, or of what has parts ``val``.

    Raises:
        FileNotFoundError: the annotations or some images are not there.
        ValueError: what is wrong in them, or in what is asked for.
    """
    if annotations is None:
        return _choose(AnnotatedImages(HELDOUT, masks=masks), classes)
    if part is None:
        return _choose(_take(annotations, images, "val", headings(columns), masks), classes)
    return _choose(AnnotatedImages(annotations, images, part, headings(columns), masks), classes)


def fit_to_model(data: AnnotatedImages, model: FasterRCNN) -> AnnotatedImages:
    """The data with the detector's classes, which are the data's by name; ids stay the data's.

    Raises:
        ValueError: the detector lacks a class.
    """
    count = model.description["num_classes"] - 1
    if "classes" in model.card:
        classes = model.card["classes"]
        return _matched(data, classes, model.card.get("category_ids", range(1, count + 1)), "the detector")
    if len(data.classes) != count:
        raise ValueError(f"{data.path}: its classes are {data.classes}; the detector's are {count} without names")
    return data


def headings(columns: str | None) -> Sequence[str]:
    """Those of a table that hold image, x1, y1, x2, y2 and class.

    Raises:
        ValueError: they are not six.
    """
    if columns is None:
        return COLUMNS
    try:
        names = [name.strip() for name in next(iter(csv.reader([columns], strict=True)), [])]
    except csv.Error:
        names = []
    if len(set(filter(None, names))) != len(COLUMNS) or len(names) != len(COLUMNS):
        raise ValueError(f"--columns: got {shown(columns)}; expected six headings, such as {','.join(COLUMNS)}")
    return names


def _take(path: Path, images: Path | None, usual: str, columns: Sequence[str], masks: bool) -> AnnotatedImages:
    """Annotations, or the usual part of them if they have parts."""
    return AnnotatedImages(path, images, usual if parts(path) else None, columns, masks)


def _choose(data: AnnotatedImages, classes: str | None, all: bool = True) -> AnnotatedImages:
    """The data with the classes that ``--classes`` names; unless ``all``, it may lack some."""
    if classes is None:
        return data
    try:
        names, labels = select(data.classes, parse(classes), all)
    except ValueError as error:
        raise ValueError(f"{data.path}: {error}") from None
    first = {new: old for old, new in sorted(labels.items(), reverse=True)}
    unused = iter(set(range(1, len(data.classes) + len(names) + 1)) - set(data.category_ids))
    ids = [data.category_ids[first[new] - 1] if new in first else next(unused) for new in range(1, len(names) + 1)]
    return data.with_classes(names, ids, labels)


def _matched(data: AnnotatedImages, classes: Sequence[str], ids: Sequence[int], whose: str) -> AnnotatedImages:
    """The data with others' classes, which may lack one that has no boxes; ids stay the data's where they can."""
    try:
        used = {label for entry in data.entries for label in (*entry.labels.tolist(), *entry.crowd_labels.tolist())}
        labels = match(data.classes, classes, whose, sorted(used))
    except ValueError as error:
        raise ValueError(f"{data.path}: {error}") from None
    own = {new: data.category_ids[old - 1] for old, new in labels.items()}
    taken = set(own.values())
    free = iter(number for number in range(1, 2 * len(classes) + len(taken) + 1) if number not in taken | set(ids))
    others = [number if number not in taken else next(free) for number in ids]
    return data.with_classes(classes, [own.get(new, others[new - 1]) for new in range(1, len(classes) + 1)], labels)
