"""Trainings with masks: exact to go on from, each loss a mean over its own samples, whoever shares them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from masked import write_scenes
from roialign.detection import build_detector
from roialign.detection.datasets import AnnotatedImages
from roialign.detection.interruption import InterruptedTrainingError
from roialign.detection.recipe import Recipe
from roialign.detection.sampling import SeededSampler
from roialign.detection.training import STATE, Trainer
from roialign.detection.views import TrainingViews, View, augmentation
from roialign.outputs import Folder

TINY: dict[str, Any] = {
    "rpn_pre_nms_top_n_train": 40, "rpn_post_nms_top_n_train": 20, "box_batch_size_per_image": 16, "fpn_channels": 16,
    "head_channels": 32, "box_detections_per_img": 5,
}  # fmt: skip


def tiny() -> Any:
    torch.manual_seed(0)
    return build_detector(2, "mobilenet_v2_fpn", masks=True, norm="group", scale=1.0, **TINY)


class Watcher:
    """Wishes to stop after so many steps."""

    def __init__(self, stop: int) -> None:
        self.left, self.asked, self.losses = stop, False, {}

    def step(self, epoch: int, steps: int, losses: dict[str, float], images: int) -> None:
        self.left -= 1
        self.asked = self.left <= 0
        self.losses = losses

    def skipped(self, fault: str) -> None:
        raise AssertionError(fault)

    def epoch(self, history: list[dict[str, float]], report: object) -> None:
        """Nothing to be done."""


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    data = AnnotatedImages(write_scenes(tmp_path / "in", 4), masks=True)
    recipe = Recipe(epochs=2, batch=2, crop=96, augment="aerial", device="cpu")

    def train(out: Path, stop: int) -> Watcher:
        watcher = Watcher(stop)
        with Folder(out) as folder:
            trainer = Trainer(tiny(), data, None, recipe, folder)
            trainer.resume()
            trainer.run(watcher, watcher)  # type: ignore[arg-type]  # who is as good as a Wish
        return watcher

    watcher = train(tmp_path / "whole", 1000)
    assert watcher.losses["loss_mask"] > 0
    with pytest.raises(InterruptedTrainingError):
        train(tmp_path / "parts", 3)
    train(tmp_path / "parts", 1000)
    assert (tmp_path / "parts" / STATE).read_bytes() == (tmp_path / "whole" / STATE).read_bytes()


def test_masks_are_a_mean_over_the_objects_that_are_proposed(tmp_path: Path) -> None:
    """So the parts' losses, weighted as the trainer weighs them, make the whole batch's."""
    data = AnnotatedImages(write_scenes(tmp_path, 2), masks=True)
    data.entries[1] = data.entries[1]._replace(
        boxes=data.entries[1].boxes[:1], labels=data.entries[1].labels[:1], masks=data.entries[1].masks[:1]
    )
    views = TrainingViews(data, 128, 0, augmentation("none"))
    samples = [views[View(0, k, 0)] for k in range(2)]
    model = tiny().double().train()
    samplers = [SeededSampler(head.fg_bg_sampler) for head in (model.rpn, model.roi_heads)]
    model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler = samplers
    trainer = SimpleNamespace(
        samplers=samplers,
        losses=range(5),
        device=torch.device("cpu"),
        accelerator=SimpleNamespace(reduce=lambda own, _: torch.ones_like(own)),  # so that weights are the counts
    )

    def losses(which: list[int]) -> tuple[Tensor, Tensor]:
        for sampler in samplers:
            sampler.seeds = which
        targets = [{**samples[k].target, "boxes": samples[k].target["boxes"].double()} for k in which]
        found = model([samples[k].image.double() for k in which], targets)
        return found["loss_mask"].detach(), Trainer._share(trainer, True)[4]  # type: ignore[arg-type]

    whole, total = losses([0, 1])
    parts = [losses([0]), losses([1])]
    assert parts[0][1] != parts[1][1]
    assert total == parts[0][1] + parts[1][1]
    shared = sum(part * count / total for part, count in parts)
    torch.testing.assert_close(shared, whole, rtol=1e-6, atol=0)
