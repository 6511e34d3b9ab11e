"""Every recorder's graph gives the answer of the call itself, on other numbers than it was recorded with."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import roialign
from helpers import assert_pooled, reference_is_slow, run_python
from roialign import (
    DeformRoIPool,
    MultiScaleRoIAlign,
    PrRoIPool,
    PSRoIAlign,
    PSRoIPool,
    RoIAlign,
    RoIAlignRotated,
    RoIPool,
)

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),  # torch.jit's own
]


class Pyramid(nn.Module):
    """The pyramid's pooler with tensors as arguments, as a detector's head would call it."""

    def __init__(self, pooler: nn.Module) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Half the map is the coarser level; boxes are all of image 0 and again all of image 1."""
        x = {"0": input, "1": nn.functional.avg_pool2d(input, 2)}
        return self.pooler(x, [rois[:, 1:], rois[:, 1:]], [(24, 28), (20, 28)])


class Split(nn.Module):
    """A pooler that gets a list of boxes."""

    def __init__(self, pooler: nn.Module) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Half the boxes are of each image."""
        first, second = rois[::2, 1:], rois[1::2, 1:]
        return self.pooler(input, [first, second])


class Ranked(nn.Module):
    """A pooler of another rank on the same numbers: a column of the map, or its rows as a volume of three slices."""

    def __init__(self, pooler: nn.Module, rank: int) -> None:
        super().__init__()
        self.pooler, self.rank = pooler, rank

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Along z a box reaches as far as along x."""
        if self.rank == 1:
            return self.pooler(input[..., 3], rois[:, [0, 1, 3]])
        return self.pooler(input.unflatten(2, (3, 4)), rois[:, [0, 1, 2, 1, 3, 4, 3]])


class Turned(nn.Module):
    """A pooler of rotated boxes."""

    def __init__(self, pooler: nn.Module) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Corners are taken for centres and sizes, and the width for an angle, too."""
        return self.pooler(input, torch.cat([rois, rois[:, 3:4] * 3], 1))


class Moved(nn.Module):
    """A pooler that gets offsets."""

    def __init__(self, pooler: nn.Module) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """The boxes give the offsets, different ones for the bins."""
        bins = torch.arange(6, dtype=rois.dtype, device=rois.device).reshape(2, 3) - 2
        return self.pooler(input, rois, rois[:, 1:3, None, None] * bins * 0.1)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "avg": lambda: RoIAlign(2, 0.5, 2),
    "adaptive, aligned": lambda: RoIAlign((3, 2), (0.5, 0.4), 0, aligned=True),
    "max": lambda: RoIAlign(2, 0.5, 0, mode="max"),
    "prroi": lambda: PrRoIPool(2, 0.5),
    "pool": lambda: RoIPool(2, 0.5),
    "ps align": lambda: PSRoIAlign((3, 1), (0.5, 0.4), 2),
    "ps align, adaptive": lambda: PSRoIAlign((1, 3), 0.5, 0),
    "ps pool": lambda: PSRoIPool((1, 3), 0.5),
    "line": lambda: Ranked(RoIAlign(2, 0.5, 0), 1),
    "volume": lambda: Ranked(RoIAlign((2, 1, 3), (0.5, 0.4, 0.3), 2, True), 3),
    "volume's maximum": lambda: Ranked(RoIAlign(2, 0.5, 2, mode="max"), 3),
    "rotated": lambda: Turned(RoIAlignRotated(2, 0.5, 2)),
    "deform": lambda: Moved(DeformRoIPool((2, 3), (0.5, 0.4), 2)),
    "deform, adaptive": lambda: Moved(DeformRoIPool((2, 3), 0.5, 0, gamma=0.2)),
    "list": lambda: Split(RoIAlign(2, 0.5, 2)),
    "pyramid": lambda: Pyramid(MultiScaleRoIAlign(["0", "1"], 2, 2, canonical_scale=10, canonical_level=2)),
}
CONSTANT = ("pool", "ps pool")  # in the boxes


def example(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 20 - 2
    size = 2 ** (torch.rand(count, 2, generator=generator) * 4)
    index = (torch.arange(count) % 2)[:, None].float()
    return torch.randn(2, 3, 12, 14, generator=generator), torch.cat([index, corner, corner + size], 1)


def scribble() -> None:
    """Leave something in the allocator's free blocks: an answer from uninitialised memory then shows."""
    for count in (60, 96, 128, 192, 256, 1024, 4096):
        held = [torch.full((count,), 777.0) for _ in range(50)]
        del held


def assert_same(recorded: Callable[..., Tensor], model: nn.Module, counts: tuple[int, ...]) -> None:
    for count in counts:
        input, rois = example(count, seed=count + 1)
        scribble()
        assert_pooled(recorded(input, rois), model(input, rois), input)


@pytest.mark.parametrize(("name", "grad"), [*[(name, True) for name in MODULES], ("avg", False), ("pyramid", False)])
def test_jit_trace(name: str, grad: bool, tmp_path: Path) -> None:
    """Any number of boxes, saved and loaded, and with gradients: without a warning that something was lost."""
    model = MODULES[name]()
    input, rois = example(4, seed=0)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, (input.clone().requires_grad_(grad), rois))
        torch.jit.save(traced, tmp_path / "traced.pt")
        loaded = torch.jit.load(tmp_path / "traced.pt")
        for each in (traced, loaded):
            assert_same(each, model, (9, 0))
    if grad:
        for pool in (traced, loaded):
            input, rois = example(9, seed=5)
            leaves = [
                (input.clone().requires_grad_(), rois.clone().requires_grad_(name not in CONSTANT)) for _ in range(2)
            ]
            for _ in range(2):  # the second run is the one that TorchScript has optimised
                for each, (map, boxes) in zip((pool, model), leaves, strict=True):
                    map.grad = boxes.grad = None
                    each(map, boxes).square().sum().backward()
            (actual, actual_boxes), (expected, expected_boxes) = leaves
            torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(actual_boxes.grad, expected_boxes.grad, rtol=1e-4, atol=1e-4)


MAKE_FX = [(mode, pre_dispatch) for mode in ("real", "fake", "symbolic") for pre_dispatch in (False, True)]


@reference_is_slow
@pytest.mark.parametrize(
    ("name", "mode", "pre_dispatch"),
    [("avg", *how) for how in MAKE_FX]  # every mode for one pooling, and every pooling where least is known
    + [("pyramid", *how) for how in MAKE_FX[:2]]
    + [(name, "symbolic", True) for name in MODULES if name != "avg"],
)
def test_make_fx(name: str, mode: str, pre_dispatch: bool) -> None:
    model = MODULES[name]()
    graph = make_fx(lambda input, rois: model(input, rois), tracing_mode=mode, pre_dispatch=pre_dispatch)(
        *example(4, seed=0)
    )
    assert_same(graph, model, (4,) if mode != "symbolic" else (4, 9))


@pytest.mark.parametrize("name", ["avg", "max", "prroi", "pool", "ps align", "ps pool", "rotated", "deform", "list"])
def test_torch_fx(name: str) -> None:
    """A call of ours is one node."""
    model = MODULES[name]()
    graph = torch.fx.symbolic_trace(model)
    assert_same(graph, model, (4, 9, 0))
    ours = [node for node in graph.graph.nodes if getattr(node.target, "__module__", "").startswith("roialign")]
    assert len(ours) == 1


def test_torch_fx_of_a_function_and_of_a_pyramid() -> None:
    class Head(nn.Module):
        def forward(self, input: Tensor, rois: Tensor) -> Tensor:
            return roialign.roi_align(input * 2, rois, output_size=2) + roialign.prroi_pool(input, rois, 2)

    assert_same(torch.fx.symbolic_trace(Head()), Head(), (4, 9))
    pyramid = MODULES["pyramid"]()
    assert_same(torch.fx.symbolic_trace(pyramid), pyramid, (4, 9))


@pytest.mark.parametrize("name", ["avg", "ps align", "list"])
def test_a_graph_of_torch_fx_is_copied_and_saved(name: str) -> None:
    model = MODULES[name]()
    graph = torch.fx.symbolic_trace(model)
    file = io.BytesIO()
    torch.save(graph, file)
    file.seek(0)
    for each in (copy.deepcopy(graph), torch.load(file, weights_only=False)):
        assert_same(each, model, (4, 9))


class Backbone(nn.Module):
    """A convolution and a pooler behind it."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, 4, 1), pool, nn.Flatten()

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Pool."""
        return self.head(self.pool(self.conv(x), boxes))


@pytest.mark.parametrize("kind", ["ours", "torchvision's after accelerate"])
def test_feature_extraction(kind: str) -> None:
    ours = kind == "ours"
    model = Backbone(RoIAlign(2, 0.5, 2) if ours else torchvision.ops.RoIAlign(2, 0.5, 2)).eval()
    if not ours:
        roialign.accelerate(model)
    names, _ = get_graph_node_names(model)
    assert names == ["x", "boxes", "conv", "pool.roi_align", "head"]
    x, rois = example(5, seed=3)
    found = create_feature_extractor(model, ["conv", "pool.roi_align"])(x, rois)
    assert_pooled(found["pool.roi_align"], roialign.roi_align(model.conv(x), rois, 2, 0.5, 2), found["conv"])


SCRIPTED = [name for name in MODULES if type(MODULES[name]()).__module__ != __name__]


@pytest.mark.parametrize("name", SCRIPTED)
def test_jit_script(name: str, tmp_path: Path) -> None:
    """A tensor and a list of boxes, saved and loaded, with gradients to both."""
    model = MODULES[name]()
    scripted = torch.jit.script(model)
    torch.jit.save(scripted, tmp_path / "scripted.pt")
    for each in (scripted, torch.jit.load(tmp_path / "scripted.pt")):
        assert_same(each, model, (4, 0, 9))
        input, rois = example(6, seed=1)
        parts = [rois[rois[:, 0] == image, 1:] for image in range(2)]
        assert_pooled(each(input, parts), model(input, parts), input)
        found = []
        for pool in (each, model):
            leaf, boxes = input.clone().requires_grad_(), rois.clone().requires_grad_(name not in CONSTANT)
            pool(leaf, boxes).square().sum().backward()
            found.append((leaf.grad, boxes.grad))
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    assert type(model) in (RoIAlign, RoIPool, PrRoIPool, PSRoIAlign, PSRoIPool)


@pytest.mark.parametrize("name", ["avg", "ps align", "pool"])
def test_torchscript_that_is_frozen_and_optimised(name: str) -> None:
    """Behind a convolution, traced and scripted: what folds constants and rewrites graphs leaves the operator alone."""
    model = Backbone(MODULES[name]()).eval()
    model.conv = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        for recorded in (torch.jit.trace(model, example(4, seed=0)), torch.jit.script(model)):
            for each in (torch.jit.freeze(recorded), torch.jit.optimize_for_inference(recorded)):
                for _ in range(3):  # the first runs are those that TorchScript profiles
                    assert_same(each, model, (9, 4))


@pytest.mark.parametrize("form", ["rows", "list"])
@pytest.mark.parametrize(
    "model",
    [
        RoIAlignRotated((3, 2), (0.5, 0.4), 0, clockwise=True),
        RoIAlignRotated(2, 0.5, 2, aligned=False, unit="radians"),
        DeformRoIPool((2, 3), 0.5, 2),
        DeformRoIPool((2, 3), (0.5, 0.4), 0, gamma=0.5),
    ],
    ids=["rotated", "rotated in radians", "deform", "deform, adaptive"],
)
def test_jit_script_of_rotated_and_moved(model: nn.Module, form: str) -> None:
    """As above, with their own boxes and offsets; without any offset, too."""
    scripted = torch.jit.script(model)
    input, rois = example(6, seed=1)
    if isinstance(model, RoIAlignRotated):
        rois = torch.cat([rois, rois[:, 3:4]], 1)
    boxes = rois if form == "rows" else [rois[::2, 1:], rois[1::2, 1:]]
    more: list[tuple[Any, ...]] = [()]
    if isinstance(model, DeformRoIPool):
        more += [(None,), (torch.randn(6, 2, 2, 3, generator=torch.Generator().manual_seed(0)),)]
    for arguments in more:
        found = []
        for pool in (scripted, model):
            leaf = input.clone().requires_grad_()
            pooled = pool(leaf, boxes, *arguments)
            pooled.square().sum().backward()
            found.append((pooled.detach(), leaf.grad))
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
        assert found[0][0].abs().sum() > 1


@pytest.mark.parametrize(
    "pooler", [MultiScaleRoIAlign(["0", "1"], (2, 3), 2, mode="max"), MultiScaleRoIAlign(["1"], 2, 0)]
)
def test_jit_script_of_a_pyramid(pooler: nn.Module) -> None:
    scripted = torch.jit.script(pooler)
    x, rois = example(9, seed=2)
    features = {"0": x, "1": nn.functional.avg_pool2d(x, 2)}
    boxes = [rois[:5, 1:], rois[5:, 1:]]
    shapes = [(24, 28), (20, 26)]
    assert_pooled(scripted(features, boxes, shapes), pooler(features, boxes, shapes), x)
    with pytest.raises(Exception, match="no level '0'" if "0" in pooler.featmap_names else "no level '1'"):
        scripted({"a": x}, boxes, shapes)


def test_jit_script_of_functions() -> None:
    """Called from a user's scripted function, with torchvision's defaults and with ours."""
    source = Path(__file__).parent / "scripted_functions.py"
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        f"import runpy; runpy.run_path({str(source)!r}, run_name='__main__')\n"
    )
    assert run_python(code, roialign.backends._forced[-1].name or "").split() == ["0.0"] * 6


def test_jit_script_takes_a_list_of_one_as_its_number() -> None:
    """On a plane, where Python refuses it: TorchScript makes such a list of a number, and nothing tells them apart."""
    input, rois = example(2, seed=0)
    scripted = torch.jit.script(roialign.roi_align)
    assert torch.equal(scripted(input, rois, (3,), [0.5]), roialign.roi_align(input, rois, 3, 0.5))
    with pytest.raises(ValueError, match=r"output_size: got \(3,\)"):
        roialign.roi_align(input, rois, (3,))


def test_jit_script_tells_what_is_wrong() -> None:
    """The same checks and the same words as in Python, whatever TorchScript makes of the exception's type."""
    scripted = torch.jit.script(RoIAlign(2, 1.0, 2))
    input, rois = example(2, seed=0)
    with pytest.raises(Exception, match="boxes: got a tensor of shape"):
        scripted(input, rois[:, :4])
    rois[1, 0] = 7
    with pytest.raises(Exception, match="row 1 has batch index 7"):
        scripted(input, rois)
    with pytest.raises(Exception, match="expected float16, bfloat16, float32 or float64"):
        scripted(input.long(), rois)


@pytest.mark.parametrize(
    ("name", "dtype", "layout"),
    [
        *[(name, torch.float32, torch.contiguous_format) for name in MODULES],
        ("avg", torch.bfloat16, torch.channels_last),
        ("pyramid", torch.float64, torch.channels_last),
    ],
)
def test_meta(name: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Shape, dtype and layout of the output, and of the gradients, are those of the real call."""
    model = MODULES[name]()
    input, rois = example(5 if name != "list" else 6, seed=0)
    found: list[list[Any]] = []
    for device in ("cpu", "meta"):
        leaf = input.detach().to(device, dtype, memory_format=layout).requires_grad_()
        boxes = rois.detach().to(device).requires_grad_(name not in CONSTANT)
        pooled = model(leaf, boxes)
        pooled.sum().backward()
        tensors = [pooled, leaf.grad, *([boxes.grad] if name not in CONSTANT else [])]
        assert all(tensor.device.type == device for tensor in tensors)
        found.append([(tensor.shape, tensor.dtype, tensor.stride()) for tensor in tensors])
    assert found[0] == found[1]


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("list", "pyramid")])
def test_vmap_on_meta(name: str) -> None:
    """A batch of maps, on another device than a new tensor is made on: as on the CPU."""
    model, (input, rois) = MODULES[name](), example(4, seed=0)
    found = []
    for device in ("cpu", "meta"):
        pooled = torch.vmap(model, (0, None))(input.expand(3, *input.shape).to(device), rois.to(device))
        found.append((pooled.device.type, pooled.shape, pooled.dtype))
    assert found == [(device, *found[0][1:]) for device in ("cpu", "meta")]


def test_meta_refuses_what_a_call_refuses() -> None:
    input, rois = (tensor.to("meta") for tensor in example(2, seed=0))
    with pytest.raises(ValueError, match="expected it on the input's device, meta"):
        roialign.roi_align(input, rois.new_empty(rois.shape, device="cpu"), 2)
    with pytest.raises(ValueError, match="on an empty feature map"):
        roialign.roi_pool(input[:, :, :0], rois, 2)
