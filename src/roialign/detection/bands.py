"""Sample values of any depth as 8 bits, and the TIFFs that Pillow does not read, or reads wrongly."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

Array = np.ndarray[Any, np.dtype[Any]]
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GREY, RGB, SEPARATED = 1, 2, 5  # TIFF's photometric interpretations
LEAST = {GREY: 1, RGB: 3, SEPARATED: 4}  # bands
PILLOWS_GREYS = (
    (12, 1),
    (16, 1),
    (16, 2),
    (32, 2),
    (32, 3),
)  # bits and sample format: 1 unsigned, 2 signed, 3 floating


class UnsupportedError(ValueError):
    """An image that may be whole but cannot be shown rightly."""


def white_of(largest: float, whole: bool) -> float:
    """The value that is shown as white where ``largest`` is the largest there is.

    Whole numbers fill the fewest of 8, 10, 12, 14, 16 bits that hold them. Floating ones are fractions of white, which
    may be overstepped a little, or as whole numbers. Where neither can be meant the largest value is white.
    """
    if not whole and largest < 64:
        return 1 if largest < 2 else largest
    return next((2**bits - 1 for bits in (8, 10, 12, 14, 16) if largest < 2**bits), largest)


def to_8_bits(values: Array, white: float) -> Array:
    """Values as uint8, ``white`` being 255; what is no number is 0."""
    out = np.empty(values.shape, np.uint8)
    step = max(1, 2**22 // max(1, values[:1].size))
    with np.errstate(over="ignore", invalid="ignore"):
        for top in range(0, len(values), step):  # in strips, which need little memory
            part = values[top : top + step].astype(np.float32) * np.float32(255 / white)
            out[top : top + step] = np.nan_to_num(part).clip(0, 255).round()
    return out


def largest_of(values: Array) -> float:
    """The largest value that is a finite number, or 0."""
    return float(values.max(where=np.isfinite(values), initial=0))


def pillow_reads(image: Image.Image) -> bool:
    """Whether Pillow gives a TIFF's values as they are: 8-bit ones, not of several grey planes, and most greys."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits, forms = tags.get(ExifTags.Base.BitsPerSample, (1,)), tags.get(ExifTags.Base.SampleFormat, (1,))
    kind, planes = tags.get(ExifTags.Base.PhotometricInterpretation, 0), tags.get(ExifTags.Base.PlanarConfiguration, 1)
    if max(bits) <= 8:
        return set(forms) <= {1, 4} and (planes == 1 or kind != GREY)
    return len(bits) == 1 and kind == GREY and (bits[0], forms[0]) in PILLOWS_GREYS


def tiff_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height of the first image in a TIFF, upright."""
    with _tiff(file) as tiff:
        page = tiff.pages[0]
        return turned(page.imagewidth, page.imagelength, _orientation(page))


def turned(width: int, height: int, orientation: int) -> tuple[int, int]:
    """The size of an image when it is upright."""
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def read_tiff(file: BinaryIO, most: int) -> tuple[Image.Image, str]:
    """The first image of a TIFF in 8 bits, upright, and what the user should know about it.

    One or two bands are grey (and its alpha), more are red, green, blue (and alpha, if the file calls the fourth so).

    Raises:
        UnsupportedError: it cannot be decoded, has more than ``most`` pixels, or its colours are of another kind.
    """
    with _tiff(file) as tiff:
        page = tiff.pages[0]
        kind, bands, extra = int(page.photometric), page.samplesperpixel, tuple(map(int, page.extrasamples))
        if page.imagewidth * page.imagelength > most:
            raise UnsupportedError(f"{page.imagewidth} x {page.imagelength} pixels; at most {most} can be read")
        if kind not in LEAST or bands < LEAST[kind] or (kind == SEPARATED and (bands > 4 or page.dtype.kind != "u")):
            raise UnsupportedError(f"TIFF of {bands} bands of {page.dtype}, {page.photometric.name}: not understood")
        try:
            values = page.asarray()
        except Exception as error:  # a missing codec, or whatever a damaged file makes it stumble over
            raise UnsupportedError(f"cannot be decoded: {error}") from None
        orientation = _orientation(page)
    if page.axes not in ("YX", "YXS", "SYX") or values.dtype.kind not in "buif":
        raise UnsupportedError(f"TIFF with axes {page.axes} of {values.dtype}: not understood")
    values = values[..., None] if page.axes == "YX" else np.moveaxis(values, 0, -1) if page.axes == "SYX" else values
    image, note = _show(values, kind, extra)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    ImageOps.exif_transpose(image, in_place=True)
    return image, note


def _show(values: Array, kind: int, extra: tuple[int, ...]) -> tuple[Image.Image, str]:
    bands, whole = values.shape[-1], values.dtype.kind != "f"
    used = 4 if kind == SEPARATED else 3 if bands >= 3 else 1
    colour, mode = values[..., :used], "CMYK" if kind == SEPARATED else "RGB"
    white = np.iinfo(values.dtype).max if kind == SEPARATED else white_of(largest_of(colour), whole)
    cover = []
    if bands > used and len(extra) == bands - used and extra[0] in (1, 2):
        alpha = values[..., used : used + 1]
        opaque = white_of(largest_of(alpha), whole)
        mode, used, cover = "RGBA", used + 1, [to_8_bits(alpha, opaque)]
        if extra[0] == 1:  # the colours are multiplied by it already, so it tells how bright they were
            mode, white = "RGBa", max(white, opaque)
    planes = [to_8_bits(colour, white)] * (3 if colour.shape[-1] == 1 else 1) + cover
    note = f"{bands} bands: {'the first is' if used == 1 else f'the first {used} are'} shown" if bands > used else ""
    if kind == GREY and bands > 3:
        note = f"{bands} bands: the first 3 are taken as red, green and blue"
    data = np.concatenate(planes, -1).tobytes()
    return Image.frombytes(mode, (values.shape[1], values.shape[0]), data), note


def _tiff(file: BinaryIO) -> Any:
    try:
        import tifffile
    except ImportError:
        raise UnsupportedError("needs tifffile: pip install 'roialign[detection]'") from None
    file.seek(0)
    return tifffile.TiffFile(file)


def _orientation(page: Any) -> int:
    return int(page.tags.valueof(ExifTags.Base.Orientation, 1))
