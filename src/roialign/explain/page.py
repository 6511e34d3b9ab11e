"""The interactive page: one self-contained HTML file, made from the plain sources in ``web/``.

The page does its own arithmetic, in float64 and by the rules of ``axis.py`` (``web/rules.js``), so that it can follow a
box that is being dragged. The tests hold its numbers against Python's.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib.resources import files
from io import BytesIO
from typing import Any

from ..spec import check_aligned, check_mode, check_output_size, check_sampling_ratio, check_scale

OPERATORS = ("roi_align", "prroi_pool", "roi_pool")
LANGUAGES = ("en", "zh")
SCRIPTS = ("rules.js", "texts.js", "state.js", "draw.js", "words.js", "details.js", "controls.js")

# A tree crown in the photo that the package ships, on a map with a cell for every 32 pixels.
DEFAULTS: dict[str, Any] = {
    "size": (7, 7),
    "box": (82.0, 139.0, 137.0, 201.0),
    "output_size": (2, 2),
    "sampling_ratio": 2,
    "spatial_scale": 1 / 32,
    "aligned": True,
    "operator": "roi_align",
    "mode": "avg",
    "values": None,
    "language": "en",
}
CROP = (18, 170, 242, 394)  # of that photo, (left, top, right, bottom): 7 x 7 cells of 32 pixels

CREDIT = "deepforest (MIT, (c) 2019 Ben Weinstein); imagery of the US National Ecological Observatory Network"


def make_page(state: Mapping[str, Any] | None = None) -> str:
    """Make the interactive page.

    Args:
        state: how the page opens; what is missing takes its value from the built-in example.
            ``size``: (H, W), cells of the feature map.
            ``box``: (x1, y1, x2, y2), pixels of the image.
            ``output_size``, ``sampling_ratio``, ``spatial_scale``, ``aligned``, ``mode``: as of ``roi_align``.
            ``operator``: ``"roi_align"``, ``"prroi_pool"`` or ``"roi_pool"``.
            ``values``: H rows of W numbers, the feature map; None takes the photo's brightness if there is a photo,
            else counts the cells from 0.
            ``photo``: data URI of a picture that is drawn under the map's cells, or None. Only the built-in example (no
            ``size``, ``values`` or ``photo`` given) brings a photo of its own.
            ``language``: ``"en"`` or ``"zh"``; the reader can switch.

    Returns:
        A whole HTML document. It needs no other file and no network.

    Raises:
        TypeError, ValueError: a key or a value is none of these.

    Example:
        >>> from roialign.explain.page import make_page
        >>> page = make_page({"size": (5, 7), "box": (0, 0, 7, 5), "spatial_scale": 1.0})
        >>> page[:15]
        '<!doctype html>'
    """
    checked = _checked(state or {})
    web = files(__package__).joinpath("web")
    text = {name: web.joinpath(name).read_text("utf-8") for name in ("index.html", "page.css", *SCRIPTS)}
    page = text["index.html"].replace('<html lang="en">', f'<html lang="{_html_language(checked["language"])}">')
    page = page.replace("/* page.css */", text["page.css"])
    page = page.replace("/* scripts */", "\n".join(text[name] for name in SCRIPTS))
    # In a script element "<" could end it; in JSON it stands in strings only, where it can be escaped.
    return page.replace("<!-- state -->", json.dumps(checked, allow_nan=False).replace("<", "\\u003c"))


def built_in_photo() -> str:
    """A crop of the photo that the package ships, as a data URI. Needs Pillow."""
    try:
        from PIL import Image
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            "the page's photo needs Pillow; install it with: pip install 'roialign[explain]'"
        ) from (missing)
    jpeg = BytesIO()
    with files("roialign.samples").joinpath("OSBS_029.jpg").open("rb") as file, Image.open(file) as photo:
        photo.convert("RGB").crop(CROP).save(jpeg, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{b64encode(jpeg.getvalue()).decode()}"


def _html_language(language: str) -> str:
    return {"en": "en", "zh": "zh-Hans"}[language]


def _checked(state: Mapping[str, Any]) -> dict[str, Any]:
    """The whole state, in plain lists and numbers."""
    unknown = sorted(set(state) - {*DEFAULTS, "photo"})
    if unknown:
        raise ValueError(f"state: got unknown keys {unknown}; expected some of {[*DEFAULTS, 'photo']}")
    full = {**DEFAULTS, **state}
    if not {"size", "values", "photo"} & set(state):
        full |= {"photo": built_in_photo(), "credit": CREDIT}
    height, width = check_output_size(list(full["size"]), 2)
    photo, values = full.get("photo"), full["values"]
    if photo is not None and not (isinstance(photo, str) and photo.startswith("data:image/")):
        raise ValueError(f"photo: got {str(photo)[:40]!r}; expected a data URI of an image, or None")
    if values is not None:
        values = [[_plain(value) for value in row] for row in values]
        if len(values) != height or any(len(row) != width for row in values):
            raise ValueError(f"values: got {len(values)} rows; expected {height} rows of {width} numbers")
    box = [_plain(edge) for edge in full["box"]]
    if len(box) != 4:
        raise ValueError(f"box: got {len(box)} numbers; expected (x1, y1, x2, y2)")
    for key, expected in (("operator", OPERATORS), ("language", LANGUAGES)):
        if full[key] not in expected:
            raise ValueError(f"{key}: got {full[key]!r}; expected one of {', '.join(map(repr, expected))}")
    return {
        "size": [height, width],
        "box": box,
        "output_size": check_output_size(_sequence(full["output_size"]), 2),
        "sampling_ratio": check_sampling_ratio(full["sampling_ratio"]),
        "spatial_scale": check_scale(_sequence(full["spatial_scale"]), 2),
        "aligned": check_aligned(full["aligned"]),
        "operator": full["operator"],
        "mode": check_mode(full["mode"]),
        "values": values,
        "photo": photo,
        "language": full["language"],
        "credit": full.get("credit"),
    }


def _sequence(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) else value


def _plain(number: Any) -> float | str:
    """A float, or for what JSON cannot say its name as JavaScript reads it."""
    value = float(number)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
