"""Detection on images of any size: in overlapping tiles, merged across the seams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.models.detection import FasterRCNN
from torchvision.ops import batched_nms

from .description import SMALLEST, TILE, check_card
from .images import FILL, Photo, Window, to_tensor
from .mask_heads import has_masks, not_pasted
from .masks import GRID, regrid
from .voting import look, vote

NEAR = 2  # pixels from a seam, where a box may be one that it cuts
OVERLAP = 128  # pixels, of a model that does not say what suits it, as TILE


class Found(NamedTuple):
    """Detections in one image, best first."""

    boxes: Tensor  # [N, 4] float32: x1, y1, x2, y2 in pixels of the image
    scores: Tensor  # [N] float32
    labels: Tensor  # [N] int64, from 1
    grids: Tensor | None = None  # [N, 28, 28] float32: of a detector with masks, how likely each cell of a box is in it

    def above(self, score: float) -> Found:
        """Those of at least this score."""
        return self.at(self.scores >= score)

    def at(self, index: Tensor) -> Found:
        """Those of some places, or at which ``index`` is true."""
        grids = None if self.grids is None else self.grids[index]
        return Found(self.boxes[index], self.scores[index], self.labels[index], grids)


class _Tile(NamedTuple):
    photo: int
    window: Window
    core: tuple[float, float, float, float]  # boxes centred here are this tile's to report
    factor: int = 1  # of its pixels those of the photo, along a side; window and core are in its own
    size: tuple[int, int] = (0, 0)  # of the whole photo in such pixels


class Tiling(NamedTuple):
    """How images are looked at: the arguments of :func:`detect`, as the commands hand them on."""

    tile: int | None = None
    overlap: int | None = None
    batch: int = 1
    tta: bool = False
    large: bool = False


USUAL = Tiling()


def detect(
    model: FasterRCNN,
    photos: Iterable[Photo],
    *,
    tile: int | None = None,
    overlap: int | None = None,
    batch: int = 1,
    tta: bool = False,
    large: bool = False,
) -> Iterator[Found]:
    """Detect in photos, one after the other.

    A photo larger than a tile is cut into tiles of that size with at least ``overlap`` pixels in common. Each box is
    reported by the tile in whose core it is centred (the cores meet halfway through the overlaps, and reach a little
    into each other), with the mask that it has there, and the model's own non-maximum suppression of boxes runs once
    more over all tiles. An object larger than the overlap may be cut, unless ``large``. Tiles of one size share
    batches, also across photos. Tiles whose pixels are all equal, as around a survey's footprint, have no objects and
    are not shown to the model. Memory, beyond the decoded photo, is bounded by ``batch`` tiles.

    Args:
        model: the detector; photos go to its device. It is put into evaluation mode.
        photos: the images; each is asked for when its turn comes.
        tile: side of a tile in pixels; None: what the model's description says, or 512. 0: never cut.
        overlap: pixels; None: what the model's description says, or 128.
        batch: tiles to run at once.
        tta: test-time augmentation: look at each tile in five ways, as it is, mirrored, upside down, smaller and
            larger, and let the boxes vote (:mod:`roialign.detection.voting`). It takes about five times as long.
        large: look at the photo at a half, a quarter, ... of its size, too, until it is one tile, for objects larger
            than the overlap: at a third of the cost once more at most. What of such an object a tile shows cut is left
            out.

    Yields:
        What was found in each photo, in order.

    Raises:
        ValueError: the overlap leaves no tile, the batch is empty, or the card says what no card of ours does.

    Example:
        >>> from roialign.detection import build_detector, detect
        >>> from roialign.detection.images import Photo
        >>> from roialign.samples import PHOTO_FILE
        >>> (found,) = detect(build_detector(num_classes=2), [Photo(PHOTO_FILE)], tile=300)
        >>> found.boxes.shape[1]
        4
    """
    tile, overlap = _tiling(model, tile, overlap)
    if batch < 1:
        raise ValueError(f"batch: got {batch}; expected at least 1")
    model.eval()
    parts: dict[int, list[tuple[_Tile, Found]]] = {}
    waiting: list[tuple[_Tile, Tensor]] = []
    done = asked = 0  # photos reported, photos opened

    def run() -> None:
        for (piece, _), found in zip(waiting, _forward(model, [pixels for _, pixels in waiting], tta), strict=True):
            parts[piece.photo].append((piece, found))
        waiting.clear()

    def merged(number: int) -> Found:
        found = parts.pop(number)
        return _merge(found, model.roi_heads.nms_thresh, overlap) if found else _nothing(model)

    for photo in photos:
        parts[asked] = []
        for piece in _cut(asked, photo.width, photo.height, tile, overlap, large):
            pixels = _pixels(photo, piece)
            if (pixels == pixels[:, :1, :1]).all():
                continue  # and nothing is kept of it: what is small and stays would leave the pixels' memory in pieces
            pixels = _pad(pixels)
            if waiting and (len(waiting) == batch or waiting[0][1].shape != pixels.shape):
                run()
            waiting.append((piece, pixels))
        asked += 1
        ready = waiting[0][0].photo if waiting else asked
        while done < ready:
            yield merged(done)
            done += 1
    if waiting:
        run()
    yield from map(merged, range(done, asked))


@torch.no_grad()
def _forward(model: FasterRCNN, pixels: list[Tensor], tta: bool) -> list[Found]:
    device = next(model.parameters()).device
    images = [image.to(device, non_blocking=True) for image in pixels]
    with not_pasted(model):
        found = [vote(seen, model.roi_heads.nms_thresh) for seen in look(model, images)] if tta else model(images)
    return [Found(**{name: each[name].cpu() for name in Found._fields if name in each}) for each in found]


def _tiling(model: FasterRCNN, tile: int | None, overlap: int | None) -> tuple[int, int]:
    """Side and overlap of tiles, as asked for or as the model's card says."""
    card = getattr(model, "card", {})
    if tile is None or overlap is None:  # a card may be a stranger's, and decides the work
        check_card(card, getattr(model, "description", {}))
    tile = card.get("tile", TILE) if tile is None else tile
    overlap = card.get("overlap", OVERLAP) if overlap is None else overlap
    if overlap < 0 or (tile != 0 and overlap >= tile):
        raise ValueError(f"tile, overlap: got {tile}, {overlap}; expected 0 <= overlap < tile, or tile 0")
    return tile, overlap


def _nothing(model: FasterRCNN) -> Found:
    grids = torch.empty(0, GRID, GRID) if has_masks(model) else None
    return Found(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64), grids)


def _cut(photo: int, width: int, height: int, tile: int, overlap: int, large: bool) -> Iterator[_Tile]:
    factor = 1
    while True:
        size = (-(-width // factor), -(-height // factor))
        for y1, y2, top, bottom in _spans(size[1], tile, overlap):
            for x1, x2, left, right in _spans(size[0], tile, overlap):
                yield _Tile(photo, (x1, y1, x2, y2), (left, top, right, bottom), factor, size)
        if not large or not tile or max(size) <= tile:
            return
        factor *= 2


def _pixels(photo: Photo, piece: _Tile) -> Tensor:
    x1, y1, x2, y2 = (side * piece.factor for side in piece.window)
    window = (x1, y1, min(x2, photo.width), min(y2, photo.height))
    return photo.read(window) if piece.factor == 1 else to_tensor(photo.reduced(window, piece.factor))


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int, float, float]]:
    """Tiles along one axis: begin and end, and begin and end of the core. All have one size, evenly spread."""
    if tile == 0 or length <= tile:
        return [(0, length, float("-inf"), float("inf"))]
    count = -(-(length - overlap) // (tile - overlap))
    begins = [index * (length - tile) // (count - 1) for index in range(count)]
    # The cores reach into each other by a quarter of the least overlap: two tiles never place a box's centre equally.
    reach = overlap / 8
    seams = [(begin + tile + following) / 2 for begin, following in pairwise(begins)]
    lows = [float("-inf"), *(seam - reach for seam in seams)]
    highs = [*(seam + reach for seam in seams), float("inf")]
    return [(begin, begin + tile, low, high) for begin, low, high in zip(begins, lows, highs, strict=True)]


def _pad(pixels: Tensor) -> Tensor:
    """At least SMALLEST pixels wide and high, with the networks' mean colour."""
    height, width = pixels.shape[1:]
    if min(height, width) >= SMALLEST:
        return pixels
    colour = torch.tensor(FILL)[:, None, None] / 255
    return pad(pixels - colour, (0, max(0, SMALLEST - width), 0, max(0, SMALLEST - height))) + colour


def _merge(parts: list[tuple[_Tile, Found]], threshold: float, overlap: int) -> Found:
    kept: list[Found] = []
    cut, factors = [], []
    for piece, found in parts:
        x1, y1, x2, y2 = piece.window
        boxes = found.boxes + torch.tensor([x1, y1, x1, y1])
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        low, high = torch.tensor(piece.core[:2]), torch.tensor(piece.core[2:])
        inside = ((centre >= low) & (centre < high)).all(1)
        # What was found in the padding of a small image, or reaches into it.
        cut_off = boxes.clamp(max=torch.tensor([x2, y2, x2, y2]))
        if found.grids is not None and not torch.equal(cut_off, boxes):
            found = found._replace(grids=regrid(found.grids, boxes, cut_off))
        boxes = cut_off
        inside &= (boxes[:, 2:] > boxes[:, :2]).all(1)
        if piece.factor > 1:  # what is smaller was seen as a whole at twice this size
            inside &= (boxes[:, 2:] - boxes[:, :2]).amax(1) > overlap / 2
        boxes = boxes[inside]
        seams = torch.tensor([x1 > 0, y1 > 0, x2 < piece.size[0], y2 < piece.size[1]])
        cut.append((((boxes - torch.tensor([x1, y1, x2, y2])).abs() < NEAR) & seams).any(1))
        factors.append(torch.full((len(boxes),), piece.factor))
        kept.append(found.at(inside)._replace(boxes=boxes * piece.factor))
    names = [name for name in Found._fields if getattr(kept[0], name) is not None]
    every = Found(**{name: torch.cat([getattr(part, name) for part in kept]) for name in names})
    every = _without_pieces(every, torch.cat(cut), torch.cat(factors))
    return every.at(batched_nms(every.boxes, every.scores, every.labels, threshold))


def _without_pieces(found: Found, cut: Tensor, factors: Tensor) -> Found:
    """Without boxes cut by a seam that lie for the most part in one of their class that a smaller image shows."""
    some, wholes = cut.nonzero()[:, 0], (factors > 1).nonzero()[:, 0]
    pieces, others = found.boxes[some, None], found.boxes[wholes]
    common = (pieces[..., 2:].minimum(others[:, 2:]) - pieces[..., :2].maximum(others[:, :2])).clamp(min=0).prod(2)
    mostly = common > (pieces[..., 2:] - pieces[..., :2]).prod(2) / 2
    within = mostly & (factors[wholes] > factors[some, None]) & (found.labels[wholes] == found.labels[some, None])
    stays = torch.ones_like(cut)
    stays[some] = ~within.any(1)
    return found.at(stays)
