"""The command ``roialign``: its parts, put together."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..outputs import check_files, write_atomically
from ..terminal import make_console, say, shown
from . import detection
from .names import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    help="Region pooling for PyTorch.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(detection.commands)


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

    try:
        run(out, make_console())
    except OSError as error:
        sys.exit(shown(f"roialign demo: {error}"))


def _fraction(text: str) -> float:
    """A scale as people write it: 0.0625 or 1/16."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"got {text!r}; expected a number such as 0.0625 or 1/16") from None


@app.command()
def explain(
    box: Annotated[tuple[float, float, float, float], typer.Option(help="x1 y1 x2 y2 in pixels of the image.")],
    size: Annotated[tuple[int, int], typer.Option(help="Height and width of the feature map.")],
    image: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A photo to pool from.")] = None,
    output_size: Annotated[int, typer.Option(min=1, help="Bins along each side.")] = 2,
    sampling_ratio: Annotated[int, typer.Option(help="Samples per bin along each axis; 0 is adaptive.")] = 2,
    scale: Annotated[
        float | None, typer.Option(parser=_fraction, help="Cells per pixel. Default: 1, or the photo on the map.")
    ] = None,
    aligned: Annotated[bool, typer.Option(help="Shift positions by half a cell.")] = False,
    mode: Annotated[str, typer.Option(help="avg or max.")] = "avg",
    figure: Annotated[str, typer.Option(help="Which figure --out is.")] = "overview",
    out: Annotated[Path | None, typer.Option(help="Save the figure: .png, .svg or .pdf.")] = None,
    html: Annotated[Path | None, typer.Option(help="Save the interactive page.")] = None,
    values: Annotated[Path | None, typer.Option("--json", help="Save every number.")] = None,
) -> None:
    """Show what RoIAlign does to one box: its output, a figure, an interactive page, every number on the way."""
    import json

    from ..explain import explain as explained
    from ..explain.figures import save
    from ..samples import read_image

    console = make_console()
    try:
        photo = None if image is None else read_image(image)
        check_files((out, html, values), [image])
        told = explained(size, box, output_size, scale, sampling_ratio, aligned, mode=mode, image=photo)
        if out is not None:
            save(told, out, figure)
        if html is not None:
            write_atomically(html, told.to_html().encode())
        if values is not None:
            write_atomically(values, json.dumps(told.to_dict()).encode())
    except (TypeError, ValueError, OSError) as error:
        raise typer.BadParameter(shown(error)) from None
    console.print(f"{mode} of {told.x.grid} x {told.y.grid} samples in each bin:")
    for row in told.output.tolist():
        console.print("  ".join(f"{value:10.6g}" for value in row), soft_wrap=True)
    for path in (out, html, values):
        if path is not None:
            say(console, f"wrote {path}")
