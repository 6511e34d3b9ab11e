"""What is easily got wrong at first: a line says what came, and what was expected."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from roialign.detection import Detector, load_detector
from roialign.detection.datasets import AnnotatedImages
from roialign.detection.evaluation import Report
from roialign.detection.images import DamagedImageError, Photo
from roialign.detection.tables import metrics_table
from roialign.detection.weights import load_weights
from roialign.samples import DETECTOR, HELDOUT, PHOTO_FILE
from test_detection_files import picture, run, told
from test_detection_model import small


def test_a_folder_or_a_state_is_no_detector(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{tmp_path}: a folder; expected a file, as the model\.safetensors that"):
        load_detector(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "last.safetensors", {"roialign": "{}"})
    with pytest.raises(ValueError, match=r"last\.safetensors is the state, and model\.safetensors, beside it, the det"):
        load_detector(tmp_path / "last.safetensors")
    (tmp_path / "yolo.pt").write_bytes(b"PK\x03\x04 of somebody else")
    with pytest.raises(ValueError, match=r"yolo\.pt: not a safetensors file, as a training leaves: "):
        load_detector(tmp_path / "yolo.pt")


@pytest.mark.parametrize("content", [{"model": torch.nn.Linear(1, 1)}, {"model": 1}, [1.0], 3])
def test_weights_are_tensors_by_their_names(content: Any, tmp_path: Path) -> None:
    """The first is what Ultralytics saves: the model as an object."""
    torch.save(content, tmp_path / "yolo.pt")
    with pytest.raises(ValueError, match=r"^weights: .*yolo\.pt cannot be read: .*expected tensors by their names"):
        load_weights(small(), tmp_path / "yolo.pt")


@pytest.mark.parametrize("device", ["0", "0,1", "gpu", "-1", "cuda:one"])
def test_a_device_has_pytorchs_name(device: str) -> None:
    with pytest.raises(ValueError, match=rf"^device: got '{device}'; expected cpu, cuda, cuda:1, mps, \.\.\.$"):
        Detector(device=device)


def test_an_image_is_a_file(tmp_path: Path) -> None:
    detector = Detector(device="cpu")
    with pytest.raises(DamagedImageError, match=r"no\.jpg: cannot be opened: No such file or directory$"):
        detector.detect(tmp_path / "no.jpg")
    with pytest.raises(DamagedImageError, match=rf"^{tmp_path}: cannot be opened: "):  # a folder, as the system says it
        detector.detect(tmp_path)
    with pytest.raises(TypeError, match=r"^image: got Image; expected the path of a file \(pixels: model"):
        detector.detect(Image.new("RGB", (64, 64)))  # type: ignore[arg-type]
    for score in (50, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"^score: got {score}; expected a number from 0 to 1$"):
            detector.detect(PHOTO_FILE, score=score)


def test_pixels_are_for_the_model(tmp_path: Path) -> None:
    """As the error of the test above has it."""
    with Image.open(PHOTO_FILE) as photo:
        photo.crop((0, 0, 200, 160)).save(tmp_path / "a.png")
    detector = Detector(device="cpu")
    expected = detector.detect(tmp_path / "a.png", score=0, tile=0)
    with torch.no_grad():
        (got,) = detector.model([Photo(tmp_path / "a.png").read()])
    assert len(expected.boxes) > 0
    assert torch.equal(got["scores"], expected.scores)
    assert torch.equal(got["boxes"], expected.boxes)


def test_whose_detector_looks_is_said_where_none_was_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    out = ("--out", tmp_path / "out", "--no-draw")
    silent = run("detect", tmp_path / "a.png", "--weights", DETECTOR, *out)
    said = run("detect", tmp_path / "a.png", *out)
    assert (silent.exit_code, said.exit_code) == (0, 0), told(said)
    line = "no --weights: the detector is the package's, of tree crowns"
    assert line in said.output
    assert line not in silent.output


def test_a_detector_is_no_data_set(tmp_path: Path) -> None:
    """As who resumes with ``last.safetensors`` in place of the folder has it."""
    result = run("train", DETECTOR, "--resume", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"{DETECTOR}: expected COCO's JSON, YOLO's yaml" in told(result)
    assert not (tmp_path / "out").exists()


def test_the_title_of_a_narrow_table_is_one_line() -> None:
    data = AnnotatedImages(HELDOUT)
    table = metrics_table(data, Report({"AP": 0.5}, torch.empty(3, 0), {}))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    title, *rows = (line.rstrip() for line in console.export_text().splitlines())
    assert title == f"heldout.json: {len(data.entries)} images, {len(data.boxes)} boxes"
    assert {len(row) for row in rows} == {len(title)}
