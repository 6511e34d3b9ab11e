"""Data sets: what is read from annotations of any format and from their images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path

import torch
from torch import Tensor

from .annotations import Entry as Entry
from .annotations import ImageId as ImageId
from .fields import shown, some
from .formats import COLUMNS, Source, read
from .images import Photo


class AnnotatedImages:
    """Annotations and their images, as COCO has them whatever their format.

    Boxes are cut to the image, and those without area are left out. Crowds (``iscrowd``, ``ignore``, ``difficult``) are
    kept apart, with their class. Classes are numbered from 1: COCO's in the order of their ids, YOLO's in the yaml's,
    others in the alphabet's. Image ids may be text; where a format has none, images and categories are counted from 1.
    What is wrong in the annotations, or in how they go with the images, is an error here and not in the middle of the
    work.

    Args:
        annotations: COCO's JSON, YOLO's yaml, Pascal VOC's folder, a table of boxes, or a folder with one of them.
        images: the folder of the images; None: as the format has it, mostly the annotations' own.
        part: ``"train"``, ``"val"`` or ``"test"``, where annotations are parted so; None: everything.
        columns: of a table: the headings of image, x1, y1, x2, y2 and class.
        masks: read the objects' masks, too: COCO's ``segmentation`` (polygons, or run-length encoded) or YOLO's
            outlines. Each must have one, but for crowds, whose boxes do. An object without a pixel is left out.

    Attributes:
        path: the annotations, as they were named.
        files: what was read of them.
        entries: the images with their boxes, in the file's order: the one truth of training and of all measures.
        classes: the names of the classes, from label 1.
        category_ids: their ids in the file.
        masks: whether the entries have them.
        notes: what the user should be told, a line each: boxes left out and why, images outside the folder, images
            with bands or frames that are not shown.

    Raises:
        FileNotFoundError: the annotations or some images are not there.
        ValueError: what is wrong where, in one line; or an image is damaged.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None = None,
        part: str | None = None,
        columns: Sequence[str] = COLUMNS,
        masks: bool = False,
    ) -> None:
        self.path, self.masks = Path(annotations), masks
        checked = read(Source(self.path, None if images is None else Path(images), part, columns, masks))
        self.entries, self.notes, self.files = checked.entries, checked.notes, checked.files
        self.category_ids, self.classes = list(checked.categories), list(checked.categories.values())
        folded = [name.casefold() for name in self.classes]
        alike = [shown(name) for name in sorted(set(self.classes)) if folded.count(name.casefold()) > 1]
        if len(alike) > 1:
            self.notes.append(some(f"{self.path}: {len(alike)} classes differ by upper and lower case only", alike))

    def with_classes(self, names: Sequence[str], ids: Sequence[int], labels: Mapping[int, int]) -> AnnotatedImages:
        """The same images with other classes.

        Args:
            names: the classes.
            ids: their ids.
            labels: for each label that stays the new one; boxes of others are left out, and said.
        """
        other = self._part(range(len(self.entries)))
        other.classes, other.category_ids = list(names), list(ids)
        lookup = torch.tensor([0, *(labels.get(label, 0) for label in range(1, len(self.classes) + 1))])
        other.entries = [_relabelled(entry, lookup) for entry in self.entries]
        gone = torch.cat([entry.labels[lookup[entry.labels] == 0] for entry in self.entries])
        counts = gone.bincount(minlength=len(self.classes) + 1).tolist()
        told = [f"{count} of {shown(name)}" for name, count in zip(self.classes, counts[1:], strict=True) if count]
        if told:
            other.notes = [*self.notes, some(f"{self.path}: boxes of other classes are left out", told)]
        return other

    def split(self, fraction: float, seed: int) -> tuple[AnnotatedImages, AnnotatedImages]:
        """Two parts of whole images, the second with about ``fraction`` of them and at least one.

        Images with boxes and images without are shared out each on their own, so that either part has boxes if two
        images have some; if only one has, it is the first part's.

        Raises:
            ValueError: there are too few images for two parts.
        """
        held = max(1, round(fraction * len(self.entries)))
        if held >= len(self.entries):
            raise ValueError(f"{self.path}: {len(self.entries)} images cannot be split; name a second file with --val")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.entries), generator=generator).tolist()
        full = [index for index in order if len(self.entries[index].boxes)]
        empty = [index for index in order if not len(self.entries[index].boxes)]
        of_full = min(max(held - len(empty), 1, round(held * len(full) / len(order))), len(full) - 1) if full else 0
        parts = (full[of_full:] + empty[held - of_full :], full[:of_full] + empty[: held - of_full])
        first, second = (self._part(sorted(part)) for part in parts)
        return first, second

    def _part(self, indices: Sequence[int]) -> AnnotatedImages:
        part = object.__new__(AnnotatedImages)
        part.__dict__.update(self.__dict__, entries=[self.entries[index] for index in indices])
        return part

    @property
    def left_out(self) -> int:
        """How many boxes have no area inside their image."""
        return sum(entry.left_out for entry in self.entries)

    @property
    def boxes(self) -> Tensor:
        """Every box of the data set, ``[N, 4]``."""
        return torch.cat([entry.boxes for entry in self.entries]) if self.entries else torch.empty(0, 4)

    def digest(self) -> str:
        """A short name of the data set's content, the pixels, the folders and the format aside."""
        content: list[object] = [self.category_ids, self.classes]
        content += [
            [entry.id, entry.file.name, entry.width, entry.height, *(values.tolist() for values in entry[4:9])]
            for entry in self.entries
        ]
        if self.masks:
            every = (mask for entry in self.entries for mask in (*entry.masks, *entry.crowd_masks))
            content += [[*mask[:-1], mask.counts.decode()] for mask in every]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def _relabelled(entry: Entry, lookup: Tensor) -> Entry:
    """The entry with new labels; 0: the box is left out."""
    labels, crowds = lookup[entry.labels], lookup[entry.crowd_labels]
    keep, crowd = labels > 0, crowds > 0
    return entry._replace(
        boxes=entry.boxes[keep],
        labels=labels[keep],
        areas=entry.areas[keep],
        crowds=entry.crowds[crowd],
        crowd_labels=crowds[crowd],
        masks=tuple(compress(entry.masks, keep)),
        crowd_masks=tuple(compress(entry.crowd_masks, crowd)),
    )


def open_photo(file: Path, width: int, height: int) -> Photo:
    """A photo turned as its annotations have it: some tools that make them obey EXIF's orientation, some do not.

    Raises:
        ValueError: its size is not what the annotations say, upright or not.
    """
    for upright in (True, False):
        photo = Photo(file, upright)
        if (photo.width, photo.height) == (width, height):
            return photo
    raise ValueError(f"{file}: {photo.width} x {photo.height} pixels; the annotations say {width} x {height}")
