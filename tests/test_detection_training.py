"""Training: exact resume, several processes, the epoch that is kept; and the command line from end to end."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from roialign.cli import app
from roialign.detection import build_detector, recipe
from roialign.detection.checkpoint import load_detector
from roialign.detection.datasets import AnnotatedImages
from roialign.detection.images import Photo
from roialign.detection.sampling import SeededSampler
from roialign.detection.training import LOSSES, best_epoch
from roialign.outputs import Folder
from roialign.samples import PHOTO_FILE, TRAIN

SIDE = 96


@pytest.fixture(scope="module")
def crowns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five cuts of the packaged photo as a COCO data set."""
    folder = tmp_path_factory.mktemp("crowns")
    boxes = AnnotatedImages(TRAIN).entries[0].boxes
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "tree"}],
    }
    with Image.open(PHOTO_FILE) as photo:
        for index in range(5):
            x, y = 70 * index, 60 * index
            photo.crop((x, y, x + SIDE, y + SIDE)).save(folder / f"cut{index}.png")
            content["images"].append({"id": index, "file_name": f"cut{index}.png", "width": SIDE, "height": SIDE})
            for box in boxes - torch.tensor([x, y, x, y]):
                cut = box.clamp(0, SIDE)
                if (cut[2:] - cut[:2]).prod() > 0.5 * (box[2:] - box[:2]).prod():
                    bbox = [*cut[:2].tolist(), *(cut[2:] - cut[:2]).tolist()]
                    content["annotations"].append({"image_id": index, "category_id": 1, "bbox": bbox})
    (folder / "crowns.json").write_text(json.dumps(content))
    return folder


def arguments(crowns: Path, out: Path, *more: str) -> list[str]:
    small = ["--crop", "64", "--scale", "1", "--batch", "2", "--lr", "1e-3", "--val-split", "0.2"]
    return ["train", str(crowns / "crowns.json"), "--out", str(out), *small, *more]


def start(*command: str, launcher: tuple[str, ...] = (), threads: int = 1) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "COLUMNS": "200"}
    line = [sys.executable, *launcher, "-m", "roialign", *command]
    return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def log(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "log.csv").read_text().splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_killed_and_resumed_gives_the_same_weights(precision: str, crowns: Path, tmp_path: Path) -> None:
    how = ("--epochs", "3", "--precision", precision)
    undisturbed = start(*arguments(crowns, tmp_path / "whole", *how))
    killed = start(*arguments(crowns, tmp_path / "killed", *how))
    state = tmp_path / "killed" / "last.safetensors"
    while not state.exists() and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    finish(undisturbed)
    again = CliRunner().invoke(app, arguments(crowns, tmp_path / "killed", "--epochs", "3"))
    assert "continue it with --resume" in str(again.exception) + again.output
    resume = ("train", "--resume", "--out", str(tmp_path / "killed"))  # the folder keeps the rest
    changes = (("--batch", 2, 4), ("--lr", 0.001, 0.01), ("--seed", 0, 7), ("--val-split", 0.2, 0.4))
    for option, was, now in (*changes, ("--precision", precision, "none")):
        other = CliRunner().invoke(app, [*resume, option, str(now)])
        assert f"cannot go on: {option} was {was}, now it is {now}" in str(other.exception) + other.output
    assert "of 3 epochs were done" in finish(start(*resume, "--workers", "1", "--patience", "8"))
    for name in ("last.safetensors", "model.safetensors", "log.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    rows = log(tmp_path / "whole")
    assert [float(row["epoch"]) for row in rows] == [1, 2, 3]
    assert all(0 <= float(row["AP"]) <= float(row["AP50"]) <= 1 for row in rows)
    for name in ("views.png", "log.png"):
        with Image.open(tmp_path / "whole" / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 100


@pytest.mark.slow
def test_a_finished_training_goes_on_for_more_epochs(crowns: Path, tmp_path: Path) -> None:
    folder, run = tmp_path / "out", CliRunner()
    resume = ["train", "--resume", "--out", str(folder)]
    assert run.invoke(app, arguments(crowns, folder, "--epochs", "1", "--batch", "4")).exit_code == 0
    nothing = run.invoke(app, resume)
    assert nothing.exit_code == 0
    assert "nothing to do" in nothing.output
    (folder / "log.csv").rename(tmp_path / "first.csv")  # what is not there is written again
    more = run.invoke(app, [*resume, "--epochs", "2"])
    assert more.exit_code == 0, more.output
    assert "1 of 2 epochs were done" in more.output
    first, rows = (tmp_path / "first.csv").read_text().splitlines(), (folder / "log.csv").read_text().splitlines()
    assert rows[:2] == first
    assert len(rows) == 3
    assert json.loads((folder / "train.json").read_text())["epochs"] == 2
    moved = tmp_path / "moved"
    crowns.rename(moved)
    try:
        lost = run.invoke(app, resume)
        assert "no such file" in str(lost.exception) + lost.output
        assert "nothing to do" in run.invoke(app, [*resume, str(moved / "crowns.json")]).output
    finally:
        moved.rename(crowns)


def test_a_damaged_command_is_one_line(tmp_path: Path) -> None:
    kept: dict[str, Any] = {**dict.fromkeys(recipe.OPTIONS, 1), **dict.fromkeys(recipe.PATHS)}
    kept |= {
        "weights": None,
        "classes": None,
        "columns": None,
        "augment": None,
        "freeze_backbone": False,
        "masks": False,
        "device": None,
        "tracker": None,
        "backbone": "mobilenet_v2",
        "pooling": "roi_align",
        "precision": "float32",
    }
    (tmp_path / "train.json").write_bytes(recipe.pack(recipe.Recipe(**kept)))
    assert recipe.resume(tmp_path, {"epochs": 7}) == recipe.Recipe(**{**kept, "epochs": 7})
    wrong = ({"epochs": True}, {"lr": "1"}, {"annotations": 5}, {"seed": None}, {"backbone": ["mobilenet_v2"]})
    lacking = {name: value for name, value in kept.items() if name != "crop"}
    objects = [json.dumps(each) for each in (lacking, *map(kept.__or__, wrong))]
    for content in ("", "[]", "{}", "null", "[" * 100_000, *objects):
        (tmp_path / "train.json").write_text(content)
        with pytest.raises(ValueError, match=r"train\.json: not the command of a training"):
            recipe.resume(tmp_path, {})


def test_resuming_where_nothing_was_started(tmp_path: Path) -> None:
    empty = CliRunner().invoke(app, ["train", "--resume", "--out", str(tmp_path / "typo")])
    assert "typo: has no training to resume" in str(empty.exception) + empty.output
    assert not (tmp_path / "typo").exists()


def test_a_second_training_in_a_folder_is_refused(crowns: Path, tmp_path: Path) -> None:
    with Folder(tmp_path / "out"):  # as another process would hold it
        second = CliRunner().invoke(app, arguments(crowns, tmp_path / "out"))
    assert "another roialign is writing there" in str(second.exception) + second.output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").write_text("of somebody else")
    other = CliRunner().invoke(app, arguments(crowns, tmp_path / "mine"))
    assert "model.safetensors: is there, and no file that roialign left" in str(other.exception) + other.output
    assert (tmp_path / "mine" / "model.safetensors").read_text() == "of somebody else"


@pytest.mark.parametrize("scores", [[math.nan] * 3, [0.0] * 3, [], [0.0, 0.2, 0.1], [0.2, 0.3, 0.3]])
def test_the_epoch_that_is_kept(scores: list[float]) -> None:
    history = [{"AP50": score} for score in scores] or [{"loss": 1.0}] * 3
    judged = bool(scores) and max(scores) > 0
    assert best_epoch(history) == (2 if judged else 3)


def test_of_epochs_with_the_same_ap50_that_of_the_higher_ap_is_kept() -> None:
    """As where a small part to judge by is found as a whole: AP still tells how exactly."""
    pairs = ((0.9, 0.8), (1.0, 0.6), (1.0, 0.7), (1.0, 0.7), (1.0, 0.65))
    assert best_epoch([{"AP50": ap50, "AP": ap} for ap50, ap in pairs]) == 3


@pytest.mark.slow
def test_a_held_out_part_without_boxes_is_said_and_the_last_epoch_kept(crowns: Path, tmp_path: Path) -> None:
    content = json.loads((crowns / "crowns.json").read_text())
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] == 2]
    (crowns / "one.json").write_text(json.dumps(content))
    lines = arguments(crowns, tmp_path / "out", "--epochs", "2", "--batch", "4", "--lr", "0", "--patience", "1")
    lines[1] = str(crowns / "one.json")
    result = CliRunner().invoke(app, lines)
    assert result.exit_code == 0, result.output
    assert result.output.index("no boxes in the images to judge by") < result.output.index("wrote")
    assert load_detector(tmp_path / "out" / "model.safetensors").card["epoch"] == 2
    assert "AP50" not in log(tmp_path / "out")[0]


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(crowns: Path, tmp_path: Path) -> None:
    more = ("--epochs", "1", "--lr", "0", "--val-split", "0", "--crop", str(SIDE))  # 3 steps, the last of one image
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    two = start(*arguments(crowns, tmp_path / "two", *more, "--batch", "1"), launcher=launcher)
    one = start(*arguments(crowns, tmp_path / "one", *more, "--batch", "2"))
    finish(one)
    assert "on 2 x cpu" in finish(two)
    got, expected = (load_file(tmp_path / name / "last.safetensors") for name in ("two", "one"))
    assert got.keys() == expected.keys()
    # The means of the gradients, of weights that stay: AdamW's first steps are all of one size, so that the sign of a
    # gradient that is only rounding would move a weight as far as any, and the next step's gradients with it.
    moments = sorted(name for name in got if name.endswith("exp_avg"))
    assert len(moments) == len(list(load_detector().parameters()))
    mine, theirs = (torch.cat([each[name].flatten() for name in moments]) for each in (got, expected))
    assert float((mine - theirs).norm() / theirs.norm()) < 1e-5
    logs = [log(tmp_path / name) for name in ("two", "one")]
    for name, value in logs[0][0].items():
        assert float(value) == pytest.approx(float(logs[1][0][name]), rel=1e-4), name


@pytest.mark.slow
def test_losses_of_parts_weighted_by_their_samples_make_the_whole_batchs(crowns: Path) -> None:
    """What the weights of the processes rest on, with images that give unequal numbers of samples."""
    torch.manual_seed(0)
    options = {
        "rpn_post_nms_top_n_train": 60,
        "rpn_batch_size_per_image": 3000,
        "fpn_channels": 16,
        "head_channels": 32,
    }
    model = build_detector(2, "mobilenet_v2_fpn", norm="group", scale=1.0, **options).double().train()
    samplers = [SeededSampler(head.fg_bg_sampler) for head in (model.rpn, model.roi_heads)]
    model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler = samplers
    data = AnnotatedImages(crowns / "crowns.json")
    images = [Photo(entry.file).read().double() for entry in data.entries[:2]]
    targets = [{"boxes": entry.boxes.double(), "labels": entry.labels} for entry in data.entries[:2]]

    def losses(which: list[int]) -> tuple[Tensor, Tensor]:
        for sampler in samplers:
            sampler.seeds = which
        found = model([images[k] for k in which], [dict(targets[k]) for k in which])
        counts = torch.tensor([float(sampler.count) for sampler in samplers])
        return torch.stack([found[name] for name in LOSSES]), counts.repeat_interleave(2)

    whole, total = losses([0, 1])
    parts, counts = zip(losses([0]), losses([1]), strict=True)
    assert len({tuple(count.tolist()) for count in counts}) == 2
    shared = sum(part * count / total for part, count in zip(parts, counts, strict=True))
    torch.testing.assert_close(shared, whole, rtol=1e-6, atol=0)  # torchvision makes targets in float32
    assert not torch.allclose(sum(parts) / 2, whole, rtol=1e-4)


def test_samples_depend_on_the_image_alone() -> None:
    class Base:
        batch_size_per_image, positive_fraction = 8, 0.5

    sampler = SeededSampler(Base())
    matched = [torch.randint(-1, 3, (200,), generator=torch.Generator().manual_seed(k)) for k in range(3)]

    def choose(which: list[int]) -> list[tuple[Tensor, Tensor]]:
        sampler.seeds = [10 + k for k in which]
        positive, negative = sampler([matched[k] for k in which])
        return list(zip(positive, negative, strict=True))

    together, apart = choose([0, 1, 2]), [choose([k])[0] for k in (2, 1, 0)][::-1]
    for (positive, negative), (alone, without), labels in zip(together, apart, matched, strict=True):
        assert torch.equal(positive, alone)
        assert torch.equal(negative, without)
        assert int(positive.sum()) == 4
        assert (labels[positive.bool()] > 0).all()
        assert (labels[negative.bool()] == 0).all()
    choose([0, 1])
    assert sampler.count == 16


def test_a_loss_that_is_not_finite_names_the_images(crowns: Path, tmp_path: Path) -> None:
    process = start(*arguments(crowns, tmp_path / "out", "--epochs", "3", "--lr", "1e30"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "a loss is not finite" in output
    assert "loss_classifier" in output
    assert "cut" in output.split("images:")[1]


def test_training_stops_early_and_the_best_epoch_is_kept(crowns: Path, tmp_path: Path) -> None:
    # Without learning AP50 never rises above the first epoch's.
    more = ("--epochs", "9", "--lr", "0", "--patience", "2", "--batch", "4")
    result = CliRunner().invoke(app, arguments(crowns, tmp_path / "out", *more))
    assert result.exit_code == 0, result.output
    rows = log(tmp_path / "out")
    best = max(rows, key=lambda row: (float(row["AP50"]), float(row["AP"])))
    epoch = int(best["epoch"])
    assert len(rows) == 9 or len(rows) == epoch + 2
    assert load_detector(tmp_path / "out" / "model.safetensors").card["epoch"] == epoch
    assert f"model.safetensors, the model of epoch {epoch}" in " ".join(result.output.split())


def test_train_evaluate_detect_in_the_command_line(crowns: Path, tmp_path: Path) -> None:
    run = CliRunner()
    trained = run.invoke(app, arguments(crowns, tmp_path / "train", "--epochs", "1"))
    assert trained.exit_code == 0, trained.output
    weights = ("--weights", str(tmp_path / "train" / "model.safetensors"))
    out = ("--out", str(tmp_path / "evaluate"), "--json", str(tmp_path / "ap.json"))
    judged = run.invoke(app, ["evaluate", str(crowns / "crowns.json"), *weights, *out])
    assert judged.exit_code == 0, judged.output
    assert "AP75" in judged.output
    metrics = json.loads((tmp_path / "ap.json").read_text())
    assert {"AP", "AP50", "AP75", "APs", "AR100", "F1"} <= metrics.keys()
    assert 0 <= metrics["AP"] <= metrics["AP50"] <= 1
    for name in ("precision_recall.png", "worst.png"):
        assert (tmp_path / "evaluate" / name).stat().st_size > 1000

    folder = tmp_path / "photos"
    folder.mkdir()
    whole = Image.open(crowns / "cut0.png")
    whole.save(folder / "good.png")
    whole.convert("L").save(folder / "good.tif")  # the same stem: its drawing gets a name of its own
    Image.new("RGB", (1, 1)).save(folder / "tiny.png")
    (folder / "torn.jpg").write_bytes(PHOTO_FILE.read_bytes()[:9000])
    found = run.invoke(app, ["detect", str(folder), *weights, "--out", str(tmp_path / "detect"), "--score", "0"])
    assert found.exit_code == 1
    assert "torn.jpg" in found.output
    records = json.loads((tmp_path / "detect" / "detections.json").read_text())
    assert [Path(image["file_name"]).name for image in records["images"]] == ["good.png", "good.tif", "tiny.png"]
    assert {"good.jpg", "good-2.jpg", "tiny.jpg"} <= {file.name for file in (tmp_path / "detect").iterdir()}
    for annotation in records["annotations"]:
        image = records["images"][annotation["image_id"] - 1]
        x, y, w, h = annotation["bbox"]
        assert 0 <= x <= x + w <= image["width"] + 0.01
        assert 0 <= y <= y + h <= image["height"] + 0.01
    assert records["annotations"]

    (folder / "torn.jpg").unlink()
    assert run.invoke(app, ["detect", str(folder), *weights, "--out", str(tmp_path / "detect")]).exit_code == 0
    nothing = run.invoke(app, ["detect", str(tmp_path / "nowhere"), *weights])
    assert "nowhere: no images there" in str(nothing.exception) + nothing.output
    other = json.loads((crowns / "crowns.json").read_text()) | {"categories": [{"id": 1, "name": "bush"}]}
    (crowns / "bushes.json").write_text(json.dumps(other))
    wrong = run.invoke(app, ["evaluate", str(crowns / "bushes.json"), *weights])
    assert "its class 'bush' is one that the detector lacks: ['tree']" in str(wrong.exception) + wrong.output
