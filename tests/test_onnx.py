"""ONNX: what is exported runs in ONNX Runtime and gives our numbers; what ONNX cannot say is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import roialign
from helpers import run_python, slow_but
from roialign.backends import native

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [
    pytest.mark.skipif(bool(native.UNREADY), reason=f"the operator is not there: {native.UNREADY}"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # the exporter's own
]

COUNTS = (5, 0, 1, 1000)


@pytest.fixture(autouse=True)
def native_backend() -> Iterator[None]:
    """Whatever the environment forces: export is of the operator."""
    with roialign.backends.use("native"):
        yield


class Apply(nn.Module):
    """A module around a function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        """Call it."""
        return self.function(*tensors)


def random_boxes(count: int, seed: int = 0) -> Tensor:
    """``[K, 4]`` on an image of 38 x 46 pixels, some partly outside, some smaller than a cell."""
    generator = torch.Generator().manual_seed(100 * count + seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([46.0, 38.0]) - 4
    size = 2 ** (torch.rand(count, 2, generator=generator) * 6)
    return torch.cat([corner, corner + size], 1)


def random_rois(count: int) -> Tensor:
    boxes = random_boxes(count)
    return torch.cat([(torch.arange(count) % 2)[:, None].float(), boxes], 1)


def random_map(height: int = 19, width: int = 23) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))


def export(model: nn.Module, example: tuple[Tensor, ...], shapes: Any) -> Any:
    return torch.onnx.export(
        model.eval(),
        example,
        dynamo=True,
        verbose=False,
        dynamic_shapes=shapes,
        custom_translation_table=roialign.onnx_translation_table(),
    )


def run(program: Any, arguments: Sequence[Tensor]) -> Tensor:
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return torch.from_numpy(session.run(None, {n: t.numpy() for n, t in zip(names, arguments, strict=True)})[0])


def assert_same_for_every_count(pool: Callable[[Tensor, Tensor], Tensor], input: Tensor, node: str = "RoiAlign") -> Any:
    """Exported from 5 boxes, run on none, one and many; the program."""
    boxes = {0: torch.export.Dim("boxes", min=0)}
    program = export(Apply(pool), (input, random_rois(5)), ((None, boxes),))
    (found,) = [each for each in program.model.graph if "Roi" in each.op_type]
    assert (found.op_type, found.domain) == (node, "")
    for count in COUNTS:
        rois = random_rois(count)
        pooled = run(program, (input, rois))
        assert pooled.dtype == input.dtype
        torch.testing.assert_close(pooled, pool(input, rois), rtol=0, atol=1e-4)
    return found


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [2, 0, -1])
def test_roi_align(aligned: bool, ratio: int) -> None:
    found = assert_same_for_every_count(
        lambda input, rois: roialign.roi_align(input, rois, (3, 4), 0.5, ratio, aligned), random_map()
    )
    attributes = {name: each.value for name, each in found.attributes.items()}
    assert attributes == {
        "coordinate_transformation_mode": "half_pixel" if aligned else "output_half_pixel",
        "mode": "avg", "output_height": 3, "output_width": 4, "sampling_ratio": max(ratio, 0), "spatial_scale": 0.5,
    }  # fmt: skip


def test_two_scales() -> None:
    assert_same_for_every_count(lambda x, rois: roialign.roi_align(x, rois, 3, (0.5, 0.7), 2, True), random_map())


@pytest.mark.parametrize("aligned", [False, True])
def test_maximum_of_a_fixed_grid(aligned: bool) -> None:
    """Of interpolated samples, as ours: ONNX's own maximum would be over weighted corners."""
    pool = lambda x, rois: roialign.roi_align(x, rois, (3, 4), 0.5, 3, aligned, mode="max")  # noqa: E731
    found = assert_same_for_every_count(pool, random_map())
    attributes = {name: found.attributes[name].value for name in ("mode", "output_height", "sampling_ratio")}
    assert attributes == {"mode": "avg", "output_height": 9, "sampling_ratio": 1}


def test_roi_pool() -> None:
    assert_same_for_every_count(lambda x, rois: roialign.roi_pool(x, rois, 3, 0.5), random_map(), "MaxRoiPool")


LINES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "fixed": (lambda x, rois: roialign.roi_align(x, rois, 3, 0.5, 2), "RoiAlign"),
    "fixed, aligned": (lambda x, rois: roialign.roi_align(x, rois, (3,), 0.7, 3, True), "RoiAlign"),
    "adaptive": (lambda x, rois: roialign.roi_align(x, rois, 3, 0.7), "RoiAlign"),
    "adaptive, aligned, enlarged": (lambda x, rois: roialign.roi_align(x, rois, 3, 3.0, 0, True), "RoiAlign"),
    "maximum": (lambda x, rois: roialign.roi_align(x, rois, 3, 0.5, 2, mode="max"), "RoiAlign"),
    "pool": (lambda x, rois: roialign.roi_pool(x, rois, 3, 0.5), "MaxRoiPool"),
}


@pytest.mark.parametrize("name", LINES)
def test_maps_of_rank_1(name: str) -> None:
    """As maps of height 1, in whose row every sample weighs as much as along x."""
    pool, kind = LINES[name]
    input = random_map()[:, :, 0].contiguous()
    program = export(Apply(pool), (input, random_line(5)), ((None, {0: torch.export.Dim("boxes", min=0)}),))
    assert [each.op_type for each in program.model.graph if "Roi" in each.op_type] == [kind]
    for count in COUNTS:
        arguments = input, random_line(count)
        torch.testing.assert_close(run(program, arguments), pool(*arguments), rtol=0, atol=1e-5)


def random_line(count: int) -> Tensor:
    return random_rois(count)[:, [0, 1, 3]].contiguous()


def test_float64() -> None:
    pool = lambda x, rois: roialign.roi_align(x, rois.double(), 3, 0.5, 2)  # noqa: E731
    assert_same_for_every_count(pool, random_map().double())


def test_float16_is_pooled_in_float32() -> None:
    ones = torch.ones(1, 1, 40, 40, dtype=torch.float16)
    box = torch.tensor([[0.0, 0.0, 0.0, 640.0, 640.0]])
    program = export(Apply(lambda x, rois: roialign.roi_align(x, rois, 1, 1 / 16)), (ones, box), None)
    pooled = run(program, (ones, box))
    assert pooled.dtype == torch.float16
    torch.testing.assert_close(pooled, torch.ones(1, 1, 1, 1, dtype=torch.float16))


def test_list_of_boxes() -> None:
    input = random_map()
    pool = lambda x, first, second: roialign.roi_align(x, [first, second], 3, 0.5, 2)  # noqa: E731
    dims = [{0: torch.export.Dim(name, min=0)} for name in ("first", "second")]
    program = export(Apply(pool), (input, random_boxes(5), random_boxes(4)), ((None, *dims),))
    for first, second in ((5, 4), (0, 0), (1, 0), (0, 1), (400, 600)):
        boxes = random_boxes(first), random_boxes(second, 1)
        torch.testing.assert_close(run(program, (input, *boxes)), pool(input, *boxes), rtol=0, atol=1e-4)


class Pyramid(nn.Module):
    """Three levels, with canonical sizes so small that random boxes lie on all of them."""

    def __init__(self, ratio: int, aligned: bool) -> None:
        super().__init__()
        self.pooler = roialign.MultiScaleRoIAlign(
            ["0", "1", "2"], 3, ratio, canonical_scale=16, canonical_level=2, aligned=aligned
        )

    def forward(self, a: Tensor, b: Tensor, c: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Pool."""
        return self.pooler({"0": a, "1": b, "2": c}, [first, second], [(38, 46), (30, 46)])


@pytest.mark.parametrize(("ratio", "aligned"), [(2, False), (0, True)])
def test_pyramid(ratio: int, aligned: bool) -> None:
    model = Pyramid(ratio, aligned)
    maps = random_map(), random_map(10, 12), random_map(5, 6)
    dims = {name: {0: torch.export.Dim(name, min=0)} for name in ("first", "second")}
    shapes = {"a": None, "b": None, "c": None, **dims}
    program = export(model, (*maps, random_boxes(5), random_boxes(4)), shapes)
    assert [each.op_type for each in program.model.graph].count("RoiAlign") == 3
    for first, second in ((5, 4), (0, 0), (1, 0), (0, 2), (400, 600)):
        boxes = random_boxes(first), random_boxes(second, 1)
        torch.testing.assert_close(run(program, (*maps, *boxes)), model(*maps, *boxes), rtol=0, atol=1e-4)


REFUSALS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str, str]] = {
    "max": (lambda x, r: roialign.roi_align(x, r, 3, mode="max"), "weighted corners.*onnx/issues/4764", "mode='avg'"),
    "exact": (lambda x, r: roialign.prroi_pool(x, r, 3), "no exact integration", "sampling_ratio.*AOTInductor"),
    "sensitive": (lambda x, r: roialign.ps_roi_align(x, r, 1), "no position-sensitive", "decomposition_table.*AOTInd"),
    "volumes": (
        lambda x, r: roialign.roi_align(x[:, :, None], torch.cat([r, r[:, :2]], 1), 3),
        r"no maps \[N, C, D, H, W\]",
        "decomposition_table.*AOTInd",
    ),
    "rotated": (lambda x, r: roialign.roi_align_rotated(x, r[:, [0, 1, 2, 3, 4, 1]], 1), "rotated", "decomposition_ta"),
    "moved": (lambda x, r: roialign.deform_roi_pool(x, r, None, 1), "deformable", "decomposition_table"),
    "boxes' dtype": (lambda x, r: roialign.roi_align(x, r.double(), 3), "one dtype.*boxes are float64", "boxes.float"),
}


PLAIN: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "mean": (roialign.RoIAlign(2, 0.5, 2), 2),
    "mean, one image": (lambda x, rois: roialign.roi_align(x[:1], one_image(rois), (2, 3), 0.5), 2),
    "maximum": (roialign.RoIAlign((2, 3), 0.5, 2, mode="max"), 2),
    "integral": (roialign.PrRoIPool(2, 0.5), 2),
    "line": (lambda x, rois: roialign.prroi_pool(x[:, :, 0], rois[:, [0, 1, 3]], 2, 0.5), 2),
    "align": (roialign.PSRoIAlign((2, 3), 0.5, 2), 2),
    "align, one image": (lambda x, rois: roialign.ps_roi_align(x[:1], one_image(rois), (2, 3), 0.5, 2), 2),
    "adaptive": (roialign.PSRoIAlign((2, 3), 0.5, 0), 2),
    "pool": (roialign.PSRoIPool((2, 3), 0.5), 2),
    "volume": (roialign.RoIAlign((2, 3, 1), 0.5, 2), 3),
    "volume's maximum": (roialign.RoIAlign(2, 0.5, 2, mode="max"), 3),
    "volume's integral": (roialign.PrRoIPool((2, 1, 3), 0.5), 3),
    "volume's cells": (roialign.RoIPool(2, 0.5), 3),
    "rotated": (lambda x, rois: roialign.roi_align_rotated(x, torch.cat([rois, rois[:, 1:2]], 1), (2, 3), 0.5, 2), 2),
    "deform": (lambda x, rois: moved(x, rois), 2),
    "deform, one image": (lambda x, rois: moved(x[:1], one_image(rois)), 2),
    "pyramid": (
        lambda x, rois: roialign.MultiScaleRoIAlign(["0", "1"], 2, 2, canonical_scale=16, canonical_level=2)(
            {"0": x, "1": x[..., ::2, ::2]}, [rois[:, 1:], rois[:, 1:] + 2], [(38, 46)] * 2
        ),
        2,
    ),
}


def one_image(rois: Tensor) -> Tensor:
    return torch.cat([0 * rois[:, :1], rois[:, 1:]], 1)


def moved(x: Tensor, rois: Tensor) -> Tensor:
    return roialign.deform_roi_pool(x, rois, rois[:, 1:3, None, None].expand(-1, -1, 2, 3) * 0.1, (2, 3), 0.5)


IN_A_PROCESS = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", providers=["CPUExecutionProvider"])
inputs = [each.name for each in session.get_inputs()]
for count in sys.argv[2:]:
    given = numpy.load(f"{sys.argv[1]}/{count}.npz")
    (pooled,) = session.run(None, dict(zip(inputs, given.values(), strict=True)))
    numpy.save(f"{sys.argv[1]}/{count}.npy", pooled)
"""


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # the exporter's own
@pytest.mark.parametrize("name", slow_but(["mean"], PLAIN))
def test_plain_aten_where_onnx_has_no_node(name: str, tmp_path: Path) -> None:
    """Any number of boxes, also none: ONNX Runtime's Einsum would divide by zero then, and the process die of it."""
    pool, rank = PLAIN[name]
    generator = torch.Generator().manual_seed(0)
    map = torch.randn(*((2, 12, 19, 23) if rank == 2 else (2, 2, 6, 8, 7)), generator=generator)
    example = {20: random_rois(20), 1: random_rois(1), 0: random_rois(0)}
    if rank == 3:
        box = torch.rand(5, 6, generator=generator) * 12 - 1
        box = torch.cat([torch.tensor([[0.0], [1], [1], [0], [1]]), box], 1)
        example = {5: box, 1: box[:1], 0: box[:0]}
    first = next(iter(example.values()))
    shapes = ((None, {0: torch.export.Dim("boxes", min=0)}),)
    program = torch.export.export(Apply(pool), (map, first), dynamic_shapes=shapes)
    program = program.run_decompositions(roialign.decomposition_table())
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    for count, rois in example.items():
        np.savez(tmp_path / f"{count}.npz", map.numpy(), rois.numpy())
    run_python(IN_A_PROCESS, "", str(tmp_path), *(str(count) for count in example))
    for count, rois in example.items():
        pooled = torch.from_numpy(np.load(tmp_path / f"{count}.npy"))
        torch.testing.assert_close(pooled, pool(map, rois), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_reason_and_the_way_out(name: str) -> None:
    pool, reason, way_out = REFUSALS[name]
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as error:
        export(Apply(pool), (random_map(), random_rois(5)), None)
    cause: BaseException | None = error.value
    while cause is not None and not isinstance(cause, NotImplementedError):
        cause = cause.__cause__
    assert cause is not None
    with pytest.raises(NotImplementedError, match=f"(?s)roialign: .*{reason}.*{way_out}"):
        raise cause


def test_without_onnxscript_the_extra_is_named() -> None:
    code = (
        "import sys\n"
        "sys.modules['onnxscript'] = None\n"
        "import roialign\n"
        "try: roialign.onnx_translation_table()\n"
        "except ImportError as error: print(error)\n"
    )
    assert "roialign[onnx]" in run_python(code, "")


def test_a_whole_detector_head() -> None:
    """The layers around pooling are the exporter's own; together they give our model's numbers."""
    torch.manual_seed(0)

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.pool = nn.Conv2d(3, 8, 3, 2, 1), roialign.RoIAlign(3, 0.5, 2, True)
            self.classify = nn.Linear(72, 4)

        def forward(self, image: Tensor, rois: Tensor) -> Tensor:
            return self.classify(self.pool(self.body(image).relu(), rois).flatten(1)).softmax(1)

    head = Head()
    image = random_map(38, 46)
    shapes = ({0: torch.export.Dim.AUTO}, {0: torch.export.Dim("boxes", min=0)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, of the batch that it finds to be constant
        program = export(head, (image, random_rois(5)), shapes)
    for count in COUNTS:
        rois = random_rois(count)
        torch.testing.assert_close(run(program, (image, rois)), head(image, rois).detach(), rtol=0, atol=1e-4)
