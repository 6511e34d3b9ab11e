"""What the package ships: photos of tree crowns seen from above, a box around each, and a detector of them.

The photos and their boxes come from the deepforest package (MIT, (c) 2019 Ben Weinstein); the imagery is of the US
National Ecological Observatory Network. The JSON files carry this attribution.

``TRAIN`` and ``HELDOUT`` are two COCO data sets. To train on: OSBS_029 and the upper two thirds of the YELL photo, in
which what belongs to a box that reaches into the lower third is painted over. To judge by: SOAP_061, and the lower
third of the YELL photo with every box that touches it, so from the top of the highest of these on; other trees up there
are marked as crowds, which count neither way. The two parts of YELL were saved anew as JPEG of quality 95.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

PHOTO = "OSBS_029"
PHOTO_FILE = Path(__file__).parent / f"{PHOTO}.jpg"
TRAIN = Path(__file__).parent / "train.json"
HELDOUT = Path(__file__).parent / "heldout.json"
DETECTOR = Path(__file__).parent / "tree_crowns.safetensors"


def read_image(file: str | Path | IO[bytes]) -> Tensor:
    """Read an image file: ``[3, height, width]`` float32 in [0, 1], RGB. Needs Pillow."""
    from PIL import Image

    with Image.open(file) as photo:
        pixels = torch.frombuffer(bytearray(photo.convert("RGB").tobytes()), dtype=torch.uint8)
        return pixels.reshape(photo.height, photo.width, 3).permute(2, 0, 1).float() / 255


def load_photo() -> tuple[Tensor, Tensor]:
    """Load the photo and its boxes. Needs Pillow.

    Returns:
        image: ``[3, 400, 400]`` float32 in [0, 1], RGB.
        boxes: ``[61, 4]`` float32 (x1, y1, x2, y2) in pixels.

    Example:
        >>> from roialign.samples import load_photo
        >>> image, boxes = load_photo()
        >>> image.shape, boxes.shape
        (torch.Size([3, 400, 400]), torch.Size([61, 4]))
    """
    folder = files(__name__)
    with folder.joinpath(f"{PHOTO}.jpg").open("rb") as file:
        image = read_image(file)
    annotations = json.loads(folder.joinpath(f"{PHOTO}.json").read_text())["annotations"]
    boxes = torch.tensor([annotation["bbox"] for annotation in annotations])  # COCO's (x, y, width, height)
    boxes[:, 2:] += boxes[:, :2]
    return image, boxes
