"""bfloat16 in the backbone and nowhere else: boxes on no grid, gradients of float32, answers near those of float32."""

from __future__ import annotations

import copy
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from typer.testing import CliRunner

from roialign.cli import app
from roialign.detection import Detector, build_detector, load_detector
from roialign.detection.commands import evaluate
from roialign.detection.images import Photo
from roialign.detection.precision import lower, slow
from roialign.samples import PHOTO_FILE

STEP = 2.0**-8  # half of bfloat16's steps: what one rounding moves a number by, as a part of it, at most


def lowered(model: FasterRCNN) -> FasterRCNN:
    lower(model, "bfloat16")
    return model


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "mobilenet_v2_fpn"])
def test_maps_are_those_of_bfloat16_in_float32(backbone: str) -> None:
    """And a copy, as the averaged model is one, computes by its own parameters."""
    torch.manual_seed(0)
    model = build_detector(2, backbone, norm="frozen", head_channels=8).eval()
    pixels = torch.rand(1, 3, 96, 64)

    def maps(of: FasterRCNN) -> list[Tensor]:
        with torch.no_grad():
            out = of.backbone(pixels)
        return [out] if isinstance(out, Tensor) else list(out.values())

    exact = maps(model)
    low = maps(lowered(model))
    for each, other in zip(low, exact, strict=True):
        assert each.dtype == torch.float32
        if backbone == "mobilenet_v2_fpn":  # whose last layer is a convolution: of float32's 24 bits 8 are left
            assert torch.equal(each, each.bfloat16().float())
        assert not torch.equal(each, other)
        assert (each - other).norm() < 16 * STEP * other.norm()  # roundings of some 100 layers, which add up as roots
    for parameter in (twin := copy.deepcopy(model)).parameters():
        parameter.data.zero_()
    assert not any(each.any() for each in maps(twin))
    assert all(map(torch.equal, maps(model), low))
    assert model.state_dict().keys() == twin.state_dict().keys()


def test_boxes_are_on_no_grid() -> None:
    """Beyond pixel 256 bfloat16 has even numbers only; the exact answer of the heads to the rounded maps is another."""
    model = load_detector().eval()
    image = Photo(PHOTO_FILE).read()
    with torch.no_grad():
        (exact,) = model([image])
        (found,) = lowered(model)([image])
    assert found["boxes"].dtype == torch.float32
    far = found["boxes"][found["boxes"] > 256] * model.description["scale"]  # as the network sees them
    assert len(far) > 50
    assert ((far - far.bfloat16().float()).abs() > 0.01).float().mean() > 0.9  # pixels; of rounded ones all would be 0
    sure = exact["boxes"][exact["scores"] > 0.5]
    nearest = (sure[:, None] - found["boxes"]).abs().amax(2).amin(1)
    assert nearest.median() < 0.5  # pixels; crowns are 18 to 58 wide


def test_gradients_are_those_of_float32_parameters() -> None:
    torch.manual_seed(0)
    model = build_detector(2, "mobilenet_v2_fpn", norm="frozen", scale=1.0).train()
    image, target = torch.rand(3, 96, 96), {"boxes": torch.tensor([[8.0, 8, 60, 70]]), "labels": torch.tensor([1])}

    def gradient() -> Tensor:
        torch.manual_seed(1)  # of the samplers
        model.zero_grad()
        sum(model([image], [target]).values()).backward()
        return torch.cat([each.grad.flatten() for each in model.backbone.parameters() if each.grad is not None])

    exact = gradient()
    lower(model, "bfloat16")
    low = gradient()
    assert low.dtype == torch.float32
    assert torch.equal(low, gradient())
    assert torch.cosine_similarity(low, exact, dim=0) > 0.9


@pytest.mark.slow
def test_the_shipped_detector_is_as_good(tmp_path: Path) -> None:
    metrics = [
        evaluate(None, None, tmp_path / each, Console(quiet=True), device="cpu", precision=each).metrics
        for each in ("float32", "bfloat16")
    ]
    for name in ("AP", "AP50"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], abs=0.03)
    assert metrics[0] != metrics[1]


def test_what_is_refused_and_what_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision: got 'half'; expected 'float32' or 'bfloat16'"):
        Detector(device="cpu", precision="half")
    for command in (["detect", "--precision", "bf16", "--out", str(tmp_path)], ["train", "--precision", "bf16"]):
        refused = CliRunner().invoke(app, command)
        assert "precision: got 'bf16'" in str(refused.exception) + refused.output
    cpu = torch.device("cpu")
    for has, said in (({"avx2": True, "amx_bf16": False}, True), ({"amx_bf16": True}, False), ({}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: MappingProxyType(has), raising=False)
        assert bool(slow("bfloat16", cpu)) is said
        assert not slow("float32", cpu)
        assert not slow("bfloat16", torch.device("cuda"))
