"""What annotations of any format say, checked against the images before it is used."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .fields import some
from .images import Head, read_head
from .masks import Mask, Polygons, Runs, mask_of, rectangle

ImageId = int | str  # as the annotations have it


class Entry(NamedTuple):
    """An image of a data set and its boxes."""

    id: ImageId
    file: Path
    width: int
    height: int
    boxes: Tensor  # [N, 4] float32: x1, y1, x2, y2 in pixels, cut to the image, each with an area
    labels: Tensor  # [N] int64, from 1
    crowds: Tensor  # [M, 4] float32: where boxes are not told apart; detections of the class are no fault there
    crowd_labels: Tensor  # [M] int64
    areas: Tensor  # [N] float32: the objects', which may be less than their boxes'
    name: str  # of the file, as the annotations have it
    left_out: int  # boxes that have no area inside the image
    masks: tuple[Mask, ...] = ()  # of the boxes, or none if nobody asked for them
    crowd_masks: tuple[Mask, ...] = ()  # likewise; a crowd's box where it has no other


class Picture(NamedTuple):
    """An image as annotations name it."""

    id: ImageId
    name: str  # of the file, as they have it
    file: Path
    place: str  # where they name it
    size: tuple[int, int] | None = None  # width and height; None: the file's


class Box(NamedTuple):
    """A box as annotations have it."""

    picture: int  # its place in the list
    category: int
    corners: tuple[float, float, float, float]  # x1, y1, x2, y2, of which any may be infinite or NaN
    area: float = math.nan  # the object's; NaN: the box's
    crowd: bool = False  # or difficult, or to be ignored: neither learned nor missed, and no fault where it is found
    outline: Polygons | Runs | None = None  # if it was asked for; of a crowd there may be none


class Annotations(NamedTuple):
    """What the reader of a format hands over."""

    pictures: list[Picture]
    boxes: list[Box]
    categories: dict[int, str]  # names by id, ids ascending
    place: Callable[[int], str]  # where a box is written
    files: Sequence[Path]  # that were read
    told: dict[str, list[str]]  # what the user should know, with examples
    fractions: bool = False  # boxes and polygons are in parts of their image, not in pixels


class Checked(NamedTuple):
    """Annotations that go with their images."""

    entries: list[Entry]
    categories: dict[int, str]  # names by id, ids ascending
    notes: list[str]  # what the user should know, a line each
    files: Sequence[Path]  # that were read


def check(found: Annotations, masks: bool = False) -> Checked:
    """Hold annotations to their images, whose sizes are read from their heads.

    Args:
        found: what was read.
        masks: outlines were asked for.

    Raises:
        FileNotFoundError: some images are not there.
        ValueError: an image is damaged or of another size, or an outline is; with its place in the annotations.
    """
    pictures = found.pictures
    missing = [repr(str(picture.file)) for picture in pictures if not os.path.isfile(picture.file)]
    if missing:
        raise FileNotFoundError(some(f"{len(missing)} of {len(pictures)} images are not there", missing))
    heads = [_head(picture) for picture in pictures]
    entries, faults = _entries(found, heads, masks)
    first: dict[Box, int] = {}
    counting = (index for index in range(len(found.boxes)) if index not in faults)
    again = [index for index in counting if first.setdefault(found.boxes[index]._replace(area=0), index) != index]
    told = {
        "boxes are left out": [f"{found.place(index)}: {fault}" for index, fault in faults.items()],
        "boxes are there more than once, and count so often": [found.place(index) for index in again],
        "images are not shown as a whole": [
            f"{picture.name!r} ({note})" for picture, (*_, note) in zip(pictures, heads, strict=True) if note
        ],
    }
    notes = [some(f"{len(each)} {what}", each) for what, each in {**found.told, **told}.items() if each]
    return Checked(entries, found.categories, notes, found.files)


def _head(picture: Picture) -> Head:
    """The file's; its size must be what the annotations say, turned as EXIF says or not."""
    try:
        head = read_head(picture.file, upright=picture.size is None)
        if picture.size in (None, head[:2]):
            return head
        turned = read_head(picture.file)
        if picture.size != turned[:2]:
            says, has = (f"{width} x {height}" for width, height in (picture.size, head[:2]))
            raise ValueError(f"width, height: got {says}; {str(picture.file)!r} has {has} pixels")
    except ValueError as error:
        raise ValueError(f"{picture.place}: {error}") from None
    return turned


def _entries(found: Annotations, heads: list[Head], masks: bool) -> tuple[list[Entry], dict[int, str]]:
    """The images with their boxes; and which boxes are left out, and why."""
    sizes = torch.tensor([head[:2] for head in heads], dtype=torch.float64)
    owners = torch.tensor([box.picture for box in found.boxes], dtype=torch.int64)
    label = {number: index for index, number in enumerate(found.categories, 1)}
    labels = torch.tensor([label[box.category] for box in found.boxes], dtype=torch.int64)
    crowd = torch.tensor([box.crowd for box in found.boxes], dtype=torch.bool)
    raw = torch.tensor([box.corners for box in found.boxes], dtype=torch.float64).reshape(-1, 4)
    edges = sizes[owners]
    finite = raw.isfinite().all(1)
    if found.fractions:
        raw = raw * edges.repeat(1, 2)
    boxes = torch.cat([raw[:, :2].clamp(min=0), torch.minimum(raw[:, 2:], edges)], 1).float()
    counts = finite & (boxes[:, :2] < boxes[:, 2:]).all(1)  # in float32, as all others will see them
    faults = {k: "no area inside its image" if finite[k] else "not finite" for k in (~counts).nonzero()[:, 0].tolist()}
    areas = torch.tensor([box.area for box in found.boxes])
    drawn = _masks(found, heads, boxes, counts.nonzero()[:, 0].tolist()) if masks else {}
    for index, mask in drawn.items():
        size = mask.area
        if math.isnan(found.boxes[index].area):
            areas[index] = size
        if not size:
            counts[index], faults[index] = False, "no pixel of its mask inside its image"
    areas = areas.fmin((boxes[:, 2:] - boxes[:, :2]).prod(1))
    entries = []
    groups = owners.argsort(stable=True).split(owners.bincount(minlength=len(heads)).tolist())
    for picture, head, group in zip(found.pictures, heads, groups, strict=True):
        kept, crowds = group[counts[group] & ~crowd[group]], group[counts[group] & crowd[group]]
        entries.append(
            Entry(
                picture.id,
                picture.file,
                head.width,
                head.height,
                boxes[kept],
                labels[kept],
                boxes[crowds],
                labels[crowds],
                areas[kept],
                picture.name,
                len(group) - len(kept) - len(crowds),
                tuple(drawn[index] for index in kept.tolist()) if masks else (),
                tuple(drawn[index] for index in crowds.tolist()) if masks else (),
            )
        )
    return entries, dict(sorted(faults.items()))


def _masks(found: Annotations, heads: list[Head], boxes: Tensor, chosen: Sequence[int]) -> dict[int, Mask]:
    """Of the chosen boxes, by their places in the list; ``boxes`` are those in pixels."""
    masks = {}
    for index in chosen:
        box = found.boxes[index]
        image = (heads[box.picture].width, heads[box.picture].height)
        try:
            if box.outline is None:
                masks[index] = rectangle(boxes[index].tolist(), image)
            else:
                masks[index] = mask_of(box.outline, image, found.fractions)
        except ValueError as error:
            raise ValueError(f"{found.place(index)}: segmentation: {error}") from None
    return masks
