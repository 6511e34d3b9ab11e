"""Change one model: other packages' pooling modules for ours, told apart by class path, so that nothing is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from ..modules import DeformRoIPool, PrRoIPool, PSRoIAlign, PSRoIPool, RoIAlign, RoIAlignRotated, RoIPool
from .detectron2 import ROIPooler


class Replacement(NamedTuple):
    """What was done to a model.

    Attributes:
        replaced: the name of each replaced module, and what was replaced by what.
        left: the name of each pooling module that stayed, and why.
    """

    replaced: dict[str, str]
    left: dict[str, str]


def replace_pooling(model: nn.Module) -> Replacement:
    """Replace the pooling modules inside a model, see :func:`roialign.accelerate`.

    Raises:
        TypeError: it is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}; expected a torch.nn.Module, or None for the whole process")
    done = Replacement({}, {})
    if reason := _why_not(model) or ("it is the model itself, which cannot be replaced in place" * _is_known(model)):
        done.left[""] = reason
    _visit(model, "", done, {})
    return done


def _visit(parent: nn.Module, prefix: str, done: Replacement, visited: dict[nn.Module, nn.Module]) -> None:
    """Replace among the children; a module found in several places is one module there after too."""
    for name, child in parent._modules.items():
        if child is None:
            continue
        if child not in visited:
            visited[child] = child  # before going down: a module may contain itself
            visited[child] = _replaced(child, prefix + name, done)
            if visited[child] is child:
                _visit(child, f"{prefix}{name}.", done, visited)
        parent._modules[name] = visited[child]


def _replaced(module: nn.Module, name: str, done: Replacement) -> nn.Module:
    """The module in its place, which is itself where there is none."""
    reason = _why_not(module)
    if not reason and _is_known(module):
        path = _path(type(module))
        try:
            ours = REPLACEMENTS[path](module)
        except (ValueError, TypeError) as error:  # what it holds is not what its package puts there
            reason = str(error)
        else:
            _hand_over(module, ours)
            done.replaced[name] = f"{path} -> roialign.{type(ours).__name__}"
            return ours
    if reason:
        done.left[name] = reason
    return module


def _is_known(module: nn.Module) -> bool:
    return _path(type(module)) in REPLACEMENTS


def _why_not(module: nn.Module) -> str:
    """Why a pooling module must stay; empty if it can go, or is none."""
    if type(module).__module__.startswith("roialign."):
        return ""
    if (scripted := getattr(module, "original_name", None)) in NAMES:
        return f"it is a scripted {scripted}, whose code is compiled; roialign.accelerate() serves it"
    path = _path(type(module))
    if path in LEFT:
        return LEFT[path]
    bases = [_path(base) for base in type(module).__mro__[1:]]
    for base in bases:
        if base in REPLACEMENTS:
            return f"it is {path}, a subclass of {base}, and may pool in another way"
    if path in REPLACEMENTS and "forward" in vars(module):
        return "its forward was replaced, so that it may pool in another way"
    if path in REPLACEMENTS and (module._buffers or module._parameters):
        return "it has parameters or buffers of its own"
    return ""


def _hand_over(module: nn.Module, ours: nn.Module) -> None:
    """Hooks, the very dicts, so that their handles still remove them; and the mode."""
    for attribute, value in vars(module).items():
        if "hook" in attribute:
            setattr(ours, attribute, value)
    ours.training = module.training


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _torchvision_pyramid(module: Any) -> nn.Module:
    from ..pyramid import MultiScaleRoIAlign  # which imports torchvision

    return MultiScaleRoIAlign(
        module.featmap_names,
        module.output_size,
        module.sampling_ratio,
        canonical_scale=module.canonical_scale,
        canonical_level=module.canonical_level,
    )


def _roi_align(module: Any) -> nn.Module:
    """Of torchvision and of detectron2, whose arguments are the same."""
    return RoIAlign(module.output_size, module.spatial_scale, module.sampling_ratio, module.aligned)


def _mmcv_roi_align(module: Any) -> nn.Module:
    mode = "avg" if module.use_torchvision else module.pool_mode  # torchvision's has no other
    return RoIAlign(module.output_size, module.spatial_scale, module.sampling_ratio, module.aligned, mode=mode)


def _detectron2_rotated(module: Any) -> nn.Module:
    return RoIAlignRotated(module.output_size, module.spatial_scale, module.sampling_ratio)


def _mmcv_rotated(module: Any) -> nn.Module:
    how = {"aligned": module.aligned, "clockwise": module.clockwise}
    return RoIAlignRotated(module.output_size, module.spatial_scale, module.sampling_ratio, unit="radians", **how)


def _mmcv_deformable(module: Any) -> nn.Module:
    return DeformRoIPool(module.output_size, module.spatial_scale, module.sampling_ratio, module.gamma)


def _detectron2_pyramid(module: Any) -> nn.Module:
    return ROIPooler(list(module.level_poolers), module.min_level, module.canonical_box_size, module.canonical_level)


REPLACEMENTS: dict[str, Callable[[Any], nn.Module]] = {
    "torchvision.ops.roi_align.RoIAlign": _roi_align,
    "torchvision.ops.roi_pool.RoIPool": lambda module: RoIPool(module.output_size, module.spatial_scale),
    "torchvision.ops.ps_roi_align.PSRoIAlign": lambda module: PSRoIAlign(
        module.output_size, module.spatial_scale, module.sampling_ratio
    ),
    "torchvision.ops.ps_roi_pool.PSRoIPool": lambda module: PSRoIPool(module.output_size, module.spatial_scale),
    "torchvision.ops.poolers.MultiScaleRoIAlign": _torchvision_pyramid,
    "detectron2.layers.roi_align.ROIAlign": _roi_align,
    "detectron2.modeling.poolers.ROIPooler": _detectron2_pyramid,
    "detectron2.layers.roi_align_rotated.ROIAlignRotated": _detectron2_rotated,
    "mmcv.ops.roi_align.RoIAlign": _mmcv_roi_align,
    "mmcv.ops.roi_align_rotated.RoIAlignRotated": _mmcv_rotated,
    "mmcv.ops.deform_roi_pool.DeformRoIPool": _mmcv_deformable,
    "mmcv.ops.prroi_pool.PrRoIPool": lambda module: PrRoIPool(module.output_size, module.spatial_scale),
}
NAMES = {path.rpartition(".")[2] for path in REPLACEMENTS}

LEFT = {
    "mmcv.ops.roi_pool.RoIPool": "mmcv's RoIPool does not round boxes to whole cells as Fast R-CNN's and ours do",
}
