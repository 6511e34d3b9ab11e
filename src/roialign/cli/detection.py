"""The commands that train, judge and use a detector: their options; the work is in ``detection.commands``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..terminal import make_console, shown

commands = typer.Typer()

Images = Annotated[Path | None, typer.Option(help="Folder of the images. Default: that of the annotations.")]
Tile = Annotated[
    int | None, typer.Option(min=0, help="Side of a tile in pixels; 0: whole images. Default: the model's.")
]
Overlap = Annotated[int | None, typer.Option(min=0, help="Pixels that tiles have in common. Default: the model's.")]
Batch = Annotated[int, typer.Option(min=1, help="Tiles at once.")]
Weights = Annotated[Path | None, typer.Option(help="The detector. Default: the tree crown detector of the package.")]


@contextmanager
def _plain_errors(command: str) -> Iterator[None]:
    """What is wrong with the input is said in a line, without a traceback."""
    try:
        yield
    except (ValueError, ArithmeticError, OSError, ModuleNotFoundError) as error:
        sys.exit(shown(f"roialign {command}: {error}"))


@commands.command()
def train(
    context: typer.Context,
    annotations: Annotated[Path | None, typer.Argument(help="COCO JSON. Default: the package's tree crowns.")] = None,
    images: Images = None,
    out: Annotated[Path, typer.Option(help="Folder for the model, its log and pictures.")] = Path("train"),
    val: Annotated[Path | None, typer.Option(help="A second COCO JSON to judge by.")] = None,
    val_split: Annotated[
        float, typer.Option(min=0, max=0.9, help="Without one, the part of the images to hold out.")
    ] = 0.2,
    weights: Annotated[
        str | None, typer.Option(help="File or torchvision's name. Default: the package's detector.")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="mobilenet_v2, mobilenet_v2_fpn, resnet50_fpn or timm:NAME.")
    ] = "mobilenet_v2_fpn",
    pooling: Annotated[str, typer.Option(help="roi_align, roi_align_max, prroi_pool or roi_pool.")] = "roi_align",
    epochs: Annotated[int, typer.Option(min=1)] = 30,
    batch: Annotated[int, typer.Option(min=1, help="Crops per process and step.")] = 4,
    repeat: Annotated[int, typer.Option(min=1, help="Times an epoch goes over the images.")] = 1,
    lr: Annotated[float, typer.Option(min=0, help="Highest learning rate.")] = 5e-4,
    scale: Annotated[float | None, typer.Option(help="Enlarge images for the network. Default: by the boxes.")] = None,
    crop: Annotated[int | None, typer.Option(min=64, help="Side of a crop in pixels. Default: by the scale.")] = None,
    patience: Annotated[
        int, typer.Option(min=0, help="Stop after so many epochs without a better AP50. 0: never.")
    ] = 0,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare crops.")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the training in --out, by the command that it keeps.")
    ] = False,
) -> None:
    """Train a detector. Under `accelerate launch` or `torchrun` on several devices or machines."""
    from ..detection import recipe
    from ..detection.commands import train
    from ..detection.training import Settings

    options = {name: context.params[name] for name in recipe.OPTIONS}
    sources = {name: context.get_parameter_source(name) for name in options}
    given = {name: options[name] for name, source in sources.items() if source and source.name != "DEFAULT"}
    with _plain_errors("train"):
        # Where nothing was started yet, --resume with a data set starts it: a job that may be killed at any time needs
        # one command only.
        if resume and ("annotations" not in given or (out / recipe.RECIPE).exists()):
            options = recipe.resume(out, given)
        settings = Settings(**{name: options.pop(name) for name in recipe.SETTINGS})
        train(
            options.pop("annotations"), options.pop("images"), out, settings, make_console(), resume=resume, **options
        )


@commands.command()
def evaluate(
    annotations: Annotated[Path | None, typer.Argument(help="COCO JSON. Default: the package's held-out part.")] = None,
    images: Images = None,
    weights: Weights = None,
    json: Annotated[Path | None, typer.Option(help="Write the metrics there.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("evaluate"),
    tile: Tile = None,
    overlap: Overlap = None,
    batch: Batch = 1,
) -> None:
    """Judge a detector by COCO's measures."""
    from ..detection.commands import evaluate

    with _plain_errors("evaluate"):
        evaluate(
            annotations,
            images,
            out,
            make_console(),
            weights=weights,
            json_file=json,
            tile=tile,
            overlap=overlap,
            batch=batch,
        )


@commands.command()
def detect(
    images: Annotated[
        list[str] | None, typer.Argument(help="Files, folders, globs. Default: a photo of the package.")
    ] = None,
    weights: Weights = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and detections.json.")] = Path("detect"),
    score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least score of a box. Default: the model's.")
    ] = None,
    tile: Tile = None,
    overlap: Overlap = None,
    batch: Batch = 1,
) -> None:
    """Detect in images of any size and draw the boxes. Exits with 1 if an image could not be read."""
    from ..detection.predict import detect_files

    with _plain_errors("detect"):
        faults = detect_files(
            images or [], out, make_console(), weights=weights, score=score, tile=tile, overlap=overlap, batch=batch
        )
    if faults:
        sys.exit("\n  ".join([f"roialign detect: {len(faults)} images could not be read:", *map(shown, faults)]))
