"""torch.export, decompositions and AOTInductor: our operator where Python's code does not go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import roialign
from helpers import assert_pooled, generic_case, run_python, slow_but
from roialign.backends import native
from test_compile import POOLS, Exportable, boxes

pytestmark = [
    pytest.mark.skipif(bool(native.UNREADY), reason=f"the operator is not there: {native.UNREADY}"),
    pytest.mark.usefixtures("native_backend"),
]


@pytest.fixture
def native_backend() -> object:
    """Whatever the environment forces."""
    with roialign.backends.use("native"):
        yield


class Model(nn.Module):
    """Two convolutions and the pyramid pooler."""

    def __init__(self, mode: str = "avg") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(2))
        self.pooler = roialign.MultiScaleRoIAlign(
            ["0", "1"], 3, 2, canonical_scale=12, canonical_level=2, aligned=True, mode=mode
        )

    def forward(self, a: Tensor, b: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Pool."""
        x = {name: conv(map) for name, conv, map in zip("01", self.convs, (a, b), strict=True)}
        return self.pooler(x, [first, second], [(38, 46), (30, 46)])


def case(first: int, second: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(first)
    corner = torch.rand(first + second, 2, generator=generator) * 30
    found = torch.cat([corner, corner + torch.rand(first + second, 2, generator=generator) * 25], 1)
    maps = [torch.randn(2, 3, *size, generator=generator) for size in ((19, 23), (10, 12))]
    return (*maps, found[:first], found[first:])


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    dims = {name: {0: torch.export.Dim(name, min=0)} for name in ("first", "second")}
    return torch.export.export(model, case(5, 4), dynamic_shapes={"a": None, "b": None, **dims})


def namespaces(program: torch.export.ExportedProgram) -> set[str]:
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return {target.namespace for target in targets if isinstance(target, torch._ops.OpOverload)}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_pyramid_through_export_and_decompositions(mode: str) -> None:
    """One call of our operator stays; with our table plain ATen is left, and core ATen with PyTorch's added."""
    model = Model(mode).eval()
    program = exported(model)
    core_aten = {**torch.export.default_decompositions(), **roialign.decomposition_table()}
    programs = {
        "roialign": program.run_decompositions(),
        "aten": program.run_decompositions(roialign.decomposition_table()),
        "core aten": program.run_decompositions(core_aten),
    }
    assert namespaces(programs["roialign"]) == {"aten", "roialign"}
    assert namespaces(programs["aten"]) == namespaces(programs["core aten"]) == {"aten"}
    for each in programs.values():
        for counts in ((5, 4), (0, 0), (1, 0), (0, 3), (40, 30)):
            arguments = case(*counts)
            with torch.no_grad():
                assert_pooled(each.module()(*arguments), model(*arguments), torch.full((1,), 4.0))


# Of each way to pool the kind that is exported soonest, and the rest.
@pytest.mark.parametrize("name", slow_but(("max fixed", "pool", "rotated"), POOLS))
def test_every_kind_decomposes(name: str) -> None:
    input, _ = generic_case(dtype=torch.float32)
    shapes = {"input": None, "rois": {0: torch.export.Dim("boxes", min=0)}}
    program = torch.export.export(Exportable(POOLS[name]), (input, boxes(5)), dynamic_shapes=shapes)
    plain = program.run_decompositions(roialign.decomposition_table())
    assert namespaces(plain) == {"aten"}
    for count in (0, 1, 9):
        assert_pooled(plain.module()(input, boxes(count)), POOLS[name](input, boxes(count)), input)
    bad = boxes(5)
    bad[1, 0], bad[2, 3] = 7, torch.nan
    pooled = plain.module()(input, bad)
    assert pooled[[1, 2]].isnan().all()
    assert_pooled(pooled[3:], POOLS[name](input, boxes(5))[3:], input)


def test_decomposed_gradients_are_the_operators() -> None:
    input, rois = generic_case(dtype=torch.float64)
    program = torch.export.export(Exportable(POOLS["avg"]), (input, rois))
    plain = program.run_decompositions(roialign.decomposition_table()).module()
    results = []
    for pool in (plain, POOLS["avg"]):
        leaf = input.clone().requires_grad_()
        pool(leaf, rois).sin().sum().backward()
        results.append(leaf.grad)
    torch.testing.assert_close(*results)


def test_make_fx_takes_the_table() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    input, rois = generic_case(dtype=torch.float64)
    pool: Callable[[Tensor, Tensor], Tensor] = POOLS["avg"]
    graph = make_fx(pool, decomposition_table=roialign.decomposition_table())(input, rois)
    assert "roialign" not in graph.code
    assert_pooled(graph(input, rois), pool(input, rois), input)


@pytest.mark.slow
def test_aot_inductor_package_in_a_fresh_process(tmp_path: Path) -> None:
    """Compiled here, run where nothing but torch and our operators is imported, with other numbers of boxes."""
    model = Model().eval()
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(exported(model), package_path=str(tmp_path / "model.pt2"))
        cases = [(case(*counts), model(*case(*counts))) for counts in ((5, 4), (2, 0), (30, 50))]
    torch.save(cases, tmp_path / "cases.pt")
    code = (
        "import sys, torch, roialign\n"
        "run = torch._inductor.aoti_load_package(sys.argv[1])\n"
        "assert not {'torchvision', 'onnx', 'test_export'} & set(sys.modules)\n"
        "for arguments, expected in torch.load(sys.argv[2]):\n"
        "    torch.testing.assert_close(run(*arguments), expected, rtol=0, atol=1e-5)\n"
        "    print(len(expected))\n"
        "bad = [*arguments[:2], arguments[2].clone(), arguments[3]]\n"
        "bad[2][3] = torch.nan\n"
        "print(int(run(*bad).isnan().flatten(1).all(1).nonzero()))\n"
    )
    assert run_python(code, "", path, str(tmp_path / "cases.pt")).split() == ["9", "2", "80", "3"]
