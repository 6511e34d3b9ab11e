"""A report as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .report import FLOORS, Report, Result, rivals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP = 0.7  # between the bars of two workloads, in bars


def plot(report: Report, path: Path) -> None:
    """Bars of how many times as long as roialign the others take; a panel per direction, one logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {name: [it for it in results if bars(it)] for name, results in report.directions().items()}
    panels = {name: results for name, results in panels.items() if results}
    heights = [sum(len(bars(it)) + GAP for it in results) for results in panels.values()] or [1.0]
    figure, axes = pyplot.subplots(
        len(heights), figsize=(11, 0.24 * sum(heights) + 0.7 * len(heights) + 0.4), dpi=120, layout="constrained",
        gridspec_kw={"height_ratios": heights}, sharex=True, squeeze=False,
    )  # fmt: skip
    everyone = [name for name in rivals(report.results) if name not in FLOORS]
    colours = {name: pyplot.get_cmap("tab10")(i % 10) for i, name in enumerate(everyone)}
    for panel, (direction, results) in zip(axes[:, 0], panels.items(), strict=False):
        draw_bars(panel, results, colours)
        panel.set_title(direction, loc="left", fontweight="bold", fontsize=11)
    shown = [1.0, *(ratio for results in panels.values() for it in results for ratio in bars(it).values())]
    axes[0, 0].set_xlim(min(shown) / 1.6, max(shown) * 1.6)
    axes[-1, 0].set_xlabel("time of the other / time of roialign")
    figure.savefig(path)
    pyplot.close(figure)


def draw_bars(panel: Axes, results: list[Result], colours: Mapping[str, tuple[float, ...]]) -> None:
    """The bars of one direction, those of a workload together, from the break-even at 1."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    place = 0.0
    middles = {}
    for result in results:
        ratios = bars(result)
        middles[result.workload] = place + (len(ratios) - 1) / 2
        for name, ratio in ratios.items():
            panel.barh(place, ratio - 1, 0.9, left=1, color=colours[name], label=name)
            side, offset = ("left", 4) if ratio >= 1 else ("right", -4)
            panel.annotate(
                f"{ratio:.3g}x", (ratio, place), (offset, 0), textcoords="offset points", va="center", ha=side,
                fontsize=8,
            )  # fmt: skip
            place += 1
        place += GAP
    panel.set_ylim(place - GAP / 2 - 0.5, -0.5 - GAP / 2)  # the first on top
    panel.set_yticks(list(middles.values()), list(middles), fontsize=9)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(labelbottom=True, labelsize=9)
    panel.axvline(1, color="black", linewidth=1)
    panel.grid(axis="x", alpha=0.3)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panel.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    panel.legend(once.values(), once, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def bars(result: Result) -> dict[str, float]:
    """Ratios by name. The floors are no rivals: they are in the table."""
    return {name: result.ratio(name) for name in result.others if name not in FLOORS}
