"""Whole detectors, before and after ``roialign.accelerate()``: ``python -m benchmarks --models``.

Weights are random, so there are two classes: an untrained detector of two finds as many boxes as it may, 100, while one
of 91 finds none and would have no masks to pool. One image, the package's photo of 61 tree crowns, resized as each
detector does. A training step is forward, backward and the optimizer's, whose rate is 0, so every step is the same.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import roialign
from roialign import backends
from roialign.samples import load_photo

from .device import CPU, Device
from .peers import TRITON
from .report import Timing, _duration, machine
from .runner import Contender, take_turns, use_threads
from .workloads import SEED

PARTS = ("inference", "training step")
POOLING = ("torchvision::roi_align", "torchvision::_roi_align_backward")
TOLERANCE = 1e-3  # of losses and of scores, relative to the largest


def _tutorial() -> nn.Module:
    from torchvision.models import detection, mobilenet_v2
    from torchvision.ops import MultiScaleRoIAlign

    backbone = mobilenet_v2(weights=None).features
    backbone.out_channels = 1280
    anchors = detection.anchor_utils.AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),))
    pooler = MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2)
    return detection.FasterRCNN(backbone, 2, rpn_anchor_generator=anchors, box_roi_pool=pooler)  # type: ignore[no-any-return]


def _built(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision.models import detection

        return getattr(detection, name)(weights=None, weights_backbone=None, num_classes=2)  # type: ignore[no-any-return]

    return build


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tutorial": _tutorial,  # Faster R-CNN on MobileNetV2: one level of 1280 channels
    "fasterrcnn_mobilenet_v3_large_320_fpn": _built("fasterrcnn_mobilenet_v3_large_320_fpn"),
    "fasterrcnn_resnet50_fpn": _built("fasterrcnn_resnet50_fpn"),
    "maskrcnn_resnet50_fpn": _built("maskrcnn_resnet50_fpn"),
}


@dataclass(frozen=True)
class ModelResult:
    """One part of one detector.

    Args:
        model: its name.
        part: one of PARTS.
        before: seconds with torchvision's kernels.
        after: seconds within ``roialign.accelerate()``; the deviation is that of losses or of scores.
        share_before: the part of the time that is region pooling, by PyTorch's profiler.
        share_after: likewise.
    """

    model: str
    part: str
    before: Timing
    after: Timing
    share_before: float
    share_after: float

    @property
    def speedup(self) -> float:
        """How many times as long it takes without us: the median over rounds, each a before and an after."""
        return statistics.median(b / a for b, a in zip(self.before.samples, self.after.samples, strict=True))


def run_models(
    models: Sequence[str],
    parts: Sequence[str],
    console: Console,
    threads: int | None = None,
    budget: float = 5,
    device: Device = CPU,
) -> tuple[dict[str, Any], list[ModelResult]]:
    """Time what is named, or everything; the machine and the results.

    Raises:
        ValueError: a name is unknown.
        RuntimeError: a detector's losses or scores are others with us.
    """
    for kind, names, known in (("workload", models, tuple(MODELS)), ("direction", parts, PARTS)):
        for name in names:
            if name not in known:
                raise ValueError(f"{kind}: got {name!r}; expected one of {', '.join(known)}")
    count = threads or torch.get_num_threads()
    pairs = [(model, part) for model in (models or MODELS) for part in (parts or PARTS)]
    results = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress, use_threads(count):
        task = progress.add_task("", total=len(pairs))
        for model, part in pairs:
            progress.update(task, description=f"{model} {part}")
            results.append(measure_model(model, part, count, budget, device))
            progress.advance(task)
    return machine(count, budget, device.about()), results


def measure_model(name: str, part: str, threads: int, budget: float, device: Device = CPU) -> ModelResult:
    """Check that both ways agree, profile each once, then time them in turns."""
    torch.manual_seed(SEED)
    model = MODELS[name]().to(device.device)
    call = (_inference if part == "inference" else _training_step)(model, device.device)
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def contender(label: str, way: Callable[[], AbstractContextManager[Any]]) -> Contender:
        def in_its_way() -> tuple[Tensor, ...]:
            torch.manual_seed(SEED)  # the same boxes are sampled
            with way():
                return call()

        return Contender(label, in_its_way, threads, device)

    ours = roialign.accelerate if device is CPU else _all_ours
    before, after = contender("before", nullcontext), contender("after", ours)
    shares, answers = [], []
    for each in (before, after):
        model.load_state_dict(state)  # the statistics of normalisations
        answers.append(each.answer())
        shares.append(pooling_share(each.call, device))
    deviation = _deviation(*answers)
    if deviation > TOLERANCE:
        raise RuntimeError(f"{name}, {part}: differs by {deviation:.1e} with roialign.accelerate()")
    take_turns([before, after], budget)
    after.deviation = deviation
    return ModelResult(name, part, before.timing(), after.timing(), *shares)


@contextmanager
def _all_ours() -> Iterator[None]:
    """Accelerated, and our kernels serve all calls: also those that are left to torchvision, to find out."""
    with ExitStack() as stack:
        stack.enter_context(roialign.accelerate())
        stack.enter_context(backends.use(TRITON.backend))
        yield


def pooling_share(call: Callable[[], object], device: Device = CPU) -> float:
    """Which part of a call's time is spent in torchvision's pooling operators, whoever's kernels they run.

    On a GPU: of the time that its kernels take.
    """
    if device is not CPU:
        return _pooling_share_of_kernels(call, device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes to stderr, across the progress bar, though not used
    with torch.autograd.profiler.profile(use_kineto=False) as profile:
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
    # An operator's event under autograd may hold the one below it: count the outermost.
    outermost = [it for it in profile.function_events if it.cpu_parent is None or it.cpu_parent.name not in POOLING]
    microseconds = sum(float(it.cpu_time_total) for it in outermost if it.name in POOLING)
    return 1e-6 * microseconds / seconds


def _pooling_share_of_kernels(call: Callable[[], object], device: Device) -> float:
    activities = torch.profiler.supported_activities()
    with torch.profiler.profile(activities=activities) as profile:
        call()
    events = [it for it in profile.events() or () if it.device_type.name == "CPU"]
    outermost = [it for it in events if it.cpu_parent is None or it.cpu_parent.name not in POOLING]
    pooling = sum(float(it.device_time_total) for it in outermost if it.name in POOLING)
    everything = sum(float(it.self_device_time_total) for it in events)
    return pooling / everything if everything else math.nan  # a profiler that may not watch the device sees nothing


def print_models(about: dict[str, Any], results: Sequence[ModelResult], console: Console) -> None:
    """One table."""
    title = "Detectors before and after roialign.accelerate()"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for heading in ("model", "part"):
        table.add_column(heading)
    for heading in ("before", "after", "speed-up", "pooling before", "pooling after"):
        table.add_column(heading, justify="right")
    for it in results:
        times = (_duration(it.before.median), _duration(it.after.median), f"[bold]{it.speedup:.3g}x")
        table.add_row(it.model, it.part, *times, f"{it.share_before:.0%}", f"{it.share_after:.0%}")
    console.print(table)
    console.print("Medians of a call; speed-up: median over rounds. Pooling: its share of the time, by the profiler.")
    if about["device"] != "cpu":
        console.print(about["device"], soft_wrap=True)
    console.print("{cpu}, {cores} cores, {threads} threads, {instruction_set}, {date}".format(**about), soft_wrap=True)


def save_models(about: dict[str, Any], results: Sequence[ModelResult], path: Path) -> None:
    """Everything as JSON, every sample."""
    rows = [{**asdict(it), "speedup": it.speedup} for it in results]
    path.write_text(json.dumps({"machine": about, "results": rows}, indent=1) + "\n")


def _inference(model: nn.Module, device: torch.device) -> Callable[[], tuple[Tensor, ...]]:
    image = load_photo()[0].to(device)
    model.eval()

    def call() -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return tuple(found["scores"] for found in model([image]))

    return call


def _training_step(model: nn.Module, device: torch.device) -> Callable[[], tuple[Tensor, ...]]:
    image, boxes = (it.to(device) for it in load_photo())
    columns, rows = (torch.arange(length, device=device) for length in (image.shape[2], image.shape[1]))
    x1, y1, x2, y2 = (edge[:, None] for edge in boxes.unbind(1))
    inside = ((rows >= y1) & (rows < y2))[:, :, None] & ((columns >= x1) & (columns < x2))[:, None, :]
    target = {
        "boxes": boxes,
        "labels": torch.ones(len(boxes), dtype=torch.int64, device=device),
        "masks": inside.to(torch.uint8),
    }
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def call() -> tuple[Tensor, ...]:
        losses = model([image], [dict(target)])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        return tuple(loss.detach() for loss in losses.values())

    return call


def _deviation(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """Largest difference by the largest magnitude; infinite where shapes differ."""
    if [it.shape for it in ours] != [it.shape for it in theirs]:
        return float("inf")
    difference = max((float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True) if a.numel()), default=0.0)
    return difference / max((float(it.abs().max()) for it in ours if it.numel()), default=1.0)
