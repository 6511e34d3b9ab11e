"""What a bin sends back: to the cells of the map, and to the box's four edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from . import style
from .quantisation import write_sides
from .style import BOX, INK, Bin

if TYPE_CHECKING:
    from ..explanation import Explanation


def draw_gradient(axes: Axes, explanation: Explanation, bin: Bin, room: float) -> None:
    """The bin's derivative by each cell, and by each edge of the box: the arrow points to where the bin would grow."""
    view = style.make_view(explanation)
    gradient = explanation.gradient(*bin)
    rows, columns = view.cells(explanation)
    most = max(float(gradient.map.abs().max()), 1e-12)
    style.draw_cells(axes, gradient.map, rows, columns, style.SIGNED, Normalize(-most, most))
    texts = [[style.number(float(gradient.map[y, x]), 2) for x in columns] for y in rows]
    size = style.fit(texts, max(len(rows), len(columns)), room)
    for y, line in zip(rows, texts, strict=True):
        for x, text in zip(columns, line, strict=True):
            if size and text != "0":
                axes.text(x, y, text, ha="center", va="center", fontsize=size, zorder=6, path_effects=style.halo(3))
    style.draw_bins(axes, explanation.y.edges, explanation.x.edges, BOX)
    style.outline(axes, explanation.y.edges, explanation.x.edges, edgecolor=BOX, linewidth=2.2)
    if explanation.output.numel() > 1:
        style.outline(axes, *style.bin_corners(explanation, bin), edgecolor=INK, linewidth=1.6, zorder=5)
    style.frame(axes, view, explanation)
    x1, y1, x2, y2 = gradient.box.tolist()
    top, bottom = explanation.y.edges[[0, -1]].tolist()
    left, right = explanation.x.edges[[0, -1]].tolist()
    down, across = (float(edges.mean()) for edges in style.bin_corners(explanation, bin))
    longest = max(map(abs, (x1, y1, x2, y2, 1e-12)))
    reach = 0.2 * max(view.right - view.left, view.bottom - view.top) / longest
    arrows = [
        (x1, (left, down), (1, 0)), (x2, (right, down), (1, 0)),
        (y1, (across, top), (0, 1)), (y2, (across, bottom), (0, 1)),
    ]  # fmt: skip
    for value, (x, y), (dx, dy) in arrows:
        if abs(value) > 0.02 * longest and view.left <= x <= view.right and view.top <= y <= view.bottom:
            axes.annotate(
                "", (x + dx * value * reach, y + dy * value * reach), (x, y), zorder=7,
                arrowprops={
                    "arrowstyle": "-|>,head_width=0.3,head_length=0.5", "color": INK, "linewidth": 2.2, "shrinkA": 0,
                    "shrinkB": 0, "path_effects": style.halo(4),
                },
            )  # fmt: skip
    write_sides(
        axes, explanation, gradient.box[[0, 2]], gradient.box[[1, 3]], lambda value: f"{style.signed(value)} per pixel"
    )
