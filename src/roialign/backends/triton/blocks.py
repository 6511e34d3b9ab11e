"""How much one program works on: a fixed table, so that the same call gives the same bits in every run and captures.

Nothing is tuned while a program runs. The full blocks were the fastest of a dozen on an NVIDIA H100 (``docs/gpu.md``);
``tests/test_triton_compile.py`` holds what they compile to.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import mul
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .version import version


def cdiv(a: int, b: int) -> int:
    """Triton's own, outside of a kernel, takes the host 3 us."""
    return -(-a // b)


def next_power_of_2(number: int) -> int:
    """At least ``number``, which is at least 1."""
    return 1 << (number - 1).bit_length()


class Blocks(NamedTuple):
    """Of the forward kernels.

    Attributes:
        channels: of one program.
        cells: of one product along x, where the kernel makes one.
        warps: of one program.
    """

    channels: int
    cells: int
    warps: int


class Tile(NamedTuple):
    """Of the backward kernel.

    Attributes:
        height: cells that one program owns.
        width: likewise.
        channels: likewise.
        warps: of one program.
    """

    height: int
    width: int
    channels: int
    warps: int

    def number(self, heights: Sequence[int], widths: Sequence[int]) -> int:
        """Of all the maps of one image."""
        sizes = zip(heights, widths, strict=True)
        return sum(cdiv(height, self.height) * cdiv(width, self.width) for height, width in sizes)


FULL = 4  # programs for each multiprocessor: with fewer, smaller ones hide more of the memory's latency
# By kernel, by the bins along x of one program and by whether full blocks are programs enough.
FORWARD = {
    ("rows", 8, "full"): Blocks(128, 16, 1),
    ("rows", 8, "sparse"): Blocks(32, 16, 1),
    ("rows", 16, "full"): Blocks(64, 16, 1),
    ("rows", 16, "sparse"): Blocks(32, 16, 1),
    ("gather", 8, "full"): Blocks(64, 1, 4),
    ("gather", 8, "sparse"): Blocks(32, 1, 4),
    ("gather", 16, "full"): Blocks(32, 1, 4),
    ("gather", 16, "sparse"): Blocks(32, 1, 4),
    ("bins", 1, "full"): Blocks(64, 1, 2),
    ("bins", 1, "sparse"): Blocks(32, 1, 2),
}
SLOPES = Blocks(32, 16, 4)  # of the gradient to the boxes
BACKWARD = {"full": Tile(4, 8, 32, 1), "sparse": Tile(4, 8, 16, 1)}


def forward_blocks(out: Tensor, gathers: bool) -> Blocks:
    """For an output ``[K, C, *output_size]``; ``gathers`` where the kernel makes no product."""
    kernel = "gather" if gathers else "rows"
    (boxes, channels), (height, width) = out.shape[:2], out.shape[-2:]
    bins = bins_at_once(width)
    # A row of bins is a program's, or a whole box's where it gathers.
    programs = boxes * (1 if gathers else height) * cdiv(width, bins)
    programs *= cdiv(channels, FORWARD[kernel, bins, "full"].channels)
    blocks = FORWARD[kernel, bins, _size_of(programs, out.device, out.dtype)]
    return blocks._replace(channels=some_channels(channels, blocks.channels))


def bin_blocks(pooled: Tensor) -> Blocks:
    """For what is pooled, ``[K, C, *output_size]``, bin by bin."""
    boxes, channels = pooled.shape[:2]
    programs = boxes * pooled[0, 0].numel() * cdiv(channels, FORWARD["bins", 1, "full"].channels)
    blocks = FORWARD["bins", 1, _size_of(programs, pooled.device, pooled.dtype)]
    return blocks._replace(channels=some_channels(channels, blocks.channels))


def some_channels(channels: int, most: int) -> int:
    """Of a program, where there may be fewer than it could take."""
    return min(most, max(16, next_power_of_2(max(1, channels))))


def _size_of(programs: int, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """Of the blocks, were there so many programs of full ones. Float64 takes twice the registers forward."""
    enough = programs >= FULL * multiprocessors(device)
    return "full" if enough and dtype != torch.float64 else "sparse"


def backward_tile(
    images: int, channels: int, heights: Sequence[int], widths: Sequence[int], device: torch.device
) -> Tile:
    """For the gradient to maps ``[N, C, H, W]``, of these heights and widths."""
    tile = BACKWARD["full"]
    programs = images * tile.number(heights, widths) * cdiv(channels, tile.channels)
    return BACKWARD[_size_of(programs, device)]


def bins_at_once(bins: int) -> int:
    """How many bins along x one program takes, as many as a matrix product wants at least."""
    return min(16, max(8, next_power_of_2(bins)))


def bins_summed(bins: int) -> int:
    """The same where the product sums over bins: before Triton 3.8 there are no fewer than 16."""
    return max(bins_at_once(bins), 8 if version() >= (3, 8) else 16)


def offset_type(*blocks: int) -> tl.dtype:
    """Of the offsets within blocks that reach so far."""
    return tl.int64 if max(blocks) >= 2**31 else tl.int32


def forward_offset(maps: Sequence[Tensor], out: Tensor, channels: int) -> tl.dtype:
    """Where a program reads rows of so many channels of a map, and writes a box's bins of them."""
    reach = [channels * abs(each.stride(1)) + each.shape[-1] * abs(each.stride(-1)) for each in maps]
    return offset_type(*reach, channels * out.stride(1) + sum(map(mul, out.shape[2:], out.stride()[2:])))


@cache
def multiprocessors(device: torch.device) -> int:
    """How many run at once; any number will do where kernels are interpreted."""
    if device.type == "cpu":
        return 1
    properties = torch.get_device_module(device).get_device_properties(device)
    return int(getattr(properties, "multi_processor_count", 0) or getattr(properties, "gpu_subslice_count", 0) or 1)
