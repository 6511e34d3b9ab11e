"""What the kernels are told of the maps: sizes, scales and strides, in tuples with one entry for each level.

Triton builds a kernel anew where an integer becomes 1, becomes or ceases to be a multiple of 16, or needs more bits,
and within a tuple nothing can tell it not to. Images of many sizes would then take a build each, seconds long. So
sizes, and strides that follow from them, travel as odd numbers above 1; and a scale, a float64 that Triton would take
for a float32, as the two halves of its bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import triton
import triton.language as tl
from torch import Tensor


def coded(numbers: Iterable[int]) -> tuple[int, ...]:
    """Sizes or strides, for :func:`decoded`."""
    return tuple([2 * number + 3 for number in numbers])


def halves(scales: Sequence[float]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The upper and the lower 32 bits of each, for :func:`scale_of`."""
    bits = struct.unpack(f"<{2 * len(scales)}i", struct.pack(f"<{len(scales)}d", *scales))
    return bits[1::2], bits[::2]


def strides_of(maps: Sequence[Tensor], last: bool) -> tuple[tuple[int, ...], ...]:
    """Along n, c and the axes, for :func:`map_of`. With channels last all but one are multiples of their number."""
    strides = tuple(zip(*[each.stride() for each in maps], strict=True))
    return strides if last else (*map(coded, strides[:-1]), strides[-1])


def as_volumes(maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps ``[N, C, H, W]`` as volumes of depth 1, and volumes as they are."""
    return [each if each.dim() == 5 else each.unsqueeze(2) for each in maps]


@triton.jit
def decoded(code):
    """The number."""
    return (code - 3) >> 1


@triton.jit
def pick(values, one):
    """One map's of a tuple of scalars: there are few enough for a chain of selects."""
    chosen = values[0]
    for i in tl.static_range(1, len(values)):
        chosen = tl.where(one == i, values[i], chosen)
    return chosen


@triton.jit
def size_of(sizes, one):
    """One map's height or width."""
    return decoded(pick(sizes, one)).to(tl.int32)


@triton.jit
def scale_of(upper, lower, one):
    """One map's scale along one axis, in float64."""
    none = (one * 0).to(tl.int64)
    bits = ((none + pick(upper, one)) << 32) | ((none + pick(lower, one)) & tl.full([], 0xFFFFFFFF, tl.int64))
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def map_of(boxes, k, maps, sn, sc, sh, sw, c0, LAST: tl.constexpr, AXES: tl.constexpr = 2):
    """A box's image, where channel c0 of that image begins in the box's map, and the map's strides along c, y and x."""
    image = tl.load(boxes + k * (3 * AXES) + 2)
    one = tl.load(boxes + k * (3 * AXES) + 5)
    along_n = pick(sn, one)
    channel = pick(sc, one)
    down = pick(sh, one)
    if not LAST:
        along_n = decoded(along_n)
        channel = decoded(channel)
        down = decoded(down)
    base = pick(maps, one) + image.to(tl.int64) * along_n + c0 * channel
    return image, base, channel, down, pick(sw, one)


@triton.jit
def depth_stride(boxes, k, sd, LAST: tl.constexpr, DEEP: tl.constexpr):
    """The stride along z of a box's map, a volume; of other maps nobody asks for it."""
    stride = k * 0
    if DEEP:
        stride = pick(sd, tl.load(boxes + k * 9 + 5))
        stride = stride if LAST else decoded(stride)
    return stride
