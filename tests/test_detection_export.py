"""``roialign export``: the file answers as Python does, on images of any size, or it is not written."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from helpers import run_python
from roialign.cli import app
from roialign.detection import POOLINGS, build_detector, detect, load_detector
from roialign.detection import export as exporting
from roialign.detection.graph import resized
from roialign.detection.images import Photo
from roialign.detection.tiles import Found
from roialign.samples import HELDOUT, PHOTO_FILE

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[1]

FOREST = HELDOUT.parent / "SOAP_061.jpg"


def export(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["export", *arguments])


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's detector, as the command writes it."""
    out = tmp_path_factory.mktemp("export") / "model.onnx"
    done = export("--out", str(out))
    assert done.exit_code == 0, done.output
    return out


@pytest.mark.slow
def test_the_shipped_detector_by_the_example(shipped: Path) -> None:
    """In a process that has neither PyTorch nor roialign, on a photo of another size than the command checked."""
    code = (
        "import json, sys\n"
        "sys.modules['roialign'] = sys.modules['torchvision'] = None\n"
        f"sys.path.insert(0, {str(ROOT / 'examples')!r})\n"
        "import run_onnx\n"
        "print(json.dumps(run_onnx.detect(*sys.argv[1:3])))\n"
    )
    found = json.loads(run_python(code, "", str(shipped), str(PHOTO_FILE)))
    model = load_detector()
    (expected,) = detect(model, [Photo(PHOTO_FILE)], tile=0)
    expected = expected.above(model.card["metrics"]["score_threshold"])
    assert len(expected.boxes) > 10
    assert [name for name, *_ in found] == ["tree"] * len(expected.boxes)
    torch.testing.assert_close(
        torch.tensor([box for _, _, box, _ in found]), expected.boxes, atol=exporting.PIXELS, rtol=0
    )
    scores = torch.tensor([score for _, score, *_ in found])
    torch.testing.assert_close(scores, expected.scores, atol=exporting.SCORE, rtol=0)


def test_what_the_file_says_of_itself(shipped: Path) -> None:
    program = onnx.load(shipped)
    onnx.checker.check_model(program, full_check=True)
    assert {each.domain for each in program.opset_import} == {""}  # standard nodes only
    session = onnxruntime.InferenceSession(shipped)
    signature = {each.name: (each.type, each.shape) for each in (*session.get_inputs(), *session.get_outputs())}
    assert signature == {
        "image": ("tensor(float)", [3, "height", "width"]),
        "boxes": ("tensor(float)", ["detections", 4]),
        "scores": ("tensor(float)", ["detections"]),
        "labels": ("tensor(int64)", ["detections"]),
    }
    told = session.get_modelmeta().custom_metadata_map
    card = load_detector().card
    assert json.loads(told["classes"]) == ["tree"]
    assert [json.loads(told[name]) for name in ("tile", "overlap")] == [card["tile"], card["overlap"]]
    assert json.loads(told["score_threshold"]) == card["metrics"]["score_threshold"]


def test_nothing_is_found_in_nothing(shipped: Path) -> None:
    session = onnxruntime.InferenceSession(shipped)
    boxes, scores, labels = session.run(None, {"image": torch.zeros(3, 130, 70).numpy()})
    assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))


@pytest.mark.slow
def test_an_answer_that_is_not_pythons_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph of the same detector with one number changed: a box's edge lies elsewhere."""
    write = exporting.onnx_of

    def wrong(model: Any) -> bytes:
        model.roi_heads.box_predictor.bbox_pred.bias.data[4] += 0.05
        content = write(model)
        model.roi_heads.box_predictor.bbox_pred.bias.data[4] -= 0.05
        return content

    monkeypatch.setattr(exporting, "onnx_of", wrong)
    out = tmp_path / "model.onnx"
    done = export("--out", str(out), "--photo", str(PHOTO_FILE))
    assert done.exit_code == 1
    assert "is not written" in done.output
    assert "pixels, scores by" in done.output
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    Photo(PHOTO_FILE).crop((0, 0, 127, 200)).save(small)
    for arguments, said in (
        (["--out", str(tmp_path / "model.pt")], "expected a name that ends in .onnx"),
        (["--out", str(tmp_path / "model.onnx"), "--photo", str(small)], "127 x 200 pixels; expected 128 or more"),
        ([str(tmp_path / "none.safetensors"), "--out", str(tmp_path / "model.onnx")], "none.safetensors"),
    ):
        done = export(*arguments)
        assert done.exit_code == 1
        assert said in " ".join(done.output.split())
    assert [file.name for file in tmp_path.iterdir()] == ["small.png"]


def found(*rows: tuple[float, ...]) -> Found:
    """Of rows x1, y1, x2, y2, score, label."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Found(table[:, :4], table[:, 4], table[:, 5].long())


def test_differences_by_hand() -> None:
    first = found((0, 0, 10, 10, 0.9, 1), (50, 50, 90, 90, 0.6, 1), (200, 0, 220, 20, 0.3, 2))
    moved = found((50, 50.25, 90, 90, 0.5, 1), (0, 0, 10, 10, 0.9, 1), (200, 0, 220, 20, 0.3, 2))
    assert exporting.difference(first, first, 0.02, 100) == (0, 0, 0, 0)
    difference = exporting.difference(first, moved, 0.02, 100)
    assert (difference.moved, difference.drawn, difference.lone) == (0.25, 0, 0)
    assert difference.scored == pytest.approx(0.1)
    other_label = found((0, 0, 10, 10, 0.9, 2))
    assert exporting.difference(found((0, 0, 10, 10, 0.9, 1)), other_label, 0.02, 100).lone == 2
    assert exporting.difference(first, found(), 0.02, 100).lone == 3
    assert exporting.difference(first, found(), 0.3, 100).lone == 2  # the last is at the least score
    # Both lists are full, and end with another one of the same score.
    full = found((0, 0, 10, 10, 0.9, 1), (7, 0, 20, 9, 0.6, 1)), found((0, 0, 10, 10, 0.9, 1), (7, 50, 20, 90, 0.6, 1))
    assert exporting.difference(*full, 0.02, 2).lone == 0
    assert exporting.difference(*full, 0.02, 3).lone == 2


class Resized(nn.Module):
    """The graph's first step alone."""

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, image: Tensor) -> Tensor:
        return resized(image, self.transform)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("options", [{"scale": 1.5}, {"scale": 0.37}, {"min_size": 256, "max_size": 400}])
def test_images_are_resized_as_by_the_detector(options: dict[str, Any]) -> None:
    """To the pixel, whatever the sides: 400 * (256 / 400) is 256, but 400 * (256 * (1 / 400)) may be less."""
    transform = build_detector(2, "mobilenet_v2_fpn", **options).eval().transform
    file = io.BytesIO()
    axes = {"image": {1: "height", 2: "width"}}
    torch.onnx.export(
        Resized(transform), (torch.rand(3, 60, 80),), file, dynamo=False, input_names=["image"], dynamic_axes=axes
    )
    session = onnxruntime.InferenceSession(file.getvalue())
    generator = torch.Generator().manual_seed(0)
    sides = [(400, 400), (301, 333), *torch.randint(40, 700, (40, 2), generator=generator).tolist()]
    for height, width in sides:
        image = torch.rand(3, height, width, generator=generator)
        expected, _ = transform.resize(image, None)
        (got,) = session.run(None, {"image": image.numpy()})
        # Both find a sample's place in float32, to 2^-23 of 700 pixels or 1e-4; a pixel differs by 1 from the next.
        torch.testing.assert_close(torch.from_numpy(got), expected, atol=3e-4, rtol=0)


WHOLE = [
    *(("mobilenet_v2_fpn", pooling) for pooling in POOLINGS),
    *((backbone, "roi_align") for backbone in ("resnet50_fpn", "timm:resnet18")),
    *(("mobilenet_v2", pooling) for pooling in POOLINGS),
]


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "pooling"), WHOLE)
def test_every_detector_on_three_photos(backbone: str, pooling: str) -> None:
    """Random weights, resized as torchvision's detectors are: photos of three sizes, one of them grown."""
    torch.manual_seed(0)
    model = build_detector(4, backbone, pooling, min_size=256, max_size=400, box_detections_per_img=30).eval()
    wake(model, 3 * Photo(PHOTO_FILE).read()[:, :384, :384] - 1.5)
    content = exporting.onnx_of(model)
    for file, (height, width) in (
        (PHOTO_FILE, (400, 400)),
        (FOREST, (301, 333)),
        (HELDOUT.parent / "YELL_lower.jpg", (130, 500)),
    ):
        image = Photo(file).read()[:, :height, :width]
        checked = exporting.check(content, model, image, backbone)
        assert checked.boxes >= 10


def wake(model: Any, image: Tensor) -> None:
    """Random weights see nothing: their maps are nearly constant, all scores are one, and rounding decides the order.

    Batch norms that know a photo, and steeper scores, tell boxes apart.
    """
    with torch.no_grad():
        for module in model.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.backbone.train()(torch.stack([image, image.flip(1)]))
        model.backbone.eval()
        model.rpn.head.cls_logits.weight *= 10
        model.rpn.head.bbox_pred.weight *= 3
        model.roi_heads.box_predictor.cls_score.weight *= 5
