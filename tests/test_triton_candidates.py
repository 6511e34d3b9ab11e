"""Where the Triton kernels look for a maximum: their candidates against the samples of ``axis.py``."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from helpers import crosswise
from roialign import axis
from roialign.spec import Pooling
from test_differential import edges
from triton_device import DEVICE, needs_kernels

pytest.importorskip("triton")
pytestmark = needs_kernels

from roialign.backends.triton.candidates import Candidates, make_candidates  # noqa: E402


def rows_of(table: Candidates, k: int, along: int, p: int, length: int) -> Tensor:
    """``[3, S, L]``: what each sample of a bin that is listed weighs, and its slopes to either edge."""
    _, _, slot, count = table.bins[k, along, :, p].tolist()
    each = torch.zeros(3, count, length, dtype=torch.float64)
    for t, at in enumerate(range(slot, slot + count)):
        cell = int(table.cell[k, at])
        parts = (table.near, table.far), (-table.dlo, table.dlo), (-table.dhi, table.dhi)
        for values, (here, beyond) in zip(each, parts, strict=True):
            values[t, cell] = here[k, at]
            if beyond[k, at] != 0:
                values[t, cell + 1] = beyond[k, at]
    return each


def without_repeats(rows: Tensor) -> list[tuple[float, ...]]:
    """In their order, each row once: another that is equal changes no first maximum."""
    return list(dict.fromkeys(map(tuple, rows.tolist())))


def window_of(spec: Pooling, ends: tuple[Tensor, ...]) -> axis.Window:
    """Of a box along y."""
    return axis.align_window(*ends, spec.output_size[0], spec.scales[0], spec.sampling_ratio, spec.aligned)


def all_samples(spec: Pooling, ends: tuple[Tensor, ...], p: int, length: int) -> Tensor:
    """``[S, L]``: what each sample of a bin weighs."""
    window = window_of(spec, ends)
    index = torch.arange(int(window.grid), dtype=window.bin.dtype)[None, None]
    return axis.sample_weights(axis.sample_position(window, torch.full_like(index, p), index), length)[0, 0]


def assert_listed(found: Tensor, spec: Pooling, ends: tuple[Tensor, ...], p: int, length: int) -> None:
    """A bin's candidates: all its samples and their slopes, or those that ``axis.py`` lists."""
    count, window = found.shape[1], window_of(spec, ends)
    assert count <= max(8, 2 + 2 * (length + 2))
    if count < int(window.grid):
        weights = axis.sample_matrix(window, spec.output_size[0], length, axis.max_samples(length))[0][0, p].double()
        assert without_repeats(found[0]) == without_repeats(weights)
        return
    assert count == int(window.grid)
    if count:
        slopes = torch.autograd.functional.jacobian(lambda *ends: all_samples(spec, ends, p, length), ends)
        assert torch.equal(found[0], all_samples(spec, ends, p, length).double())
        for one, other in zip(found[1:], slopes, strict=True):
            near = (1e-12 if other.dtype == torch.float64 else 2e-6) * spec.scales[0]
            torch.testing.assert_close(one, other[..., 0].double(), rtol=0, atol=near)


@pytest.mark.parametrize(("rule", "box_dtype"), crosswise(["few", "adaptive", "many"], [torch.float32, torch.float64]))
def test_candidates_are_the_samples_of_the_rules(rule: str, box_dtype: torch.dtype) -> None:
    rng = random.Random(f"{rule} {box_dtype}")
    for _ in range(4):
        length, bins = rng.randint(1, 8), rng.randint(1, 5)
        ratio = {"few": rng.choice([1, 2, 3, 8]), "many": rng.choice([50, 100, 2**24 + 1, 2**55])}.get(rule, 0)
        scale, aligned = rng.choice([1.0, 0.3, 2.0]), rng.random() < 0.5
        spec = Pooling("max", (bins, 1), (scale, 1.0), ratio, aligned)
        along_y = [[(edge + 0.5 * aligned) / scale for edge in edges(rng, length)] for _ in range(3)]
        rois = torch.tensor([[0.0, 0, low, 1, high] for low, high in along_y], dtype=torch.float64).to(box_dtype)
        rois = rois[(rois.double() * scale).isfinite().all(1)]
        made = make_candidates([(1, 1, length, 1)], rois.to(DEVICE), None, spec, torch.float64, slopes=True)
        table = Candidates(*(each.cpu() for each in made))
        for k, row in enumerate(rois):
            ends = row[2, None], row[4, None]
            if not bool(axis.fits_float32(*ends, scale, length, ratio)):
                ends = ends[0].double(), ends[1].double()
            for p in range(bins):
                assert_listed(rows_of(table, k, 0, p, length), spec, ends, p, length)


def test_a_giant_box_lists_no_more_than_the_map_has() -> None:
    rois = torch.tensor([[0.0, -1e9, -1e9, 1e9, 1e9], [0.0, 1e9, 1e9, -1e9, -1e9]], device=DEVICE)
    spec = Pooling("max", (1, 3), (1.0, 1.0), 2**40, True)
    made = make_candidates([(1, 1, 5, 9)], rois, None, spec, torch.float32)
    assert made.cell.shape[1] < 200
    assert int(made.bins[:, 0, 3, 0].max()) <= 2 + 2 * (5 + 2)
