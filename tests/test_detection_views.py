"""What a training is shown: every image once in an epoch, boxes where their pixels are, colours within their bounds."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from roialign.detection.datasets import AnnotatedImages, Entry
from roialign.detection.images import FILL, Photo
from roialign.detection.views import PROFILES, EpochBatches, TrainingViews, View, appearance, augment, augmentation
from roialign.samples import TRAIN

AERIAL = PROFILES["aerial"]
Take = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]


def test_each_image_is_seen_once_per_epoch_whoever_shows_it() -> None:
    sizes = [(50, 50), (64, 64), (128, 192), (10, 10), (64, 40), (70, 60), (60, 60)]
    none = (torch.empty(0, 4), torch.empty(0))
    entries = [Entry(i, Path(), w, h, *none, *none, torch.empty(0), "", 0) for i, (w, h) in enumerate(sizes)]
    for processes, batch, repeat in ((1, 4, 1), (3, 1, 1), (4, 3, 2), (5, 2, 1), (11, 1, 1)):
        shares = [EpochBatches(entries, 64, batch, repeat, 9, rank, processes) for rank in range(processes)]
        single = EpochBatches(entries, 64, batch * processes, repeat, 9)
        orders = [[view.image for step in single for view in step]]
        assert {view.epoch for step in single for view in step} == {0}  # before it is set
        for epoch in (0, 1):
            for share in (*shares, single):
                share.epoch = epoch
            steps = [list(share) for share in shares]
            assert {len(each) for each in (*steps, *shares)} == {len(single)}
            seen = [view for each in steps for step in each for view in step if view.counts]
            # 128 x 192 pixels are six crops of 64 x 64; everything else is one.
            assert Counter(view.image for view in seen) == {i: repeat * (6 if i == 2 else 1) for i in range(len(sizes))}
            assert len(set(seen)) == len(seen)
            for number, together in enumerate(single):
                parts = [view for each in steps for view in each[number] if view.counts]
                assert sorted(parts) == sorted(together)
            orders.append([view.image for step in single for view in step])
        assert orders[0] == orders[1] != orders[2]


def test_a_seed_is_the_same_in_every_version() -> None:
    """Or a training that is resumed would go on with other views. By ``printf '4 1 2 3' | b2sum -l 56``."""
    assert View(1, 2, 3).seed(4) == 0x34A850F2B364FD


def test_a_view_is_the_same_whenever_it_is_asked_for() -> None:
    data = AnnotatedImages(TRAIN)
    views = [view for step in EpochBatches(data.entries, 256, 2, 4, 0) for view in step]
    first = [TrainingViews(data, 64, 0, AERIAL)[view] for view in views]
    torch.manual_seed(99)
    for sample, view in zip(reversed(first), reversed(views), strict=True):
        again = TrainingViews(data, 64, 0, AERIAL)[view]
        assert torch.equal(sample.image, again.image)
        assert torch.equal(sample.target["boxes"], again.target["boxes"])
    assert not torch.equal(first[0].image, TrainingViews(data, 64, 1, AERIAL)[views[0]].image)


def test_boxes_follow_their_pixels_through_every_augmentation(tmp_path: Path) -> None:
    """A white rectangle on black: wherever the view shows it, there its box is."""
    canvas = torch.zeros(3, 120, 150, dtype=torch.uint8)
    canvas[:, 40:70, 60:100] = 255
    Image.fromarray(canvas.permute(1, 2, 0).numpy()).save(tmp_path / "white.png")
    boxes, labels = torch.tensor([[60.0, 40.0, 100.0, 70.0]]), torch.tensor([4])
    none = torch.empty(0, 4), torch.empty(0), torch.empty(1)
    entry = Entry(0, tmp_path / "white.png", 150, 120, boxes, labels, *none, "", 0)
    photo = Photo(entry.file)
    torch.manual_seed(0)
    shapes, kept = set(), 0
    for size in (64, 256):  # smaller and larger than the photo
        for _ in range(40):
            image, got, labelled, _ = augment(photo, entry, size, AERIAL)
            assert image.shape == (3, size, size)
            bright = (image.mean(0) > 0.5 * (image.mean(0).max() + image.mean(0).min())).float()
            if size > 150:  # grey lies around the photo
                bright = (image.mean(0) > 0.7).float()
            if len(got) and image.max() > 0.75:
                kept += 1
                assert labelled.tolist() == [4]
                shapes.add(bool(got[0, 2] - got[0, 0] > got[0, 3] - got[0, 1]))
                rows, columns = bright.amax(1).nonzero()[:, 0], bright.amax(0).nonzero()[:, 0]
                seen = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
                torch.testing.assert_close(got[0], seen, atol=3.0, rtol=0)
    assert kept > 40
    assert shapes == {True, False}  # turned by a quarter, or not


@pytest.fixture
def take(tmp_path: Path) -> Take:
    """A view of ``[3, H, W]`` uint8 pixels with boxes, labelled by their index; neither turned nor recoloured."""
    how = AERIAL._replace(colour=0, mirror=False, turn=False)

    def view(pixels: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(tmp_path / "photo.png")
        none, labels = (torch.empty(0, 4), torch.empty(0), torch.empty(len(boxes))), torch.arange(len(boxes))
        entry = Entry(0, tmp_path / "photo.png", pixels.shape[2], pixels.shape[1], boxes, labels, *none, "", 0)
        return augment(Photo(entry.file), entry, size, how)[:3]

    return view


def test_one_view_by_hand(take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance in the middle: not zoomed, from (50, 60) of a photo that is 100 x 120 larger."""
    monkeypatch.setattr(torch, "rand", lambda _: torch.tensor(0.5))
    pixels = torch.arange(3 * 184 * 164).mul(7919).remainder(251).to(torch.uint8).reshape(3, 184, 164)
    boxes = {
        (60, 70, 80, 100): (10, 10, 30, 40),
        (45, 90, 60, 99): (0, 30, 10, 39),  # cut at the left
        (44, 70, 54, 80): (0, 10, 4, 20),  # so that 0.4 of it are left
        (43.5, 70, 53.5, 80): None,  # and a little less
        (70, 54, 80, 64): (20, 0, 30, 4),
        (105, 115, 115, 125): (55, 55, 64, 64),  # cut at the lower right corner
        (108, 118, 118, 128): None,
        (70, 70, 72, 90): (20, 10, 22, 30),  # two pixels are enough
        (70, 70, 90, 72): (20, 10, 40, 12),
        (70, 70, 71.5, 90): None,
        (70, 70, 90, 71.5): None,
        (0, 0, 30, 30): None,
        (120, 70, 130, 80): None,
    }
    image, got, labels = take(pixels, torch.tensor([*boxes]), 64)
    assert torch.equal(image, pixels[:, 60:124, 50:114] / torch.tensor(255.0))
    assert got.tolist() == [list(box) for box in boxes.values() if box]
    assert labels.tolist() == [index for index, box in enumerate(boxes.values()) if box]


def test_pixels_of_a_crop_lie_where_its_boxes_say(take: Take) -> None:
    """Red grows by 1 with x and green with y; small boxes tell where the crop lies, and how much it is zoomed."""
    x, y = torch.arange(240).expand(200, 240), torch.arange(200)[:, None].expand(200, 240)
    pixels = torch.stack([x, y, x]).to(torch.uint8)
    corner = torch.cartesian_prod(torch.arange(0, 232, 12), torch.arange(0, 192, 12)).float()
    boxes = torch.cat([corner, corner + 8], 1)
    torch.manual_seed(0)
    for _ in range(25):
        image, got, labels = take(pixels, boxes, 64)
        whole = next(k for k, box in enumerate(got.tolist()) if min(box) > 0 and max(box) < 64)
        zoom = float(got[whole, 2] - got[whole, 0]) / 8
        assert float(got[whole, 3] - got[whole, 1]) / 8 == pytest.approx(zoom, rel=1e-4)
        for colour, along in ((0, 0), (1, 1)):
            middle = torch.arange(3, 61) + 0.5  # of the pixels; at the borders some of what they show lies outside
            position = boxes[labels[whole], along] + (middle - got[whole, along]) / zoom
            shown = 255 * image[colour, 3:-3, 3:-3].transpose(0, along)
            torch.testing.assert_close(shown, (position - 0.5).expand(58, 58), atol=0.6, rtol=0)  # rounded


def test_a_small_photo_lies_anywhere_in_its_view_at_any_zoom(take: Take) -> None:
    white = torch.full((3, 30, 50), 255, dtype=torch.uint8)
    fill = torch.tensor(FILL)[:, None, None] / 255
    torch.manual_seed(0)
    zooms, places = [], []
    for _ in range(300):
        image, (box,), _ = take(white, torch.tensor([[0.0, 0.0, 50.0, 30.0]]), 160)
        seen = (image != fill).any(0)
        rows, columns = seen.amax(1).nonzero()[:, 0], seen.amax(0).nonzero()[:, 0]
        assert (image[:, seen] == 1).all()
        assert int(seen.sum()) == len(rows) * len(columns)
        around = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
        torch.testing.assert_close(box, around, atol=0.501, rtol=0)  # whole pixels
        zooms.append(float(box[2] - box[0]) / 50)
        places.append([float(box[0]) / (160 - float(box[2] - box[0])), float(box[1]) / (160 - float(box[3] - box[1]))])
    assert 1 / 2.2001 < min(zooms) < 1 / 2.1
    assert 2.1 < max(zooms) < 2.2001
    assert abs(sum(map(math.log, zooms))) / 300 < 0.08  # three deviations of a mean of 300 in log(1 / 2.2) to log(2.2)
    for along in zip(*places, strict=True):
        assert -1e-4 < min(along) < 0.02
        assert 0.98 < max(along) < 1.0001
        assert sum(along) / 300 == pytest.approx(0.5, abs=0.05)


def test_a_photo_of_one_pixel_is_never_lost(take: Take) -> None:
    torch.manual_seed(0)
    sides: tuple[set[int], set[int]] = set(), set()
    for _ in range(60):
        image, boxes, _ = take(torch.full((3, 1, 1), 255, dtype=torch.uint8), torch.empty(0, 4), 32)
        assert boxes.shape == (0, 4)
        for along, side in enumerate(sides):
            side.add(int((image == 1).all(0).amax(along).sum()))
    assert sides == ({1, 2, 3}, {1, 2, 3})


def test_a_photo_is_laid_down_in_all_eight_ways() -> None:
    """By hand: of the box (1, 2, 5, 9) on 16 x 16 pixels two mirrors, and the same with the axes exchanged."""
    torch.manual_seed(0)
    found = Counter[tuple[int, ...]]()
    for _ in range(400):
        box = tv_tensors.BoundingBoxes([[1, 2, 5, 9]], format="XYXY", canvas_size=(16, 16), dtype=torch.float32)
        _, box = appearance(AERIAL)(torch.zeros(3, 16, 16, dtype=torch.uint8), box)
        found[tuple(round(float(edge), 4) for edge in box[0])] += 1
    one = {(x, y, x + 4, y + 7) for x in (1, 11) for y in (2, 7)}
    assert set(found) == one | {(y1, x1, y2, x2) for x1, y1, x2, y2 in one}
    assert min(found.values()) > 25  # of 50, 3.7 deviations of 6.6


def test_colours_stay_within_their_bounds_and_reach_them() -> None:
    """Brightness, contrast and blur by a step from 96 to 160, saturation by one colour; chance is seeded."""
    torch.manual_seed(0)
    step = torch.full((3, 24, 24), 96, dtype=torch.uint8)
    step[:, :, 12:] = 160
    flat = torch.tensor([160, 128, 96], dtype=torch.uint8)[:, None, None].expand(3, 24, 24).contiguous()
    none = tv_tensors.BoundingBoxes(torch.empty(0, 4), format="XYXY", canvas_size=(24, 24))
    brightness, contrast, centre, chroma = [], [], [], []
    for _ in range(400):
        grey = appearance(AERIAL)(step, none)[0].float().mean(0)
        least, most = float(grey.min()), float(grey.max())
        brightness.append((least + most) / 256)
        contrast.append((most - least) / (most + least) / (64 / 256))
        jumps = [float(grey.diff(dim=dim).abs().max()) for dim in (0, 1)]
        centre.append(max(jumps) / (most - least))  # the weight of a blur's centre: a step's differences are the kernel
        colour = appearance(AERIAL)(flat, none)[0][:, 12, 12].float()
        chroma.append(float((colour.max() - colour.min()) / colour.mean()) / 0.5)
    for values in (brightness, contrast):
        assert 0.62 < min(values) < 0.69  # pixels are rounded
        assert 1.31 < max(values) < 1.41
        assert 0.1 < sum(abs(value - 1) < 0.01 for value in values) / 400 < 0.35  # a fifth is left as it is
    coloured = sorted(value for value in chroma if value > 0)  # saturation and contrast, 0.65 to 1.35 each
    assert 0.38 < coloured[0] < 0.6
    assert 1.5 < coloured[-1] < 1.9
    assert 5 <= len(chroma) - len(coloured) <= 40  # grey, of 20
    blurred = [value for value in centre if value < 0.95]
    assert 20 < len(blurred) < 100  # of 80, but for the weakest
    gauss = 1 / (1 + 2 * math.exp(-0.5 / 1.2**2) + 2 * math.exp(-2 / 1.2**2))  # the weight at the strongest
    assert min(blurred) == pytest.approx(gauss, abs=0.04)
    assert sum(value > 0.5 for value in blurred) > 10  # some are weak


def test_upright_views_are_mirrored_only_and_of_less_zoom(tmp_path: Path) -> None:
    """Brightness rises downwards: it does so in every view. Of none nothing changes but the place."""
    rows = torch.arange(120, dtype=torch.uint8).mul(2)[None, :, None].expand(3, 120, 100).contiguous()
    rows[0, :, 50:] = 255  # red on the right
    Image.fromarray(rows.permute(1, 2, 0).numpy()).save(tmp_path / "rows.png")
    none = torch.empty(0, 4), torch.empty(0), torch.empty(0)
    entry = Entry(
        0,
        tmp_path / "rows.png",
        100,
        120,
        torch.tensor([[30.0, 40.0, 70.0, 80.0]]),
        torch.ones(1),
        *none[:2],
        none[2],
        "",
        0,
    )
    photo = Photo(entry.file)
    torch.manual_seed(0)
    mirrored, sides = set(), []
    for _ in range(60):
        image, boxes, *_ = augment(photo, entry, 96, augmentation("upright", colour=0))
        grey = image[1:].mean(0).mean(1)  # of each row; the border's colour is one
        inside = grey.diff()[4:-4]
        assert float(inside.sum()) > 0
        left, right = (float(part.mean()) for part in image[0].chunk(2, dim=1))
        mirrored.add(left > right)
        if len(boxes) and boxes[0, 1] > 0 and boxes[0, 3] < 96:
            sides.append(float(boxes[0, 3] - boxes[0, 1]) / 40)
    assert mirrored == {True, False}
    assert 1 / 1.5 - 1e-5 <= min(sides) < 0.75 < 1.3 < max(sides) <= 1.5 + 1e-5
    plain, boxes, *_ = augment(photo, entry, 150, augmentation("none"))  # around the photo
    (y, x) = (int(v) for v in ((plain[1:].mean(0) - 0.43).abs() > 0.05).nonzero()[0])  # its first dark pixel
    torch.testing.assert_close(plain[:, y : y + 120, x : x + 100].mul(255).round().to(torch.uint8), rows)
    moved = torch.tensor([[30.0 + x, 40 + y, 70 + x, 80 + y]])
    torch.testing.assert_close(boxes, moved, atol=0.5, rtol=0)  # pixels are whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Aerial",), "augment: got 'Aerial'; expected one of aerial, upright, none"),
        (("none", 0.5), "zoom: got 0.5; expected a finite number of at least 1"),
        (("none", math.inf), "zoom: got inf"),
        (("none", math.nan), "zoom: got nan"),
        (("aerial", 2.0, -0.1), "colour: got -0.1; expected a number from 0 to 1"),
        (("aerial", None, math.nan), "colour: got nan"),
    ],
)
def test_what_is_no_augmentation(arguments: tuple[str, float, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        augmentation(*arguments)


def test_given_ranges_take_the_place_of_a_profiles() -> None:
    assert augmentation("aerial", 3.0) == PROFILES["aerial"]._replace(zoom=3)
    assert augmentation("none", colour=0.2) == PROFILES["none"]._replace(colour=0.2)


def test_a_damaged_image_is_a_sample_without_anything(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    none = torch.empty(0, 4), torch.empty(0), torch.empty(0)
    entry = Entry(
        0, tmp_path / "torn.png", 64, 64, torch.tensor([[1.0, 1, 9, 9]]), torch.ones(1), *none[:2], none[2], "", 0
    )
    data = AnnotatedImages(TRAIN)
    data.entries = [entry]
    sample = TrainingViews(data, 64, 0, AERIAL)[View(0, 0, 0)]
    assert "torn.png" in sample.fault
    assert not sample.view.counts
    assert len(sample.target["boxes"]) == 0
