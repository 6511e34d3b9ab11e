"""Norms folded into convolutions: the same maps, and nothing folded that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import slow_but
from roialign.detection import build_detector, load_detector, save_detector
from roialign.detection.export import answer, difference
from roialign.detection.folding import fold_norms
from roialign.detection.images import Photo
from roialign.samples import PHOTO_FILE


def unlike_identity(model: nn.Module) -> None:
    """Norms whose four parts all matter."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if hasattr(module, "running_var"):
            for part, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
                getattr(module, part).data.copy_(low + torch.rand(module.weight.shape, generator=generator))


NORMS = [
    f"{backbone} {norm}"
    for backbone in ("mobilenet_v2_fpn", "mobilenet_v2", "resnet50_fpn", "timm:resnet18", "timm:efficientnet_b0")
    for norm in ("batch", "frozen")
]
COUNTS = {"mobilenet_v2": 52, "resnet50_fpn": 53, "timm:resnet18": 20}


@pytest.mark.parametrize("name", slow_but(NORMS[:2], NORMS))
def test_maps_in_float64(name: str) -> None:
    """Equal but for the rounding of sums in float64: of 100 layers, each some 1e-16 of its largest value."""
    backbone, norm = name.split()
    torch.manual_seed(0)
    model = build_detector(2, backbone, norm=norm).eval().double()
    unlike_identity(model)
    image = torch.rand(1, 3, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        before = model.backbone(image)
        count = fold_norms(model)
        after = model.backbone(image)
    assert count == COUNTS.get(backbone, count) > 10
    assert not [each for each in model.backbone.modules() if hasattr(each, "running_var")]
    pairs = zip(before.values(), after.values(), strict=True) if isinstance(before, dict) else [(before, after)]
    for expected, actual in pairs:
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


def test_the_shipped_detector_finds_the_same() -> None:
    """Scores to 1e-5 and boxes to 1e-3 pixels."""
    model, folded = load_detector(), load_detector()
    assert fold_norms(folded) == 51
    image = Photo(PHOTO_FILE).read()
    ends = model.roi_heads.score_thresh, model.roi_heads.detections_per_img
    moved, scored, _, lone = difference(answer(model, image), answer(folded, image), *ends)
    assert moved < 1e-3
    assert scored < 1e-5
    assert lone == 0


def test_a_folded_detector_is_not_saved(tmp_path: Path) -> None:
    model = load_detector()
    fold_norms(model)
    with pytest.raises(ValueError, match="norms are folded"):
        save_detector(model, tmp_path / "model.safetensors")


class Elsewhere(nn.Module):
    """A convolution whose output goes elsewhere, too; one that is called twice; a norm that is called twice."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """Its map."""
        x = self.first(x)
        if self.kind == "output":
            return self.norm(x) + x
        if self.kind == "convolution":
            return self.last(self.second(self.second(x)))
        return self.norm(self.second(self.norm(x)))


@pytest.mark.parametrize("kind", ["output", "convolution", "norm"])
def test_what_cannot_be_folded_stays(kind: str) -> None:
    torch.manual_seed(0)
    model: Any = nn.Module()
    model.backbone = Elsewhere(kind)
    unlike_identity(model)
    model.eval()
    image = torch.rand(1, 3, 9, 8)
    with torch.no_grad():
        expected = model.backbone(image)
        assert fold_norms(model) == 0
        assert torch.equal(model.backbone(image), expected)
