"""The figures of the pages on rotated, position-sensitive and moved bins, on signals and volumes: their first examples.

Where bins and samples lie is asked of ``roialign.axis``, what comes out of the operators: a drawing holds no rule.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon, Rectangle
from torch import Tensor

from roialign import axis, deform_roi_pool, ps_roi_align, roi_align, roi_align_rotated
from roialign.explain.figures import bins, style
from roialign.explain.figures.style import BOX, CELLS, INK, MUTED

PART = 3.25  # inches: the width of a part, of which two stand side by side on a page of the site


def _part(height: float, title: str, left: float = 0.25, bottom: float = 0.25) -> tuple[Figure, Axes]:
    """A figure with its title, and axes below it."""
    figure = Figure(figsize=(PART, height))
    top = 0.2 + 0.17 * (1 + title.count("\n"))
    box = (left / PART, bottom / height, 1 - (left + 0.08) / PART, 1 - (bottom + top) / height)
    figure.text(0.06 / PART, 1 - 0.06 / height, title, va="top", fontsize=9, linespacing=1.3)
    return figure, figure.add_axes(box)


def _frame(axes: Axes, rows: range, columns: range) -> None:
    axes.set(xlim=(columns.start - 0.5, columns.stop - 0.5), ylim=(rows.stop - 0.5, rows.start - 0.5), aspect="equal")
    axes.set(xticks=style.index_ticks(columns), yticks=style.index_ticks(rows))
    axes.tick_params(length=0, pad=2)
    for side in axes.spines.values():
        side.set_visible(False)


def _samples(axes: Axes, x: Tensor, y: Tensor, size: float) -> None:
    axes.plot(
        x.flatten().numpy(), y.flatten().numpy(), "x", color=INK, markersize=size, markeredgewidth=0.3 + 0.2 * size,
        path_effects=style.halo(1.5), zorder=6, clip_on=False,
    )  # fmt: skip


def _pooled(values: Tensor, title: str, form: str = "{:g}") -> Figure:
    """What comes out, as cells."""
    figure, axes = _part(0.75 + 0.55 * values.shape[0], title)
    bins.draw_output(axes, values.double(), "", None, 0)
    for (row, column), value in (
        (divmod(k, values.shape[1]), value) for k, value in enumerate(values.flatten().tolist())
    ):
        axes.text(column, row, form.format(value), ha="center", va="center", fontsize=8)
    return figure


def _window(lo: float, hi: float, size: int, ratio: int) -> axis.Window:
    """Of a box's edges in cells."""
    edges = (torch.tensor([edge], dtype=torch.float64) for edge in (lo, hi))
    return axis.align_window(*edges, size, 1.0, ratio, aligned=True)


def _edges_and_samples(window: axis.Window, size: int) -> tuple[Tensor, Tensor]:
    """``[P + 1]`` edges and ``[P, samples]`` positions."""
    bin, sample = torch.arange(float(size))[:, None], torch.arange(float(window.grid))
    return axis.bin_edges(window, size)[0], axis.sample_position(window, *torch.broadcast_tensors(bin, sample))


# Rotated boxes.


def _ship() -> tuple[Tensor, Tensor]:
    step = torch.arange(14)
    sea = torch.zeros(1, 1, 24, 24)
    sea[0, 0, 18 - step, 5 + step] = step / 10
    return sea, torch.tensor([[12.0, 12.0, 19.8, 6.0, 45.0]])


def rotated_box() -> Figure:
    """The ship, the box that is turned with it, its bins and samples."""
    sea, ship = _ship()
    height, width, ratio = 3, 4, 4
    boxes = torch.cat([ship[:, :4].double(), ship[:, 4:].double().deg2rad()], 1)
    frame = axis.rotated_frame(boxes, (height, width), (1.0, 1.0), ratio, aligned=True)

    def corner(down: Tensor, right: Tensor) -> tuple[float, float]:
        """Position (x, y) of a place in the box's frame."""
        return float(frame.x + down * frame.sin + right * frame.cos), float(
            frame.y + down * frame.cos - right * frame.sin
        )

    rows, columns = axis.bin_edges(frame.rows, height)[0], axis.bin_edges(frame.columns, width)[0]
    figure, axes = _part(3.75, "A box turned with the ship,\n4 \N{MULTIPLICATION SIGN} 3 bins of 16 samples each")
    cells = range(sea.shape[2])
    style.draw_cells(axes, sea[0, 0], cells, cells)
    ends = ((rows[0], columns[0]), (rows[0], columns[-1]), (rows[-1], columns[-1]), (rows[-1], columns[0]))
    axes.add_patch(Polygon([corner(*end) for end in ends], fill=False, edgecolor=BOX, linewidth=2.2, zorder=4))
    lines = [(corner(row, columns[0]), corner(row, columns[-1])) for row in rows[1:-1]]
    lines += [(corner(rows[0], column), corner(rows[-1], column)) for column in columns[1:-1]]
    for line in lines:
        axes.plot(*zip(*line, strict=True), color=BOX, linewidth=1.2, linestyle=(0, (4, 2)), zorder=7)
    every = torch.cartesian_prod(*(torch.arange(float(n)) for n in (height, ratio, width, ratio)))
    y, x = axis.rotated_position(frame, *every.T)
    _samples(axes, x, y, 1.8)
    _frame(axes, cells, cells)
    return figure


def rotated_output() -> Figure:
    """The output lies as the ship does."""
    sea, ship = _ship()
    pooled = roi_align_rotated(sea, [ship], output_size=(3, 4), sampling_ratio=4)
    return _pooled(pooled[0, 0], "The output lies as the ship does:\nits bow is to the right", "{:.2f}")


# Position-sensitive bins.


def _quarters() -> tuple[Tensor, Tensor]:
    rows = torch.arange(8.0)[:, None].expand(8, 8)
    return torch.stack([rows, 10 + rows, 20 + rows, 30 + rows])[None], torch.tensor([[1.0, 1.0, 5.0, 5.0]])


def sensitive_maps() -> Figure:
    """The four channels, in each the bin that reads it."""
    maps, box = _quarters()
    x1, y1, x2, y2 = box[0].tolist()
    (rows, y), (columns, x) = (_edges_and_samples(_window(*ends, 2, 2), 2) for ends in ((y1, y2), (x1, x2)))
    figure = Figure(figsize=(PART, 3.95))
    figure.text(0.02, 0.985, "Each bin of the box reads\na channel of its own", va="top", fontsize=9, linespacing=1.3)
    cells = range(8)
    for channel in range(4):
        p, q = divmod(channel, 2)
        axes = figure.add_axes((0.07 + 0.49 * q, 0.44 - 0.42 * p, 0.42, 0.36))
        style.draw_cells(axes, maps[0, channel], cells, cells, norm=style.span(maps))
        style.draw_bins(axes, rows, columns, BOX)
        style.outline(axes, rows, columns, edgecolor=BOX, linewidth=1.6)
        style.outline(axes, rows[p : p + 2], columns[q : q + 2], edgecolor=INK, linewidth=1.8, zorder=5)
        across, down = torch.meshgrid(x[q], y[p], indexing="xy")
        _samples(axes, across, down, 4)
        _frame(axes, cells, cells)
        axes.set(xticks=[], yticks=[])
        low, high = (style.number(float(value)) for value in (maps[0, channel].min(), maps[0, channel].max()))
        axes.set_title(f"channel {channel}: {low} to {high}", fontsize=8, loc="left", pad=3)
    return figure


def sensitive_output() -> Figure:
    """One channel comes out."""
    maps, box = _quarters()
    pooled = ps_roi_align(maps, [box], output_size=2, sampling_ratio=2)
    return _pooled(pooled[0, 0], "One channel comes out: bin (p, q)\nis the mean in channel 2 p + q")


# Bins that move.


def _plane() -> tuple[Tensor, Tensor, Tensor]:
    offset = torch.zeros(1, 2, 1, 3)
    offset[0, 0, 0, 2], offset[0, 1, 0, 0] = 5.0, -5.0
    plane = (100 * torch.arange(12.0)[:, None] + torch.arange(12.0))[None, None]
    return plane, torch.tensor([[0, 2.0, 4.0, 14.0, 8.0]]), offset


def moved_bins() -> Figure:
    """The box, its three bins, and where two of them went."""
    plane, boxes, offset = _plane()
    scale, gamma, size = 0.5, 0.1, (1, 3)
    x1, y1, x2, y2 = boxes[0, 1:].double()[:, None]
    cells = range(plane.shape[2])
    figure, axes = _part(3.75, "Each bin may move: one stays,\none goes up, one to the right")
    style.draw_cells(axes, plane[0, 0], cells, cells)
    index = torch.arange(3)
    shifts = gamma * offset[0].double().flatten(1)
    windows = [
        axis.moved_window(lo, hi, shift[None], place, bins, scale, 2)
        for lo, hi, shift, place, bins in (
            (y1, y2, shifts[1], index // 3, size[0]),
            (x1, x2, shifts[0], index % 3, size[1]),
        )
    ]
    still = [
        axis.align_window(lo, hi, n, scale, 2, True) for (lo, hi), n in zip(((y1, y2), (x1, x2)), size, strict=True)
    ]
    rows, columns = (axis.bin_edges(window, n)[0] for window, n in zip(still, size, strict=True))
    style.outline(axes, rows, columns, edgecolor=BOX, linewidth=2.2)
    style.draw_bins(axes, rows, columns, BOX)
    sample = torch.arange(2.0).expand(3, 2)
    (top, left), (y, x) = (
        [axis.bin_edges(window, 1) for window in windows],
        [axis.sample_position(window, torch.zeros(3, 1), sample) for window in windows],
    )
    for bin in range(3):
        style.outline(axes, top[bin], left[bin], edgecolor=INK, linewidth=1.6, zorder=5)
        across, down = torch.meshgrid(x[bin], y[bin], indexing="xy")
        _samples(axes, across, down, 4)
        begin = float(columns[bin : bin + 2].mean()), float(rows.mean())
        end = float(left[bin].mean()), float(top[bin].mean())
        if begin != end:
            axes.add_patch(FancyArrowPatch(begin, end, arrowstyle="-|>", mutation_scale=12, color=INK, zorder=7))
    _frame(axes, cells, cells)
    return figure


def moved_output() -> Figure:
    """What they read there, the map being 100 y + x."""
    plane, boxes, offset = _plane()
    pooled = deform_roi_pool(plane, boxes, offset, (1, 3), 0.5, 2, 0.1)
    return _pooled(pooled[0, 0], "A cell holds 100 y + x, so a bin\nsays where it has read")


# Signals and volumes.


def signal_event() -> Figure:
    """A signal as a line, an event's bins and samples on it."""
    signal = torch.arange(100.0).reshape(1, 1, 100)
    event = torch.tensor([[10.0, 20.0]])
    (edges, samples), cells = _edges_and_samples(_window(10.0, 20.0, 4, 2), 4), range(6, 24)
    pooled = roi_align(signal, [event], output_size=4, sampling_ratio=2, aligned=True)[0, 0]
    figure, axes = _part(3.1, "One axis: the event from 10 to 20,\nfour bins, and their means", 0.35, 0.3)
    axes.bar(list(cells), signal[0, 0, 6:24].tolist(), width=1, color=CELLS(0.5), edgecolor="#9a9a9a", linewidth=0.5)
    axes.axvspan(float(edges[0]), float(edges[-1]), fill=False, edgecolor=BOX, linewidth=2.2, zorder=4)
    for edge in edges[1:-1].tolist():
        axes.axvline(edge, color=BOX, linewidth=1.2, linestyle=(0, (4, 2)), zorder=4)
    _samples(axes, samples, samples, 5)  # the signal at x is x
    for bin, value in enumerate(pooled.tolist()):
        middle = float(edges[bin : bin + 2].mean())
        axes.text(middle, 25.5, style.number(value, 4), ha="center", va="bottom", fontsize=7.5)
    axes.set(xlim=(5.5, 23.5), ylim=(0, 25), xticks=style.index_ticks(cells), yticks=[0, 10, 20])
    axes.tick_params(length=0, pad=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def volume_nodule() -> Figure:
    """The slices that a box of a volume reads, as dark as they weigh, and the box's bins in each."""
    lo, hi = torch.tensor([[12.0, 20.0]], dtype=torch.float64).T
    weights = axis.integral_matrix(lo, hi, 1, 8, 0.25)[0, 0]
    read = weights.nonzero().flatten().tolist()
    rows, columns = torch.linspace(8, 20, 3), torch.linspace(4, 12, 3)  # Precise RoI pooling shifts nothing
    figure = Figure(figsize=(PART, 2.1))
    words = "Three axes: each slice weighs what the box\ncovers of it; in a slice, bins as on an image"
    figure.text(0.02, 0.97, words, va="top", fontsize=9, linespacing=1.3)
    for place, depth in enumerate(read):
        axes = figure.add_axes((0.07 + 0.31 * place, 0.08, 0.29, 0.55))
        weight = float(weights[depth])
        axes.add_patch(Rectangle((-0.5, -0.5), 32, 32, facecolor=CELLS(weight), edgecolor=MUTED))
        style.draw_bins(axes, rows, columns, BOX)
        style.outline(axes, rows, columns, edgecolor=BOX, linewidth=1.8)
        axes.set_title(f"z = {depth}: {style.number(weight)}", fontsize=8, loc="left", pad=3)
        _frame(axes, range(32), range(32))
        axes.set(xticks=[0, 10, 20, 30], yticks=[0, 10, 20, 30] if place == 0 else [])
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "rotated-box": rotated_box,
    "rotated-output": rotated_output,
    "sensitive-maps": sensitive_maps,
    "sensitive-output": sensitive_output,
    "moved-bins": moved_bins,
    "moved-output": moved_output,
    "signal-event": signal_event,
    "volume-nodule": volume_nodule,
}
