"""roialign.accelerate() under whole models: torchvision's detectors, and models compiled or scripted before it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection, mobilenet_v2

import roialign
from roialign.backends import native
from test_accelerate import nothing_stays, random_case

__all__ = ["nothing_stays"]  # a fixture, for every test here too

pytestmark = pytest.mark.skipif(bool(native.UNREADY), reason=f"nothing to take over with: {native.UNREADY}")

# Whole detectors, with and without.


def tutorial() -> nn.Module:
    backbone = mobilenet_v2(weights=None).features
    backbone.out_channels = 1280
    return detection.FasterRCNN(
        backbone,
        4,
        rpn_anchor_generator=detection.rpn.AnchorGenerator(((16, 32, 64),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], 7, 2),
        **SMALL,
    )


def with_backbone(name: str) -> Callable[[], nn.Module]:
    make = detection.backbone_utils.mobilenet_backbone if "mobilenet" in name else None
    if make is not None:
        return lambda: detection.FasterRCNN(
            make(backbone_name=name, weights=None, fpn=True, trainable_layers=6),
            4,
            rpn_anchor_generator=detection.rpn.AnchorGenerator(((16, 32),) * 3, ((0.5, 1.0, 2.0),) * 3),
            **SMALL,
        )
    return lambda: detection.FasterRCNN(
        detection.backbone_utils.resnet_fpn_backbone(backbone_name=name, weights=None, trainable_layers=5), 4, **SMALL
    )


def built(name: str) -> Callable[[], nn.Module]:
    classes = {} if name.startswith("keypoint") else {"num_classes": 4}
    return lambda: getattr(detection, name)(weights=None, weights_backbone=None, **classes, **SMALL)


SMALL: dict[str, Any] = {
    "min_size": 64, "max_size": 96, "box_score_thresh": 0.0, "box_detections_per_img": 4,
    "rpn_pre_nms_top_n_train": 100, "rpn_post_nms_top_n_train": 16, "box_batch_size_per_image": 16,
    "rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 16,
}  # fmt: skip
BUILT = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet50_fpn",
)
DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "tutorial": tutorial,
    **{name: built(name) for name in BUILT},
    **{name: with_backbone(name) for name in ("resnet18", "mobilenet_v2", "mobilenet_v3_small")},
}
IMAGES = ((3, 64, 96), (3, 90, 64))


def test_every_region_detector_of_torchvision_is_here() -> None:
    families = ("fasterrcnn", "maskrcnn", "keypointrcnn")
    assert {name for name in torchvision.models.list_models(detection) if name.startswith(families)} == set(BUILT)


def training_step(model: nn.Module, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients."""
    torch.manual_seed(1)
    model.train().to(dtype)
    images = [torch.rand(size).to(dtype) for size in IMAGES]
    targets = [
        {
            "boxes": torch.tensor([[4, 5, 40, 50], [20, 10, 60, 60]], dtype=dtype),
            "labels": torch.tensor([1, 1]),
            "masks": torch.ones(2, *size[1:], dtype=torch.uint8),
            "keypoints": torch.rand(2, 17, 3) * 50,
        }
        for size in IMAGES
    ]
    losses = model(images, targets)
    sum(losses.values()).backward()
    grads = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, grads


def detections(model: nn.Module, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """What the model finds."""
    torch.manual_seed(1)
    with torch.no_grad():
        return model.eval().to(dtype)([torch.rand(size).to(dtype) for size in IMAGES])  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_train_and_detect_the_same(name: str) -> None:
    """In float64: random heads and normalisations of so small a batch blow a pooled value's rounding up a thousandfold
    and more, whoever pools and on whatever CPU. That of float64, 1e-16, stays below the bounds even a million times
    larger, while a wrong sample moves them by far more. float32's kernels are held to their own bound elsewhere.
    """
    torch.manual_seed(0)
    model = DETECTORS[name]()
    if hasattr(model.backbone, "fpn"):  # its layers hear from the pooling all that the body would, at half the cost
        model.backbone.body.requires_grad_(False)
    models = {"own": model, "process": copy.deepcopy(model), "model": copy.deepcopy(model)}
    replaced = roialign.accelerate(models["model"]).replaced
    assert len(replaced) == (2 if name.startswith(("mask", "keypoint")) else 1)
    results = {}
    for key, each in models.items():
        with roialign.accelerate() if key == "process" else nullcontext():
            results[key] = detections(each, torch.float64), *training_step(each, torch.float64)
    found, losses, grads = results.pop("own")
    assert len(found[0]["boxes"]) > 0
    largest = max(float(grad.abs().max()) for grad in grads.values())
    for other_found, other_losses, other_grads in results.values():
        torch.testing.assert_close(other_found, found, rtol=1e-10, atol=1e-10 * max(IMAGES[0]))
        torch.testing.assert_close(other_losses, losses, rtol=1e-10, atol=1e-10)
        assert other_grads.keys() == grads.keys()
        for part, grad in grads.items():
            atol = 1e-8 * float(grad.abs().max()) + 1e-10 * largest
            torch.testing.assert_close(other_grads[part], grad, rtol=0, atol=atol, msg=lambda m, p=part: f"{p}: {m}")


def test_a_detectors_float32_gradients() -> None:
    """To 5e-5 of each layer's largest.

    Proposals and samples are chosen before anything is pooled, so only rounding differs: 2**-24 a step, through about
    forty layers forth and back, which is 5e-6 where none cancels it. Measured were 1e-6.
    """
    torch.manual_seed(0)
    model = DETECTORS["resnet18"]()
    model.roi_heads.box_head = detection.faster_rcnn.TwoMLPHead(256 * 7 * 7, 64)  # of 13 million weights one of few
    model.roi_heads.box_predictor = detection.faster_rcnn.FastRCNNPredictor(64, 4)
    _, expected = training_step(copy.deepcopy(model), torch.float32)
    with roialign.accelerate():
        _, actual = training_step(model, torch.float32)
    for name, grad in expected.items():
        torch.testing.assert_close(actual[name], grad, rtol=0, atol=5e-5 * float(grad.abs().max()))


# Models that were compiled or scripted before.


class Head(nn.Module):
    """A convolution and torchvision's pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(19, 5, 1)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool."""
        return torchvision.ops.roi_align(self.conv(input), rois, (3, 3), 0.7, 2)


@pytest.mark.parametrize("how", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow), "script"])
def test_a_model_made_before_the_call(how: str) -> None:
    """The same numbers forward and backward without a new graph, and our kernel: an index without image is an error."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    head = Head()
    input, rois = random_case()
    if how == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: Any = torch.jit.script(head)
    else:
        model = torch.compile(head, backend=how, fullgraph=True)

    def run() -> list[Tensor]:
        head.zero_grad()
        pooled = model(input, rois)
        pooled.sin().sum().backward()
        assert head.conv.weight.grad is not None
        return [pooled.detach(), head.conv.weight.grad.clone()]

    expected = run()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with roialign.accelerate():
        torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-4)
        bad = rois.clone()
        bad[3, 0] = 5
        with pytest.raises((IndexError, RuntimeError), match="row 3 has batch index 5"), torch.no_grad():
            model(input, bad)
    assert how == "script" or graphs <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs + 1
    assert torch.equal(run()[0], expected[0])
    torch._dynamo.reset()
