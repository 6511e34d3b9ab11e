"""What a training shows of a data set, and in what order: random crops, mirrored, turned and recoloured."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from .datasets import AnnotatedImages, Entry, open_photo
from .images import FILL, DamagedImageError, Photo
from .masks import Mask

VISIBLE = 0.4  # the least part of a box that must lie within a crop to be kept


class Augmentation(NamedTuple):
    """What of an image may change from view to view."""

    zoom: float  # the most that a crop is enlarged or made smaller, 1 or more
    colour: float  # by how much brightness, contrast and saturation go up or down, 0 to 1; 0: no change of appearance
    mirror: bool  # left and right
    turn: bool  # upside down and by a quarter


# Seen from above nothing has an upright, and how large it is hangs on who flew; a street has both.
PROFILES = {
    "aerial": Augmentation(zoom=2.2, colour=0.35, mirror=True, turn=True),
    "upright": Augmentation(zoom=1.5, colour=0.35, mirror=True, turn=False),
    "none": Augmentation(zoom=1, colour=0, mirror=False, turn=False),
}


def augmentation(profile: str, zoom: float | None = None, colour: float | None = None) -> Augmentation:
    """A profile, of which some ranges may be given.

    Raises:
        ValueError: there is no such profile, or a range is none.
    """
    if profile not in PROFILES:
        raise ValueError(f"augment: got {profile!r}; expected one of {', '.join(PROFILES)}")
    how = PROFILES[profile]
    how = how._replace(zoom=how.zoom if zoom is None else zoom, colour=how.colour if colour is None else colour)
    if not 1 <= how.zoom < math.inf:
        raise ValueError(f"zoom: got {how.zoom}; expected a finite number of at least 1")
    if not 0 <= how.colour <= 1:
        raise ValueError(f"colour: got {how.colour}; expected a number from 0 to 1")
    return how


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
        self.epoch, self.done = 0, 0  # done: steps of this epoch that were taken before

    def __len__(self) -> int:
        return math.ceil(sum(self.turns) / (self.batch * self.processes))

    def __iter__(self) -> Iterator[list[View]]:
        views = [View(self.epoch, image, turn) for image, turns in enumerate(self.turns) for turn in range(turns)]
        generator = torch.Generator().manual_seed(View(self.epoch, -1, -1).seed(self.seed))
        order = torch.randperm(len(views), generator=generator).tolist()
        together = self.batch * self.processes
        for start in range(self.done * together, len(order), together):
            step = [views[place] for place in order[start : start + together]]
            yield step[self.rank :: self.processes] or [step[0]._replace(counts=False)]


class Sample(NamedTuple):
    """What the model is shown of one view."""

    view: View
    file: Path
    image: Tensor  # [3, crop, crop] float32 in [0, 1]
    target: dict[str, Tensor]  # boxes [N, 4], labels [N]; with masks [N, crop, crop] uint8 of 0 and 1
    fault: str = ""  # why there is nothing to see: the file is damaged


class TrainingViews(Dataset[Sample]):
    """Views of a data set's images, augmented."""

    def __init__(self, data: AnnotatedImages, crop: int, seed: int, how: Augmentation) -> None:
        self.data, self.crop, self.seed, self.how = data, crop, seed, how

    def __getitem__(self, view: View) -> Sample:
        """The view, the same whenever and in whichever process it is asked for."""
        entry = self.data.entries[view.image]
        try:
            photo = _remembered(entry.file, entry.width, entry.height)
        except DamagedImageError as error:
            nothing = {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64)}
            if self.data.masks:
                nothing["masks"] = torch.empty(0, self.crop, self.crop, dtype=torch.uint8)
            blank = torch.zeros(3, self.crop, self.crop)
            return Sample(view._replace(counts=False), entry.file, blank, nothing, str(error))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(view.seed(self.seed))
            sight = augment(photo, entry, self.crop, self.how)
        target = {"boxes": sight.boxes, "labels": sight.labels}
        if self.data.masks:
            target["masks"] = sight.masks
        return Sample(view, entry.file, sight.image, target)


_remembered = lru_cache(maxsize=16)(open_photo)  # a small data set stays decoded


class Sight(NamedTuple):
    """What a random view shows."""

    image: Tensor  # [3, size, size] float32 in [0, 1]; the networks' mean colour where the photo does not reach
    boxes: Tensor  # [N, 4] float32
    labels: Tensor  # [N] int64
    masks: Tensor  # [N, size, size] uint8; of annotations without masks N is 0


def augment(photo: Photo, entry: Entry, size: int, how: Augmentation) -> Sight:
    """One random view, by PyTorch's global generator. Whether an object is kept its box decides, masks or not.

    Args:
        photo: the image.
        entry: its boxes, labels and masks.
        size: of the view, in pixels.
        how: what may change.
    """
    zoom = math.exp((2 * float(torch.rand(())) - 1) * math.log(how.zoom))
    side = size / zoom
    x, y = _corner(photo.width, side), _corner(photo.height, side)
    canvas = Image.new("RGB", (size, size), FILL)
    window = (max(0.0, x), max(0.0, y), min(float(photo.width), x + side), min(float(photo.height), y + side))
    outer = tuple(math.floor(v) for v in window[:2]) + tuple(math.ceil(v) for v in window[2:])
    place = [round((v - o) * zoom) for v, o in zip(window, (x, y, x, y), strict=True)]
    extent = (max(1, place[2] - place[0]), max(1, place[3] - place[1]))
    inner = tuple(v - outer[i % 2] for i, v in enumerate(window))
    part = photo.crop((outer[0], outer[1], outer[2], outer[3]))
    canvas.paste(part.resize(extent, Image.Resampling.BILINEAR, box=inner), (place[0], place[1]))  # type: ignore[arg-type]

    moved = (entry.boxes - torch.tensor([x, y, x, y])) * zoom
    cut = moved.clamp(0, size)
    area, seen = (((b[:, 2:] - b[:, :2]).prod(1)) for b in (moved, cut))
    keep = (seen >= VISIBLE * area) & ((cut[:, 2:] - cut[:, :2]).amin(1) >= 2)
    boxes = tv_tensors.BoundingBoxes(cut[keep], format="XYXY", canvas_size=(size, size))
    masks = [_seen(mask, x, y, zoom, size) for mask in compress(entry.masks, keep)]
    drawn = tv_tensors.Mask(torch.stack(masks) if masks else torch.empty(0, size, size, dtype=torch.uint8))
    image, boxes, drawn = appearance(how)(v2.functional.pil_to_tensor(canvas), boxes, drawn)
    return Sight(image.float() / 255, boxes.as_subclass(Tensor), entry.labels[keep], drawn.as_subclass(Tensor))


def _seen(mask: Mask, x: float, y: float, zoom: float, size: int) -> Tensor:
    """A mask in the view that begins at (x, y), ``[size, size]`` uint8: what lies at each of its pixels' centres."""
    canvas = torch.zeros(size, size, dtype=torch.uint8)
    low = [max(0, math.floor((start - begin) * zoom)) for start, begin in ((mask.x, x), (mask.y, y))]
    ends = ((mask.x + mask.width, x), (mask.y + mask.height, y))
    high = [min(size, math.ceil((end - begin) * zoom)) for end, begin in ends]
    if low[0] < high[0] and low[1] < high[1]:
        columns, rows = (
            ((torch.arange(a, b, dtype=torch.float64) + 0.5) / zoom + begin - start).floor().long()
            for a, b, begin, start in zip(low, high, (x, y), (mask.x, mask.y), strict=True)
        )
        pixels = torch.nn.functional.pad(
            torch.from_numpy(mask.pixels()), (0, 1, 0, 1)
        )  # the last ones stand for outside
        columns, rows = (
            torch.where((places >= 0) & (places < length), places, length)
            for places, length in ((columns, mask.width), (rows, mask.height))
        )
        canvas[low[1] : high[1], low[0] : high[0]] = pixels[rows[:, None], columns]
    return canvas


@cache
def appearance(how: Augmentation) -> v2.Compose:
    """What happens to the pixels of a crop, and to its boxes with them."""
    steps: list[torch.nn.Module] = [v2.RandomHorizontalFlip()] if how.mirror else []
    if how.turn:  # with the mirror, all eight ways to lay a photo down
        steps += [v2.RandomVerticalFlip(), v2.RandomApply([v2.RandomRotation((90, 90))])]
    if how.colour:
        jitter = v2.ColorJitter(how.colour, how.colour, how.colour, hue=how.colour * 0.06 / 0.35)
        steps += [v2.RandomApply([jitter], p=0.8), v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.2))], p=0.2)]
        steps += [v2.RandomGrayscale(p=0.05)]
    return v2.Compose(steps or [v2.Identity()])


def _corner(length: int, side: float) -> float:
    """Where a window of ``side`` begins: anywhere inside the image, or if it is larger, anywhere around it."""
    return float(torch.rand(())) * (length - side)
