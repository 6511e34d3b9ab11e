"""The command of a training, kept in its folder so that ``--resume`` needs nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECIPE = "train.json"
PATHS = ("annotations", "images", "val")
# Of the command's options: the types that each may have.
OPTIONS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(PATHS, (str, type(None))),
    "val_split": (float, int),
    "weights": (str, type(None)),
    "backbone": (str,),
    "pooling": (str,),
    "epochs": (int,),
    "batch": (int,),
    "repeat": (int,),
    "lr": (float, int),
    "scale": (float, int, type(None)),
    "crop": (int, type(None)),
    "patience": (int,),
    "precision": (str,),
    "workers": (int,),
    "seed": (int,),
}
SETTINGS = ("epochs", "batch", "repeat", "lr", "patience", "precision", "workers", "seed")  # of Settings
# May be given anew: files may have moved (whether they are the same is seen when they are read), and these say only how
# long to go on and who prepares the crops.
FREE = (*PATHS, "epochs", "patience", "workers")


def pack(options: Mapping[str, Any]) -> bytes:
    """A command's options as the folder keeps them, with paths that hold from anywhere."""
    kept = {name: options[name] for name in OPTIONS}
    for name in PATHS:
        kept[name] = None if kept[name] is None else os.path.abspath(kept[name])
    weights = kept["weights"]
    if weights is not None and os.path.exists(weights):  # else it is a name of torchvision's
        kept["weights"] = os.path.abspath(weights)
    return json.dumps(kept, indent=1).encode()


def resume(out: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the training in a folder, with those that the user has ``given`` anew.

    Raises:
        FileNotFoundError: there is no training.
        ValueError: an option cannot change any more, or the file is not one of ours.
    """
    path = out / RECIPE
    if not path.is_file():
        raise FileNotFoundError(f"{out}: has no training to resume")
    try:
        kept = json.loads(path.read_bytes())
        wrong = [name for name, types in OPTIONS.items() if type(kept[name]) not in types]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not the command of a training: {error!r}") from None
    if wrong:
        raise ValueError(f"{path}: not the command of a training: {wrong[0]} is {kept[wrong[0]]!r}")
    fresh = json.loads(pack({**kept, **given}))
    for name in OPTIONS:
        if name not in FREE and fresh[name] != kept[name]:
            option = name.replace("_", "-")
            raise ValueError(f"{path}: cannot go on: --{option} was {kept[name]}, now it is {fresh[name]}")
    return {name: Path(fresh[name]) if name in PATHS and fresh[name] is not None else fresh[name] for name in OPTIONS}
