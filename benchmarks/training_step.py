"""A detector's training step with torchvision's pooler and with ours: ``python -m benchmarks.training_step``.

The same model, images, boxes and proposals; forward, backward and AdamW. The two take turns, and the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torchvision.models.detection import FasterRCNN
from torchvision.ops import MultiScaleRoIAlign

from roialign.detection import build_detector
from roialign.detection.model import memory_format


def step_time(
    model: FasterRCNN, images: list[torch.Tensor], targets: list[dict[str, torch.Tensor]], steps: torch.optim.Optimizer
) -> float:
    """Seconds of one step."""
    torch.manual_seed(0)
    begin = time.perf_counter()
    total = sum(model(images, targets).values())
    steps.zero_grad()
    total.backward()
    steps.step()
    return time.perf_counter() - begin


def main() -> None:
    """Time both in turn and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="mobilenet_v2_fpn")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=640, help="pixels of the images")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = build_detector(2, options.backbone, scale=1.0, norm="frozen").train()
    model.to(memory_format=memory_format(torch.device("cpu")))  # as in training
    optimizer = torch.optim.AdamW(model.parameters(), 0.0)
    images = [torch.rand(3, options.side, options.side) for _ in range(options.batch)]
    corner, size = torch.rand(options.batch, 60, 2) * (options.side - 100), 20 + 80 * torch.rand(options.batch, 60, 2)
    targets = [
        {"boxes": boxes, "labels": torch.ones(60, dtype=torch.int64)} for boxes in torch.cat([corner, corner + size], 2)
    ]
    ours = model.roi_heads.box_roi_pool
    poolers = {"torchvision": MultiScaleRoIAlign(ours.featmap_names, 7, 2), "roialign": ours}
    times: dict[str, list[float]] = {name: [] for name in poolers}
    for turn in range(options.rounds + 1):
        for name, pooler in poolers.items():
            model.roi_heads.box_roi_pool = pooler
            seconds = step_time(model, images, targets, optimizer)
            if turn:  # the first warms up
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name:12} {1000 * seconds:8.0f} ms a step, {options.batch} images of {options.side} pixels")
    ratio = medians["torchvision"] / medians["roialign"]
    print(f"{ratio:.2f} times as fast, {torch.get_num_threads()} threads, {options.backbone}")


if __name__ == "__main__":
    main()
