"""Test-time augmentation: views are taken back to the image exactly, and votes are counted as by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from roialign.detection import detect
from roialign.detection.images import Photo
from roialign.detection.voting import VIEWS, Boxes, look, vote


def boxes(*rows: tuple[float, ...]) -> Boxes:
    """Rows of x1, y1, x2, y2, score and perhaps a label."""
    table = torch.tensor([row if len(row) == 6 else (*row, 1) for row in rows]).reshape(-1, 6)
    return {"boxes": table[:, :4], "scores": table[:, 4], "labels": table[:, 5].long()}


class Bright(nn.Module):
    """Finds one box: around all that is brighter than a half, at least so wide as the box that it was shown first."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))
        self.roi_heads = nn.Module()
        self.roi_heads.nms_thresh = 0.5
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: list[Tensor]) -> list[Boxes]:
        return [self._find(image[0]) for image in images]

    def _find(self, grey: Tensor) -> Boxes:
        self.shapes.append(tuple(grey.shape))
        places = (grey > 0.5).nonzero().float()
        low, high = places.amin(0), places.amax(0) + 1
        return boxes((float(low[1]), float(low[0]), float(high[1]), float(high[0]), 0.8))


def test_each_view_finds_the_box_where_it_is(tmp_path: Path) -> None:
    """Off the middle along both axes; to a pixel of the smaller view, whose edges are blurred."""
    image = torch.zeros(3, 100, 150)
    image[:, 20:60, 30:110] = 1
    model = Bright()
    (seen,) = look(model, [image])
    assert model.shapes == [(100, 150), (100, 150), (100, 150), (80, 120), (125, 188)]
    assert len(seen) == len(VIEWS) == 5
    for view, found in zip(VIEWS, seen, strict=True):
        off = (found["boxes"] - torch.tensor([30.0, 20, 110, 60])).abs().max()
        assert off <= (0 if view.zoom == 1 else 1 / 0.8), view


def test_the_views_are_what_they_are_called() -> None:
    """As it is, mirrored, upside down, mirrored at 0.8 and 1.25 times: as Pillow resizes, to a rounding to 8 bits."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (3, 33, 150), generator=generator, dtype=torch.uint8)
    seen: list[Tensor] = []

    def model(images: list[Tensor]) -> list[Boxes]:
        seen.extend(images)
        height, width = images[0].shape[1:]
        return [boxes((0, 0, width, height, 0.5))]

    (found,) = look(model, [image / 255])
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = [picture, mirrored, picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    expected += [mirrored.resize(size, Image.Resampling.BILINEAR) for size in ((120, 26), (188, 41))]
    for got, view in zip(seen, expected, strict=True):
        torch.testing.assert_close(got, pil_to_tensor(view) / 255, rtol=0, atol=1.01 / 255)
    for each in found:  # the whole of each view is the whole image, though 26 is not 0.8 of 33
        torch.testing.assert_close(each["boxes"], torch.tensor([[0.0, 0, 150, 33]]))


def test_boxes_vote_as_by_hand() -> None:
    one = boxes((0, 0, 10, 10, 0.9), (50, 50, 60, 60, 0.3))
    two = boxes((2, 0, 12, 10, 0.6), (0, 0, 10, 10, 0.5, 2), (2, 1, 12, 11, 0.3))
    three = boxes()
    voted = vote([one, two, three], 0.5)
    # IoU 80 / 120 and 72 / 128 with the best: the three are one object. The second view's best vote counts.
    mean = (
        torch.tensor([0.0, 0, 10, 10]) * 0.9
        + torch.tensor([2.0, 0, 12, 10]) * 0.6
        + torch.tensor([2.0, 1, 12, 11]) * 0.3
    )
    torch.testing.assert_close(
        voted["boxes"], torch.stack([mean / 1.8, torch.tensor([0.0, 0, 10, 10]), torch.tensor([50.0, 50, 60, 60])])
    )
    torch.testing.assert_close(voted["scores"], torch.tensor([(0.9 + 0.6) / 3, 0.5 / 3, 0.3 / 3]))
    assert voted["labels"].tolist() == [1, 2, 1]


def test_what_most_views_see_overtakes_what_one_is_sure_of() -> None:
    sure, often = (0.0, 0.0, 10.0, 10.0, 0.9), (50.0, 50.0, 60.0, 60.0, 0.5)
    voted = vote([boxes(sure, often), boxes(often), boxes(often)], 0.5)
    assert voted["boxes"].tolist() == [[50, 50, 60, 60], [0, 0, 10, 10]]
    assert voted["scores"].tolist() == pytest.approx([0.5, 0.3])


def test_nobody_votes_for_nothing() -> None:
    voted = vote([boxes(), boxes()], 0.5)
    assert {name: tuple(value.shape) for name, value in voted.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
    }


def test_tiles_are_voted_on_before_they_are_merged(tmp_path: Path) -> None:
    """A box across the seam of two tiles, of which the views of each tile see as much as the tile."""
    canvas = Image.new("L", (180, 80))
    canvas.paste(255, (80, 20, 100, 60))
    canvas.save(tmp_path / "scene.png")
    (plain,), (voted,) = (
        list(detect(Bright(), [Photo(tmp_path / "scene.png")], tile=120, overlap=60, tta=tta)) for tta in (False, True)
    )
    assert plain.boxes.tolist() == [[80, 20, 100, 60]]
    assert voted.boxes.shape == (1, 4)
    # Two of five views are to a pixel, with equal weights.
    assert (voted.boxes - plain.boxes).abs().max() <= 2 / 5 * 1 / 0.8
    assert voted.scores.tolist() == pytest.approx([0.8])
