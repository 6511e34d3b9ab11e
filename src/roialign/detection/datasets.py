"""COCO data sets: what is read from annotations and images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .annotations import Entry as Entry
from .annotations import ImageId as ImageId
from .annotations import read_coco
from .images import Photo


class CocoData:
    """A COCO annotation file and its images.

    Boxes are cut to the image, and those without area are left out. Crowds (``iscrowd``) are kept apart, with their
    class. Classes are numbered from 1 in the order of their ids. Image ids may be text. What is wrong in the file, or
    in how it goes with the images, is an error here and not in the middle of the work.

    Args:
        annotations: the JSON file, in UTF-8.
        images: the folder of the images; None: the annotations' own.

    Attributes:
        path: the JSON file.
        entries: the images with their boxes, in the file's order: the one truth of training and of all measures.
        classes: the names of the classes, from label 1.
        category_ids: their ids in the file.
        notes: what the user should be told, a line each: boxes left out and why, images outside the folder, images
            with bands or frames that are not shown.

    Raises:
        FileNotFoundError: the annotations or some images are not there.
        ValueError: the file is not COCO's, with what is wrong where in it, in one line; or an image is damaged.
    """

    def __init__(self, annotations: str | Path, images: str | Path | None = None) -> None:
        self.path = Path(annotations)
        coco = read_coco(self.path, self.path.parent if images is None else Path(images))
        self.entries, self.notes = coco.entries, coco.notes
        self.category_ids, self.classes = list(coco.categories), list(coco.categories.values())

    def split(self, fraction: float, seed: int) -> tuple[CocoData, CocoData]:
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

    def _part(self, indices: Sequence[int]) -> CocoData:
        part = object.__new__(CocoData)
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
        """A short name of the data set's content, the pixels and the folder aside."""
        content: list[object] = [self.category_ids, self.classes]
        content += [
            [entry.id, entry.name, entry.width, entry.height, *(values.tolist() for values in entry[4:9])]
            for entry in self.entries
        ]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


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
