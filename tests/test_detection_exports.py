"""What annotation tools write, folders and names as they lay them out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import mask as reference
from PIL import Image

from roialign.detection.datasets import AnnotatedImages


def image(*files: Path, size: tuple[int, int] = (100, 80)) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(file)


def coco(file: Path, names: list[str], *annotations: dict[str, Any]) -> Path:
    """A COCO file as Label Studio and CVAT write it: whatever else they have in it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": ""},
        "categories": [{"id": 0, "name": "tree", "supercategory": ""}],
        "images": [
            {"id": k, "width": 100, "height": 80, "file_name": name, "license": 0, "date_captured": 0}
            for k, name in enumerate(names)
        ],
        "annotations": [{"id": k, "image_id": 0, "category_id": 0, **each} for k, each in enumerate(annotations)],
    }
    file.write_text(json.dumps(content))
    return file


BOX = {"segmentation": [], "bbox": [10.5, 20, 30, 40], "ignore": 0, "iscrowd": 0, "area": 1200.0}
ROTATED = {**BOX, "attributes": {"occluded": False, "rotation": 0.0}}


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("images/8d1fa2c3-a.jpg", "images/8d1fa2c3-a.jpg"),
        ("images\\1/8d1fa2c3-a.jpg", "images/8d1fa2c3-a.jpg"),
        ("..\\..\\label-studio\\label-studio\\media\\upload\\4\\8d1fa2c3-a.jpg", "images/8d1fa2c3-a.jpg"),
        ("../../label-studio/data/media/upload/1/8d1fa2c3-a.jpg", "8d1fa2c3-a.jpg"),
        ("/data/upload/1/8d1fa2c3-a.jpg", "a.jpg"),
        ("/data/local-files/?d=photos/a.jpg", "images/a.jpg"),
    ],
)
def test_label_studio(written: str, there: str, tmp_path: Path) -> None:
    other = written.replace("a.jpg", "b.jpg")
    file = coco(tmp_path / "project" / "result.json", [written, other], BOX)
    image(tmp_path / "project" / there, tmp_path / "project" / there.replace("a.jpg", "b.jpg"))
    for named in (file, file.parent):
        data = AnnotatedImages(named)
        assert data.entries[0].file == tmp_path / "project" / there
        assert [entry.file.name[-5:] for entry in data.entries] == ["a.jpg", "b.jpg"]
        assert data.entries[0].boxes.tolist() == [[10.5, 20, 40.5, 60]]
        assert len(data.notes) == (written != there)
        assert all(" 2 images are found by the end of their names: " in note for note in data.notes)
    assert AnnotatedImages(file, (tmp_path / "project" / there).parent).entries[1].boxes.shape == (0, 4)


def test_ends_of_names_must_differ_and_lead_somewhere(tmp_path: Path) -> None:
    file = coco(tmp_path / "c.json", ["x/a.jpg", "y/a.jpg"], BOX)
    image(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"2 of 2 images are not there: '.*x/a.jpg'"):
        AnnotatedImages(file)
    file = coco(tmp_path / "c.json", ["x/a.jpg", "x/b.jpg", "x/c.jpg"], BOX)
    image(tmp_path / "b.jpg")
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images are not there: '[^']*/c.jpg'; --images names their"):
        AnnotatedImages(file)
    image(tmp_path / "x" / "a.jpg")  # one is where it should be, so the others should be there too
    with pytest.raises(FileNotFoundError, match=r"2 of 3 images are not there: '[^']*x/b.jpg', '[^']*x/c.jpg'; --im"):
        AnnotatedImages(file)


@pytest.mark.parametrize(
    ("file", "photo"),
    [
        ("annotations/instances_default.json", "images/default/a.jpg"),  # CVAT
        ("annotations/instances_default.json", "images/a.jpg"),
        ("annotations/instances_train2017.json", "train2017/a.jpg"),  # COCO
        ("_annotations.coco.json", "a.jpg"),  # Roboflow
        ("result.json", "images/a.jpg"),
    ],
)
def test_folders_of_images(file: str, photo: str, tmp_path: Path) -> None:
    image(tmp_path / photo)
    coco(tmp_path / file, ["a.jpg"], ROTATED)
    for named in (tmp_path, tmp_path / file):
        data = AnnotatedImages(named)
        assert data.entries[0].file == tmp_path / photo
        assert data.notes == []


def test_outlines_where_there_is_no_box(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    polygon = [10.25, 20, 30, 25, 12, 60.5]
    shapes: list[dict[str, Any]] = [
        {"segmentation": [polygon]},
        {"segmentation": [polygon, [50, 5, 60, 5, 60, 6.5]], "bbox": []},
        {"segmentation": [polygon], "bbox": None, "iscrowd": 1},
        {"segmentation": {"size": [80, 100], "counts": [80 * 100]}},
        {"segmentation": {"size": [80, 100], "counts": [161, 3, 80 * 100 - 164]}},
        {"segmentation": [polygon], "bbox": [1, 2, 3, 4]},
        {"segmentation": [[10, 20, 1e308, 20, 1e308, 1e308]]},  # cut like any other
    ]
    data = AnnotatedImages(coco(tmp_path / "c.json", ["a.jpg"], *shapes))
    assert data.boxes.tolist() == [
        [10.25, 20, 30, 60.5], [10.25, 5, 60, 60.5], [2, 1, 3, 4], [1, 2, 4, 6], [10, 20, 100, 80]
    ]  # fmt: skip
    assert data.entries[0].crowds.tolist() == [[10.25, 20, 30, 60.5]]
    assert data.notes == [
        f"{tmp_path / 'c.json'}: 1 boxes are left out: annotations[3] (id 3): no area inside its image"
    ]


def test_masks_are_read_as_coco_reads_them(tmp_path: Path) -> None:
    """Against the decoder of COCO's own tools."""
    chance = np.random.default_rng(3)
    image(tmp_path / "a.jpg", size=(23, 17))
    shapes, expected = [], []
    for number in range(300):
        mask = np.zeros((17, 23), dtype=np.uint8, order="F")
        y, x = chance.integers(0, 17), chance.integers(0, 23)
        mask[y : y + chance.integers(1, 17), x : x + chance.integers(1, 23)] = 1
        mask &= chance.random((17, 23)) < (1 if number % 3 else 0.3)
        mask[y, x] = 1
        packed = reference.encode(mask)
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        expected.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        counts: Any = packed["counts"].decode() if isinstance(packed["counts"], bytes) else packed["counts"]
        if number % 2:
            flat = mask.ravel(order="F")
            edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
            counts = np.diff([0, *edges, flat.size]).tolist()
        shapes.append({"segmentation": {"size": [17, 23], "counts": counts}})
    file = coco(tmp_path / "c.json", ["a.jpg"], *shapes)
    content = json.loads(file.read_text())
    content["images"][0].update(width=23, height=17)
    file.write_text(json.dumps(content))
    assert AnnotatedImages(file).boxes.tolist() == expected


MASK = {"size": [80, 100], "counts": [1, 2, 7997]}
OUTLINES: list[tuple[Any, str]] = [
    ([], r"got \[\]; expected polygons"),
    (None, "got null; expected polygons"),
    ("x", "got 'x'; expected polygons"),
    ([[1, 2, 3, 4]], r"got \[1, 2, 3, 4\]; expected polygons"),
    ([[1, 2, 3, 4, 5, 6, 7]], r"got \[.*\]; expected polygons"),
    ([[1, 2, 3, 4, 5, "6"]], r"got \[.*\]; expected polygons"),
    ([1, 2, 3, 4, 5, 6], "got 1; expected polygons"),
    ({}, "size: got null; expected the image's height and width"),
    ({**MASK, "size": [100, 80]}, r"size: got \[100, 80\]; expected the image's"),
    ({**MASK, "size": [0, 100]}, "size: got"),
    ({**MASK, "size": [80, True]}, "size: got"),
    ({**MASK, "counts": [1, 2, 7998]}, r"counts: got \[1, 2, 7998\]; expected runs that make 8000 pixels"),
    ({**MASK, "counts": [1, -2, 8001]}, "counts: got"),
    ({**MASK, "counts": [8000.5]}, "counts: got"),
    ({**MASK, "counts": []}, r"counts: got \[\]"),
    ({**MASK, "counts": ""}, "counts: got ''"),
    ({**MASK, "counts": "PPP"}, "counts: got 'PPP'"),  # the last digit wants another
    ({**MASK, "counts": "o" * 10**6}, "counts: got"),
    ({**MASK, "counts": "1~"}, "counts: got"),
    ({**MASK, "counts": "图"}, "counts: got"),
    ({**MASK, "counts": None}, "counts: got null"),
    ({"size": [80, 100], "counts": [10**400, 1]}, "counts: got"),
]


@pytest.mark.parametrize(("segmentation", "message"), OUTLINES)
def test_outlines_that_are_none(segmentation: Any, message: str, tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    file = coco(tmp_path / "c.json", ["a.jpg"], {"segmentation": segmentation})
    where = r"^.*c\.json: annotations\[0\] \(id 0\): no bbox, and segmentation: "
    with pytest.raises(ValueError, match=where + message):
        AnnotatedImages(file)


def test_boxes_to_be_ignored_are_crowds(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    boxes = [{**BOX, "ignore": ignore, "iscrowd": crowd} for ignore, crowd in ((0, 0), (1, 0), (True, 1), (0, 1))]
    boxes = [{**box, "bbox": [k, 1, 5, 5]} for k, box in enumerate(boxes)]
    entry = AnnotatedImages(coco(tmp_path / "c.json", ["a.jpg"], *boxes)).entries[0]
    assert (entry.boxes[:, 0].tolist(), entry.crowds[:, 0].tolist()) == ([0], [1, 2, 3])
    with pytest.raises(ValueError, match="ignore: got null; expected 0 or 1"):
        AnnotatedImages(coco(tmp_path / "c.json", ["a.jpg"], {**BOX, "ignore": None}))


ROW = "1 0.5 0.5 0.25 0.5\n"


@pytest.mark.parametrize(
    ("yaml", "photos", "labels"),
    [
        ("train: ../train/images\nval: ../valid/images\n", "train/images", "train/labels"),  # Roboflow
        ("path: ../datasets/coco8\ntrain: images/train\n", "images/train", "labels/train"),  # Ultralytics' own
        ("path: .\ntrain: [images/a, images/b]\n", "images/b", "labels/b"),
        ("path: ''\ntrain: train.txt\n", "images/sub", "labels/sub"),
        ("path:\ntrain: images\n", "images/deep/down", "labels/deep/down"),
        ("train: photos\n", "photos", "photos"),
        ("train: images/images\n", "images/images", "images/labels"),
    ],
)
@pytest.mark.parametrize("names", ["[bush, no]", "{0: bush, 1: no}", "\n  - bush\n  - no", "\n  0: bush\n  1: no"])
def test_yolo_yamls(yaml: str, photos: str, labels: str, names: str, tmp_path: Path) -> None:
    for folder in ("images/a", "images/b", labels):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    image(tmp_path / photos / "b.jpg", tmp_path / photos / "a b.jpg")
    (tmp_path / labels / "a b.txt").write_text(ROW)
    (tmp_path / "train.txt").write_text(f"./{photos}/b.jpg\n{photos}/a b.jpg\n\n")
    (tmp_path / "data.yaml").write_text(f"{yaml}names: {names}\ndownload: |\n  import os; os._exit(3)\nnc: 2\n")
    data = AnnotatedImages(tmp_path / "data.yaml", part="train")
    assert [(entry.id, entry.file.name) for entry in data.entries] == [(1, "a b.jpg"), (2, "b.jpg")]
    assert (data.classes, data.category_ids) == (["bush", "no"], [1, 2])
    assert data.entries[0].boxes.tolist() == [[37.5, 20, 62.5, 60]]
    assert data.entries[0].labels.tolist() == [2]
    note = f"{tmp_path / 'data.yaml'}: 1 images have no label file and count as images without objects: "
    assert data.notes == [note + repr(str(data.entries[1].file))]


def test_yolo_rows(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.jpg")
    rows = [
        "0 0.5 0.5 0.25 0.5",
        "1.0\t.25  2.5e-1 0.1 0.1 ",
        "1 0.1 0.2 0.3 0.2 0.2 0.9",  # an outline
        "0 -0.005 0.5 0.1 1.005",
        "0 nan 0.5 0.1 0.1",
        "0 0.5 0.5 0 0.1",
        "0 0.5 0.5 0.25 0.5",  # the first again
    ]
    (tmp_path / "images" / "a.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    (tmp_path / "data.yaml").write_text("train: images\nnames: [a, b]\n")
    data = AnnotatedImages(tmp_path / "data.yaml")
    boxes = [[37.5, 20, 62.5, 60], [20, 16, 30, 24], [10, 16, 30, 72], [0, 0, 4.5, 80], [37.5, 20, 62.5, 60]]
    assert data.boxes.tolist() == [pytest.approx(box, abs=1e-5) for box in boxes]
    assert data.entries[0].labels.tolist() == [1, 2, 2, 1, 1]
    assert [note.partition(".yaml: ")[2] for note in data.notes] == [
        "2 boxes are left out: images/a.txt: line 5: not finite, images/a.txt: line 6: no area inside its image",
        "1 boxes are there more than once, and count so often: images/a.txt: line 7",
    ]
    (tmp_path / "data.yaml").write_text("train: images\nnames: [a, b]\nkpt_shape: [2, 3]\n")
    (tmp_path / "images" / "a.txt").write_text(rows[0] + " 0.1 0.1 2" * 2)
    assert AnnotatedImages(tmp_path).boxes.tolist() == [[37.5, 20, 62.5, 60]]


def test_yolo_numbers_classes_to_the_last_digit(tmp_path: Path) -> None:
    """Of which a float64 has 53 bits; their ids in COCO are one more."""
    image(tmp_path / "images" / "a.jpg")
    last = 2**63 - 2
    (tmp_path / "data.yaml").write_text(f"train: images\nnames: {{{last}: c, {2**53 + 1}: b, {2**53}.0: a}}\n")
    (tmp_path / "images" / "a.txt").write_text("".join(f"{k} .5 .5 .25 .5\n" for k in (2**53 + 1, last, 2**53)))
    data = AnnotatedImages(tmp_path)
    assert (data.classes, data.category_ids) == (["a", "b", "c"], [2**53 + 1, 2**53 + 2, 2**63 - 1])
    assert data.entries[0].labels.tolist() == [2, 3, 1]


XML = """<annotation verified="yes">
<folder>photos</folder><filename>{name}</filename><path>C:\\Users\\me\\a.jpg</path>
<source><database>Unknown</database></source>{size}<segmented>0</segmented>
<object><name>tree</name>{more}<bndbox><xmin>11</xmin><ymin>21.5</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></part></object>
</annotation>"""
SIZE = "<size><width>100</width><height>80</height><depth>3</depth></size>"


@pytest.mark.parametrize(
    ("xml", "photo", "name"),
    [
        ("a.xml", "a.jpg", "a.jpg"),  # labelImg, Roboflow
        ("a.xml", "a.JPG", "a"),
        ("a.xml", "a.jpg", "was_renamed.png"),
        ("Annotations/a.xml", "JPEGImages/a.jpg", "a.jpg"),
        ("Annotations/sub/a.xml", "JPEGImages/sub/a.jpg", "a.jpg"),
        ("Annotations/sub/a.xml", "JPEGImages/sub/a.jpg", "sub/a.jpg"),  # CVAT
        ("Annotations/a.xml", "Annotations/a.jpg", "a.jpg"),
        ("VOC2012/Annotations/a.xml", "VOC2012/JPEGImages/a.jpg", "a.jpg"),
    ],
)
def test_voc_folders(xml: str, photo: str, name: str, tmp_path: Path) -> None:
    image(tmp_path / photo)
    (tmp_path / xml).parent.mkdir(parents=True, exist_ok=True)
    unknown = "<size><width>0</width><height>0</height></size>"
    cases = ((SIZE, "", 0), ("", "<difficult>0</difficult>", 0), (unknown, "<difficult>1</difficult>", 1))
    for size, more, crowds in cases:
        (tmp_path / xml).write_text(XML.format(name=name, size=size, more=more))
        entry = AnnotatedImages((tmp_path / xml).parent if "VOC" in xml else tmp_path).entries[0]
        assert (entry.file, entry.width) == (tmp_path / photo, 100)
        assert (len(entry.boxes), len(entry.crowds)) == (1 - crowds, crowds)
        assert [*entry.boxes.tolist(), *entry.crowds.tolist()] == [[10, 20.5, 30, 40]]


def test_voc_boxes_before_the_first_pixel_are_said(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    (tmp_path / "a.xml").write_text(XML.format(name="a.jpg", size="", more="").replace(">11<", ">0<"))
    data = AnnotatedImages(tmp_path)
    assert data.boxes.tolist() == [[0, 20.5, 30, 40]]
    assert data.notes == [
        f"{tmp_path}: 1 boxes begin before the first pixel, which is 1 in Pascal VOC: a.xml: object[0] ('tree')"
    ]


HEAD = "image_path,xmin,ymin,xmax,ymax,label"


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        (f"{HEAD}\na.jpg,1,2,3.5,4,tree\n", None),
        (f"{HEAD}\r\na.jpg,1,2,3.5,4,tree\r\n\r\n", None),
        (f"\ufeff{HEAD}\na.jpg,1,2,3.5,4,tree", None),
        ("label,image_path,score,ymin,xmin,ymax,xmax\ntree,a.jpg,0.9,2,1,4,3.5\n", None),
        (f"{HEAD};note\n".replace(",", ";") + 'a.jpg;1;2;3.5;4;tree;"a; b"\n', None),
        (f"{HEAD}\na.jpg,1,2,3.5,4,tree\n".replace(",", "\t"), None),
        ("file,x1,y1,x2,y2,kind\na.jpg, 1 ,2,3.5,4, tree\n", "file,x1,y1,x2,y2,kind"),
        ('"x, left",file,y1,x2,y2,kind\n1,a.jpg,2,3.5,4,tree\n', 'file,"x, left",y1,x2,y2,kind'),
        (f"{HEAD}\n/home/ben/photos/a.jpg,1,2,3.5,4,tree\n", None),  # from another machine
        (f"{HEAD}\na.jpg,1,2,3.5,4,tree\na.jpg,0,0,0,0,tree\na.jpg,,,,,\n", None),  # DeepForest's for no tree
    ],
)
def test_tables(content: str, columns: str | None, tmp_path: Path) -> None:
    from roialign.detection.inputs import judged_data

    image(tmp_path / "photos" / "a.jpg")
    (tmp_path / "boxes.csv").write_bytes(content.encode())
    data = judged_data(tmp_path / "boxes.csv", tmp_path / "photos", columns=columns)
    assert data.boxes.tolist() == [[1, 2, 3.5, 4]]
    assert (data.classes, len(data.entries)) == (["tree"], 1)
    assert len(data.notes) == ("/home" in content or ",0,0,0,0," in content)


def test_a_table_has_images_without_boxes(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "c.jpg")
    rows = f"{HEAD}\nc.jpg,1,2,3,4,tree\nb.jpg,,,,,\na.jpg,1,2,3,4,oak\nc.jpg,5,6,7,8,oak\nb.jpg,0,nan,1,2,oak\n"
    (tmp_path / "boxes.csv").write_text(rows)
    data = AnnotatedImages(tmp_path)
    assert [(entry.name, entry.labels.tolist()) for entry in data.entries] == [
        ("c.jpg", [2, 1]),
        ("b.jpg", []),
        ("a.jpg", [1]),
    ]
    assert data.notes == [f"{tmp_path / 'boxes.csv'}: 1 boxes are left out: line 6: not finite"]
    assert math.isclose(float(data.boxes.sum()), 10 + 26 + 10)
