"""COCO data sets, what a training shows of them, and in what order."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .images import Photo

ImageId = int | str  # as the annotations have it


class Entry(NamedTuple):
    """An image of a data set and its boxes."""

    id: ImageId
    file: Path
    width: int
    height: int
    boxes: Tensor  # [N, 4] float32: x1, y1, x2, y2 in pixels
    labels: Tensor  # [N] int64, from 1
    crowds: Tensor  # [M, 4] float32: where boxes are not told apart; detections of the class are no fault there
    crowd_labels: Tensor  # [M] int64
    areas: Tensor  # [N] float32: the objects', which may be less than their boxes'


class CocoData:
    """A COCO annotation file and its images.

    Boxes are cut to the image, and those without area are left out. Crowds (``iscrowd``) are kept apart. Classes are
    numbered from 1 in the order of their ids.

    Args:
        annotations: the JSON file.
        images: the folder of the images; None: the annotations' own.

    Raises:
        FileNotFoundError: the annotations or some images are not there.
        ValueError: the JSON is not COCO's, with what is wrong in it.
    """

    def __init__(self, annotations: str | Path, images: str | Path | None = None) -> None:
        self.path = Path(annotations)
        folder = self.path.parent if images is None else Path(images)
        try:
            content = json.loads(self.path.read_text())
            self.content: dict[str, Any] = {key: content[key] for key in ("images", "annotations", "categories")}
            categories = sorted(self.content["categories"], key=lambda category: category["id"])
            self.category_ids = [int(category["id"]) for category in categories]
            self.classes = [str(category["name"]) for category in categories]
            label = {category: index for index, category in enumerate(self.category_ids, 1)}
            boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in self.content["images"]}
            labels: dict[int, list[int]] = {image: [] for image in boxes}
            areas: dict[int, list[float]] = {image: [] for image in boxes}
            crowds: dict[int, list[list[float]]] = {image: [] for image in boxes}
            crowd_labels: dict[int, list[int]] = {image: [] for image in boxes}
            self.left_out = 0
            sizes = {image["id"]: (image["width"], image["height"]) for image in self.content["images"]}
            for annotation in self.content["annotations"]:
                x, y, width, height = map(float, annotation["bbox"])
                right, bottom = sizes[annotation["image_id"]]
                box = [max(0.0, x), max(0.0, y), min(x + width, float(right)), min(y + height, float(bottom))]
                if not (box[0] < box[2] and box[1] < box[3]):  # NaN too
                    self.left_out += 1
                elif annotation.get("iscrowd"):
                    crowds[annotation["image_id"]].append(box)
                    crowd_labels[annotation["image_id"]].append(label[annotation["category_id"]])
                else:
                    area = (box[2] - box[0]) * (box[3] - box[1])
                    boxes[annotation["image_id"]].append(box)
                    labels[annotation["image_id"]].append(label[annotation["category_id"]])
                    areas[annotation["image_id"]].append(min(area, float(annotation.get("area", area))))
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError, ValueError) as error:
            kind = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{self.path}: not a COCO detection file: {kind}") from None
        self.entries = [
            Entry(
                image["id"],
                folder / image["file_name"],
                *sizes[image["id"]],
                torch.tensor(boxes[image["id"]]).reshape(-1, 4),
                torch.tensor(labels[image["id"]], dtype=torch.int64),
                torch.tensor(crowds[image["id"]]).reshape(-1, 4),
                torch.tensor(crowd_labels[image["id"]], dtype=torch.int64),
                torch.tensor(areas[image["id"]], dtype=torch.float32),
            )
            for image in self.content["images"]
        ]
        missing = [str(entry.file) for entry in self.entries if not entry.file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{self.path}: {len(missing)} of {len(self.entries)} images are not there: {', '.join(missing[:3])}"
            )

    def split(self, fraction: float, seed: int) -> tuple[CocoData, CocoData]:
        """Two parts of whole images, the second with about ``fraction`` of them and at least one.

        By chance, but the first has boxes if there are any, and the second if two images have some.

        Raises:
            ValueError: there are too few images for two parts.
        """
        held = max(1, round(fraction * len(self.entries)))
        if held >= len(self.entries):
            raise ValueError(f"{self.path}: {len(self.entries)} images cannot be split; name a second file with --val")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.entries), generator=generator).tolist()
        first, second = order[held:], order[:held]
        full = {index for index in order if len(self.entries[index].boxes)}
        # A part that chance left without boxes gets an image with some, if the other can spare one.
        for poor, rich, spared in ((first, second, 0), (second, first, 1)):
            there = [place for place, index in enumerate(rich) if index in full]
            if not full.intersection(poor) and len(there) > spared:
                poor[-1], rich[there[-1]] = rich[there[-1]], poor[-1]
        return self._part(sorted(first)), self._part(sorted(second))

    def _part(self, indices: Sequence[int]) -> CocoData:
        part = object.__new__(CocoData)
        part.__dict__.update(self.__dict__, entries=[self.entries[index] for index in indices])
        ids = {entry.id for entry in part.entries}
        part.content = {
            "images": [image for image in self.content["images"] if image["id"] in ids],
            "annotations": [found for found in self.content["annotations"] if found["image_id"] in ids],
            "categories": self.content["categories"],
        }
        return part

    @property
    def boxes(self) -> Tensor:
        """Every box of the data set, ``[N, 4]``."""
        return torch.cat([entry.boxes for entry in self.entries]) if self.entries else torch.empty(0, 4)

    def digest(self) -> str:
        """A short name of the data set's content, the pixels aside."""
        return hashlib.blake2b(json.dumps(self.content, sort_keys=True).encode(), digest_size=8).hexdigest()


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
