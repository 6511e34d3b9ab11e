"""Every sum written out: the worked example, to be checked by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from matplotlib.axes import Axes

from . import style
from .style import BOX, Bin

if TYPE_CHECKING:
    from ..explanation import Explanation

MOST = 16  # samples on one figure


def listed_bins(explanation: Explanation, bin: Bin) -> list[Bin]:
    """All bins if their samples fit on the figure, else the one."""
    rows, columns = explanation.output_size
    if rows * explanation.y.grid * columns * explanation.x.grid <= MOST:
        return [(p, q) for p in range(rows) for q in range(columns)]
    return [bin]


def name_samples(axes: Axes, explanation: Explanation, bins: list[Bin]) -> None:
    """The samples' numbers, beside their crosses."""
    number = 0
    for bin in bins:
        for y, x in explanation.samples[bin].reshape(-1, 2).tolist()[: MOST - number]:
            number += 1
            axes.annotate(
                str(number), (x, y), xytext=(4, 1), textcoords="offset points", fontsize=8, fontweight="bold",
                color=BOX, path_effects=style.halo(2), zorder=7,
            )  # fmt: skip


def write_sums(axes: Axes, explanation: Explanation, bins: list[Bin], room: float) -> None:
    """A line per sample: its position and its sum, rows weighed by y, cells within a row by x; then the bin.

    A line has ``room`` points. Where that makes the letters small, the sum has a line of its own.
    """
    lines = _lines(explanation, bins, "  ")
    if _size(lines, room) < 6:
        lines = _lines(explanation, bins, "\n ")
    axes.set_axis_off()
    size = _size(lines, room)
    step = 1 / max(len(lines) + 1, 18)
    axes.text(0, 1, "    (y, x)", family="DejaVu Sans Mono", fontsize=size, color=style.MUTED, transform=axes.transAxes)
    for row, (text, bold) in enumerate(lines, 1):
        axes.text(
            0, 1 - row * step, text, family="DejaVu Sans Mono", fontsize=size, transform=axes.transAxes,
            fontweight="bold" if bold else "normal",
        )  # fmt: skip


def _size(lines: list[tuple[str, bool]], room: float) -> float:
    """The size of letters with which the longest line has room."""
    return min(9.5, room / max(60, *(len(text) for text, _ in lines)) / 0.602)


def _lines(explanation: Explanation, bins: list[Bin], apart: str) -> list[tuple[str, bool]]:
    """The lines and whether they are bold; ``apart`` stands between a sample's place and its sum."""
    lines: list[tuple[str, bool]] = []
    number = 0
    for bin in bins:
        values = explanation.sample_values[bin]
        taps_y, taps_x = explanation.y.taps[bin[0]], explanation.x.taps[bin[1]]
        lines.append((f"bin ({bin[0]}, {bin[1]})", True))
        texts = []
        for i, j in torch.cartesian_prod(*map(torch.arange, values.shape)).reshape(-1, 2)[: MOST - number].tolist():
            number += 1
            y, x = explanation.samples[(*bin, i, j)].tolist()
            place = f"({_exact(y)}, {_exact(x)})"
            texts.append((number, place, _sum(explanation, bin, i, j, taps_y[i], taps_x[j]), float(values[i, j])))
        width = max((len(place) for _, place, _, _ in texts), default=0)
        for k, place, terms, value in texts:
            line = f"{k:2}  {place:{width}}{apart}{terms} = {_exact(value)}"
            lines += [(part, False) for part in line.split("\n")]
        if len(texts) < values.numel():
            lines.append((f"    and {values.numel() - len(texts)} more", False))
        results = [
            f"{word} {_exact(float(getattr(explanation, name)[bin]))}"
            for name, word in (("max", "maximum"), ("avg", "mean"), ("exact", "exact"))
        ]
        ours = "maximum" if explanation.mode == "max" else "mean"
        results.sort(key=lambda text: not text.startswith(ours))
        lines.append((f"    {results[0]}   ({', '.join(results[1:])})", True))
    return lines


def _sum(explanation: Explanation, bin: Bin, i: int, j: int, rows: torch.Tensor, columns: torch.Tensor) -> str:
    """``wy*(wx*v + wx*v) + wy*(...)``, the value of one sample."""
    weights_y, weights_x = explanation.y.weights[bin[0], i], explanation.x.weights[bin[1], j]
    if bool((rows < 0).all() or (columns < 0).all()):
        return "outside"
    parts = []
    for row, weight in zip(rows.tolist(), weights_y.tolist(), strict=True):
        terms = [
            f"{_exact(share)}\N{MIDDLE DOT}{style.number(float(explanation.map[row, column]))}"
            for column, share in zip(columns.tolist(), weights_x.tolist(), strict=True) if column >= 0 and share
        ]  # fmt: skip
        if row >= 0 and weight:
            parts.append(f"{_exact(weight)}\N{MIDDLE DOT}({' + '.join(terms)})")
    return " + ".join(parts)


def _exact(value: float) -> str:
    """Up to seven significant digits: all of them where samples lie at eighths of a cell."""
    return f"{value:.7g}".replace("-", "\N{MINUS SIGN}")
