"""``torch.onnx.export(dynamo=False)``, the exporter built on ``torch.jit.trace``: the nodes that the new one gets.

It asks no table of the caller, so what it needs is registered when roialign is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.onnx import JitScalarType, symbolic_helper  # type: ignore[attr-defined]

from .onnx import INT64, write_pool

OPSET = 16  # the first whose RoiAlign says where a pixel's centre lies


class _Nodes:
    """ONNX's operators as methods, on the old exporter's graph."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def node(*inputs: Any, **attributes: Any) -> Any:
            values = [self._value(each) for each in inputs]
            return self.graph.op(name, *values, **{_typed(key, value): value for key, value in attributes.items()})

        return node

    def _value(self, input: Any) -> Any:
        """A value of the graph; numbers become a constant."""
        if isinstance(input, int | list):
            return self.graph.op("Constant", value_t=torch.tensor(input))
        return input


def _typed(attribute: str, value: Any) -> str:
    """The old exporter wants an attribute's type in its name."""
    first = value[0] if isinstance(value, list) else value
    return f"{attribute}_{ {int: 'i', float: 'f', str: 's'}[type(first)] }"


def _dtype_of(value: Any) -> int:
    dtype: Any = JitScalarType.from_value(value).onnx_type()
    return int(dtype)


@symbolic_helper.parse_args("v", "v", "v", "s", "is", "fs", "i", "b")
def _pool(
    graph: Any,
    features: Any,
    rois: Any,
    level: Any,
    kind: str,
    output_size: list[int],
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
) -> Any:
    if graph.opset < OPSET:
        raise NotImplementedError(
            f"roialign: opset_version is {graph.opset}; only from {OPSET} on does ONNX's RoiAlign say where a pixel's "
            f"centre lies. Pass opset_version={OPSET} or more."
        )
    maps = symbolic_helper._unpack_list(features)
    box_level = None if symbolic_helper._is_none(level) else level
    how = (kind, output_size, scales, sampling_ratio, aligned)
    return write_pool(_Nodes(graph), _dtype_of, maps, rois, box_level, *how)


torch.onnx.register_custom_op_symbolic("roialign::pool", _pool, 9)  # type: ignore[attr-defined]


@symbolic_helper.parse_args("v", "i")
def _batch_index(graph: Any, index: Any, images: int) -> Any:
    """Of the reference, where somebody traces that: -1 for what names no image."""
    floating = _dtype_of(index)
    zero, many = (graph.op("Cast", graph.op("Constant", value_t=torch.tensor(n)), to_i=floating) for n in (0, images))
    named = graph.op("And", graph.op("GreaterOrEqual", index, zero), graph.op("Less", index, many))
    whole = graph.op("And", named, graph.op("Equal", graph.op("Floor", index), index))
    none = graph.op("Cast", graph.op("Constant", value_t=torch.tensor(-1)), to_i=floating)
    return graph.op("Cast", graph.op("Where", whole, index, none), to_i=INT64)


torch.onnx.register_custom_op_symbolic("roialign::batch_index", _batch_index, 9)  # type: ignore[attr-defined]
