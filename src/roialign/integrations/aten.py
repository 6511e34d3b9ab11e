"""Our operators in plain ATen, for runtimes that know no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..boxes import whole_index
from ..spec import Pooling


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """Our operators as plain ATen: for ``ExportedProgram.run_decompositions`` and for ``make_fx``.

    What comes out is the reference: matrix products, on any device, with any number of boxes. It cannot raise, so a
    batch index that names no image gives NaN for its box, as on a GPU. All levels of a pyramid are pooled for every
    box, and a chosen one is kept.

    Example:
        >>> import torch, roialign
        >>> pooler = roialign.RoIAlign(output_size=1, spatial_scale=1.0, sampling_ratio=2)
        >>> example = torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]])
        >>> program = torch.export.export(pooler, example)
        >>> program = program.run_decompositions(roialign.decomposition_table())
        >>> {node.target.namespace for node in program.graph.nodes if node.op == "call_function"}
        {'aten'}

    Returns:
        Decompositions of our own operators only. For core ATen, which fewer operators make up, add PyTorch's:
        ``{**torch.export.default_decompositions(), **roialign.decomposition_table()}``.
    """
    operators = torch.ops.roialign
    return {operators.pool.default: _pool, operators.batch_index.default: whole_index}


def _pool(features: list[Tensor], rois: Tensor, level: Tensor | None, *fields: Any) -> Tensor:
    return reference.pool(features, rois, level, Pooling(*fields))
