"""RoIPool beside RoIAlign: what rounding to whole cells moves, in pixels of the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from . import style
from .region import draw_map, draw_samples
from .style import BOX, INK, POOL, Bin, View

if TYPE_CHECKING:
    from ..explanation import Explanation


def pool_edges(explanation: Explanation) -> tuple[Tensor, Tensor]:
    """(y, x) positions ``[P, 2]`` where each bin of RoIPool begins and ends."""
    return explanation.y.pool_cells.double() - 0.5, explanation.x.pool_cells.double() - 0.5


def draw_pool(axes: Axes, explanation: Explanation, view: View, room: float, bin: Bin) -> None:
    """RoIPool: the box and the whole cells that are read in its place."""
    draw_map(axes, explanation, view, room)
    rows, columns = pool_edges(explanation)
    corners = rows[[0, -1], [0, 1]], columns[[0, -1], [0, 1]]
    style.outline(axes, *corners, edgecolor=POOL, facecolor=(0, 0.447, 0.698, 0.10), fill=True, linewidth=2.4, zorder=3)
    starts = (torch.cat([rows[:, 0], rows[-1:, 1]]), torch.cat([columns[:, 0], columns[-1:, 1]]))
    style.draw_bins(axes, *starts, POOL, (1, 1.5))
    if explanation.output.numel() > 1:
        style.outline(axes, rows[bin[0]], columns[bin[1]], edgecolor=INK, linewidth=1.6, zorder=5)
    style.outline(axes, explanation.y.box, explanation.x.box, edgecolor=BOX, linewidth=2, linestyle=(0, (5, 2)))
    style.frame(axes, view, explanation)
    write_sides(axes, explanation, explanation.x.pool_shift, explanation.y.pool_shift, _pixels)


def draw_align(axes: Axes, explanation: Explanation, view: View, room: float, bin: Bin) -> None:
    """RoIAlign: the box as it is, and the samples."""
    draw_map(axes, explanation, view, room)
    style.outline(
        axes, explanation.y.edges, explanation.x.edges, edgecolor=POOL, facecolor=(0, 0.447, 0.698, 0.10), fill=True,
        linewidth=2.4, zorder=3,
    )  # fmt: skip
    style.draw_bins(axes, explanation.y.edges, explanation.x.edges, POOL, (1, 1.5))
    if explanation.output.numel() > 1:
        style.outline(axes, *style.bin_corners(explanation, bin), edgecolor=INK, linewidth=1.6, zorder=5)
    draw_samples(axes, explanation, view, room)
    style.outline(axes, explanation.y.box, explanation.x.box, edgecolor=BOX, linewidth=2, linestyle=(0, (5, 2)))
    style.frame(axes, view, explanation)
    write_sides(axes, explanation, explanation.x.align_shift, explanation.y.align_shift, _pixels)


def both_views(explanation: Explanation) -> View:
    """A view that shows the box, RoIAlign's window and RoIPool's cells."""
    rows, columns = pool_edges(explanation)
    return style.make_view(
        explanation,
        (
            [*rows.flatten().tolist(), *explanation.y.box.tolist()],
            [*columns.flatten().tolist(), *explanation.x.box.tolist()],
        ),
    )


def write_sides(axes: Axes, explanation: Explanation, x: Tensor, y: Tensor, text: Callable[[float], str]) -> None:
    """A number per edge of the box, ``[2]`` along x and along y, beside the picture's side where that edge lies."""
    (left, right), (top, bottom) = (
        values.tolist() if part.edges[0] <= part.edges[-1] else values.flip(0).tolist()
        for values, part in ((x, explanation.x), (y, explanation.y))
    )
    sides: tuple[tuple[float, float, str, str, int], ...] = (
        (-0.075, 0.5, "right", "center", 90), (1.02, 0.5, "left", "center", 270),
        (0.5, 1.02, "center", "bottom", 0), (0.5, -0.075, "center", "top", 0),
    )  # fmt: skip
    for value, (at_x, at_y, across, along, turn) in zip((left, right, top, bottom), sides, strict=True):
        axes.text(
            at_x, at_y, text(value), ha=across, va=along, rotation=turn, transform=axes.transAxes, fontsize=9,
            fontweight="bold" if abs(value) > 1e-9 else "normal", color=INK,
        )  # fmt: skip


def legend_handles() -> list[Rectangle | Line2D]:
    """What the lines mean."""
    return [
        Rectangle((0, 0), 1, 1, fill=False, edgecolor=BOX, linewidth=2, linestyle=(0, (5, 2)), label="the box"),
        Rectangle((0, 0), 1, 1, edgecolor=POOL, facecolor=(0, 0.447, 0.698, 0.10), linewidth=2.4, label="what is read"),
        Line2D([], [], color=POOL, linestyle=(0, (1, 1.5)), linewidth=1.2, label="bins"),
        Line2D([], [], color=INK, marker="x", linestyle="", label="samples"),
    ]


def summary(shift_y: Tensor, shift_x: Tensor) -> str:
    """The largest shift in words."""
    worst = float(torch.cat([shift_y, shift_x]).abs().max())
    if worst < 1e-9:
        return "reads exactly the box"
    return f"off by up to {style.number(worst)} {_unit(worst)}"


def _pixels(value: float) -> str:
    value = 0.0 if abs(value) < 1e-9 else value
    return f"{style.signed(value)} {_unit(value)}"


def _unit(value: float) -> str:
    return "pixel" if abs(abs(value) - 1) < 1e-9 else "pixels"
