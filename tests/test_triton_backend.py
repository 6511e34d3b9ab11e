"""The place of the kernels in Triton among the backends: what they say they cannot serve, and who serves instead.

No kernel runs here but in processes of their own, where ``TRITON_INTERPRET=1`` lets Triton's interpreter run them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import roialign
from helpers import run_python
from roialign import backends
from roialign.backends import triton
from roialign.spec import Pooling

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="asks what is said where nothing is interpreted"
)
needs_triton = pytest.mark.skipif(not triton._INSTALLED, reason="needs Triton")


def interpreted(code: str, backend: str = "") -> str:
    """The output of a Python in which kernels run on the CPU."""
    return run_python(f"import os\nos.environ['TRITON_INTERPRET'] = '1'\n{code}", backend)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_says_which_device_it_cannot_serve(device: str) -> None:
    status = backends.available(torch.empty(1, 1, 2, 2, device=device))["triton"]
    assert not status.ready
    assert (f"on {device}" in status.reason) or (device == "cpu" and triton.unready() == status.reason != "")
    assert "run on an NVIDIA H100" in status.note


def test_says_which_kind_it_has_no_kernel_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "SERVED", ("avg",))
    spec = Pooling("cells", (2, 2), (1.0, 1.0))
    assert "no kernel of kind 'cells'" in backends.available(torch.empty(1, 1, 2, 2), None, spec)["triton"].reason


MISSING = {
    "sys.modules['triton'] = None": "Triton cannot be imported",
    "import triton; triton.__version__ = '3.5.1'": "Triton 3.5.1 is too old; needed is 3.6",
    "import triton; triton.runtime.driver._default = NoDriver()": "Triton has no device (none here)",
    "import triton; triton.runtime.driver._default = Driver(75)": "compute capability 8.0; this one has 7.5",
    "import triton; triton.runtime.driver._default = Driver(90)": "Triton's driver runs on cuda; the input is on cpu",
}


@needs_triton
@pytest.mark.parametrize("change", MISSING)
def test_says_what_is_missing(change: str) -> None:
    code = (
        "import sys, torch, roialign\n"
        "from types import SimpleNamespace\n"
        "class NoDriver:\n"
        "    def get_current_target(self): raise RuntimeError('none here')\n"
        "class Driver:\n"
        "    def __init__(self, arch): self.arch = arch\n"
        "    def get_current_target(self): return SimpleNamespace(backend='cuda', arch=self.arch)\n"
        "    def get_active_torch_device(self): return torch.device('cuda', 0)\n"
        f"{change}\n"
        "print(roialign.backends.available()['triton'].reason)\n"
        "print(roialign.roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]), 1).item())\n"
    )
    reason, value = run_python(code, "").splitlines()
    assert MISSING[change] in reason
    assert value == "1.0"


@needs_triton
def test_traced_for_a_gpu_without_one() -> None:
    """The graph calls the operators, also with the gradient; Triton's device is not asked for."""

    class Pools(torch.nn.Module):
        def forward(self, input: torch.Tensor, rois: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return roialign.roi_align(input, rois, 7, 0.25, 2, True), roialign.prroi_pool(input, rois, 3)

    with FakeTensorMode():
        arguments = torch.empty(2, 8, 20, 20, device="cuda"), torch.empty(5, 5, device="cuda")
    exported = torch.export.export(Pools(), arguments)
    called = [node for node in exported.graph.nodes if node.op == "call_function" and "roialign" in str(node.target)]
    assert [str(node.target) for node in called] == ["roialign.pool.default"] * 2
    assert {str(node.meta["val"].device) for node in called} == {"cuda:0"}
    assert [tuple(node.meta["val"].shape) for node in called] == [(5, 8, 7, 7), (5, 8, 3, 3)]


@needs_triton
def test_who_serves_what_by_default() -> None:
    """Ours, but for what torchvision was measured faster at or ours not measured. A CPU stands in for a GPU."""
    code = (
        "import torch\n"
        "from roialign import backends\n"
        "from roialign.spec import Call, Pooling\n"
        "backends.load('torchvision').DEVICES = ('cpu',)\n"
        "backends.ORDER = backends.ORDER[1:]\n"
        "backends.LATER = {kind: order[1:] for kind, order in backends.LATER.items()}\n"
        "def serves(kind='avg', wants=False, scales=(1.0, 1.0), ratio=2, **options):\n"
        "    rank = len(scales)\n"
        "    spec = Pooling(kind, (2,) * rank, scales, ratio, kind == 'ps_avg')\n"
        "    rois = torch.zeros(1, spec.columns, requires_grad=wants)\n"
        "    call = Call([torch.ones(1, 4, *[4] * rank, **options)], rois, None, spec)\n"
        "    return backends.choose(call)\n"
        "print(serves(), serves(dtype=torch.float16), serves(dtype=torch.bfloat16), serves('integral'))\n"
        "print(serves(wants=True), serves(scales=(1.0, 2.0)))\n"
        "print(serves('cells'), serves('cells', dtype=torch.bfloat16))\n"
        "print(serves('ps_avg'), serves('ps_avg', ratio=0), serves('ps_cells'))\n"
        "print(serves('rotated'), serves('moved'), serves(scales=(1.0,)), serves(scales=(1.0,) * 3))\n"
        "print(serves('max', scales=(1.0,)), serves('max', scales=(1.0,) * 3), serves('cells', scales=(1.0,) * 3))\n"
        "torch.use_deterministic_algorithms(True)\n"
        "print(serves(), serves('cells'))\n"
    )
    said = interpreted(code).splitlines()
    assert said == [
        "triton triton triton triton",
        "triton triton",
        "torchvision triton",
        "torchvision triton triton",
        "triton triton triton triton",
        "triton triton triton",
        "triton triton",
    ]


@needs_triton
def test_the_tutorials_numbers() -> None:
    """``examples/simple.py`` on each backend; its numbers are exact."""
    said = []
    for backend, interpret in (("reference", "0"), ("triton", "1")):
        env = {**os.environ, "ROIALIGN_BACKEND": backend, "TRITON_INTERPRET": interpret}
        command = [sys.executable, "-W", "error", str(ROOT / "examples" / "simple.py")]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        said.append(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert "18.5938, 20.7812" in said[0]
    assert said[0] == said[1]
