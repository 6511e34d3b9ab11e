"""The forward kernels in Triton against the reference, on a GPU or in Triton's interpreter, which takes small cases.

``make test`` runs them with ``TRITON_INTERPRET=1``, which must be set before Triton is imported.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from helpers import DTYPES, crosswise, generic_case, rows
from roialign import axis, backends
from roialign.backends import reference
from roialign.backends.memory import is_channels_last
from roialign.boxes import as_rois, usable
from roialign.spec import Pooling
from strategies import LAYOUTS, Case, cases, lay_out
from test_differential import edges, random_call
from triton_device import DEVICE, needs_kernels

pytestmark = needs_kernels

# Of the largest value: the kernels sum in float32, and in float64 for float64 maps; one rounding for half precision.
# The interpreter rounds to bfloat16 by cutting off, hence two.
WITHIN = {torch.float64: 1e-14, torch.float32: 2e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def assert_same(found: Tensor, expected: Tensor, features: list[Tensor]) -> None:
    """Not finite in the same places, and elsewhere as near as the dtype lets sums of the maps' cells be."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if is_channels_last(features[0]):
        assert found.is_contiguous(memory_format=torch.channels_last)
    else:
        assert found.is_contiguous()
    largest = max(
        (float(each.double().nan_to_num(0, 0, 0).abs().max()) for each in features if each.numel()), default=0
    )
    atol = WITHIN[expected.dtype] * largest
    torch.testing.assert_close(found.cpu().double(), expected.double(), rtol=0, atol=atol, equal_nan=True)


def pool(features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    on = [each.to(DEVICE) for each in features]
    with backends.use("triton"):
        return backends.pool(on, rois.to(DEVICE), None if level is None else level.to(DEVICE), spec)


def check(features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    """Pool by the kernels and by the reference; the kernels' answer."""
    found = pool(features, rois, level, spec)
    assert_same(found, reference.pool(features, rois, level, spec), features)
    return found


# Matrices.


def matrix(spec: Pooling, along: int, lo: Tensor, hi: Tensor, length: int) -> Tensor:
    """``[P, L]`` of one box by ``axis.py``, with positions in the type that its rule asks for."""
    bins, scale = spec.output_size[along], spec.scale(0)[along]
    if spec.kind == "integral":
        return axis.integral_matrix(lo.double(), hi.double(), bins, length, scale)[0]
    if not bool(axis.fits_float32(lo.detach(), hi.detach(), scale, length, spec.sampling_ratio)):
        lo, hi = lo.double(), hi.double()
    window = axis.align_window(lo, hi, bins, scale, spec.sampling_ratio, spec.aligned)
    return axis.mean_matrix(window, bins, length)[0]


@pytest.mark.parametrize(
    ("rule", "box_dtype"), crosswise(["few", "adaptive", "many", "integral"], [torch.float32, torch.float64])
)
def test_tables_are_the_matrices_of_the_rules(rule: str, box_dtype: torch.dtype) -> None:
    """Weights and their slopes to the box's edges, slot by slot; exactly the same weights are 0."""
    from roialign.backends.triton.tables import make_tables

    rng = random.Random(f"{rule} {box_dtype}")
    for _ in range(5):
        lengths = rng.randint(1, 8), rng.randint(1, 8)
        ratio = {"few": rng.choice([1, 2, 3, 16]), "many": rng.choice([17, 100, 2**24 + 1, 2**55])}.get(rule, 0)
        scale, aligned = rng.choice([(1.0, 1.0), (0.25, 0.3), (2.0, 1.0)]), rule != "integral" and rng.random() < 0.5
        kind = "integral" if rule == "integral" else "avg"
        spec = Pooling(kind, (rng.randint(1, 5), rng.randint(1, 5)), scale, ratio, aligned)
        shift = 0.5 if aligned else 0.0
        numbers = []
        for _ in range(3):
            y, x = edges(rng, lengths[0]), edges(rng, lengths[1])
            corners = ((x[0], 1), (y[0], 0), (x[1], 1), (y[1], 0))
            numbers.append([0.0, *((edge + shift) / scale[along] for edge, along in corners)])
        rois = torch.tensor(numbers, dtype=torch.float64).to(box_dtype)
        made = make_tables([(1, 1, *lengths)], rois.to(DEVICE), None, spec, torch.float64, slopes=True)
        tables = [each.cpu() for each in made]
        for k, row in enumerate(rois):
            if not bool(usable(row[None].double(), scale)):
                assert int(tables[1][k, 0, 2]) == -1
                assert not any(bool(tables[0][k, a, 1, :bins].any()) for a, bins in enumerate(spec.output_size))
                continue
            for along, length in enumerate(lengths):
                lo, hi = row[2 - along, None], row[4 - along, None]
                expected = matrix(spec, along, lo, hi, length)
                slopes = torch.autograd.functional.jacobian(
                    lambda *ends, spec=spec, along=along, length=length: matrix(spec, along, *ends, length), (lo, hi)
                )
                for values, want in zip(tables[2:], (expected, *(each[..., 0] for each in slopes)), strict=True):
                    found = torch.zeros(spec.output_size[along], length, dtype=torch.float64)
                    for p in range(spec.output_size[along]):
                        first, taps, slot = tables[0][k, along, :, p].tolist()
                        found[p, first : first + taps] = values[k, slot : slot + taps]
                    near = 1e-12 if expected.dtype == torch.float64 and want.dtype == torch.float64 else 2e-6
                    torch.testing.assert_close(found, want.double(), rtol=near, atol=near * scale[along])
                    if want is expected:
                        assert torch.equal(found != 0, want != 0)
                begin, end = tables[1][k, along, :2].tolist()
                touched = expected.any(0).nonzero()[:, 0].tolist()
                assert not touched or begin <= touched[0] <= touched[-1] < end


# Values.


@settings(max_examples=12)
@given(case=cases(most_boxes=3))
def test_any_call(case: Case) -> None:
    rois = case.rois.to(torch.float64 if torch.float64 in (case.rois.dtype, case.input.dtype) else torch.float32)
    check([case.input], rois, None, Pooling("avg", case.size, case.scale, max(case.ratio, 0), case.aligned))


@pytest.mark.parametrize("kind", ["avg", "integral"])
def test_boxes_at_every_edge_of_the_rules(kind: str) -> None:
    """Borders, centres, tiny, giant, inverted and infinite boxes, cells that are not finite, samples beyond count."""
    for seed in range(12):
        call = random_call(kind, 2, seed)
        spec = Pooling(kind, tuple(call.grad.shape[2:]), (call.scale,) * 2, call.ratio if kind == "avg" else 0)
        rois = as_rois(call.input, call.rois[:3])  # in the dtype of their positions
        check([call.input], rois, None, spec._replace(aligned=call.aligned and kind == "avg"))


@pytest.mark.parametrize(("layout", "dtype"), crosswise(LAYOUTS, DTYPES))
def test_any_strides(layout: str, dtype: torch.dtype) -> None:
    """Also more channels than one program takes, and more bins; memory that belongs to no element is NaN."""
    values = torch.randn(2, 66, 4, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    _, rois = generic_case(dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    found = check([lay_out(values, layout)], rois[:2], None, Pooling("avg", (1, 18), (0.9, 0.9), 2, True))
    assert bool(found.isfinite().all())


def test_boxes_that_cannot_be_pooled() -> None:
    """NaN for that box, nothing read, and the others' very bits: no device can wait to say more."""
    input, rois = generic_case(dtype=torch.float32)
    alone = check([input], rois, None, Pooling("avg", (2, 2), (0.9, 0.9), 2, True))
    bad = rows(
        (2, 0, 0, 3, 3), (-1, 0, 0, 3, 3), (0.5, 0, 0, 3, 3), (math.nan, 0, 0, 3, 3), (1, math.nan, 0, 3, 3),
        (1, 0, 0, math.inf, 3), (0, -math.inf, 0, 3, 3), (2.0**31, 0, 0, 3, 3), dtype=torch.float32,
    )  # fmt: skip
    for layout in ("contiguous", "channels_last"):
        mixed = torch.cat([rois[:2], bad, rois[2:]])
        found = pool([lay_out(input, layout)], mixed, None, Pooling("avg", (2, 2), (0.9, 0.9), 2, True)).cpu()
        assert bool(found[2:-4].isnan().all())
        assert torch.equal(torch.cat([found[:2], found[-4:]]), alone.cpu()) or layout == "channels_last"
        torch.testing.assert_close(torch.cat([found[:2], found[-4:]]), alone.cpu(), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("kind", "layout"), crosswise(["avg", "integral"], ["contiguous", "channels_last"]))
def test_levels_of_a_pyramid(kind: str, layout: str) -> None:
    """Each box from its own map with its own scale; a level that does not exist gives NaN."""
    generator = torch.Generator().manual_seed(2)
    features = [lay_out(torch.randn(2, 3, 9 >> i, 12 >> i, generator=generator), layout) for i in range(3)]
    _, rois = generic_case(dtype=torch.float32)
    spec = Pooling(kind, (2, 3), (1.0, 1.0, 0.5, 0.4, 0.25, 0.25), 0, kind == "avg")
    level = torch.tensor([0, 2, 1, 0, 1, 2])
    found = check(features, rois, level, spec)
    wrong = torch.tensor([0, 2, 3, -1, 1, 2**40])
    other = pool(features, rois, wrong, spec)
    assert torch.equal(other[[0, 1, 4]], found[[0, 1, 4]])
    assert bool(other[[2, 3, 5]].isnan().all())


@pytest.mark.parametrize(
    ("dtype", "layout"), crosswise([torch.float32, torch.float64], ["contiguous", "channels_last"])
)
def test_cells_that_are_not_finite(dtype: torch.dtype, layout: str) -> None:
    """They count where they weigh something, if only 1e-40, and nowhere else."""
    input = torch.randn(1, 3, 6, 7, generator=torch.Generator().manual_seed(3), dtype=dtype)
    input[0, 0, 2, 3], input[0, 1, 4, 4], input[0, 1, 4, 5], input[0, 2, 0, 6] = math.inf, math.nan, 1, -math.inf
    rois = rows(
        (0.0, 0.0, 7.0, 6.0),
        (2.0, 1.0, 4.0, 2.0),
        (3, 2, 6, 6),
        (1e-20, 1e-20, 1e-20, 1e-20),
        (5, 0, 9, 3),
        dtype=dtype,
    )
    found = check([lay_out(input, layout)], rois, None, Pooling("avg", (2, 2), (1.0, 1.0), 2, False))
    assert {math.inf, -math.inf} <= set(found.flatten().tolist())
    check([lay_out(input, layout)], rois, None, Pooling("avg", (3, 3), (1.0, 1.0), 0, True))
    corner = torch.ones(1, 1, 2, 2, dtype=dtype)
    corner[0, 0, 1, 1] = math.inf
    tiny = rows((1e-30, 1e-30, 1e-30, 1e-30), dtype=dtype)
    assert (
        check([lay_out(corner.expand(1, 2, 2, 2), layout)], tiny, None, Pooling("avg", (1, 1), (1.0, 1.0), 1, True))
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 4, 5), (2, 3, 0, 5)])
def test_calls_without_boxes_images_or_channels(shape: tuple[int, int, int, int]) -> None:
    input = torch.ones(shape)
    for rois in (torch.zeros(0, 5), torch.zeros(2, 5)):
        if 0 in shape[2:] and len(rois):
            with pytest.raises(ValueError, match="empty feature map"):
                pool([input], rois, None, Pooling("avg", (2, 2), (1.0, 1.0)))
            continue
        found = pool([input], rois, None, Pooling("avg", (2, 2), (1.0, 1.0)))
        assert found.shape == (len(rois), shape[1], 2, 2)
        assert bool(found.isnan().all() if shape[0] == 0 else (found == 1).all())


def test_a_box_is_pooled_alike_in_any_company() -> None:
    """The same bits alone, in another order and among more."""
    input, rois = generic_case(dtype=torch.float32)
    spec = Pooling("avg", (2, 3), (0.9, 0.9), 0, True)
    whole = pool([input], rois, None, spec)
    assert torch.equal(pool([input], rois[2:3], None, spec), whole[2:3])
    assert torch.equal(pool([input], rois.flip(0), None, spec), whole.flip(0))
