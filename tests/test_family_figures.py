"""The drawings of rotated, position-sensitive and moved bins, signals and volumes: held to numbers worked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon, Rectangle
from matplotlib.text import Text

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS))
    import family

    return family


def crosses(axes: Axes) -> np.ndarray:
    """(x, y) of the samples, in order of x, then y."""
    found = np.concatenate([np.column_stack(line.get_data()) for line in axes.get_lines() if line.get_marker() == "x"])
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def boxes(axes: Axes) -> list[tuple[float, float, float, float]]:
    """(x1, y1, x2, y2) of every rectangle."""
    patches = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [(p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height()) for p in patches]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def test_rotated_box_points_up_and_right(family: ModuleType) -> None:
    (axes,) = family.rotated_box().axes
    (box,) = [patch for patch in axes.patches if isinstance(patch, Polygon)]
    # Half a width of 9.9 and half a height of 3 cells about (11.5, 11.5), along the diagonals of the map.
    along, across = 9.9 / math.sqrt(2), 3 / math.sqrt(2)
    expected = [(-along - across, along - across), (along - across, -along - across)]  # the upper side: stern, bow
    expected += [(along + across, -along + across), (-along + across, along + across)]
    assert box.get_xy()[:4] - 11.5 == pytest.approx(np.array(expected), abs=1e-5)
    samples = crosses(axes)
    assert len(samples) == 3 * 4 * 16
    # The first of 16 samples along the width, of 12 along the height: half a step from the stern, from the upper side.
    right, down = -9.9 + 19.8 / 32, -3 + 6 / 24
    place = np.array([down + right, down - right]) / math.sqrt(2) + 11.5
    assert np.abs(samples - place).sum(1).min() < 1e-4


def test_each_channel_has_the_bin_that_reads_it(family: ModuleType) -> None:
    for channel, axes in enumerate(family.sensitive_maps().axes):
        p, q = divmod(channel, 2)
        whole, one = boxes(axes)
        assert whole == pytest.approx((0.5, 0.5, 4.5, 4.5))
        assert one == pytest.approx((0.5 + 2 * q, 0.5 + 2 * p, 2.5 + 2 * q, 2.5 + 2 * p))
        assert crosses(axes) - (2 * q, 2 * p) == pytest.approx(np.array([(1, 1), (1, 2), (2, 1), (2, 2)]))


def test_moved_bins_lie_where_their_offsets_say(family: ModuleType) -> None:
    (axes,) = family.moved_bins().axes
    whole, *bins = boxes(axes)
    assert whole == pytest.approx((0.5, 1.5, 6.5, 3.5))
    up, still, right = (0.5, 0.5, 2.5, 2.5), (2.5, 1.5, 4.5, 3.5), (7.5, 1.5, 9.5, 3.5)
    assert bins == [pytest.approx(each) for each in (up, still, right)]
    assert sum(isinstance(patch, FancyArrowPatch) for patch in axes.patches) == 2
    assert crosses(axes)[:4] == pytest.approx(np.array([(1, 1), (1, 2), (2, 1), (2, 2)]))


def test_event_and_nodule(family: ModuleType) -> None:
    (axes,) = family.signal_event().axes
    assert crosses(axes)[:, 0] == pytest.approx(np.arange(8) * 1.25 + 9.5 + 0.625)
    assert axes.patches[-1].get_x() == pytest.approx(9.5)
    assert axes.patches[-1].get_width() == pytest.approx(10)
    # A hat of height 1 over two cells, integrated from depth 3 to 5, by the length 2.
    titles = [axes.get_title(loc="left") for axes in family.volume_nodule().axes]
    assert titles == ["z = 3: 0.25", "z = 4: 0.5", "z = 5: 0.25"]


@pytest.mark.parametrize(
    ("figure", "page"),
    [
        ("rotated-output", "rotated.md"),
        ("sensitive-output", "position-sensitive.md"),
        ("moved-output", "deformable.md"),
        ("signal-event", "ranks.md"),
    ],
)
def test_output_is_what_the_page_prints(family: ModuleType, figure: str, page: str) -> None:
    printed = (DOCS / page).read_text(encoding="utf-8").split("```text")[1].split("```")[0]
    drawn = [word for word in words(family.FIGURES[figure]()) if word.replace(".", "").isdigit() and "." in word]
    assert drawn
    for word in drawn:
        assert word in printed, (word, printed)
