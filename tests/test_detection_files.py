"""The files of ``roialign detect`` and ``evaluate``: photos survive, names do no harm, ids are the user's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from roialign.cli import app
from roialign.detection import build_detector, load_detector, save_detector
from roialign.outputs import LOG

OWN = {LOG, "detections.json"}


def picture(path: Path, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((72, 64), 50).convert(mode).save(path, path.suffix[1:].replace("jpg", "jpeg"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def run(*line: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in line])


def told(result: Result) -> str:
    return f"{result.exception} {result.output}"


def test_photos_survive_in_the_folder_of_the_drawings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "a.png", "a.jpg", "B.PNG", "b.jpg", "sub/a.png"):
        picture(tmp_path / name)
    before = contents(tmp_path)
    for patterns in (["photo.jpg"], ["a.png"], ["."], ["."]):  # of the drawings no drawings are made
        done = run("detect", *patterns, "--out", ".")
        assert done.exit_code == 0, told(done)
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    drawn = after.keys() - before.keys() - OWN
    assert {"photo-2.jpg", "a-2.jpg", "a-3.jpg"} < drawn
    assert len({name.casefold() for name in drawn}) == 6  # also where B.jpg is b.jpg, as on Windows and macOS
    assert len(json.loads(after["detections.json"])["images"]) == 6


def test_links_and_other_peoples_files_survive(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.jpg")
    picture(tmp_path / "in" / "b.jpg")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.jpg").symlink_to("../in/a.jpg")
    (out / "b.jpg").hardlink_to(tmp_path / "in" / "b.jpg")
    (out / "views.png").write_text("mine")
    before = contents(tmp_path)
    assert run("detect", tmp_path / "in", "--out", out).exit_code == 0
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"out/a-2.jpg", "out/b-2.jpg", *(f"out/{name}" for name in OWN)}
    assert (out / "a.jpg").is_symlink()
    (out / "detections.json").write_text("corrected by hand")
    refused = run("detect", tmp_path / "in", "--out", out)
    assert "detections.json: is there, and no file that roialign left" in told(refused)
    assert (out / "detections.json").read_text() == "corrected by hand"


def test_names_that_are_no_names(tmp_path: Path) -> None:
    odd = ["plot[north].png", "site[/b].png", ":tree:.png", "\x1b[31m\n.png", os.fsdecode(b"caf\xe9.png"), "n" * 251]
    odd[-1] += ".png"
    for name in odd:
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "site[" / "torn].png").write_bytes(b"no image")
    picture(tmp_path / "in" / "stemless.png")
    (tmp_path / "in" / "stemless.png").rename(tmp_path / "in" / ".png")
    result = run("detect", tmp_path / "in", tmp_path / "in" / ".png", "--out", tmp_path / "out")
    assert result.exit_code == 1
    output = told(result)
    assert "site[/torn].png: not an image" in output
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {os.path.relpath(image["file_name"], "../in") for image in records["images"]} == {*odd, ".png"}
    drawn = {file.name for file in (tmp_path / "out").iterdir()} - OWN
    assert drawn == {*(Path(name).stem + ".jpg" for name in odd), ".png.jpg"}
    lost = run("detect", tmp_path / "no[/b]thing\x1b[2J", "--out", tmp_path / "out")
    assert "no[/b]thing\\x1b[2J" in told(lost)


def test_every_id_is_the_users(tmp_path: Path) -> None:
    """A detector of two classes whose ids are 12 and 90; images whose ids are text."""
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
    content: dict[str, Any] = {
        "images": [{"id": f"site/{name}", "file_name": f"{name}.png", "width": 72, "height": 64} for name in "ab"],
        "annotations": [
            {"id": 1, "image_id": "site/b", "category_id": 90, "bbox": [5, 5, 20, 20]},
            {"id": 2, "image_id": "site/b", "category_id": 12, "bbox": [5, 5, 0, 20]},
        ],
        "categories": [{"id": 90, "name": "tree [old]"}, {"id": 12, "name": "bush"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    small = {"fpn_channels": 8, "head_channels": 8, "output_size": 2, "box_score_thresh": 0.0}
    model = build_detector(3, "mobilenet_v2_fpn", scale=1.0, **small)
    save_detector(model, tmp_path / "m.safetensors", classes=["bush", "tree [old]"], category_ids=[12, 90])
    line = ("--weights", tmp_path / "m.safetensors", "--out", tmp_path / "out")
    judged = run("evaluate", tmp_path / "coco.json", *line, "--json", tmp_path / "ap.json")
    assert judged.exit_code == 0, told(judged)
    assert "│ tree [old] │" in judged.output
    assert "1 boxes are left out" in judged.output.replace("\n", " ")
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {each["image_id"] for each in results} == {"site/a", "site/b"}
    assert {each["category_id"] for each in results} == {12, 90}
    metrics = json.loads((tmp_path / "ap.json").read_text())
    assert metrics["boxes"] == 1
    assert {"AP40", "AP50", "mean_iou", "AP_bush", "AP_tree [old]"} <= metrics.keys()

    found = run("detect", tmp_path / "a.png", *line, "--score", "0")
    assert found.exit_code == 0, told(found)
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert records["categories"] == [{"id": 12, "name": "bush"}, {"id": 90, "name": "tree [old]"}]
    assert {each["category_id"] for each in records["annotations"]} == {12, 90}


def test_evaluate_writes_over_nothing_that_it_reads(tmp_path: Path) -> None:
    picture(tmp_path / "worst.png")
    content = {
        "images": [{"id": 1, "file_name": "worst.png", "width": 72, "height": 64}],
        "annotations": [],
        "categories": [{"id": 1, "name": "tree"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    before = contents(tmp_path)
    for more, message in (
        (("--out", tmp_path / "o", "--json", tmp_path / "coco.json"), "coco.json: is read"),
        (("--out", tmp_path / "o", "--json", tmp_path / "worst.png"), "worst.png: is read"),
        (("--out", tmp_path / "o", "--json", tmp_path / "o" / "WORST.png"), "two files would be written there"),
        (("--out", tmp_path), "worst.png: is read"),
    ):
        assert message in told(run("evaluate", tmp_path / "coco.json", *more))
    assert contents(tmp_path) == before


def test_a_detector_of_other_classes_is_refused_with_or_without_their_names(tmp_path: Path) -> None:
    model = load_detector()
    model.card = {}
    save_detector(model, tmp_path / "m.safetensors")
    picture(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 72, "height": 64}],
        "annotations": [],
        "categories": [{"id": 1, "name": "tree"}, {"id": 2, "name": "bush"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    result = run("evaluate", tmp_path / "coco.json", "--weights", tmp_path / "m.safetensors", "--out", tmp_path / "o")
    assert "the detector's are 1 without names" in told(result)


def test_explain_and_demo_write_over_nothing(tmp_path: Path) -> None:
    picture(tmp_path / "photo.png")
    (tmp_path / "link.html").symlink_to("photo.png")
    (tmp_path / "crowns.png").write_text("mine")
    before = contents(tmp_path)
    explain = ("explain", "--box", 0, 0, 4, 4, "--size", 8, 8, "--image", tmp_path / "photo.png")
    for more, message in (
        (("--out", tmp_path / "photo.png"), "is read"),
        (("--html", tmp_path / "photo.png"), "is read"),
        (("--json", tmp_path / "photo.png"), "is read"),
        (("--html", tmp_path / "link.html"), "is a link"),
        (("--html", tmp_path / "x", "--json", tmp_path / "X"), "two files"),
    ):
        result = run(*explain, *more)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split()).replace("│ │ ", "")
    assert "crowns.png: is there" in told(run("demo", "--out", tmp_path))
    assert {name: data for name, data in contents(tmp_path).items() if name != LOG} == before
    for _ in range(2):  # what the user names is replaced
        assert run(*explain, "--json", tmp_path / "all.json").exit_code == 0
