"""Processes that a launcher started share detection and judging: what they write is what one process writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from roialign.cli import app
from roialign.detection import build_detector, save_detector
from roialign.detection.devices import LAUNCHERS, told
from roialign.outputs import LOG

# Both commands in one start, since starting takes longest.
BOTH = """
import sys
from roialign.cli import app

for line in (sys.argv[1:sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]):
    try:
        app(line, standalone_mode=False)
    except SystemExit as end:
        print("ended:", end)
"""


def photos(folder: Path) -> None:
    """Four images, two of one name, and one that is none; and what to judge them by."""
    torch.manual_seed(0)
    (folder / "in" / "deep").mkdir(parents=True)
    for name, width in (("a.png", 90), ("b.png", 130), ("deep/a.png", 70), ("deep/c.png", 100)):
        Image.effect_noise((width, 80), 80).convert("RGB").save(folder / "in" / name)
    (folder / "in" / "aa.png").write_bytes(b"no image")
    names = ("deep/c.png", "b.png", "a.png")  # in an order of their own
    sizes = {"a.png": 90, "b.png": 130, "deep/c.png": 100}
    content = {
        "images": [{"id": 7 - k, "file_name": n, "width": sizes[n], "height": 80} for k, n in enumerate(names)],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1 + k % 2, "bbox": [5, 6, 40 + k, 30]} for k in (5, 6, 7)
        ],
        "categories": [{"id": 1, "name": "bush"}, {"id": 2, "name": "tree"}],
    }
    (folder / "in" / "truth.json").write_text(json.dumps(content))
    small = {"fpn_channels": 8, "head_channels": 8, "output_size": 2, "box_score_thresh": 0.0}
    model = build_detector(3, "mobilenet_v2_fpn", scale=1.0, **small)
    save_detector(model, folder / "m.safetensors", classes=["bush", "tree"], category_ids=[1, 2])


def lines(out: str) -> tuple[list[str], list[str]]:
    """Of the two commands."""
    model = ["--weights", "m.safetensors", "--device", "cpu"]
    found = ["--out", f"{out}/found", "--geojson", f"{out}/found/a.geojson", "--csv", f"{out}/found/a.csv"]
    judged = ["--out", f"{out}/judged", "--json", f"{out}/judged/ap.json"]
    return ["detect", "in", *model, *found, "--score", "0.2"], ["evaluate", "in/truth.json", *model, *judged]


def alone(out: str) -> str:
    """In this process, by as many threads as a launcher gives each of several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = [CliRunner().invoke(app, line) for line in lines(out)]
    torch.set_num_threads(threads)
    assert [result.exit_code for result in results] == [1, 0]
    return "".join(result.output for result in results)


def shared(out: str) -> str:
    Path("both.py").write_text(BOTH)
    detect, evaluate = lines(out)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    line = [sys.executable, *launcher, "both.py", *detect, "--", *evaluate]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    photos(tmp_path)
    outputs = alone("one"), shared("two")

    files = sorted(path.relative_to("one") for path in Path("one").rglob("*.*"))
    assert files == sorted(path.relative_to("two") for path in Path("two").rglob("*.*"))
    names = {file.name for file in files}
    assert {"a.jpg", "a-2.jpg", "b.jpg", "c.jpg", "a.csv", "a.geojson", "ap.json", "worst.png"} < names
    for file in files:
        content, expected = ((Path(out) / file).read_bytes() for out in ("two", "one"))
        if file.name == LOG:  # who drew first stands first
            content, expected = (b"".join(sorted(text.splitlines())) for text in (content, expected))
        assert content == expected, file
    found = json.loads(Path("two/found/detections.json").read_text())
    assert len({each["image_id"] for each in found["annotations"]}) == 4

    # Each said once, and by two processes how many they are, at the start of either command.
    assert [output.count("2 processes on cpu share the work") for output in outputs] == [0, 2]
    said = "in/aa.png: not an image that can be read"
    missing = f"roialign detect: 1 images could not be read:\n  {said}"
    for once in (f"skipped {said}", missing, " in 4 of 5 images; wrote", "Detections", "in/deep/c.png", "wrote two/j"):
        assert [output.replace("one/", "two/").count(once) for output in outputs] == [1, 1], once


@pytest.mark.parametrize(
    ("variable", "processes", "index", "line"),
    [
        (None, 1, 0, ""),
        ("ACCELERATE_USE_CPU", 1, 0, "1 process on cpu; for more on CPUs: torchrun --nproc-per-node 2 -m roialign ..."),
        ("RANK", 3, 0, "3 processes on cpu share the work"),
        ("RANK", 3, 1, ""),
    ],
)
def test_a_launched_run_tells_how_many_processes_it_got(
    variable: str | None, processes: int, index: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one, by ``accelerate launch --cpu --num_processes 2``."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "False")
    team = SimpleNamespace(is_main_process=index == 0, num_processes=processes, device=torch.device("cpu"))
    assert told(team) == line  # type: ignore[arg-type]
