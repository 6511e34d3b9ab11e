"""roialign.accelerate(model): pooling modules of one model for ours, hooks and state kept, the rest left and named.

detectron2 and mmcv are stood in for by modules of the same class path and attributes, written here.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision.ops
from torch import Tensor, nn
from torchvision.models.detection import faster_rcnn

import oracle
import oracle_gather
import roialign
from helpers import as_rotated, assert_pooled, generic_case, some_offset
from roialign.integrations.detectron2 import ROIPooler


def foreign(path: str, forward: Callable[..., Tensor], **attributes: Any) -> nn.Module:
    """A module of this class path that calls ``forward(self, ...)``."""
    module, _, name = path.rpartition(".")
    made = type(name, (nn.Module,), {"__module__": module, "forward": forward})()
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def torchvisions(self: Any, input: Tensor, rois: Tensor) -> Tensor:
    """What detectron2's ``ROIAlign`` and mmcv's average ``RoIAlign`` compute."""
    return torchvision.ops.roi_align(
        input, rois.to(input.dtype), self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
    )


def detectron2_align(scale: float, aligned: bool = True, **more: Any) -> nn.Module:
    attributes = {"output_size": (3, 3), "spatial_scale": scale, "sampling_ratio": 2, "aligned": aligned} | more
    return foreign("detectron2.layers.roi_align.ROIAlign", torchvisions, **attributes)


def pyramid_forward(self: Any, x: list[Tensor], box_lists: list[Any]) -> Tensor:
    """Each box by itself, on the level that detectron2's rule gives it."""
    pooled = []
    for image, boxes in enumerate(box_lists):
        for box in boxes.tensor:
            side = ((box[2] - box[0]) * (box[3] - box[1])).sqrt()
            level = int(torch.floor(self.canonical_level + torch.log2(side / self.canonical_box_size + 2.0**-52)))
            index = min(max(level, self.min_level), self.max_level) - self.min_level
            row = torch.cat([torch.tensor([float(image)]), box])[None]
            pooled.append(self.level_poolers[index](x[index], row))
    return torch.cat(pooled)


def detectron2_pyramid(levels: list[nn.Module]) -> nn.Module:
    return foreign(
        "detectron2.modeling.poolers.ROIPooler", pyramid_forward, level_poolers=nn.ModuleList(levels),
        output_size=(3, 3), min_level=2, max_level=4, canonical_level=3, canonical_box_size=28,
    )  # fmt: skip


def mmcv_align(**attributes: Any) -> nn.Module:
    usual = {"output_size": (2, 2), "spatial_scale": 0.9, "sampling_ratio": 2, "aligned": True, "pool_mode": "avg"}
    return foreign("mmcv.ops.roi_align.RoIAlign", torchvisions, **usual | {"use_torchvision": False} | attributes)


def test_detectron2s_pyramid_in_one_call() -> None:
    """Levels, borders between them included, scales, alignment and batch as detectron2 has them."""
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(2, 5, 32 >> i, 48 >> i, generator=generator) for i in range(3)]
    corner = torch.rand(2, 40, 2, generator=generator) * 90
    boxes = torch.cat([corner, corner + 2 ** (torch.rand(2, 40, 2, generator=generator) * 7)], 2)
    boxes[:, :8] = torch.tensor([1.0, 1, 1, 1])
    boxes[:, :8, 2:] += 14.0 * 2 ** torch.arange(8)[:, None].div(2).floor()  # exactly on a border
    boxes[0, 8, 2:] = boxes[0, 8, :2]
    lists = [SimpleNamespace(tensor=each) for each in boxes]
    model = nn.ModuleDict({"head": detectron2_pyramid([detectron2_align(2.0**-level) for level in (2, 3, 4)])})
    expected = model["head"](x, lists)
    done = roialign.accelerate(model)
    assert done == ({"head": "detectron2.modeling.poolers.ROIPooler -> roialign.ROIPooler"}, {})
    assert isinstance(model["head"], ROIPooler)
    assert_pooled(model["head"](x, lists), expected, x[0])
    with pytest.raises(ValueError, match="x: got 2 feature maps; expected 3"):
        model["head"](x[:2], lists)
    leaves = [map.requires_grad_() for map in x]
    grads = torch.autograd.grad(model["head"](leaves, lists).sum(), leaves)
    both = torch.autograd.grad(
        detectron2_pyramid([detectron2_align(2.0**-k) for k in (2, 3, 4)])(leaves, lists).sum(), leaves
    )
    torch.testing.assert_close(grads, both, rtol=1e-5, atol=1e-4)


def test_a_pyramid_over_other_poolers_is_left_but_not_what_is_inside() -> None:
    rotated = foreign(
        "detectron2.layers.roi_align_rotated.ROIAlignRotated", torchvisions,
        output_size=(2, 3), spatial_scale=0.25, sampling_ratio=2,
    )  # fmt: skip
    uneven = detectron2_pyramid([detectron2_align(0.25), detectron2_align(0.125, aligned=False)])
    model = nn.ModuleDict({
        "rotated": detectron2_pyramid([rotated]),
        "cells": detectron2_pyramid([torchvision.ops.RoIPool(3, 0.25)]),
        "uneven": uneven,
    })  # fmt: skip
    done = roialign.accelerate(model)
    inside = {"rotated.level_poolers.0", "cells.level_poolers.0", "uneven.level_poolers.0", "uneven.level_poolers.1"}
    assert set(done.replaced) == inside
    assert "ROIAlignRotated; expected ROIAlign" in done.left["rotated"]
    assert "RoIPool; expected ROIAlign" in done.left["cells"]
    assert "differ" in done.left["uneven"]


@pytest.mark.parametrize("aligned", [False, True])
def test_single_modules_give_what_they_gave(aligned: bool) -> None:
    input, rois = generic_case(dtype=torch.float32)
    rois = rois[:4]
    single = {
        "torchvision": torchvision.ops.RoIAlign((2, 3), 0.9, 2, aligned),
        "cells": torchvision.ops.RoIPool(3, 0.9),
        "sensitive": torchvision.ops.PSRoIAlign((2, 1), 0.9, 2),
        "sensitive cells": torchvision.ops.PSRoIPool((1, 2), 0.9),
        "detectron2": detectron2_align(0.9, aligned),
        "mmcv": mmcv_align(aligned=aligned),
        "mmcv through torchvision": mmcv_align(aligned=aligned, use_torchvision=True, pool_mode="max"),
    }
    model = nn.ModuleDict(single)
    expected = {name: module(input, rois) for name, module in single.items()}
    assert set(roialign.accelerate(model).replaced) == set(single)
    for name, module in model.items():
        assert type(module).__module__.startswith("roialign.")
        assert_pooled(module(input, rois), expected[name], input)


def test_rotated_deformable_and_exact_modules_give_what_they_gave() -> None:
    """Each in its package's convention, by plain loops: detectron2's degrees, mmcv's radians and clockwise sense."""
    input, rois = generic_case()
    usual = {"output_size": (2, 3), "spatial_scale": 0.9, "sampling_ratio": 2}
    radians = as_rotated(rois[:4], 0.7)
    degrees = torch.cat([radians[:, :5], radians[:, 5:].rad2deg()], 1)
    flipped = torch.cat([radians[:, :5], -radians[:, 5:]], 1)
    offset = some_offset(rois, 2, 3)
    rotated, moved = oracle_gather.roi_align_rotated, oracle_gather.deform_roi_pool
    cases: dict[str, tuple[nn.Module, tuple[Tensor, ...], Tensor]] = {
        "detectron2": (
            foreign("detectron2.layers.roi_align_rotated.ROIAlignRotated", torchvisions, **usual),
            (degrees,),
            rotated(input, radians, (2, 3), (0.9, 0.9), 2, True),
        ),
        "mmcv": (
            foreign("mmcv.ops.roi_align_rotated.RoIAlignRotated", torchvisions, **usual, aligned=False, clockwise=True),
            (radians,),
            rotated(input, flipped, (2, 3), (0.9, 0.9), 2, False),
        ),
        "deformable": (
            foreign("mmcv.ops.deform_roi_pool.DeformRoIPool", torchvisions, **usual, gamma=0.3),
            (rois, offset),
            moved(input, torch.cat([rois, 0.3 * offset.flatten(1)], 1), (2, 3), (0.9, 0.9), 2),
        ),
        "still": (
            foreign("mmcv.ops.deform_roi_pool.DeformRoIPool", torchvisions, **usual, gamma=0.3),
            (rois,),
            oracle.roi_align(input, rois, (2, 3), (0.9, 0.9), 2, True),
        ),
        "exact": (
            foreign("mmcv.ops.prroi_pool.PrRoIPool", torchvisions, output_size=(2, 3), spatial_scale=0.9),
            (rois,),
            oracle.prroi_pool(input, rois, (2, 3), (0.9, 0.9)),
        ),
    }
    model = nn.ModuleDict({name: module for name, (module, _, _) in cases.items()})
    assert set(roialign.accelerate(model).replaced) == set(cases)
    for name, (_, boxes, expected) in cases.items():
        assert_pooled(model[name](input, *boxes), expected, input)


def test_mmcvs_max_mode_is_ours() -> None:
    input, rois = generic_case()
    model = nn.Sequential(mmcv_align(pool_mode="max"))
    roialign.accelerate(model)
    expected = roialign.roi_align(input, rois, 2, 0.9, 2, True, mode="max")
    assert torch.equal(model[0](input, rois), expected)
    done = roialign.accelerate(nn.Sequential(mmcv_align(pool_mode="median")))
    assert done.left == {"0": "mode: got 'median'; expected one of 'avg', 'max'"}


def test_hooks_state_mode_and_sharing_are_kept() -> None:
    input, rois = generic_case(dtype=torch.float32)
    pooler = torchvision.ops.RoIAlign(2, 1.0, 2)
    model = nn.Module()
    model.conv, model.first, model.inner = nn.Conv2d(2, 2, 1), pooler, nn.Sequential(pooler, nn.ReLU())
    seen: list[str] = []
    handles = [
        pooler.register_forward_hook(lambda *_: seen.append("after")),
        pooler.register_forward_pre_hook(lambda *_: seen.append("before")),
        pooler.register_forward_hook(lambda *_, **__: seen.append("keywords"), with_kwargs=True),
    ]
    model.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    replaced = roialign.accelerate(model).replaced
    assert list(replaced) == ["first"]  # once, though it is in two places
    assert model.first is model.inner[0]
    assert not model.first.training
    model.first(input, rois)
    assert seen == ["before", "after", "keywords"]
    for handle in handles:
        handle.remove()
    model.first(input, rois)
    assert len(seen) == 3
    assert model.state_dict().keys() == state.keys()
    model.load_state_dict(state)
    assert roialign.accelerate(model) == ({}, {})  # nothing is left to do


def test_what_is_left_is_named_with_the_reason() -> None:
    class Mine(torchvision.ops.RoIAlign):
        pass

    patched = torchvision.ops.RoIAlign(2, 1.0, 2)
    patched.forward = lambda input, rois: input  # type: ignore[method-assign]
    stateful = torchvision.ops.RoIAlign(2, 1.0, 2)
    stateful.register_buffer("scale", torch.ones(1))
    model = nn.ModuleDict({
        "mine": Mine(2, 1.0, 2),
        "patched": patched,
        "stateful": stateful,
        "mmcv": foreign("mmcv.ops.roi_pool.RoIPool", torchvisions),
        "wrong": torchvision.ops.RoIAlign(2, -1.0, 2),
        "ours": roialign.RoIAlign(2, 1.0, 2),
        "pyramid": roialign.MultiScaleRoIAlign(["0"], 2, 2),
        "other": nn.ReLU(),
    })  # fmt: skip
    before = dict(model.items())
    done = roialign.accelerate(model)
    assert done.replaced == {}
    assert dict(model.items()) == before
    reasons = {
        "mine": "a subclass of torchvision.ops.roi_align.RoIAlign",
        "patched": "its forward was replaced",
        "stateful": "buffers of its own",
        "mmcv": "does not round",
        "wrong": "spatial_scale: got -1.0",
    }
    assert done.left.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in done.left[name]


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_scripted_module_is_left() -> None:
    model = nn.Sequential(torch.jit.script(torchvision.ops.RoIAlign([2, 2], 1.0, 2)))
    assert "roialign.accelerate() serves it" in roialign.accelerate(model).left["0"]


def test_the_model_itself_cannot_be_replaced() -> None:
    assert "itself" in roialign.accelerate(torchvision.ops.RoIAlign(2, 1.0, 2)).left[""]
    with pytest.raises(TypeError, match=r"model: got str; expected a torch\.nn\.Module"):
        roialign.accelerate("model")  # type: ignore[call-overload]


def test_a_changed_detector_copies_pickles_and_compiles() -> None:
    torch.manual_seed(0)
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, rpn_post_nms_top_n_test=20, box_score_thresh=0.0,
        min_size=64, max_size=96,
    ).eval()  # fmt: skip
    model.roi_heads.box_head = faster_rcnn.TwoMLPHead(256 * 7 * 7, 64)  # a head of 13 million weights made small
    model.roi_heads.box_predictor = faster_rcnn.FastRCNNPredictor(64, 3)
    model.double()
    image = torch.rand(3, 64, 80).double()
    with torch.no_grad():
        expected = model([image])
        assert list(roialign.accelerate(model).replaced) == ["roi_heads.box_roi_pool"]
        for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(each([image]), expected, rtol=1e-10, atol=1e-8)
    assert isinstance(model.roi_heads.box_roi_pool, roialign.MultiScaleRoIAlign)
