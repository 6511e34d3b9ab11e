"""Run a detector that `roialign export` wrote, without roialign and without PyTorch: onnxruntime, NumPy and Pillow.

python examples/run_onnx.py model.onnx photo.jpg
"""

import json
import sys
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from PIL import Image

Array = np.ndarray[Any, np.dtype[Any]]


class Detection(NamedTuple):
    """One object."""

    name: str
    score: float
    box: list[float]  # x1, y1, x2, y2 in pixels
    mask: Array | None  # of a detector with masks: [height, width] bool


def detect(model: str, photo: str, score: float | None = None) -> list[Detection]:
    """What is in a photo, best first."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    told = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    image = np.asarray(Image.open(photo).convert("RGB"), np.float32) / 255
    boxes, scores, labels, *masks = session.run(None, {"image": image.transpose(2, 0, 1)})
    least = told.get("score_threshold", 0.5) if score is None else score
    names = told.get("classes", [str(label) for label in range(1, int(labels.max(initial=1)) + 1)])
    drawn = masks[0] if masks else [None] * len(boxes)
    each = zip(labels.tolist(), scores.tolist(), boxes.tolist(), drawn, strict=True)
    return [
        Detection(names[label - 1], value, box, None if cells is None else paste(cells, box, image.shape[:2]))
        for label, value, box, cells in each
        if value >= least
    ]


def paste(cells: Array, box: list[float], size: tuple[int, int]) -> Array:
    """The mask of an object in its image of this height and width, from how likely each part of its box is its own."""
    x1, y1, x2, y2 = box
    down, across = weights(y1, y2, size[0], len(cells)), weights(x1, x2, size[1], len(cells))
    mask: Array = down @ cells @ across.T >= 0.5
    return mask


def weights(low: float, high: float, length: int, cells: int) -> Array:
    """Along one axis: how much of each cell of a box each pixel's centre is made of; nothing outside of the box."""
    place = (np.arange(length) + 0.5 - low) / (high - low) * cells
    hats = np.maximum(0, 1 - np.abs(np.clip(place - 0.5, 0, cells - 1)[:, None] - np.arange(cells)))
    inside: Array = hats * ((place >= 0) & (place <= cells))[:, None]
    return inside


if __name__ == "__main__":
    for name, value, box, mask in detect(sys.argv[1], sys.argv[2]):
        print(f"{name} {value:.3f}", *[f"{edge:.1f}" for edge in box], "" if mask is None else f"{mask.sum()} pixels")
