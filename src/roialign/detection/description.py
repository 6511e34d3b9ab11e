"""What a file says of its detector, checked before anything is done by it: the file may be a stranger's.

Every field has a rule, and no other field is taken: a description can neither name files or downloads, nor ask for more
memory or work than a detector needs.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .model import BACKBONES, NORMS, POOLINGS

TILE = 512  # pixels, of a model that does not say what suits it
SMALLEST = 64  # pixels of a tile; a smaller image is padded to this
SIDE = 4096  # pixels that a file may make the network see along a side
MANY = 20_000  # classes, detections, proposals, samples
POOLED = 2**29  # values of all pooled boxes of an image
_BINS = 14**2  # that a box is pooled into for its mask, which has four cells for each
CANDIDATES = 2**17  # boxes before the last non-maximum suppression, whose time grows with the square
SCALES = (1 / 64, 16)  # pixels that the network sees per pixel of the image


class Rule(NamedTuple):
    """What a field must be."""

    expected: str
    holds: Callable[[Any], bool]


def _whole(low: int, high: int) -> Rule:
    return Rule(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def _real(low: float, high: float) -> Rule:
    return Rule(
        f"a number from {low:g} to {high:g}",
        lambda value: type(value) in (int, float) and math.isfinite(value) and low <= value <= high,
    )


def _one_of(*names: str) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def _list(each: Rule, least: int, most: int) -> Rule:
    many = str(least) if least == most else f"{least} to {most}"
    return Rule(
        f"a list of {many}, each {each.expected}",
        lambda value: isinstance(value, list | tuple) and least <= len(value) <= most and all(map(each.holds, value)),
    )


def _or_none(rule: Rule) -> Rule:
    return Rule(f"null or {rule.expected}", lambda value: value is None or rule.holds(value))


def _is_backbone(value: Any) -> bool:
    timms = r"timm:\w+(\.\w+)?"  # a name of timm's list, never hf-hub: or local-dir:, which are fetched
    return isinstance(value, str) and (value in BACKBONES or bool(re.fullmatch(timms, value, re.ASCII)))


_LEVELS = _list(_list(_real(0.1, 1e5), 1, 32), 1, 16)
_RATIOS = _list(_real(1e-3, 1e3), 1, 16)
_ANCHORS = Rule(
    f"an object of sizes ({_LEVELS.expected}) and ratios ({_RATIOS.expected})",
    lambda value: (
        isinstance(value, Mapping)
        and value.keys() == {"sizes", "ratios"}
        and _LEVELS.holds(value["sizes"])
        and _RATIOS.holds(value["ratios"])
    ),
)
_MODEL = {
    "num_classes": _whole(2, MANY),
    "backbone": Rule(f"one of {', '.join(BACKBONES)} or timm:NAME", _is_backbone),
    "pooling": _one_of(*POOLINGS),
    "anchors": _ANCHORS,
    "scale": _or_none(_real(*SCALES)),
    "canonical_scale": _real(1e-3, 1e5),
    "fpn_channels": _whole(1, SIDE),
    "head_channels": _whole(1, 2**16),
    "output_size": _whole(1, 64),
    "sampling_ratio": _whole(-1, 16),
    "norm": _one_of(*NORMS),
}
_MASKS = {"masks": Rule("true, if it is there", lambda value: value is True)}
_SIDES = _list(_whole(1, SIDE), 1, 16)
_OPTIONS = {
    "min_size": Rule(f"{_SIDES.expected}, or one", lambda value: _SIDES.holds(value) or _whole(1, SIDE).holds(value)),
    "max_size": _whole(1, SIDE),
    "size_divisible": _whole(1, 1024),
    "image_mean": _or_none(_list(_real(-1e3, 1e3), 3, 3)),
    "image_std": _or_none(_list(_real(1e-6, 1e3), 3, 3)),
    "bbox_reg_weights": _or_none(_list(_real(1e-3, 1e3), 4, 4)),
    "box_detections_per_img": _whole(1, MANY),
    **{f"rpn_{when}_nms_top_n_{mode}": _whole(1, MANY) for when in ("pre", "post") for mode in ("train", "test")},
    **{f"{part}_batch_size_per_image": _whole(1, MANY) for part in ("rpn", "box")},
    **{
        f"{part}_{name}": _real(0, 1)
        for part in ("rpn", "box")
        for name in ("nms_thresh", "score_thresh", "fg_iou_thresh", "bg_iou_thresh", "positive_fraction")
    },
}
_CARD = {
    "classes": _list(Rule("text", lambda value: isinstance(value, str)), 1, MANY),
    "category_ids": _list(_whole(-(2**63), 2**63 - 1), 1, MANY),
    "tile": _whole(SMALLEST, SIDE),
    "overlap": _whole(0, SIDE),
}
_METRICS = {"score_threshold": _real(0, 1)}


def check_model(description: Any) -> None:
    """Check what rebuilds a detector.

    Raises:
        ValueError: a field is missing, unknown or not as its rule says; in one line.
    """
    _check("model", description, _MODEL, needed=True, others=_MASKS | _OPTIONS)
    boxes = description.get("rpn_post_nms_top_n_test", 1000)  # torchvision's defaults
    channels = 1280 if description["backbone"] == "mobilenet_v2" else description["fpn_channels"]
    pooled = boxes * channels * description["output_size"] ** 2
    least = description.get("box_score_thresh", 0.05)
    candidates = boxes * min(description["num_classes"] - 1, 1 / max(least, 1e-9))
    found = description.get("box_detections_per_img", 100) * ("masks" in description)
    drawn = found * max(channels * _BINS, description["num_classes"] * 4 * _BINS)
    limits = (
        ("pooled values", pooled, POOLED),
        ("values of masks", drawn, POOLED),
        ("boxes to compare", candidates, CANDIDATES),
    )
    for name, value, most in limits:
        if value > most:
            raise ValueError(f"model: asks for {value:g} {name} per image; expected up to {most}")


def check_card(card: Any, description: Mapping[str, Any]) -> None:
    """Check what a card says that is acted upon; anything else in it is only told.

    Args:
        card: the card.
        description: the checked description of its model; empty if that is not of ours.

    Raises:
        ValueError: a field is not as its rule says, or does not go with the model; in one line.
    """
    _check("card", card, _CARD)
    if card.get("metrics") is not None:
        _check("card: metrics", card["metrics"], _METRICS)
    count, scale = description.get("num_classes", 1) - 1, description.get("scale") or 0
    for name in ("classes", "category_ids"):
        if description and name in card and len(card[name]) != count:
            raise ValueError(f"card: {name}: got {len(card[name])}; the model tells {count} apart")
    tile, overlap = card.get("tile", TILE), card.get("overlap", 0)
    if overlap > tile // 2:
        raise ValueError(f"card: overlap: got {overlap}; expected at most half of the tile, {tile // 2}")
    if tile * scale > SIDE:
        raise ValueError(f"card: tile: got {tile} at scale {scale}; expected a product up to {SIDE}")


def _check(
    what: str, fields: Any, rules: Mapping[str, Rule], needed: bool = False, others: Mapping[str, Rule] | None = None
) -> None:
    if not isinstance(fields, Mapping):
        raise ValueError(f"{what}: got {reprlib.repr(fields)}; expected an object")
    for name, rule in {**rules, **(others or {})}.items():
        if name not in fields:
            if needed and name in rules:
                raise ValueError(f"{what}: has no {name}")
        elif not rule.holds(fields[name]):
            raise ValueError(f"{what}: {name}: got {reprlib.repr(fields[name])}; expected {rule.expected}")
    if others is not None:
        for name in fields.keys() - rules.keys() - others.keys():
            raise ValueError(f"{what}: {reprlib.repr(name)} is not known")
