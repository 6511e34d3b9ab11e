"""Where one way of computing takes over from another: what float32 rounds to nothing, where positions become float64,
where samples are counted instead of visited. Expected values are worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helpers import rows
from roialign import backends, prroi_pool, roi_align

FLOAT_CELLS = 2**23  # from here on a float32 has no fraction


@pytest.mark.parametrize("share", [0.4, 0.5, 0.51, 0.9, 1.1])
def test_a_weight_that_float32_rounds_to_zero_counts_nothing(backend: str, share: float) -> None:
    """A box that reaches ``2 w`` beyond cell 0 gives cell 1 the weight w, here about the least float32."""
    assert backend in backends.available()
    weight = share * 2.0**-149
    row = torch.tensor([0.0, math.inf]).expand(1, 1, 2, 2)
    pooled = prroi_pool(row, rows((0, 0, 2 * weight, 1)), 1).item()
    assert pooled == (math.inf if np.float32(weight) > 0 else 0)


@pytest.mark.parametrize(
    ("length", "ratio", "expected"),
    [(FLOAT_CELLS, 4, 0.25), (FLOAT_CELLS + 1, 4, 0), (4, FLOAT_CELLS, 0.25), (4, FLOAT_CELLS + 1, 0)],
)
def test_float32_positions_end_with_the_length_or_the_grid(length: int, ratio: int, expected: float) -> None:
    """Samples from -1 - 2**-22 to -1, which float32 has in two steps: it rounds the last quarter of them onto the
    border, which is inside, and float64 none."""
    ones = torch.ones(1).expand(1, 1, length)
    box = torch.tensor([[0, -0.5 - 2.0**-22, -0.5]])
    with backends.use("native"):
        assert roi_align(ones, box, 1, 1.0, ratio, aligned=True).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        # Of the size 2**24 - 2.5 float32 makes 2**24 - 2, so the middle of a float32 box lies a quarter higher.
        (-FLOAT_CELLS, FLOAT_CELLS - 2.5, 1),  # at -1, on the border, worth cell 0
        (-FLOAT_CELLS + 2.5, FLOAT_CELLS, 2.5),  # at 1.5
        # Of 2**24 - 0.5 it would make 2**24, but here positions are float64.
        (-FLOAT_CELLS - 1, FLOAT_CELLS - 1.5, 0),  # at -1.25, outside
        (-FLOAT_CELLS + 1.5, FLOAT_CELLS + 1, 2.25),  # at 1.25
    ],
)
def test_float32_positions_end_with_a_far_edge(backend: str, low: float, high: float, expected: float) -> None:
    assert backend in backends.available()
    for scale in 1.0, 0.25:
        box = torch.tensor([[0, low / scale, high / scale]])
        assert roi_align(torch.tensor([[[1.0, 2, 3, 4]]]), box, 1, scale, 1).item() == expected


@pytest.mark.parametrize("ratio", [2, 20])
@pytest.mark.parametrize(("low", "high"), [(1.5, 6.5), (6.5, 1.5), (4.5, 4.25)])
def test_of_equal_samples_the_first_has_the_gradient(backend: str, low: float, high: float, ratio: int) -> None:
    """On a map of ones: the first one as the box goes, be the box inverted, be samples visited or counted."""
    assert backend in backends.available()
    ones = torch.ones(1, 1, 8, dtype=torch.float64, requires_grad=True)
    roi_align(ones, rows((low, high)), 1, 1.0, ratio, aligned=True, mode="max").sum().backward()
    first = low - 0.5 + (high - low) / (2 * ratio)
    cell = math.floor(first)
    expected = torch.zeros(8, dtype=torch.float64)
    expected[cell : cell + 2] = torch.tensor([cell + 1 - first, first - cell], dtype=torch.float64)
    assert ones.grad is not None
    torch.testing.assert_close(ones.grad[0, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ratio", [2, 20])
def test_a_maximum_without_extent_is_its_first_sample(backend: str, ratio: int) -> None:
    """All samples lie in one place, at 2.25 of a ramp; the first one follows the lower edge the most."""
    assert backend in backends.available()
    ramp = torch.arange(8.0, dtype=torch.float64)[None, None]
    box = rows((2.75, 2.75)).requires_grad_()
    (grad,) = torch.autograd.grad(roi_align(ramp, box, 1, 1.0, ratio, aligned=True, mode="max").sum(), box)
    assert grad[0].tolist() == pytest.approx([0, 1 - 0.5 / ratio, 0.5 / ratio])
