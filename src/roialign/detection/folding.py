"""Batch norms worked into the convolutions before them, which a detector that only detects can do without."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

SIDE = 128  # pixels of the image by which a backbone shows what follows what


@torch.no_grad()
def fold_norms(model: FasterRCNN) -> int:
    """Give each convolution of a detector's backbone the scale and the shift of the batch norm behind it, in place.

    Whatever calls a norm on a convolution's own output is found by letting the backbone see an image. The model
    detects as before, but for the rounding of float32, and is no longer one to train or to save: its parameters are
    others. If the folded backbone sees something else, as where a convolution's output goes elsewhere too, nothing is
    changed.

    Args:
        model: a detector in evaluation mode, on any device.

    Returns:
        How many norms were folded.
    """
    backbone, parameter = model.backbone, next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, SIDE, SIDE, generator=generator).to(parameter.device, parameter.dtype)
    folded = copy.deepcopy(backbone)
    pairs = _pairs(folded, image)
    for convolution, name in pairs:
        norm = folded.get_submodule(name)
        scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        bias = norm.running_mean.new_zeros(len(scale)) if convolution.bias is None else convolution.bias
        shift = (bias.double() - norm.running_mean.double()) * scale + norm.bias.double()
        weight = convolution.weight.double() * scale[:, None, None, None]
        convolution.weight = nn.Parameter(weight.to(parameter.dtype), requires_grad=False)
        convolution.bias = nn.Parameter(shift.to(parameter.dtype), requires_grad=False)
        parent, _, last = name.rpartition(".")
        # timm's norms have the activation in them.
        setattr(folded.get_submodule(parent), last, getattr(norm, "act", None) or nn.Identity())
    for before, after in zip(_maps(backbone, image), _maps(folded, image), strict=True):
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
            return 0
    model.backbone = folded
    model.folded = True  # so that it is not saved as what it was
    return len(pairs)


def _pairs(backbone: nn.Module, image: Tensor) -> list[tuple[nn.Conv2d, str]]:
    """Each convolution that is called once and whose output a batch norm takes, and that norm's name."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # by the tensor's identity, which is one as long as it is kept
    calls: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Conv2d, str]] = []
    hooks: list[Any] = []

    def after(module: nn.Conv2d, _: Any, out: Tensor) -> None:
        made[id(out)] = module, out
        calls[module] = calls.get(module, 0) + 1

    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after))
        elif hasattr(module, "running_var") and not module.training and module.weight is not None:

            def before(module: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                calls[module] = calls.get(module, 0) + 1
                if id(given[0]) in made:
                    pairs.append((made[id(given[0])][0], name))

            hooks.append(module.register_forward_pre_hook(before))
    backbone(image)
    for hook in hooks:
        hook.remove()
    once = [pair for pair in pairs if calls[pair[0]] == calls[backbone.get_submodule(pair[1])] == 1]
    return [pair for pair in once if sum(pair[0] is other for other, _ in once) == 1]


def _maps(backbone: nn.Module, image: Tensor) -> list[Tensor]:
    out = backbone(image)
    return [out] if isinstance(out, Tensor) else list(out.values())
