"""What the kernels in Triton compile to, for GPUs that are not there: each as it would be launched.

Registers and shared memory decide how much of a kernel runs at once, and a change of either is to be seen before a GPU
is. A compiler fuses a multiplication with an addition, which the interpreter never does: where the samples are placed,
and a rounding decides on which side of a cell's centre or of the border one lies, none may be fused.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("triton")

TARGETS = ("sm_80", "sm_90", "gfx942")
# Which place samples or choose among them; and what weighs them on the spot.
PLACES = ("tables", "candidates", "frames", "maximum.choose", "maximum.sum_slopes")
CONTRACTS = ("forward", "backward.gather", "box_grad")  # and those that have much to fuse


class Limits(NamedTuple):
    """Registers of a thread by target, and as many where sums are float64; bytes of shared memory of a program, and
    those of a thread that may be spilled."""

    registers: tuple[int, int, int]
    wide: tuple[int, int, int]
    shared: tuple[int, int, int]
    spilled: int = 24


LIMITS = {
    "tables.tables": Limits((160, 160, 88), (160, 160, 88), (0, 0, 0)),
    "tables.tables with slopes": Limits((160, 168, 88), (160, 168, 88), (0, 0, 0)),
    "candidates.candidates": Limits((152, 152, 80), (152, 152, 80), (64, 64, 0)),
    "candidates.candidates with slopes": Limits((152, 144, 80), (160, 160, 80), (64, 64, 0)),
    "forward.rows": Limits((96, 96, 104), (0, 0, 0), (5120, 5120, 4096)),
    "forward.gather": Limits((80, 80, 104), (168, 168, 112), (4096, 4096, 4096)),
    "backward.mark": Limits((32, 32, 24), (32, 32, 24), (16, 16, 16)),
    "backward.gather": Limits((128, 128, 80), (168, 168, 112), (8192, 6144, 16384)),
    "box_grad.sum_slopes": Limits((128, 128, 128), (168, 168, 224), (10240, 10240, 4096)),
    "maximum.choose": Limits((128, 96, 80), (168, 160, 64), (0, 0, 0)),
    "maximum.choose of winners": Limits((128, 128, 56), (168, 168, 64), (2048, 2048, 2048)),
    "maximum.gather": Limits((96, 96, 56), (152, 128, 80), (8192, 8192, 16384)),
    "maximum.sum_slopes": Limits((128, 128, 64), (216, 200, 88), (32, 32, 32)),
    "gather.pool": Limits((96, 96, 40), (96, 96, 48), (256, 256, 256)),
    "gather.gather": Limits((168, 136, 64), (168, 168, 96), (8192, 4096, 8192), 48),
    "gather.sum_rates": Limits((128, 96, 64), (168, 168, 96), (256, 256, 256)),
    "frames.frames": Limits((80, 80, 80), (80, 80, 80), (0, 0, 0)),
    "gather.pool rotated": Limits((160, 160, 104), (136, 136, 104), (512, 512, 512)),
    "gather.gather rotated": Limits((168, 168, 96), (168, 168, 96), (8192, 4096, 8192), 48),
    "gather.sum_rates rotated": Limits((168, 168, 120), (168, 168, 128), (256, 256, 256)),
    "gather.pool moved": Limits((120, 120, 96), (120, 120, 80), (512, 512, 512)),
    "gather.gather moved": Limits((168, 168, 80), (168, 168, 80), (8192, 4096, 8192), 64),
    "gather.sum_rates moved": Limits((152, 152, 128), (152, 152, 128), (256, 256, 256)),
    "guard.replace": Limits((16, 16, 16), (24, 24, 24), (0, 0, 0)),
    "guard.mark": Limits((24, 24, 16), (32, 32, 16), (0, 0, 0)),
}

Case = dict[str, Any]
CASES: list[Case] = [
    *({"last": last} for last in (False, True)),
    *({"bins": 14, "ratio": 0, "last": last} for last in (False, True)),
    *({"bins": 14, "maps": 4, "last": last} for last in (False, True)),
    *({"sparse": True, "last": last} for last in (False, True)),
    {"kind": "integral", "ratio": 0},
    *({"kind": "max", "bins": 14, "last": last} for last in (False, True)),
    {"kind": "max", "ratio": 0, "maps": 4, "sparse": True},
    *({"kind": "cells", "ratio": 0, "last": last} for last in (False, True)),
    *({"kind": "ps_avg", "last": last} for last in (False, True)),
    {"kind": "ps_avg", "bins": 14, "ratio": 0, "maps": 4, "sparse": True},
    *({"kind": "ps_cells", "ratio": 0, "last": last} for last in (False, True)),
    *({"kind": "rotated", "last": last} for last in (False, True)),
    {"kind": "rotated", "bins": 14, "ratio": 0, "maps": 4, "sparse": True},
    *({"kind": "moved", "last": last} for last in (False, True)),
    {"kind": "moved", "ratio": 0, "maps": 4, "sparse": True},
    *({"rank": 3, "last": last} for last in (False, True)),
    *({"rank": 1, "kind": kind} for kind in ("avg", "max")),
]


def build(target: str, cases: list[Case]) -> dict[str, dict[str, list[int]]]:
    """What ``triton_builds.py`` prints, from a process in which Triton compiles."""
    program = Path(__file__).parent / "triton_builds.py"
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, program, target, *map(json.dumps, cases)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def check(target: str, *cases: Case) -> set[str]:
    """Hold all that the cases launch to the table; the kernels' names."""
    names = set()
    at = TARGETS.index(target)
    for case, kernels in build(target, list(cases)).items():
        for name, (registers, spilled, shared, fused) in kernels.items():
            limits = LIMITS[name]
            most = limits.wide if json.loads(case).get("dtype") == "float64" else limits.registers
            told = f"{name} for {target} of {case}: {registers} registers, {spilled} spilled, {shared} shared"
            assert registers <= most[at], told
            assert spilled <= limits.spilled, told
            assert shared <= limits.shared[at], told
            if name.startswith(PLACES) or name.endswith(("rotated", "moved")):
                assert fused == 0, told
            if name.startswith(CONTRACTS):
                assert fused > 0, told
            names.add(name)
    return names


def test_the_usual_calls() -> None:
    cases: list[Case] = [{}, {"last": True, "ratio": 0}, {"kind": "integral", "ratio": 0}, {"kind": "max"}]
    cases += [{"kind": "ps_avg"}, {"kind": "rotated"}, {"kind": "moved"}]
    assert check("sm_90", *cases) == set(LIMITS)


def test_on_amd() -> None:
    check("gfx942", {})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_configuration(target: str, dtype: str) -> None:
    check(target, *({"dtype": dtype, **case} for case in CASES))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_bfloat16(target: str) -> None:
    check(target, *({"dtype": "bfloat16", "last": last} for last in (False, True)))
