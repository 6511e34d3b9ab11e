"""A region is two small matrices: ``Ay``, the map, ``Ax`` and the output as one equation of pictures."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..explanation import Explanation
from . import style
from .style import INK, Bin

GAP = 0.72  # inches between two pictures


def draw_equation(figure: Figure | SubFigure, explanation: Explanation, bin: Bin, width: float, height: float) -> None:
    """Four matrices side by side, every cell of the same size, on a figure of this many inches."""
    rows, columns = _band(explanation.Ay), _band(explanation.Ax)
    ph, pw = explanation.output_size
    sizes = [(ph, len(rows)), (len(rows), len(columns)), (len(columns), pw), (ph, pw)]
    across, down = sum(size[1] for size in sizes), max(size[0] for size in sizes)
    room_x, room_y = width - 0.9 - 3 * GAP, height - 1.45  # margins for names and indices
    cell = min(room_x / across, room_y / down, 0.62)
    left = (width - cell * across - 3 * GAP) / 2 + 0.12
    middle = (height - 0.2) / 2
    weights = Normalize(0, max(float(explanation.Ay.max()), float(explanation.Ax.max()), 1e-9))
    shown = [
        (explanation.Ay, range(ph), rows, style.WEIGHTS, weights, "Ay", "bins down", "rows of the map"),
        (explanation.map, rows, columns, style.CELLS, None, "feature map", "rows", "columns"),
        (explanation.Ax.T, columns, range(pw), style.WEIGHTS, weights, "Ax\u1d40", "columns of the map", "bins across"),
        (explanation.avg, range(ph), range(pw), style.CELLS, None, "output (mean)", "bins down", "bins across"),
    ]  # fmt: skip
    for place, (matrix, down_range, across_range, cmap, norm, name, label_y, label_x) in enumerate(shown):
        w, h = len(across_range) * cell, len(down_range) * cell
        axes = figure.add_axes((left / width, (middle - h / 2) / height, w / width, h / height))
        _draw_matrix(axes, matrix, down_range, across_range, cmap, norm, cell)
        axes.set_title(name, fontsize=11, loc="center", pad=4, fontweight="bold")
        axes.set_xlabel(label_x, fontsize=8, labelpad=2)
        axes.set_ylabel(label_y, fontsize=8, labelpad=2)
        _mark(axes, place, bin, down_range, across_range)
        left += w
        if place < 3:
            sign = "=" if place == 2 else "\N{MULTIPLICATION SIGN}"
            figure.text((left + 0.3 * GAP) / width, middle / height, sign, ha="center", va="center", fontsize=15)
        left += GAP


def _draw_matrix(
    axes: Axes, matrix: Tensor, rows: range, columns: range, cmap: Colormap, norm: Normalize | None, cell: float
) -> None:
    style.draw_cells(axes, matrix, rows, columns, cmap, norm)
    style.write_cells(axes, matrix, rows, columns, cell * max(len(rows), len(columns)))
    axes.set(
        xlim=(columns.start - 0.52, columns.stop - 0.48), ylim=(rows.stop - 0.48, rows.start - 0.52),
        xticks=style.index_ticks(columns), yticks=style.index_ticks(rows),
    )  # fmt: skip
    for lines in axes.collections:
        lines.set_clip_on(False)
    axes.tick_params(length=0, pad=3, labelsize=7)
    for side in axes.spines.values():
        side.set_visible(False)


def _mark(axes: Axes, place: int, bin: Bin, rows: range, columns: range) -> None:
    """Set off what makes one bin: a row of ``Ay``, a column of ``Ax``'s transpose, a cell of the output."""
    whole = (columns.start - 0.5, rows.start - 0.5, len(columns), len(rows))
    x, y, width, height = [
        (whole[0], bin[0] - 0.5, whole[2], 1),
        whole,
        (bin[1] - 0.5, whole[1], 1, whole[3]),
        (bin[1] - 0.5, bin[0] - 0.5, 1, 1),
    ][place]
    if place != 1:
        axes.add_patch(
            Rectangle((x, y), width, height, fill=False, edgecolor=INK, linewidth=1.8, zorder=4, clip_on=False)
        )


def _band(matrix: Tensor) -> range:
    """The cells that any bin reads, with one more on either side; all of a small map."""
    length = matrix.shape[1]
    used = (matrix != 0).any(0).nonzero()[:, 0]
    if length <= 14 or used.numel() == 0:
        return range(min(length, 24))
    return range(max(0, int(used[0]) - 1), min(length, int(used[-1]) + 2))
