"""The operators, whatever device runs them: schema, shapes for tracing, autograd, vmap.

    torch.ops.roialign.pool           pooled
    torch.ops.roialign.pool_grad      gradient to the maps: the transposed contraction
    torch.ops.roialign.pool_box_grad  gradient to the rois: the contraction with the matrices' derivative

A backend hands in its device's kernels with :func:`register`. What no kernel computes is the reference's: forward-mode
AD, functorch's gradients, second derivatives that involve the boxes, and devices without kernels, where a recorded
graph may run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..spec import KINDS, MAPS, MOST_BINS, RANKS, SIZES, Pooling, check_kind
from . import gather, reference, tracing  # noqa: F401, ``gather`` adds its kinds to the reference
from .index import batch_index
from .memory import LAST, allocate, is_channels_last

Result = TypeVar("Result")


class Kernels(NamedTuple):
    """What a device computes. Anybody may call the operators, so that nothing here was checked by ``functional``.

    Attributes:
        serve: whether there are kernels for this pooling; the reference serves the others.
        pool: of maps, rois, level and spec. Forward: :func:`make_output`, filled.
        pool_grad: of grad, maps, shapes, channels_last, rois, level and spec. Gradient to the maps, which have these
            shapes; the maps are there only where a maximum was taken.
        pool_box_grad: of grad, maps, rois, level and spec. Gradient to the rois, ``[K, columns]``; that of the batch
            index is 0.
    """

    serve: Callable[[Pooling], bool]
    pool: Callable[[list[Tensor], Tensor, Tensor | None, Pooling], Tensor]
    pool_grad: Callable[[Tensor, list[Tensor], list[int], bool, Tensor, Tensor | None, Pooling], list[Tensor]]
    pool_box_grad: Callable[[Tensor, list[Tensor], Tensor, Tensor | None, Pooling], Tensor]


_kernels: dict[str, Kernels] = {}  # by type of device


def register(device: str, kernels: Kernels) -> None:
    """Let these kernels run the operators on a type of device."""

    def pool(features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
        serve = kernels.pool if kernels.serve(spec) else _pool_anywhere
        return serve(features, rois, level, spec)

    _kernels[device] = kernels
    anything = kernels._replace(pool=pool)
    for name in _NAMES:
        _library.impl(name, _unpacked(getattr(anything, name)), device.upper())


def _unpacked(kernel: Callable[..., Result]) -> Callable[..., Result]:
    """The dispatcher hands over the fields of a :class:`Pooling` one by one."""
    return lambda *args: kernel(*args[:-_FIELDS], Pooling(*args[-_FIELDS:]))


def _packed(operator: Callable[..., Result]) -> Callable[..., Result]:
    """And takes them so."""
    return lambda *args: operator(*args[:-1], *args[-1])


def call(kernels: Kernels, features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    """The operator, or in plain eager mode what it comes to: dispatching in Python outweighs a small call."""
    if tracing.differentiates_forward():
        return reference.pool(features, rois, level, spec)
    if tracing.watched(*features, rois):
        return DISPATCHED.pool(features, rois, level, spec)
    if torch.is_grad_enabled() and tracing.any_requires_grad(*features, rois):
        return _EagerPool.apply(kernels, rois, level, spec, *features)  # type: ignore[no-any-return]
    return kernels.pool(features, rois, level, spec)


def known(spec: Pooling) -> bool:
    """Whether there is such a pooling."""
    return spec.rank in RANKS and spec.kind in KINDS


# Autograd.


def _save(ctx: Any, features: Sequence[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> None:
    # What is wanted is settled here: requires_grad of a leaf may be another when the backward pass runs.
    ctx.wanted = [feature.requires_grad for feature in features]
    ctx.wants_boxes = rois.requires_grad
    keep = ctx.wants_boxes or KINDS[spec.kind].maximum
    ctx.save_for_backward(rois, level, *(features if keep else ()))
    ctx.shapes = [size for feature in features for size in feature.shape]
    ctx.channels_last = is_channels_last(features[0])
    ctx.spec = spec


def _gradients(ctx: Any, grad: Tensor, kernels: Kernels | None) -> tuple[Sequence[Tensor | None], Tensor | None]:
    """Gradients to the maps and to the rois, themselves differentiable."""
    rois, level, *features = ctx.saved_tensors
    twice = ctx.wants_boxes and torch.is_grad_enabled()
    if grad.is_meta:
        kernels = DISPATCHED
    if twice or tracing.batches(grad) or kernels is None or not kernels.serve(ctx.spec):
        return _reference_gradients(ctx, grad, features, rois, level)
    if torch.is_grad_enabled() or tracing.watched(grad, rois):
        kernels = DISPATCHED
    grads: Sequence[Tensor | None] = [None] * len(ctx.wanted)
    if any(ctx.wanted):
        values = features if KINDS[ctx.spec.kind].maximum else []
        grads = kernels.pool_grad(grad, values, ctx.shapes, ctx.channels_last, rois, level, ctx.spec)
    return grads, kernels.pool_box_grad(grad, features, rois, level, ctx.spec) if ctx.wants_boxes else None


def _reference_gradients(
    ctx: Any, grad: Tensor, features: Sequence[Tensor], rois: Tensor, level: Tensor | None
) -> tuple[Sequence[Tensor | None], Tensor | None]:
    """The same by the reference's graph: differentiable in everything, and made of operators that batch."""
    if not features:  # not kept, because their values do not matter
        # Not of grad, which may be a batch of gradients.
        sizes = _by_map(ctx.shapes, ctx.spec.rank)
        features = [torch.zeros(size, dtype=grad.dtype, device=grad.device) for size in sizes]

    def leaf(tensor: Tensor, wanted: bool) -> Tensor:
        return tensor if tensor.requires_grad == wanted else tensor.detach().requires_grad_(wanted)

    again = torch.is_grad_enabled()
    inputs = [*map(leaf, features, ctx.wanted), leaf(rois, ctx.wants_boxes)]
    with torch.enable_grad():
        pooled = reference.pool(inputs[:-1], inputs[-1], level, ctx.spec)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    found = torch.autograd.grad(pooled, wanted, grad, create_graph=again, allow_unused=True, materialize_grads=True)
    each = iter(found)
    *grads, box_grad = [next(each) if tensor.requires_grad else None for tensor in inputs]
    return grads, box_grad


def _pool_anywhere(features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    """The operator where no kernel of ours is, as on a GPU that runs a graph which was recorded elsewhere."""
    for tensor in (*features, rois, *([] if level is None else [level])):
        if not isinstance(tensor, Tensor) or tensor.is_quantized or tensor.layout != torch.strided:
            what = (
                f"a {tensor.layout} tensor of {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            )
            raise TypeError(f"roialign: got {what}; expected dense, not quantised tensors")
    _pooled_size(features, rois, spec)
    if rois.shape[1] != spec.columns:
        raise ValueError(f"rois: got a tensor of shape {tuple(rois.shape)}; expected [K, {spec.columns}]")
    if len(spec.scales) != spec.rank * len(features):
        raise ValueError(f"scales: got {list(spec.scales)}; expected {spec.rank} for each of {len(features)} maps")
    return reference.pool(features, rois, level, spec)


class _EagerPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, rois: Tensor, level: Tensor | None, spec: Pooling, *features: Tensor
    ) -> Tensor:
        _save(ctx, features, rois, level, spec)
        ctx.kernels = kernels
        return kernels.pool(list(features), rois, level, spec)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads, box_grad = _gradients(ctx, grad, ctx.kernels)
        return None, box_grad, None, None, *grads


def _setup_pool(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, level, *fields = inputs
    _save(ctx, features, rois, level, Pooling(*fields))


def _backward_pool(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *_gradients(ctx, grad, _kernels.get(grad.device.type)), None, None, None, None, None, None


def _setup_pool_grad(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, features, shapes, _, rois, level, *fields = inputs
    ctx.save_for_backward(rois, level, *features)
    ctx.shapes, ctx.spec = shapes, Pooling(*fields)


def _backward_pool_grad(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    """The operator is linear in the maps, so the gradient of its transpose is itself; a maximum's choice stays."""
    rois, level, *features = ctx.saved_tensors
    sizes = _by_map(ctx.shapes, ctx.spec.rank)
    like = next(grad for grad in grads if grad is not None)
    full = [like.new_zeros(size) if grad is None else grad for grad, size in zip(grads, sizes, strict=True)]
    if not features:
        return DISPATCHED.pool(full, rois, level, ctx.spec), [], *[None] * 9
    with torch.enable_grad():
        at = [feature.detach().requires_grad_() for feature in features]
        pooled = reference.pool(at, rois.detach(), level, ctx.spec)
        weight = torch.zeros_like(pooled, requires_grad=True)
        transposed = torch.autograd.grad(
            pooled, at, weight, create_graph=True, allow_unused=True, materialize_grads=True
        )
        (out,) = torch.autograd.grad(transposed, weight, full)
    return out, [None] * len(features), *[None] * 9


def _vmap_pool(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    """The batch becomes part of the images and of the boxes."""
    features, rois, level, *fields = args
    size = info.batch_size

    def spread(tensor: Tensor, dim: int | None) -> Tensor:
        return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    rois = spread(rois, in_dims[1])
    images = features[0].shape[1 if in_dims[0][0] == 0 else 0]
    batch_index(rois[..., 0], images)  # now, while a row is the caller's row and a batch has only its own images
    if level is not None:
        level = spread(level, in_dims[2]).flatten()
    if any(dim is not None for dim in in_dims[0]):
        features = [spread(*pair).flatten(0, 1) for pair in zip(features, in_dims[0], strict=True)]
        if size * images > 2**24:  # float32 counts no further
            rois = rois.double()
        shift = torch.arange(size, dtype=rois.dtype, device=rois.device)[:, None, None] * images
        rois = torch.cat([rois[..., :1] + shift, rois[..., 1:]], -1)
    out = DISPATCHED.pool(features, rois.flatten(0, 1).contiguous(), level, Pooling(*fields))
    return out.reshape(size, rois.shape[1], *out.shape[1:]), 0


def _by_map(shapes: list[int], rank: int) -> list[list[int]]:
    """The shape of each map; the operators take them in one list."""
    return [shapes[i : i + rank + 2] for i in range(0, len(shapes), rank + 2)]


def make_output(features: list[Tensor], rois: Tensor, spec: Pooling) -> Tensor:
    """An output of the right shape, dtype and layout."""
    size = _pooled_size(features, rois, spec)
    return allocate(size, features[0], is_channels_last(features[0]))


def _pooled_size(features: list[Tensor], rois: Tensor, spec: Pooling) -> tuple[int, ...]:
    """The output's shape, once what it hangs on was checked."""
    if not features:
        raise ValueError("features: got no maps; expected at least one")
    first = features[0]
    if first is None or rois is None:
        raise none_given("rois" if rois is None else "features[0]")
    output_size, rank = spec.output_size, len(spec.output_size)
    ranks = KINDS[check_kind(spec.kind)].ranks
    if rank not in ranks or min(output_size) < 1 or max(output_size) > MOST_BINS:
        forms = " or ".join(SIZES[each] for each in ranks)
        raise ValueError(f"output_size: got {output_size}; expected {forms}, each from 1 to 2**24")
    if first.dim() != rank + 2:
        shape = tuple(first.shape)
        raise ValueError(f"features[0]: got a tensor of shape {shape}; expected {MAPS[rank]} for {output_size=}")
    if rois.dim() != 2:
        raise ValueError(f"rois: got a tensor of shape {tuple(rois.shape)}; expected [K, {spec.columns}]")
    return (rois.shape[0], spec.pooled_channels(first.shape[1]), *output_size)


def make_gradients(grad: Tensor, shapes: list[int], channels_last: bool, rank: int) -> list[Tensor]:
    """Gradients to maps, of the right shape, dtype and layout."""
    if grad is None:
        raise none_given("grad")
    if not shapes or rank not in RANKS or len(shapes) % (rank + 2) or any(length < 0 for length in shapes):
        raise ValueError(
            f"shapes: got {shapes}; expected {MAPS.get(rank, 'the shape')}, none negative, of each map in turn"
        )
    layout = LAST.get(rank + 2, torch.contiguous_format) if channels_last else torch.contiguous_format
    sizes = _by_map(shapes, rank)
    try:
        return [torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=layout) for size in sizes]
    except RuntimeError as error:
        raise ValueError(f"shapes: got {shapes}; expected maps that fit into memory") from error


def none_given(name: str) -> TypeError:
    """For None in the place of a tensor, which PyTorch lets pass."""
    return TypeError(f"{name}: got None; expected a tensor")


def _fake_pool(features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling) -> Tensor:
    out = make_output(features, rois, spec)
    _check_devices(features[0], features, rois, level)
    return out


def _fake_pool_grad(
    grad: Tensor,
    features: list[Tensor],
    shapes: list[int],
    channels_last: bool,
    rois: Tensor,
    level: Tensor | None,
    spec: Pooling,
) -> list[Tensor]:
    _check_devices(grad, features, rois, level)
    return make_gradients(grad, shapes, channels_last, spec.rank)


def _fake_pool_box_grad(
    grad: Tensor, features: list[Tensor], rois: Tensor, level: Tensor | None, spec: Pooling
) -> Tensor:
    _check_devices(grad, features, rois, level)
    return torch.empty_like(rois, memory_format=torch.contiguous_format)


def _check_devices(first: Tensor, features: list[Tensor], rois: Tensor, level: Tensor | None) -> None:
    named = [(f"features[{i}]", feature) for i, feature in enumerate(features)]
    for name, tensor in (*named, ("rois", rois), ("level", level)):
        if tensor is not None and tensor.device != first.device:
            raise ValueError(f"{name}: got a tensor on {tensor.device}; expected one on {first.device}, as the others")


_NAMES = Kernels._fields[1:]
_FIELDS = len(Pooling._fields)
_HOW = "Tensor? level, str kind, SymInt[] output_size, float[] scales, SymInt sampling_ratio, bool aligned"
_library = torch.library.Library("roialign", "FRAGMENT")
_library.define(f"pool(Tensor[] features, Tensor rois, {_HOW}) -> Tensor")
_library.define(
    f"pool_grad(Tensor grad, Tensor[] features, SymInt[] shapes, bool channels_last, Tensor rois, {_HOW}) -> Tensor[]"
)
_library.define(f"pool_box_grad(Tensor grad, Tensor[] features, Tensor rois, {_HOW}) -> Tensor")
_library.impl("pool", _unpacked(_pool_anywhere), "CompositeExplicitAutograd")
_fakes = Kernels(known, _fake_pool, _fake_pool_grad, _fake_pool_box_grad)
for _name in _NAMES:
    torch.library.register_fake(f"roialign::{_name}", _unpacked(getattr(_fakes, _name)), lib=_library)
torch.library.register_autograd("roialign::pool", _backward_pool, setup_context=_setup_pool, lib=_library)
torch.library.register_autograd(
    "roialign::pool_grad", _backward_pool_grad, setup_context=_setup_pool_grad, lib=_library
)
torch.library.register_vmap("roialign::pool", _vmap_pool, lib=_library)

# The kernels that PyTorch's dispatcher chooses, seen by all who watch.
DISPATCHED = Kernels(known, *(_packed(getattr(torch.ops.roialign, name)) for name in _NAMES))
