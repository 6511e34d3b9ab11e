"""The command ``roialign``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import __version__, cli_detection

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Region pooling for PyTorch.")
app.add_typer(cli_detection.commands)


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Region pooling for PyTorch."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo"),
) -> None:
    """Pool the regions of a real photo, compare with torchvision, and run a Faster R-CNN step."""
    from .demo import run

    run(out, Console())


@app.command()
def bench(
    workload: Annotated[list[str] | None, typer.Option(help="Workload or group; repeat for more.")] = None,
    direction: Annotated[list[str] | None, typer.Option(help="What to time; repeat for more.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="Against whom; repeat for more. Default: who is here.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of everyone. Default: PyTorch's number.")] = None,
    budget: Annotated[float, typer.Option(min=0, help="Seconds per workload and direction.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for the numbers and the plot.")] = Path("build/bench"),
) -> None:
    """Time the operators beside those of other packages, after checking that they agree."""
    # The benchmarks are no part of the wheel: take those that this code lies beside, or those of the current folder.
    for checkout in (Path(__file__).parents[2], Path.cwd()):
        if (checkout / "benchmarks" / "workloads.py").is_file():
            sys.path.insert(0, str(checkout))
            break
    else:
        sys.exit("roialign bench: the benchmarks are not installed with the package; run it from a source checkout")
    from benchmarks.plot import plot
    from benchmarks.report import print_report
    from benchmarks.runner import make_plan, run

    try:
        plan = make_plan(workload or (), direction or (), peer or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    console = Console()
    report = run(plan, console, threads, budget)
    print_report(report, console)
    out.mkdir(parents=True, exist_ok=True)
    report.save(out / "benchmarks.json")
    plot(report, out / "benchmarks.png")
    console.print(f"wrote {out / 'benchmarks.json'} and {out / 'benchmarks.png'}", soft_wrap=True)
