"""How much of a low AP75 is the truth's own noise? `python examples/label_noise.py [FOLDER]`, minutes on two cores.

Six scenes are painted: crowns as large as those of the package's photos, each an ellipse whose box is known exactly. In
a second truth every edge is moved by a normal deviate of five pixels, as a hand that draws boxes may miss. The trainer
of the package learns from four scenes, once by each truth, of the same views in the same order; two scenes judge. What
the second truth makes of detections without fault is reckoned beside it. FOLDER keeps the scenes and the detectors.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import box_iou

from roialign.detection import detect, load_detector
from roialign.detection.commands import train
from roialign.detection.datasets import AnnotatedImages, open_photo
from roialign.detection.evaluation import evaluate_found
from roialign.detection.recipe import Recipe
from roialign.detection.tiles import Found
from roialign.detection.training import BEST

SIZE, MARGIN = 512, 16  # pixels: of a scene, and of its rim, into which no crown reaches
SCENES, CROWNS = {"train": 4, "held": 2}, 61  # crowns in a scene: in all 244 and 122, the package has 244 and 133
SIDE, SPREAD, BOUNDS = 38, 0.32, (24, 80)  # of a crown: median in pixels, deviation of the logarithm, limits in pixels
NOISE = 5.0  # pixels: the standard deviation of an edge
SETTINGS = Recipe(epochs=1, batch=2, repeat=20, ema=0.98)
CROP, SCALE = 288, 1.0
METRICS = ("AP40", "AP50", "AP75", "mean_iou")


def paint(crowns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A scene from above.

    Returns:
        image: ``[3, SIZE, SIZE]`` uint8: rough ground with ellipses on it, no two of which touch.
        boxes: ``[crowns, 4]`` float32 (x1, y1, x2, y2): exactly those of the ellipses.
    """
    brown, green = torch.tensor([[0.50, 0.43, 0.33], [0.24, 0.36, 0.20]])[:, :, None, None]
    mixture, ground, leaves = (texture(generator) for _ in range(3))
    image = torch.lerp(brown, green, (0.4 + 1.5 * mixture).clamp(0, 1)) + ground / 3
    taken, boxes = torch.empty(0, 3), torch.empty(0, 4)  # circles x, y, radius
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    while len(boxes) < crowns:
        side = (SIDE * (SPREAD * torch.randn((), generator=generator)).exp()).clamp(*BOUNDS)
        stretch, turn, bright, *place = torch.rand(5, generator=generator)
        long, short = side / 2 * (1 + stretch / 4), side / 2 / (1 + stretch / 4)
        cos, sin = (math.pi * turn).cos(), (math.pi * turn).sin()
        half = torch.stack([torch.hypot(long * cos, short * sin), torch.hypot(long * sin, short * cos)])
        centre = MARGIN + half + torch.stack(place) * (SIZE - 2 * (MARGIN + half))
        if bool(((taken[:, :2] - centre).norm(dim=1) <= taken[:, 2] + long).any()):
            continue
        u, v = x - centre[0], y - centre[1]
        inside = ((u * cos + v * sin) / long).square() + ((v * cos - u * sin) / short).square() <= 1
        light = 0.7 + 0.6 * bright - 0.4 * (u + v) / side  # from the upper left
        image = torch.where(inside, light * green + leaves / 3, image)
        taken = torch.cat([taken, torch.stack([*centre, long])[None]])
        boxes = torch.cat([boxes, torch.cat([centre - half, centre + half])[None]])
    return (255 * image).clamp(0, 255).byte(), boxes


def texture(generator: torch.Generator) -> Tensor:
    """Noise about 0 in grains of several sizes, ``[1, SIZE, SIZE]``."""
    grids = (torch.rand(1, 1, SIZE // grain, SIZE // grain, generator=generator) - 0.5 for grain in (2, 4, 8, 32))
    return torch.cat([interpolate(grid, size=(SIZE, SIZE), mode="bilinear") for grid in grids]).sum(0)


def jitter(boxes: Tensor, generator: torch.Generator) -> Tensor:
    """Each edge moved by a normal deviate; two that cross change places."""
    moved = boxes + NOISE * torch.randn(boxes.shape, generator=generator)
    return moved.view(-1, 2, 2).sort(dim=1).values.flatten(1)


def write_scenes(folder: Path, name: str, generator: torch.Generator) -> tuple[Path, Path]:
    """Paint scenes into the folder, with their exact and their jittered truth as COCO files, which it returns."""
    images: list[dict[str, Any]] = []
    exact: list[dict[str, Any]] = []
    jittered: list[dict[str, Any]] = []
    for number in range(1, SCENES[name] + 1):
        image, boxes = paint(CROWNS, generator)
        file = f"{name}_{number}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / file)
        images.append({"id": number, "file_name": file, "width": SIZE, "height": SIZE})
        for truth, rows in ((boxes, exact), (jitter(boxes, generator), jittered)):
            for x1, y1, x2, y2 in truth.tolist():
                row = {"image_id": number, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                rows.append({"id": len(rows) + 1, **row})
    files = folder / f"{name}_exact.json", folder / f"{name}_jittered.json"
    for path, rows in zip(files, (exact, jittered), strict=True):
        content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "crown"}]}
        path.write_text(json.dumps(content), encoding="utf-8")
    return files


def learn(truth: Path, scenes: Path, folder: Path, recipe: Recipe, console: Console) -> list[Found]:
    """What a detector that learned from one truth finds in the scenes of another."""
    train(replace(recipe, annotations=truth, val_split=0, crop=CROP, scale=SCALE), folder, console)
    photos = (open_photo(entry.file, entry.width, entry.height) for entry in AnnotatedImages(scenes).entries)
    return list(detect(load_detector(folder / BEST), photos))


def without_fault(truth: Path) -> list[Found]:
    """A truth's boxes as detections, best first in the truth's order: their scores know nothing of any noise."""
    entries = AnnotatedImages(truth).entries
    return [Found(entry.boxes, torch.linspace(1, 0.5, len(entry.boxes)), entry.labels) for entry in entries]


def measure(found: Iterable[Found], truth: Path) -> list[float]:
    """METRICS of detections by COCO's rules."""
    data = AnnotatedImages(truth)
    report = evaluate_found(data, {entry.id: each for entry, each in zip(data.entries, found, strict=True)})
    return [report.metrics[name] for name in METRICS]


def reckon(exact: Path, jittered: Path) -> list[float]:
    """METRICS to expect of the exact boxes under the jittered truth, crown by crown, without COCO's rules.

    The share of crowns whose two boxes overlap enough is the recall; being the share of detections that count as right,
    whatever their score, it is the precision too: AP is about its square. Last, the mean IoU of what counts at 0.5.
    """
    pairs = zip(AnnotatedImages(exact).entries, AnnotatedImages(jittered).entries, strict=True)
    overlap = torch.cat([box_iou(mine.boxes, theirs.boxes).diagonal() for mine, theirs in pairs])
    shares = [float((overlap >= iou).float().mean()) for iou in (0.4, 0.5, 0.75)]
    return [*(share**2 for share in shares), float(overlap[overlap >= 0.5].mean())]


def experiment(folder: Path, recipe: Recipe, console: Console) -> dict[str, list[float]]:
    """METRICS of each detector by each truth; the scenes and the detectors go to the folder."""
    generator = torch.Generator().manual_seed(recipe.seed)
    exact, jittered = write_scenes(folder, "train", generator)
    held_exact, held_jittered = write_scenes(folder, "held", generator)
    by_exact = learn(exact, held_exact, folder / "exact", recipe, console)
    by_jittered = learn(jittered, held_exact, folder / "jittered", recipe, console)
    return {
        "learned from exact boxes, judged by exact boxes": measure(by_exact, held_exact),
        "learned from jittered boxes, judged by jittered boxes": measure(by_jittered, held_jittered),
        "the same detections, judged by exact boxes": measure(by_jittered, held_exact),
        "the exact boxes as detections, judged by jittered boxes": measure(without_fault(held_exact), held_jittered),
        "the same, reckoned crown by crown": reckon(held_exact, held_jittered),
    }


def main() -> None:
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = experiment(folder, SETTINGS, console)
    table = Table(title=f"Edges jittered by {NOISE:g} pixels on crowns of {SIDE}", title_justify="left")
    table.add_column("")
    for name in METRICS:
        table.add_column(name, justify="right")
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.3f}" for value in values))
    console.print(table)


if __name__ == "__main__":
    main()
