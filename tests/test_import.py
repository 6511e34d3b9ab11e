"""``import roialign`` is as light as ``import torch``."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import types
import warnings
from typing import Any

import pytest
from torch import nn

from helpers import run_python

HEAVY = ("torchvision", "matplotlib", "typer", "rich", "PIL", "onnx", "onnxruntime", "hypothesis")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds the same packages."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=True)


def test_what_import_loads() -> None:
    """Beyond what torch loads itself: our own modules, and a little of torch and the standard library."""
    code = (
        "import json, sys, torch\n"
        "before = set(sys.modules)\n"
        "import roialign\n"
        "print(json.dumps([sorted(before), sorted(set(sys.modules) - before)]))\n"
    )
    before, new = json.loads(run_python(code, ""))
    assert not {name.split(".")[0] for name in new} & set(HEAVY)
    foreign = {name.split(".")[0] for name in new} - set(sys.stdlib_module_names) - {"roialign", "torch"}
    assert not foreign, foreign
    assert len(new) < 60, new
    assert len(new) < len(before) / 10


def test_import_costs_little_beside_torch() -> None:
    """By -X importtime: what roialign adds once torch is loaded is a small part of torch's own time in that run."""
    lines = python("-X", "importtime", "-c", "import torch, roialign").stderr.splitlines()
    rows = [line.split("|") for line in lines if line.count("|") == 2 and "[us]" not in line]
    cumulative = {name.strip(): int(total) for _, total, name in rows}
    assert cumulative["roialign"] < 0.2 * cumulative["torch"]


def test_optional_libraries_are_not_needed() -> None:
    """With all of them made impossible to import, the operators and modules still work."""
    code = (
        "import sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"
        "import torch, roialign\n"
        "for name in roialign.__all__: getattr(roialign, name)\n"
        "print(roialign.RoIAlign(1, 1.0, 2)(torch.ones(1, 1, 4, 4), [torch.tensor([[0.0, 0, 2, 2]])]).item())\n"
    )
    assert run_python(code, "").strip() == "1.0"


def test_the_command_line_needs_little() -> None:
    """Its options, those of a training among them, are there without what only some of its commands need."""
    code = (
        "import sys\n"
        "for name in ('torchvision', 'accelerate', 'safetensors', 'matplotlib', 'PIL'): sys.modules[name] = None\n"
        "from typer.testing import CliRunner\n"
        "from roialign.cli import app\n"
        "print(CliRunner().invoke(app, ['train', '--help']).output)\n"
    )
    assert "--val-split" in run_python(code, "")


def test_warnings_as_errors() -> None:
    """Importing and calling warns of nothing."""
    code = (
        "import warnings\n"
        "warnings.simplefilter('error')\n"
        "import torch, roialign\n"
        "x = torch.ones(1, 1, 4, 4, requires_grad=True)\n"
        "roialign.roi_align(x, [torch.tensor([[0.0, 0, 2, 2]])], 2).sum().backward()\n"
        "print(roialign.__version__)\n"
    )
    assert run_python(code, "").strip()


def test_the_package_is_the_one_under_test() -> None:
    """Not another copy that happens to be installed: its file lies on the path the tests were given."""
    where = python("-c", "import roialign; print(roialign.__file__)").stdout.strip()
    import roialign

    assert where == roialign.__file__
    assert not where.startswith(sysconfig.get_path("stdlib") + os.sep + "roialign")


# What the pyramid makes of the torchvision that there is.


class Broken(types.ModuleType):
    """A library whose own core does not go with this PyTorch."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError("operator torchvision::nms does not exist")


class Absent:
    """Finds no torchvision."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def imported_with(monkeypatch: pytest.MonkeyPatch, **libraries: types.ModuleType) -> tuple[Any, list[str]]:
    """Our pyramid's module, imported anew with these libraries in torchvision's place or none, and the warnings."""
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path[:1], Absent(), *sys.meta_path[1:]])
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    for name, library in libraries.items():
        monkeypatch.setitem(sys.modules, name.replace("_", "."), library)
    found = importlib.util.find_spec("roialign.pyramid")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found.loader.exec_module(module)
    return module, [str(warning.message) for warning in caught]


def test_a_torchvision_that_is_broken_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is not there is not: nobody asked for it."""
    module, told = imported_with(monkeypatch)
    assert (module.MultiScaleRoIAlign.__base__, told) == (nn.Module, [])
    module, told = imported_with(monkeypatch, torchvision=types.ModuleType("torchvision"))  # without .ops
    assert module.MultiScaleRoIAlign.__base__ is nn.Module
    assert [each.split(":")[0] for each in told] == [
        "torchvision's detectors will not take roialign.MultiScaleRoIAlign"
    ]
    module, told = imported_with(monkeypatch, torchvision_ops=Broken("torchvision.ops"))
    assert module.MultiScaleRoIAlign.__base__ is nn.Module
    assert told == [
        "torchvision's detectors will not take roialign.MultiScaleRoIAlign: operator torchvision::nms does not exist"
    ]
