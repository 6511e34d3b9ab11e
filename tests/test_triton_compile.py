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

triton = pytest.importorskip("triton")

TARGETS = ("sm_80", "sm_90", "gfx942")
SHIPPED = triton.__version__.startswith("3.8.")  # what the limits are of; another version's compiler takes others
# Which place samples or choose among them; and what weighs them on the spot.
PLACES = ("tables", "candidates", "frames", "search.choose", "maximum.sum_slopes")
CONTRACTS = ("forward", "backward.gather", "box_grad")  # and those that have much to fuse


class Limits(NamedTuple):
    """Registers of a thread by target, and on sm_90 where sums are float64; bytes of shared memory of a program, and
    those of a thread that may be spilled."""

    registers: tuple[int, int, int]
    wide: int
    shared: tuple[int, int, int]
    spilled: int = 0


LIMITS = {
    "tables.tables": Limits((72, 160, 64), 72, (0, 0, 0)),
    "tables.tables with slopes": Limits((96, 208, 72), 96, (0, 0, 0)),
    "candidates.candidates": Limits((112, 160, 80), 112, (0, 64, 0)),
    "candidates.candidates with slopes": Limits((144, 168, 96), 128, (0, 64, 0)),
    "forward.rows": Limits((256, 256, 152), 0, (8704, 8704, 8192)),
    "forward.gather": Limits((64, 56, 72), 64, (0, 2048, 0)),
    "backward.mark": Limits((32, 32, 24), 32, (16, 16, 16)),
    "backward.gather": Limits((96, 128, 72), 160, (2048, 2560, 4096)),
    "box_grad.sum_slopes": Limits((120, 128, 128), 168, (3584, 7168, 2048)),
    "search.choose": Limits((80, 72, 40), 80, (0, 0, 0), 8),
    "search.choose of winners": Limits((72, 80, 32), 80, (512, 2048, 512), 8),
    "maximum.gather": Limits((96, 120, 56), 160, (2048, 4096, 4096), 8),
    "maximum.sum_slopes": Limits((96, 128, 48), 160, (16, 32, 16)),
    "gather.pool": Limits((96, 96, 40), 64, (256, 512, 256)),
    "gather.gather": Limits((152, 144, 64), 160, (128, 512, 0)),
    "gather.sum_rates": Limits((120, 128, 64), 120, (256, 256, 128)),
    "frames.frames": Limits((80, 80, 64), 80, (0, 0, 0)),
    "gather.pool rotated": Limits((152, 160, 104), 128, (256, 512, 256)),
    "gather.gather rotated": Limits((168, 168, 96), 168, (0, 512, 0), 48),
    "gather.sum_rates rotated": Limits((168, 168, 120), 168, (256, 256, 128)),
    "gather.pool moved": Limits((120, 120, 96), 96, (256, 512, 256), 8),
    "gather.gather moved": Limits((128, 168, 80), 160, (0, 512, 0), 32),
    "gather.sum_rates moved": Limits((128, 152, 128), 152, (256, 256, 128)),
    "guard.replace": Limits((16, 16, 16), 0, (0, 0, 0)),
    "guard.mark": Limits((24, 24, 16), 0, (0, 0, 0)),
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
    *({"rank": 3, "kind": kind, "last": last} for kind in ("avg", "max") for last in (False, True)),
    {"rank": 3, "kind": "cells", "ratio": 0},
    *({"rank": 1, "kind": kind} for kind in ("avg", "max")),
]
KINDS: list[Case] = [
    *({"last": last} for last in (False, True)),
    {"kind": "integral", "ratio": 0},
    *({"kind": "max", "last": last} for last in (False, True)),
    {"kind": "cells", "ratio": 0},
    *({"kind": kind} for kind in ("ps_avg", "rotated", "moved")),
    *({"rank": 3, "kind": kind} for kind in ("avg", "max")),
]


def build(target: str, cases: list[Case]) -> dict[str, dict[str, list[int]]]:
    """What ``triton_builds.py`` prints, from a process in which Triton compiles."""
    program = Path(__file__).parent / "triton_builds.py"
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, program, target, *map(json.dumps, cases)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def check(target: str, *cases: Case) -> set[str]:
    """Hold all that the cases launch to the table; the kernels' names."""
    names = set()
    at = TARGETS.index(target)
    for case, kernels in build(target, list(cases)).items():
        for name, (registers, spilled, shared, fused) in kernels.items():
            limits = LIMITS[name]
            most = limits.wide if json.loads(case).get("dtype") == "float64" else limits.registers[at]
            told = f"{name} for {target} of {case}: {registers} registers, {spilled} spilled, {shared} shared"
            if SHIPPED:
                assert registers <= most, told
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
def test_every_configuration() -> None:
    check("sm_90", *CASES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "dtype"), [("sm_80", "float32"), ("gfx942", "float32"), ("sm_90", "float16"), ("sm_90", "float64")]
)
def test_every_kind(target: str, dtype: str) -> None:
    check(target, *({"dtype": dtype, **case} for case in KINDS))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_bfloat16(target: str) -> None:
    check(target, *({"dtype": "bfloat16", "last": last} for last in (False, True)))
