"""``python -m benchmarks.compare A.json B.json``: what a change did, from a report before it and one after.

Compared are ratios, our time by the other's in the same run, so that a machine that is slower on one day cancels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .report import Report, geometric_mean


def compare(before: Report, after: Report) -> list[tuple[str, str, str, float, float]]:
    """(direction, workload, rival, ratio before, ratio after) of all that both reports hold."""
    earlier = {(it.direction, it.workload, name): it.ratio(name) for it in before.results for name in it.others}
    return [
        (it.direction, it.workload, name, earlier[it.direction, it.workload, name], it.ratio(name))
        for it in after.results
        for name in it.others
        if (it.direction, it.workload, name) in earlier
    ]


def make_table(rows: list[tuple[str, str, str, float, float]]) -> Table:
    """A row per pair, and a geometric mean per direction and rival; above 1 the change made us faster."""
    table = Table(title="Our speed relative to others, before and after", title_justify="left")
    for heading in ("direction", "workload", "against", "before", "after", "change"):
        table.add_column(heading, justify="left" if heading in ("direction", "workload", "against") else "right")
    changes: dict[tuple[str, str], list[float]] = {}
    for direction, workload, name, old, new in rows:
        table.add_row(direction, workload, name, f"{old:.3g}x", f"{new:.3g}x", _change(new / old))
        changes.setdefault((direction, name), []).append(new / old)
    table.add_section()
    for (direction, name), values in changes.items():
        table.add_row(direction, "geometric mean", name, "", "", _change(geometric_mean(values)), style="bold")
    return table


def main(
    before: Annotated[Path, typer.Argument(help="benchmarks.json of the run before.", exists=True, dir_okay=False)],
    after: Annotated[Path, typer.Argument(help="benchmarks.json of the run after.", exists=True, dir_okay=False)],
) -> None:
    """Show what a change did to our time relative to each other implementation's in the same run."""
    first, second = Report.load(before), Report.load(after)
    console = Console()
    for key in ("device", "cpu", "threads", "instruction_set", "versions"):
        one, other = (report.machine.get(key) for report in (first, second))
        if one != other:
            console.print(f"{key} differs: {one}, {other}", style="yellow", soft_wrap=True)
    rows = compare(first, second)
    if not rows:
        raise typer.BadParameter("the two reports have no workload, direction and implementation in common")
    console.print(make_table(rows))


def _change(factor: float) -> str:
    return f"[{'green' if factor >= 1 else 'red'}]{factor:.3g}x"


if __name__ == "__main__":
    typer.run(main)
