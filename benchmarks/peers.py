"""Against whom we time: every implementation behind one small interface."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor

import roialign
from roialign import backends
from roialign.backends import native, operator
from roialign.boxes import fpn_levels
from roialign.spec import Pooling

from .directions import EXTRA_DTYPES, Mode
from .workloads import Case, Workload, strides_log2

Call = Callable[[], tuple[Tensor, ...]]
Pool = Callable[[list[Tensor], Tensor], Tensor]

EVERYTHING = frozenset(
    {
        "forward",
        "backward",
        "channels_last",
        "float16",
        "bfloat16",
        "pyramid",
        "box_gradient",
        "reuse_output",
        "deterministic",
        "gpu",
    }
)


class Peer:
    """An implementation: what it is called, what it can do, and how it does it."""

    name: ClassVar[str]
    can: ClassVar[frozenset[str]]
    slow: ClassVar[bool] = False  # timed only when it is asked for
    packages: ClassVar[tuple[str, ...]] = ()

    def not_installed(self) -> str:
        """Empty if it is installed, else what is missing."""
        missing = [package for package in self.packages if find_spec(package) is None]
        return f"{missing[0]} is not installed" if missing else ""

    def why_not(self, workload: Workload, mode: Mode) -> str:
        """Empty if it can do this, else what is in the way."""
        lacking = ", ".join(sorted(workload.needs(mode) - self.can))
        return f"cannot do {lacking}" if lacking else self.not_installed()

    def prepare(self, case: Case) -> Call:
        """Do what need not be timed; what is returned does the rest and gives the output, or the gradients."""
        raise NotImplementedError


class TorchPeer(Peer):
    """An implementation that is a differentiable function of tensors."""

    def pool(self, workload: Workload) -> Pool:
        """The function of maps and rois."""
        raise NotImplementedError

    def prepare(self, case: Case) -> Call:
        """As the mode says."""
        call = self._prepare(case)
        return _deterministically(call) if case.mode.deterministic else call

    def _prepare(self, case: Case) -> Call:
        pool, maps, rois = self.pool(case.workload), case.maps, case.rois
        if case.mode.part == "forward":
            return lambda: (pool(maps, rois),)
        wanted = [*maps, *([rois] if case.mode.box_gradient else [])]
        if case.mode.part == "step":
            return lambda: torch.autograd.grad(pool(maps, rois), wanted, case.grad)
        pooled = pool(maps, rois)
        return lambda: torch.autograd.grad(pooled, wanted, case.grad, retain_graph=True)


class Ours(TorchPeer):
    """This package, as a user calls it; the backend is whichever serves first."""

    name = "roialign"
    can = EVERYTHING - ({"reuse_output"} if native.UNREADY else set())
    backend: ClassVar[str] = ""

    def pool(self, workload: Workload) -> Pool:
        """``roialign.roi_align``, or ``MultiScaleRoIAlign`` on a pyramid."""
        pool = _pool_with(roialign, workload)

        def with_backend(maps: list[Tensor], rois: Tensor) -> Tensor:
            with backends.use(self.backend) if self.backend else nullcontext():
                return pool(maps, rois)

        return with_backend if self.backend else pool

    def prepare(self, case: Case) -> Call:
        """As the mode says."""
        return _into_one_output(case) if case.mode.reuse_output else super().prepare(case)


class OurTriton(Ours):
    """Our kernels on a GPU, also for calls that we leave to torchvision: to find out who is faster."""

    can = EVERYTHING - {"reuse_output"}
    backend = "triton"


class AsServed(Ours):
    """On a GPU: whoever of our backends serves a call there."""

    name = "as served"
    can = EVERYTHING - {"reuse_output"}

    def why_not(self, workload: Workload, mode: Mode) -> str:
        """On a CPU that is us."""
        return super().why_not(workload, mode) if mode.device != "cpu" else "that is what is timed"


class Reference(Ours):
    """Our specification in plain PyTorch: the truth, and slow."""

    name = "reference"
    can = EVERYTHING - {"reuse_output"}
    slow = True
    backend = "reference"


class Torchvision(TorchPeer):
    """``torchvision.ops``."""

    name = "torchvision"
    can = frozenset({"forward", "backward", "channels_last", "float16", "pyramid", "deterministic", "gpu"})
    packages = ("torchvision",)

    def pool(self, workload: Workload) -> Pool:
        """``torchvision.ops.roi_align``, or ``MultiScaleRoIAlign`` on a pyramid."""
        pool = _pool_with(importlib.import_module("torchvision.ops"), workload)
        # It wants the boxes in the map's dtype.
        return lambda maps, rois: pool(maps, rois.to(maps[0].dtype))


class Autocast(Torchvision):
    """torchvision on half precision as models call it: within autocast it pools in float32."""

    name = "torchvision, autocast"
    can = Torchvision.can | {"bfloat16"}

    def why_not(self, workload: Workload, mode: Mode) -> str:
        """It is another only in half precision, which a CPU is not asked for."""
        if mode.device == "cpu" or mode.dtype not in EXTRA_DTYPES:
            return "autocast changes nothing here"
        return super().why_not(workload, mode)

    def pool(self, workload: Workload) -> Pool:
        """The same in autocast."""
        pool = _pool_with(importlib.import_module("torchvision.ops"), workload)

        def in_autocast(maps: list[Tensor], rois: Tensor) -> Tensor:
            with torch.autocast(maps[0].device.type, maps[0].dtype):
                return pool(maps, rois)

        return in_autocast


class OnnxRuntime(Peer):
    """The RoiAlign node of ONNX in ONNX Runtime, on as many threads as PyTorch's.

    Its threads may not spin between calls: with as many of them as cores they would slow down whoever comes next.
    """

    name = "onnxruntime"
    can = frozenset({"forward"})
    packages = ("onnx", "onnxruntime")

    def prepare(self, case: Case) -> Call:
        """Make a model of the one node."""
        helper, runtime = importlib.import_module("onnx.helper"), importlib.import_module("onnxruntime")
        workload, floats = case.workload, importlib.import_module("onnx").TensorProto.FLOAT
        node = helper.make_node(
            "RoiAlign",
            ["map", "boxes", "image"],
            ["pooled"],
            mode="avg",
            output_height=workload.output,
            output_width=workload.output,
            sampling_ratio=workload.ratio,
            spatial_scale=1 / workload.maps[0][2],
            coordinate_transformation_mode="half_pixel" if workload.aligned else "output_half_pixel",
        )
        feed = _arrays(case)
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feed.items()
        ]
        graph = helper.make_graph([node], "pool", inputs, [helper.make_tensor_value_info("pooled", floats, None)])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda: (torch.from_numpy(session.run(["pooled"], feed)[0]),)


class OpenVino(Peer):
    """OpenVINO's ROIAlign on the CPU, in float32, on as many threads as PyTorch's."""

    name = "openvino"
    can = frozenset({"forward"})
    packages = ("openvino",)

    def prepare(self, case: Case) -> Call:
        """Compile a model of the one node."""
        openvino, ops = importlib.import_module("openvino"), importlib.import_module("openvino.opset9")
        workload, feed = case.workload, _arrays(case)
        inputs = [ops.parameter(array.shape, array.dtype, name=name) for name, array in feed.items()]
        pooled = ops.roi_align(
            *inputs,
            pooled_h=workload.output,
            pooled_w=workload.output,
            sampling_ratio=workload.ratio,
            spatial_scale=1 / workload.maps[0][2],
            mode="avg",
            aligned_mode="half_pixel_for_nn" if workload.aligned else "asymmetric",
        )
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        request = openvino.Core().compile_model(openvino.Model([pooled], inputs, "pool"), "CPU", settings)
        request = request.create_infer_request()
        arrays = list(feed.values())
        # Its output is its own memory, written anew by each call: shared, because a copy would not be its time.
        return lambda: (torch.from_numpy(request.infer(arrays, share_inputs=True, share_outputs=True)[0]),)


OURS, TRITON = Ours(), OurTriton()
PEERS: dict[str, Peer] = {
    peer.name: peer for peer in (Torchvision(), Autocast(), AsServed(), OnnxRuntime(), OpenVino(), Reference())
}


def ours_on(device: str) -> Ours:
    """What is timed as ours."""
    return OURS if device == "cpu" else TRITON


def _deterministically(call: Call) -> Call:
    def in_mode() -> tuple[Tensor, ...]:
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            return call()
        finally:
            torch.use_deterministic_algorithms(before)

    return in_mode


def _pool_with(library: Any, workload: Workload) -> Pool:
    """The function of a library that names things as torchvision does."""
    output, ratio, stride = workload.output, workload.ratio, workload.maps[0][2]
    if len(workload.maps) == 1:
        pool, scale, aligned = library.roi_align, 1 / stride, workload.aligned
        return lambda maps, rois: pool(maps[0], rois, output, scale, ratio, aligned)
    names = [str(level) for level in range(len(workload.maps))]
    pooler, shapes = library.MultiScaleRoIAlign(names, output, ratio), [workload.image]
    return lambda maps, rois: pooler(dict(zip(names, maps, strict=True)), [rois[:, 1:]], shapes)


def _into_one_output(case: Case) -> Call:
    """Our forward into one output, which no public function offers."""
    workload, maps, rois = case.workload, case.maps, case.rois
    scales = [1 / stride for _, _, stride in workload.maps for _ in "yx"]
    level = None
    if len(maps) > 1:
        level = fpn_levels([rois[:, 1:]], strides_log2(workload), 224, 4)
    spec = Pooling("avg", (workload.output,) * 2, scales, workload.ratio, workload.aligned)
    out = operator.make_output(maps, rois, spec)
    return lambda: (native.pool_into(out, maps, rois, level, spec),)


def _arrays(case: Case) -> dict[str, Any]:
    """Map, boxes and image of each box, as NumPy arrays over the same memory where that can be."""
    (map,) = case.maps
    boxes = case.rois[:, 1:].contiguous()
    return {"map": map.numpy(), "boxes": boxes.numpy(), "image": case.rois[:, 0].long().numpy()}
