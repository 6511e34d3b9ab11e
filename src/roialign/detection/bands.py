"""Sample values of any depth as 8 bits, and the TIFFs that Pillow does not read, or reads wrongly."""

from __future__ import annotations

from typing import Any, BinaryIO, NamedTuple

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
    if values.dtype == np.uint8 and white == 255:
        return values
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


class Plan(NamedTuple):
    """Which of a TIFF's bands are shown."""

    colours: int  # the first so many
    alpha: int | None  # the index of the band
    multiplied: bool  # the colours by alpha, already
    note: str  # what the user should know


def plan(kind: int, bands: int, extra: tuple[int, ...]) -> Plan:
    """What to show of bands whose photometric interpretation is ``kind`` and whose last ones are ``extra`` samples."""
    if kind == RGB and bands == 4 and not extra:  # against the rules, and every reader takes it for alpha
        extra = (2,)
    alpha = next((bands - len(extra) + index for index, what in enumerate(extra) if what in (1, 2)), None)
    colours = min(bands, LEAST.get(kind, bands))
    guessed = kind == GREY and bands >= 3 and (alpha is None or alpha >= 3)
    colours = 3 if guessed else colours
    note = ""
    if bands > colours + (alpha is not None):
        shown = "the first is" if colours == 1 else f"the first {colours} are"
        note = f"{bands} bands: {shown} {'taken as red, green and blue' if guessed else 'shown'}"
    return Plan(colours, alpha, alpha is not None and extra[alpha - bands] == 1, note)


def describe_by_pillow(image: Image.Image) -> str:
    """The same of a TIFF that Pillow has opened."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    kind, bands = tags.get(ExifTags.Base.PhotometricInterpretation, 0), tags.get(ExifTags.Base.SamplesPerPixel, 1)
    return plan(kind, bands, tuple(tags.get(ExifTags.Base.ExtraSamples, ()))).note


def turned(width: int, height: int, orientation: int) -> tuple[int, int]:
    """The size of an image when it is upright."""
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def tiff_head(file: BinaryIO) -> tuple[int, int, str]:
    """Width and height of the first image in a TIFF, upright, and what to know about it."""
    with _tiff(file) as tiff:
        page = tiff.pages[0]
        frames = len(_to_see(tiff))
        notes = (f"the first of {frames} frames" if frames > 1 else "", plan(*_bands(page)).note)
        return *turned(page.imagewidth, page.imagelength, _orientation(page)), ", ".join(filter(None, notes))


def tiff_pages(file: BinaryIO) -> list[int]:
    """Which pages of a TIFF are to be seen, if there are several: no smaller copies of others, and no masks."""
    with _tiff(file) as tiff:
        return _to_see(tiff)


def tiff_note(file: BinaryIO, number: int) -> str:
    """What to know about the bands of a page."""
    with _tiff(file) as tiff:
        return plan(*_bands(tiff.pages[number])).note


def read_tiff(file: BinaryIO, most: int, number: int = 0) -> Image.Image:
    """An image of a TIFF in 8 bits, upright: the first, or the one of this number.

    One or two bands are grey (and its alpha), more are red, green, blue (and alpha, if the file calls the fourth so).

    Raises:
        UnsupportedError: it cannot be decoded, has more than ``most`` pixels, or its colours are of another kind.
    """
    with _tiff(file) as tiff:
        page = tiff.pages[number]
        kind, bands, _ = _bands(page)
        shown = plan(*_bands(page))
        if page.imagewidth * page.imagelength * max(1, bands / 4) > most:
            raise UnsupportedError(
                f"{page.imagewidth} x {page.imagelength} x {bands}: at most {most} pixels can be read"
            )
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
    image = show(values, kind, shown, whites_of(values, kind, shown))
    image.getexif()[ExifTags.Base.Orientation] = orientation
    ImageOps.exif_transpose(image, in_place=True)
    return image


def whites_of(values: Array, kind: int, shown: Plan) -> tuple[float, float]:
    """The values of white and of what is opaque, of an image ``[H, W, bands]`` or of all of its parts' largest ones."""
    whole = values.dtype.kind != "f"
    white = (
        np.iinfo(values.dtype).max if kind == SEPARATED else white_of(largest_of(values[..., : shown.colours]), whole)
    )
    if shown.alpha is None:
        return white, 1
    opaque = white_of(largest_of(values[..., shown.alpha]), whole)
    # Alpha tells how bright multiplied colours were.
    return max(white, opaque) if shown.multiplied else white, opaque


def show(values: Array, kind: int, shown: Plan, whites: tuple[float, float]) -> Image.Image:
    """Values ``[H, W, bands]`` as an image of 8 bits."""
    mode, cover = "CMYK" if kind == SEPARATED else "RGB", []
    if shown.alpha is not None:
        mode, cover = "RGBa" if shown.multiplied else "RGBA", [to_8_bits(values[..., shown.alpha, None], whites[1])]
    planes = [to_8_bits(values[..., : shown.colours], whites[0])] * (3 if shown.colours == 1 else 1) + cover
    return Image.frombytes(mode, (values.shape[1], values.shape[0]), np.concatenate(planes, -1).tobytes())


def _to_see(tiff: Any) -> list[int]:
    kinds = [page.tags.valueof(ExifTags.Base.NewSubfileType, 0) for page in tiff.pages]
    seen = [index for index, kind in enumerate(kinds) if not kind & 0b101]
    return seen if len(seen) > 1 else [0]


def _bands(page: Any) -> tuple[int, int, tuple[int, ...]]:
    return int(page.photometric), int(page.samplesperpixel), tuple(map(int, page.extrasamples))


def _tiff(file: BinaryIO) -> Any:
    try:
        import tifffile
    except ImportError:
        raise UnsupportedError("needs tifffile: pip install 'roialign[detection]'") from None
    file.seek(0)
    return tifffile.TiffFile(file)


def _orientation(page: Any) -> int:
    return int(page.tags.valueof(ExifTags.Base.Orientation, 1))
