"""``python -m benchmarks.tune_gpu``: the block sizes of our kernels on a GPU, measured, as ``blocks.py`` writes them.

A table's entries are tuned one by one, on the workloads that take them: one field after the other runs through its
choices, and the fastest stays, if it is faster than what is shipped by more than measurements scatter.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Annotated, Any, NamedTuple

import typer
from torch import Tensor

from roialign.terminal import make_console

from .device import Device, find_device
from .directions import Mode
from .peers import TRITON
from .report import geometric_mean
from .runner import TOLERANCE, deviation
from .workloads import make_case, select

CHOICES = {
    "channels": (16, 32, 64, 128), "cells": (16, 32), "height": (4, 8, 16), "width": (8, 16, 32), "warps": (1, 2, 4, 8),
}  # fmt: skip
TABLES = {
    "FORWARD": "forward",
    "BACKWARD": "backward",
}  # by name in blocks.py, and the part of a call that they are for
WORKLOADS = ("six", "pyramid", "crowded", "tiny", "boxes_10", "boxes_100")
SAMPLES = 21
FASTER = 0.98  # of the shipped entry's time: what is not better by 2 % is no better

Work = Callable[[], tuple[Tensor, ...]]


class Lookup(dict[Any, Any]):
    """A table that notes the entry that was taken last, and may give another one whatever was asked for."""

    def __init__(self, entries: dict[Any, Any], always: Any = None) -> None:
        super().__init__(entries)
        self.always = always
        self.taken: Any = None

    def __getitem__(self, key: Any) -> Any:
        self.taken = key
        return self.always or super().__getitem__(key)


class Found(NamedTuple):
    """What an entry should be.

    Attributes:
        entry: the fastest.
        ratio: its time by the shipped entry's.
        cases: how many took the entry; with none it is as shipped.
    """

    entry: Any
    ratio: float
    cases: int


def tune(module: ModuleType, name: str, cases: Sequence[Work], device: Device) -> dict[Any, Found]:
    """Tune one table of a module on calls that look something up in it."""
    shipped: dict[Any, Any] = getattr(module, name)
    by_key: dict[Any, list[Work]] = {key: [] for key in shipped}
    for call in cases:
        with _replaced(module, name, Lookup(shipped)) as lookup:
            call()
        by_key[lookup.taken].append(call)
    return {key: _tune_entry(module, name, entry, by_key[key], device) for key, entry in shipped.items()}


def _tune_entry(module: ModuleType, name: str, shipped: Any, cases: Sequence[Work], device: Device) -> Found:
    def seconds(entry: Any) -> list[float] | None:
        with _replaced(module, name, Lookup(getattr(module, name), entry)):
            return _seconds(cases, answers, device)

    if not cases:
        return Found(shipped, 1.0, 0)
    answers = [call() for call in cases]
    usual = seconds(shipped)
    assert usual is not None
    best = Found(shipped, 1.0, len(cases))
    for field in shipped._fields:
        tried = CHOICES[field] if getattr(shipped, field) in CHOICES[field] else ()  # else it has no meaning here
        for value in tried:
            entry = best.entry._replace(**{field: value})
            times = seconds(entry) if entry != best.entry else None
            if times is not None:
                ratio = geometric_mean(new / old for new, old in zip(times, usual, strict=True))
                if ratio < best.ratio * FASTER:
                    best = Found(entry, ratio, len(cases))
    return best


def _seconds(cases: Sequence[Work], answers: Sequence[tuple[Tensor, ...]], device: Device) -> list[float] | None:
    """The median of each case; None if one fails, as where a block is too large, or gives another answer."""
    medians = []
    for call, answer in zip(cases, answers, strict=True):
        try:
            if deviation(answer, call()) > TOLERANCE[answer[0].dtype]:
                return None
            repeat = device.warm_up(call)
            medians.append(statistics.median(device.seconds(call, repeat) for _ in range(SAMPLES)))
        except Exception:
            return None
    return medians


@contextmanager
def _replaced(module: ModuleType, name: str, lookup: Lookup) -> Iterator[Lookup]:
    before = getattr(module, name)
    setattr(module, name, lookup)
    try:
        yield lookup
    finally:
        setattr(module, name, before)


def write(name: str, found: dict[Any, Found]) -> str:
    """The table as Python, with what each entry gained."""
    lines = []
    for key, it in found.items():
        gain = f"{1 / it.ratio:.2f}x as fast as before, {it.cases} workloads" if it.cases else "taken by no workload"
        place = repr(key).replace("'", '"')
        lines.append(f"    {place}: {type(it.entry).__name__}({', '.join(map(str, it.entry))}),  # {gain}\n")
    return f"{name} = {{\n{''.join(lines)}}}\n"


def make_cases(part: str, workloads: Sequence[str], device: Device) -> list[Work]:
    """Our calls on the workloads, in both layouts."""
    modes = [Mode(part, channels_last=last, device=str(device.device)) for last in (False, True)]  # type: ignore[arg-type]
    return [TRITON.prepare(make_case(workload, mode)) for workload in select(workloads) for mode in modes]


def main(
    device: Annotated[str, typer.Option(help="Where: cuda (ROCm's name, too) or xpu.")] = "cuda",
    workload: Annotated[list[str] | None, typer.Option(help="Workload or group; repeat for more.")] = None,
    table: Annotated[list[str] | None, typer.Option(help="FORWARD or BACKWARD; repeat for more.")] = None,
) -> None:
    """Measure candidates for the kernels' block sizes, and print the tables for roialign/backends/triton/blocks.py."""
    console = make_console()
    try:
        where = find_device(device)
        if unknown := set(table or ()) - TABLES.keys():
            raise ValueError(f"table: got {unknown.pop()!r}; expected one of {', '.join(TABLES)}")
        select(workload or WORKLOADS)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    from roialign.backends.triton import blocks

    console.print(f"# measured on {where.about()}", soft_wrap=True, highlight=False)
    for name in table or TABLES:
        found = tune(blocks, name, make_cases(TABLES[name], workload or WORKLOADS, where), where)
        console.print(write(name, found), soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    typer.run(main)
