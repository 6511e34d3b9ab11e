"""Weights to start from: another detector's, or a classifier's for the backbone.

Nothing is ever unpickled. PyTorch's own ``.pth`` files, downloads and what its cache has included, are read with
``weights_only=True``, which admits tensors only.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torchvision.models import WeightsEnum, get_weight
from torchvision.models.detection import FasterRCNN

NEEDED = "expected tensors by their names (a state_dict), as torchvision has them"


def load_weights(model: FasterRCNN, weights: str | Path) -> int:
    """Start a detector from another's weights, or its backbone from a classifier's.

    Args:
        model: from :func:`build_detector`.
        weights: a ``.safetensors`` or ``.pth`` file, or the name of torchvision weights, which are downloaded unless
            PyTorch's cache has them.

    Returns:
        How many of the model's tensors were taken from there. Those of another shape, such as the predictor for another
        number of classes, keep their values.

    Raises:
        FileNotFoundError: neither a file nor a name of torchvision's.
        ValueError: they cannot be read or downloaded, or do not fit the backbone.
    """
    source = _read_weights(weights)
    backbone = "body." if hasattr(model.backbone, "body") else ""
    if not any(name.startswith("backbone.") for name in source):  # a classifier's
        source = {f"backbone.{backbone}{name.removeprefix('features.')}": value for name, value in source.items()}
    state = model.state_dict()
    taken = {name: value for name, value in source.items() if name in state and value.shape == state[name].shape}
    wanted = [name for name in state if name.startswith(f"backbone.{backbone}") and "num_batches" not in name]
    missing = [name for name in wanted if name not in taken]
    if missing:
        raise ValueError(
            f"weights: {weights} lacks {len(missing)} of the backbone's {len(wanted)} tensors, or has them in another "
            f"shape, such as {missing[0]}"
        )
    model.load_state_dict(taken, strict=False)
    return len(taken)


def open_tensors(path: Path) -> Any:
    """A safetensors file as it was at one moment, to be used by ``with``, while a training may be replacing it.

    safetensors opens the path once for the header and once more for the values, which may be another file's by then.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no safetensors file.
    """
    if path.is_dir():
        raise ValueError(f"{path}: a folder; expected a file, as the model.safetensors that a training leaves")
    while True:
        before = path.stat()
        try:
            file, told = safe_open(path, "pt"), ""
        except Exception as error:  # its own, which are plain ones
            file, told = None, str(error)
        after = path.stat()
        if (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns):
            break
    if file is None:
        raise ValueError(f"{path}: not a safetensors file, as a training leaves: {told}")
    return file


def read_tensors(file: Any) -> dict[str, Tensor]:
    """All tensors of a file that :func:`open_tensors` opened."""
    return {name: file.get_tensor(name) for name in sorted(file.keys())}


def _read_weights(weights: str | Path) -> dict[str, Tensor]:
    path = Path(weights)
    named = None if path.is_file() else _named(weights)
    try:
        if named is not None:
            state = named.get_state_dict(progress=False, check_hash=True, weights_only=True)
        elif path.suffix == ".safetensors":
            with open_tensors(path) as file:
                state = read_tensors(file)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("model", state) if isinstance(state, dict) else None
        if not isinstance(state, dict):
            raise ValueError(NEEDED)
        return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    except UnpicklingError:
        raise ValueError(
            f"weights: {weights} cannot be read: not tensors alone, and nothing else is unpickled; {NEEDED}"
        ) from None
    except Exception as error:  # safetensors, pickle and the network raise their own
        told = str(error).partition("\n")[0]
        raise ValueError(f"weights: {weights} cannot be read: {told or type(error).__name__}") from None


def _named(weights: str | Path) -> WeightsEnum:
    try:
        return get_weight(str(weights))
    except (ValueError, AttributeError, KeyError):
        raise FileNotFoundError(
            f"weights: {weights} is neither a file nor a name like MobileNet_V2_Weights.IMAGENET1K_V1"
        ) from None
