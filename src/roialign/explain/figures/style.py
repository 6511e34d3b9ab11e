"""What all figures share: colours that survive colour blindness and a grey printer, cells, numbers, outlines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from ..values import AxisValues

if TYPE_CHECKING:
    from ..explanation import Explanation

# Okabe and Ito's colours. Where two lines meet in one figure, they also differ in style, so that grey tells them apart.
INK, MUTED, BOX, POOL = "#1a1a1a", "#5f5f5f", "#d55e00", "#0072b2"
CELLS = LinearSegmentedColormap.from_list("cells", ["#ffffff", "#7fa8cf"])
WEIGHTS = LinearSegmentedColormap.from_list("weights", ["#ffffff", "#f0a860"])
SIGNED = LinearSegmentedColormap.from_list("signed", ["#b08ac0", "#ffffff", "#f0a860"])

RC: Any = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # letters stay letters, as journals ask
    "svg.fonttype": "path",
}

Bin = tuple[int, int]


class View(NamedTuple):
    """The part of the map that is drawn, in positions, and the visible cells [first, last)."""

    left: float
    right: float
    top: float
    bottom: float

    def cells(self, explanation: Explanation) -> tuple[range, range]:
        """Rows and columns of the map that are at least half visible."""
        height, width = explanation.map.shape
        rows = range(max(0, math.ceil(self.top)), min(height, math.floor(self.bottom) + 1))
        columns = range(max(0, math.ceil(self.left)), min(width, math.floor(self.right) + 1))
        return rows, columns


def make_view(explanation: Explanation, extra: tuple[Sequence[float], Sequence[float]] = ((), ())) -> View:
    """All of a small map, or the box's surroundings on a large one; a box off the map is shown as far as is sensible.

    Args:
        explanation: what is drawn.
        extra: (y, x) further positions that should be visible.
    """
    top, bottom = _span(explanation.y, extra[0])
    left, right = _span(explanation.x, extra[1])
    return View(left, right, top, bottom)


def _span(part: AxisValues, extra: Sequence[float]) -> tuple[float, float]:
    places = [*part.edges.tolist(), *extra]
    low, high, first, last = min(places), max(places), -0.5, part.length - 0.5
    if part.length > 24 and high > first and low < last:  # look closer
        low, high = max(low - 2, first), min(high + 2, last)
        middle, half = (low + high) / 2, max((high - low) / 2, 5)
        return max(first, math.floor(middle - half) + 0.5), min(last, math.ceil(middle + half) - 0.5)
    near = 2.0 * part.length + 3
    reach = near if first - near < low and high < last + near else max(3.0, part.length / 2)  # beyond the map
    return max(min(first, low - 0.4), first - reach), min(max(last, high + 0.4), last + reach)


def number(value: float, digits: int = 3) -> str:
    """A number as short as it can be said in so many significant digits."""
    if value != value or value in (math.inf, -math.inf):
        return str(value)
    text = f"{value:.{digits}g}"
    if "e" in text and 1 <= abs(value) < 10**5:
        text = f"{value:.0f}"
    return ("0" if float(text) == 0 else text).replace("-", "\N{MINUS SIGN}")


def signed(value: float, digits: int = 3) -> str:
    """The same with its sign, also a plus."""
    text = number(value, digits)
    return text if text.startswith("\N{MINUS SIGN}") or text == "0" else "+" + text


def by(first: float, second: float, digits: int = 4) -> str:
    """``first x second``."""
    return f"{number(first, digits)} \N{MULTIPLICATION SIGN} {number(second, digits)}"


def halo(width: float = 2) -> list[withStroke]:
    """A white rim, so that lines and text stay readable on anything."""
    return [withStroke(linewidth=width, foreground="white")]


def draw_cells(
    axes: Axes,
    values: Tensor,
    rows: range,
    columns: range,
    cmap: Colormap = CELLS,
    norm: Normalize | None = None,
) -> None:
    """Draw cells ``[rows, columns]`` of a matrix, each a unit square about its index."""
    part = values[rows.start : rows.stop, columns.start : columns.stop]
    if part.numel() == 0:
        return
    extent = (columns.start - 0.5, columns.stop - 0.5, rows.stop - 0.5, rows.start - 0.5)
    axes.imshow(part.numpy(), cmap=cmap, norm=norm or span(part), extent=extent, interpolation="nearest", zorder=0)
    lines = [[(columns.start - 0.5, y - 0.5), (columns.stop - 0.5, y - 0.5)] for y in range(rows.start, rows.stop + 1)]
    lines += [[(x - 0.5, rows.start - 0.5), (x - 0.5, rows.stop - 0.5)] for x in range(columns.start, columns.stop + 1)]
    width = 0.5 if max(len(rows), len(columns)) <= 30 else 0.25
    axes.add_collection(LineCollection(lines, colors="#9a9a9a", linewidths=width, zorder=1))


def span(values: Tensor) -> Normalize:
    """From the least to the largest finite value; a constant is drawn light."""
    finite = values[values.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 1.0)
    return Normalize(low, high if high > low else low + 1)


def write_cells(axes: Axes, values: Tensor, rows: range, columns: range, room: float) -> None:
    """Write each cell's value at its centre, if ``room`` inches for all of them leave enough for the letters."""
    for digits in (3, 2):
        texts = [[number(float(values[y, x]), digits) for x in columns] for y in rows]
        size = fit(texts, max(len(rows), len(columns)), room)
        if size:
            break
    else:
        return
    for y, line in zip(rows, texts, strict=True):
        for x, text in zip(columns, line, strict=True):
            axes.text(x, y, text, ha="center", va="center", fontsize=size, zorder=2)


def fit(texts: Iterable[Iterable[str]], cells: int, room: float) -> float:
    """The size of letters with which the longest text fits into one of so many cells; 0 if none can be read."""
    longest = max((len(text) for line in texts for text in line), default=1)
    size = min(8.5, room * 72 / max(1, cells) / (0.68 * max(longest, 2)))
    return size if size >= 5.5 else 0


def outline(axes: Axes, rows: Tensor, columns: Tensor, **style: Any) -> Rectangle:
    """A rectangle from the first to the last of some edges, whichever way they run."""
    (top, bottom), (left, right) = ((float(edges[0]), float(edges[-1])) for edges in (rows, columns))
    rectangle = Rectangle((left, top), right - left, bottom - top, **{"fill": False, "zorder": 4, **style})
    axes.add_patch(rectangle)
    return rectangle


def draw_bins(axes: Axes, rows: Tensor, columns: Tensor, colour: str, dashes: tuple[float, float] = (4, 2)) -> None:
    """The lines between bins."""
    lines = [[(float(x), float(rows[0])), (float(x), float(rows[-1]))] for x in columns[1:-1]]
    lines += [[(float(columns[0]), float(y)), (float(columns[-1]), float(y))] for y in rows[1:-1]]
    width = 1.2 if len(lines) <= 14 else 0.7
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=width, linestyles=[(0, dashes)], zorder=4))


def bin_corners(explanation: Explanation, bin: Bin) -> tuple[Tensor, Tensor]:
    """(y, x) edges of one bin of RoIAlign."""
    return explanation.y.edges[bin[0] : bin[0] + 2], explanation.x.edges[bin[1] : bin[1] + 2]


def frame(axes: Axes, view: View, explanation: Explanation) -> None:
    """Show the view, square cells, with the cells' indices along the edges."""
    axes.set(xlim=(view.left, view.right), ylim=(view.bottom, view.top), aspect="equal", anchor="N")
    rows, columns = view.cells(explanation)
    axes.set_xticks(index_ticks(columns))
    axes.set_yticks(index_ticks(rows))
    axes.tick_params(length=0, pad=2)
    for side in axes.spines.values():
        side.set_visible(False)


def index_ticks(cells: range) -> list[int]:
    """At most 16 of the cells' indices."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**6) if len(cells) / step <= 16)
    return [cell for cell in cells if cell % step == 0]


def first_bin(explanation: Explanation) -> Bin:
    """The first bin with a sample on the map, else (0, 0)."""
    weight = explanation.Ay.sum(1)[:, None] * explanation.Ax.sum(1)
    return divmod(int((weight > 0).flatten().to(torch.int8).argmax()), weight.shape[1])
