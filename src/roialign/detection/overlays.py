"""Masks on a picture: each shaded in the colour of its class, with an outline."""

from __future__ import annotations

from PIL import Image, ImageFilter

from .labels import colour_of
from .masks import Patch, patches
from .tiles import Found

SHADE = 96  # of 255: how much of a pixel is the mask's colour
OUTLINE = 5  # pixels, an odd number: of the filter that leaves the inner ones


def draw_masks(image: Image.Image, found: Found, scale: float = 1) -> None:
    """Draw the masks of detections on a picture that is ``scale`` times as large as their photo, the best on top."""
    drawn = list(zip(patches(found, *image.size, scale), found.labels.tolist(), strict=True))
    for patch, label in reversed(drawn):
        shade(image, patch, colour_of(label))


def shade(image: Image.Image, patch: Patch, colour: str) -> None:
    """Draw one mask."""
    height, width = patch.inside.shape
    if not height or not width:
        return
    whole = Image.new("L", (width + 2 * OUTLINE, height + 2 * OUTLINE))  # outside of which nothing is
    whole.paste(Image.fromarray(patch.inside), (OUTLINE, OUTLINE))
    core = whole.filter(ImageFilter.MinFilter(OUTLINE))  # Pillow's filters leave the outermost pixels as they are
    cover = whole.copy()
    cover.paste(SHADE, mask=core)
    image.paste(colour, (patch.x - OUTLINE, patch.y - OUTLINE), cover)
