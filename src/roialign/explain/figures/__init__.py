"""Figures of an explanation, drawn with Matplotlib from its values alone. Needs Matplotlib."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from matplotlib import rc_context
from matplotlib.figure import Figure

from ...outputs import write_atomically
from . import bins, gradient, matrices, quantisation, region, sample, style, sums
from .style import RC, Bin

if TYPE_CHECKING:
    from ..explanation import Explanation

__all__ = ["FIGURES", "draw", "save"]

# Matplotlib's settings are the process's: of two threads that draw, the one that ends last would put back the other's.
_styling = threading.RLock()


def draw(explanation: Explanation, figure: str = "overview", bin: Bin | None = None) -> Figure:
    """Draw one of the figures; see :meth:`roialign.explain.Explanation.plot`."""
    if figure not in FIGURES:
        raise ValueError(f"figure: got {figure!r}; expected one of {', '.join(map(repr, FIGURES))}")
    rows, columns = explanation.output_size
    if bin is not None and not (len(bin) == 2 and 0 <= bin[0] < rows and 0 <= bin[1] < columns):
        raise ValueError(f"bin: got {bin}; expected (row, column) of one of {rows} x {columns} bins")
    row, column = style.first_bin(explanation) if bin is None else bin
    with _styling, rc_context(RC):
        return FIGURES[figure](explanation, (row, column))


def save(explanation: Explanation, path: Path | BinaryIO, figure: str = "overview") -> None:
    """Save a figure as PNG, SVG or PDF (into an open file: PNG), with what it explains as the file's description.

    The same explanation gives the same file.
    """
    suffix = path.suffix.lower() if isinstance(path, Path) else ".png"
    field = {".png": "Description", ".svg": "Description", ".pdf": "Subject"}.get(suffix)
    if field is None:
        raise ValueError(f"out: got {path.name}; expected a name that ends in .png, .svg or .pdf")
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})
    file = io.BytesIO()
    with _styling, rc_context({**RC, "svg.hashsalt": "roialign"}):
        metadata = {field: repr(explanation), **undated}
        draw(explanation, figure).savefig(file, format=suffix[1:], dpi=150, metadata=metadata)
    if isinstance(path, Path):
        write_atomically(path, file.getvalue())
    else:
        path.write(file.getvalue())


def _overview(explanation: Explanation, bin: Bin) -> Figure:
    figure = Figure(figsize=(13, 5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, wspace=0.03)  # type: ignore[union-attr,call-arg]
    first, second, third = figure.subplots(1, 3, width_ratios=(1.1, 1.1, 0.8))
    region.draw_region(first, explanation, 4.2, bin)
    handles = region.legend_handles(first, explanation)
    figure.legend(handles=handles, loc="outside lower left", ncols=4, fontsize=8.5)
    first.set_title(f"1  Cut the box, unrounded, into bins\n{region.title(explanation)}")
    sample.draw_sample(second, explanation, bin)
    second.set_title("2  A sample mixes its four neighbours:\neach weighs as much as the area opposite")
    bins.draw_strip(third, explanation, bin)
    which = "the only one" if explanation.output.numel() == 1 else f"bin ({bin[0]}, {bin[1]}), outlined in black"
    third.set_title(f"3  A bin is what its samples make\n{which}")
    return figure


def _map(explanation: Explanation, bin: Bin) -> Figure:
    figure = Figure(figsize=(6, 5.8), layout="constrained")
    axes = figure.subplots()
    region.draw_region(axes, explanation, 5)
    handles = region.legend_handles(axes, explanation)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8.5)
    axes.set_title(region.title(explanation))
    return figure


def _sample(explanation: Explanation, bin: Bin) -> Figure:
    figure = Figure(figsize=(5, 5.3), layout="constrained")
    axes = figure.subplots()
    sample.draw_sample(axes, explanation, bin)
    axes.set_title("Each neighbour weighs as much as the area opposite to it", loc="center")
    return figure


def _values(explanation: Explanation, bin: Bin) -> Figure:
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)  # type: ignore[union-attr,call-arg]
    close, strip, rest = figure.subfigures(1, 3, squeeze=False, width_ratios=(1.15, 0.9, 1))[0]
    axes = close.subplots()
    bins.draw_closeup(axes, explanation, bin, 3.3)
    axes.set_title(f"Bin ({bin[0]}, {bin[1]}) and its samples")
    axes = strip.subplots()
    bins.draw_strip(axes, explanation, bin)
    axes.set_title("What is made of them")
    parts = rest.subplots(2, 2)
    outputs = {"avg": "mean", "max": "maximum", "exact": "exact (PrRoIPool)", "roi_pool": "RoIPool, for comparison"}
    for axes, (name, words) in zip(parts.flat, outputs.items(), strict=True):
        bins.draw_output(axes, getattr(explanation, name), words, bin, 1.5, name == explanation.mode)
    return figure


def _sums(explanation: Explanation, bin: Bin) -> Figure:
    figure = Figure(figsize=(14, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    chosen = sums.listed_bins(explanation, bin)
    region.draw_region(left, explanation, 5, bin if len(chosen) == 1 else None, names=True)
    sums.name_samples(left, explanation, chosen)
    handles = region.legend_handles(left, explanation)
    figure.legend(handles=handles, loc="outside lower left", ncols=4, fontsize=8.5)
    left.set_title(region.title(explanation))
    sums.write_sums(right, explanation, chosen, 590)
    right.set_title("Every sum: weight along y \N{MIDDLE DOT} (weight along x \N{MIDDLE DOT} cell + ...)", pad=14)
    return figure


def _roi_pool(explanation: Explanation, bin: Bin) -> Figure:
    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.25)  # type: ignore[union-attr,call-arg]
    view = quantisation.both_views(explanation)
    parts = figure.subplots(1, 4, width_ratios=(1, 0.32, 1, 0.32))
    y, x = explanation.y, explanation.x
    quantisation.draw_pool(parts[0], explanation, view, 4, bin)
    words = quantisation.summary(y.pool_shift, x.pool_shift)
    parts[0].set_title(f"RoIPool rounds to whole cells: {words}", pad=22)
    bins.draw_output(parts[1], explanation.roi_pool, "output", bin, 1.2)
    quantisation.draw_align(parts[2], explanation, view, 4, bin)
    words = quantisation.summary(y.align_shift, x.align_shift)
    how = "aligned" if explanation.aligned else "not aligned"
    parts[2].set_title(f"RoIAlign ({how}) rounds nothing: {words}", pad=22)
    bins.draw_output(parts[3], explanation.output, f"output ({explanation.mode})", bin, 1.2)
    figure.legend(handles=quantisation.legend_handles(), loc="outside lower center", ncols=4, fontsize=8.5)
    return figure


def _matrices(explanation: Explanation, bin: Bin) -> Figure:
    figure = Figure(figsize=(13, 5.2))
    matrices.draw_equation(figure, explanation, bin, 13, 5.2)
    figure.text(0.015, 0.955, "A region is two small matrices", fontsize=12)
    if explanation.mode == "max":
        figure.text(
            0.015, 0.915, "shown for the mean; the maximum takes a row per sample, not per bin", color=style.MUTED
        )
    return figure


def _gradient(explanation: Explanation, bin: Bin) -> Figure:
    figure = Figure(figsize=(6.2, 6), layout="constrained")
    axes = figure.subplots()
    gradient.draw_gradient(axes, explanation, bin, 4.6)
    axes.set_title(
        f"What bin ({bin[0]}, {bin[1]}) sends back to the cells and to the box's edges", pad=22, loc="center"
    )
    return figure


FIGURES: dict[str, Callable[[Explanation, Bin], Figure]] = {
    "overview": _overview,
    "map": _map,
    "sample": _sample,
    "values": _values,
    "sums": _sums,
    "roi_pool": _roi_pool,
    "matrices": _matrices,
    "gradient": _gradient,
}
