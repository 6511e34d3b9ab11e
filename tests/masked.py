"""A small data set with masks, painted and written by hand and not by the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def ellipse(height: int, width: int, box: tuple[float, float, float, float]) -> np.ndarray[Any, Any]:
    """``[height, width]`` bool: the pixels whose centres lie in the ellipse within the box."""
    y, x = np.mgrid[:height, :width] + 0.5
    x1, y1, x2, y2 = box
    inside: np.ndarray[Any, Any] = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1
    return inside


def runs(mask: np.ndarray[Any, Any]) -> list[int]:
    """COCO's, uncompressed."""
    found, last, count = [], 0, 0
    for value in mask.T.astype(int).ravel().tolist():
        if value != last:
            found.append(count)
            last, count = value, 0
        count += 1
    return [*found, count]


def write_scenes(folder: Path, images: int = 4, seed: int = 0) -> Path:
    """Red ellipses on grey, some as runs and some as polygons of many points; COCO's JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(seed)
    pictures, annotations = [], []
    for number in range(images):
        height, width = 120, 150
        pixels = chance.normal(110, 8, (height, width, 3))
        for index in range(4):
            x, y = chance.uniform(4, 100), chance.uniform(4, 70)
            box = (x, y, x + chance.uniform(25, 45), y + chance.uniform(25, 45))
            mask = ellipse(height, width, box)
            pixels[mask] = (220, 60, 50)
            rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
            angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
            middle, radius = np.array([x + box[2], y + box[3]]) / 2, np.array([box[2] - x, box[3] - y]) / 2
            points = middle + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
            outline: Any = [points.round(2).ravel().tolist()]
            annotations.append({
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": 7,
                "bbox": [int(columns[0]), int(rows[0]), len(columns), len(rows)],
                "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": runs(mask)} if index % 2 else outline,
            })  # fmt: skip
        name = f"{number}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
        pictures.append({"id": number, "file_name": name, "width": width, "height": height})
    content = {"images": pictures, "annotations": annotations, "categories": [{"id": 7, "name": "egg"}]}
    (folder / "eggs.json").write_text(json.dumps(content))
    return folder / "eggs.json"
