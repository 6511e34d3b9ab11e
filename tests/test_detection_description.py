"""A detector's file from a stranger: what it says is checked, and is all that happens."""

from __future__ import annotations

import copy
import json
import math
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from roialign.detection import build_detector, detect, load_detector, load_weights, save_detector, weights
from roialign.detection import checkpoint as module
from roialign.detection.checkpoint import KEY, read_description
from roialign.detection.description import check_card, check_model
from roialign.detection.images import Photo

CARD = {
    "classes": ["tree", "bush"],
    "category_ids": [7, 3],
    "tile": 96,
    "overlap": 32,
    "metrics": {"score_threshold": 0.4},
}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What an honest file says, and its tensors."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "fpn_channels": 8,
        "head_channels": 8,
        "output_size": 2,
        "scale": 1.0,
        "min_size": [64, 96],
    }
    model = build_detector(3, "mobilenet_v2_fpn", **options, image_mean=(0.5, 0.5, 0.5), box_detections_per_img=20)
    path = tmp_path_factory.mktemp("honest") / "model.safetensors"
    save_detector(model, path, **CARD)
    return read_description(path), dict(model.state_dict())


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the network nor anything but the file itself is touched."""

    def refuse(*arguments: Any, **_: Any) -> Any:
        raise AssertionError(f"asked for {arguments}")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(weights, "get_weight", refuse)


def write(path: Path, description: Any, tensors: dict[str, Tensor]) -> Path:
    text = description if isinstance(description, str) else json.dumps(description)
    path.write_bytes(save(tensors, {KEY: text}))
    return path


def refused(path: Path) -> str:
    """Loading gives one line that names the file."""
    with pytest.raises(ValueError, match=r"model\.safetensors") as caught:
        load_detector(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1500
    return message


HOSTILE = {
    "a download": ({"weights": "FasterRCNN_ResNet50_FPN_Weights.COCO_V1"}, "'weights' is not known"),
    "a file": ({"weights": "/etc/passwd"}, "'weights' is not known"),
    "a hub's model": ({"backbone": "timm:hf-hub:someone/model"}, "backbone: got 'timm:hf-hub"),
    "a local model": ({"backbone": "timm:local-dir:/tmp/model"}, "backbone: got 'timm:local-dir"),
    "a scheme with a dot": ({"backbone": "timm:resnet10t.a:/b"}, "backbone: got 'timm:resnet10t.a"),
    "a model that timm lacks": ({"backbone": "timm:no_such_model"}, "which timm does not have"),
    "a path": ({"backbone": "timm:../../x"}, "backbone: got"),
    "a line end": ({"backbone": "timm:resnet10t\n"}, "backbone: got"),
    "boxes": ({"boxes": [[0, 0, 1, 1]], "anchors": "auto"}, "anchors: got 'auto'"),
    "endless anchors": ({"anchors": {"sizes": [[32.0] * 10_000] * 5, "ratios": [1.0]}}, "anchors: got"),
    "anchors of two levels": ({"anchors": {"sizes": [[32.0]] * 2, "ratios": [1.0]}}, "on each of 5 levels"),
    "unequal anchors": ({"anchors": {"sizes": [[32.0]] * 4 + [[1.0, 2.0]], "ratios": [1.0]}}, "on each of 5 levels"),
    "an anchor of no size": ({"anchors": {"sizes": [[0.0]] * 5, "ratios": [1.0]}}, "anchors: got"),
    "a giant scale": ({"scale": 1e6}, "scale: got 1000000.0; expected null or a number from 0.015625 to 16"),
    "a large scale, which a small tile allows": ({"scale": 15.9, "min_size": 4000}, None),
    "a giant input": ({"scale": None, "min_size": 10**6}, "min_size: got 1000000"),
    "a giant head": ({"head_channels": 2**16}, "tensors: "),
    "a giant pyramid": ({"fpn_channels": 4096}, "tensors: "),
    "giant bins": ({"output_size": 64, "fpn_channels": 4096}, "asks for 1.67772e+10 pooled values"),
    "endless proposals": ({"rpn_post_nms_top_n_test": 10**9}, "rpn_post_nms_top_n_test: got 1000000000"),
    "endless classes": ({"num_classes": 10**9}, "num_classes: got 1000000000"),
    "quadratic time": ({"num_classes": 20_000, "box_score_thresh": 0}, "asks for 1.9999e+07 boxes to compare"),
    "another model": ({"backbone": "resnet50_fpn"}, "tensors: "),
    "a large model of timm": ({"backbone": "timm:convnext_tiny"}, "tensors: "),
    "true for one": ({"num_classes": True}, "num_classes: got True"),
    "text for a number": ({"output_size": "7"}, "output_size: got '7'"),
    "thresholds the wrong way round": ({"rpn_fg_iou_thresh": 0.1, "rpn_bg_iou_thresh": 0.9}, ""),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.usefixtures("alone")
def test_a_hostile_description_is_one_line(
    name: str, honest: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path
) -> None:
    change, expected = HOSTILE[name]
    description = copy.deepcopy(honest[0])
    description["model"] |= change
    path = write(tmp_path / "model.safetensors", description, honest[1])
    if expected is None:
        load_detector(path)
    else:
        assert expected in refused(path)


@pytest.mark.parametrize(
    "change",
    [
        {"tile": 1}, {"tile": 0}, {"tile": -64}, {"tile": 10**9}, {"tile": 512.0}, {"tile": "512"}, {"tile": None},
        {"tile": True}, {"overlap": 95}, {"overlap": -1}, {"overlap": 1e300}, {"tile": 4096, "overlap": 4095},
        {"classes": ["tree"]}, {"classes": "ab"}, {"classes": [1, 2]}, {"classes": {"a": 1, "b": 2}},
        {"category_ids": [1]},
        {"category_ids": [1, "2"]},
        {"category_ids": [1, 2**64]}, {"metrics": {"score_threshold": 1e9}}, {"metrics": [1]},
        {"metrics": {"score_threshold": None}}, {"metrics": {"score_threshold": "0.5"}},
    ],
)  # fmt: skip
def test_a_hostile_card_is_one_line(
    change: dict[str, Any], honest: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path
) -> None:
    description = copy.deepcopy(honest[0])
    description["card"] |= change
    assert "card: " in refused(write(tmp_path / "model.safetensors", description, honest[1]))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "1", "null", '"x"', "[" * 200_000, '{"model": NaN}', '{"model": 1e999}', '{"model": []}',
     '{"card": {}}',
     '{"model": {"num_classes": ' + "9" * 5000 + "}}", '{"model": null, "card": null}'],
)  # fmt: skip
def test_a_description_that_is_none_is_one_line(text: str, tmp_path: Path) -> None:
    refused(write(tmp_path / "model.safetensors", text, {"a": torch.ones(1)}))


def mutations(description: dict[str, Any], seed: int) -> Iterator[Any]:
    """The description with one value anywhere in it made wrong, lost, doubled or another's."""
    chance = random.Random(seed)
    odd = [
        None,
        True,
        0,
        -1,
        1,
        2,
        10**12,
        2**70,
        0.5,
        -0.0,
        1e308,
        math.inf,
        math.nan,
        "",
        "1",
        "timm:hf-hub:a/b",
        [],
        {},
        [[]],
    ]
    while True:
        mutant = copy.deepcopy(description)
        holder: Any = mutant
        while True:
            places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            place = chance.choice(places)
            if not holder[place] or not isinstance(holder[place], dict | list) or chance.random() < 0.2:
                break
            holder = holder[place]
        how = chance.randrange(4)
        if how == 0:
            holder[place] = copy.deepcopy(chance.choice(odd))
        elif how == 1:
            del holder[place]
        elif how == 2:
            holder[place] = [holder[place]] * chance.choice([1, 2, 1000])
        elif isinstance(holder, dict):
            holder[chance.choice(["", "weights", "boxes", "device", "a\nb"])] = holder.pop(place)
        yield mutant


@pytest.mark.usefixtures("alone")
def test_mutated_descriptions_load_or_are_refused_in_one_line(
    honest: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred times; what passes the rules must build, or say in a line why it does not."""
    built: dict[str, Any] = {}

    def build_on_meta(**description: Any) -> Any:
        name = json.dumps(description)
        if name not in built:
            with torch.device("meta"):
                built[name] = build_detector(**description)
        return built[name]

    monkeypatch.setattr(module, "build_detector", build_on_meta)
    monkeypatch.setattr(module, "_compare", lambda *_: None)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_: None)
    path = tmp_path / "model.safetensors"
    messages: list[str] = []
    for _, mutant in zip(range(200), mutations(honest[0], 5), strict=False):
        write(path, mutant, {"a": torch.zeros(1)})
        try:
            load_detector(path)
        except ValueError as error:
            messages.append(str(error))
    assert 100 < len(messages) < 195
    assert [message for message in messages if "\n" in message or not message.startswith(f"{path}: ")] == []


def test_lying_files_are_one_line(honest: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path) -> None:
    description, tensors = honest
    path = tmp_path / "model.safetensors"
    name = "roi_heads.box_predictor.cls_score.bias"
    for change, expected in (
        ({name: torch.zeros(4)}, "has shape [4]; the described model's is [3]"),
        ({name: torch.zeros(3, dtype=torch.int64)}, "is of I64"),
        ({name: torch.tensor([0.0, math.nan, 0.0])}, "not finite"),
        ({name: torch.tensor([0.0, math.inf, 0.0]).half()}, "not finite"),
        ({"another": torch.zeros(1)}, "another is none of the described model"),
    ):
        assert expected in refused(write(path, description, {**tensors, **change}))
    lacking = {key: value for key, value in tensors.items() if key != name}
    assert f"{name} is missing" in refused(write(path, description, lacking))

    content = write(path, description, tensors).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header[name]["data_offsets"] = [0, 2**40]
    longer = json.dumps(header).encode()
    for lie in (
        content[:-1],
        content + b"more",
        content[: 8 + length // 2],
        content[:8],
        b"",
        struct.pack("<Q", 2**63) + content[8:],
        struct.pack("<Q", len(longer)) + longer + content[8 + length :],
    ):
        path.write_bytes(lie)
        assert "not a safetensors file" in refused(path)


def test_what_would_be_refused_is_not_written(tmp_path: Path) -> None:
    model = build_detector(2, "mobilenet_v2_fpn", fpn_channels=8, head_channels=8, output_size=2)
    for card in ({"tile": 8}, {"classes": ["a", "b"]}, {"tile": 512, "overlap": 300}):
        with pytest.raises(ValueError, match="card: "):
            save_detector(model, tmp_path / "model.safetensors", **card)
    assert list(tmp_path.iterdir()) == []
    check_model(model.description)
    check_card({"tile": 512, "overlap": 256, "anything": [None]}, model.description)


@pytest.mark.parametrize(
    "card", [{"tile": 1, "overlap": 0}, {"tile": 512, "overlap": 511}, {"tile": 64.5}, {"overlap": "9"}]
)
def test_a_card_cannot_make_work_explode(card: dict[str, Any], tmp_path: Path) -> None:
    model = build_detector(2, "mobilenet_v2_fpn", fpn_channels=8, head_channels=8, output_size=2, scale=1.0)
    model.card = card
    Image.new("RGB", (80, 80)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="card: "):
        next(detect(model, [Photo(tmp_path / "a.png")]))
    (found,) = detect(model, [Photo(tmp_path / "a.png")], tile=0, overlap=0)  # what the user says holds
    assert found.boxes.shape[1] == 4


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"PK\x03\x04", b"{}", b"\x80\x02]q\x00."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_cannot_be_read_are_one_line(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"start{suffix}"
    path.write_bytes(content)
    model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"weights: .*start") as caught:
        load_weights(model, path)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_name_that_torchvision_lacks_is_no_key_error() -> None:
    for name in ("MobileNet_V2_Weights.NOPE", "a.b.c", "os.path", ""):
        with pytest.raises((FileNotFoundError, ValueError), match="weights: "):
            load_weights(torch.nn.Linear(1, 1), name)  # type: ignore[arg-type]
