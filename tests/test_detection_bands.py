"""Images of any depth, number of bands and frames: as numpy says they are, or refused."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from roialign.detection.images import FILL, DamagedImageError, Photo, read_head
from test_detection_images import RAMP, TURNS, pixels


def bands(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).integers(0, 256, (20, 30, count))


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_tiffs_of_any_depth_and_number_of_bands(tmp_path: Path, planes: str, compression: str, count: int) -> None:
    values = bands(count)
    expected = values[..., :3] if count > 2 else values[..., :1].repeat(3, -1)
    forms = {
        "u1": 1,
        "u2": 257,
        "<u2": 16,
        ">u2": 16,
        "i2": 64,
        "u4": 2**24 - 1,
        "f2": 1 / 255,
        "f4": 1 / 255,
        "f8": 1.0,
    }
    for form, factor in forms.items():
        image = np.moveaxis(values, -1, 0) if planes == "separate" else values
        for kind, used in (("minisblack", 1), ("rgb", 3)):
            extra = ["unspecified"] * (count - used)
            if count >= used:
                options = {"photometric": kind, "planarconfig": planes, "compression": compression}
                tifffile.imwrite(tmp_path / "a.tif", (image * factor).astype(form), extrasamples=extra, **options)
                assert np.abs(pixels(tmp_path / "a.tif").astype(int) - expected).max() <= 1, (form, kind)
                head = read_head(tmp_path / "a.tif")
                assert head == (30, 20, Photo(tmp_path / "a.tif").note)
                what = {True: "the first is shown", used == 1: "the first 3 are taken as red, green and blue"}
                what |= {used == 3: "the first 3 are shown", count == 2: "the first is shown", count == 3: ""}
                assert head.note == (f"{count} bands: {what[True]}" if what[True] else "")


@pytest.mark.parametrize("form", ["u1", "u2"])
def test_inks_and_alpha_in_tiffs(tmp_path: Path, form: str) -> None:
    values, factor = bands(3), 257 if form == "u2" else 1
    half = np.full((20, 30, 1), 51)
    for planes in ("contig", "separate"):
        inks = np.concatenate([255 - values, half], -1) * factor  # a fifth of black over all
        inks = np.moveaxis(inks, -1, 0) if planes == "separate" else inks
        tifffile.imwrite(tmp_path / "a.tif", inks.astype(form), photometric="separated", planarconfig=planes)
        assert np.abs(pixels(tmp_path / "a.tif") - values * 0.8).max() <= 1
    mixed = values * 0.2 + np.array(FILL) * 0.8
    for alpha, colours in (("unassalpha", values), ("assocalpha", np.round(values * 0.2).astype(int))):
        whole = np.concatenate([colours, half], -1) * factor
        whole[0, 0, 3] = 255 * factor  # opaque
        tifffile.imwrite(tmp_path / "a.tif", whole.astype(form), photometric="rgb", extrasamples=[alpha])
        got = pixels(tmp_path / "a.tif")
        assert np.abs(got - mixed)[1:].max() <= 4, alpha  # few bits are left of colours times 0.2
        assert (got[0, 0] == colours[0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiffs_are_upright(tmp_path: Path, orientation: int) -> None:
    for form, factor in (("u1", 1), ("u2", 257)):
        tag = (274, "H", 1, orientation, True)
        tifffile.imwrite(tmp_path / "a.tif", (bands(3) * factor).astype(form), photometric="rgb", extratags=[tag])
        assert (pixels(tmp_path / "a.tif") == TURNS[orientation](bands(3))).all()
        photo = Photo(tmp_path / "a.tif")
        assert read_head(tmp_path / "a.tif") == (photo.width, photo.height, "")


def png16(path: Path, values: np.ndarray[Any, Any]) -> None:
    """A PNG of 16 bits a sample, which Pillow does not write in colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, count = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[count], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def ppm(path: Path, values: np.ndarray[Any, Any], white: int) -> None:
    path.write_bytes(b"P6 30 20 %d\n" % white + values.astype(">u2").tobytes())


def test_16_bit_colour_that_pillow_cuts_is_right_or_refused(tmp_path: Path) -> None:
    opaque = np.full((20, 30, 1), 65535)
    for count in (2, 3, 4):
        colour = bands(3) if count > 2 else bands(3)[..., :1]
        for factor, right in ((257, True), (64, True), (16, False), (1, False)):  # 16, 14, 12 and 8 bits used
            png16(tmp_path / "a.png", np.concatenate([colour * factor, opaque], -1)[..., :count])
            if factor == 64:  # below 2**14: as grey it would be stretched, which the upper half cannot be
                right = colour.max() * factor >= 2**14
            if right:
                assert np.abs(pixels(tmp_path / "a.png").astype(int) - colour).max() <= 1
            else:
                with pytest.raises(DamagedImageError, match="16-bit colour of which fewer than 15 bits are used"):
                    Photo(tmp_path / "a.png")
    ppm(tmp_path / "a.ppm", bands(3) * 257, 65535)
    assert (pixels(tmp_path / "a.ppm") == bands(3)).all()
    ppm(tmp_path / "a.ppm", bands(3) * 16, 4095)  # says itself that it has 12
    assert np.abs(pixels(tmp_path / "a.ppm").astype(int) - bands(3)).max() <= 1
    ppm(tmp_path / "a.ppm", bands(3) * 16, 65535)
    with pytest.raises(DamagedImageError, match=r"a\.ppm: 16-bit colour"):
        Photo(tmp_path / "a.ppm")


def test_alpha_is_where_the_file_says(tmp_path: Path) -> None:
    values = np.concatenate([bands(3), np.full((20, 30, 1), 255)], -1).astype(np.uint16) * 257
    values[:10, :, 3] = 0
    for kind, extra in (("minisblack", ["unspecified"] * 2 + ["unassalpha"]), ("rgb", ["unassalpha"])):
        tifffile.imwrite(tmp_path / "a.tif", values, photometric=kind, extrasamples=extra)
        got = pixels(tmp_path / "a.tif")
        assert (got[:10] == FILL).all()
        assert (got[10:] == bands(3)[10:]).all()
    tifffile.imwrite(tmp_path / "a.tif", values[..., [0, 3, 1]], photometric="minisblack",
                     extrasamples=["unassalpha", "unspecified"])  # fmt: skip
    assert (pixels(tmp_path / "a.tif")[10:] == bands(3)[10:, :, :1]).all()
    assert (pixels(tmp_path / "a.tif")[:10] == FILL).all()
    assert Photo(tmp_path / "a.tif").note == "3 bands: the first is shown"


def test_without_tifffile_the_upper_bits_serve_where_they_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, factor, compression in (("full", 257, "zlib"), ("few", 16, "zlib"), ("raw", 257, None)):
        values = (bands(3) * factor).astype(np.uint16)
        tifffile.imwrite(tmp_path / f"{name}.tif", values, photometric="rgb", compression=compression)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert (pixels(tmp_path / "full.tif") == bands(3)).all()
    for name in ("few", "raw"):
        with pytest.raises(
            DamagedImageError, match=rf"{name}\.tif: needs tifffile: pip install 'roialign\[detection\]'"
        ):
            Photo(tmp_path / f"{name}.tif")


def test_what_cannot_be_shown_rightly_is_refused(tmp_path: Path) -> None:
    grey = bands(1)[..., 0]
    for form in ("u2", "f4"):
        tifffile.imwrite(tmp_path / "a.tif", grey.astype(form), photometric="miniswhite")
        with pytest.raises(DamagedImageError, match=r"a\.tif: TIFF of 1 bands of .*, MINISWHITE: not understood"):
            Photo(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a.tif", grey.astype("u1"), photometric="miniswhite")
    assert (pixels(tmp_path / "a.tif")[..., 0] == 255 - grey).all()
    tifffile.imwrite(tmp_path / "a.tif", (bands(5) * 16).astype("u2"), photometric="minisblack", planarconfig="contig")
    whole = (tmp_path / "a.tif").read_bytes()
    empty = whole.replace(struct.pack("<HHII", 256, 4, 1, 30), struct.pack("<HHII", 256, 4, 1, 0))
    assert empty != whole
    (tmp_path / "a.tif").write_bytes(empty)
    for read in (Photo, read_head):
        with pytest.raises(DamagedImageError, match=r"a\.tif: "):
            read(tmp_path / "a.tif")
    (tmp_path / "a.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedImageError, match=r"a\.tif: cannot be decoded"):
        Photo(tmp_path / "a.tif")


def test_floating_values_are_never_black(tmp_path: Path) -> None:
    """A maximum a little above 1 is a reflectance still, and not a byte."""
    for white, least in ((1.0, 1.0), (1.0, 1.5), (255.0, 200.0), (16383.0, 9000.0), (30.0, 30.0), (1e6, 1e6)):
        values = (RAMP / 255 * least).astype(np.float32)
        for picture in (values, np.repeat(values[..., None], 3, 2)):
            tifffile.imwrite(tmp_path / "a.tif", picture, photometric="minisblack" if picture.ndim == 2 else "rgb")
            assert np.abs(pixels(tmp_path / "a.tif")[..., 0] - (values / white * 255).clip(0, 255)).max() <= 1
    values[0, :3] = np.nan, np.inf, -np.inf
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert pixels(tmp_path / "a.tif")[0, :3, 0].tolist() == [0, 255, 0]


def test_frames_after_the_first_are_mentioned(tmp_path: Path) -> None:
    frames = [Image.fromarray(bands(3)[..., k].astype(np.uint8)) for k in range(3)]
    for name in ("a.gif", "a.png", "a.tif", "a.webp"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert Photo(tmp_path / name).note == read_head(tmp_path / name).note == "the first of 3 frames", name
        assert (pixels(tmp_path / name)[..., 0] == np.asarray(frames[0])).all()
    with tifffile.TiffWriter(tmp_path / "small.tif") as tiff:  # with smaller copies, as maps have
        tiff.write(bands(3).astype(np.uint8), photometric="rgb", subfiletype=0)
        tiff.write(bands(3)[::2, ::2].astype(np.uint8), photometric="rgb", subfiletype=1)
    assert Photo(tmp_path / "small.tif").note == ""
