"""Videos: every frame with its time, upright; what is damaged is named; what is drawn keeps its times."""

from __future__ import annotations

import csv
import json
import struct
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from roialign.cli import app
from roialign.detection import build_detector, save_detector
from roialign.detection.images import DamagedImageError, Photo
from roialign.detection.video import Recorder, count_frames, read_frames

av = pytest.importorskip("av")

SIZE = (96, 64)
TIMES = (0.0, 0.1, 0.25, 0.3, 1.0)


def picture(number: int) -> Image.Image:
    """Grey, lighter from frame to frame, with a white square in the upper left corner."""
    canvas = Image.new("RGB", SIZE, (40 * number + 20,) * 3)
    canvas.paste((255, 255, 255), (0, 0, 16, 16))
    return canvas


def film(path: Path, times: Sequence[float] = TIMES, codec: str = "mpeg4") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=20)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_image(picture(number % 6))
            frame.pts, frame.time_base = round(time * 20), Fraction(1, 20)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path) -> None:
    """Have the file say that it is to be shown turned by a quarter clockwise, as phones do: x' = -y, y' = x."""
    content = bytearray(path.read_bytes())
    begin = content.index(b"tkhd") + 4 + 40  # ISO 14496-12, 8.3.2, version 0
    content[begin : begin + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def small_detector(folder: Path) -> Path:
    torch.manual_seed(0)
    small = {"fpn_channels": 8, "head_channels": 8, "output_size": 2, "box_score_thresh": 0.0}
    save_detector(build_detector(2, "mobilenet_v2_fpn", scale=1.0, **small), folder / "m.safetensors", classes=["tree"])
    return folder / "m.safetensors"


def test_every_frame_comes_once_with_its_time(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    frames = list(read_frames(path))
    assert [frame.frame for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.time for frame in frames] == pytest.approx(TIMES)
    assert count_frames(path) == 5
    for number, frame in enumerate(frames):
        assert (frame.width, frame.height) == SIZE
        grey = np.asarray(frame.crop((32, 24, 96, 64))).astype(float)
        assert abs(grey.mean() - (40 * number + 20)) < 4  # 8-bit YUV of a limited range, then a lossy codec
        torch.testing.assert_close(frame.read((32, 24, 96, 64)).mean(), torch.tensor(grey.mean() / 255).float())


def test_a_video_is_turned_as_it_says(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    turn(path)
    frame = next(read_frames(path))
    assert (frame.width, frame.height) == (64, 96)
    corners = [np.asarray(frame.crop(window)).mean() for window in ((50, 2, 62, 14), (2, 2, 14, 14), (2, 82, 14, 94))]
    assert corners[0] > 230  # the upper left corner has come to the upper right
    assert max(corners[1:]) < 60


def test_damage_is_named_and_what_came_before_counts(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", [k / 20 for k in range(60)])
    content = path.read_bytes()
    middle = content.index(b"mdat") + 8 + 4000
    end = content.index(b"moov") - 4
    (tmp_path / "torn.mp4").write_bytes(content[:middle])
    (tmp_path / "none.mp4").write_bytes(b"no video")
    for name in ("torn.mp4", "none.mp4", "gone.mp4"):
        with pytest.raises(DamagedImageError, match=rf"{name}: (damaged: (Invalid|No such)|no video)"):
            list(read_frames(tmp_path / name))
        assert count_frames(tmp_path / name) == 1
    (tmp_path / "bad.mp4").write_bytes(content[:middle] + b"\xff" * (end - middle) + content[end:])
    frames = read_frames(tmp_path / "bad.mp4")
    assert next(frames).frame == 0
    with pytest.raises(DamagedImageError, match=r"bad\.mp4: damaged: .*after \d+ (of 60 )?frames"):
        list(frames)


def test_without_pyav_the_extra_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film(tmp_path / "a.mp4")
    picture(0).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "av", None)
    words = ["detect", tmp_path / "a.png", tmp_path / "a.mp4", "--out", tmp_path / "out"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert "videos need PyAV: pip install 'roialign[video]'" in str(done.exception)
    assert not (tmp_path / "out" / "a.jpg").exists()


def test_what_is_recorded_is_shown_at_its_time(tmp_path: Path) -> None:
    with Recorder(tmp_path / "a.mp4") as recorder:
        for number, time in enumerate(TIMES):
            recorder.add(picture(number).crop((0, 0, 95, 63)), time)
    frames = list(read_frames(tmp_path / "a.mp4"))
    assert [frame.time for frame in frames] == pytest.approx(TIMES)
    for number, frame in enumerate(frames):
        assert (frame.width, frame.height) == (96, 64)  # even
        assert abs(np.asarray(frame.crop((32, 24, 94, 62))).mean() - (40 * number + 20)) < 4
    with Recorder(tmp_path / "b.mp4") as recorder:
        for time in (0.5, 0.5, None, 0.2):  # shown one after the other, whatever they say
            recorder.add(picture(0), time)
    times = [frame.time for frame in read_frames(tmp_path / "b.mp4")]
    assert times == pytest.approx([0.5, 0.5, 0.5 + 1 / 30, 0.5 + 1 / 30], abs=3 / 90_000)
    assert len(set(times)) == 4


def test_a_video_goes_through_the_command_frame_by_frame(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    content = film(tmp_path / "in" / "a.mp4").read_bytes()
    (tmp_path / "in" / "torn.mp4").write_bytes(content[: len(content) // 2])
    film(tmp_path / "in" / "aside.mp4")
    picture(0).save(tmp_path / "in" / "a.png")
    line = ["--weights", small_detector(tmp_path), "--score", 0, "--out", tmp_path / "out", "--csv", tmp_path / "a.csv"]
    words = ["detect", tmp_path / "in" / "a.mp4", tmp_path / "in" / "t*.mp4", tmp_path / "in", *line]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 1, done.output
    assert "torn.mp4: no video in it" in str(done.exception)
    assert "left aside, no images by their names: 1 .mp4" in done.output
    images = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    assert [(image["file_name"], image.get("frame_id")) for image in images] == [
        *(("../in/a.mp4", number) for number in range(5)), ("../in/a.png", None)
    ]  # fmt: skip
    assert [image["time"] for image in images[:5]] == pytest.approx(TIMES)
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert list(dict.fromkeys((row["image_path"], row["frame"]) for row in rows)) == [
        *(("in/a.mp4", str(number)) for number in range(5)), ("in/a.png", "")
    ]  # fmt: skip
    drawn = list(read_frames(tmp_path / "out" / "a.mp4"))
    assert [frame.time for frame in drawn] == pytest.approx(TIMES)
    still = Photo(tmp_path / "out" / "a.jpg")
    assert (still.width, still.height) == (3 * SIZE[0], 3 * SIZE[1])  # for its small boxes
    again = CliRunner().invoke(app, [str(word) for word in ["detect", tmp_path / "out" / "a.mp4", *line]])
    assert "1 files are left out: they are what roialign drew" in again.output
