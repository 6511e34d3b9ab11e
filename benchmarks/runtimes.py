"""Runtimes that take a model instead of tensors: one of a single node."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from .peer import Call, Peer
from .workloads import Case


class OnnxRuntime(Peer):
    """The RoiAlign node of ONNX in ONNX Runtime, on as many threads as PyTorch's.

    Its threads may not spin between calls: with as many of them as cores they would slow down whoever comes next.
    """

    name = "onnxruntime"
    can = frozenset({"forward", "roi_align", "maps"})
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
            spatial_scale=1 / workload.maps[0].stride,
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
    """OpenVINO's ROIAlign and ROIAlignRotated on the CPU, in float32, on as many threads as PyTorch's."""

    name = "openvino"
    can = frozenset({"forward", "roi_align", "maps", "roi_align_rotated"})
    packages = ("openvino",)

    def prepare(self, case: Case) -> Call:
        """Compile a model of the one node."""
        openvino, ops = importlib.import_module("openvino"), importlib.import_module("openvino.opset15")
        workload, feed = case.workload, _arrays(case)
        inputs = [ops.parameter(array.shape, array.dtype, name=name) for name, array in feed.items()]
        numbers = {
            "pooled_h": workload.output,
            "pooled_w": workload.output,
            "sampling_ratio": workload.ratio,
            "spatial_scale": 1 / workload.maps[0].stride,
        }
        if workload.kind == "rotated":
            pooled = ops.roi_align_rotated(*inputs, **numbers, clockwise_mode=False)
        else:
            aligned_mode = "half_pixel_for_nn" if workload.aligned else "asymmetric"
            pooled = ops.roi_align(*inputs, **numbers, mode="avg", aligned_mode=aligned_mode)
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        request = openvino.Core().compile_model(openvino.Model([pooled], inputs, "pool"), "CPU", settings)
        request = request.create_infer_request()
        arrays = list(feed.values())
        # Its output is its own memory, written anew by each call: shared, because a copy would not be its time.
        return lambda: (torch.from_numpy(request.infer(arrays, share_inputs=True, share_outputs=True)[0]),)


def _arrays(case: Case) -> dict[str, Any]:
    """Map, boxes and image of each box, as NumPy arrays over the same memory where that can be."""
    (map,) = case.maps
    boxes = case.rois[:, 1:].contiguous()
    return {"map": map.numpy(), "boxes": boxes.numpy(), "image": case.rois[:, 0].long().numpy()}
