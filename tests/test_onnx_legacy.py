"""``torch.onnx.export(dynamo=False)``: nodes, numbers and refusals of the new exporter, on every backend."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import roialign
from test_onnx import COUNTS, LINES, REFUSALS, Apply, Pyramid, random_boxes, random_line, random_map, random_rois

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # the exporter's own
    pytest.mark.filterwarnings("ignore:Constant folding:UserWarning"),
]


def export(model: nn.Module, example: tuple[Tensor, ...], names: Sequence[str] = (), **options: Any) -> Any:
    """The ONNX model; the first dimension of the named inputs is the number of boxes."""
    file = io.BytesIO()
    torch.onnx.export(
        model.eval(),
        example,
        file,
        dynamo=False,
        input_names=[f"input{i}" for i in range(len(example))],
        dynamic_axes={name: {0: name} for name in names},
        **options,
    )
    return onnx.load_from_string(file.getvalue())


def run(program: Any, arguments: Sequence[Tensor]) -> Tensor:
    session = onnxruntime.InferenceSession(program.SerializeToString(), providers=["CPUExecutionProvider"])
    assert len(session.get_inputs()) == len(arguments)  # none was taken for a constant
    feed = {f"input{i}": argument.numpy() for i, argument in enumerate(arguments)}
    return torch.from_numpy(session.run(None, feed)[0])


def nodes(program: Any) -> list[Any]:
    return [node for node in program.graph.node if "Roi" in node.op_type]


POOLS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "fixed": (lambda x, rois: roialign.roi_align(x, rois, (3, 4), 0.5, 2), "RoiAlign"),
    "adaptive, aligned": (lambda x, rois: roialign.roi_align(x, rois, (3, 4), 0.5, -1, True), "RoiAlign"),
    "two scales": (lambda x, rois: roialign.roi_align(x, rois, 3, (0.5, 0.7), 2, True), "RoiAlign"),
    "maximum": (lambda x, rois: roialign.roi_align(x, rois, (3, 4), 0.5, 2, mode="max"), "RoiAlign"),
    "pool": (lambda x, rois: roialign.roi_pool(x, rois, 3, 0.5), "MaxRoiPool"),
}


@pytest.mark.parametrize("name", POOLS)
def test_any_number_of_boxes(name: str) -> None:
    pool, kind = POOLS[name]
    program = export(Apply(pool), (random_map(), random_rois(5)), ["input1"], opset_version=16)
    assert [(node.op_type, node.domain) for node in nodes(program)] == [(kind, "")]
    for count in COUNTS:
        arguments = random_map(), random_rois(count)
        torch.testing.assert_close(run(program, arguments), pool(*arguments), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", LINES)
def test_maps_of_rank_1(name: str) -> None:
    pool, kind = LINES[name]
    input = random_map()[:, :, 0].contiguous()
    program = export(Apply(pool), (input, random_line(5)), ["input1"], opset_version=16)
    assert [(node.op_type, node.domain) for node in nodes(program)] == [(kind, "")]
    for count in COUNTS:
        arguments = input, random_line(count)
        torch.testing.assert_close(run(program, arguments), pool(*arguments), rtol=0, atol=1e-5)


def test_attributes_are_those_of_the_new_exporter() -> None:
    program = export(Apply(POOLS["adaptive, aligned"][0]), (random_map(), random_rois(5)), ["input1"])
    (node,) = nodes(program)
    found = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    assert found == {
        "coordinate_transformation_mode": b"half_pixel", "mode": b"avg", "output_height": 3, "output_width": 4,
        "sampling_ratio": 0, "spatial_scale": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    """Halves are pooled in float32: a mean of many ones is one."""
    boxes = torch.tensor([[0.0, 0, 0, 640, 640]], dtype=torch.promote_types(dtype, torch.float32))
    model = Apply(lambda x, rois: roialign.roi_align(x, rois, 1, 1 / 16))
    arguments = torch.ones(1, 1, 40, 40, dtype=dtype), boxes
    pooled = run(export(model, arguments), arguments)
    torch.testing.assert_close(pooled, torch.ones(1, 1, 1, 1, dtype=dtype))


def test_a_list_of_boxes_and_a_pyramid() -> None:
    for model, maps, kind in (
        (Apply(lambda x, *boxes: roialign.roi_align(x, boxes, 3, 0.5, 2)), (random_map(),), 1),
        (Pyramid(2, aligned=False), (random_map(), random_map(10, 12), random_map(5, 6)), 3),
    ):
        names = [f"input{len(maps)}", f"input{len(maps) + 1}"]
        program = export(model, (*maps, random_boxes(5), random_boxes(4)), names)
        assert [node.op_type for node in nodes(program)] == ["RoiAlign"] * kind
        for first, second in ((5, 4), (0, 0), (0, 2), (40, 60)):
            arguments = *maps, random_boxes(first), random_boxes(second, 1)
            torch.testing.assert_close(run(program, arguments), model(*arguments), rtol=0, atol=1e-4)


def test_a_model_that_was_accelerated() -> None:
    """The convolution before it is there as well, and the map is an input."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.pool = torchvision.ops.MultiScaleRoIAlign(["0"], 3, 2)

        def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
            return self.pool({"0": self.conv(x)}, [boxes], [(38, 46)])

    head = Head().eval()
    arguments = random_map()[:1], random_boxes(7)
    with torch.no_grad():
        expected = head(*arguments)
        assert roialign.accelerate(head).replaced
        program = export(head, arguments, ["input1"])
        assert [node.op_type for node in program.graph.node if node.op_type in ("Conv", "RoiAlign")] == [
            "Conv",
            "RoiAlign",
        ]
        torch.testing.assert_close(run(program, arguments), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [*REFUSALS, "opset"])
def test_refusals_name_the_reason_and_the_way_out(name: str) -> None:
    old = (lambda x, rois: roialign.roi_align(x, rois, 3), "opset_version is 11", "opset_version=16")
    pool, reason, way_out = old if name == "opset" else REFUSALS[name]
    options = {"opset_version": 11} if name == "opset" else {}
    with pytest.raises(NotImplementedError, match=f"(?s)roialign: .*{reason}.*{way_out}"):
        export(Apply(pool), (random_map(), random_rois(5)), **options)
