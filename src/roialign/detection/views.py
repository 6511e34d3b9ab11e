"""What a training shows of an image: a random crop, mirrored, turned and recoloured."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from .data import Entry
from .images import FILL, Photo

ZOOM = 2.2  # the most that a crop is enlarged or made smaller
VISIBLE = 0.4  # the least part of a box that must lie within a crop to be kept

# Seen from above nothing has an upright: two mirrors and a quarter turn make all eight ways to lay a photo down.
_APPEARANCE = v2.Compose([
    v2.RandomHorizontalFlip(),
    v2.RandomVerticalFlip(),
    v2.RandomApply([v2.RandomRotation((90, 90))]),
    v2.RandomApply([v2.ColorJitter(brightness=0.35, contrast=0.35, saturation=0.35, hue=0.06)], p=0.8),
    v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.2))], p=0.2),
    v2.RandomGrayscale(p=0.05),
])  # fmt: skip


def augment(photo: Photo, entry: Entry, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """One random view, by PyTorch's global generator.

    Args:
        photo: the image.
        entry: its boxes and labels.
        size: of the view, in pixels.

    Returns:
        image: ``[3, size, size]`` float32 in [0, 1]; the networks' mean colour where the image does not reach.
        boxes: ``[N, 4]`` float32.
        labels: ``[N]`` int64.
    """
    zoom = math.exp((2 * float(torch.rand(())) - 1) * math.log(ZOOM))
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
    image, boxes = _APPEARANCE(v2.functional.pil_to_tensor(canvas), boxes)
    return image.float() / 255, boxes.as_subclass(Tensor), entry.labels[keep]


def _corner(length: int, side: float) -> float:
    """Where a window of ``side`` begins: anywhere inside the image, or if it is larger, anywhere around it."""
    return float(torch.rand(())) * (length - side)
