"""What comes out of a run: the results, as JSON and as tables."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from roialign import backends

FLOOR, PLAIN_FLOOR, FLOOR_AT_HAND, ROOFLINE = "floor", "plain floor", "floor at hand", "roofline"
# With fresh huge pages, with fresh pages as PyTorch gets them, with pages that are there already; of a GPU's memory.
FLOORS = (FLOOR, PLAIN_FLOOR, FLOOR_AT_HAND, ROOFLINE)
PACKAGES = ("roialign", "torch", "torchvision", "onnxruntime", "openvino", "mmcv")


LEGEND = (
    "Medians of a call; x: how many times as long as roialign the other takes, but at the floors, how many times as "
    "long as the floor roialign takes; roofline: the least that the memory needs, and its share of our time; "
    "our roi_align: of the same boxes upright, no bin moved. "
    "Mean and worst: of the six workloads; (n): of only n of them."
)


@dataclass(frozen=True)
class Timing:
    """Seconds per call of each sample; the difference from our result, by its largest value; bytes taken at most."""

    samples: list[float]
    deviation: float | None = None
    peak: int | None = None

    @property
    def median(self) -> float:
        """Seconds per call."""
        return statistics.median(self.samples)


@dataclass(frozen=True)
class Result:
    """One direction of one workload: our timing, everyone else's, and who disagreed or failed and so was not timed."""

    workload: str
    group: str
    direction: str
    threads: int
    ours: Timing
    others: dict[str, Timing]
    refused: dict[str, str]

    def ratio(self, name: str) -> float:
        """How many times as long as we another takes; of the floor, which part of our time it is."""
        return self.others[name].median / self.ours.median


@dataclass(frozen=True)
class Report:
    """All results of a run and the machine it ran on."""

    machine: dict[str, Any]
    results: list[Result]

    def directions(self) -> dict[str, list[Result]]:
        """Results by direction, in the order they were taken."""
        found: dict[str, list[Result]] = {}
        for result in self.results:
            found.setdefault(result.direction, []).append(result)
        return found

    def summary(self) -> list[dict[str, Any]]:
        """Of each direction and rival: the geometric mean of the ratios over the six workloads, and the worst one."""
        rows = []
        for direction, results in self.directions().items():
            for name in rivals(results):
                ratios = {it.workload: it.ratio(name) for it in results if it.group == "six" and name in it.others}
                if ratios:
                    worst = min(ratios, key=ratios.__getitem__)
                    rows.append({
                        "direction": direction, "rival": name, "workloads": len(ratios),
                        "geometric_mean": geometric_mean(ratios.values()), "worst": ratios[worst], "worst_on": worst,
                    })  # fmt: skip
        return rows

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        results = [asdict(result) for result in self.results]
        for row, result in zip(results, self.results, strict=True):  # for who reads the file; load() does not need it
            row["milliseconds"] = {"roialign": 1e3 * result.ours.median} | {
                name: 1e3 * timing.median for name, timing in result.others.items()
            }
        content = {"machine": self.machine, "summary": self.summary(), "results": results}
        path.write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what ``save`` wrote."""
        content = json.loads(path.read_text())
        results = []
        for row in content["results"]:
            del row["milliseconds"]
            others = {name: Timing(**timing) for name, timing in row.pop("others").items()}
            results.append(Result(**row | {"ours": Timing(**row["ours"]), "others": others}))
        return cls(content["machine"], results)


def geometric_mean(values: Iterable[float]) -> float:
    """The number that, multiplied by itself as often as there are values, gives their product."""
    logarithms = [math.log(value) for value in values]
    return math.exp(math.fsum(logarithms) / len(logarithms))


def rivals(results: Sequence[Result]) -> list[str]:
    """The names of those timed beside us, in order; the floors last."""
    names = list(dict.fromkeys(name for result in results for name in result.others))
    return sorted(names, key=lambda name: name in FLOORS)


def machine(threads: int, budget: float, device: str = "cpu") -> dict[str, Any]:
    """What the numbers depend on."""
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        lines = [line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line]
        model = next((value.strip() for key, value in lines if key.strip() == "model name"), model)
    affinity = getattr(os, "sched_getaffinity", None)
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": device,
        "cpu": model,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": threads,
        "instruction_set": _instruction_set(),
        "system": f"{platform.system()} {platform.release()}",
        **memory_facts(),
        "versions": versions,
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "seconds_per_workload": budget,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def memory_facts() -> dict[str, str]:
    """What decides how fast memory is read and how dear fresh pages are, as Linux tells it."""

    def read(path: Path) -> str:
        try:
            return path.read_text().strip()
        except OSError:
            return "unknown"

    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    sizes = [
        f"L{read(each / 'level')} {read(each / 'size')}" for each in caches if read(each / "type") != "Instruction"
    ]
    pages = Path("/sys/kernel/mm/transparent_hugepage")
    chosen = {name: re.sub(r".*\[(.*)\].*", r"\1", read(pages / name)) for name in ("enabled", "defrag")}
    virtual = "hypervisor" in read(Path("/proc/cpuinfo"))
    return {
        "caches": ", ".join(sizes) or "unknown",
        "huge_pages": f"{chosen['enabled']}, defrag {chosen['defrag']}",
        "virtual": "yes" if virtual else "not seen",
    }


def _instruction_set() -> str:
    """Whose kernels the core uses."""
    if not backends.available()["native"].ready:
        return "none, the reference serves"
    from roialign import _core

    return _core.kernels()


def print_report(report: Report, console: Console) -> None:
    """One table per direction: our time, and how many times as long everyone else takes."""
    for direction, results in report.directions().items():
        names = rivals(results)
        table = Table(title=direction, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("workload", no_wrap=True)
        table.add_column("roialign", justify="right", no_wrap=True)
        for name in names:
            table.add_column(name, justify="right")
        for result in results:
            cells = [_cell(result, name) for name in names]
            table.add_row(result.workload, _duration(result.ours.median), *cells)
        summary = {row["rival"]: row for row in report.summary() if row["direction"] == direction}
        if summary:
            table.add_section()
            for label, key in (("geometric mean", "geometric_mean"), ("worst", "worst")):
                cells = [_summary_cell(summary.get(name), key) for name in names]
                table.add_row(label, "", *cells, style="bold")
        console.print(table)
        _print_peaks(results, names, console)
        for result in results:
            for name, reason in result.refused.items():
                console.print(f"{result.workload}: {name} not timed: it {reason}", style="yellow", soft_wrap=True)
    console.print(LEGEND, soft_wrap=True)
    versions = ", ".join(f"{name} {version}" for name, version in report.machine["versions"].items())
    about = "{cpu}, {cores} cores, {threads} threads, {instruction_set}, {date}".format(**report.machine)
    where = "" if report.machine["device"] == "cpu" else f"{report.machine['device']}; "
    memory = "caches: {caches}; huge pages: {huge_pages}; virtual machine: {virtual}".format(**report.machine)
    console.print(f"{where}{about}\n{memory}\n{versions}", soft_wrap=True, highlight=False)


def _print_peaks(results: Sequence[Result], names: Sequence[str], console: Console) -> None:
    """What the calls take of a device's memory, where it was counted."""
    for result in results:
        timings = {"roialign": result.ours, **{name: result.others[name] for name in names if name in result.others}}
        peaks = [f"{name} {it.peak / 1e6:.3g} MB" for name, it in timings.items() if it.peak is not None]
        if peaks:
            console.print(f"{result.workload}, memory of a call: {', '.join(peaks)}", soft_wrap=True, highlight=False)


def _cell(result: Result, name: str) -> str:
    if name in result.others:
        return f"{_duration(result.others[name].median)} [bold]{_times(name, result.ratio(name))}[/bold]"
    return "not timed" if name in result.refused else ""


def _summary_cell(row: dict[str, Any] | None, key: str) -> str:
    """Of a rival that some of the six workloads are missing for, how many there are."""
    if row is None:
        return ""
    return _times(row["rival"], row[key]) + ("" if row["workloads"] == 6 else f" ({row['workloads']})")


def _duration(seconds: float) -> str:
    unit, factor = next((pair for pair in (("s", 1.0), ("ms", 1e3)) if seconds * pair[1] >= 0.9995), ("us", 1e6))
    return f"{factor * seconds:.3g} {unit}"


def _times(name: str, ratio: float) -> str:
    """The floor is a part of our time; it is shown the other way round, as how far above it we are."""
    if name == ROOFLINE:
        return f"{ratio:.0%}"
    return f"{1 / ratio if name in FLOORS else ratio:.3g}x"
