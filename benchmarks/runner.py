"""Checks that implementations agree, then times them in turns, in one process."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from . import roofline
from .device import CPU, Cpu, Device
from .directions import Direction, Mode, directions_on
from .floors import memory_alone
from .peer import Call, Peer
from .peers import PEERS, ours_on
from .report import ROOFLINE, Report, Result, Timing, machine
from .workloads import Case, Workload, make_case, select

# Largest difference between two implementations, by the largest magnitude of our result.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# torchvision's kernels for GPUs fuse multiplications with additions where they place samples: 1 in 2**24 of a position
# of 336 cells is 2e-5 cells, and a map of random numbers changes by several times its deviation from cell to cell.
FUSED = 1e-4

ROUNDS = (3, 101)  # at least and at most, whatever the budget


@dataclass
class Contender:
    """What takes its turn: a call on a number of threads, and the seconds per call of each of its samples."""

    name: str
    call: Call
    threads: int
    device: Device = CPU
    back_to_back: bool = False
    repeat: int = 1  # calls in a sample
    deviation: float | None = None  # from us; None where there is nothing to compare
    samples: list[float] = field(default_factory=list)

    def answer(self) -> tuple[Tensor, ...]:
        """What it computes; the first call also warms it up."""
        with use_threads(self.threads):
            return self.call()

    def calibrate(self) -> None:
        """Find how often to repeat."""
        with use_threads(self.threads):
            self.repeat = self.device.warm_up(self.call, self.back_to_back)

    def sample(self) -> None:
        """Take one sample."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
            self.call()  # the pool is made anew
        self.samples.append(self.device.seconds(self.call, self.repeat))

    def timing(self) -> Timing:
        """What was found; and what it takes of the device's memory."""
        return Timing(self.samples, self.deviation, self.device.peak(self.call))


@dataclass(frozen=True)
class Plan:
    """What to time, by name, against whom, and where."""

    pairs: list[tuple[Workload, str]]
    peers: list[Peer]
    device: Device = CPU


def make_plan(
    workloads: Sequence[str] = (), directions: Sequence[str] = (), peers: Sequence[str] = (), device: Device = CPU
) -> Plan:
    """What is named; where nothing is, what is usual and installed, and of the peers those that are not slow.

    Raises:
        ValueError: a name is unknown, or a peer that was asked for is not installed.
    """
    here = directions_on(str(device.device))
    for kind, names, known in (("direction", directions, here), ("peer", peers, PEERS)):
        for name in names:
            if name not in known:
                raise ValueError(f"{kind}: got {name!r}; expected one of {', '.join(known)}")
    absent = [PEERS[name].not_installed() for name in peers if PEERS[name].not_installed()]
    if absent:
        raise ValueError(f"peer: {absent[0]}")
    pairs = [
        (workload, name)
        for workload in select(workloads)
        for name, direction in here.items()
        if (name in directions if directions else workload.group in direction.groups)
        and not ours_on(direction.mode.device).why_not(workload, direction.mode)
    ]
    return Plan(pairs, [peer for name, peer in PEERS.items() if (name in peers if peers else not peer.slow)], device)


def run(plan: Plan, console: Console, threads: int | None = None, budget: float = 5) -> Report:
    """Time everything planned, with a progress bar; the budget is seconds per workload and direction."""
    usual = threads or torch.get_num_threads()
    directions = directions_on(str(plan.device.device))
    results = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(plan.pairs))
        for workload, name in plan.pairs:
            progress.update(task, description=f"{workload.name} {name}")
            count = workload.threads or usual
            results.append(measure(workload, name, directions[name], plan.peers, count, budget, plan.device))
            progress.advance(task)
    return Report(machine(usual, budget, plan.device.about()), results)


def measure(
    workload: Workload,
    name: str,
    direction: Direction,
    peers: Sequence[Peer],
    threads: int,
    budget: float,
    device: Device = CPU,
) -> Result:
    """Time one direction of one workload: ours, our yardstick, the peers that agree with us, and the memory alone."""
    cases: dict[Mode, Case] = {}
    us = ours_on(direction.mode.device)

    def contender(name: str, peer: Peer, mode: Mode) -> Contender:
        if mode not in cases:
            cases[mode] = make_case(workload, mode)
        count = mode.threads or threads
        with use_threads(count):  # ONNX Runtime and OpenVINO take their number now
            return Contender(name, peer.prepare(peer.eased(cases[mode])), count, device, direction.back_to_back)

    rivals = [(peer.name, peer, direction.mode) for peer in peers if not peer.why_not(workload, direction.mode)]
    if direction.beside is not None:
        rivals.insert(0, (direction.yardstick, us, direction.beside))

    refused = {}
    with use_threads(threads):
        ours = contender(us.name, us, direction.mode)
        answer = ours.answer()
        contenders = [ours]
        for rival_name, peer, mode in rivals:
            try:
                rival = contender(rival_name, peer, mode)
                eased = peer.eased(cases[mode])
                rival.deviation = deviation(answer if eased is cases[mode] else us.prepare(eased)(), rival.answer())
            except Exception as error:  # a peer's failure is its result, not the end of the run
                refused[rival_name] = f"fails: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
                continue
            if rival.deviation <= tolerance(direction.mode.dtype, device):
                contenders.append(rival)
            else:
                refused[rival_name] = f"disagrees: largest difference {rival.deviation:.1e} of the largest value"
        del answer
        for memory_name, call in memory_alone(workload, direction.mode, device).items():
            contenders.append(Contender(memory_name, call, threads, device))
            contenders[-1].answer()
        for it in contenders:
            it.calibrate()
        take_turns(contenders, budget)
        timings = {it.name: it.timing() for it in contenders}
    if ROOFLINE in timings:
        part = roofline.must_move(workload, direction.mode) / (2 * roofline.COPIED)
        timings[ROOFLINE] = Timing([part * seconds for seconds in timings[ROOFLINE].samples])
    return Result(workload.name, workload.group, name, threads, timings.pop(us.name), timings, refused)


def tolerance(dtype: torch.dtype, device: Device) -> float:
    """How far from us a peer may be, by the largest magnitude of our result."""
    return TOLERANCE[dtype] if isinstance(device, Cpu) else max(TOLERANCE[dtype], FUSED)


def take_turns(contenders: Sequence[Contender], budget: float) -> None:
    """One sample each, round after round, every other round backwards, until the seconds are spent."""
    deadline = time.perf_counter() + budget
    gc.collect()
    gc.disable()
    try:
        for done in range(ROUNDS[1]):
            if done >= ROUNDS[0] and time.perf_counter() > deadline:
                break
            for contender in contenders if done % 2 == 0 else reversed(contenders):
                contender.sample()
    finally:
        gc.enable()


def deviation(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """Largest difference by the largest magnitude of ours, over what both computed; infinite where there is none."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=False):  # one may have the gradient to the boxes beside
        if a.shape != b.shape:
            return math.inf
        difference = float((a.detach().float() - b.detach().float()).abs().max())
        relative = difference / (float(a.detach().abs().max()) or 1)
        worst = max(worst, relative if math.isfinite(relative) else math.inf)
    return worst


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """PyTorch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
