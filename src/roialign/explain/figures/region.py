"""The feature map as cells with their values, the box, its bins, the samples as crosses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from . import style
from .style import BOX, INK, Bin, View

if TYPE_CHECKING:
    from ..explanation import Explanation

CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))  # of a cell, (y, x)


def draw_region(axes: Axes, explanation: Explanation, room: float, bin: Bin | None = None, names: bool = False) -> None:
    """The map, the bins and the samples; ``bin`` is set off from the others, ``names`` leaves room beside samples."""
    view = style.make_view(explanation)
    draw_map(axes, explanation, view, room, names)
    style.draw_bins(axes, explanation.y.edges, explanation.x.edges, BOX)
    style.outline(axes, explanation.y.edges, explanation.x.edges, edgecolor=BOX, linewidth=2.2)
    if bin is not None and explanation.output.numel() > 1:
        style.outline(axes, *style.bin_corners(explanation, bin), edgecolor=INK, linewidth=1.6, zorder=5)
    draw_samples(axes, explanation, view, room)
    style.frame(axes, view, explanation)


def draw_map(axes: Axes, explanation: Explanation, view: View, room: float, names: bool = False) -> None:
    """The cells with their values, or the photo that they were made from."""
    rows, columns = view.cells(explanation)
    if explanation.image is not None:
        _, height, width = explanation.image.shape
        # Pixel coordinate u lies at position u * scale - 0.5.
        right, bottom = width * explanation.x.scale - 0.5, height * explanation.y.scale - 0.5
        photo = explanation.image.permute(1, 2, 0).clamp(0, 1).cpu().numpy()
        axes.imshow(photo, extent=(-0.5, right, bottom, -0.5), zorder=0)
        return
    style.draw_cells(axes, explanation.map, rows, columns)
    size = style.fit(
        [[style.number(float(explanation.map[y, x])) for x in columns] for y in rows],
        math.ceil(max(view.right - view.left, view.bottom - view.top)),
        room,
    )
    if not size:
        return
    size = min(size, 8)
    cell = room * 72 / max(view.right - view.left, view.bottom - view.top)  # points
    best = _free_corner(explanation)
    # What numbers keep clear of: crosses, and names to the right of and above these.
    marks = [(explanation.y.samples, explanation.x.samples, 3.0)]
    if names:
        marks.append((explanation.y.samples - 6 / cell, explanation.x.samples + 10 / cell, 7.0))
    for y in rows:
        for x in columns:
            text = style.number(float(explanation.map[y, x]))
            tall, wide = 0.5 * size / cell, 0.3 * size * len(text) / cell  # half of the letters
            for dy, dx in sorted(CORNERS, key=lambda corner: corner != best):
                at_y, at_x = y + dy * (0.42 - tall), x + dx * (0.44 - wide)
                if not any(
                    _near(mark_y, at_y, tall + reach / cell) and _near(mark_x, at_x, wide + reach / cell)
                    for mark_y, mark_x, reach in marks
                ):
                    axes.text(
                        x + 0.44 * dx, y + 0.42 * dy, text, ha="right" if dx > 0 else "left",
                        va="bottom" if dy > 0 else "top", fontsize=size, color=INK, zorder=2, clip_on=True,
                    )  # fmt: skip
                    break  # where samples lie too close, there is no number


def draw_samples(axes: Axes, explanation: Explanation, view: View, room: float) -> None:
    """Every sample as a cross; one outside the map, which counts as 0, as a ring."""
    y, x = explanation.y, explanation.x
    count = y.samples.numel() * x.samples.numel()
    if count == 0 or count > 40_000:
        return
    spacing = room * 72 / (view.right - view.left) * _spacing(explanation)
    size = min(5.5, max(1.2, 0.45 * spacing))
    positions = explanation.samples.reshape(-1, 2)
    inside = (y.inside[:, None, :, None] & x.inside[None, :, None, :]).flatten()
    for chosen, marker, name in ((inside, "x", "samples"), (~inside, "o", "samples outside, counted 0")):
        if chosen.any():
            axes.plot(
                positions[chosen, 1].numpy(), positions[chosen, 0].numpy(), marker, color=INK, markersize=size,
                markeredgewidth=min(1.3, 0.3 + 0.2 * size), markerfacecolor="none", zorder=6, label=name,
                path_effects=style.halo(2) if size > 2.5 else None,
            )  # fmt: skip


def legend_handles(axes: Axes, explanation: Explanation) -> list[Rectangle | Line2D]:
    """What the lines and marks of a region mean."""
    handles: list[Rectangle | Line2D] = [
        Rectangle((0, 0), 1, 1, fill=False, edgecolor=BOX, linewidth=2.2, label="box on the map")
    ]
    if explanation.output.numel() > 1:
        handles.append(Line2D([], [], color=BOX, linestyle=(0, (4, 2)), linewidth=1.2, label="bins"))
    for line in axes.get_lines():
        label, marker = str(line.get_label()), str(line.get_marker())
        if label.startswith("samples"):
            handles.append(Line2D([], [], color=INK, marker=marker, ls="", markerfacecolor="none", label=label))
    return handles


def title(explanation: Explanation) -> str:
    """What is pooled, in one line."""
    height, width = (abs(float(part.edges[-1] - part.edges[0])) for part in (explanation.y, explanation.x))
    rows, columns = explanation.output_size
    bins = f"{style.by(width, height, 3)} cells in {style.by(columns, rows)} bins,"
    samples = f"{style.by(explanation.x.grid, explanation.y.grid)} samples each"
    return f"{bins} {samples}" if len(bins + samples) < 60 else f"{bins}\n{samples}"


def _spacing(explanation: Explanation) -> float:
    """Cells between neighbouring samples."""
    steps = [abs(float(part.edges[1] - part.edges[0])) / max(1, part.grid) for part in (explanation.y, explanation.x)]
    return min(steps)


def _free_corner(explanation: Explanation) -> tuple[int, int]:
    """The corner of a cell that is farthest from samples, so that numbers and crosses keep apart."""
    y, x = explanation.y.samples, explanation.x.samples
    # Numbers are wide: above or below matters more than left or right.
    return max(CORNERS, key=lambda corner: round(_gap(y, 0.3 * corner[0]) + 0.3 * _gap(x, 0.3 * corner[1]), 3))


def _near(samples: Tensor, place: float, reach: float) -> bool:
    return bool(((samples - place).abs() < reach).any())


def _gap(samples: Tensor, offset: float) -> float:
    """From the places at this offset in a cell to the nearest sample."""
    if samples.numel() == 0:
        return 1.0
    away = (samples - offset).remainder(1)
    return float(torch.minimum(away, 1 - away).min())
