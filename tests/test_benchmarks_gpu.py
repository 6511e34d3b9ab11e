"""The benchmarks of a GPU, without one: a stand-in for the device and its clock, and bytes counted by hand."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import device as devices
from benchmarks import models, roofline, runner
from benchmarks.__main__ import app
from benchmarks.device import Gpu, find_device
from benchmarks.directions import DIRECTIONS, Mode, directions_on
from benchmarks.peers import OURS, PEERS, OurTriton, Torchvision
from benchmarks.report import ROOFLINE, Report, print_report
from benchmarks.workloads import CROWDED, PYRAMID, SIX, TINY, Workload, make_case

from test_benchmarks import tiny_detector


class Queue:
    """Stands for ``torch.cuda``: notes what is asked of it. Every call takes 2 ms between events."""

    def __init__(self) -> None:
        self.log: list[str] = []
        queue = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                queue.log.append("record")

            def synchronize(self) -> None:
                queue.log.append("wait for event")

            def elapsed_time(self, end: object) -> float:
                return 2.0  # milliseconds

        self.Event = Event
        self.taken = 1000

    def synchronize(self, device: torch.device) -> None:
        self.log.append("wait")

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.highest = self.taken

    def memory_allocated(self, device: torch.device) -> int:
        return self.taken

    def max_memory_allocated(self, device: torch.device) -> int:
        return self.highest

    def take(self, size: int) -> None:
        """Memory that is given back at once."""
        self.highest = max(self.highest, self.taken + size)

    def get_device_name(self, device: torch.device) -> str:
        return "Stand-in 1"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is copied and read in a GPU's memory would be slow here."""
    monkeypatch.setattr(devices, "COLD", 4096)
    monkeypatch.setattr(roofline, "COPIED", 4096)


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def gpu(queue: Queue, small: None) -> Gpu:
    return Gpu(torch.device("cpu"), queue)


# The clock.


def test_a_sample_is_one_call_between_events_after_the_caches_are_filled(gpu: Gpu, queue: Queue) -> None:
    class Cold:
        def sum(self) -> None:
            queue.log.append("read")

    gpu.cold = Cold()  # type: ignore[assignment]
    assert gpu.seconds(lambda: queue.log.append("call"), 1) == pytest.approx(2e-3)
    assert queue.log == ["wait", *["read"] * devices.BUSY, "record", "call", "record", "wait for event"]


def test_back_to_back_it_is_the_hosts_clock_over_many_calls(
    gpu: Gpu, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(devices.time, "perf_counter", lambda: now[0])

    def call() -> None:
        queue.log.append("call")
        now[0] += 0.75e-3

    assert gpu.warm_up(call) == 1
    assert queue.log == ["call"] * devices.WARM_UP + ["wait"]
    assert gpu.warm_up(call, back_to_back=True) == math.ceil(devices.SAMPLE / 0.75e-3) == 3
    queue.log.clear()
    assert gpu.seconds(call, 3) == pytest.approx(0.75e-3)
    assert queue.log == ["wait", "call", "call", "call", "wait"]


def test_what_is_read_before_is_larger_than_any_cache() -> None:
    assert devices.COLD > 256 * 2**20  # the Infinity Cache of an MI300
    assert 2 * roofline.COPIED > 256 * 2**20


def test_peak_is_beside_what_was_there(gpu: Gpu, queue: Queue) -> None:
    assert gpu.peak(lambda: queue.take(123)) == 123
    assert gpu.peak(lambda: None) == 0


# The roofline.


def touched_by_loops(workload: Workload) -> int:
    """Cells that a sample gives weight to, visited one sample after another, in float64."""
    total = 0
    boxes = workload.make_boxes().double()
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    coarsest = len(workload.maps) - 1
    finest = int(math.log2(workload.maps[0].stride))
    for i, ((height, width), stride) in enumerate(workload.maps):
        cells = set()
        for (x1, y1, x2, y2), size in zip(boxes.tolist(), area.tolist(), strict=True):
            level = math.floor(4 + math.log2(math.sqrt(size) / 224) + 1e-6) - finest
            if len(workload.maps) > 1 and min(max(level, 0), coarsest) != i:
                continue
            along = [
                touched_along(lo / stride, hi / stride, length, workload)
                for lo, hi, length in ((y1, y2, height), (x1, x2, width))
            ]
            cells |= {(y, x) for y in along[0] for x in along[1]}
        total += len(cells)
    return total


def touched_along(lo: float, hi: float, length: int, workload: Workload) -> set[int]:
    shift = 0.5 if workload.aligned else 0.0
    start, size = lo - shift, hi - lo
    size = size if workload.aligned else max(size, 1.0)
    grid = workload.ratio or math.ceil(size / workload.output)
    step = size / workload.output / grid
    cells = set()
    for i in range(workload.output * grid):
        position = start + (i + 0.5) * step
        if -1 <= position <= length:
            position = min(max(position, 0.0), length - 1.0)
            cells |= {math.floor(position)} | ({math.ceil(position)} if position % 1 else set())
    return cells


FEW = [replace(it, boxes=25) for it in (*SIX, PYRAMID, CROWDED)]


@pytest.mark.parametrize("workload", [*FEW, TINY], ids=lambda it: it.name)
def test_bytes_that_must_move_are_those_of_the_touched_cells(workload: Workload) -> None:
    touched = touched_by_loops(workload) * workload.channels
    maps = workload.channels * sum(height * width for (height, width), _ in workload.maps)
    output = workload.boxes * workload.channels * workload.output * workload.output
    assert 0 < touched < maps
    assert roofline.must_move(workload, Mode()) == 4 * (touched + output)
    assert roofline.must_move(workload, Mode(dtype=torch.bfloat16)) == 2 * (touched + output)
    assert roofline.must_move(workload, Mode("backward")) == 4 * (output + maps)
    assert roofline.must_move(workload, Mode("backward", box_gradient=True)) == 4 * (output + maps + touched)
    assert roofline.must_move(workload, Mode("step")) == 4 * (touched + output + output + maps)


def test_copy_moves_every_byte_once_in_and_once_out(small: None) -> None:
    (target,) = roofline.copy(torch.device("cpu"))()
    assert target.nbytes == roofline.COPIED
    assert (target == 1).all()


def test_boxes_of_a_crowd_share_a_place() -> None:
    boxes = CROWDED.make_boxes()
    height, width = CROWDED.image
    middle = torch.tensor([width / 2, height / 2])
    assert (boxes[:, :2] < middle).all()
    assert (boxes[:, 2:] > middle).all()


# What is timed.


def test_directions_of_a_gpu_have_its_name_and_none_of_the_cpus_alone() -> None:
    here, there = directions_on("cpu"), directions_on("cuda:1")
    assert here.keys() ^ there.keys() == {"threads", "launch", "channels_last_backward", "deterministic"}
    assert here.keys() | there.keys() == DIRECTIONS.keys()
    for direction in there.values():
        assert direction.mode.device == "cuda:1"
        assert "gpu" in direction.mode.needs()
        assert direction.beside is None or direction.beside.device == "cuda:1"
    assert here["forward"] == DIRECTIONS["forward"]
    for name in ("onnxruntime", "openvino"):
        assert PEERS[name].why_not(TINY, there["forward"].mode) == "cannot do gpu"
    assert not Torchvision().why_not(TINY, there["deterministic"].mode)
    assert not PEERS["as served"].why_not(TINY, there["bfloat16"].mode)


def test_autocast_is_asked_for_half_precision_on_a_gpu_alone() -> None:
    peer = PEERS["torchvision, autocast"]
    for direction in ("float16", "bfloat16"):
        assert not peer.why_not(TINY, directions_on("cuda")[direction].mode)
        assert peer.why_not(TINY, directions_on("cpu")[direction].mode)
    assert peer.why_not(TINY, directions_on("cuda")["forward"].mode)


def test_autocast_agrees_with_ours() -> None:
    case = make_case(TINY, Mode(dtype=torch.bfloat16))
    peer = PEERS["torchvision, autocast"]
    (theirs,), (ours,) = peer.prepare(case)(), OURS.prepare(case)()
    assert theirs.dtype == torch.bfloat16
    assert runner.deviation((ours,), (theirs,)) <= runner.TOLERANCE[torch.bfloat16]


def test_measured_on_a_stand_in(gpu: Gpu, queue: Queue) -> None:
    """Times are the queue's, the roofline is that of the bytes, memory is counted, and it is all printed."""
    result = runner.measure(TINY, "forward", DIRECTIONS["forward"], [Torchvision()], 1, 0, gpu)
    assert result.ours.samples == pytest.approx([2e-3] * runner.ROUNDS[0])
    assert set(result.others) == {"torchvision", ROOFLINE}
    needed = 2e-3 * roofline.must_move(TINY, Mode()) / (2 * 4096)
    assert result.others[ROOFLINE].samples == pytest.approx([needed] * runner.ROUNDS[0])
    assert result.ours.peak == result.others["torchvision"].peak == 0
    text = io.StringIO()
    print_report(Report(runner.machine(1, 0, gpu.about()), [result]), Console(file=text, width=120))
    for part in (f"{needed / 2e-3:.0%}", "tiny, memory of a call: roialign 0 MB, torchvision 0 MB", "Stand-in 1"):
        assert part in text.getvalue()


def test_deterministic_is_on_within_the_calls_alone() -> None:
    seen: list[bool] = []

    class Watching(Torchvision):
        def pool(self, workload: Workload) -> Callable[[list[Tensor], Tensor], Tensor]:
            pool = super().pool(workload)

            def watching(maps: list[Tensor], rois: Tensor) -> Tensor:
                seen.append(torch.are_deterministic_algorithms_enabled())
                return pool(maps, rois)

            return watching

    for deterministic in (True, False):
        Watching().prepare(make_case(TINY, Mode("step", deterministic=deterministic)))()
        assert not torch.are_deterministic_algorithms_enabled()
    assert seen == [True, False]


def test_models_on_a_stand_in(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is ours within: by the backend that is forced, whichever serves this stand-in."""
    forced: list[str | None] = []
    monkeypatch.setattr(models, "MODELS", {"tutorial": tiny_detector})
    monkeypatch.setattr(OurTriton, "backend", "reference")

    def share(call: Callable[[], object], device: object) -> float:
        forced.append(models.backends._forced[-1].name)
        return 0.5

    monkeypatch.setattr(models, "_pooling_share_of_kernels", share)
    result = models.measure_model("tutorial", "training step", 1, 0, gpu)
    assert result.before.samples == pytest.approx([2e-3] * runner.ROUNDS[0])
    assert result.after.deviation is not None
    assert result.after.deviation < 1e-4
    assert (result.share_before, result.speedup) == (0.5, pytest.approx(1))
    with models._all_ours():
        assert models.backends._forced[-1].name == "reference"
    assert models.backends._forced[-1].name is None


# Without a GPU.


@pytest.fixture
def no_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "xpu"])
def test_without_one_it_says_so_in_a_line(name: str, no_gpu: None) -> None:
    with pytest.raises(ValueError, match=rf"^device: got '{name}'; PyTorch .* finds 0 such devices$"):
        find_device(name)


def test_other_names_are_refused() -> None:
    for name in ("gpu", "meta", "mps"):
        with pytest.raises(ValueError, match=rf"^device: got '{name}'; expected cpu, cuda \(.*\) or xpu$"):
            find_device(name)
    assert find_device("cpu") is devices.CPU


def test_a_gpu_that_our_kernels_do_not_run_on_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class One(Queue):
        def device_count(self) -> int:
            return 1

    reasons: dict[str, Any] = {OurTriton.backend: devices.backends.Availability(False, "no Triton is installed")}
    monkeypatch.setattr(torch, "get_device_module", lambda device: One())
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    monkeypatch.setattr(devices.backends, "ORDER", (OurTriton.backend,))
    monkeypatch.setattr(devices.backends, "available", lambda input: reasons)
    with pytest.raises(ValueError, match=r"^device: got 'cuda'; our kernels do not run on it: no Triton is installed$"):
        find_device("cuda")


@pytest.mark.parametrize("options", [[], ["--models"]])
def test_command_refuses(options: list[str], no_gpu: None) -> None:
    result = CliRunner().invoke(app, ["--device", "cuda", *options])
    assert result.exit_code == 2
    assert "finds 0 such devices" in " ".join(result.output.replace("│", " ").split())
