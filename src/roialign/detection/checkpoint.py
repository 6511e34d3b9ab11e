"""Detectors in files: safetensors, with the description that rebuilds the model as JSON in the file's header.

Nothing is ever unpickled. PyTorch's own ``.pth`` files are read with ``weights_only=True``, which admits tensors only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from torchvision.models import get_weight
from torchvision.models.detection import FasterRCNN

from ..outputs import write_atomically
from .model import build_detector

KEY = "roialign"  # of the JSON in a safetensors header


def pack_tensors(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> bytes:
    """The content of a file of tensors with a description."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(flat, {KEY: json.dumps(description)})


def read_description(path: Path) -> dict[str, Any]:
    """The JSON that :func:`pack_tensors` wrote.

    Raises:
        ValueError: the file is no safetensors file, or has no such description.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except FileNotFoundError:
        raise
    except Exception as error:  # safetensors raises its own type, which is a plain Exception
        raise ValueError(f"{path}: not a safetensors file: {error}") from None
    if text is None:
        raise ValueError(
            f"{path}: safetensors without this package's description; pass it as weights= to build_detector"
        )
    description: dict[str, Any] = json.loads(text)
    return description


def save_detector(model: FasterRCNN, path: str | Path, *, half: bool = False, **card: Any) -> None:
    """Write a detector to a file that alone rebuilds it.

    Args:
        model: from :func:`build_detector`.
        path: a ``.safetensors`` file to write, atomically.
        half: store matrices and kernels in float16, vectors in float32: half the size.
        card: anything JSON can hold to tell about the model; :func:`load_detector` gives it back as ``model.card``.
    """
    write_atomically(Path(path), pack_detector(model, half=half, **card))


def pack_detector(model: FasterRCNN, *, half: bool = False, **card: Any) -> bytes:
    """The content of the file that :func:`save_detector` writes."""
    state = {
        name: tensor.half() if half and tensor.is_floating_point() and tensor.dim() > 1 else tensor
        for name, tensor in model.state_dict().items()
    }
    return pack_tensors(state, {"model": model.description, "card": {**getattr(model, "card", {}), **card}})


def load_detector(path: str | Path | None = None) -> FasterRCNN:
    """Rebuild a detector from its file, in evaluation mode, on the CPU, in float32.

    Args:
        path: a file that :func:`save_detector` wrote; None: the tree crown detector that the package ships.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is none of ours, or its tensors are not the described model's.
    """
    path = default_checkpoint() if path is None else Path(path)
    description = read_description(path)
    if "model" not in description:
        raise ValueError(f"{path}: has no model's description; is it the state of a training, last.safetensors?")
    model = build_detector(**description["model"])
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: its tensors are not those of the described model: {error}") from None
    model.card = description.get("card", {})
    return model.eval()


def default_checkpoint() -> Path:
    """The tree crown detector that the package ships."""
    path = Path(__file__).parents[1] / "data" / "tree_crowns.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the package was installed without its detector; name a file of weights")
    return path


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
        ValueError: they do not fit the backbone.
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


def _read_weights(weights: str | Path) -> dict[str, Tensor]:
    path = Path(weights)
    if path.is_file():
        if path.suffix == ".safetensors":
            return {name: value.float() for name, value in load_file(path).items()}
        state = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state.get("model", state))
    try:
        named = get_weight(str(weights))
    except (ValueError, AttributeError):
        raise FileNotFoundError(
            f"weights: {weights} is neither a file nor a name like MobileNet_V2_Weights.IMAGENET1K_V1"
        ) from None
    return dict(named.get_state_dict(progress=False, check_hash=True))
