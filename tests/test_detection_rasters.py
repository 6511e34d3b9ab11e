"""Rasters show what photos show, window by window, in little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from roialign.detection import rasters
from roialign.detection.images import DamagedImageError, Photo
from roialign.detection.rasters import Raster, open_image

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

KINDS: dict[str, dict[str, Any]] = {
    "grey": {"count": 1},
    "grey and alpha": {"count": 2, "alpha": "unspecified"},
    "colours": {"count": 3, "photometric": "rgb"},
    "colours in planes": {"count": 3, "photometric": "rgb", "interleave": "band"},
    "colours and alpha": {"count": 4, "photometric": "rgb", "alpha": "unassociated"},
    "five bands": {"count": 5, "photometric": "rgb"},
    "grey bands": {"count": 3, "photometric": "minisblack"},
    "strips": {"count": 3, "photometric": "rgb", "tiled": False, "blockysize": 7},
    "jpeg": {"count": 3, "photometric": "ycbcr", "compress": "jpeg"},
    "12 bits": {"count": 3, "photometric": "rgb", "dtype": "uint16", "most": 4095},
    "16 bits": {"count": 1, "dtype": "uint16", "most": 65535},
    "16 bits and alpha": {"count": 4, "photometric": "rgb", "alpha": "unassociated", "dtype": "uint16", "most": 40000},
}


def write(path: Path, height: int, width: int, *, dtype: str = "uint8", most: int = 255, **options: Any) -> None:
    rng = np.random.default_rng(0)
    shape = (options["count"], height, width)
    values = rng.integers(0, most + 1, shape).astype(dtype)
    values.flat[0] = most
    if options.get("compress") == "jpeg":  # which keeps the colours of neighbours together: of noise decoders differ
        values[:] = np.linspace(0, 200, height * width).reshape(height, width)
    layout = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"} | options
    if not layout["tiled"]:
        del layout["blockxsize"]
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, dtype=dtype, **layout) as file:
        file.write(values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_raster_shows_what_a_photo_shows(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.tif"
    write(path, 45, 70, **KINDS[kind])
    photo = Photo(path)
    monkeypatch.setattr(rasters, "LARGE", 45 * 70 - 1)
    raster = open_image(path)
    assert isinstance(raster, Raster)
    assert (raster.width, raster.height, raster.note) == (photo.width, photo.height, photo.note)
    # Decoders of JPEG round in their own ways.
    near = 3 / 255 if kind == "jpeg" else 0
    for window in (None, (0, 0, 70, 45), (69, 44, 70, 45), (13, 5, 47, 33)):
        torch.testing.assert_close(raster.read(window), photo.read(window), atol=near, rtol=0)
    # Made smaller by means of the cells that a pixel covers; whole ones here.
    monkeypatch.setattr(rasters, "LARGE", 0)
    write(path, 48, 64, **KINDS[kind])
    small, wanted = (np.asarray(open_(path).preview(16)).astype(int) for open_ in (open_image, Photo))
    transparent = "alpha" in KINDS[kind]  # whether colours are mixed before or after: another mean
    assert small.shape == wanted.shape == (12, 16, 3)
    assert np.abs(small - wanted).max() <= (60 if transparent else 3 if kind == "jpeg" else 1)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"count": 3, "photometric": "rgb", "dtype": "float32"}, "fractions"),
        ({"count": 4, "photometric": "cmyk"}, "ink"),
        ({"count": 1, "photometric": "miniswhite"}, "inverted"),
    ],
)
def test_what_is_no_raster_stays_a_photo(
    options: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rasters, "LARGE", 0)
    write(tmp_path / "image.tif", 20, 20, **{"most": 1 if why == "fractions" else 255, **options})
    assert type(open_image(tmp_path / "image.tif")) is Photo


def test_small_ones_turned_ones_and_those_without_rasterio_stay_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "small.tif", 20, 20, count=1)
    assert type(open_image(tmp_path / "small.tif")) is Photo
    monkeypatch.setattr(rasters, "LARGE", 0)
    photo = Photo(tmp_path / "small.tif")
    photo.image.save(tmp_path / "turned.tif", tiffinfo={274: 6})
    assert type(open_image(tmp_path / "turned.tif")) is Photo
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert type(open_image(tmp_path / "small.tif")) is Photo


@pytest.mark.parametrize("cut", [10, 200, 3000])
def test_a_damaged_raster_says_so(cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasters, "LARGE", 0)
    path = tmp_path / "torn.tif"
    write(path, 60, 60, count=3, photometric="rgb")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DamagedImageError, match=r"torn\.tif"):
        open_image(path).read()


MEASURE = """
import resource, sys
from roialign.detection.rasters import Raster, open_image
image = open_image(sys.argv[1])
assert isinstance(image, Raster), image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for top in range(0, image.height, 4096):
    for left in range(0, image.width, 512):
        image.crop((left, top, min(left + 512, image.width), min(top + 512, image.height)))
print(image.preview(256).size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_a_gigabyte_is_read_in_a_fraction_of_it(tmp_path: Path) -> None:
    """20,000 x 17,000 x 3 bytes; the pages of one row of blocks are GDAL's cache, 256 MiB at most."""
    path = tmp_path / "large.tif"
    options = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "lzw", "photometric": "rgb"}
    with rasterio.open(path, "w", driver="GTiff", height=17000, width=20000, count=3, dtype="uint8", **options) as file:
        row = np.zeros((3, 512, 20000), np.uint8)
        row[:, :, ::7] = 200
        for top in range(0, 17000, 512):
            height = min(512, 17000 - top)
            file.write(row[:, :height], window=((top, top + height), (0, 20000)))
    result = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    *_, megabytes = result.stdout.split()
    assert result.stdout.startswith("(254, 216)"), result.stdout
    assert int(megabytes) < 512  # the cache, a part of the preview, and what Python holds on to


BLANK = """
import resource, sys
from roialign.detection import detect, load_detector
from roialign.detection.rasters import open_image
image = open_image(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(found,) = detect(load_detector(), [image])
print(len(found.boxes), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_blank_tiles_leave_nothing_behind(tmp_path: Path) -> None:
    """961 of them: what stays between their pixels, be it a hundred bytes, keeps the allocator from reusing these."""
    path = tmp_path / "blank.tif"
    options = {"tiled": True, "blockxsize": 512, "blockysize": 512, "photometric": "rgb", "sparse_ok": True}
    with rasterio.open(path, "w", driver="GTiff", height=9000, width=9000, count=3, dtype="uint8", **options):
        pass
    result = subprocess.run([sys.executable, "-c", BLANK, str(path)], capture_output=True, text=True, check=True)
    boxes, megabytes = map(int, result.stdout.split())
    assert boxes == 0
    assert megabytes < 512  # the cache, the detector, and what Python holds on to
