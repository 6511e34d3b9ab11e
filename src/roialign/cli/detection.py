"""The commands that train, judge and use a detector: their options; the work is in ``detection.commands``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from ..detection.recipe import ANNOTATIONS, CLASSES, COLUMNS, IMAGES, OPTIONS, PRECISION, RECIPE, Recipe
from ..detection.recipe import resume as resumed
from ..terminal import make_console, shown

commands = typer.Typer()

Images = Annotated[Path | None, typer.Option(help=IMAGES)]
Part = Annotated[
    str | None, typer.Option(help="train, val or test, of a YOLO yaml or a VOC folder with lists of images.")
]
Columns = Annotated[str | None, typer.Option(help=COLUMNS)]
Tile = Annotated[
    int | None, typer.Option(min=0, help="Side of a tile in pixels; 0: whole images. Default: the model's.")
]
Overlap = Annotated[int | None, typer.Option(min=0, help="Pixels that tiles have in common. Default: the model's.")]
Batch = Annotated[int, typer.Option(min=1, help="Tiles at once.")]
Tta = Annotated[
    bool, typer.Option("--tta", help="Look at each tile in five ways and let the boxes vote: better, and slower.")
]
Large = Annotated[
    bool, typer.Option("--large", help="Look at the image made smaller, too, for objects larger than the overlap.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ... Default: what the machine has.")]
Precision = Annotated[str, typer.Option(help=PRECISION)]
Weights = Annotated[Path | None, typer.Option(help="The detector. Default: the tree crown detector of the package.")]


@contextmanager
def _plain_errors(command: str) -> Iterator[None]:
    """What is wrong with the input is said in a line, without a traceback."""
    try:
        yield
    except (ValueError, ArithmeticError, OSError, ModuleNotFoundError) as error:
        sys.exit(shown(f"roialign {command}: {error}"))


def _with_a_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """The command, in place of whose parameter ``recipe`` stand the recipe's options."""

    @wraps(command)
    def asked(**given: Any) -> None:
        command(recipe=Recipe(**{name: given.pop(name) for name in OPTIONS}), **given)

    options = signature(Recipe, eval_str=True).parameters
    parameters: list[Parameter] = []
    for name, parameter in signature(command, eval_str=True).parameters.items():
        parameters += [options[option] for option in OPTIONS] if name == "recipe" else [parameter]
    vars(asked)["__signature__"] = Signature(parameters)  # which typer asks for
    return asked


@commands.command()
@_with_a_recipe
def train(
    *,
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the model, its log and pictures.")] = Path("train"),
    recipe: Recipe,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the training in --out, by the command that it keeps.")
    ] = False,
) -> None:
    """Train a detector. Under `accelerate launch` or `torchrun` on several devices or machines."""
    from ..detection.commands import train
    from ..detection.interruption import InterruptedTrainingError

    sources = {name: context.get_parameter_source(name) for name in OPTIONS}
    given = {name: getattr(recipe, name) for name, source in sources.items() if source and source.name != "DEFAULT"}
    with _plain_errors("train"):
        # Where nothing was started yet, --resume with a data set starts it: a job that may be killed at any time needs
        # one command only.
        if resume and ("annotations" not in given or (out / RECIPE).exists()):
            recipe = resumed(out, given)
        try:
            train(recipe, out, make_console(), resume=resume)
        except InterruptedTrainingError as stop:
            typer.echo(shown(f"roialign train: {stop}"), err=True)
            sys.exit(130)  # as whoever ends of SIGINT


@commands.command()
def evaluate(
    annotations: Annotated[
        Path | None, typer.Argument(help=f"{ANNOTATIONS} Default: the package's held-out part.")
    ] = None,
    images: Images = None,
    part: Part = None,
    classes: Annotated[str | None, typer.Option(help=CLASSES)] = None,
    columns: Columns = None,
    weights: Weights = None,
    json: Annotated[Path | None, typer.Option(help="Write the metrics there.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("evaluate"),
    tile: Tile = None,
    overlap: Overlap = None,
    batch: Batch = 1,
    tta: Tta = False,
    large: Large = False,
    device: Device = None,
    precision: Precision = "float32",
) -> None:
    """Judge a detector by COCO's measures. Under `torchrun` or `accelerate launch` processes share the images."""
    from ..detection.commands import evaluate
    from ..detection.tiles import Tiling

    with _plain_errors("evaluate"):
        evaluate(
            annotations,
            images,
            out,
            make_console(),
            weights=weights,
            json_file=json,
            part=part,
            classes=classes,
            columns=columns,
            tiling=Tiling(tile, overlap, batch, tta, large),
            device=device,
            precision=precision,
        )


@commands.command()
def convert(
    annotations: Annotated[Path, typer.Argument(help=ANNOTATIONS)],
    out: Annotated[Path, typer.Option(help="The file to write. One that is there is never replaced.")],
    images: Images = None,
    part: Part = None,
    columns: Columns = None,
) -> None:
    """Write annotations of any format as COCO JSON: what training and judging make of them."""
    from ..detection.convert import convert

    with _plain_errors("convert"):
        convert(annotations, out, make_console(), images=images, part=part, columns=columns)


@commands.command()
def detect(
    context: typer.Context,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, videos, folders, globs; with --ray also such as s3://bucket/folder. "
            "Default: a photo of the package."
        ),
    ] = None,
    weights: Weights = None,
    out: Annotated[
        str, typer.Option(help="Folder for the pictures and detections.json, or with --ray for Parquet files.")
    ] = "detect",
    csv: Annotated[Path | None, typer.Option(help="Write all boxes there, a line each.")] = None,
    geojson: Annotated[
        Path | None,
        typer.Option(help="Write all boxes there: in degrees if the image is georeferenced, else in pixels."),
    ] = None,
    geopackage: Annotated[
        Path | None,
        typer.Option(help="Write the boxes of all georeferenced images there, in their own coordinate system."),
    ] = None,
    draw: Annotated[bool, typer.Option("--draw/--no-draw", help="Draw the images with their boxes.")] = True,
    score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least score of a box. Default: the model's.")
    ] = None,
    tile: Tile = None,
    overlap: Overlap = None,
    batch: Batch = 1,
    tta: Tta = False,
    large: Large = False,
    device: Device = None,
    precision: Precision = "float32",
    ray: Annotated[
        bool,
        typer.Option("--ray", help="On all cores and GPUs, by Ray Data; go on where it was stopped. Draws nothing."),
    ] = False,
    ray_address: Annotated[
        str | None, typer.Option(help="On the machines of a Ray cluster that runs: auto, or its head's host:port.")
    ] = None,
) -> None:
    """Detect in images of any size and in videos, and draw the boxes. Exits with 1 if an image could not be read.

    Under `torchrun` or `accelerate launch` processes share the images.
    """
    with _plain_errors("detect"):
        from ..detection.tiles import Tiling

        tiling = Tiling(tile, overlap, batch, tta, large)
        how: dict[str, Any] = {"weights": weights, "score": score, "tiling": tiling}
        how |= {"device": device, "precision": precision}
        if ray or ray_address:
            from ..detection.cluster import detect_on_cluster

            sources = {name: context.get_parameter_source(name) for name in ("csv", "geojson", "geopackage", "draw")}
            for name, source in sources.items():
                if context.params[name] and source and source.name != "DEFAULT":
                    raise ValueError(f"--{name}: does not go with --ray, which writes Parquet files")
            faults = detect_on_cluster(images or [], out, make_console(), address=ray_address, **how)
        else:
            from ..detection.predict import detect_files

            files: dict[str, Any] = {"table_file": csv, "geojson_file": geojson, "geopackage_file": geopackage}
            faults = detect_files(images or [], Path(out), make_console(), draw=draw, **files, **how)
    if faults:
        sys.exit("\n  ".join([f"roialign detect: {len(faults)} images could not be read:", *map(shown, faults)]))


@commands.command()
def export(
    model: Annotated[
        Path | None, typer.Argument(help="The detector. Default: the tree crown detector of the package.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("model.onnx"),
    photo: Annotated[
        Path | None,
        typer.Option(help="Hold ONNX Runtime's boxes to Python's on this one. Default: a photo of the package."),
    ] = None,
) -> None:
    """Write a detector as ONNX, for runtimes without PyTorch, once ONNX Runtime finds what it finds."""
    from ..detection.export import export

    with _plain_errors("export"):
        export(model, out, make_console(), photo)
