"""Annotation files as people have them: read as they are meant, or refused with the place of the fault."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from roialign.detection.datasets import AnnotatedImages

Content = dict[str, Any]
Change = Callable[[Content], Any]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, 100 x 80 and 60 x 50 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    Image.new("RGB", (100, 80)).save(folder / "a.png")
    Image.new("RGB", (60, 50)).save(folder / "b.png")
    return folder


def base() -> Content:
    boxes = ((4, 7, 9, [10, 10, 20, 30]), (5, 7, 3, [50, 40, 8, 8]), (6, 2, 9, [1, 2, 3, 4]))
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 100, "height": 80},
            {"id": 2, "file_name": "b.png", "width": 60, "height": 50},
        ],
        "annotations": [
            {"id": i, "image_id": image, "category_id": kind, "bbox": bbox, "area": bbox[2] * bbox[3] / 2, "iscrowd": 0}
            for i, image, kind, bbox in boxes
        ],
        "categories": [{"id": 9, "name": "tree"}, {"id": 3, "name": "bush"}],
    }


def load(photos: Path, tmp_path: Path, change: Change | None = None) -> AnnotatedImages:
    content = base()
    if change:
        change(content)
    (tmp_path / "c.json").write_text(json.dumps(content))
    return AnnotatedImages(tmp_path / "c.json", photos)


def put(key: str, index: int, field: str, value: Any) -> Change:
    return lambda content: content[key][index].update({field: value})


def drop(key: str, index: int, field: str) -> Change:
    return lambda content: content[key][index].pop(field)


def test_a_good_file_is_read_as_it_is_meant(photos: Path, tmp_path: Path) -> None:
    data = load(photos, tmp_path)
    assert (data.classes, data.category_ids, data.notes, data.left_out) == (["bush", "tree"], [3, 9], [], 0)
    first, second = data.entries
    assert (first.id, first.name, first.file, first.width, first.height) == (7, "a.png", photos / "a.png", 100, 80)
    assert first.boxes.tolist() == [[10, 10, 30, 40], [50, 40, 58, 48]]
    assert (first.labels.tolist(), first.areas.tolist()) == ([2, 1], [300, 32])
    assert (second.id, second.boxes.tolist(), second.labels.tolist()) == (2, [[1, 2, 4, 6]], [2])
    assert len(first.crowds) == len(second.crowds) == 0


def test_boxes_are_cut_counted_and_named(photos: Path, tmp_path: Path) -> None:
    boxes: list[tuple[list[float], float | None, int]] = [
        ([-20, 10, 50, 20], 900, 0),  # cut at the left: 30 x 20
        ([90, 70, 50, 50], None, 0),  # cut at the lower right corner: 10 x 10, which is its area too
        ([50, 50, 0, 10], 0, 0),
        ([50, 50, -10, 10], 0, 0),
        ([500, 500, 10, 10], 100, 0),
        ([math.nan, 5, 10, 10], 100, 0),
        ([5, 5, math.inf, 10], 100, 0),
        ([64, 5, 1e-9, 10], 1, 0),  # without width in float32
        ([10**400, 5, 10, 10], 100, 0),
        ([40, 30, 100, 20], 1200, 1),  # a crowd, cut
        ([40, 30, 0, 20], 0, 1),
        ([10, 20, 1e308, 1e308], 1e308, 0),  # cut like any other: 90 x 60
        ([1e308, 5, 1e308, 10], 100, 0),
    ]

    def change(content: Content) -> None:
        content["annotations"] = [
            {"id": 100 + i, "image_id": 7, "category_id": 3, "bbox": bbox, "iscrowd": crowd}
            | ({} if area is None else {"area": area})
            for i, (bbox, area, crowd) in enumerate(boxes)
        ]

    data = load(photos, tmp_path, change)
    first, second = data.entries
    assert data.boxes.tolist() == first.boxes.tolist() == [[0, 10, 30, 30], [90, 70, 100, 80], [10, 20, 100, 80]]
    assert first.areas.tolist() == [600, 100, 5400]
    assert (first.crowds.tolist(), first.crowd_labels.tolist()) == ([[40, 30, 100, 50]], [1])
    assert (first.left_out, second.left_out, data.left_out) == (9, 0, 9)
    assert data.notes == [
        f"{tmp_path / 'c.json'}: 9 boxes are left out: annotations[2] (id 102): no area inside its image, "
        "annotations[3] (id 103): no area inside its image, "
        "annotations[4] (id 104): no area inside its image, ..."
    ]
    three = load(photos, tmp_path, lambda c: [each.update(bbox=[1, 1, 0, 0]) for each in c["annotations"]])
    assert re.search(r": 3 boxes are left out: .*\(id 6\): no area inside its image$", three.notes[0])
    data = load(photos, tmp_path, put("annotations", 0, "bbox", [math.nan, 1, 2, 3]))
    assert data.notes[0].endswith(": 1 boxes are left out: annotations[0] (id 4): not finite")


def text_ids(content: Content) -> None:
    for record, field in [(r, "id") for r in content["images"]] + [(r, "image_id") for r in content["annotations"]]:
        record[field] = f"图 {record[field]}"


def test_ids_stay_as_the_file_has_them(photos: Path, tmp_path: Path) -> None:
    data = load(photos, tmp_path, text_ids)
    assert [entry.id for entry in data.entries] == ["图 7", "图 2"]
    assert [len(entry.boxes) for entry in data.entries] == [2, 1]

    def floating(content: Content) -> None:  # as tables have them
        for record in content["images"] + content["annotations"]:
            record.update({field: float(record[field]) for field in record if "id" in field or field == "width"})

    assert load(photos, tmp_path, floating).digest() == load(photos, tmp_path).digest()
    for number in (0, -1, 10**6, -(2**63), 2**63 - 1):
        content = base()
        content["images"][0]["id"] = content["categories"][0]["id"] = number
        content["annotations"] = [each | {"image_id": number, "category_id": number} for each in content["annotations"]]
        data = load(photos, tmp_path, lambda c, changed=content: c.update(changed))
        assert [(entry.id, len(entry.boxes)) for entry in data.entries] == [(number, 3), (2, 0)]
        assert data.category_ids == sorted([number, 3])


@pytest.mark.parametrize("iscrowd", [True, 1, 1.0])
def test_what_can_be_meant_in_one_way_only_is_taken(photos: Path, tmp_path: Path, iscrowd: Any) -> None:
    data = load(photos, tmp_path, put("annotations", 0, "iscrowd", iscrowd))
    assert (len(data.entries[0].boxes), len(data.entries[0].crowds)) == (1, 1)
    bare = load(
        photos, tmp_path, lambda c: [r.pop(field) for r in c["annotations"] for field in ("iscrowd", "area", "id")]
    )
    assert bare.entries[0].areas.tolist() == [600, 64]
    none = load(photos, tmp_path, lambda c: c.update(annotations=[]))
    assert [entry.boxes.shape for entry in none.entries] == [(0, 4), (0, 4)]


def faults(key: str, index: int, place: str, field: str, *pairs: tuple[Any, str]) -> list[tuple[Change, str]]:
    """Values of a field with what the message must say they were."""
    return [(put(key, index, field, value), re.escape(f"{place}: {field}: got {shown}")) for value, shown in pairs]


SIZES = ((None, "null"), ("60", "'60'"), (0, "0"), (-60, "-60"), (1.5, "1.5"), (True, "true"), (math.nan, "nan"),
         (math.inf, "inf"), (10**30, "1000000"), ([60], "[60]"))  # fmt: skip
BBOXES = (["10", "10", "20", "20"], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, None], [[1, 2], [3, 4]], [True, 2, 3, 4])
FIRST, LAST = "annotations[0] (id 4)", "annotations[2] (id 6)"
WRONG: list[tuple[Change, str]] = [
    *faults("annotations", 2, LAST, "iscrowd", (None, "null; expected 0 or 1"), ("0", "'0'"), ([], "[]"), (2, "2")),
    *faults("annotations", 2, LAST, "area", (None, "null; expected a number from 0"), ("9", "'9'"), (True, "true")),
    *faults(
        "annotations", 2, LAST, "area", (-1, "-1"), (math.inf, "inf"), (math.nan, "nan"), ({}, "{}"), (9**400, "4")
    ),
    *faults("annotations", 0, FIRST, "bbox", *((box, f"{box}; expected four numbers") for box in BBOXES)),
    *faults("annotations", 0, FIRST, "bbox", (None, "null; expected four"), ("1234", "'1234'"), ({"x": 1}, "{'x': 1}")),
    *faults(
        "annotations", 0, FIRST, "category_id", (8, "8; the categories have [3, 9]"), ("9", "'9'; expected a whole")
    ),
    *faults("annotations", 0, FIRST, "category_id", (None, "null"), (9.5, "9.5"), (True, "true"), (10**30, "1000")),
    *faults("annotations", 0, FIRST, "image_id", (77, "77, which no image has"), ("7", "'7', which no image has")),
    *faults("annotations", 0, FIRST, "image_id", (None, "null"), ([7], "[7]"), (math.nan, "nan")),
    (drop("annotations", 0, "bbox"), r"annotations\[0\] \(id 4\): no bbox$"),
    (drop("annotations", 0, "image_id"), r"annotations\[0\] \(id 4\): no image_id$"),
    (drop("annotations", 0, "category_id"), r"annotations\[0\] \(id 4\): no category_id$"),
    (lambda content: content["annotations"].insert(0, "x"), r"annotations\[0\]: got 'x'; expected an object"),
    *faults("images", 1, "images[1] (id 2)", "width", *SIZES),
    *faults("images", 1, "images[1] (id 2)", "height", *SIZES),
    (put("images", 1, "width", 61), r"images\[1\] \(id 2\): width, height: got 61 x 50; '.*b\.png' has 60 x 50 pixels"),
    *faults("images", 0, "images[0] (id 7)", "file_name", (None, "null; expected text"), (7, "7"), ([], "[]")),
    (drop("images", 0, "file_name"), r"images\[0\] \(id 7\): no file_name$"),
    (drop("images", 0, "id"), r"images\[0\]: no id$"),
    (put("images", 0, "id", None), r"images\[0\] \(id null\): id: got null; expected a whole number or text"),
    *((put("images", 0, "id", i), f"id: got {i}; expected a whole") for i in (2**63, -(2**63) - 1, 0.5)),
    (put("images", 0, "id", "\ud800"), r"id: got '\\ud800'; expected a whole number or text"),
    (put("images", 1, "id", 7), r"images\[1\] \(id 7\): images\[0\] has this id too"),
    (put("categories", 1, "id", 9), r"categories\[1\] \(id 9\): categories\[0\] has this id too"),
    (put("categories", 1, "id", "3"), r"categories\[1\] \(id '3'\): id: got '3'; expected a whole number"),
    *faults("categories", 1, "categories[1] (id 3)", "name", (None, "null; expected text"), ("\udcff", r"'\udcff'")),
    *((lambda c, key=key: c.pop(key), f"no {key}; expected COCO's JSON") for key in base()),
    *((lambda c, key=key: c.update({key: {}}), f"{key}: got {{}}; expected a list") for key in base()),
    (lambda content: content.update(categories=[], annotations=[]), "categories: an empty list; expected at least one"),
    (lambda content: content.update(images=[], annotations=[]), "images: an empty list; expected at least one"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_is_wrong_is_said_with_its_place(photos: Path, tmp_path: Path, change: Change, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(photos, tmp_path, change)
    assert str(caught.value).startswith(f"{tmp_path / 'c.json'}: ")
    assert len(str(caught.value).encode().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.json", b"", "not JSON"),
        ("c.json", b'{"images": [', r"not JSON: Expecting value: line 1 column 13 \(char 12\); expected COCO's JSON"),
        ("c.json", b"[]", r"got \[\]; expected COCO's JSON, an object with the lists"),
        ("c.json", b"null", "got null; expected COCO's JSON"),
        ("c.json", b"[" * 100_000, "nested too deeply"),
        ("c.json", b'{"info": 1, "images": [], "images": []}', "an object has the key 'images' twice"),
        ("c.json", b"\xff\xd8\xff\xe0" + bytes(range(200)), "not JSON"),
        ("c.json", b"1" * 5000, "not JSON"),
        ("c.json", b"<annotation/>", "not JSON: .*; expected COCO's JSON"),
        ("a.txt", b"0 0.5 0.5 0.25 0.1\n1 0.5 0.5 0.2 0.1\n", "YOLO's labels; name the yaml"),
        ("a", b"1 1 1 1 1\n", "YOLO's labels; name the yaml"),
        ("a.txt", b"0 0.5 0.5 0.25\n", "expected COCO"),
        ("a.txt", b"no table of boxes in here\n", "expected COCO"),
        ("data.yaml", b"names: [tree]\n", "train: no images there"),
        ("a.xml", b"", "Pascal VOC"),
        ("a.txt", b"<annotation><object/></annotation>", "Pascal VOC"),
        ("a.xml", b"<annotation><object/></annotation>", "a file of Pascal VOC's; name their folder"),
        ("a", b"\xef\xbb\xbf <annotation>", "a file of Pascal VOC's; name their folder"),
        ("boxes.csv", b"hello\n", "line 1: no 'image_path' among the headings"),
        ("boxes", b"a.png,1,2,3,4,tree\n", "line 1: no 'image_path' among the headings"),
        *(("boxes", row, "expected COCO") for row in (b"1,2,3\n", b"1,2,3,4,5\n")),
        *(("boxes", start + b"1, 2, 3, 4, 5, 6,\n", "not JSON.*expected COCO") for start in (b"[", b'{"images": [')),
        ("a.txt", b"hello", "expected COCO's JSON, YOLO's yaml, a folder of Pascal VOC's or a table of boxes"),
        (
            "a.png",
            b"\x89PNG\r\n\x1a\n",
            "expected COCO's JSON, YOLO's yaml, a folder of Pascal VOC's or a table of boxes",
        ),
        ("a", b"", "expected COCO's JSON, YOLO's yaml"),
        ("a", b"{", "not JSON"),
    ],
)
def test_other_files_are_told_apart(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        AnnotatedImages(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


def test_folders_are_told_apart(tmp_path: Path) -> None:
    cases: list[tuple[tuple[str, ...], str]] = [
        ((), "a folder; expected COCO's JSON, YOLO's yaml, a folder"),
        (("a.jpg",), "a folder; expected COCO's JSON"),
        (("1.txt",), "a folder; YOLO's labels; name the yaml"),
        (("labels/1.txt", "images/1.jpg", "classes.txt"), "a folder; YOLO's labels; name the yaml"),
        (("1.xml",), "1.xml: not XML: no element found"),
        (("Annotations/1.xml", "JPEGImages/1.jpg"), "Annotations/1.xml: not XML"),
        (("Annotations/1.txt",), "no XML files"),
        (("data.yaml", "other.yaml"), "data.yaml: got .*; expected YOLO's names: and train:"),
        (("a.yaml", "b.yml"), r"a folder; name one of those in it: \['a.yaml', 'b.yml'\]"),
        (("result.json", "images/a.jpg"), "result.json: not JSON"),
        (("annotations/instances_default.json", "images/a.jpg"), "instances_default.json: not JSON"),
        (("annotations/a.json", "annotations/b.json"), r"name one of those in it: \['annotations/a.json', 'annot"),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), r"those in it: \['train', 'valid'\]"),
        (("VOC2007/Annotations/a.xml", "VOC2012/Annotations/b.xml"), r"those in it: \['VOC2007', 'VOC2012'\]"),
        (("boxes.csv",), "boxes.csv: no boxes below the headings"),
    ]
    for number, (files, message) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        with pytest.raises(ValueError, match=message) as caught:
            AnnotatedImages(folder)
        assert str(caught.value).startswith(str(folder))
    with pytest.raises(FileNotFoundError, match=r"gone\.json: no such file"):
        AnnotatedImages(tmp_path / "gone.json")


@pytest.mark.parametrize("prefix", [b"", codecs.BOM_UTF8])
def test_utf_8_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: bytes) -> None:
    content = base()
    content["images"][0]["file_name"] = "bäume 树.png"
    content["categories"][0]["name"] = "Bäume 树"
    Image.new("RGB", (100, 80)).save(tmp_path / "bäume 树.png")
    Image.new("RGB", (60, 50)).save(tmp_path / "b.png")
    (tmp_path / "c.json").write_bytes(prefix + json.dumps(content, ensure_ascii=False).encode())
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, encoding=None, errors=None: read(self, encoding or "cp1252"))
    assert AnnotatedImages(tmp_path / "c.json").classes == ["bush", "Bäume 树"]


def test_sizes_that_are_missing_are_the_files(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "1.png")
    least = {"file_name": str(tmp_path / "1.png"), "width": 1, "height": 1}
    assert load(photos, tmp_path, lambda content: content["images"][1].update(least)).entries[1].width == 1
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)

    def change(content: Content) -> None:
        drop("images", 0, "width")(content)
        for field in ("width", "height"):
            drop("images", 1, field)(content)
        content["images"][1]["file_name"] = str(tmp_path / "turned.jpg")
        content["annotations"][2]["bbox"] = [0, 0, 100, 100]

    data = load(photos, tmp_path, change)
    assert [(entry.width, entry.height) for entry in data.entries] == [(100, 80), (30, 40)]  # upright
    assert data.entries[1].boxes.tolist() == [[0, 0, 30, 40]]
    stored = {"id": 2, "file_name": str(tmp_path / "turned.jpg"), "width": 40, "height": 30}
    assert (
        load(photos, tmp_path, lambda content: content["images"][1].update(stored)).entries[1].width == 40
    )  # drawn by a tool that does not turn
    upright = stored | {"width": 30, "height": 40}  # drawn by one that does
    assert load(photos, tmp_path, lambda content: content["images"][1].update(upright)).entries[1].width == 30
    (tmp_path / "turned.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"images\[1\] \(id 2\): .*turned\.jpg: not an image that can be read"):
        load(photos, tmp_path, change)


@pytest.mark.parametrize("name", ["gone\n.png", "", "x" * 5000, "nul\0.png", "\ud800.png", "."])
def test_images_that_are_not_there(photos: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"c\.json: 1 of 2 images are not there: '") as caught:
        load(photos, tmp_path, put("images", 1, "file_name", name))
    assert len(str(caught.value).encode().splitlines()) == 1


def test_images_outside_their_folder_are_named(photos: Path, tmp_path: Path) -> None:
    (photos / "c..d.png").write_bytes((photos / "b.png").read_bytes())
    assert load(photos, tmp_path, put("images", 1, "file_name", "c..d.png")).notes == []
    for name in (str(photos / "b.png"), f"../{photos.name}/b.png"):
        (note,) = load(photos, tmp_path, put("images", 1, "file_name", name)).notes
        assert note == f"{tmp_path / 'c.json'}: 1 images lie outside {photos}: {name!r}"


def test_frames_and_bands_that_are_not_shown_are_named(photos: Path, tmp_path: Path) -> None:
    frames = [Image.new("L", (60, 50), value) for value in (10, 20, 30)]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    (note,) = load(photos, tmp_path, put("images", 1, "file_name", str(tmp_path / "b.gif"))).notes[1:]
    what = f"{str(tmp_path / 'b.gif')!r} (the first of 3 frames)"
    assert note == f"{tmp_path / 'c.json'}: 1 images are not shown as a whole: {what}"


def test_a_split_gives_either_part_boxes(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")

    def data(full: int, empty: int) -> AnnotatedImages:
        content = base()
        content["images"] = [{"id": i, "file_name": "a.png", "width": 20, "height": 20} for i in range(full + empty)]
        content["annotations"] = [{"image_id": i, "category_id": 9, "bbox": [1, 1, 5, 5]} for i in range(full)]
        (tmp_path / "c.json").write_text(json.dumps(content))
        return AnnotatedImages(tmp_path / "c.json")

    for full, empty in ((2, 8), (5, 5), (10, 0), (3, 1), (2, 0), (2, 30)):
        whole = data(full, empty)
        for seed in range(10):
            for fraction in (0.05, 0.2, 0.5):
                parts = whole.split(fraction, seed)
                assert sorted(entry.id for part in parts for entry in part.entries) == list(range(full + empty))
                assert len(parts[1].entries) == max(1, round(fraction * (full + empty)))
                assert all(len(part.boxes) for part in parts), (full, empty, seed, fraction)
    first, second = data(1, 4).split(0.4, 0)
    assert (len(first.boxes), len(second.boxes), len(second.entries)) == (1, 0, 2)
    _, second = data(8, 24).split(0.5, 0)  # of either sort its share
    assert (len(second.boxes), len(second.entries)) == (4, 16)
    assert [len(part.entries) for part in data(0, 6).split(0.5, 0)] == [3, 3]
    assert whole._part([]).boxes.shape == (0, 4)
    assert [entry.id for entry in whole.split(0.5, 1)[1].entries] != [
        entry.id for entry in whole.split(0.5, 2)[1].entries
    ]
    with pytest.raises(ValueError, match="1 images cannot be split"):
        data(1, 0).split(0.5, 0)


def test_the_digest_is_of_what_counts(photos: Path, tmp_path: Path) -> None:
    digest = load(photos, tmp_path).digest()
    assert re.fullmatch("[0-9a-f]{16}", digest)  # eight bytes
    (tmp_path / "copy").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "copy" / name).write_bytes((photos / name).read_bytes())
    assert load(tmp_path / "copy", tmp_path).digest() == digest
    for change in (
        put("annotations", 0, "bbox", [10, 10, 20, 31]),
        put("annotations", 0, "iscrowd", 1),
        put("annotations", 0, "area", 1),
        put("annotations", 0, "category_id", 3),
        put("categories", 0, "name", "oak"),
        put("images", 0, "id", 1) and text_ids,
    ):
        assert load(photos, tmp_path, change).digest() != digest
