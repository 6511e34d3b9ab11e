"""Masks as data: drawn, encoded, pasted and outlined as COCO's own tools, loops and numbers worked by hand say."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as coco
from torchvision.models.detection.roi_heads import paste_masks_in_image

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.masks import round_trip

from roialign.detection.contours import contour
from roialign.detection.masks import GRID, Patch, Runs, decode, encode, from_runs, paste, rasterize, rectangle, regrid


def test_polygons_are_drawn_as_coco_draws_them_in_the_whole_image() -> None:
    """Of any place, also beyond the edges: what lies outside the window would have to be empty."""
    chance = np.random.default_rng(0)
    for number in range(400):
        width, height = map(int, chance.integers(1, 60, 2))
        centre, spread = chance.uniform(-0.2, 1.2, 2) * (width, height), chance.uniform(0.5, 40)
        polygons = [centre + chance.normal(0, spread, (int(chance.integers(3, 9)), 2)) for _ in range(2)]
        polygons = [np.clip(each, [-width, -height], [2 * width, 2 * height]) for each in polygons]
        if number % 2:  # as many programs write them, which are on the borders of COCO's grid
            polygons = [each.round(1) for each in polygons]
        lists = [each.ravel().tolist() for each in polygons]
        expected = coco.decode(coco.merge(coco.frPyObjects(lists, height, width)))
        mask = rasterize(tuple(map(tuple, lists)), (width, height))
        assert np.array_equal(decode(mask.rle()).numpy(), expected), (width, height, lists)
        assert mask.area == expected.sum()


def test_runs_are_read_and_masks_written_as_coco_does() -> None:
    chance = np.random.default_rng(1)
    for number in range(300):
        width, height = map(int, chance.integers(1, 30, 2))
        full = np.zeros((height, width), dtype=np.uint8)
        y, x = chance.integers(0, height), chance.integers(0, width)
        full[y : y + chance.integers(1, 30), x : x + chance.integers(1, 30)] = 1
        full &= chance.random(full.shape) < (1, 0.5, 0)[number % 3]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], full.ravel(order="F")])))
        lengths = np.diff([0, *edges, full.size])
        mask = from_runs(Runs(height, width, lengths.astype(np.int64).tobytes()), (width, height))
        expected = coco.encode(np.asfortranarray(full))
        counts: Any = expected["counts"]
        assert mask.rle() == {"size": [height, width], "counts": counts if isinstance(counts, str) else counts.decode()}
        assert mask.area == full.sum()
        whole = encode(Patch(0, 0, full.astype(bool)), width, height)
        assert whole == mask.rle()
    with pytest.raises(ValueError, match=r"size: got \[7, 5\]; expected the image's, \[5, 7\]"):
        from_runs(Runs(7, 5, np.array([35]).tobytes()), (7, 5))


def test_a_rectangle_and_points_that_are_nowhere() -> None:
    full = decode(rectangle((2, 1, 5, 3), (8, 4)).rle())
    assert full.nonzero().tolist() == [[y, x] for y in (1, 2) for x in (2, 3, 4)]
    for point in ((math.nan, 0), (math.inf, 0), (17, 2), (3, -4.5), (1e300, 1)):
        with pytest.raises(ValueError, match=r"got the point \[.*\]; expected points in or near the image of 8 x 4"):
            rasterize(((0, 0, 5, 5, *point),), (8, 4))


def interpolated(grid: Any, x: float, y: float) -> float:
    """Between the cells' centres, and as the last ones beyond these."""
    x, y = (min(max(value - 0.5, 0), GRID - 1) for value in (x, y))
    left, top = min(int(x), GRID - 2), min(int(y), GRID - 2)
    row = [(1 - x + left) * grid[k][left] + (x - left) * grid[k][left + 1] for k in (top, top + 1)]
    return float((1 - y + top) * row[0] + (y - top) * row[1])


def test_pasted_pixels_by_a_plain_loop() -> None:
    """Every pixel of the image, in float64; but for those whose probability rounding could move across one half."""
    generator = torch.Generator().manual_seed(2)
    for box in (
        (3.3, 2.1, 17.8, 21.4),
        (-4.0, 5.5, 9.25, 30.0),
        (10.0, 10.0, 10.4, 10.4),
        (0, 0, 20, 24),
        (30, 3, 40, 9),
    ):
        grid = torch.rand(GRID, GRID, generator=generator)
        patch = paste(grid, box, 20, 24)
        full = np.zeros((24, 20), dtype=bool)
        full[patch.y : patch.y + patch.inside.shape[0], patch.x : patch.x + patch.inside.shape[1]] = patch.inside
        x1, y1, x2, y2 = box
        values = grid.double().tolist()
        for y in range(24):
            for x in range(20):
                within = x1 <= x + 0.5 <= x2 and y1 <= y + 0.5 <= y2
                cell = (x + 0.5 - x1) / (x2 - x1) * GRID, (y + 0.5 - y1) / (y2 - y1) * GRID
                value = interpolated(values, *cell) if within else 0.0
                if abs(value - 0.5) > 1e-4:
                    assert full[y, x] == (value >= 0.5), (box, x, y)
        assert torch.equal(decode(encode(patch, 20, 24)), torch.from_numpy(full))


def test_pasted_masks_are_torchvisions_but_for_its_rounding_of_boxes() -> None:
    """Its boxes are whole pixels, so edges may be off by one: of a large disc few pixels are."""
    place = (torch.arange(GRID) + 0.5) / GRID - 0.5
    grid = (0.4 - (place**2 + place[:, None] ** 2).sqrt()).mul(20).sigmoid()
    box = [20.0, 30, 160, 150]
    theirs = paste_masks_in_image(grid[None, None], torch.tensor([box]), (200, 200))[0, 0] >= 0.5
    ours = decode(encode(paste(grid, box, 200, 200), 200, 200))
    assert int(ours.sum()) == pytest.approx(math.pi * 0.4**2 * 140 * 120, rel=0.01)
    assert int((ours & theirs).sum()) / int((ours | theirs).sum()) > 0.95


@pytest.mark.parametrize(("side", "least"), [(20, 0.999), (80, 0.98)])
def test_a_mask_that_is_learned_and_pasted_is_itself(side: int, least: float) -> None:
    """As good as 28 x 28 cells can tell it; torchvision's rounding of boxes costs more."""
    theirs, ours = round_trip(side, 20)
    assert ours > least
    assert ours > theirs + 0.02


def test_grids_over_other_boxes() -> None:
    generator = torch.Generator().manual_seed(3)
    grids = torch.rand(3, GRID, GRID, generator=generator)
    boxes = torch.tensor([[5.0, 5, 33, 61], [0, 0, 10, 10], [7, 8, 21, 36]])
    torch.testing.assert_close(regrid(grids, boxes, boxes), grids, rtol=0, atol=1e-5)
    moved = boxes + torch.tensor([[1.0, 2, 1, 2], [20, 0, 20, 0], [0, 0, -7, -14]])
    first, second, third = regrid(grids, boxes, moved)
    torch.testing.assert_close(first[:-1, :-1], grids[0, 1:, 1:], rtol=0, atol=1e-5)  # by a cell each way
    assert not second.any()  # beside
    middle = grids[2, :14, :14].double()  # a half, whose cells lie a quarter off their centres
    inner = (0.75 * middle[:, :-1] + 0.25 * middle[:, 1:]) * 0.75
    inner = inner[:-1] + (0.75 * middle[:, :-1] + 0.25 * middle[:, 1:])[1:] * 0.25
    torch.testing.assert_close(third[1:-1:2, 1:-1:2].double(), inner, rtol=0, atol=1e-5)


def area(ring: list[list[float]]) -> float:
    """Positive if it is counterclockwise."""
    return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairwise(ring)) / 2


def test_outlines_of_masks() -> None:
    full = torch.ones(GRID, GRID)
    ring = contour(full, (1, 2, 5, 9))
    assert ring is not None
    assert ring["type"] == "Polygon"
    ((outer,),) = [ring["coordinates"]]
    assert area(outer) == pytest.approx(4 * 7)
    assert outer[0] == outer[-1]
    assert {tuple(corner) for corner in ((1, 2), (5, 2), (5, 9), (1, 9))} <= {tuple(point) for point in outer}
    assert contour(torch.zeros(GRID, GRID), (1, 2, 5, 9)) is None
    holed = full.clone()
    holed[7:21, 7:21] = 0
    found = contour(holed, (0, 0, 28, 28))
    assert found is not None
    outer, hole = found["coordinates"]
    assert area(outer) == pytest.approx(784)
    # Halfway between the centres of cells, but for a corner of an eighth of a cell each.
    assert area(hole) == pytest.approx(-(14**2 - 4 / 8))
    parted = full.clone()
    parted[:, 10:18] = 0
    found = contour(parted, (0, 0, 28, 28))
    assert found is not None
    assert found["type"] == "MultiPolygon"
    assert [area(outer) for (outer,) in found["coordinates"]] == pytest.approx([280, 280])
