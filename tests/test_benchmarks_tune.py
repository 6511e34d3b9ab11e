"""Tuning finds the fastest block sizes by a clock that is made up, and writes the table as it stands in blocks.py."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import tune_gpu
from benchmarks.device import Cpu

from roialign.backends import triton as gpu


class Block(NamedTuple):
    channels: int
    warps: int
    cells: int = 1  # of no meaning


ENTRIES = {("rows", "full"): Block(32, 4), ("rows", "sparse"): Block(16, 4), "other": Block(64, 8)}


class Kernels:
    """A kernel that takes its block from a table, and the time that it then takes."""

    def __init__(self) -> None:
        self.module = ModuleType("blocks")
        self.module.TABLE = dict(ENTRIES)  # type: ignore[attr-defined]
        self.launched: list[Block] = []
        self.seconds: dict[str, float] = {}

    def call(self, key: object, cost: Callable[[Block], float], answer: float = 1.0) -> Callable[[], tuple[Tensor]]:
        def launch() -> tuple[Tensor]:
            self.module.TABLE["other"]  # as where the number of programs decides
            block = self.module.TABLE[key]
            self.launched.append(block)
            self.now = cost(block)
            return (torch.full((2,), answer if block.warps < 8 else answer * 1.1),)

        return launch


class Clock(Cpu):
    """Gives the time that the kernel says."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels

    def warm_up(self, call: Callable[[], object], back_to_back: bool = False) -> int:
        return 1

    def seconds(self, call: Callable[[], object], repeat: int) -> float:
        call()
        return self.kernels.now


def test_each_entry_gets_the_fastest_of_its_candidates() -> None:
    kernels = Kernels()
    # 64 channels on 2 warps is best of all that is right: on 8 the answer is another.
    far = lambda block: 1 + abs(block.channels - 64) / 64 + abs(block.warps - 2) * (block.warps != 8)  # noqa: E731
    cases = [kernels.call(("rows", "full"), far), kernels.call(("rows", "full"), lambda block: 2 * far(block))]
    found = tune_gpu.tune(kernels.module, "TABLE", cases, Clock(kernels))
    best = found["rows", "full"]
    assert best.entry == Block(64, 2)
    assert best.ratio == pytest.approx(1 / 3.5)
    assert best.cases == 2
    assert {block.cells for block in kernels.launched} == {1}
    for key in (("rows", "sparse"), "other"):  # nothing was measured
        assert found[key] == tune_gpu.Found(ENTRIES[key], 1.0, 0)
    assert kernels.module.TABLE == ENTRIES
    assert type(kernels.module.TABLE) is dict


def test_what_is_shipped_stays_unless_another_is_clearly_faster() -> None:
    kernels = Kernels()
    case = kernels.call(("rows", "sparse"), lambda block: 1.0 if block == Block(16, 4) else 0.985)
    found = tune_gpu.tune(kernels.module, "TABLE", [case], Clock(kernels))
    assert found["rows", "sparse"] == tune_gpu.Found(Block(16, 4), 1.0, 1)


def test_blocks_that_fail_are_passed_over() -> None:
    kernels = Kernels()

    def cost(block: Block) -> float:
        if block.channels > 64:
            raise RuntimeError("out of resource: shared memory")
        return 1 / block.channels

    found = tune_gpu.tune(kernels.module, "TABLE", [kernels.call(("rows", "full"), cost)], Clock(kernels))
    assert found["rows", "full"].entry.channels == 64


def test_the_table_is_written_as_it_is_read() -> None:
    found = {
        ("rows", "full"): tune_gpu.Found(Block(64, 2), 0.5, 3),
        "other": tune_gpu.Found(Block(64, 8), 1.0, 0),
    }
    text = tune_gpu.write("TABLE", found)
    scope: dict[str, object] = {"Block": Block}
    exec(compile(ast.parse(text), "table", "exec"), scope)
    assert scope["TABLE"] == {key: it.entry for key, it in found.items()}
    first, second = text.splitlines()[1:3]
    assert first == '    ("rows", "full"): Block(64, 2, 1),  # 2.00x as fast as before, 3 workloads'
    assert second.endswith("# taken by no workload")


@pytest.mark.skipif(not gpu._INSTALLED, reason="needs Triton")
def test_tables_and_their_fields_are_those_of_the_kernels() -> None:
    from roialign.backends.triton import blocks

    for name in tune_gpu.TABLES:
        for entry in getattr(blocks, name).values():
            assert set(entry._fields) <= tune_gpu.CHOICES.keys()
    # The entry that is taken is the last one looked up.
    shipped = blocks.FORWARD
    with tune_gpu._replaced(blocks, "FORWARD", tune_gpu.Lookup(shipped)) as lookup:
        assert blocks.forward_blocks(torch.empty(1000, 256, 7, 7), False) == shipped["rows", 8, "full"]
    assert lookup.taken == ("rows", 8, "full")
    with tune_gpu._replaced(blocks, "BACKWARD", tune_gpu.Lookup(blocks.BACKWARD)) as lookup:
        blocks.backward_tile(1, 1, [8], [8], torch.device("cpu"))
    assert lookup.taken == "sparse"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_command_says_what_is_missing() -> None:
    command = typer.Typer()
    command.command()(tune_gpu.main)
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 2
    assert "finds 0 such devices" in " ".join(result.output.replace("│", " ").split())
