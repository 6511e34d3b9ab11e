"""What is wrong in YOLO's, Pascal VOC's and CSV's files, hostile ones included: a line that says where."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from PIL import Image

from annotated import SCENES, paint, write_csv, write_voc, write_yolo
from roialign.detection import inputs
from roialign.detection.datasets import AnnotatedImages

NAMES = "train: images/train\nnames: [bush, tree]\n"
BOMB_OF_LISTS = "l0: &l0 [a, a]\n" + "".join(f"l{k}: &l{k} [*l{k - 1}, *l{k - 1}]\n" for k in range(1, 61))
YAMLS: list[tuple[str | bytes, str]] = [
    ("", "got null; expected YOLO's names: and train:"),
    ("- 1\n- 2\n", r"got \['1', '2'\]; expected YOLO's names"),
    ("train: images/train\n", "names: got null; expected a list of the classes"),
    ("train: images/train\nnames: []\n", r"names: got \[\]; expected a list of the classes"),
    ("train: images/train\nnames: tree\n", "names: got 'tree'; expected a list of the classes"),
    ("train: images/train\nnames: [[tree]]\n", r"names: 0: got \['tree'\]; expected text"),
    ("train: images/train\nnames: ['']\n", "names: 0: got ''; expected text"),
    ('train: images/train\nnames: ["\\ud800"]\n', r"names: 0: got '\\ud800'; expected text"),
    ("train: images/train\nnames: {tree: 0}\n", "names: got 'tree'; expected whole numbers from 0, each once"),
    (
        "train: images/train\nnames: {0: tree, 0.0: bush}\n",
        "names: got '0.0'; expected whole numbers from 0, each",
    ),
    (f"train: images/train\nnames: {{{2**63 - 1}: tree}}\n", f"names: got '{2**63 - 1}'; expected whole"),
    (f"train: images/train\nnames: {{? {'5' * 5000} : tree}}\n", "names: got '555.*555'; expected whole"),
    ("train: images/train\nnames: {-1: tree}\n", "names: got '-1'; expected whole numbers from 0"),
    ("train: images/train\nnames: {0: tree, 0: bush}\n", "the key '0' is there twice"),
    (NAMES + "train: images/val\n", "the key 'train' is there twice"),
    (NAMES + "nc: 3\n", "nc: got '3'; there are 2 names"),
    (BOMB_OF_LISTS + NAMES + "nc: *l60\n", "nc: got .*; there are 2 names"),
    (BOMB_OF_LISTS + NAMES + "kpt_shape: *l60\n", "kpt_shape: got"),
    (BOMB_OF_LISTS + "names: *l60\ntrain: images\n", "names: 0: got"),
    (BOMB_OF_LISTS + "names: [bush, tree]\ntrain: *l60\n", "train: got"),
    (NAMES + "kpt_shape: 17\n", "kpt_shape: got '17'; expected how many points, and 2 or 3"),
    (NAMES + "kpt_shape: [17, 4]\n", r"kpt_shape: got \['17', '4'\]"),
    ("names: [bush, tree]\n", "train: no images there"),
    ("train: {a: b}\nnames: [bush, tree]\n", r"train: got \[{'a': 'b'}\]; expected a folder"),
    ("train: images/gone\nnames: [bush, tree]\n", "train: '.*images/gone' is not there"),
    ("train: http://example.org/a.zip\nnames: [bush, tree]\n", "train: '.*http:/example.org/a.zip' is not there"),
    ('train: "a\\0b"\nnames: [bush, tree]\n', r"train: got \['a\\x00b'\]"),
    ("train: data.yaml\nnames: [bush, tree]\n", "train: got '.*data.yaml'; expected a folder, or a list of images"),
    ("train: labels\nnames: [bush, tree]\n", "train: no images there"),
    ("path: [a]\n" + NAMES, r"path: got \['a'\]; expected the folder"),
    ("train: [\n", "not YAML: while parsing"),
    ("a: b: c\n", "not YAML: mapping values are not allowed"),
    ("names: !!python/object/apply:os.system ['exit 3']\ntrain: images/train\n", "names: got|class: got"),
    ("[" * 3000, "nested too deeply|not YAML"),
    (b"\xff\xfet\x00", "not UTF-8: invalid start byte at byte 0"),
    (b"\x00", "not YAML: unacceptable character"),
]


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    paint(tmp_path / "images" / "train", SCENES)
    return write_yolo(tmp_path, SCENES)


def refused(source: Path, start: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        AnnotatedImages(source)
    assert str(caught.value).startswith(start)
    assert len(str(caught.value).encode().splitlines()) == 1
    assert len(str(caught.value)) < len(str(source)) + 500


@pytest.mark.parametrize(("content", "message"), YAMLS)
def test_yamls_that_are_wrong(yolo: Path, content: str | bytes, message: str) -> None:
    yolo.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(yolo, f"{yolo}: ", message)


ROWS: list[tuple[str | bytes, str]] = [
    ("2 .5 .5 .1 .1", r"line 1: class: got '2'; the names have \[0, 1\]"),
    ("-1 .5 .5 .1 .1", "line 1: class: got '-1'"),
    ("0.5 .5 .5 .1 .1", "line 1: class: got '0.5'"),
    ("nan .5 .5 .1 .1", "line 1: class: got 'nan'"),
    ("0 .5 .5 .1 .1\n\ntree .5 .5 .1 .1", "line 3: got 'tree'; expected a number"),
    ("0 .5 .5 .1", r"line 1: got 4 numbers; expected 5 \(class, centre x"),
    ("0 .5 .5 .1 .1 .9", "line 1: got 6 numbers; expected 5"),  # a detection, with its score
    ("0 .1 .1 .2 .2 .3 .3 .4", "line 1: got 8 numbers"),
    ("0", "line 1: got 1 numbers"),
    ("0 412 300 50 60", "line 1: got '412'; expected fractions of the image, from 0 to 1"),
    ("0 .5 .5 1e308 .1", "line 1: got '1e308'; expected fractions"),
    ("1_0 .5 .5 .1 .1", "line 1: got '1_0'; expected a number"),
    ("0 .5 .5 1.02 .1", "line 1: got '1.02'; expected fractions"),
    ("0 .1 .1 .2 .2 .3 -.1", "line 1: got '-.1'; expected fractions"),
    ("0 0,5 .5 .1 .1", "line 1: got '0,5'; expected a number"),
    ("0 1_0 .5 .1 .1", "line 1: got '1_0'; expected a number"),
    ("0 ٠.5 .5 .1 .1", "line 1: got '٠.5'; expected a number"),
    (b"0 .5 .5 .1 .1\n\xff", "not UTF-8: invalid start byte at byte 14"),
    ("0 .5 .5 .1 " + "0" * 10**6 + "412", "line 1: got '0000.*412'; expected fractions"),
    ("0" + " .1 .2" * 10**5 + " .1", "line 1: got 200002 numbers"),
]


@pytest.mark.parametrize(("content", "message"), ROWS)
def test_labels_that_are_wrong(yolo: Path, content: str | bytes, message: str) -> None:
    labels = yolo.parent / "labels" / "train" / "b.txt"
    labels.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(yolo, f"{yolo}: labels/train/b.txt: ", message)


def test_yolo_without_labels_or_images(yolo: Path) -> None:
    (yolo.parent / "images" / "train" / "b.png").write_text("no image")
    refused(yolo, f"{yolo}: images/train/b.png: ", "not an image that can be read")
    (yolo.parent / "labels").rename(yolo.parent / "label")
    refused(yolo, f"{yolo}: no label files: for ", "expected '.*labels/train/a 1.txt'")
    (yolo.parent / "list.txt").write_text("images/train/gone.png\n")
    yolo.write_text("train: list.txt\nnames: [tree]\n")
    (yolo.parent / "labels" / "train").mkdir(parents=True)
    (yolo.parent / "labels" / "train" / "gone.txt").touch()
    refused(yolo, f"{yolo}: 1 of 1 images are not there: ", "gone.png")


OBJECT = "<object><name>tree</name><bndbox>{}</bndbox></object>"
CORNERS = "<xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax>"
GOOD = OBJECT.format(CORNERS)
BOMB = "<!DOCTYPE a [<!ENTITY b 'bbbbbbbbbb'>" + "".join(
    f"<!ENTITY {name} '{f'&{before};' * 10}'>" for before, name in zip("bcdefghij", "cdefghijk", strict=True)
)
XMLS: list[tuple[str | bytes, str]] = [
    ("", "not XML: no element found"),
    ("<annotation>", "not XML: no element found"),
    ("<annotation></annotatiom>", "not XML: mismatched tag"),
    ("<html/>", "got 'html'; expected Pascal VOC's annotation"),
    (f"<annotation>{GOOD}</annotation>", "no filename"),
    ("<annotation><filename> </filename></annotation>", "filename: got ''; expected text"),
    ("<annotation><filename>a 1.png</filename></annotation>", "filename: .*a 1.xml has 'a 1.png' too"),
    ("FILE<size><width>61</width></size>", "no height"),
    ("FILE<size><width>61</width><height>no</height></size>", "height: got 'no'; expected a number"),
    ("FILE<size><width>61</width><height>0</height></size>", r"size: got \[61.0, 0.0\]; expected whole numbers from 1"),
    ("FILE<size><width>61</width><height>53.5</height></size>", "size: got"),
    (
        "FILE<size><width>62</width><height>53</height></size>",
        "width, height: got 62 x 53; '.*b.png' has 61 x 53",
    ),
    ("FILE<size/><size/>", "size is there 2 times"),
    ("FILE<object/>", r"object\[0\]: no name"),
    (f"FILE{GOOD}<object><name/></object>", r"object\[1\]: name: got ''; expected text"),
    ("FILE<object><name>tree</name></object>", r"object\[0\] \('tree'\): no bndbox"),
    ("FILE<object><name>tree</name><bndbox/></object>", r"object\[0\] \('tree'\): no xmin"),
    (
        f"FILE{OBJECT.format(CORNERS.replace('>3<', '>1O3<'))}",
        r"object\[0\] \('tree'\): xmax: got '1O3'; expected",
    ),
    (f"FILE{OBJECT.format(CORNERS.replace('>3<', '><'))}", "xmax: got ''; expected text"),
    (f"FILE{OBJECT.format(CORNERS + '<xmin>4</xmin>')}", "xmin is there 2 times"),
    (f"FILE{GOOD.replace('<name>', '<name>oak</name><name>')}", "name is there 2 times"),
    (f"FILE{GOOD.replace('<bnd', '<difficult>2</difficult><bnd')}", "difficult: got 2; expected 0 or 1"),
    (f"FILE{GOOD.replace('<bnd', '<difficult/><bnd')}", "difficult: got ''"),
    (BOMB + "]><annotation>&k;</annotation>", "has a document type, which Pascal VOC has not"),
    ("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><annotation/>", "has a document type"),
    ("<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><annotation>&x;</annotation>", "has a document type"),
    ("<?xml version='1.0' encoding='nonsense'?><annotation/>", "not XML: unknown encoding"),
    ("<?xml version='1.0' encoding='utf-7'?><annotation/>", "multi-byte encodings are not supported"),
    (b"\xff\xfe\xff", "not XML"),
    ("<annotation>\0</annotation>", "not XML: not well-formed"),
    ("<a>" * 10**5 + "</a>" * 10**5, "got 'a'; expected Pascal VOC's annotation"),
]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    paint(tmp_path / "JPEGImages", SCENES)
    return write_voc(tmp_path, SCENES)


@pytest.mark.parametrize(("content", "message"), XMLS)
def test_xml_that_is_wrong(voc: Path, content: str | bytes, message: str) -> None:
    if isinstance(content, str):
        if content.startswith("FILE"):
            content = f"<annotation><filename>b.png</filename>{content[4:]}</annotation>"
        content = content.encode()
    (voc / "Annotations" / "b.xml").write_bytes(content)
    begun = time.process_time()
    refused(voc, f"{voc}: Annotations/b.xml: ", message)
    assert time.process_time() - begun < 30  # no bomb goes off; nothing here takes a tenth of a second


def test_voc_lists_that_are_wrong(voc: Path) -> None:
    lists = voc / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    listed = lists / "train.txt"
    for content, message in (
        ("a 1\ngone\n", "Annotations/gone.xml: no such file"),
        ("b\n\nb\n", "ImageSets/Main/train.txt: line 3: got 'b', as in line 1"),
        ("../../b\n", "ImageSets/Main/train.txt: line 1: got '../../b'; expected a name in Annotations"),
        ("/etc/passwd\n", "ImageSets/Main/train.txt: line 1: got '/etc/passwd'"),
        ("", "no XML files in ImageSets/Main/train.txt"),
        ("\ud800", "ImageSets/Main/train.txt: not UTF-8"),
    ):
        listed.write_bytes(content.encode("utf-8", "surrogatepass"))
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(f"{voc}: {message}")):
            AnnotatedImages(voc, part="train")
    listed.write_text('"a 1"\nb \n')
    assert [entry.name for entry in AnnotatedImages(voc, part="train").entries] == ["a 1.png", "b.png"]
    (voc / "JPEGImages" / "b.png").unlink()
    refused(voc, f"{voc}: 1 of 3 images are not there: ", "b.png")
    (voc / "Annotations" / "b.xml").unlink()
    (voc / "Annotations" / "a 1.xml").unlink()
    refused(voc, f"{voc}: ", "no object in any file")


HEAD = "image_path,xmin,ymin,xmax,ymax,label"
TABLES: list[tuple[str | bytes, str]] = [
    ("", "no boxes below the headings"),
    (HEAD, "no boxes below the headings"),
    ("a 1.png,1,2,3,4,tree", "line 1: no 'image_path' among the headings .*; --columns names those of image, x1"),
    (HEAD + ",xmin", "line 1: 2 columns 'xmin' among the headings"),
    (f"{HEAD}\nb.png,1,2,3,4", "line 2: got 5 fields; the first line has 6"),
    (f"{HEAD}\nb.png,1,2,3,4,tree,", "line 2: got 7 fields"),
    (f"{HEAD}\n\nb.png,1,2,3,,tree", "line 3: ymax: got ''; expected a number"),
    (f"{HEAD}\nb.png,1,2,x,4,tree", "line 2: xmax: got 'x'; expected a number"),
    (f"{HEAD}\nb.png,1,2,3,4,", "line 2: label: got ''; expected the name of a class"),
    (f"{HEAD}\n,1,2,3,4,tree", "line 2: image_path: got ''; expected the name of an image"),
    (f"{HEAD}\nb.png,,,,,tree", "line 2: xmin: got ''; expected a number"),
    (f"{HEAD}\nb.png,1,2,3,4,tree\ngone.png,1,2,3,4,tree", "1 of 2 images are not there: '.*gone.png'"),
    (f'{HEAD}\n"b.png,1,2,3,4,tree', "line 2: unexpected end of data"),
    (f"{HEAD}\nb\0.png,1,2,3,4,tree", "line 2: line contains NUL|1 of 1 images are not there"),
    (f"{HEAD}\n" + "x" * 200_000 + ",1,2,3,4,tree", r"line \d: field larger than field limit"),
    (b"\xff\xfei\x00m\x00", "not UTF-8: invalid start byte at byte 0"),
    (f"{HEAD}\nb\xe4um.png,1,2,3,4,tree".encode("latin-1"), "not UTF-8: invalid continuation byte at byte 38"),
    (f"{HEAD};\nb.png;1;2", "line 2: got|line 1: no"),
]


@pytest.mark.parametrize(("content", "message"), TABLES)
def test_tables_that_are_wrong(tmp_path: Path, content: str | bytes, message: str) -> None:
    paint(tmp_path, SCENES)
    table = write_csv(tmp_path, SCENES)
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(table, f"{table}: ", message)


@pytest.mark.parametrize(
    "columns", ["", "a", "a,b,c,d,e", "a,b,c,d,e,e", "a,b,c,d,e,", "a,b,c,d,e,f,g", 'a,b,c,d,e,"f']
)
def test_columns_are_six(columns: str) -> None:
    with pytest.raises(ValueError, match=r"--columns: got .*; expected six headings, such as image_path,xmin"):
        inputs.headings(columns)
    assert inputs.headings(' a,b ,"c,c",d,e,f') == ["a", "b", "c,c", "d", "e", "f"]


def test_what_the_page_quotes_is_what_is_said(tmp_path: Path) -> None:
    """The messages in docs/detection.md, of files that have these faults."""
    page = (Path(__file__).parents[1] / "docs" / "detection.md").read_text(encoding="utf-8")
    (quoted,) = re.findall(r"\n\n((?: {4}.*\n)+)", page[page.index("Whatever is wrong is said") :])[:1]
    image = tmp_path / "a.jpg"
    Image.new("RGB", (50, 50)).save(image)
    record = '{"id": %d, "image_id": 1, "category_id": 1, "bbox": %s}'
    records = ", ".join(record % (k + 1, "null" if k == 17 else "[1, 2, 3, 4]") for k in range(18))
    lists = f'"images": [{{"id": 1, "file_name": "a.jpg"}}], "annotations": [{records}]'
    (tmp_path / "crowns.json").write_text(f'{{{lists}, "categories": [{{"id": 1, "name": "tree"}}]}}')
    (tmp_path / "boxes.csv").write_text(HEAD + "\na.jpg,1,2,3,4,tree" * 15 + "\na.jpg,1,,3,4,tree")
    paint(tmp_path / "yolo" / "images" / "train", [SCENES[1]._replace(name="a.png")])
    write_yolo(tmp_path / "yolo", [SCENES[1]._replace(name="a.png")])
    (tmp_path / "yolo" / "labels" / "train" / "a.txt").write_text("0 .5 .5 .1 .1\n" * 2 + "0 412 300 50 60\n")
    paint(tmp_path / "VOC2012" / "JPEGImages", [SCENES[1]._replace(name="a.png")])
    write_voc(tmp_path / "VOC2012", [SCENES[1]._replace(name="a.png")])
    xml = f"<annotation><filename>a.png</filename>{GOOD * 2}{GOOD.replace('>3<', '>1O3<')}</annotation>"
    (tmp_path / "VOC2012" / "Annotations" / "a.xml").write_text(xml)
    said = []
    for name in ("crowns.json", "yolo/data.yaml", "VOC2012", "boxes.csv"):
        with pytest.raises(ValueError, match=": ") as caught:
            AnnotatedImages(tmp_path / name)
        said.append(str(caught.value).removeprefix(f"{tmp_path}/"))
    assert said == [line.strip() for line in quoted.splitlines()]
