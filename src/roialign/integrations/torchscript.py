"""``torch.jit.script``: what it compiles in the place of our functions, which are Python that it cannot read.

Each function gets an operator of PyTorch's dispatcher, ``torch.ops.roialign.roi_align`` and so on, that calls it, and a
twin in TorchScript's own language that calls the operator. So a scripted model makes the same checks, runs on the same
backends and has the same gradients. A saved one is loaded where roialign was imported.

One thing is not the same: TorchScript makes a list of one of a single number, so that in a script an ``output_size`` or
``spatial_scale`` of one number in a list counts as that number, on a map of any rank. Python refuses ``(7,)`` but for a
map ``[N, C, L]``.
"""

# No annotations from __future__: TorchScript reads them as they stand.
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from .. import functional, levels
from ..deformable import deform_roi_pool
from ..rotated import roi_align_rotated

if TYPE_CHECKING:
    T = TypeVar("T")
    BroadcastingList1: TypeAlias = T | list[T]
else:  # TorchScript knows it by this name
    from torch._jit_internal import BroadcastingList1

_ONE = "Tensor input, Tensor[] boxes, bool listed, SymInt[] output_size, float[] spatial_scale"
_PYRAMID = "Tensor[] features, str[] names, Tensor[] boxes, SymInt[] image_shapes, str[] featmap_names"


def _numbers(given: Sequence[Any]) -> Any:
    """A list of one as its number, whose place along each axis only the function knows."""
    return given[0] if isinstance(given, list) and len(given) == 1 else given


def _as_list(boxes: Tensor | list[Tensor]) -> list[Tensor]:
    if isinstance(boxes, Tensor):
        return [boxes]
    return boxes


def _roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList1[int],
    spatial_scale: BroadcastingList1[float] = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    mode: str = "avg",
) -> Tensor:
    listed = not isinstance(boxes, Tensor)
    pooled: Tensor = torch.ops.roialign.roi_align(
        input, _as_list(boxes), listed, output_size, spatial_scale, sampling_ratio, aligned, mode
    )
    return pooled


def _prroi_pool(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList1[int],
    spatial_scale: BroadcastingList1[float] = 1.0,
) -> Tensor:
    listed = not isinstance(boxes, Tensor)
    pooled: Tensor = torch.ops.roialign.prroi_pool(input, _as_list(boxes), listed, output_size, spatial_scale)
    return pooled


def _roi_pool(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList1[int],
    spatial_scale: BroadcastingList1[float] = 1.0,
) -> Tensor:
    listed = not isinstance(boxes, Tensor)
    pooled: Tensor = torch.ops.roialign.roi_pool(input, _as_list(boxes), listed, output_size, spatial_scale)
    return pooled


def _ps_roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList1[int],
    spatial_scale: BroadcastingList1[float] = 1.0,
    sampling_ratio: int = -1,
) -> Tensor:
    listed = not isinstance(boxes, Tensor)
    pooled: Tensor = torch.ops.roialign.ps_roi_align(
        input, _as_list(boxes), listed, output_size, spatial_scale, sampling_ratio
    )
    return pooled


def _ps_roi_pool(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList1[int],
    spatial_scale: BroadcastingList1[float] = 1.0,
) -> Tensor:
    listed = not isinstance(boxes, Tensor)
    pooled: Tensor = torch.ops.roialign.ps_roi_pool(input, _as_list(boxes), listed, output_size, spatial_scale)
    return pooled


def _roi_align_rotated(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList1[int],
    spatial_scale: BroadcastingList1[float] = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = True,
    clockwise: bool = False,
    unit: str = "degrees",
) -> Tensor:
    listed = not isinstance(boxes, Tensor)
    pooled: Tensor = torch.ops.roialign.roi_align_rotated(
        input, _as_list(boxes), listed, output_size, spatial_scale, sampling_ratio, aligned, clockwise, unit
    )
    return pooled


def _deform_roi_pool(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    offset: Tensor | None,
    output_size: BroadcastingList1[int],
    spatial_scale: BroadcastingList1[float] = 1.0,
    sampling_ratio: int = -1,
    gamma: float = 0.1,
) -> Tensor:
    listed = not isinstance(boxes, Tensor)
    pooled: Tensor = torch.ops.roialign.deform_roi_pool(
        input, _as_list(boxes), listed, output_size, spatial_scale, sampling_ratio, gamma, offset
    )
    return pooled


def _flat(shapes: list[tuple[int, int]] | list[tuple[int, int, int]] | list[tuple[int]]) -> list[int]:
    sizes: list[int] = []
    if isinstance(shapes, list[tuple[int, int]]):  # type: ignore[misc]
        for height, width in shapes:  # type: ignore[misc]
            sizes += [height, width]
    elif isinstance(shapes, list[tuple[int, int, int]]):
        for depth, height, width in shapes:
            sizes += [depth, height, width]
    else:
        for shape in shapes:
            sizes.append(shape[0])
    return sizes


def _multi_scale_roi_align(
    x: dict[str, Tensor],
    boxes: list[Tensor],
    image_shapes: list[tuple[int, int]] | list[tuple[int, int, int]] | list[tuple[int]],
    featmap_names: list[str],
    output_size: BroadcastingList1[int],
    sampling_ratio: int,
    canonical_scale: float,
    canonical_level: int,
    aligned: bool,
    kind: str,
) -> Tensor:
    pooled: Tensor = torch.ops.roialign.multi_scale_roi_align(
        list(x.values()),
        list(x.keys()),
        boxes,
        _flat(image_shapes),
        featmap_names,
        output_size,
        sampling_ratio,
        canonical_scale,
        canonical_level,
        aligned,
        kind,
    )
    return pooled


def _given(boxes: list[Tensor], listed: bool) -> Tensor | list[Tensor]:
    """No operator takes a tensor or a list of them, so a flag tells which it was."""
    return boxes if listed else boxes[0]


def _of_a_pyramid(
    features: list[Tensor],
    names: list[str],
    boxes: list[Tensor],
    sizes: list[int],
    featmap_names: list[str],
    output_size: list[int],
    *how: Any,
) -> Tensor:
    named = dict(zip(names, features, strict=True))
    rank = features[0].dim() - 2
    shapes = [tuple(sizes[i : i + rank]) for i in range(0, len(sizes), rank)]
    return levels.multi_scale_roi_align(named, boxes, shapes, featmap_names, _numbers(output_size), *how)


def register(
    function: Callable[..., Tensor],
    twin: Callable[..., Tensor],
    arguments: str,
    call: Callable[..., Tensor] | None = None,
) -> None:
    """Let TorchScript compile ``twin`` for ``function``.

    Args:
        function: ours; its name becomes the operator's.
        twin: calls the operator, in TorchScript's language, with the function's own arguments.
        arguments: of the operator, as its schema has them.
        call: the operator itself, which calls the function; None where only the boxes are handed over in another way.
    """
    if call is None:

        def call(
            input: Tensor, boxes: list[Tensor], listed: bool, size: list[int], scale: list[float], *how: Any
        ) -> Tensor:
            return function(input, _given(boxes, listed), _numbers(size), _numbers(scale), *how)

    _library.define(f"{function.__name__}({arguments}) -> Tensor")
    _library.impl(function.__name__, call, "CompositeImplicitAutograd")
    function.__prepare_scriptable__ = lambda: twin  # type: ignore[attr-defined]


_library = torch.library.Library("roialign", "FRAGMENT")
register(
    functional.roi_align,
    _roi_align,
    f"{_ONE}, SymInt sampling_ratio, bool aligned, str mode",
    lambda input, boxes, listed, size, scale, ratio, aligned, mode: functional.roi_align(
        input, _given(boxes, listed), _numbers(size), _numbers(scale), ratio, aligned, mode=mode
    ),
)
register(functional.prroi_pool, _prroi_pool, _ONE)
register(functional.roi_pool, _roi_pool, _ONE)
register(functional.ps_roi_align, _ps_roi_align, f"{_ONE}, SymInt sampling_ratio")
register(functional.ps_roi_pool, _ps_roi_pool, _ONE)
register(
    roi_align_rotated,
    _roi_align_rotated,
    f"{_ONE}, SymInt sampling_ratio, bool aligned, bool clockwise, str unit",
    lambda input, boxes, listed, size, scale, ratio, aligned, clockwise, unit: roi_align_rotated(
        input,
        _given(boxes, listed),
        _numbers(size),
        _numbers(scale),
        ratio,
        aligned=aligned,
        clockwise=clockwise,
        unit=unit,
    ),
)
register(
    deform_roi_pool,
    _deform_roi_pool,
    f"{_ONE}, SymInt sampling_ratio, float gamma, Tensor? offset",
    lambda input, boxes, listed, size, scale, ratio, gamma, offset: deform_roi_pool(
        input, _given(boxes, listed), offset, _numbers(size), _numbers(scale), ratio, gamma
    ),
)
register(
    levels.multi_scale_roi_align,
    _multi_scale_roi_align,
    f"{_PYRAMID}, SymInt[] output_size, SymInt sampling_ratio, float canonical_scale, int canonical_level, "
    "bool aligned, str kind",
    _of_a_pyramid,
)
