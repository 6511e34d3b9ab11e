"""COCO data sets, what a training shows of them, and in what order."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

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


class View(NamedTuple):
    """One sight of one image in a training: all that chance decides about it follows from these numbers."""

    epoch: int
    image: int
    turn: int  # which of the image's views in this epoch
    counts: bool = True  # False: only there because a process without a share of the last batch must keep step

    def seed(self, seed: int) -> int:
        """A seed for everything random about the view."""
        text = f"{seed} {self.epoch} {self.image} {self.turn}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


class EpochBatches(Sampler[list[View]]):
    """This process's share of an epoch: every image once, over all processes.

    An image larger than a crop is shown as as many crops as cover its area; ``repeat`` shows everything so many times.
    The batches of all processes together are those that one process with a batch ``processes`` times as large would
    have, in the same order.

    Args:
        entries: the images.
        crop: side of a crop, in pixels.
        batch: views per process and step.
        repeat: times an epoch goes over the images.
        seed: decides the order, with ``self.epoch``.
        rank: which process this is.
        processes: how many there are.
    """

    def __init__(
        self, entries: Sequence[Entry], crop: int, batch: int, repeat: int, seed: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.turns = [repeat * max(1, round(entry.width * entry.height / crop**2)) for entry in entries]
        self.batch, self.seed, self.rank, self.processes = batch, seed, rank, processes
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(sum(self.turns) / (self.batch * self.processes))

    def __iter__(self) -> Iterator[list[View]]:
        views = [View(self.epoch, image, turn) for image, turns in enumerate(self.turns) for turn in range(turns)]
        generator = torch.Generator().manual_seed(View(self.epoch, -1, -1).seed(self.seed))
        order = torch.randperm(len(views), generator=generator).tolist()
        together = self.batch * self.processes
        for start in range(0, len(order), together):
            step = [views[place] for place in order[start : start + together]]
            yield step[self.rank :: self.processes] or [step[0]._replace(counts=False)]


class Sample(NamedTuple):
    """What the model is shown of one view."""

    view: View
    file: Path
    image: Tensor  # [3, crop, crop] float32 in [0, 1]
    target: dict[str, Tensor]  # boxes [N, 4], labels [N]


class TrainingViews(Dataset[Sample]):
    """Views of a data set's images, augmented."""

    def __init__(self, data: CocoData, crop: int, seed: int) -> None:
        self.data, self.crop, self.seed = data, crop, seed

    def __getitem__(self, view: View) -> Sample:
        """The view, the same whenever and in whichever process it is asked for."""
        from .augment import augment

        entry = self.data.entries[view.image]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(view.seed(self.seed))
            image, boxes, labels = augment(_remembered(entry.file, entry.width, entry.height), entry, self.crop)
        return Sample(view, entry.file, image, {"boxes": boxes, "labels": labels})


_remembered = lru_cache(maxsize=16)(open_photo)  # a small data set stays decoded
