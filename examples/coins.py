"""Outline coins on a photo: `python examples/coins.py [FOLDER]`, minutes on a CPU; `pip install scikit-image` first.

The photo is scikit-image's `coins`, which its wheel brings (Greek coins from Pompeii, Brooklyn Museum, no known
copyright restrictions). Nobody outlined them by hand: the truth is scikit-image's own example of segmentation, a
watershed of the edges from what is surely coin and surely ground, which errs by a pixel or so. A detector learns from
the two upper rows, 12 coins, and is judged by the two lower ones, 12 others, by which nothing is chosen.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco
from PIL import Image
from rich.console import Console

from roialign.detection.commands import evaluate, train
from roialign.detection.evaluation import Report
from roialign.detection.predict import detect_files
from roialign.detection.recipe import Recipe
from roialign.detection.training import BEST

BETWEEN = 150  # the row of pixels between the second row of coins and the third
GROUND, COIN = 30, 150  # grey values: below the one it is surely ground, above the other surely a coin
LEAST = 100  # pixels of a coin; what is smaller is dust
RECIPE = Recipe(masks=True, val_split=0, epochs=3, repeat=16, batch=2, crop=144, lr=1e-3, augment="aerial", ema=0.98)


def outlined() -> tuple[Any, Any]:
    """The photo, ``[H, W]`` uint8, and the number of the coin at each of its pixels, 0 for none."""
    from skimage import data, filters, measure, segmentation

    photo = data.coins()
    markers = np.select([photo < GROUND, photo > COIN], [1, 2], 0)
    ground = segmentation.watershed(filters.sobel(photo), markers) == 1
    outside = measure.label(ground, connectivity=1)
    return photo, measure.label(outside != np.bincount(outside[ground]).argmax())  # holes are the coins'


def write(folder: Path) -> dict[str, Path]:
    """Both parts of the photo, each with its annotations in COCO's format."""
    photo, numbers = outlined()
    files = {}
    for name, part in (("upper", slice(0, BETWEEN)), ("lower", slice(BETWEEN, None))):
        height, width = photo[part].shape
        Image.fromarray(photo[part]).save(folder / f"{name}.png")
        masks = [numbers[part] == number for number in np.unique(numbers[part]) if number]
        packed = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks if mask.sum() >= LEAST]
        annotations = [
            {
                "id": number,
                "image_id": 1,
                "category_id": 1,
                "bbox": list(map(float, coco.toBbox(mask))),
                "area": int(coco.area(mask)),
                "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": mask["counts"].decode()},
            }
            for number, mask in enumerate(packed, 1)
        ]
        image = {"id": 1, "file_name": f"{name}.png", "width": width, "height": height}
        content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "coin"}]}
        files[name] = folder / f"{name}.json"
        files[name].write_text(json.dumps(content))
    return files


def main(folder: Path, seed: int = 0, epochs: int | None = None) -> Report:
    """Learn from the upper rows, judge by the lower ones, draw what is found there."""
    folder.mkdir(parents=True, exist_ok=True)
    files, console = write(folder), Console()
    recipe = replace(RECIPE, annotations=files["upper"], seed=seed, epochs=epochs or RECIPE.epochs)
    begin = time.perf_counter()
    train(recipe, folder / "train", console)
    console.print(f"trained for {(time.perf_counter() - begin) / 60:.1f} minutes")
    weights = folder / "train" / BEST
    report = evaluate(files["lower"], None, folder / "evaluate", console, weights=weights)
    detect_files([str(folder / "lower.png")], folder / "detect", console, weights=weights, score=0.5)
    return report


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build") / "coins")
