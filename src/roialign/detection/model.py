"""Build a Faster R-CNN: a backbone, anchors, one of our poolers, and torchvision's detector around them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..pyramid import MultiScaleRoIAlign
from .mask_heads import POOLED, MaskHeads, mask_parts
from .weights import load_weights

POOLINGS = ("roi_align", "roi_align_max", "prroi_pool", "roi_pool")
NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "group": partial(nn.GroupNorm, 8),
    "batch": nn.BatchNorm2d,
}
BACKBONES = ("mobilenet_v2", "mobilenet_v2_fpn", "resnet50_fpn")

Anchors = Mapping[str, Sequence[Any]]

# Where a backbone's module ends a stage, and the stage's channels, for strides 4, 8, 16 and 32.
_MOBILENET_STAGES = {"3": 24, "6": 32, "13": 96, "17": 320}
_RESNET_STAGES = {"layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048}


def build_detector(
    num_classes: int,
    backbone: str = "mobilenet_v2",
    pooling: str = "roi_align",
    *,
    weights: str | None = None,
    anchors: Anchors | str | None = None,
    boxes: Tensor | None = None,
    scale: float | None = None,
    canonical_scale: float = 224,
    fpn_channels: int | None = None,
    head_channels: int | None = None,
    output_size: int = 7,
    sampling_ratio: int = 2,
    norm: str | None = None,
    masks: bool = False,
    **options: Any,
) -> FasterRCNN:
    """Build torchvision's Faster R-CNN, or Mask R-CNN, with this package's pooling.

    Args:
        num_classes: classes to tell apart, the background (class 0) included.
        backbone: ``"mobilenet_v2"`` (one level of 1280 channels and stride 32), ``"mobilenet_v2_fpn"``,
            ``"resnet50_fpn"`` (levels of stride 4 to 32 and a coarser one for proposals), or ``"timm:NAME"`` for any of
            timm's feature extractors under such a pyramid.
        pooling: ``"roi_align"``, ``"roi_align_max"``, ``"prroi_pool"`` or ``"roi_pool"``.
        weights: a file (``.pth``, ``.safetensors``) or one of torchvision's names, such as
            ``"MobileNet_V2_Weights.IMAGENET1K_V1"`` or ``"FasterRCNN_ResNet50_FPN_Weights.COCO_V1"``; None initialises
            randomly. See :func:`load_weights`.
        anchors: None for the usual five octaves from 32 pixels; ``"auto"`` fits them, and the canonical scale, to
            ``boxes``; or what :func:`fit_anchors` returns.
        boxes: ``[N, 4]`` (x1, y1, x2, y2) of a data set, in pixels of its images; for ``anchors="auto"``.
        scale: pixels that the network sees per pixel of the image; None resizes every image to torchvision's
            ``min_size`` and ``max_size`` instead.
        canonical_scale: as in :class:`roialign.MultiScaleRoIAlign`, in pixels that the network sees.
        fpn_channels: channels of each level of the pyramid; None: 256, or 96 over MobileNetV2.
        head_channels: width of the box head's two layers; None: 1024, or 256 over MobileNetV2 with a pyramid.
        output_size: bins along each side of a pooled box.
        sampling_ratio: samples per bin along each axis, for RoIAlign.
        norm: the backbone's: ``"frozen"`` keeps batch norm as the weights have it, since the batches of a detector are
            small; ``"group"``, for random weights, does not look at the batch at all; or ``"batch"``. None: frozen if
            there are weights, else batch.
        masks: draw the objects' masks, too: the detector is torchvision's ``MaskRCNN``, whose boxes for masks are
            pooled by the same operator, 14 bins along each side. For training the targets have ``masks`` ``[N, H, W]``
            of 0 and 1.
        options: anything else that :class:`torchvision.models.detection.FasterRCNN` takes.

    Returns:
        The detector. Its attribute ``description`` holds what rebuilds it; :func:`save_detector` writes that.

    Raises:
        ValueError: an unknown backbone or pooling, or boxes that are missing or of no use.
        ModuleNotFoundError: a timm backbone without timm.

    Example:
        >>> from roialign.detection import build_detector
        >>> build_detector(num_classes=2).roi_heads.box_roi_pool.output_size
        (7, 7)

    References:
        Ren et al., "Faster R-CNN", https://arxiv.org/abs/1506.01497.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling: got {pooling!r}; expected one of {', '.join(map(repr, POOLINGS))}")
    fpn_channels = fpn_channels or (96 if backbone == "mobilenet_v2_fpn" else 256)
    head_channels = head_channels or (256 if backbone == "mobilenet_v2_fpn" else 1024)
    norm = norm or ("batch" if weights is None else "frozen")
    body, strides = _backbone(backbone, fpn_channels, norm)
    anchors, canonical_scale = _anchors(anchors, boxes, scale, canonical_scale, strides)
    description = {
        "num_classes": num_classes, "backbone": backbone, "pooling": pooling, "anchors": anchors, "scale": scale,
        "canonical_scale": canonical_scale, "fpn_channels": fpn_channels, "head_channels": head_channels,
        "output_size": output_size, "sampling_ratio": sampling_ratio, "norm": norm,
    }  # fmt: skip
    if masks:
        description["masks"] = True
    return _assemble(body, description, options, weights)


def _anchors(
    anchors: Anchors | str | None, boxes: Tensor | None, scale: float | None, canonical: float, strides: Sequence[int]
) -> tuple[dict[str, list[Any]], float]:
    """The anchors that were asked for, and the canonical scale that goes with them."""
    if isinstance(anchors, str):
        if anchors != "auto" or boxes is None:
            raise ValueError(f"anchors: got {anchors!r}, boxes {type(boxes).__name__}; expected 'auto' with boxes")
        seen = boxes * (scale or 1)
        anchors = fit_anchors(seen, strides)
        # Half of the boxes on the finest level; but on the next no box less than seven cells wide.
        canonical = max(112.0, round(2 * float(_sides(seen).prod(1).sqrt().median()), 1))
    if anchors is None:
        octaves = [32.0, 64.0, 128.0, 256.0, 512.0]
        each = [octaves] if len(strides) == 1 else [[octaves[min(i, 4)]] for i in range(len(strides))]
        anchors = {"sizes": each, "ratios": [0.5, 1.0, 2.0]}
    if len(anchors["sizes"]) != len(strides) or len({len(sizes) for sizes in anchors["sizes"]}) != 1:
        counts = [len(sizes) for sizes in anchors["sizes"]]
        raise ValueError(f"anchors: got {counts} sizes; expected as many on each of {len(strides)} levels")
    return {name: list(values) for name, values in anchors.items()}, canonical


def _assemble(body: nn.Module, description: dict[str, Any], options: dict[str, Any], weights: str | None) -> FasterRCNN:
    """torchvision's detector around a backbone, as described."""
    sizes, size, head = description["anchors"]["sizes"], description["output_size"], description["head_channels"]
    names = [str(level) for level in range(max(1, len(sizes) - 1))]
    ratio, canonical_scale = description["sampling_ratio"], description["canonical_scale"]
    kind: Callable[..., FasterRCNN] = FasterRCNN
    if "masks" in description:
        pooler = _pooler(description["pooling"], names, POOLED, ratio, canonical_scale)
        parts = mask_parts(cast(int, body.out_channels), description["num_classes"])
        kind = partial(MaskRCNN, mask_roi_pool=pooler, **parts)
    model = kind(
        body,
        num_classes=None,
        rpn_anchor_generator=AnchorGenerator(
            tuple(map(tuple, sizes)), (tuple(description["anchors"]["ratios"]),) * len(sizes)
        ),
        box_roi_pool=_pooler(description["pooling"], names, size, ratio, canonical_scale),
        box_head=TwoMLPHead(cast(int, body.out_channels) * size**2, head),
        box_predictor=FastRCNNPredictor(head, description["num_classes"]),
        **options,
    )
    if "masks" in description:
        model.roi_heads = MaskHeads.of(model.roi_heads)
    if description["scale"] is not None:
        model.transform = ScaledTransform(description["scale"], model.transform)
    model.description = {**description, **options}
    if weights is not None:
        load_weights(model, weights)
    return model


def fit_anchors(boxes: Tensor, strides: Sequence[int]) -> dict[str, list[Any]]:
    """Anchors that overlap a data set's boxes most.

    A level of stride s has the sizes a s and a s sqrt(2) (one level alone: six such half octaves), each with three
    aspect ratios: the boxes' 15, 50 and 85 percent quantiles. The one number a is taken from a grid by the mean over
    the boxes of the IoU with the best anchor, both centred: the largest within 0.01 of the best, since that puts a box
    on the finest level.

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), in pixels that the network sees.
        strides: of the levels.

    Returns:
        ``sizes``, a list per level, and ``ratios`` (height to width), a list.

    Raises:
        ValueError: no boxes.

    Example:
        >>> import torch
        >>> from roialign.detection import fit_anchors
        >>> fit_anchors(torch.tensor([[0.0, 0.0, 40.0, 40.0]]), strides=[4, 8])["ratios"]
        [1.0]
    """
    width, height = _sides(boxes).unbind(1)
    quantiles = torch.tensor([0.15, 0.5, 0.85])
    ratios = sorted({round(float(ratio), 2) for ratio in (height / width).log().quantile(quantiles).exp()})
    steps = 6 if len(strides) == 1 else 2

    def sizes(unit: float) -> list[list[float]]:
        return [[round(unit * stride * 2 ** (step / 2), 1) for step in range(steps)] for stride in strides]

    def overlap(unit: float) -> float:
        size = torch.tensor(sizes(unit)).flatten()[:, None]
        root = torch.tensor(ratios).sqrt()
        w, h = (size / root).flatten(), (size * root).flatten()
        common = torch.minimum(width[:, None], w) * torch.minimum(height[:, None], h)
        return float((common / ((width * height)[:, None] + w * h - common)).amax(1).mean())

    overlaps = {unit: overlap(unit) for unit in (2 ** (step / 4) for step in range(-8, 17))}
    best = max(overlaps.values())
    return {"sizes": sizes(max(unit for unit, value in overlaps.items() if value > best - 0.01)), "ratios": ratios}


def memory_format(device: torch.device) -> torch.memory_format:
    """In which a detector's convolutions are fastest: on a CPU channels_last, by a third with MobileNetV2."""
    return torch.channels_last if device.type == "cpu" else torch.preserve_format


def backbone_of(model: FasterRCNN) -> nn.Module:
    """What a detector shares with a classifier, without the pyramid on it."""
    return cast(nn.Module, getattr(model.backbone, "body", model.backbone))


def _sides(boxes: Tensor) -> Tensor:
    if boxes.dim() != 2 or boxes.shape[1] != 4 or not len(boxes):
        raise ValueError(f"boxes: got shape {tuple(boxes.shape)}; expected [N, 4] with N > 0")
    sides = boxes[:, 2:] - boxes[:, :2]
    if not bool((sides > 0).all()):
        raise ValueError("boxes: got one without area; expected x1 < x2 and y1 < y2")
    return sides.float()


def _backbone(name: str, channels: int, norm: str) -> tuple[nn.Module, list[int]]:
    """The backbone, randomly initialised, and the strides of the levels it gives."""
    if norm not in NORMS:
        raise ValueError(f"norm: got {norm!r}; expected one of {', '.join(map(repr, NORMS))}")
    if name in ("mobilenet_v2", "mobilenet_v2_fpn"):
        body = models.mobilenet_v2(weights=None, norm_layer=NORMS[norm]).features
        if name == "mobilenet_v2":
            body.out_channels = 1280
            return body, [32]
        stages = _MOBILENET_STAGES
    elif name == "resnet50_fpn":
        body, stages = models.resnet50(weights=None, norm_layer=NORMS[norm]), _RESNET_STAGES
    elif name.startswith("timm:"):
        pyramid = _TimmPyramid(name.removeprefix("timm:"), channels, norm)
        return pyramid, [*pyramid.strides, 2 * pyramid.strides[-1]]
    else:
        raise ValueError(f"backbone: got {name!r}; expected one of {', '.join(map(repr, BACKBONES))} or 'timm:NAME'")
    levels = {stage: str(level) for level, stage in enumerate(stages)}
    return BackboneWithFPN(body, levels, list(stages.values()), channels), [4, 8, 16, 32, 64]


class _TimmPyramid(nn.Module):
    """Features of a timm model from stride 4 on, under a feature pyramid."""

    def __init__(self, name: str, channels: int, norm: str) -> None:
        super().__init__()
        try:
            import timm
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f"backbone: got 'timm:{name}', but timm is missing; install it with: pip install timm", name="timm"
            ) from None
        # Only names of timm's list: it would fetch others, such as hf-hub:..., from the network.
        if not re.fullmatch(r"\w+(\.\w+)?", name, re.ASCII) or not timm.is_model(name):
            raise ValueError(f"backbone: got 'timm:{name}', which timm does not have")
        reductions: list[int] = _info(timm.create_model(name, features_only=True)).reduction()
        chosen = [index for index, stride in enumerate(reductions) if stride >= 4]
        self.strides = [reductions[index] for index in chosen]
        self.body = timm.create_model(name, features_only=True, out_indices=chosen)
        if norm == "group":
            raise ValueError(f"norm: got 'group'; timm's {name} comes with its own, which can only be frozen")
        if norm == "frozen":
            from timm.layers.norm_act import freeze_batch_norm_2d

            self.body = freeze_batch_norm_2d(self.body)
        self.fpn = FeaturePyramidNetwork(_info(self.body).channels(), channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self.fpn({str(level): map for level, map in enumerate(self.body(x))}))


def _info(body: nn.Module) -> Any:
    return body.feature_info


def _pooler(
    pooling: str, names: list[str], output_size: int, sampling_ratio: int, canonical_scale: float
) -> MultiScaleRoIAlign:
    operator, mode = ("roi_align", "max") if pooling == "roi_align_max" else (pooling, "avg")
    return MultiScaleRoIAlign(
        names, output_size, sampling_ratio, canonical_scale=canonical_scale, mode=mode, operator=operator
    )


class ScaledTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Resize every image by one factor, so that an object has the same size in a small tile and in a large image."""

    def __init__(self, scale: float, base: GeneralizedRCNNTransform) -> None:
        if not 0 < scale < math.inf:
            raise ValueError(f"scale: got {scale!r}; expected a positive finite number")
        super().__init__(base.min_size, base.max_size, base.image_mean, base.image_std, base.size_divisible)
        self.scale = scale

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize ``image`` ``[C, H, W]`` and the boxes of ``target``; its masks need not be."""
        before = image.shape[-2:]
        size = [max(1, round(side * self.scale)) for side in before]
        image = nn.functional.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], before, image.shape[-2:])
        return image, target
