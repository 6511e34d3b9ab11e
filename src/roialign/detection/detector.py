"""A detector as one object: a file of weights in, boxes with the names of their classes out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from torchvision.models.detection import FasterRCNN

from .checkpoint import load_detector
from .devices import PATIENCE, processes
from .folding import fold_norms
from .masks import Rle, decode, encode_all
from .model import memory_format
from .precision import lower
from .rasters import open_image
from .tiles import detect

LIKELY = 0.5  # the least score of a box, of a detector whose card does not say what suits it


class Detections(NamedTuple):
    """What was found in one image, best first."""

    boxes: Tensor  # [N, 4] float32: x1, y1, x2, y2 in pixels of the image, 0 at the left edge of its first pixel
    scores: Tensor  # [N] float32, from 0 to 1
    labels: Tensor  # [N] int64: the classes' numbers, from 1
    names: list[str]  # the classes' names, one for each box
    masks: list[Rle] | None = None  # of a detector with masks one for each box, of the whole image: see :meth:`mask`

    def mask(self, index: int) -> Tensor:
        """The mask of a detection as ``[height, width]`` bool; ``masks`` has it run-length encoded, as COCO does.

        Raises:
            ValueError: the detector draws none.
        """
        if self.masks is None:
            raise ValueError("masks: got a detector of boxes; train one with --masks")
        return decode(self.masks[index])


class Detector:
    """A detector from its file, with all that the file says about its use.

    Args:
        weights: what ``roialign train`` or :func:`save_detector` wrote; None: the tree crown detector that the package
            ships.
        device: cpu, cuda, cuda:1, ...; None: the machine's accelerator, if it has one.
        precision: ``"float32"``, or ``"bfloat16"`` for the backbone, as :func:`roialign.detection.precision.lower` has
            it.

    Attributes:
        model: torchvision's ``FasterRCNN`` in evaluation mode, on that device.
        classes: the names of its classes, from label 1.
        category_ids: their ids in the data set that it learned from.
        score: the least score of a box that is reported, unless another is asked for: that of the best F1 when the
            detector was judged, or 0.5.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no detector's, or there is no such device or precision.

    Example:
        >>> from roialign.detection import Detector
        >>> from roialign.samples import PHOTO_FILE
        >>> found = Detector().detect(PHOTO_FILE)
        >>> found.boxes.shape[1], set(found.names)
        (4, {'tree'})
    """

    def __init__(
        self, weights: str | Path | None = None, device: str | None = None, precision: str = "float32"
    ) -> None:
        self.model = load(weights, device, precision)
        self.classes, self.category_ids, self.score = told_by(self.model)

    def detect(
        self,
        image: str | Path,
        *,
        score: float | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        tta: bool = False,
        large: bool = False,
    ) -> Detections:
        """Detect in one image file of any size and kind.

        Args:
            image: the file. It is turned as EXIF says, and boxes are in the turned image.
            score: the least score of a box; None: the detector's own.
            tile, overlap, tta, large: as in :func:`roialign.detection.detect`.

        Raises:
            DamagedImageError: a ValueError: the file is not there, is no image, or cannot be decoded or shown rightly.
            TypeError: ``image`` is no path. Pixels are for ``model([pixels])``, ``[3, H, W]`` float32 in [0, 1].
            ValueError: ``score`` is not from 0 to 1.
        """
        if not isinstance(image, str | os.PathLike):
            raise TypeError(f"image: got {type(image).__name__}; expected the path of a file (pixels: model([pixels]))")
        if score is not None and not 0 <= score <= 1:
            raise ValueError(f"score: got {score}; expected a number from 0 to 1")
        photo = open_image(image)
        (found,) = detect(self.model, [photo], tile=tile, overlap=overlap, tta=tta, large=large)
        found = found.above(self.score if score is None else score)
        masks = None if found.grids is None else encode_all(found, photo.width, photo.height)
        return Detections(*found[:3], [self.classes[label - 1] for label in found.labels.tolist()], masks)


class Told(NamedTuple):
    """What a model's card says of its detections, or what goes for a model without one; as :class:`Detector` has it."""

    classes: list[str]
    category_ids: list[int]
    score: float


def told_by(model: FasterRCNN) -> Told:
    """Read a model's card."""
    card, count = model.card, model.description["num_classes"] - 1
    return Told(
        card.get("classes", [str(label) for label in range(1, count + 1)]),
        card.get("category_ids", list(range(1, count + 1))),
        (card.get("metrics") or {}).get("score_threshold", LIKELY),
    )


def load(weights: str | Path | None, device: str | None, precision: str) -> FasterRCNN:
    """The detector of a file, or the package's, on a device, or on that which Accelerate chooses; to detect with."""
    place = processes(device, PATIENCE).device
    model = load_detector(weights)
    fold_norms(model)
    lower(model, precision)
    return model.to(place, memory_format=memory_format(place))
