"""Maps times axis matrices, one axis after the other, as products of plain matrices.

They are not written as ``torch.einsum``: ONNX Runtime's operator of that name divides by zero, and the process dies,
where there is no box.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import tracing


def contract(maps: Tensor, matrices: Sequence[Tensor], sensitive: bool = False) -> Tensor:
    """``ay @ maps @ ax.T`` per box and channel.

    ``maps`` is ``[k, C, H, W]``, or ``[1, C, H, W]`` if the boxes share it. ``sensitive``: bin (p, q) takes one row of
    each matrix, and channels of its own, ``(c * PH + p) * PW + q``.
    """

    def product(maps: Tensor, *matrices: Tensor) -> Tensor:
        rank = len(matrices)
        if sensitive:
            size = [each.shape[1] for each in matrices]
            maps = maps.unflatten(-1 - rank, (maps.shape[-1 - rank] // math.prod(size), *size))
        for place, matrix in enumerate(matrices):
            shared = place == 0 and maps.dim() == 1 + rank * (1 + sensitive)  # then the product is each box's own
            if sensitive:
                maps = along_own(maps, matrix, place + 2 - shared, place - rank, shared)
            else:
                maps = along(maps, matrix, place - rank, shared)
        return dense(maps)

    return contracted(product, maps[0] if maps.shape[0] == 1 else maps, *matrices)


def dense(maps: Tensor) -> Tensor:
    """With the strides that shapes alone promise; ``contiguous()`` leaves an axis of one entry the one it came with."""
    return maps.clone(memory_format=torch.contiguous_format)


def along(maps: Tensor, matrix: Tensor, cell: int, shared: bool) -> Tensor:
    """``[k, ..., P, ...]``: the axis ``cell`` (counted from the end) of the maps times a matrix ``[k, P, L]``.

    The maps are ``[k, ..., L, ...]``, or without ``k`` if they are shared. They come first in the product, so that the
    last axis lies as it is wanted, except where they are shared.
    """
    out: Tensor
    last = maps.dim() - 1
    cell += last + 1  # PyTorch's old exporter to ONNX takes no axes from the end
    if shared:
        moved = maps.movedim(cell, 0)
        rows = matrix.flatten(0, 1).mm(moved.flatten(1)).unflatten(0, matrix.shape[:2])
        out = rows.unflatten(2, moved.shape[1:]).movedim(1, cell + 1)
    else:
        moved = maps.movedim(cell, last)
        others = moved.shape[1:-1]
        # All is said, since of no boxes nobody could infer the middle; by the matrix, whose sizes a tracer follows.
        rows = moved.reshape(matrix.shape[0], math.prod(others), matrix.shape[2])
        out = rows.bmm(matrix.transpose(1, 2)).unflatten(1, others).movedim(last, cell)
    return out


def along_own(maps: Tensor, matrix: Tensor, bin: int, cell: int, shared: bool) -> Tensor:
    """The same where each entry of the maps' axis ``bin`` has its own row of the matrix; the axis ``cell`` goes."""
    out: Tensor
    if shared:
        moved = maps.movedim((bin, cell), (0, -1))
        each = moved.flatten(1, -2).bmm(matrix.permute(1, 2, 0))  # [P, ..., k]
        out = each.unflatten(1, moved.shape[1:-1]).movedim((-1, 0), (0, bin + 1))
    else:
        moved = maps.movedim((bin, cell), (1, -1))
        each = moved.flatten(2, -2).flatten(0, 1).bmm(matrix.flatten(0, 1)[..., None])  # [k * P, ..., 1]
        out = each.squeeze(-1).unflatten(0, matrix.shape[:2]).unflatten(2, moved.shape[2:-1]).movedim(1, bin)
    return out


def contracted(product: Callable[..., Tensor], maps: Tensor, *weights: Tensor) -> Tensor:
    """``product(maps, *weights)``, linear in each; a cell of zero weight counts nothing even if it is not finite.

    A cell that is not finite has no slope: it gives nothing to the gradient to the box.
    """
    weights = tuple(weight.to(maps.dtype) for weight in weights)
    finite = maps.isfinite()
    if not tracing.hides_values(finite) and bool(finite.all()):
        return product(maps, *weights)
    zeroed = torch.where(finite, maps, 0)
    if not tracing.hides_values(maps):
        # Behind autograd's back: the gradient to a cell is its weight all the same. No graph can record that.
        zeroed = maps.clone()
        zeroed.detach().masked_fill_(~finite, 0)
    out = product(zeroed, *weights)
    flags = {torch.inf: maps == torch.inf, -torch.inf: maps == -torch.inf, torch.nan: maps.isnan()}
    weighs = [(each != 0).to(maps.dtype) for each in weights]
    for value, flag in flags.items():
        out = out + torch.where(product(flag.to(maps.dtype), *weighs) > 0, value, 0)
    return out
