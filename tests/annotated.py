"""One small data set as each format has it, written by hand and not by the package; and what is true of any."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from roialign.detection.datasets import AnnotatedImages


class Drawn(NamedTuple):
    """An image, and its boxes as (class, x1, y1, x2, y2)."""

    name: str
    width: int
    height: int
    boxes: Sequence[tuple[str, int, int, int, int]]


CLASSES = ("bush", "tree")
SCENES = (
    Drawn("a 1.png", 100, 80, [("tree", 10, 10, 30, 40), ("bush", 50, 40, 57, 48)]),
    Drawn("b.png", 61, 53, [("tree", 0, 0, 61, 53), ("tree", 3, 7, 11, 12), ("bush", 20, 1, 60, 52)]),
    Drawn("c.png", 64, 64, []),
)
Writer = Callable[[Path, Sequence[Drawn]], Path]


def paint(folder: Path, scenes: Sequence[Drawn]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for scene in scenes:
        Image.new("RGB", (scene.width, scene.height)).save(folder / scene.name)


def write_coco(folder: Path, scenes: Sequence[Drawn], images: str = ".", name: str = "boxes.json") -> Path:
    records = [
        {"image_id": k, "category_id": CLASSES.index(kind) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for k, scene in enumerate(scenes, 1)
        for kind, x1, y1, x2, y2 in scene.boxes
    ]
    content = {
        "images": [
            {"id": k, "file_name": f"{images}/{scene.name}", "width": scene.width, "height": scene.height}
            for k, scene in enumerate(scenes, 1)
        ],
        "annotations": [{"id": k, **record} for k, record in enumerate(records, 1)],
        "categories": [{"id": k, "name": kind} for k, kind in enumerate(CLASSES, 1)],
    }
    (folder / name).write_text(json.dumps(content))
    return folder / name


def write_yolo(folder: Path, scenes: Sequence[Drawn], part: str = "train") -> Path:
    """Beside images in ``images/PART``."""
    labels = folder / "labels" / part
    labels.mkdir(parents=True, exist_ok=True)
    for scene in scenes:
        rows = [
            f"{CLASSES.index(kind)} {(x1 + x2) / 2 / scene.width:.9f} {(y1 + y2) / 2 / scene.height:.9f} "
            f"{(x2 - x1) / scene.width:.9f} {(y2 - y1) / scene.height:.9f}\n"
            for kind, x1, y1, x2, y2 in scene.boxes
        ]
        (labels / scene.name).with_suffix(".txt").write_text("".join(rows))
    (folder / "data.yaml").write_text(f"train: images/train\nnc: 2\nnames: [{', '.join(CLASSES)}]\n")
    return folder / "data.yaml"


def write_voc(folder: Path, scenes: Sequence[Drawn]) -> Path:
    """Beside images in ``JPEGImages``."""
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    for scene in scenes:
        objects = "".join(
            f"<object><name>{kind}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
            f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
            for kind, x1, y1, x2, y2 in scene.boxes
        )
        size = f"<size><width>{scene.width}</width><height>{scene.height}</height><depth>3</depth></size>"
        text = f"<annotation>\n<filename>{scene.name}</filename>\n{size}\n{objects}</annotation>\n"
        (folder / "Annotations" / scene.name).with_suffix(".xml").write_text(text)
    return folder


def write_csv(folder: Path, scenes: Sequence[Drawn]) -> Path:
    rows = [f"{scene.name},{x1},{y1},{x2},{y2},{kind}" for scene in scenes for kind, x1, y1, x2, y2 in scene.boxes] + [
        f"{scene.name},,,,," for scene in scenes if not scene.boxes
    ]
    (folder / "boxes.csv").write_text("\n".join(["image_path,xmin,ymin,xmax,ymax,label", *rows]) + "\n")
    return folder / "boxes.csv"


def check_entries(data: AnnotatedImages, raw: bytes) -> None:
    """What is true of every data set that was read, whatever its files said."""
    for entry in data.entries:
        both = torch.cat([entry.boxes, entry.crowds])
        assert (both[:, :2] >= 0).all(), raw
        assert (both[:, :2] < both[:, 2:]).all(), raw
        assert (both[:, 2:] <= torch.tensor([entry.width, entry.height])).all(), raw
        labels = torch.cat([entry.labels, entry.crowd_labels])
        assert len(labels) == len(both), raw
        assert ((labels >= 1) & (labels <= len(data.classes))).all(), raw
        assert entry.areas.isfinite().all(), raw
    assert len(data.digest()) == 16
