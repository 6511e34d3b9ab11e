"""GeoPackages, read by SQLite and the format's own specification: what lies where on earth, in which system."""

from __future__ import annotations

import json
import sqlite3
import struct
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from roialign.detection import Found
from roialign.detection.geography import place_of
from roialign.detection.records import as_geopackage
from test_detection_records import CLASSES, Of, detector, georeferenced, lonlat, one_box, picture, run

pytest.importorskip("pyogrio")

NORTH = (0.5, 0, 512_000, 0, -0.5, 4_970_000)  # half a metre a pixel
Parts = list[list[list[tuple[float, float]]]]  # polygons of rings of points


class Layer(NamedTuple):
    system: tuple[str, int]  # who counts it, and its number there
    kind: str
    rows: list[dict[str, Any]]
    shapes: list[Parts | None]


def read(path: Path) -> Layer:
    """The only layer, by https://www.geopackage.org/spec131/ 1.1.2, 2.1.3 and 2.1.5."""
    base = sqlite3.connect(path)
    base.row_factory = sqlite3.Row
    assert base.execute("PRAGMA application_id").fetchone()[0] == 0x47504B47  # "GPKG"
    assert base.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    ((table, kind),) = base.execute("SELECT table_name, data_type FROM gpkg_contents")
    assert (table, kind) == ("detections", "features")
    ((column, shape, number),) = base.execute(
        "SELECT column_name, geometry_type_name, srs_id FROM gpkg_geometry_columns"
    )
    about = "SELECT organization, organization_coordsys_id FROM gpkg_spatial_ref_sys WHERE srs_id = ?"
    ((whose, code),) = base.execute(about, (number,))
    rows = [dict(row) for row in base.execute("SELECT * FROM detections ORDER BY fid")]
    base.close()
    shapes = [None if (blob := row.pop(column)) is None else multipolygon(blob, number) for row in rows]
    return Layer((whose, code), shape, rows, shapes)


def multipolygon(blob: bytes, system: int) -> Parts:
    assert blob[:3] == b"GP\0"
    assert blob[3] & 1  # little-endian
    assert struct.unpack("<i", blob[4:8])[0] == system
    place = 8 + {0: 0, 1: 32}[blob[3] >> 1 & 7]  # the envelope

    def take(form: str) -> tuple[Any, ...]:
        nonlocal place
        values = struct.unpack_from(form, blob, place)
        place += struct.calcsize(form)
        return values

    order, kind, parts = take("<BII")
    assert (order, kind) == (1, 6)
    found: Parts = []
    for _ in range(parts):
        order, kind, rings = take("<BII")
        assert (order, kind) == (1, 3)
        found.append([[take("<dd") for _ in range(take("<I")[0])] for _ in range(rings)])  # type: ignore[misc]
    assert place == len(blob)
    return found


def written(tmp_path: Path, *results: Of) -> Layer:
    (tmp_path / "a.gpkg").write_bytes(as_geopackage(results, CLASSES, tmp_path))
    return read(tmp_path / "a.gpkg")


@pytest.mark.parametrize(
    "place", [NORTH, (0.5, 0, 512_000, 0, 0.5, 4_970_000), (0.3, 0.4, 512_000, 0.4, -0.3, 4_970_000)]
)
def test_images_of_one_system_stay_in_it(place: tuple[float, ...], tmp_path: Path) -> None:
    first = one_box(georeferenced(tmp_path / "a.tif", place, "EPSG:32612"), 10, 5, 30.25, 25)
    other = one_box(georeferenced(tmp_path / "b.tif", NORTH, "EPSG:32612"), 1, 2, 3, 4)
    layer = written(tmp_path, first, other)
    assert layer.system == ("EPSG", 32612)
    assert layer.kind == "MULTIPOLYGON"
    (((ring,),),) = layer.shapes[:1]
    a, b, c, d, e, f = place
    corners = [(a * x + b * y + c, d * x + e * y + f) for x in (10, 30.25) for y in (5, 25)]
    assert ring[0] == ring[4]
    assert sorted(ring[:4]) == [pytest.approx(corner, abs=1e-8) for corner in sorted(corners)]
    assert sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairwise(ring)) > 0  # counterclockwise
    same = {"class": "bush", "score": 1.0}
    assert layer.rows == [
        {"fid": 1, "image": "a.tif", **same, "xmin": 10, "ymin": 5, "xmax": 30.25, "ymax": 25},
        {"fid": 2, "image": "b.tif", **same, "xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4},
    ]
    assert layer.shapes[1] is not None
    assert set(layer.shapes[1][0][0]) == {(x, y) for x in (512_000.5, 512_001.5) for y in (4_969_999, 4_969_998)}


def test_images_of_several_systems_are_in_degrees(tmp_path: Path) -> None:
    photos = [georeferenced(tmp_path / f"{zone}.tif", NORTH, f"EPSG:326{zone}") for zone in (12, 13)]
    layer = written(tmp_path, *(one_box(photo, 10, 5, 30, 25) for photo in photos))
    assert layer.system == ("EPSG", 4326)
    for zone, shape in zip((12, 13), layer.shapes, strict=True):
        assert shape is not None
        ((ring,),) = shape
        corners = [lonlat(x, y, zone) for x in (512_005, 512_015) for y in (4_969_997.5, 4_969_987.5)]
        assert sorted(ring[:4]) == [pytest.approx(corner, abs=1e-8) for corner in sorted(corners)]


def test_a_system_that_nobody_has_numbered(tmp_path: Path) -> None:
    photo = georeferenced(
        tmp_path / "a.tif", (1000, 0, -20_000, 0, -1000, 100_000), "+proj=merc +lon_0=180 +datum=WGS84"
    )
    layer = written(tmp_path, one_box(photo, 10, 5, 30, 25))
    assert layer.system[0] != "EPSG"
    assert layer.shapes[0] is not None
    ((ring,),) = layer.shapes[0]  # one, since the 180th meridian is in the middle of this map
    assert set(ring) == {(x, y) for x in (-10_000, 10_000) for y in (95_000, 75_000)}


def test_masks_in_parts_with_holes_and_without_anything(tmp_path: Path) -> None:
    """Cells of one pixel each, so that an outline lies where cells meet."""
    grids = torch.zeros(2, 28, 28)
    grids[0, 2:12, 3:13] = 1
    grids[0, 4:8, 5:9] = 0  # the hole
    grids[0, 20:26, 20:24] = 1
    boxes = torch.tensor([[10.0, 5, 38, 33]]).repeat(2, 1)
    photo = georeferenced(tmp_path / "a.tif", (1, 0, 1000, 0, -1, 2000), "EPSG:32612")
    found = Found(boxes, torch.tensor([0.9, 0.5]), torch.tensor([1, 2]), grids)
    layer = written(tmp_path, Of(photo.path, 60, 40, found, place_of(photo)[0]))
    assert [row["class"] for row in layer.rows] == ["bush", 'tree, "old"']
    shape, nothing = layer.shapes
    assert nothing is None
    assert shape is not None
    edges = [
        [[f(point[k] for point in ring) for k in (0, 1) for f in (min, max)] for ring in part] for part in sorted(shape)
    ]
    # Columns 3 to 13 of a box that begins at pixel 10 are 1013 to 1023; rows 2 to 12 of one at 5, 1993 down to 1983.
    assert edges == [[[1013, 1023, 1983, 1993], [1015, 1019, 1987, 1991]], [[1030, 1034, 1969, 1975]]]


def test_the_command_writes_what_has_a_place_and_says_what_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = detector(tmp_path)
    picture(tmp_path / "in" / "plain.png")
    georeferenced(tmp_path / "in" / "placed.tif", NORTH, "EPSG:32612")
    line = ("detect", "--weights", weights, "--score", 0.01, "--no-draw", "--geopackage", "far/a.gpkg")
    for _ in range(2):  # the user named the file, so it is replaced
        done = run(*line, "in", "--geojson", "a.geojson")
        assert done.exit_code == 0, done.exception
        said = " ".join(done.output.split())
        assert "far/a.gpkg: 1 images are not in it, since their place on earth is not known: 'in/plain.png'" in said
    layer = read(tmp_path / "far" / "a.gpkg")
    features = [each["properties"] for each in json.loads((tmp_path / "a.geojson").read_text())["features"]]
    expected = [each for each in features if each["image"] == "in/placed.tif"]
    assert 0 < len(expected) < len(features)
    assert [row["image"] for row in layer.rows] == ["../in/placed.tif"] * len(expected)
    for row, about in zip(layer.rows, expected, strict=True):
        assert [row[key] for key in ("xmin", "ymin", "xmax", "ymax")] == about["box"]
        assert (row["class"], row["score"]) == (about["class"], about["score"])
    assert run(*line, "in/plain.png").exit_code == 0
    assert read(tmp_path / "far" / "a.gpkg") == (("EPSG", 4326), "MULTIPOLYGON", [], [])


def test_what_is_missing_or_in_the_way_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    line = ("detect", tmp_path / "a.png", "--out", tmp_path / "out", "--geopackage", tmp_path / "a.gpkg")
    (tmp_path / "a.gpkg-wal").write_bytes(b"")
    assert "a.gpkg: is open in another program, by a.gpkg-wal" in str(run(*line).exception)
    (tmp_path / "a.gpkg-wal").unlink()
    for name in ("pyogrio", "rasterio"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            assert f"needs {name}: pip install 'roialign[geo]'" in str(run(*line).exception)
    assert "a.png: is read" in str(run(*line[:-1], tmp_path / "a.png").exception)
    assert not (tmp_path / "a.gpkg").exists()
    assert not list(tmp_path.glob("out/*.jpg"))


def test_a_name_that_is_no_utf8_spoils_no_layer(tmp_path: Path) -> None:
    first = one_box(georeferenced(tmp_path / "a.tif", NORTH, "EPSG:32612"), 1, 2, 3, 4)
    odd = first._replace(file=tmp_path / "caf\udce9.tif")
    assert [row["image"] for row in written(tmp_path, odd).rows] == ["caf\\udce9.tif"]
