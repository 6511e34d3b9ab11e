"""Annotations of every format: one data set is the same in all of them, up to the weights that it trains to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from annotated import CLASSES, SCENES, Drawn, paint, write_coco, write_csv, write_voc, write_yolo
from roialign.cli import app
from roialign.detection import inputs
from roialign.detection.checkpoint import save_detector
from roialign.detection.datasets import AnnotatedImages
from roialign.detection.model import build_detector
from roialign.detection.recipe import Recipe
from roialign.samples import PHOTO_FILE, TRAIN

FORMATS = {
    "coco": ("images/train", lambda folder, scenes: write_coco(folder, scenes, "images/train")),
    "yolo": ("images/train", write_yolo),
    "voc": ("JPEGImages", write_voc),
    "csv": (".", write_csv),
}


def write(name: str, folder: Path, scenes: tuple[Drawn, ...] = SCENES) -> Path:
    images, writer = FORMATS[name]
    paint(folder / images, scenes)
    return writer(folder, scenes)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(result: Result) -> str:
    """What a command printed, and why it ended, on one line."""
    return " ".join((result.output + str(result.exception or "")).split())


@pytest.mark.parametrize("name", FORMATS)
def test_a_data_set_is_the_same_in_every_format(name: str, tmp_path: Path) -> None:
    data = AnnotatedImages(write(name, tmp_path / "set"))
    assert (data.classes, data.category_ids, data.notes) == (["bush", "tree"], [1, 2], [])
    assert [(entry.id, entry.file.name, entry.width, entry.height) for entry in data.entries] == [
        (k, scene.name, scene.width, scene.height) for k, scene in enumerate(SCENES, 1)
    ]
    for entry, scene in zip(data.entries, SCENES, strict=True):  # to the bit: these are whole pixels
        assert entry.boxes.tolist() == [list(box) for _, *box in scene.boxes]
        assert entry.labels.tolist() == [CLASSES.index(kind) + 1 for kind, *_ in scene.boxes]
        assert entry.areas.tolist() == [(x2 - x1) * (y2 - y1) for _, x1, y1, x2, y2 in scene.boxes]
        assert len(entry.crowds) == 0
    coco = AnnotatedImages(write("coco", tmp_path / "coco"))
    assert data.digest() == coco.digest()
    out = tmp_path / "elsewhere" / "annotations.json"
    result = run("convert", data.path, "--out", out)
    assert result.exit_code == 0, said(result)
    assert "annotations.json: 3 images, 5 boxes, 2 classes" in said(result)
    again = AnnotatedImages(out)
    assert again.digest() == data.digest()
    assert json.loads(out.read_text())["images"][1]["file_name"].startswith("../set/")
    before = out.read_bytes()
    refused = run("convert", data.path, "--out", out)
    assert refused.exit_code == 1
    assert "annotations.json: is there already; name another file" in said(refused)
    assert out.read_bytes() == before


def test_a_conversion_keeps_every_bit(tmp_path: Path) -> None:
    """Boxes that no decimal of ten digits has, crowds, areas, ids as text."""
    paint(tmp_path, SCENES[:1])
    generator = torch.Generator().manual_seed(5)
    corners, ids = (torch.rand(40, 4, generator=generator) * 60).tolist(), [2**63 - 1, -(2**63)]
    boxes = [
        {"image_id": "图", "category_id": ids[k % 2], "bbox": box, "area": box[2] / 3, "iscrowd": int(k % 5 == 0)}
        for k, box in enumerate(corners)
    ]
    content = {"images": [{"id": "图", "file_name": "a 1.png"}], "annotations": boxes}
    content["categories"] = [{"id": ids[0], "name": "x"}, {"id": ids[1], "name": "y"}]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    data = AnnotatedImages(tmp_path / "boxes.json")
    assert (len(data.entries[0].boxes), len(data.entries[0].crowds)) == (32, 8)
    assert run("convert", data.path, "--out", tmp_path / "new.json").exit_code == 0
    assert AnnotatedImages(tmp_path / "new.json").digest() == data.digest()
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere.json")
    assert "is there already" in said(run("convert", data.path, "--out", tmp_path / "link.json"))
    assert not (tmp_path / "nowhere.json").exists()


@pytest.mark.parametrize("name", ["coco", "voc", "csv"])
def test_a_giant_box_is_cut_like_any_other(name: str, tmp_path: Path) -> None:
    scene = SCENES[0]._replace(boxes=[("tree", 10, 20, 10**308, 10**308), ("bush", 10**308, 1, 10**308, 9)])
    data = AnnotatedImages(write(name, tmp_path, (scene,)))
    assert (data.boxes.tolist(), data.entries[0].areas.tolist()) == ([[10, 20, 100, 80]], [90 * 60])
    (note,) = data.notes
    assert note.endswith(": no area inside its image")


@pytest.fixture(scope="module")
def crowns() -> tuple[Drawn, ...]:
    """Cuts of the packaged photo, with boxes in whole pixels."""
    scenes = []
    for index in range(4):
        x, y = 70 * index, 60 * index
        boxes = (
            (AnnotatedImages(TRAIN).entries[0].boxes - torch.tensor([x, y, x, y])).clamp(0, 64).round().int().tolist()
        )
        kept = [("tree", *box) for box in boxes if box[2] - box[0] > 8 and box[3] - box[1] > 8]
        scenes.append(Drawn(f"cut{index}.png", 64, 64, [*kept, ("bush", 1, 2, 9, 13)]))
    return tuple(scenes)


@pytest.mark.slow
def test_every_format_trains_to_the_same_bytes(crowns: tuple[Drawn, ...], tmp_path: Path) -> None:
    small = ("--crop", "64", "--scale", "1", "--batch", "2", "--epochs", "1", "--val-split", "0.25")
    files: dict[str, list[bytes]] = {}
    for name, (images, _) in FORMATS.items():
        folder, out = tmp_path / name, tmp_path / f"out {name}"
        source = write(name, folder, crowns)
        with Image.open(PHOTO_FILE) as photo:
            for index, scene in enumerate(crowns):
                x, y = 70 * index, 60 * index
                photo.crop((x, y, x + 64, y + 64)).save(folder / images / scene.name)
        result = run("train", source, "--out", out, *small)
        assert result.exit_code == 0, said(result)
        files[name] = [(out / each).read_bytes() for each in ("model.safetensors", "last.safetensors", "log.csv")]
    assert all(each == files["coco"] for each in files.values()), [
        name for name in files if files[name] != files["coco"]
    ]


def test_parts_are_learned_and_judged_by(tmp_path: Path) -> None:
    """YOLO's val and VOC's lists are what --val names in COCO."""
    yolo, voc, coco = (tmp_path / name for name in ("yolo", "voc", "coco"))
    first, second = SCENES[:2], SCENES[2:] + SCENES[1:2]
    for part, scenes in (("train", first), ("val", second)):
        paint(yolo / "images" / part, scenes)
        write_yolo(yolo, scenes, part)
        paint(coco / part, scenes)
        write_coco(coco, sorted(scenes), name=f"{part}.json")
    (yolo / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: {0: bush, 1: tree}\n")
    paint(voc / "JPEGImages", SCENES)
    write_voc(voc, SCENES)
    lists = voc / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for part, names in (("train", ["a 1", "b"]), ("val", ["b", "c"])):
        (lists / f"{part}.txt").write_text("\n".join(names) + "\n")
    files = {"annotations": coco / "train.json", "images": coco / "train"}
    pairs = [
        inputs.training_data(Recipe(**files, val=coco / "val.json", val_images=coco / "val")),
        inputs.training_data(Recipe(annotations=yolo / "data.yaml")),
        inputs.training_data(Recipe(annotations=yolo)),
        inputs.training_data(Recipe(annotations=voc)),
    ]
    digests = [(data.digest(), held.digest()) for data, held in pairs if held]
    assert len(digests) == 4
    assert set(digests) == {digests[0]}
    assert [entry.file.name for entry in pairs[0][0].entries] == ["a 1.png", "b.png"]
    held = pairs[3][1]
    assert held is not None
    note = (
        f"{voc}: 1 images to judge by are learned from too, so the measures flatter: {str(voc / 'JPEGImages/b.png')!r}"
    )
    assert held.notes == [note]  # of YOLO's the files differ
    assert inputs.judged_data(yolo).digest() == digests[0][1]
    assert inputs.judged_data(voc, part="train").digest() == digests[0][0]
    everything = AnnotatedImages(yolo / "data.yaml")
    assert [entry.file.parent.name for entry in everything.entries] == ["train", "train", "val", "val"]
    told = said(run("convert", yolo, "--out", tmp_path / "all.json"))
    assert "4 images of all parts (train, val: --part gives one), 8 boxes" in told
    for arguments, message in (
        (("evaluate", yolo, "--part", "test"), "data.yaml: has no part test; it has train, val"),
        (("evaluate", coco / "val.json", "--part", "val"), "val.json: has no part val; it has one part only"),
        (("train", coco / "train.json", "--val-images", coco), "--val-images: there is no --val"),
        (("train", yolo, "--images", yolo), "--images is not for YOLO"),
    ):
        assert message in said(run(*arguments, "--out", tmp_path / "out"))


CASES = [  # the file's classes, --classes, ours, the labels of the file's first boxes
    (("tree", "bush"), None, ["bush", "tree"], [2, 1]),
    (("TREE", "Bush"), None, ["bush", "tree"], [2, 1]),
    (("tree", "tree"), None, ["bush", "tree"], [2, 2]),
    (("tree", "TREE"), None, ["tree", "TREE"], [1, 2]),
    (("tree", "shrub"), "tree", ["bush", "tree"], [2]),
    (("tree", "shrub"), "tree,bush=shrub", ["bush", "tree"], [2, 1]),
    (("oak", "beech"), "tree=oak,tree=BEECH", ["tree"], [1, 1]),
    (("a,b", "bush"), '"tree=a,b",bush', ["bush", "tree"], [2, 1]),
]


@pytest.mark.parametrize(("names", "classes", "ours", "labels"), CASES)
def test_classes_go_by_name(
    names: tuple[str, str], classes: str | None, ours: list[str], labels: list[int], tmp_path: Path
) -> None:
    paint(tmp_path, SCENES[:1])
    quoted = [f'"{name}"' for name in names]
    rows = ["image_path,xmin,ymin,xmax,ymax,label", f"a 1.png,1,2,30,40,{quoted[0]}", f"a 1.png,5,6,70,80,{quoted[1]}"]
    (tmp_path / "boxes.csv").write_text("\n".join(rows))
    model = build_detector(len(ours) + 1, "mobilenet_v2", fpn_channels=16, head_channels=16)
    model.card = {"classes": ours, "category_ids": [7 + k for k in range(len(ours))]}
    data = inputs.fit_to_model(inputs.judged_data(tmp_path / "boxes.csv", classes=classes), model)
    assert data.classes == ours
    assert data.entries[0].labels.tolist() == labels
    assert data.entries[0].areas.tolist() == [29 * 38, 65 * 74][: len(labels)]
    assert len(set(data.category_ids)) == len(ours)  # the file's for its own classes, the detector's for others
    assert any("of other classes are left out: 1 of 'shrub'" in note for note in data.notes) == (len(labels) == 1)
    assert any("2 classes differ by upper and lower case only" in note for note in data.notes) == (names[1] == "TREE")


def test_classes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = write("csv", tmp_path)
    weights = tmp_path / "m.safetensors"
    few = {"box_detections_per_img": 5, "rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 5}
    model = build_detector(2, "mobilenet_v2_fpn", fpn_channels=16, head_channels=16, norm="group", scale=1.0, **few)
    model.card = {"classes": ["Tree"], "category_ids": [5], "tile": 64, "overlap": 0}
    save_detector(model, weights)
    judge = ("evaluate", source, "--weights", weights, "--out", tmp_path / "out")
    lacks = "boxes.csv: its class 'bush' is one that the detector lacks: ['Tree']; "
    lacks += "--classes 'Tree' leaves it out, --classes 'Tree=bush' takes it for that"
    assert lacks in said(run(*judge))
    assert "got 'shrub'; the classes are ['bush', 'tree']" in said(run(*judge, "--classes", "tree=shrub"))
    for wrong in ("", ",", "tree=", "=tree", "tree,Tree", '"a"b'):
        result = run(*judge, "--classes", wrong)
        assert result.exit_code == 1
        assert "--classes: got" in said(result), wrong
    result = run(*judge, "--classes", "tree", "--json", tmp_path / "ap.json")
    assert result.exit_code == 0, said(result)
    assert json.loads((tmp_path / "ap.json").read_text())["boxes"] == 3
    assert "boxes of other classes are left out: 2 of 'bush'" in said(result)
    trees = SCENES[0]._replace(boxes=SCENES[0].boxes[:1])
    unused = inputs.fit_to_model(AnnotatedImages(write_coco(tmp_path, [trees])), model)  # bush has no box there
    assert (unused.classes, unused.category_ids, unused.boxes.shape) == (["Tree"], [2], (1, 4))
    held = tmp_path / "held.csv"
    held.write_text("image_path,xmin,ymin,xmax,ymax,label\nb.png,1,1,9,9,TREE\n")
    _, judged = inputs.training_data(Recipe(annotations=source, val=held))
    assert judged is not None
    assert (judged.classes, judged.category_ids, judged.boxes.shape) == (["bush", "tree"], [3, 1], (1, 4))
    assert judged.entries[0].labels.tolist() == [2]
    both, judged = inputs.training_data(Recipe(annotations=source, val=held, classes="plant=tree,bush"))
    assert judged is not None
    assert both.classes == judged.classes == ["plant", "bush"]
    assert (both.category_ids, judged.entries[0].labels.tolist()) == ([2, 1], [1])
    held.write_text("image_path,xmin,ymin,xmax,ymax,label\nb.png,1,1,9,9,shrub\n")
    with pytest.raises(ValueError, match=r"held\.csv: its class 'shrub' is one that .* --classes 'bush=shrub' takes"):
        inputs.training_data(Recipe(annotations=source, val=held))
