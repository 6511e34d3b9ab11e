"""A recipe: what the command makes of its options, and what a trainer asks of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from roialign.cli import app
from roialign.detection import build_detector, commands
from roialign.detection.datasets import AnnotatedImages
from roialign.detection.recipe import Recipe
from roialign.detection.training import Trainer
from roialign.samples import TRAIN


def test_the_command_builds_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(commands, "train", lambda recipe, out, console, resume: asked.append((recipe, out, resume)))
    more = ["a.json", "--images", "b", "--val-split", "0", "--weights", "c.pth", "--scale", "2", "--crop", "64"]
    for line in ([], ["--out", "here"], [*more, "--lr", "1e-3", "--precision", "bfloat16", "--seed", "7"]):
        assert CliRunner().invoke(app, ["train", *line]).exit_code == 0
    given = {"annotations": Path("a.json"), "images": Path("b"), "val_split": 0.0, "weights": "c.pth", "scale": 2.0}
    given |= {"crop": 64, "lr": 1e-3, "precision": "bfloat16", "seed": 7}
    assert asked == [
        (Recipe(), Path("train"), False),
        (Recipe(), Path("here"), False),
        (Recipe(**given), Path("train"), False),
    ]
    assert Recipe().backbone == "mobilenet_v2_fpn"  # the package's detector, from which it starts, has it
    for wrong in (["--epochs", "0"], ["--ema", "0.9"], ["--val-split", "0.95"], ["--crop", "63"]):
        assert CliRunner().invoke(app, ["train", *wrong]).exit_code == 2
    assert len(asked) == 3


def test_a_trainer_without_a_crop_is_refused(tmp_path: Path) -> None:
    model = build_detector(2, "mobilenet_v2_fpn", fpn_channels=8, head_channels=8)
    with pytest.raises(ValueError, match="recipe: got no crop or augmentation; expected"):
        Trainer(model, AnnotatedImages(TRAIN), None, Recipe(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
