"""The example of noisy boxes: its scenes are what their boxes say, its table is what plain loops give."""

import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console
from torch import Tensor

from roialign.detection.datasets import AnnotatedImages
from roialign.detection.recipe import Recipe
from roialign.detection.tiles import Found

FILE = Path(__file__).parent.parent / "examples" / "label_noise.py"
Box = Sequence[float]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example with small scenes."""
    spec = importlib.util.spec_from_file_location("label_noise", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in {"SIZE": 192, "CROWNS": 7, "SCENES": {"train": 1, "held": 2}, "CROP": 96}.items():
        monkeypatch.setattr(module, name, value)
    return module


def boxes_of(file: Path) -> dict[int, list[Box]]:
    """Of each image, as the file has them."""
    boxes: dict[int, list[Box]] = {}
    for row in json.loads(file.read_text())["annotations"]:
        x, y, width, height = row["bbox"]
        boxes.setdefault(row["image_id"], []).append((x, y, x + width, y + height))
    return boxes


def overlap(a: Box, b: Box) -> float:
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    both = max(0.0, width) * max(0.0, height)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def average_precision(found: dict[int, list[Box]], truth: dict[int, list[Box]], least: float) -> float:
    """COCO's, of boxes whose scores fall in their order, alike in every image."""
    free = {image: list(boxes) for image, boxes in truth.items()}
    hits = []
    for rank in range(max(map(len, found.values()))):
        for image, boxes in found.items():
            best = max(free[image], key=lambda box: overlap(box, boxes[rank]), default=None)
            hits.append(best is not None and overlap(best, boxes[rank]) >= least)
            if hits[-1]:
                free[image].remove(best)
    total = sum(map(len, truth.values()))
    points = [(sum(hits[:n]) / total, sum(hits[:n]) / n) for n in range(1, len(hits) + 1)]
    return sum(max((p for r, p in points if r >= step / 100 - 1e-12), default=0.0) for step in range(101)) / 101


def test_a_box_is_that_of_the_pixels_of_its_crown(example: ModuleType) -> None:
    scenes = [example.paint(crowns, torch.Generator().manual_seed(3)) for crowns in range(8)]
    for index in range(7):
        rows, columns = (scenes[index][0] != scenes[index + 1][0]).any(0).nonzero().unbind(1)
        seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        torch.testing.assert_close(seen.float(), scenes[7][1][index], atol=1.5, rtol=0)


def test_edges_miss_by_five_pixels_either_way(example: ModuleType) -> None:
    exact = torch.tensor([[100.0, 200, 180, 290]]).expand(20_000, 4)
    missed: Tensor = example.jitter(exact, torch.Generator().manual_seed(0)) - exact
    torch.testing.assert_close(missed.mean(0), torch.zeros(4), atol=0.15, rtol=0)  # 4 / sqrt(20000) of 5
    torch.testing.assert_close(missed.T.cov(), 25 * torch.eye(4), atol=1.0, rtol=0)


def test_the_table_is_what_loops_give(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def learn(truth: Path, *_: object) -> list[Found]:
        """A detector that gives the boxes which the trainer of its truth would have drawn."""
        return example.without_fault(tmp_path / truth.name.replace("train", "held"))

    monkeypatch.setattr(example, "learn", learn)
    rows = list(example.experiment(tmp_path, Recipe(), Console()).values())
    exact, jittered = (boxes_of(tmp_path / f"held_{name}.json") for name in ("exact", "jittered"))
    assert [len(boxes) for boxes in exact.values()] == [7, 7]
    overlaps = [overlap(a, b) for image in exact for a, b in zip(exact[image], jittered[image], strict=True)]
    shares = [sum(value >= least for value in overlaps) / 14 for least in (0.4, 0.5, 0.75)]
    counted = [value for value in overlaps if value >= 0.5]
    mean = sum(counted) / len(counted)
    assert 0 < shares[2] < shares[1]

    assert rows[0] == rows[1] == pytest.approx([1, 1, 1, 1])
    for row, found, truth in ((rows[2], jittered, exact), (rows[3], exact, jittered)):
        assert row[:3] == pytest.approx([average_precision(found, truth, least) for least in (0.4, 0.5, 0.75)])
    assert rows[4] == pytest.approx([*(share**2 for share in shares), mean])


def test_it_trains_and_prints(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(example, "SETTINGS", Recipe(epochs=1, batch=4, repeat=1))
    monkeypatch.setattr(sys, "argv", ["label_noise.py", str(tmp_path)])
    monkeypatch.setenv("COLUMNS", "120")
    example.main()
    said = capsys.readouterr().out
    exact, jittered = (boxes_of(tmp_path / f"held_{name}.json") for name in ("exact", "jittered"))
    right = [overlap(a, b) >= 0.5 for image in exact for a, b in zip(exact[image], jittered[image], strict=True)]
    line = re.search("the same, reckoned crown by crown.*", said)
    assert line is not None
    assert re.findall(r"\d\.\d{3}", line[0])[1] == f"{(sum(right) / 14) ** 2:.3f}"
    assert len(AnnotatedImages(tmp_path / "train_jittered.json").boxes) == 7
    assert (tmp_path / "exact" / "model.safetensors").read_bytes() != (
        tmp_path / "jittered" / "model.safetensors"
    ).read_bytes()
