"""The files of what was found: the boxes in each are the detector's, names lead to the images, places are right."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tifffile
import torch
from click.testing import Result
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from roialign.cli import app
from roialign.detection import Detector, Found, build_detector, detect, save_detector
from roialign.detection.datasets import AnnotatedImages
from roialign.detection.geography import place_of
from roialign.detection.images import DamagedImageError, Photo
from roialign.detection.records import DEGREES, PIXELS, Category, as_geojson, as_table
from roialign.detection.records import Result as Of

CLASSES = [Category(12, "bush"), Category(90, 'tree, "old"')]


def picture(path: Path, size: tuple[int, int] = (96, 80)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 80).convert("RGB").save(path)


def detector(folder: Path) -> Path:
    torch.manual_seed(0)
    small = {"fpn_channels": 8, "head_channels": 8, "output_size": 2, "box_score_thresh": 0.0}
    model = build_detector(3, "mobilenet_v2_fpn", scale=1.0, **small)
    ids, names = ([each[k] for each in CLASSES] for k in (0, 1))
    metrics = {"score_threshold": 0.27}
    save_detector(model, folder / "m.safetensors", classes=names, category_ids=ids, metrics=metrics)
    return folder / "m.safetensors"


def run(*line: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in line])


def rows_of(boxes: Any, scores: Any, labels: Any) -> Tensor:
    """Rows of x1, y1, x2, y2, score, label."""
    rows = [[*box, score, label] for box, score, label in zip(boxes, scores, labels, strict=True)]
    return torch.tensor(rows, dtype=torch.float64)


def area_of(ring: list[list[float]]) -> float:
    """By the shoelace formula: positive if it is counterclockwise."""
    return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairwise(ring)) / 2


def polygons(content: bytes) -> list[tuple[list[list[float]], dict[str, Any]]]:
    """The rings and properties of GeoJSON, held to what RFC 7946 says of its shape."""
    collection = json.loads(content)
    assert collection.keys() == {"type", "features"}
    assert collection["type"] == "FeatureCollection"
    found = []
    for feature in collection["features"]:
        assert feature.keys() == {"type", "id", "geometry", "properties"}
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        assert len(ring) == 5
        assert ring[0] == ring[4]
        assert area_of(ring) > 0
        found.append((ring, feature["properties"]))
    return found


def test_every_file_has_the_detectors_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = detector(tmp_path)
    for name in ("in/a.png", "in/deep/b.png"):
        picture(tmp_path / name)
    (tmp_path / "in" / "torn.png").write_bytes(b"no image")
    (tmp_path / "alias").symlink_to("far/away/out", target_is_directory=True)
    (tmp_path / "far" / "away" / "out").mkdir(parents=True)
    named = ("--csv", "tables/a.csv", "--geojson", tmp_path / "a.geojson")
    done = run("detect", "in", "--weights", weights, "--out", "alias", "--score", 0.2, "--no-draw", *named)
    assert done.exit_code == 1
    assert "in/torn.png: not an image" in str(done.exception)
    assert not list((tmp_path / "alias").glob("*.jpg"))

    model = Detector(weights).model
    expected = {}
    for name in ("in/a.png", "in/deep/b.png"):
        (found,) = detect(model, [Photo(name)])
        sure = found.scores >= 0.2
        expected[name] = rows_of(found.boxes[sure].tolist(), found.scores[sure].tolist(), found.labels[sure].tolist())
        assert len(expected[name]) > 5

    def same(folder: Path, rows: dict[str, list[Any]]) -> None:
        files = {os.path.relpath(folder.resolve() / file, tmp_path): file for file in rows}
        assert sorted(files) == sorted(expected)
        for name, file in files.items():
            got = rows_of([row[:4] for row in rows[file]], *([row[k] for row in rows[file]] for k in (4, 5)))
            # Rounded to hundredths of a pixel, of which an x2 is the sum of two.
            torch.testing.assert_close(got, expected[name], rtol=0, atol=0.0101)

    content = json.loads((tmp_path / "alias" / "detections.json").read_text())
    assert content["categories"] == [{"id": 12, "name": "bush"}, {"id": 90, "name": 'tree, "old"'}]
    names = {image["id"]: image["file_name"] for image in content["images"]}
    coco: dict[str, list[Any]] = {}
    for each in content["annotations"]:
        x, y, w, h = each["bbox"]
        label = {12: 1, 90: 2}[each["category_id"]]
        coco.setdefault(names[each["image_id"]], []).append([x, y, x + w, y + h, each["score"], label])
    same(tmp_path / "alias", coco)

    label = {category.name: k for k, category in enumerate(CLASSES, 1)}
    table: dict[str, list[Any]] = {}
    for row in csv.DictReader((tmp_path / "tables" / "a.csv").read_text().splitlines()):
        edges = [float(row[key]) for key in ("xmin", "ymin", "xmax", "ymax", "score")]
        table.setdefault(row["image_path"], []).append([*edges, label[row["label"]]])
    same(tmp_path / "tables", table)

    outlines: dict[str, list[Any]] = {}
    for ring, about in polygons((tmp_path / "a.geojson").read_bytes()):
        (x1, y1), (x2, y2) = ring[0], ring[2]
        assert about["coordinates"] == PIXELS
        assert about["box"] == [x1, y1, x2, y2]
        outlines.setdefault(about["image"], []).append([x1, y1, x2, y2, about["score"], label[about["class"]]])
    same(tmp_path, outlines)


def test_a_table_is_read_again_as_annotations(tmp_path: Path) -> None:
    """Whole numbers, so that nothing is rounded; an image without boxes stays one."""
    for name in ("a, b.png", "empty.png"):
        picture(tmp_path / "in" / name)
    boxes = torch.tensor([[1.0, 2, 30, 40], [5.0, 6, 70, 80]])
    found = [
        Found(boxes, torch.tensor([0.9, 0.5]), torch.tensor([2, 1])),
        Found(boxes[:0], boxes[:0, 0], torch.tensor([])),
    ]
    names = ("a, b.png", "empty.png")
    results = [Of(tmp_path / "in" / name, 96, 80, each) for name, each in zip(names, found, strict=True)]
    (tmp_path / "found.csv").write_bytes(as_table(results, CLASSES, tmp_path))
    data = AnnotatedImages(tmp_path / "found.csv")
    assert data.classes == ["bush", 'tree, "old"']
    assert [entry.file for entry in data.entries] == [tmp_path / "in" / name for name in names]
    assert data.entries[0].boxes.tolist() == boxes.tolist()
    assert data.entries[0].labels.tolist() == [2, 1]
    assert len(data.entries[1].boxes) == 0


def test_a_name_that_is_no_utf8_spoils_no_table(tmp_path: Path) -> None:
    results = [Of(tmp_path / os.fsdecode(b"caf\xe9.png"), 9, 9, Found(torch.ones(0, 4), torch.ones(0), torch.ones(0)))]
    assert as_table(results, CLASSES, tmp_path).decode().splitlines()[1] == "caf\\udce9.png,,,,,,,"


def test_files_that_the_user_names_are_no_inputs_and_no_drawings(tmp_path: Path) -> None:
    weights = detector(tmp_path)
    picture(tmp_path / "a.png")
    (tmp_path / "link.csv").symlink_to("a.png")
    before = (tmp_path / "a.png").read_bytes()
    line = ("detect", tmp_path / "a.png", "--weights", weights, "--out", tmp_path / "out")
    for more, message in (
        (("--csv", tmp_path / "a.png"), "a.png: is read"),
        (("--geojson", weights), "m.safetensors: is read"),
        (("--csv", tmp_path / "link.csv"), "is a link"),
        (("--csv", tmp_path / "x", "--geojson", tmp_path / "X"), "two files would be written there"),
        (("--csv", tmp_path / "out" / "Detections.json"), "two files would be written there"),
    ):
        assert message in str(run(*line, *more).exception)
        assert not (tmp_path / "out" / "detections.json").exists()
    assert run(*line, "--csv", tmp_path / "out" / "a.jpg").exit_code == 0
    assert (tmp_path / "out" / "a.jpg").read_text().startswith("image_path")
    assert Photo(tmp_path / "out" / "a-2.jpg").width % 96 == 0  # drawn larger
    assert (tmp_path / "a.png").read_bytes() == before


def test_one_line_of_python(tmp_path: Path) -> None:
    weights = detector(tmp_path)
    picture(tmp_path / "a.png", (200, 120))
    ours = Detector(weights)
    assert ours.score == 0.27  # by the card
    (found,) = detect(ours.model, [Photo(tmp_path / "a.png")], tile=128, overlap=32)
    for score, least in ((None, 0.27), (0.1, 0.1)):
        told = ours.detect(tmp_path / "a.png", score=score, tile=128, overlap=32)
        sure = found.scores >= least
        assert bool(sure.any())
        for got, expected in zip(told[:3], found[:3], strict=True):
            assert torch.equal(got, expected[sure])
        assert told.names == [CLASSES[label - 1].name for label in found.labels[sure].tolist()]
    (tmp_path / "torn.png").write_bytes(b"no image")
    with pytest.raises(DamagedImageError, match=r"torn\.png"):
        ours.detect(tmp_path / "torn.png")


# Places on earth.


def lonlat(east: float, north: float, zone: int) -> tuple[float, float]:
    """From UTM on the northern half, by Krueger's series to the third order: exact to less than a millimetre."""
    f = 1 / 298.257223563
    n = f / (2 - f)
    radius = 6378137 / (1 + n) * (1 + n**2 / 4 + n**4 / 64)
    y, x = north / (0.9996 * radius), (east - 500_000) / (0.9996 * radius)
    beta = (n / 2 - 2 * n**2 / 3 + 37 * n**3 / 96, n**2 / 48 + n**3 / 15, 17 * n**3 / 480)
    delta = (2 * n - 2 * n**2 / 3 - 2 * n**3, 7 * n**2 / 3 - 8 * n**3 / 5, 56 * n**3 / 15)
    yy = y - sum(b * math.sin(2 * k * y) * math.cosh(2 * k * x) for k, b in enumerate(beta, 1))
    xx = x - sum(b * math.cos(2 * k * y) * math.sinh(2 * k * x) for k, b in enumerate(beta, 1))
    chi = math.asin(math.sin(yy) / math.cosh(xx))
    latitude = chi + sum(d * math.sin(2 * k * chi) for k, d in enumerate(delta, 1))
    return math.degrees(math.atan2(math.sinh(xx), math.cos(yy))) + 6 * zone - 183, math.degrees(latitude)


def georeferenced(path: Path, place: tuple[float, ...], system: str | None) -> Photo:
    """60 x 40 pixels; ``place``: as an affine matrix, x = a column + b row + c, y = d column + e row + f."""
    rasterio = pytest.importorskip("rasterio")
    profile = {"driver": "GTiff", "width": 60, "height": 40, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, transform=rasterio.Affine(*place), crs=system) as image:
        image.write((torch.arange(7200).reshape(3, 40, 60) % 251).to(torch.uint8).numpy())
    return Photo(path)


def one_box(photo: Photo, *box: float) -> Of:
    place, note = place_of(photo)
    assert note == ""
    return Of(
        photo.path, photo.width, photo.height, Found(torch.tensor([box]), torch.ones(1), torch.ones(1).long()), place
    )


@pytest.mark.parametrize(
    "place",
    [
        (0.5, 0, 512_000, 0, -0.5, 4_970_000),  # north is up, half a metre a pixel
        (0.5, 0, 512_000, 0, 0.5, 4_970_000),  # south is up
        (0.3, 0.4, 512_000, 0.4, -0.3, 4_970_000),  # turned
    ],
)
def test_boxes_of_a_georeferenced_image_are_where_they_are_on_earth(place: tuple[float, ...], tmp_path: Path) -> None:
    photo = georeferenced(tmp_path / "a.tif", place, "EPSG:32612")
    a, b, c, d, e, f = place
    ((ring, about),) = polygons(as_geojson([one_box(photo, 10, 5, 30, 25)], CLASSES, tmp_path))
    corners = {lonlat(a * x + b * y + c, d * x + e * y + f, 12) for x in (10, 30) for y in (5, 25)}
    assert about["coordinates"] == DEGREES
    assert about["box"] == [10, 5, 30, 25]
    for got, expected in zip(sorted(map(tuple, ring[:4])), sorted(corners), strict=True):
        assert got == pytest.approx(expected, abs=1e-8)  # a degree's 8 digits


def test_degrees_stay_as_they_are(tmp_path: Path) -> None:
    photo = georeferenced(tmp_path / "a.tif", (1e-5, 0, -110.5, 0, -1e-5, 44.75), "EPSG:4326")
    ((ring, _),) = polygons(as_geojson([one_box(photo, 10, 5, 30, 25)], CLASSES, tmp_path))
    expected = [[-110.4999, 44.74975], [-110.4997, 44.74975], [-110.4997, 44.74995], [-110.4999, 44.74995]]
    assert sorted(ring[:4]) == [pytest.approx(corner, abs=1e-8) for corner in sorted(expected)]


def test_a_box_across_the_180th_meridian_does_not_go_around_the_earth(tmp_path: Path) -> None:
    photo = georeferenced(
        tmp_path / "a.tif", (1000, 0, -20_000, 0, -1000, 100_000), "+proj=merc +lon_0=180 +datum=WGS84"
    )
    geometry = json.loads(as_geojson([one_box(photo, 10, 5, 30, 25)], CLASSES, tmp_path))["features"][0]["geometry"]
    assert geometry["type"] == "MultiPolygon"
    assert len(geometry["coordinates"]) == 2
    for (ring,) in geometry["coordinates"]:
        longitudes = [longitude for longitude, _ in ring]
        assert max(longitudes) - min(longitudes) < 0.2
        assert max(map(abs, longitudes)) == 180


@pytest.mark.parametrize("turn", [2, 3, 4])
def test_a_turn_that_keeps_the_size_is_seen_too(turn: int, tmp_path: Path) -> None:
    """Photos are upright, and GDAL's pixels are not."""
    photo = georeferenced(tmp_path / "a.tif", (0.5, 0, 512_000, 0, -0.5, 4_970_000), "EPSG:32612")
    assert place_of(photo)[0] is not None
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        page = tiff.pages[0].aspage()
        kept = [page.tags[code] for code in (33550, 33922, 34735, 34737)]  # scale, tie point, geo keys and their words
        tags = [(tag.code, tag.dtype, tag.count, tag.value, True) for tag in kept]
        for name, more in (("same", []), ("turned", [(274, "H", 1, turn, True)])):
            tifffile.imwrite(tmp_path / f"{name}.tif", page.asarray(), photometric="rgb", extratags=[*tags, *more])
    assert place_of(Photo(tmp_path / "same.tif")) == place_of(photo)
    place, note = place_of(Photo(tmp_path / "turned.tif"))
    assert (place, "orientation tag" in note) == (None, True)


def test_what_has_no_place_has_pixels_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    assert place_of(Photo(tmp_path / "a.png")) == (None, "")
    (tmp_path / "a.pgw").write_text("0.5\n0\n0\n-0.5\n512000\n4970000\n")
    place, note = place_of(Photo(tmp_path / "a.png"))
    assert (place, "no coordinate system" in note) == (None, True)
    plain = Photo(tmp_path / "a.png").preview(99)
    plain.save(tmp_path / "plain.tif")
    photo = georeferenced(tmp_path / "b.tif", (0.5, 0, 512_000, 0, -0.5, 4_970_000), "EPSG:32612")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert place_of(Photo(tmp_path / "plain.tif")) == (None, "")
    with pytest.raises(ModuleNotFoundError, match=r"b\.tif: may be georeferenced.*roialign\[geo\]"):
        place_of(photo)
