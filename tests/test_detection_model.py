"""Detectors: what build_detector makes of its arguments, and that a file alone rebuilds it."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import Weights, WeightsEnum, mobilenet_v2
from typer.testing import CliRunner

import roialign
from roialign.cli import app
from roialign.detection import (
    POOLINGS,
    build_detector,
    detect,
    fit_anchors,
    load_detector,
    load_weights,
    save_detector,
    weights,
)
from roialign.detection.checkpoint import default_checkpoint
from roialign.detection.datasets import AnnotatedImages, open_photo
from roialign.detection.evaluation import evaluate_found
from roialign.outputs import write_atomically
from roialign.samples import HELDOUT

SMALL: dict[str, Any] = {"fpn_channels": 16, "head_channels": 32, "box_detections_per_img": 20}


def image(side: int = 128) -> Tensor:
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(1))


def small(pooling: str = "roi_align", **options: Any) -> Any:
    torch.manual_seed(0)
    return build_detector(3, "mobilenet_v2_fpn", pooling, **{"scale": 1.0, **SMALL, **options}).eval()


@torch.no_grad()
def answer(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = model([pixels])[0]
    return found


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_file_alone_rebuilds_the_detector(pooling: str, tmp_path: Path) -> None:
    model = small(pooling, anchors={"sizes": [[16.0]] * 5, "ratios": [1.0]}, min_size=64, rpn_nms_thresh=0.6)
    save_detector(model, tmp_path / "model.safetensors", seed=7)
    again = load_detector(tmp_path / "model.safetensors")
    assert again.card == {"seed": 7}
    assert not again.training
    expected, got = answer(model, image()), answer(again, image())
    assert len(expected["boxes"]) > 0
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=0, rtol=0)


def test_a_half_precision_file_holds_the_matrices_in_half(tmp_path: Path) -> None:
    model = small()
    for half in (False, True):
        save_detector(model, tmp_path / f"{half}.safetensors", half=half)
    whole, halved = ((tmp_path / f"{half}.safetensors").stat().st_size for half in (False, True))
    assert 0.49 < halved / whole < 0.56
    again = load_detector(tmp_path / "True.safetensors").state_dict()
    for name, value in model.state_dict().items():
        expected = value.half().float() if value.is_floating_point() and value.dim() > 1 else value
        assert torch.equal(again[name], expected), name


def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError):
        load_detector(path)
    path.write_bytes(b"\x80\x04 not safetensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_detector(path)
    save_detector(small(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_detector(path)


def test_pickled_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    cached = torchvisions(monkeypatch, tmp_path, {"weight": Trap()})
    file = tmp_path / cached.name
    with pytest.raises(ValueError, match="not tensors alone, and nothing else is unpickled; expected"):
        load_weights(small(), file)
    for _ in range(2):  # downloaded, and from the cache
        with pytest.raises(ValueError, match="not tensors alone, and nothing else is unpickled; expected"):
            load_weights(small(), "MobileNet_V2_Weights.IMAGENET1K_V1")
        assert cached.exists()
        assert not (tmp_path / "sprung").exists()


def test_a_classifiers_weights_start_the_backbone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = mobilenet_v2(weights=None)
    torch.save(source.state_dict(), tmp_path / "mobilenet.pth")
    for backbone, prefix in (("mobilenet_v2", "backbone."), ("mobilenet_v2_fpn", "backbone.body.")):
        model = build_detector(2, backbone, weights=str(tmp_path / "mobilenet.pth"), **SMALL)
        state = model.state_dict()
        for name, value in source.features[:18].state_dict().items():
            if "num_batches" not in name:
                assert torch.equal(state[prefix + name], value), name
        assert model.description["norm"] == "frozen"
    torch.save({"0.weight": torch.ones(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"lacks .* of the backbone"):
        load_weights(small(), tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match="neither a file nor a name"):
        load_weights(small(), "MobileNet_V9")


def test_a_message_counts_and_names_what_the_backbone_misses(tmp_path: Path) -> None:
    source = mobilenet_v2(weights=None)
    state, wanted = source.state_dict(), [name for name in source.features[:18].state_dict() if "num_" not in name]
    for name, change in (("features.1.conv.0.0.weight", None), ("features.3.conv.2.weight", torch.ones(1, 2, 3, 3))):
        state.pop(name)
        state |= {name: change} if change is not None else {}
    torch.save(state, tmp_path / "mobilenet.pth")
    expected = f"lacks 2 of the backbone's {len(wanted)} tensors, or has them in another shape, such as "
    with pytest.raises(ValueError, match=re.escape(f"{expected}backbone.body.1.conv.0.0.weight") + "$"):
        load_weights(small(), tmp_path / "mobilenet.pth")


@pytest.mark.parametrize("half", [False, True])
def test_weights_start_another_detector_with_more_classes(half: bool, tmp_path: Path) -> None:
    model = small(norm="group")
    save_detector(model, tmp_path / "model.safetensors", half=half)
    other = build_detector(7, "mobilenet_v2_fpn", norm="group", **SMALL)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    count = load_weights(other, tmp_path / "model.safetensors")
    own = 0
    for name, value in other.state_dict().items():
        if name.startswith("roi_heads.box_predictor."):  # of another number of classes
            assert torch.equal(value, before[name]), name
            own += 1
        else:
            expected = model.state_dict()[name]
            assert torch.equal(value, expected.half().float() if half and expected.dim() > 1 else expected), name
            assert value.dtype == expected.dtype, name
    assert (own, count) == (4, len(before) - 4)


def torchvisions(monkeypatch: pytest.MonkeyPatch, folder: Path, content: Any, digest: str = "") -> Path:
    """Give every name of torchvision's weights this file, and PyTorch an empty cache, which is returned."""
    torch.save(content, folder / "saved.pth")
    digest = digest or hashlib.sha256((folder / "saved.pth").read_bytes()).hexdigest()
    file = (folder / "saved.pth").rename(folder / f"net-{digest[:8]}.pth")

    class Named(WeightsEnum):
        V1 = Weights(file.as_uri(), lambda image: image, {})

    monkeypatch.setattr(weights, "get_weight", lambda _: Named.V1)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(folder / "hub"))
    return folder / "hub" / "checkpoints" / file.name


def test_named_weights_are_downloaded_once_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = mobilenet_v2(weights=None).state_dict()
    cached = torchvisions(monkeypatch, tmp_path, state)
    for _ in range(2):
        model = small()
        load_weights(model, "MobileNet_V2_Weights.IMAGENET1K_V1")
        assert torch.equal(model.state_dict()["backbone.body.0.0.weight"], state["features.0.0.weight"])
        (tmp_path / cached.name).unlink(missing_ok=True)  # now the cache alone has it
    assert "%" not in capsys.readouterr().err  # no bar of its progress


def test_a_damaged_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = torchvisions(monkeypatch, tmp_path, mobilenet_v2(weights=None).state_dict(), "0" * 8)
    named = "MobileNet_V2_Weights.IMAGENET1K_V1"
    with pytest.raises(ValueError, match=rf"^weights: {named} cannot be read: invalid hash value"):
        load_weights(small(), named)
    assert not cached.exists()
    (tmp_path / cached.name).unlink()
    with pytest.raises(ValueError, match=rf"^weights: {named} cannot be read: .*No such file"):
        load_weights(small(), named)
    cached.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"^weights: {named} cannot be read: EOFError$"):
        load_weights(small(), named)


def test_the_scale_is_that_of_resizing_the_image_oneself() -> None:
    model, twice = small(scale=1.0), small(scale=2.0)
    pixels = image(96)
    larger = torch.nn.functional.interpolate(pixels[None], size=(192, 192), mode="bilinear", align_corners=False)[0]
    expected, got = answer(model, larger), answer(twice, pixels)
    torch.testing.assert_close(got["boxes"], expected["boxes"] / 2, atol=1e-3, rtol=0)
    torch.testing.assert_close(got["scores"], expected["scores"], atol=1e-5, rtol=0)


def test_fitted_anchors_overlap_the_boxes_as_well_as_the_best_of_the_grid() -> None:
    generator = torch.Generator().manual_seed(3)
    corner, size = torch.rand(60, 2, generator=generator) * 300, 12 + 60 * torch.rand(60, 2, generator=generator)
    fitted = fit_anchors(torch.cat([corner, corner + size], 1), [4, 8, 16])
    first = [sizes[0] for sizes in fitted["sizes"]]
    assert first == pytest.approx([first[0], 2 * first[0], 4 * first[0]], abs=0.3)

    def mean_iou(unit: float) -> float:
        total = 0.0
        for w, h in size.tolist():
            best = 0.0
            for stride, step, ratio in product((4, 8, 16), (0, 1), fitted["ratios"]):
                side = unit * stride * 2 ** (step / 2)
                aw, ah = side / ratio**0.5, side * ratio**0.5
                common = min(w, aw) * min(h, ah)
                best = max(best, common / (w * h + aw * ah - common))
            total += best
        return total / len(size)

    assert mean_iou(fitted["sizes"][0][0] / 4) > max(mean_iou(2 ** (k / 4)) for k in range(-8, 17)) - 0.011
    logs = (size[:, 1] / size[:, 0]).sort().values
    assert logs[5] < fitted["ratios"][0] < logs[13]


def test_automatic_anchors_see_the_boxes_at_the_networks_scale() -> None:
    boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0]]).repeat(4, 1)
    model = small(anchors="auto", boxes=boxes, scale=2.0)
    assert model.description["anchors"] == fit_anchors(boxes * 2, [4, 8, 16, 32, 64])
    assert model.roi_heads.box_roi_pool.canonical_scale == 120.0


@pytest.mark.parametrize(
    ("pooling", "function"), [("prroi_pool", roialign.prroi_pool), ("roi_pool", roialign.roi_pool)]
)
def test_the_pyramid_pools_each_box_from_its_level(pooling: str, function: Any) -> None:
    pooler = small(pooling, canonical_scale=64).roi_heads.box_roi_pool
    generator = torch.Generator().manual_seed(2)
    maps = {str(k): torch.rand(2, 3, 64 >> k, 64 >> k, generator=generator) for k in range(4)}
    sides = [7.0, 15.9, 16.1, 33.0, 70.0, 200.0]
    levels = [0, 0, 0, 1, 2, 3]  # floor(4 + log2(side / 64)), from level 2 on
    boxes = [torch.tensor([[3.0, 5.0, 3 + s, 5 + s] for s in sides]), torch.tensor([[9.0, 2.0, 42.0, 35.0]])]
    pooled = pooler(maps, boxes, [(256, 256), (256, 200)])
    rows = [(0, box, level) for box, level in zip(boxes[0], levels, strict=True)] + [(1, boxes[1][0], 1)]
    for got, (which, box, level) in zip(pooled, rows, strict=True):
        expected = function(maps[str(level)][which : which + 1], [box[None]], 7, 0.25 / 2**level)[0]
        torch.testing.assert_close(got, expected)


def test_a_timm_backbone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_detector(2, "timm:resnet10t", "roi_align_max", norm="frozen", **SMALL, scale=1.0).eval()
    save_detector(model, tmp_path / "model.safetensors")
    again = load_detector(tmp_path / "model.safetensors")
    expected, got = answer(model, image()), answer(again, image())
    assert torch.equal(expected["boxes"], got["boxes"])
    assert {type(m).__name__ for m in again.modules() if "BatchNorm" in type(m).__name__} == {"FrozenBatchNorm2d"}


def test_what_is_not_known_is_said() -> None:
    with pytest.raises(ValueError, match="pooling: got 'mean'; expected one of 'roi_align'"):
        build_detector(2, pooling="mean")
    with pytest.raises(ValueError, match="backbone: got 'vgg'; expected one of 'mobilenet_v2'"):
        build_detector(2, "vgg")
    with pytest.raises(ValueError, match="anchors: got 'auto', boxes NoneType"):
        build_detector(2, anchors="auto")
    with pytest.raises(ValueError, match="boxes: got one without area"):
        build_detector(2, anchors="auto", boxes=torch.zeros(1, 4))
    with pytest.raises(ValueError, match="norm: got 'layer'; expected one of 'frozen'"):
        build_detector(2, norm="layer")
    with pytest.raises(ValueError, match=r"scale: got 0"):
        build_detector(2, scale=0)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, json.dumps({"epoch": 1}).encode())

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"half")
    assert json.loads(path.read_text()) == {"epoch": 1}


@pytest.mark.slow
def test_the_shipped_detector_is_as_good_as_its_card_says(tmp_path: Path) -> None:
    judged = CliRunner().invoke(app, ["evaluate", "--out", str(tmp_path), "--json", str(tmp_path / "ap.json")])
    assert judged.exit_code == 0, judged.output
    metrics = json.loads((tmp_path / "ap.json").read_text())
    card = (HELDOUT.parent / "MODEL_CARD.md").read_text()
    row = re.search(r"\| both \|" + r" ([\d.]+) \|" * 8, card)
    assert row is not None
    names = ("boxes", "AP", "AP40", "AP50", "AP75", "mean_iou", "AR", "F1")
    assert [metrics[name] for name in names] == pytest.approx([float(number) for number in row.groups()], abs=0.02)
    assert metrics["AP50"] > 0.4
    assert default_checkpoint().stat().st_size < 8e6


@pytest.mark.slow
def test_no_detector_with_random_weights_gets_near_the_shipped_one() -> None:
    torch.manual_seed(0)
    model = build_detector(**load_detector().description)
    data = AnnotatedImages(HELDOUT)
    entry = data.entries[0]  # where the shipped one has 0.64
    (found,) = detect(model, [open_photo(entry.file, entry.width, entry.height)])
    assert evaluate_found(data, {entry.id: found}).metrics["AP50"] < 0.1
