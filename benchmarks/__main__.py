"""``python -m benchmarks``: the command, in a source checkout; no part of the wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from roialign.terminal import make_console

from .device import find_device
from .models import print_models, run_models, save_models
from .plot import plot
from .report import print_report
from .runner import make_plan, run

app = typer.Typer(add_completion=False)


@app.command()
def main(
    workload: Annotated[list[str] | None, typer.Option(help="Workload or group, or model; repeat for more.")] = None,
    direction: Annotated[list[str] | None, typer.Option(help="What to time; repeat for more.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="Against whom; repeat for more. Default: who is here.")] = None,
    device: Annotated[str, typer.Option(help="Where: cpu, cuda (ROCm's name, too) or xpu.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of everyone. Default: PyTorch's number.")] = None,
    budget: Annotated[float, typer.Option(min=0, help="Seconds per workload and direction.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for the numbers and the plot.")] = Path("build/bench"),
    models: Annotated[
        bool, typer.Option("--models", help="Time whole detectors before and after roialign.accelerate() instead.")
    ] = False,
) -> None:
    """Time the operators beside those of other packages, after checking that they agree."""
    console = make_console()
    if models:
        try:
            about, results = run_models(workload or (), direction or (), console, threads, budget, find_device(device))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        print_models(about, results, console)
        out.mkdir(parents=True, exist_ok=True)
        save_models(about, results, out / "models.json")
        console.print(f"wrote {out / 'models.json'}", soft_wrap=True)
        return
    try:
        plan = make_plan(workload or (), direction or (), peer or (), find_device(device))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    report = run(plan, console, threads, budget)
    print_report(report, console)
    out.mkdir(parents=True, exist_ok=True)
    report.save(out / "benchmarks.json")
    plot(report, out / "benchmarks.png")
    console.print(f"wrote {out / 'benchmarks.json'} and {out / 'benchmarks.png'}", soft_wrap=True)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
