"""Files of several images: every page and frame is looked at, as if it were a file of its own."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from roialign.detection.geography import place_of
from roialign.detection.images import DamagedImageError, Photo, read_head
from roialign.detection.pages import count_images, read_images
from test_detection_records import detector, run

Values = np.ndarray[Any, Any]


def noise(height: int, width: int, seed: int, dtype: Any = np.uint8) -> Values:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, 3), dtype, endpoint=True)


def shown(photo: Photo) -> Values:
    return np.asarray(photo.crop((0, 0, photo.width, photo.height)))


def test_pages_of_any_size_depth_and_turn(tmp_path: Path) -> None:
    """Between them a smaller copy and a mask, which are none; the colours of 16 bits are what Pillow would cut."""
    path = tmp_path / "stack.tif"
    first, wide, turned = noise(20, 30, 1), noise(41, 25, 2, np.uint16), noise(12, 50, 3)
    grey = np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) * 54  # up to 64746: white is 65535
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(first, photometric="rgb")
        tiff.write(first[::2, ::2], photometric="rgb", subfiletype=1)
        tiff.write(wide, photometric="rgb")
        tiff.write(np.zeros((20, 30), bool), photometric="mask", subfiletype=4)
        tiff.write(turned, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
        tiff.write(grey, photometric="minisblack")
    pages = list(read_images(path))
    assert count_images(path) == 4
    assert [(page.frame, page.page, page.time, page.note) for page in pages] == [
        (0, 0, None, ""),
        (1, 2, None, ""),
        (2, 4, None, ""),
        (3, 5, None, ""),
    ]
    assert (shown(pages[0]) == first).all()
    assert np.abs(shown(pages[1]) - wide / 65535 * 255).max() <= 0.501
    assert (shown(pages[2]) == np.rot90(turned, -1)).all()
    assert np.abs(shown(pages[3]) - (grey / 65535 * 255)[..., None]).max() <= 1
    assert [(page.height, page.width) for page in pages] == [(20, 30), (41, 25), (50, 12), (30, 40)]
    assert (shown(Photo(path)) == first).all()
    assert Photo(path).note == "the first of 4 frames"


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_frames_of_animations(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (60, 40), (40 * number, 0, 0)) for number in range(5)]
    for number, frame in enumerate(frames):
        frame.paste((255, 255, 255), (10 * number, 5, 10 * number + 8, 20))  # so that each is only told in parts
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **options)
    read = list(read_images(path))
    assert [each.frame for each in read] == [0, 1, 2, 3, 4]
    assert count_images(path) == 5
    for each, frame in zip(read, frames, strict=True):
        assert (shown(each) == np.asarray(frame)).all()


def test_a_file_of_one_image_has_no_frames(tmp_path: Path) -> None:
    for name in ("a.png", "a.gif", "a.tif", "a.jpg", "a.webp"):
        Image.fromarray(noise(20, 30, 1)).save(tmp_path / name)
        (photo,) = read_images(tmp_path / name)
        assert (photo.frame, photo.page, count_images(tmp_path / name)) == (None, 0, 1)
        assert (shown(photo) == shown(Photo(tmp_path / name))).all()
    (tmp_path / "torn.tif").write_bytes(b"II*\0torn")
    assert count_images(tmp_path / "torn.tif") == 1
    with pytest.raises(DamagedImageError, match=r"torn\.tif"):
        next(read_images(tmp_path / "torn.tif"))


@pytest.mark.parametrize("order", [(np.float32,) * 3, (np.uint8, np.float32, np.uint8)])
def test_pages_that_pillow_does_not_know(order: tuple[Any, ...], tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        for seed, dtype in enumerate(order, 1):
            values = noise(20, 30, seed)
            tiff.write(values if dtype is np.uint8 else values.astype(dtype) / dtype(255), photometric="rgb")
    assert Photo(path).note == read_head(path).note == "the first of 3 frames"
    for photo, number in zip(read_images(path), (1, 2, 3), strict=True):
        assert photo.frame == number - 1
        assert (shown(photo) == noise(20, 30, number)).all()


def test_every_page_of_a_geotiff_has_its_own_place(tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        for number, east in enumerate((512_000.0, 600_000.0)):
            scale = (33550, "d", 3, (0.5, 0.5, 0.0), True)
            tie = (33922, "d", 6, (0.0, 0.0, 0.0, east, 4_970_000.0, 0.0), True)
            keys = (34735, "H", 12, (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32612 + number), True)  # projected, EPSG
            tiff.write(noise(20, 30, number), photometric="rgb", extratags=[scale, tie, keys])
        tiff.write(noise(20, 30, 2), photometric="rgb")
    places = [place_of(photo) for photo in read_images(path)]
    for (place, note), east, number in zip(places, (512_000, 600_000), (32612, 32613), strict=False):
        assert place is not None
        assert note == ""
        assert place.matrix == (0.5, 0, east, 0, -0.5, 4_970_000)
        assert place.system.to_epsg() == number
    assert places[2] == (None, "")


def test_the_command_takes_each_page_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found is what is found in files of one page each; a page is drawn under its number."""
    monkeypatch.chdir(tmp_path)
    weights = detector(tmp_path)
    values = [noise(80 + 10 * number, 90, number) for number in range(11)]
    with tifffile.TiffWriter("stack.tif") as tiff:
        for number, each in enumerate(values):
            tiff.write(each, photometric="rgb")
            Image.fromarray(each).save(f"{number}.png")
    options = ("--weights", weights, "--score", 0.1, "--csv")
    assert run("detect", "stack.tif", *options, "a.csv", "--out", "a").exit_code == 0
    single = [f"{number}.png" for number in range(11)]
    assert run("detect", *single, *options, "b.csv", "--out", "b", "--no-draw").exit_code == 0
    images = json.loads(Path("a/detections.json").read_text())["images"]
    assert [(each["file_name"], each["frame_id"], each["time"]) for each in images] == [
        ("../stack.tif", number, None) for number in range(11)
    ]
    assert [(each["height"], each["width"]) for each in images] == [each.shape[:2] for each in values]
    together, apart = (list(csv.DictReader(Path(name).read_text().splitlines())) for name in ("a.csv", "b.csv"))
    for row, alone in zip(together, apart, strict=True):
        assert alone.pop("image_path") == f"{row['frame']}.png"
        assert {**alone, "image_path": "stack.tif", "frame": row["frame"]} == row
    assert {row["frame"] for row in together} == set(map(str, range(11)))
    for name, place in (("a.csv", "line "), ("a/detections.json", "images[1] (id 2): frame")):
        fault = str(run("evaluate", name, "--weights", weights).exception)
        assert place in fault
        assert "of a file of several images only the first can be learned from" in fault
    drawn = sorted(path.name for path in Path("a").glob("*.jpg"))
    assert drawn == [f"stack-frame{number:02}.jpg" for number in range(11)]
    for name, each in zip(drawn, values, strict=True):
        drawing = Photo(Path("a") / name)
        assert drawing.height / drawing.width == pytest.approx(each.shape[0] / each.shape[1])


def test_damage_is_named_and_the_pages_before_it_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with tifffile.TiffWriter("bad.tif") as tiff:
        for number in range(3):
            tiff.write(noise(90, 90, number), photometric="rgb", compression="zlib")
    with tifffile.TiffFile("bad.tif") as tiff:
        begin = tiff.pages[2].aspage().dataoffsets[0]
    content = bytearray(Path("bad.tif").read_bytes())
    content[begin : begin + 400] = bytes(400)
    Path("bad.tif").write_bytes(content)
    pages = read_images(Path("bad.tif"))
    assert [next(pages).frame for _ in range(2)] == [0, 1]
    with pytest.raises(DamagedImageError, match=r"bad\.tif: .*\(after 2 of 3 frames\)"):
        next(pages)
    done = run("detect", "bad.tif", "--weights", detector(tmp_path), "--score", 0, "--out", "out")
    assert done.exit_code == 1
    assert len(json.loads(Path("out/detections.json").read_text())["images"]) == 2
    assert sorted(path.name for path in Path("out").glob("*.jpg")) == ["bad-frame0.jpg", "bad-frame1.jpg"]
