"""One sample, its four neighbours, and their bilinear weights as the areas opposite to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from . import style
from .style import BOX, INK, MUTED, Bin

if TYPE_CHECKING:
    from ..explanation import Explanation

LETTERS = "ABCD"
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7")  # Okabe and Ito; the letters say the same in grey


def draw_sample(axes: Axes, explanation: Explanation, bin: Bin) -> None:
    """The square between four cells' centres, cut by the sample into four areas: each weighs the cell opposite."""
    axes.set(aspect="equal", anchor="N")
    axes.set_axis_off()
    if explanation.y.samples.numel() == 0 or explanation.x.samples.numel() == 0:
        many = "no sample" if explanation.y.grid == 0 or explanation.x.grid == 0 else "too many samples to list"
        axes.text(0.5, 0.5, f"{many} in this bin", ha="center", va="center", transform=axes.transAxes, color=MUTED)
        return
    i, j = choose(explanation, bin)
    y, x = (float(part) for part in explanation.samples[(*bin, i, j)])
    taps, weights = explanation.taps[(*bin, i, j)], explanation.weights[(*bin, i, j)]
    if bool((taps < 0).all()):
        _draw_outside(axes, explanation, y, x)
        return
    top, left = int(taps[0, 0]), int(taps[0, 1])
    # Where the sample weighs from, after it was clamped onto the map.
    at_y, at_x = top + float(weights[2] + weights[3]), left + float(weights[1] + weights[3])
    corners = [(top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)]
    for letter, colour, (corner_y, corner_x), tap, weight in zip(LETTERS, COLOURS, corners, taps, weights, strict=True):
        opposite_y, opposite_x = 2 * top + 1 - corner_y, 2 * left + 1 - corner_x
        area = Rectangle((opposite_x, opposite_y), at_x - opposite_x, at_y - opposite_y, facecolor=colour, alpha=0.75)
        axes.add_patch(area)
        if min(abs(at_x - opposite_x), abs(at_y - opposite_y)) > 0.16:
            axes.text((at_x + opposite_x) / 2, (at_y + opposite_y) / 2, letter, ha="center", va="center", fontsize=13)
        real = bool(tap[0] >= 0)
        face = colour if real else "white"
        axes.plot(corner_x, corner_y, "o", color=face, markersize=13, markeredgecolor=INK, zorder=5)
        axes.text(corner_x, corner_y, letter, ha="center", va="center", fontsize=9, fontweight="bold", zorder=6)
        words = "no such cell"
        if real:
            value = style.number(float(explanation.map[tap[0], tap[1]]))
            shares = style.by(1 - abs(corner_y - at_y), 1 - abs(corner_x - at_x), 3)
            words = f"cell ({corner_y}, {corner_x}) = {value}\n{shares} = {style.number(float(weight))}"
        up, out = corner_y == top, -8 if corner_x == left else 8
        axes.annotate(
            words, (corner_x, corner_y), xytext=(out, 12 if up else -12), textcoords="offset points", ha="center",
            va="bottom" if up else "top", fontsize=8, linespacing=1.4,
        )  # fmt: skip
    axes.add_patch(Rectangle((left, top), 1, 1, fill=False, edgecolor=MUTED, linewidth=1))
    for line in ([(at_x, at_x), (top, top + 1)], [(left, left + 1), (at_y, at_y)]):
        axes.plot(*line, color=INK, linewidth=0.8, linestyle=":", zorder=3)
    if abs(at_y - y) > 1e-9 or abs(at_x - x) > 1e-9:
        axes.annotate(
            "", (at_x, at_y), (x, y), arrowprops={"arrowstyle": "->", "color": BOX, "linewidth": 1.3}, zorder=7
        )
        axes.plot(x, y, "x", color=MUTED, markersize=7, zorder=7)
    axes.plot(at_x, at_y, "x", color=INK, markersize=9, markeredgewidth=2, zorder=8, path_effects=style.halo(3))
    axes.set(
        xlim=(min(left - 0.45, x - 0.1), max(left + 1.45, x + 0.1)),
        ylim=(max(top + 1.75, y + 0.1), min(top - 0.38, y - 0.1)),  # room for the words
    )
    result = float(explanation.sample_values[(*bin, i, j)])
    terms = " + ".join(
        f"{style.number(float(weight))}\N{MIDDLE DOT}{style.number(float(explanation.map[tap[0], tap[1]]))}"
        for weight, tap in zip(weights, taps, strict=True) if tap[0] >= 0
    )  # fmt: skip
    clamped = "" if (at_y, at_x) == (y, x) else ", moved onto the map"
    _say(
        axes,
        f"sample at y = {style.number(y, 5)}, x = {style.number(x, 5)}{clamped}\n{terms} = {style.number(result, 4)}",
    )


def choose(explanation: Explanation, bin: Bin) -> Bin:
    """The bin's sample that reads the most cells, the first of those."""
    reads = (explanation.taps[bin][..., 0] >= 0).sum(-1)
    return divmod(int(reads.flatten().argmax()), reads.shape[1])


def _draw_outside(axes: Axes, explanation: Explanation, y: float, x: float) -> None:
    """A sample more than a cell's width off the outermost centres counts as 0."""
    height, width = explanation.map.shape
    axes.add_patch(Rectangle((-0.5, -0.5), width, height, facecolor="#dfe9f3", edgecolor=MUTED))
    axes.add_patch(Rectangle((-1, -1), width + 1, height + 1, fill=False, edgecolor=MUTED, linestyle="--"))
    axes.plot(x, y, "o", color=INK, markerfacecolor="none", markersize=9)
    axes.autoscale_view()
    low_x, high_x, low_y, high_y = min(x, -1), max(x, width), min(y, -1), max(y, height)
    pad = 0.08 * max(high_x - low_x, high_y - low_y)
    axes.set(xlim=(low_x - pad, high_x + pad), ylim=(high_y + 4 * pad, low_y - pad))
    off = " and ".join(
        f"{name} outside [\N{MINUS SIGN}1, {length}]"
        for name, place, length in (("y", y, height), ("x", x, width))
        if not -1 <= place <= length
    )
    _say(axes, f"sample at y = {style.number(y, 5)}, x = {style.number(x, 5)}\n{off}: it counts 0")


def _say(axes: Axes, words: str) -> None:
    """Words below the picture."""
    axes.text(0.5, 0, words, ha="center", va="bottom", transform=axes.transAxes, fontsize=8.5, linespacing=1.6)
