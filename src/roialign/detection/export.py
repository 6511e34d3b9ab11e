"""Write a detector as an ONNX file, once ONNX Runtime has answered a photo as Python does."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.ops import box_iou

from ..outputs import check_files, write_atomically
from ..samples import HELDOUT
from ..terminal import say
from .checkpoint import load_detector
from .description import SMALLEST, TILE
from .graph import Graph, PlainPooler
from .images import Photo
from .mask_heads import has_masks, not_pasted
from .tiles import Found

OPSET = 18
NAMES = ("boxes", "scores", "labels")  # of the outputs
MASKS = "masks"  # one more, of a detector that draws them
METADATA = ("classes", "category_ids", "tile", "overlap", "score_threshold")  # of the card
PIXELS = 1e-3  # that boxes may differ by in any case
SCORE = 1e-4  # likewise
# ONNX Runtime adds in another order. Its answer may be three times as far from the exact one as Python's own is, and so
# four times as far from Python's.
ROUNDING = 4


class Difference(NamedTuple):
    """How far two answers are from each other.

    Attributes:
        moved: pixels, the most that an edge of a detection in both differs by.
        scored: the most that its score does.
        drawn: the most that a value of its mask does.
        lone: detections that only one of them has, but for those at the least score that is reported.
    """

    moved: float
    scored: float
    drawn: float
    lone: int


def export(weights: Path | None, out: Path, console: Console, photo: Path | None = None) -> None:
    """Write a detector as ONNX.

    Args:
        weights: the detector's file; None: the one that the package ships.
        out: the file to write, ``.onnx``.
        console: where to report.
        photo: what to hold ONNX Runtime's answer to Python's on; None: a photo that the package ships.

    Raises:
        ValueError: another suffix, a photo that is too small, or an answer that is not Python's: nothing is written.
        FileExistsError: ``out`` is a link, a folder, a device or an input.
        ModuleNotFoundError: no onnx, no onnxruntime.
    """
    _require("onnx", "onnxruntime")
    if out.suffix.lower() != ".onnx":
        raise ValueError(f"--out: got {out}; expected a name that ends in .onnx")
    photo = photo or HELDOUT.parent / "YELL_lower.jpg"
    check_files([out], [photo, *([weights] if weights else [])])
    model = load_detector(weights)
    pixels = Photo(photo).read()
    if min(pixels.shape[1:]) < 2 * SMALLEST:
        raise ValueError(f"{photo}: got {pixels.shape[2]} x {pixels.shape[1]} pixels; expected {2 * SMALLEST} or more")
    content = onnx_of(model)
    tile = int(model.card.get("tile", TILE))
    boxes, moved, drawn = 0, 0.0, 0.0
    for height, width in ((tile, tile), (tile // 2, 3 * tile // 4)):  # two sizes, since any must do
        part = pixels[:, :height, :width]
        found = check(content, model, part, f"{out} is not written: {photo}, {part.shape[2]} x {part.shape[1]} pixels")
        boxes, moved = boxes + found.boxes, max(moved, found.difference.moved)
        drawn = max(drawn, found.difference.drawn)
    write_atomically(out, content)
    say(
        console,
        f"wrote {out}: on two parts of {photo.name} ONNX Runtime found Python's {boxes} boxes, "
        f"none of them further than {_shown(moved)} pixels away"
        + (f", and masks that differ by {_shown(drawn)} at most" if has_masks(model) else ""),
    )


def onnx_of(model: FasterRCNN) -> bytes:
    """The content of an ONNX file: a detector of one image of any size, in standard nodes.

    Input ``image``: ``[3, height, width]`` float32, red, green and blue in [0, 1], not resized and not normalised: that
    is in the graph, and so are non-maximum suppression, the least score and the most detections that the detector has.
    Outputs, best first: ``boxes`` ``[detections, 4]`` float32 (x1, y1, x2, y2) in pixels of the image, ``scores``
    ``[detections]`` float32, ``labels`` ``[detections]`` int64, from 1; of a detector with masks ``masks``
    ``[detections, 28, 28]`` float32, how likely each of 28 x 28 equal parts of the box is the object's. The file's
    metadata has the card's ``classes``, ``category_ids``, ``tile``, ``overlap`` and ``score_threshold`` as JSON, as far
    as they are known.
    """
    import onnx

    graph = Graph(copy.deepcopy(model).eval())
    heads = graph.model.roi_heads
    if heads.box_roi_pool.kind == "integral":
        heads.box_roi_pool = PlainPooler.of(heads.box_roi_pool)
        heads.mask_roi_pool = PlainPooler.of(heads.mask_roi_pool) if has_masks(model) else None
    names = names_of(model)
    # Only the sizes of maps come from this image. It has to be so large that they tell each level's scale.
    side = min(4096, max(256, math.ceil(256 / (model.description["scale"] or 1))))
    image = torch.rand(3, side, side + 64, generator=torch.Generator().manual_seed(0))
    file: Any = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's, of what it takes for constant
        torch.onnx.export(
            graph,
            (image,),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(names),
            dynamic_axes={"image": {1: "height", 2: "width"}, **{name: {0: "detections"} for name in names}},
        )
    program = onnx.load_from_string(file.getvalue())
    card = getattr(model, "card", {})  # which a detector that was never saved lacks
    card = {**card, **(card.get("metrics") or {})}
    known = {name: json.dumps(card[name]) for name in METADATA if name in card}
    onnx.helper.set_model_props(program, known)
    program.doc_string = " ".join((onnx_of.__doc__ or "").split())
    return bytes(program.SerializeToString())


def names_of(model: FasterRCNN) -> tuple[str, ...]:
    """What the file of a detector answers."""
    return (*NAMES, MASKS) if has_masks(model) else NAMES


class Checked(NamedTuple):
    """What a check saw: ONNX Runtime's answer against Python's, and how many boxes that has."""

    difference: Difference
    boxes: int


def check(content: bytes, model: FasterRCNN, image: Tensor, told: str) -> Checked:
    """Hold ONNX Runtime's answer to Python's.

    Boxes may differ by ``PIXELS``; by more only as far as rounding explains it: ``ROUNDING`` times the difference
    between Python's own answers in float32 and in float64. Likewise scores, and which boxes there are.

    Raises:
        ValueError: it is another; ``told`` and how far.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    theirs = Found(*(torch.from_numpy(each) for each in session.run(list(names_of(model)), {"image": image.numpy()})))
    ours, exact = answer(model, image), answer(copy.deepcopy(model).double(), image.double())
    ends = model.roi_heads.score_thresh, model.roi_heads.detections_per_img
    got, rounded = difference(ours, theirs, *ends), difference(ours, exact, *ends)
    may = Difference(
        max(PIXELS, ROUNDING * rounded.moved),
        max(SCORE, ROUNDING * rounded.scored),
        max(SCORE, ROUNDING * rounded.drawn),
        ROUNDING * rounded.lone,
    )
    if not all(theirs <= most for theirs, most in zip(got, may, strict=True)):  # NaN is not
        masks = (f", masks by {_shown(got.drawn)}", f", {_shown(may.drawn)}") if has_masks(model) else ("", "")
        raise ValueError(
            f"{told}: ONNX Runtime's boxes differ from Python's by {_shown(got.moved)} pixels, scores by "
            f"{_shown(got.scored)}{masks[0]}, and {got.lone} of {len(ours.boxes)} are not in both; expected at most "
            f"{_shown(may.moved)}, {_shown(may.scored)}{masks[1]} and {may.lone}"
        )
    return Checked(got, len(ours.boxes))


@torch.no_grad()
def answer(model: FasterRCNN, image: Tensor) -> Found:
    """What the detector finds in one image ``[3, H, W]``, which is not cut."""
    with not_pasted(model.eval()):
        (found,) = model([image])
    return Found(**{name: found[name] for name in Found._fields if name in found})


def difference(a: Found, b: Found, least: float, most: int) -> Difference:
    """How far two answers are from each other; a detection is the other's if it has its label and 0.9 of its area.

    Args:
        a, b: the answers.
        least: the score from which on they report.
        most: detections that they report.
    """
    overlap = box_iou(a.boxes.double(), b.boxes.double()) * (a.labels[:, None] == b.labels)
    alone = [torch.ones_like(each.scores, dtype=torch.bool) for each in (a, b)]
    moved, scored, drawn = [0.0], [0.0], [0.0]
    while overlap.numel() and float(overlap.max()) > 0.9:
        row, column = divmod(int(overlap.argmax()), overlap.shape[1])
        overlap[row], overlap[:, column] = 0, 0
        alone[0][row], alone[1][column] = False, False
        moved.append(float((a.boxes[row].double() - b.boxes[column].double()).abs().max()))
        scored.append(float((a.scores[row].double() - b.scores[column].double()).abs()))
        if a.grids is not None and b.grids is not None:
            drawn.append(float((a.grids[row].double() - b.grids[column].double()).abs().max()))
    # Where a list ends, rounding decides who is the last.
    last = max([least, *(float(each.scores.min()) for each in (a, b) if len(each.scores) == most > 0)])
    lone = sum(int((each.scores[mine] > last + SCORE).sum()) for each, mine in zip((a, b), alone, strict=True))
    return Difference(max(moved), max(scored), float(torch.tensor(drawn).max()), lone)  # which NaN remains


def _require(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(
                f"export needs {module}; install it with: pip install 'roialign[onnx]'", name=module
            )


def _shown(value: float) -> str:
    return f"{value:.2g}"
