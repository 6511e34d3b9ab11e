"""A training in one description: the command builds it, the folder keeps it, ``--resume`` goes on by it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

RECIPE = "train.json"
FREE = "may be given anew when a training goes on"
# Of options that several commands have.
ANNOTATIONS = "COCO JSON, YOLO yaml, Pascal VOC folder or CSV."
IMAGES = "Folder of the images. Default: as the format has it, mostly that of the annotations."
CLASSES = "Which classes count, and as what: tree,bush or tree=crown. Default: all."
PRECISION = "float32, or bfloat16 for the backbone: faster where the hardware multiplies it."
COLUMNS = "A CSV's headings of image, x1, y1, x2, y2, class. Default: image_path,xmin,ymin,xmax,ymax,label."


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides about a training.

    A field that is annotated for typer is an option of ``roialign train``, and the folder keeps it. It cannot change
    any more, but if it is FREE: files may have moved (whether they are the same is seen when they are read), and the
    others say only how long to go on and who prepares the crops.
    """

    annotations: Annotated[
        Path | None, typer.Argument(help=f"{ANNOTATIONS} Default: the package's tree crowns."), FREE
    ] = None
    images: Annotated[Path | None, typer.Option(help=IMAGES), FREE] = None
    val: Annotated[
        Path | None, typer.Option(help="Others to judge by. Default: the val of a YOLO yaml or a VOC folder."), FREE
    ] = None
    val_images: Annotated[Path | None, typer.Option(help="Folder of the images of --val. Default: --images."), FREE] = (
        None
    )
    val_split: Annotated[
        float, typer.Option(min=0, max=0.9, help="Without any, the part of the images to hold out.")
    ] = 0.2
    classes: Annotated[str | None, typer.Option(help=CLASSES)] = None
    columns: Annotated[str | None, typer.Option(help=COLUMNS), FREE] = None
    weights: Annotated[
        str | None, typer.Option(help="File or torchvision's name. Default: the package's detector.")
    ] = None
    backbone: Annotated[str, typer.Option(help="mobilenet_v2, mobilenet_v2_fpn, resnet50_fpn or timm:NAME.")] = (
        "mobilenet_v2_fpn"
    )
    pooling: Annotated[str, typer.Option(help="roi_align, roi_align_max, prroi_pool or roi_pool.")] = "roi_align"
    masks: Annotated[
        bool, typer.Option("--masks", help="Draw masks, too: Mask R-CNN. Default: as the detector of --weights.")
    ] = False
    epochs: Annotated[int, typer.Option(min=1), FREE] = 30
    batch: Annotated[int, typer.Option(min=1, help="Crops per process and step.")] = 4
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts of a batch, taken one after the other: less memory, one step.")
    ] = 1
    repeat: Annotated[int, typer.Option(min=1, help="Times an epoch goes over the images.")] = 1
    lr: Annotated[float, typer.Option(min=0, help="Highest learning rate.")] = 5e-4
    scale: Annotated[float | None, typer.Option(help="Enlarge images for the network. Default: by the boxes.")] = None
    crop: Annotated[int | None, typer.Option(min=64, help="Side of a crop in pixels. Default: by the scale.")] = None
    augment: Annotated[
        str | None,
        typer.Option(
            help="aerial (all eight ways to lay a photo down), upright (mirrored only, less zoom) or none. "
            "Default: upright, and aerial for the package's tree crowns."
        ),
    ] = None
    zoom: Annotated[
        float | None,
        typer.Option(min=1, help="Enlarge or reduce crops by up to so much. Default: --augment's."),
    ] = None
    colour: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="By how much brightness, contrast, saturation change. Default: --augment's."),
    ] = None
    patience: Annotated[
        int, typer.Option(min=0, help="Stop after so many epochs none of which was better. 0: never."), FREE
    ] = 0
    freeze_backbone: Annotated[
        bool, typer.Option("--freeze-backbone", help="Leave the backbone as it is; the pyramid and the heads learn.")
    ] = False
    precision: Annotated[str, typer.Option(help=PRECISION)] = "float32"
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ... Default: what the machine has."), FREE
    ] = None
    save_minutes: Annotated[
        float, typer.Option(min=0, help="Save the state every so many minutes, not at an epoch's end only."), FREE
    ] = 10
    damaged: Annotated[
        int, typer.Option(min=0, help="Go on without images that cannot be decoded, up to so many."), FREE
    ] = 10
    tracker: Annotated[
        str | None, typer.Option(help="tensorboard, wandb, mlflow, ...: whom Accelerate shall tell, too."), FREE
    ] = None
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare crops."), FREE] = 0
    seed: Annotated[int, typer.Option(min=0)] = 0
    weight_decay: float = 1e-2  # AdamW's
    ema: float = 0.995  # how slowly the averaged model, which is the one that is judged and kept, follows


_HINTS = get_type_hints(Recipe, include_extras=True)
_IN_JSON: dict[type, tuple[type, ...]] = {Path: (str,), float: (float, int)}


def _kinds(hint: Any) -> tuple[type, ...]:
    """The types that a field may have."""
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_args(kind) or (kind,)


# Of the command's options: the types that each may have in JSON.
OPTIONS: dict[str, tuple[type, ...]] = {
    name: tuple(each for kind in _kinds(hint) for each in _IN_JSON.get(kind, (kind,)))
    for name, hint in _HINTS.items()
    if get_origin(hint) is Annotated
}
PATHS = tuple(name for name, hint in _HINTS.items() if Path in _kinds(hint))


def pack(recipe: Recipe) -> bytes:
    """A recipe as the folder keeps it, with paths that hold from anywhere."""
    kept = {name: getattr(recipe, name) for name in OPTIONS}
    for name in PATHS:
        kept[name] = None if kept[name] is None else os.path.abspath(kept[name])
    weights = kept["weights"]
    if weights is not None and os.path.exists(weights):  # else it is a name of torchvision's
        kept["weights"] = os.path.abspath(weights)
    return json.dumps(kept, indent=1).encode()


def resume(out: Path, given: Mapping[str, Any]) -> Recipe:
    """The recipe of the training in a folder, with those options that the user has ``given`` anew.

    Raises:
        FileNotFoundError: there is no training.
        ValueError: an option cannot change any more, or the file is not one of ours.
    """
    path = out / RECIPE
    if not path.is_file():
        raise FileNotFoundError(f"{out}: has no training to resume")
    try:
        kept = {"masks": False, **json.loads(path.read_bytes())}  # which trainings from before there were masks lack
        wrong = [name for name, types in OPTIONS.items() if type(kept[name]) not in types]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not the command of a training: {error!r}") from None
    if wrong:
        raise ValueError(f"{path}: not the command of a training: {wrong[0]} is {kept[wrong[0]]!r}")
    fresh = json.loads(pack(replace(_unpack(kept), **given)))
    for name in OPTIONS:
        if FREE not in get_args(_HINTS[name]) and fresh[name] != kept[name]:
            option = name.replace("_", "-")
            raise ValueError(f"{path}: cannot go on: --{option} was {kept[name]}, now it is {fresh[name]}")
    return _unpack(fresh)


def _unpack(kept: Mapping[str, Any]) -> Recipe:
    paths = {name: Path(kept[name]) for name in PATHS if kept[name] is not None}
    return Recipe(**{name: kept[name] for name in OPTIONS} | paths)
