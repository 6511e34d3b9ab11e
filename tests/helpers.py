"""What several test files share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

import forked
import roialign

READY = [name for name, status in roialign.backends.available().items() if status.ready]


def slow_but(quick: Iterable[str], names: Iterable[str]) -> list[Any]:
    """Parameters of which `make test` runs the quick ones, and `make test-all` the others."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def crosswise(first: Iterable[Any], second: Iterable[Any]) -> list[Any]:
    """Parameters: all pairs, of which `make test` runs so many that each value has its turn, test-all the rest."""
    firsts, seconds = list(first), list(second)
    few = min(len(firsts), len(seconds))
    return [
        pytest.param(one, other, marks=() if i % few == j % few else pytest.mark.slow)
        for i, one in enumerate(firsts)
        for j, other in enumerate(seconds)
    ]


# For tests on a backend each: a compiler takes many times as long for the reference's graph as for the one operator of
# the others.
reference_is_slow = pytest.mark.parametrize("backend", slow_but(set(READY) - {"reference"}, READY), indirect=True)

# Forward error allowed per unit of the map's magnitude: the bounds, and one rounding for the half types.
RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
DTYPES = tuple(RELATIVE)


def tolerance(input: Tensor) -> float:
    """Allowed absolute error of a value pooled from this map."""
    finite = input.detach().double().nan_to_num(0, 0, 0)
    return RELATIVE[input.dtype] * max(1.0, float(finite.abs().max()) if finite.numel() else 0.0)


def assert_pooled(actual: Tensor, expected: Tensor, input: Tensor) -> None:
    """The pooled values are those expected, to the tolerance of the map's dtype, and are of that dtype."""
    assert actual.dtype == input.dtype
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance(input), equal_nan=True)


def rows(*boxes: tuple[float, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """``[K, 1 + 2 * rank]`` boxes; of corners alone the batch index is 0."""
    full = [box if len(box) % 2 else (0, *box) for box in boxes]
    return torch.tensor(full, dtype=dtype).reshape(-1, len(full[0]) if full else 5)


def by_image(rois: Tensor, images: int) -> list[Tensor]:
    """Rows of boxes as a list of corners per image."""
    return [rois[rois[:, 0] == image, 1:] for image in range(images)]


def for_bins(input: Tensor, bins: int) -> Tensor:
    """The map with as many copies of each channel as a position-sensitive pooling has bins."""
    return input.repeat_interleave(bins, 1)


Rois = TypeVar("Rois", Tensor, list[Tensor])


def as_rotated(rois: Rois, angle: float = 0.4) -> Rois:
    """Boxes turned about their centres: ``[K, 5]`` as ``[K, 6]``, or lists of ``[L, 4]`` as lists of ``[L, 5]``."""
    if isinstance(rois, list):
        return [as_rotated(torch.nn.functional.pad(part, (1, 0)), angle)[:, 1:] for part in rois]
    index, low, high = rois[:, :1], rois[:, 1:3], rois[:, 3:]
    return torch.cat([index, low / 2 + high / 2, high - low, torch.full_like(index, angle)], 1)


def some_offset(rois: Tensor | list[Tensor], height: int, width: int) -> Tensor:
    """Offsets of the bins of these boxes, the same for each box."""
    each = torch.arange(2.0 * height * width).mul(1.7).sin().reshape(2, height, width)
    parts = rois if isinstance(rois, list) else [rois]
    return each.to(parts[0] if parts else each).expand(sum(map(len, parts)), -1, -1, -1)


def generic_case(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A small map ``[2, 2, 5, 6]`` of two images and six boxes in general position: no sample on a kink."""
    generator = torch.Generator().manual_seed(seed)
    input = torch.rand(2, 2, 5, 6, generator=generator, dtype=torch.float64).to(dtype)
    boxes = rows(
        (0, 0.61, 0.72, 4.13, 3.34),
        (1, -2.37, -1.91, 3.17, 2.23),
        (1, 3.07, 1.13, 9.71, 7.19),
        (0, 1.27, 2.31, 1.83, 2.97),
        (0, 4.43, 3.91, 1.37, 0.87),
        (1, -9.3, -8.1, -4.7, -3.3),
        dtype=dtype,
    )
    return input, boxes


def run_python(code: str, backend: str, *arguments: str, timeout: int = 240) -> str:
    """Run code in a Python of its own, so that a crash is a failed test and not the end of the run; its output."""
    status, said, complained = forked.run(code, arguments, {"ROIALIGN_BACKEND": backend}, timeout)
    assert status == 0, f"exit status {status}\n{said}\n{complained}"
    return said
