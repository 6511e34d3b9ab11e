"""The data that ``examples/coins.py`` learns from: what it takes for coins are coins."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path

import pytest

from roialign.detection.datasets import AnnotatedImages

EXAMPLE = Path(__file__).parents[1] / "examples" / "coins.py"


def test_twelve_coins_to_learn_from_and_twelve_others(tmp_path: Path) -> None:
    """Four rows of six, none cut between the parts, each round but for its worn edge."""
    files = runpy.run_path(str(EXAMPLE))["write"](tmp_path)
    for file in files.values():
        (entry,) = AnnotatedImages(file, masks=True).entries
        assert len(entry.boxes) == len(entry.masks) == 12
        assert entry.boxes[:, 1].min() > 0
        assert entry.boxes[:, 3].max() < entry.height
        for box, mask in zip(entry.boxes.tolist(), entry.masks, strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            assert 0.8 < width / height < 1.25
            assert mask.area == pytest.approx(math.pi / 4 * width * height, rel=0.1)
    heights = [json.loads(file.read_text())["images"][0]["height"] for file in files.values()]
    assert sum(heights) == 303
