"""The samples of one bin and what the average, the maximum and the exact integral make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from ... import axis
from . import style
from .style import BOX, INK, MUTED, Bin

if TYPE_CHECKING:
    from ..explanation import Explanation

MAKES = (("avg", "-", "mean"), ("max", ":", "maximum"), ("exact", "--", "exact"))


def draw_closeup(axes: Axes, explanation: Explanation, bin: Bin, room: float) -> None:
    """The interpolated map under one bin, with each sample's value."""
    rows, columns = style.bin_corners(explanation, bin)
    size = max(abs(float(rows[1] - rows[0])), abs(float(columns[1] - columns[0])), 1e-9)
    (y0, y1), (x0, x1) = (_around(edges, size) for edges in (rows, columns))
    surface = interpolate(explanation, torch.linspace(y0, y1, 81)[1::2], torch.linspace(x0, x1, 81)[1::2])
    axes.imshow(surface.numpy(), cmap=style.CELLS, extent=(x0, x1, y1, y0), zorder=0, norm=style.span(explanation.map))
    style.outline(axes, rows, columns, edgecolor=BOX, linewidth=2)
    values = explanation.sample_values[bin]
    places = explanation.samples[bin].reshape(-1, 2)
    inside = (explanation.y.inside[bin[0]][:, None] & explanation.x.inside[bin[1]]).flatten()
    size_of_mark = 6 if values.numel() <= 64 else 2.5
    if values.numel() <= 10_000:
        for chosen, marker in ((inside, "x"), (~inside, "o")):
            axes.plot(
                places[chosen, 1].numpy(), places[chosen, 0].numpy(), marker, color=INK, markerfacecolor="none",
                markersize=size_of_mark, markeredgewidth=1.3, path_effects=style.halo(2), zorder=6,
            )  # fmt: skip
    if 0 < values.numel() <= 36 and max(values.shape) <= 6:
        step = float((columns[1] - columns[0]).abs()) / values.shape[1] / size * room * 72
        texts = [style.number(float(value)) for value in values.flatten()]
        letters = min(8.5, step / (0.68 * max(map(len, texts))))
        if letters >= 4.5:
            for (y, x), text in zip(places.tolist(), texts, strict=True):
                axes.annotate(
                    text, (x, y), xytext=(0, -7), textcoords="offset points", ha="center", va="top", fontsize=letters,
                    path_effects=style.halo(2.5), zorder=7,
                )  # fmt: skip
    axes.set(xlim=(x0, x1), ylim=(y1, y0), aspect="equal", xlabel="x", ylabel="y")
    axes.tick_params(length=2)
    axes.locator_params(nbins=5)


def draw_strip(axes: Axes, explanation: Explanation, bin: Bin) -> None:
    """The samples' values on one scale, and lines at what is made of them."""
    values = explanation.sample_values[bin].flatten()
    if values.numel() > 0:
        places = torch.linspace(0.06, 0.4, values.numel()) if values.numel() > 1 else torch.tensor([0.23])
        size = 7 if values.numel() <= 40 else 3
        axes.plot(places.numpy(), values.numpy(), "x", color=INK, markersize=size, markeredgewidth=1.4, zorder=5)
    results = [(float(getattr(explanation, name)[bin]), line, words) for name, line, words in MAKES]
    heights = [*values.tolist(), *(value for value, _, _ in results)]
    low, high = min(heights), max(heights)
    margin = 0.08 * (high - low) or 0.5
    axes.set(xlim=(0, 1), ylim=(low - margin, high + margin), xticks=[], ylabel="value")
    gap = 0.075 * (high - low + 2 * margin)
    ours = "mean" if explanation.mode == "avg" else "maximum"
    labels = spread([value for value, _, _ in results], gap)
    for (value, line, words), at in zip(results, labels, strict=True):
        axes.plot([0.03, 0.45], [value, value], color=BOX, linestyle=line, linewidth=1.8, zorder=4)
        axes.plot([0.45, 0.52], [value, at], color=MUTED, linewidth=0.7)
        weight = "bold" if words == ours else "normal"
        axes.text(0.54, at, f"{words} {style.number(value, 4)}", va="center", fontsize=8.5, fontweight=weight)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def draw_output(axes: Axes, values: Tensor, name: str, bin: Bin | None, room: float, bold: bool = False) -> None:
    """A pooled output as cells."""
    rows, columns = (range(size) for size in values.shape)
    style.draw_cells(axes, values, rows, columns)
    style.write_cells(axes, values, rows, columns, room)
    if bin is not None and values.numel() > 1:
        axes.add_patch(
            Rectangle((bin[1] - 0.5, bin[0] - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.6, zorder=4)
        )
    axes.set_title(name, fontsize=9, fontweight="bold" if bold else "normal", loc="center")
    axes.set(xlim=(-0.55, values.shape[1] - 0.45), ylim=(values.shape[0] - 0.45, -0.55), aspect="equal")
    axes.set_axis_off()


def interpolate(explanation: Explanation, y: Tensor, x: Tensor) -> Tensor:
    """The interpolated map at some y positions times some x positions, 0 outside as for a sample."""
    rows = axis.sample_weights(y.double(), explanation.y.length)
    columns = axis.sample_weights(x.double(), explanation.x.length)
    return rows @ explanation.map @ columns.T


def spread(values: list[float], gap: float) -> list[float]:
    """Places for labels at these heights, moved apart to at least ``gap`` while they keep their order."""
    order = sorted(range(len(values)), key=lambda k: values[k])
    places = [values[k] for k in order]
    for _ in range(20):
        for k in range(len(places) - 1):
            lack = gap - (places[k + 1] - places[k])
            if lack > 0:
                places[k] -= lack / 2
                places[k + 1] += lack / 2
    return [place for _, place in sorted(zip(order, places, strict=True))]


def _around(edges: Tensor, size: float) -> tuple[float, float]:
    """The span of a bin with a margin of a tenth of its size."""
    middle, half = float(edges.mean()), float((edges[1] - edges[0]).abs()) / 2
    return middle - half - 0.1 * size, middle + half + 0.1 * size
