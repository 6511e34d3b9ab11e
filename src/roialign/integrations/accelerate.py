"""``roialign.accelerate``: models that exist, and everything that calls torchvision's operators, on our kernels.

torchvision's pooling is operators of PyTorch's dispatcher, ``torchvision::roi_align`` and ``torchvision::roi_pool``:
each a kernel per device, and rules for autograd, autocast and shapes above them. Only kernels are taken over: those of
the CPU, on which we are faster, here; those of CUDA and ROCm, where it depends, in ``accelerate_gpu``. The rules stay
torchvision's, and with them what is differentiable and in which dtype.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from ..backends import native
from ..backends.memory import allocate
from ..boxes import check_boxes, raise_bad_index
from ..spec import Pooling
from . import accelerate_gpu
from .replace import Replacement, replace_pooling

if TYPE_CHECKING:
    from typing_extensions import Self

DTYPES = (torch.float16, torch.float32, torch.float64)  # those that torchvision pools on a CPU


@overload
def accelerate(model: None = None) -> Acceleration: ...
@overload
def accelerate(model: nn.Module) -> Replacement: ...
def accelerate(model: nn.Module | None = None) -> Acceleration | Replacement:
    """Run models that exist on our kernels: every model in the process, or one.

    Without an argument, from now on everything that calls torchvision's operators runs on our kernels, forward and
    backward: ``torchvision.ops.roi_align``, ``RoIAlign``, ``MultiScaleRoIAlign``, torchvision's detectors, detectron2's
    ``ROIAlign``; models built or compiled before the call too. On a CPU it is so in float32 and float64, on CUDA and
    ROCm in the calls that torchvision's kernels cannot do rightly: half precision, deterministic mode, 2**31 numbers.
    Other answers are torchvision's, save that what would crash or read foreign memory answers as
    :func:`roialign.roi_align` does. ``roi_pool`` is as fast as before, but guarded likewise. ``ps_roi_align`` and the
    forward of ``ps_roi_pool`` are taken over on a CPU; a box without extent then gives 0, where torchvision's divides
    by its 0 samples.

    With a model, its pooling modules are replaced by ours, which have all that ours offer (a pyramid in one call,
    gradients to boxes, second derivatives, half precision summed in float32) on every device; ``state_dict`` and hooks
    stay. Replaced are torchvision's ``RoIAlign``, ``RoIPool``, ``PSRoIAlign``, ``PSRoIPool`` and
    ``MultiScaleRoIAlign``, detectron2's ``ROIAlign``, ``ROIAlignRotated`` and ``ROIPooler``, and mmcv's ``RoIAlign``,
    ``RoIAlignRotated``, ``DeformRoIPool`` and ``PrRoIPool``. mmcv's ``RoIPool``, which is another rule, stays.

    Example:
        >>> import torch, torchvision, roialign
        >>> pooler = torchvision.ops.RoIAlign(output_size=1, spatial_scale=1.0, sampling_ratio=2)
        >>> no_image = torch.tensor([[7.0, 0.0, 0.0, 2.0, 2.0]])
        >>> with roialign.accelerate():
        ...     pooler(torch.ones(1, 1, 4, 4), no_image)  # foreign memory without
        Traceback (most recent call last):
        IndexError: boxes: row 0 has batch index 7, but input has 1 images (N = 1); expected a whole number in [0, 1)
        >>> roialign.accelerate(torch.nn.Sequential(pooler)).replaced
        {'0': 'torchvision.ops.roi_align.RoIAlign -> roialign.RoIAlign'}

    Args:
        model: the model to change in place; None accelerates the whole process.

    Returns:
        Without a model an :class:`Acceleration`, to undo it or to use in a ``with`` statement; else a
        :class:`Replacement`, what was replaced and what was left and why.

    Raises:
        ImportError: without a model, torchvision is not installed or its operators do not load.
    """
    if model is not None:
        return replace_pooling(model)
    return Acceleration()


class Acceleration:
    """torchvision's operators run on our kernels until every acceleration that was begun is undone.

    Attributes:
        devices: the dispatch keys whose kernels are ours: ``"CPU"``, and ``"CUDA"`` where there is such a device.
    """

    def __init__(self) -> None:
        self.devices = _takeover.add(self)

    def undo(self) -> None:
        """End this acceleration; with the last one torchvision's own kernels answer again. Twice is as once."""
        _takeover.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        state = "active" if self in _takeover.users else "undone"
        return f"<Acceleration of torchvision on {', '.join(self.devices) or 'no device'}: {state}>"


class _Takeover:
    """Registers our kernels for the first user and takes them back after the last."""

    def __init__(self) -> None:
        self.users: set[Acceleration] = set()
        self.lock = threading.Lock()
        self.library: torch.library.Library | None = None
        self.fallback: accelerate_gpu.DeterministicFallback | None = None
        # A thread may be on its way into a kernel that is just taken back, and the dispatcher does not hold on to a
        # kernel while it is called: kept here, it cannot die under the thread. It is bounded, as nobody is that slow.
        self.retired: deque[Any] = deque(maxlen=1024)

    def add(self, user: Acceleration) -> tuple[str, ...]:
        _load_torchvision()
        kernels = {} if native.UNREADY else {"CPU": KERNELS}
        if accelerate_gpu.is_here():
            kernels["CUDA"] = accelerate_gpu.KERNELS
        if not kernels:
            warnings.warn(f"roialign.accelerate: nothing is taken over: {native.UNREADY}", stacklevel=4)
            return ()
        with self.lock:
            if not self.users:
                self._register(kernels)
            self.users.add(user)
        return tuple(kernels)

    def remove(self, user: Acceleration) -> None:
        with self.lock:
            if user in self.users:
                self.users.remove(user)
                if not self.users and self.library is not None:
                    self.library._destroy()
                    self.library = None
                    if self.fallback is not None:
                        self.fallback.undo()
                        self.fallback = None

    def _register(self, kernels: dict[str, dict[str, Callable[[Any], Kernel]]]) -> None:
        self.library = torch.library.Library("torchvision", "IMPL")
        for device, name, make in ((device, *pair) for device, table in kernels.items() for pair in table.items()):
            qualified = f"torchvision::{name}"
            kernel = make(torch.library.get_kernel(qualified, device))
            with warnings.catch_warnings():  # PyTorch warns of every override, and here that is the point
                warnings.simplefilter("ignore")
                self.library.impl(name, kernel, device)
            self.retired.append(torch.library.get_kernel(qualified, device))
        if "CUDA" in kernels:
            self.fallback = accelerate_gpu.DeterministicFallback()


_takeover = _Takeover()


def _load_torchvision() -> None:
    try:
        import torchvision
        from torchvision.extension import _has_ops
    except (ImportError, RuntimeError) as error:  # absent, or built for another torch
        raise ImportError(
            f"roialign.accelerate() needs torchvision ({error}); install it with: pip install 'roialign[detection]'"
        ) from error
    if not _has_ops():
        raise ImportError(f"torchvision {torchvision.__version__} does not load its operators with this PyTorch")


# The kernels. Each is made around torchvision's own, which answers what ours must not: half precision, whose answers
# are not ours; wrong shapes and dtypes, which are its errors.

CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
Kernel = Callable[..., Any]


def _make_roi_align(theirs: Any) -> Kernel:
    def roi_align(
        input: Tensor, rois: Tensor, scale: float, height: int, width: int, ratio: int, aligned: bool
    ) -> Tensor:
        if not _has_answer(input, rois, height, width):
            return theirs.call_boxed(CPU, input, rois, scale, height, width, ratio, aligned)  # type: ignore[no-any-return]
        if input.dtype == torch.float16:
            safe, odd = _safe_boxes(rois, input.shape[0], scale)
            return _filled(theirs.call_boxed(CPU, input, safe, scale, height, width, ratio, aligned), odd, torch.nan)
        return _pool(input, rois, Pooling("avg", (height, width), (scale, scale), max(ratio, 0), aligned))

    return roi_align


def _make_roi_align_backward(theirs: Any) -> Kernel:
    def roi_align_backward(
        grad: Tensor, rois: Tensor, scale: float, height: int, width: int, *map_shape_and_how: Any
    ) -> Tensor:
        *shape, ratio, aligned = map_shape_and_how
        fits = _fits(grad, rois) and grad.shape == (rois.shape[0], shape[1], height, width)
        if not fits or grad.numel() == 0:
            return theirs.call_boxed(CPU, grad, rois, scale, height, width, *map_shape_and_how)  # type: ignore[no-any-return]
        if grad.dtype == torch.float16:
            rois, odd = _safe_boxes(rois, shape[0], scale)
            grad = _filled(grad, odd, 0)
            return theirs.call_boxed(CPU, grad, rois, scale, height, width, *map_shape_and_how)  # type: ignore[no-any-return]
        spec = Pooling("avg", (height, width), (scale, scale), max(ratio, 0), aligned)
        return _with_whole_indices(
            lambda rois: native.pool_grad(grad, [], shape, False, rois, None, spec)[0], rois, shape[0]
        )

    return roi_align_backward


def _make_roi_pool(theirs: Any) -> Kernel:
    """torchvision's own kernel, which is as fast as ours and tells where each maximum is, behind our checks."""

    def roi_pool(input: Tensor, rois: Tensor, scale: float, height: int, width: int) -> tuple[Tensor, Tensor]:
        if not _fits(input, rois):
            return theirs.call_boxed(CPU, input, rois, scale, height, width)  # type: ignore[no-any-return]
        rois, odd = _safe_boxes(rois, input.shape[0], scale)
        pooled, argmax = theirs.call_boxed(CPU, input, rois, scale, height, width)
        return _filled(pooled, odd, torch.nan), _filled(argmax, odd, -1)  # -1: no gradient

    return roi_pool


def _make_ps_roi_align(theirs: Any) -> Kernel:
    def ps_roi_align(
        input: Tensor, rois: Tensor, scale: float, height: int, width: int, ratio: int
    ) -> tuple[Tensor, Tensor]:
        call = (scale, height, width, ratio)
        if input.dtype == torch.float16 or not _has_answer(input, rois, height, width, height * width):
            return _guarded(theirs, input, rois, *call)
        return _pool_sensitively(input, rois, Pooling("ps_avg", (height, width), (scale, scale), max(ratio, 0), True))

    return ps_roi_align


def _make_ps_roi_align_backward(theirs: Any) -> Kernel:
    def ps_roi_align_backward(
        grad: Tensor, rois: Tensor, mapping: Tensor, scale: float, height: int, width: int, ratio: int, *shape: int
    ) -> Tensor:
        if grad.dtype == torch.float16 or not _fits(grad, rois) or grad.numel() == 0:
            return _guarded_gradient(theirs, grad, rois, mapping, scale, height, width, ratio, *shape)
        spec = Pooling("ps_avg", (height, width), (scale, scale), max(ratio, 0), True)
        return _with_whole_indices(
            lambda rois: native.pool_grad(grad, [], list(shape), False, rois, None, spec)[0], rois, shape[0]
        )

    return ps_roi_align_backward


def _make_ps_roi_pool(theirs: Any) -> Kernel:
    def ps_roi_pool(input: Tensor, rois: Tensor, scale: float, height: int, width: int) -> tuple[Tensor, Tensor]:
        if input.dtype == torch.float16 or not _has_answer(input, rois, height, width, height * width):
            return _guarded(theirs, input, rois, scale, height, width)
        return _pool_sensitively(input, rois, Pooling("ps_cells", (height, width), (scale, scale)))

    return ps_roi_pool


def _make_ps_roi_pool_backward(theirs: Any) -> Kernel:
    """torchvision's own, behind our checks: at the map's last row and column it is not the forward's derivative."""

    def ps_roi_pool_backward(grad: Tensor, rois: Tensor, mapping: Tensor, *how: Any) -> Tensor:
        return _guarded_gradient(theirs, grad, rois, mapping, *how)

    return ps_roi_pool_backward


def _pool(input: Tensor, rois: Tensor, spec: Pooling) -> Tensor:
    """By our kernels; contiguous whatever the input is, as torchvision's shape rules promise to compiled code."""
    size = (rois.shape[0], spec.pooled_channels(input.shape[1]), *spec.output_size)
    out = allocate(size, input, channels_last=False)
    return _with_whole_indices(lambda rois: native.pool_into(out, [input], rois, None, spec), rois, input.shape[0])


def _pool_sensitively(input: Tensor, rois: Tensor, spec: Pooling) -> tuple[Tensor, Tensor]:
    """Pooled, and the channel that each number was pooled from, which torchvision's gradient is handed."""
    pooled = _pool(input, rois, spec)
    mapping = torch.arange(input.shape[1], dtype=torch.int32).reshape(pooled.shape[1:])
    return pooled, mapping.expand(pooled.shape).contiguous()


def _guarded(theirs: Any, input: Tensor, rois: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    """torchvision's own kernel for what is its: half precision, and its errors."""
    if not _fits(input, rois):
        return theirs.call_boxed(CPU, input, rois, *call)  # type: ignore[no-any-return]
    rois, odd = _safe_boxes(rois, input.shape[0], call[0])
    pooled, mapping = theirs.call_boxed(CPU, input, rois, *call)
    return _filled(pooled, odd, torch.nan), mapping


def _guarded_gradient(theirs: Any, grad: Tensor, rois: Tensor, mapping: Tensor, scale: float, *how: Any) -> Tensor:
    if _fits(grad, rois):
        rois, odd = _safe_boxes(rois, how[-4], scale)
        grad = _filled(grad, odd, 0)
    return theirs.call_boxed(CPU, grad, rois, mapping, scale, *how)  # type: ignore[no-any-return]


def _fits(pixels: Tensor, rois: Tensor) -> bool:
    """Whether torchvision has an answer to such tensors."""
    return pixels.dtype is rois.dtype and pixels.dtype in DTYPES and pixels.dim() == 4 and rois.shape[1:] == (5,)


def _has_answer(input: Tensor, rois: Tensor, height: int, width: int, group: int = 1) -> bool:
    """Whether torchvision has an answer to such a call, whose output has one channel for ``group`` of the map's."""
    if not _fits(input, rois) or height < 1 or width < 1 or input.shape[1] % group:
        return False
    if rois.shape[0] and not input.shape[2] * input.shape[3]:
        check_boxes(input, rois)  # raises: boxes on an empty map
    return True


def _filled(values: Tensor, odd: Tensor | None, number: float) -> Tensor:
    """``[K, ...]`` values of boxes, with a number in place of those of odd ones."""
    return values if odd is None else values.masked_fill(odd[:, None, None, None], number)


def _with_whole_indices(pool: Callable[[Tensor], Tensor], rois: Tensor, images: int) -> Tensor:
    """Pool; where a batch index has a fraction, as torchvision takes it: without."""
    rois = rois.contiguous()
    try:
        return pool(rois)
    except IndexError:
        whole = rois.clone()
        whole[:, 0].trunc_()
        if not _name_images(whole, images).all():
            raise
        return pool(whole)


def _safe_boxes(rois: Tensor, images: int, scale: float) -> tuple[Tensor, Tensor | None]:
    """Boxes that torchvision's kernels can bear, and a mask of those that stand for others, if there are any."""
    named = _name_images(rois, images)
    if not named.all():
        row = int(named.logical_not().nonzero()[0])
        raise_bad_index(row, float(rois[row, 0]), images)
    odd = (rois[:, 1:] * scale).isfinite().all(1).logical_not_()
    return (rois.masked_fill(odd[:, None], 0), odd) if odd.any() else (rois, None)


def _name_images(rois: Tensor, images: int) -> Tensor:
    index = rois[:, 0].trunc()
    return (index >= 0) & (index < images)


KERNELS: dict[str, Callable[[Any], Kernel]] = {
    "roi_align": _make_roi_align,
    "_roi_align_backward": _make_roi_align_backward,
    "roi_pool": _make_roi_pool,
    "ps_roi_align": _make_ps_roi_align,
    "_ps_roi_align_backward": _make_ps_roi_align_backward,
    "ps_roi_pool": _make_ps_roi_pool,
    "_ps_roi_pool_backward": _make_ps_roi_pool_backward,
}
