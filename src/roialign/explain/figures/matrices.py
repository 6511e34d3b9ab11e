"""A region is two small matrices: ``Ay``, the map, ``Ax`` and the output as one equation of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from torch import Tensor

from . import style
from .style import INK, Bin

if TYPE_CHECKING:
    from ..explanation import Explanation

GAP = 0.72  # inches between two pictures


class Part(NamedTuple):
    """One of the four matrices: what is shown of it, and what it is called."""

    matrix: Tensor
    rows: range
    columns: range
    colours: Colormap
    norm: Normalize | None
    name: str
    down: str
    across: str
    marked: tuple[int | None, int | None] | None  # the row and the column that make the bin; None is all of them


def parts(explanation: Explanation, bin: Bin) -> list[Part]:
    """``Ay``, the map, ``Ax`` transposed and the output, whose product they are."""
    rows, columns = _band(explanation.Ay), _band(explanation.Ax)
    ph, pw = map(range, explanation.output_size)
    weights = Normalize(0, max(float(explanation.Ay.max()), float(explanation.Ax.max()), 1e-9))
    strong, cells = (style.WEIGHTS, weights), (style.CELLS, None)
    ax = explanation.Ax.T
    return [
        Part(explanation.Ay, ph, rows, *strong, "Ay", "bins down", "rows of the map", (bin[0], None)),
        Part(explanation.map, rows, columns, *cells, "feature map", "rows", "columns", None),
        Part(ax, columns, pw, *strong, "Ax\u1d40", "columns of the map", "bins across", (None, bin[1])),
        Part(explanation.avg, ph, pw, *cells, "output (mean)", "bins down", "bins across", bin),
    ]


def draw_equation(figure: Figure | SubFigure, explanation: Explanation, bin: Bin, width: float, height: float) -> None:
    """Four matrices side by side, every cell of the same size, on a figure of this many inches."""
    shown = parts(explanation, bin)
    across, down = sum(len(part.columns) for part in shown), max(len(part.rows) for part in shown)
    room_x, room_y = width - 0.9 - 3 * GAP, height - 1.45  # margins for names and indices
    cell = min(room_x / across, room_y / down, 0.62)
    left = (width - cell * across - 3 * GAP) / 2 + 0.12
    middle = (height - 0.2) / 2
    for place, part in enumerate(shown):
        w, h = len(part.columns) * cell, len(part.rows) * cell
        axes = figure.add_axes((left / width, (middle - h / 2) / height, w / width, h / height))
        draw_part(axes, part, cell)
        left += w
        if place < 3:
            sign = "=" if place == 2 else "\N{MULTIPLICATION SIGN}"
            figure.text((left + 0.3 * GAP) / width, middle / height, sign, ha="center", va="center", fontsize=15)
        left += GAP


def draw_part(axes: Axes, part: Part, cell: float) -> None:
    """A matrix with its numbers and names, a cell this many inches long; set off is what makes one bin."""
    rows, columns = part.rows, part.columns
    style.draw_cells(axes, part.matrix, rows, columns, part.colours, part.norm)
    style.write_cells(axes, part.matrix, rows, columns, cell * max(len(rows), len(columns)))
    axes.set(
        xlim=(columns.start - 0.52, columns.stop - 0.48), ylim=(rows.stop - 0.48, rows.start - 0.52),
        xticks=style.index_ticks(columns), yticks=style.index_ticks(rows),
    )  # fmt: skip
    for lines in axes.collections:
        lines.set_clip_on(False)
    axes.tick_params(length=0, pad=3, labelsize=7)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(part.name, fontsize=11, loc="center", pad=4, fontweight="bold")
    axes.set_xlabel(part.across, fontsize=8, labelpad=2)
    axes.set_ylabel(part.down, fontsize=8, labelpad=2)
    if part.marked is not None:
        (y, height), (x, width) = (
            (cells.start, len(cells)) if index is None else (index, 1)
            for index, cells in zip(part.marked, (rows, columns), strict=True)
        )
        axes.add_patch(
            Rectangle(
                (x - 0.5, y - 0.5), width, height, fill=False, edgecolor=INK, linewidth=1.8, zorder=4, clip_on=False
            )
        )


def _band(matrix: Tensor) -> range:
    """The cells that any bin reads, with one more on either side; all of a small map."""
    length = matrix.shape[1]
    used = (matrix != 0).any(0).nonzero()[:, 0]
    if length <= 14 or used.numel() == 0:
        return range(min(length, 24))
    return range(max(0, int(used[0]) - 1), min(length, int(used[-1]) + 2))
