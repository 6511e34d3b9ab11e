"""The batch index of each box, checked by an operator of its own: so a graph checks the values that it really gets."""

from __future__ import annotations

import torch
from torch import Tensor

from ..boxes import raise_bad_index, whole_index
from .memory import check_memory


@torch.library.custom_op("roialign::batch_index", mutates_args=())
def batch_index(column: Tensor, images: int) -> Tensor:
    """Check the rois' batch index column against the number of images.

    Returns:
        int64 of the column's shape; -1 marks an invalid index, on devices where looking would mean waiting.

    Raises:
        IndexError: on a CPU, naming the first invalid row, its value and the number of images.
    """
    if column is None:  # which PyTorch lets pass for a tensor
        raise TypeError("column: got None; expected a tensor")
    if column.dim() == 0 or column.dtype.is_complex or column.dtype == torch.bool:
        raise ValueError(
            f"column: got a tensor of shape {tuple(column.shape)} and {column.dtype}; "
            f"expected at least one axis of real numbers"
        )
    check_memory("column", column)
    index = whole_index(column, images)
    if column.device.type == "cpu" and bool((index < 0).any()):
        position = int((index < 0).flatten().nonzero()[0])
        raise_bad_index(position % column.shape[-1], float(column.flatten()[position]), images)
    return index


@batch_index.register_fake
def _(column: Tensor, images: int) -> Tensor:
    return torch.empty_like(column, dtype=torch.int64)


def _batch_index_vmap(
    info: object, in_dims: tuple[int | None, ...], column: Tensor, images: int
) -> tuple[Tensor, int | None]:
    moved = column.movedim(in_dims[0] or 0, 0)  # elementwise; the last dimension stays that of the rows
    return batch_index(moved, images), 0


torch.library.register_vmap("roialign::batch_index", _batch_index_vmap)
