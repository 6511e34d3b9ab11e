"""Trainings that last: killed anywhere, stopped by hand, in parts, with damaged images, watched by others."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from roialign.cli import app
from roialign.detection.checkpoint import load_detector, read_description
from roialign.detection.interruption import Wish
from roialign.detection.model import backbone_of
from test_detection_training import arguments, crowns, finish, log, start

__all__ = ["crowns"]  # the fixture


def steps_done(folder: Path) -> tuple[int, int]:
    """Of the state: epochs that are done, and steps of the next."""
    description = read_description(folder / "last.safetensors")
    return len(description["history"]), description["epoch"]["done"]


@pytest.mark.slow
def test_killed_ten_times_within_epochs_and_resumed_gives_the_same_weights(crowns: Path, tmp_path: Path) -> None:
    options = ("--epochs", "3", "--repeat", "4", "--save-minutes", "0")  # saves each of 16 steps of an epoch
    whole, killed, state = tmp_path / "whole", tmp_path / "killed", tmp_path / "killed" / "last.safetensors"
    finish(start(*arguments(crowns, whole, *options)))
    chance, within = random.Random(5), 0
    process = start(*arguments(crowns, killed, *options))
    for kill in range(10):
        before = steps_done(killed) if state.exists() else (0, 0)
        while process.poll() is None and (steps_done(killed) if state.exists() else (0, 0)) == before:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.6))  # anywhere in the steps that follow, and in what they write
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        within += steps_done(killed)[1] > 0
        process = start("train", "--resume", "--out", str(killed), "--workers", str(kill % 2))
    finish(process)
    assert within >= 3  # not all at an epoch's end
    for name in ("last.safetensors", "model.safetensors", "log.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "workers"), [(signal.SIGINT, "0"), (signal.SIGINT, "2"), (signal.SIGTERM, "0")])
def test_stopped_by_hand_saves_and_says_how_to_go_on(
    crowns: Path, tmp_path: Path, sent: signal.Signals, workers: str
) -> None:
    """The whole group gets the signal, as it does of Ctrl-C, and with it the processes that prepare crops."""
    out = tmp_path / "it's out"
    line = ("--epochs", "2", "--repeat", "4", "--save-minutes", "0", "--workers", workers)
    process = start(*arguments(crowns, out, *line), launcher=("-c", NEW_GROUP))
    while process.poll() is None and not (out / "last.safetensors").exists():
        time.sleep(0.02)
    os.killpg(process.pid, sent)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "stopping after this step" in output
    epochs, steps = steps_done(out)
    assert f"stopped in epoch {epochs + 1} after {steps} of its 16 steps" in output
    assert f"go on with: roialign train --resume --out '{tmp_path}/it'\"'\"'s out'" in output
    assert "Traceback" not in output
    again = finish(start("train", "--resume", "--out", str(out), "--epochs", str(epochs + 1)))
    assert f"{epochs} of {epochs + 1} epochs were done, {steps} steps of the next" in again
    assert steps_done(out) == (epochs + 1, 0)


# Python itself becomes `python -m roialign`, the first of a group of its own.
NEW_GROUP = "import os, sys; os.setpgid(0, 0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


def test_a_wish_is_heard_once_and_the_second_one_obeyed() -> None:
    told: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with Wish(told.append) as wish:
        assert not wish.asked
        signal.raise_signal(signal.SIGINT)
        assert wish.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert len(told) == 1
    assert signal.getsignal(signal.SIGINT) is before
    thread = threading.Thread(target=lambda: told.append(f"{Wish(told.append).__enter__().asked}"))
    thread.start()  # where Python lets nobody listen
    thread.join()
    assert told[1:] == ["False"]


@pytest.mark.slow
def test_a_batch_in_parts_is_the_whole_batch(crowns: Path, tmp_path: Path) -> None:
    """Each image gives as many samples here, so the means of parts are those of the whole."""
    more = ("--epochs", "1", "--lr", "1e-4", "--val-split", "0", "--crop", "96")
    for name, parts in (("whole", "1"), ("parts", "2")):
        line = arguments(crowns, tmp_path / name, *more, "--accumulate", parts)
        line[line.index("--batch") + 1] = "3"  # 5 images: 3, in parts of 2 and 1, and 2
        result = CliRunner().invoke(app, line)
        assert result.exit_code == 0, result.output
    whole, parts = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    moments = sorted(name for name in whole if name.endswith("exp_avg"))
    mine, theirs = (torch.cat([each[name].flatten() for name in moments]) for each in (parts, whole))
    # Proposals differ in number from image to image, by a few of a few hundred.
    assert float((mine - theirs).norm() / theirs.norm()) < 0.05
    rows = [log(tmp_path / name)[0] for name in ("whole", "parts")]
    for name in ("loss_objectness", "loss_classifier"):
        assert float(rows[1][name]) == pytest.approx(float(rows[0][name]), rel=0.02), name


def test_a_frozen_backbone_stays_and_the_rest_learns(crowns: Path, tmp_path: Path) -> None:
    line = arguments(crowns, tmp_path / "out", "--epochs", "1", "--batch", "4", "--freeze-backbone")
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    trained, before = load_detector(tmp_path / "out" / "model.safetensors"), load_detector()
    body = backbone_of(before).state_dict()
    for name, value in backbone_of(trained).state_dict().items():
        assert torch.equal(value, body[name]), name
    assert not torch.equal(
        trained.backbone.fpn.inner_blocks[0][0].weight, before.backbone.fpn.inner_blocks[0][0].weight
    )
    with safe_open(tmp_path / "out" / "last.safetensors", "pt") as file:
        count = sum(name.endswith("exp_avg") for name in file.keys())  # noqa: SIM118
    assert count == len(list(trained.parameters())) - len(list(backbone_of(trained).parameters()))
    random_one = arguments(crowns, tmp_path / "other", "--freeze-backbone", "--backbone", "mobilenet_v2")
    refused = CliRunner().invoke(app, random_one)
    assert "freeze-backbone: mobilenet_v2 has no weights yet" in str(refused.exception) + refused.output


def test_damaged_images_are_named_and_left_out_up_to_a_limit(crowns: Path, tmp_path: Path) -> None:
    """A photo that ends early has a good head, so only decoding tells."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for file in crowns.glob("cut*.png"):
        content = file.read_bytes()
        torn = file.name in ("cut1.png", "cut3.png")
        (folder / file.name).write_bytes(content[: len(content) // 2] if torn else content)
    images = ("--images", str(folder), "--val-split", "0", "--epochs", "1")
    for workers in ("0", "1"):
        result = CliRunner().invoke(app, arguments(crowns, tmp_path / workers, *images, "--workers", workers))
        assert result.exit_code == 0, result.output
        flat = result.output.replace("\n", "")
        for name in ("cut1.png", "cut3.png"):
            assert flat.count(f"left out: {folder / name}".replace("\n", "")) == 1, result.output
    none, one = (tmp_path / name / "last.safetensors" for name in ("0", "1"))
    assert none.read_bytes() == one.read_bytes()
    strict = CliRunner().invoke(app, arguments(crowns, tmp_path / "strict", *images, "--damaged", "1"))
    said = str(strict.exception) + strict.output
    assert "2 images cannot be decoded, --damaged allows 1" in said
    assert "cut1.png" in said
    assert "cut3.png" in said


def test_trackers_are_told_of_each_step_and_epoch(crowns: Path, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    line = arguments(crowns, tmp_path / "out", "--epochs", "2", "--batch", "2", "--tracker", "tensorboard")
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    told = event_accumulator.EventAccumulator(str(next((tmp_path / "out").rglob("events.out*")).parent))
    told.Reload()
    rows = log(tmp_path / "out")
    for name in ("loss_classifier", "loss_rpn_box_reg"):
        values = [event.value for event in told.Scalars(name)]
        assert len(values) == 8  # two epochs of 4 images, each 2 crops, 2 a step
        for epoch, row in enumerate(rows):
            assert sum(values[4 * epoch : 4 * epoch + 4]) / 4 == pytest.approx(float(row[name]), rel=1e-6)
    assert [event.step for event in told.Scalars("epoch/AP50")] == [3, 7]
    assert [event.value for event in told.Scalars("epoch/AP50")] == pytest.approx([float(row["AP50"]) for row in rows])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--tracker", "dvclive", "tracker: got 'dvclive', whose package is not installed"),
        ("--tracker", "diary", "tracker: got 'diary'; expected one of"),
        ("--device", "cuda:9", "device: got 'cuda:9'"),
        ("--device", "toaster", "device: got 'toaster'"),
        ("--augment", "sideways", "augment: got 'sideways'"),
        ("--zoom", "inf", "zoom: got inf"),
    ],
)
def test_what_is_not_there(crowns: Path, tmp_path: Path, option: str, value: str, message: str) -> None:
    result = CliRunner().invoke(app, arguments(crowns, tmp_path / "out", option, value))
    assert result.exit_code != 0
    assert message in " ".join((str(result.exception) + result.output).split())
    assert not (tmp_path / "out" / "last.safetensors").exists()


@pytest.mark.parametrize("command", ["evaluate", "detect"])
def test_a_device_that_is_not_there_is_a_line(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [command, "--device", "cuda:9", "--out", str(tmp_path / "out")])
    assert f"roialign {command}: device: got 'cuda:9'" in str(result.exception) + result.output
    assert not (tmp_path / "out").exists()


def test_the_recipe_keeps_the_new_options(crowns: Path, tmp_path: Path) -> None:
    more = ("--epochs", "1", "--batch", "4", "--augment", "aerial", "--zoom", "1.2", "--device", "cpu")
    result = CliRunner().invoke(app, arguments(crowns, tmp_path / "out", *more))
    assert result.exit_code == 0, result.output
    kept = json.loads((tmp_path / "out" / "train.json").read_text())
    assert (kept["augment"], kept["zoom"], kept["colour"], kept["device"]) == ("aerial", 1.2, None, "cpu")
    other = CliRunner().invoke(app, ["train", "--resume", "--out", str(tmp_path / "out"), "--zoom", "1.3"])
    assert "cannot go on: --zoom was 1.2, now it is 1.3" in str(other.exception) + other.output
