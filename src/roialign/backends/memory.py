"""Tensors by their memory: whether there is any behind them, and in which order it is laid out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..spec import too_large
from . import tracing

LAST = {
    4: torch.channels_last,
    5: torch.channels_last_3d,
}  # by a tensor's dimensions; with fewer there is no such order


def check_memory(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that reaches beyond its storage, as FSDP's freed parameters do: PyTorch would read on."""
    if torch.compiler.is_compiling() or tracing.transforms():
        return  # nothing is read yet
    if tensor.is_meta or type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.numel() == 0:
        return
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + last + 1) * tensor.itemsize
    held = tensor.untyped_storage().nbytes()
    if held < needed:
        raise ValueError(
            f"{name}: got a tensor of shape {tuple(tensor.shape)} with {held} bytes of memory; expected {needed}"
        )


def allocate(size: Sequence[int], like: Tensor, channels_last: bool) -> Tensor:
    """An output ``[K, C, *output_size]``, if there is memory for it."""
    try:
        if not channels_last:
            return like.new_empty(size)
        return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=LAST[len(size)])
    except RuntimeError as error:
        raise too_large(size) from error


def is_channels_last(tensor: Tensor) -> bool:
    """Channels_last and not also contiguous, as a map of one channel or one cell is."""
    return (
        not tensor.is_contiguous() and tensor.dim() in LAST and tensor.is_contiguous(memory_format=LAST[tensor.dim()])
    )


def laid_out_as(input: Tensor, out: Tensor) -> Tensor:
    """Channels_last in gives channels_last out; a transform of ``torch.func`` does not tell the layout."""
    if tracing.transforms() or not is_channels_last(input):
        return out
    return out.contiguous(memory_format=LAST[out.dim()])
