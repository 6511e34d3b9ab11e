"""Tiles without any difference between their pixels are not shown to the network; all others are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from roialign.detection import build_detector, detect
from roialign.detection.images import FILL, Photo
from test_detection_images import Finder, scatter


@pytest.mark.parametrize("batch", [1, 3])
def test_beside_blank_tiles_everything_is_found(batch: int, tmp_path: Path) -> None:
    """13 x 5 tiles, 75 pixels from each other; the first six columns end before pixel 500."""
    boxes = scatter(tmp_path / "right.png", 500, 400, most=18)
    survey = Image.new("L", (1000, 400))
    survey.paste(Image.open(tmp_path / "right.png"), (500, 0))
    survey.save(tmp_path / "survey.png")
    finder = Finder()
    (found,) = detect(finder, [Photo(tmp_path / "survey.png")], tile=100, overlap=20, batch=batch)
    corners = [(x, y) for x in range(0, 901, 75) for y in range(0, 301, 75)]
    seen = [survey.crop((x, y, x + 100, y + 100)).getbbox() is not None for x, y in corners]
    assert not any(seen[: 6 * 5])
    assert sum(finder.batches) == sum(seen) > 25
    assert len(boxes) > 15
    assert sorted(found.boxes.tolist()) == sorted((boxes + torch.tensor([500, 0, 500, 0])).tolist())


def test_of_an_image_half_of_which_is_blank_66_of_121_tiles_are_looked_at(tmp_path: Path) -> None:
    """11 x 11 of 512 pixels, 348.8 from each other: five columns end before pixel 2000."""
    values = np.zeros((4000, 4000), np.uint8)
    values[:, 2000:] = np.arange(2000) % 2
    Image.fromarray(values).save(tmp_path / "half.png")
    finder = Finder()
    list(detect(finder, [Photo(tmp_path / "half.png")]))
    assert sum(finder.batches) == 66


@pytest.mark.parametrize("band", [0, 1, 2])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (63, 0), (0, 63), (63, 63), (31, 40)])
def test_one_pixel_that_differs_by_one_is_looked_at(x: int, y: int, band: int, tmp_path: Path) -> None:
    values = np.full((64, 64, 3), (90, 7, 200), np.uint8)
    values[y, x, band] += 1
    Image.fromarray(values).save(tmp_path / "a.png")
    finder = Finder()
    (found,) = detect(finder, [Photo(tmp_path / "a.png")])
    assert finder.batches == [1]
    assert len(found.boxes) == (2 if band == 0 else 1)  # the finder sees red, in which the rest is one object


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (300, 200)])
def test_without_any_difference_nothing_is_asked_and_nothing_found(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, (90, 7, 200)).save(tmp_path / "a.png")
    Image.new("RGBA", size, (90, 7, 200, 0)).save(tmp_path / "clear.png")  # all of it is shown as FILL
    finder = Finder()
    photos = [Photo(tmp_path / name) for name in ("a.png", "clear.png")]
    assert photos[1].crop((0, 0, 1, 1)).getpixel((0, 0)) == FILL
    for found in detect(finder, photos, tile=100, overlap=20, large=True):
        assert [(part.dtype, part.tolist()) for part in found[:3]] == [
            (torch.float32, []),
            (torch.float32, []),
            (torch.int64, []),
        ]
        assert found.grids is None
    assert finder.batches == []


def test_blank_photos_keep_their_place_among_others(tmp_path: Path) -> None:
    names, expected = [], []
    for number, blank in enumerate((True, False, True, True, False, False, True)):
        names.append(tmp_path / f"{number}.png")
        if blank:
            Image.new("L", (80, 80), 9).save(names[-1])
        expected.append([] if blank else sorted(scatter(names[-1], 80, 80, 8 + number).tolist()))
    found = detect(Finder(), map(Photo, names), tile=80, overlap=20, batch=2)
    assert [sorted(each.boxes.tolist()) for each in found] == expected


def test_of_a_detector_with_masks_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"fpn_channels": 8, "head_channels": 8, "box_score_thresh": 0.0, "box_detections_per_img": 5}
    model = build_detector(2, "mobilenet_v2_fpn", scale=1.0, masks=True, **small)
    noise = Image.effect_noise((80, 80), 90)
    noise.save(tmp_path / "noise.png")
    Image.new("L", (80, 80)).save(tmp_path / "blank.png")
    both = Image.new("L", (160, 80))
    both.paste(noise, (80, 0))
    both.save(tmp_path / "both.png")
    photos = [Photo(tmp_path / f"{name}.png") for name in ("noise", "blank", "both")]
    one, none, two = detect(model, photos, tile=80, overlap=0)
    assert one.grids is not None
    assert none.grids is not None
    assert two.grids is not None
    assert (len(one.boxes), len(none.boxes), none.grids.shape) == (5, 0, (0, 28, 28))
    assert torch.equal(two.boxes, one.boxes + torch.tensor([80.0, 0, 80, 0]))
    assert torch.equal(two.grids, one.grids)
