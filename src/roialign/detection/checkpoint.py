"""Detectors in files: safetensors, with the description that rebuilds the model as JSON in the file's header.

Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from ..outputs import write_atomically
from ..samples import DETECTOR
from .description import check_card, check_model
from .model import build_detector
from .weights import open_tensors, read_tensors

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
    with open_tensors(path) as file:
        return _description(file, path)


def _description(file: Any, path: Path) -> dict[str, Any]:
    text = (file.metadata() or {}).get(KEY)
    if text is None:
        raise ValueError(
            f"{path}: safetensors without this package's description; pass it as weights= to build_detector"
        )
    try:
        description = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its description is no JSON: {error}") from None
    if not isinstance(description, dict):
        raise ValueError(f"{path}: its description is a {type(description).__name__}; expected an object")
    return description


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def save_detector(model: FasterRCNN, path: str | Path, *, half: bool = False, **card: Any) -> None:
    """Write a detector to a file that alone rebuilds it.

    Args:
        model: from :func:`build_detector`.
        path: a ``.safetensors`` file to write, atomically.
        half: store matrices and kernels in float16, vectors in float32: half the size.
        card: anything JSON can hold to tell about the model; :func:`load_detector` gives it back as ``model.card``.

    Raises:
        ValueError: the model's description or the card has what :func:`load_detector` would refuse, or its norms are
            folded.
        FileExistsError: the path is a link, a folder or a device.
    """
    write_atomically(Path(path), pack_detector(model, half=half, **card))


def pack_detector(model: FasterRCNN, *, half: bool = False, **card: Any) -> bytes:
    """The content of the file that :func:`save_detector` writes."""
    if getattr(model, "folded", False):
        raise ValueError("model: its norms are folded, as in a Detector's; save the one that load_detector gives")
    state = {
        name: tensor.half() if half and tensor.is_floating_point() and tensor.dim() > 1 else tensor
        for name, tensor in model.state_dict().items()
    }
    card = {**getattr(model, "card", {}), **card}
    check_model(model.description)
    check_card(card, model.description)
    return pack_tensors(state, {"model": model.description, "card": card})


def load_detector(path: str | Path | None = None) -> FasterRCNN:
    """Rebuild a detector from its file, in evaluation mode, on the CPU, in float32.

    Args:
        path: a file that :func:`save_detector` wrote; None: the tree crown detector that the package ships.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is none of ours, its description is not one that we write, or its tensors are not the
            described model's; in one line that names the file. Nothing else is read or fetched, whatever it says.
    """
    path = default_checkpoint() if path is None else Path(path)
    with open_tensors(path) as file:
        return _rebuilt(file, path)


def _rebuilt(file: Any, path: Path) -> FasterRCNN:
    description = _description(file, path)
    if "model" not in description:
        raise ValueError(
            f"{path}: has no model's description; of a training last.safetensors is the state, and model.safetensors, "
            "beside it, the detector"
        )
    card = description.get("card", {})
    try:
        check_model(description["model"])
        check_card(card, description["model"])
        with torch.device("meta"):  # without memory, since the description may ask for any amount
            described = build_detector(**description["model"])
        _compare(file, described)
    except ModuleNotFoundError:  # timm
        raise
    except Exception as error:  # torchvision's and timm's constructors raise whatever they stumble over
        told = str(error).removeprefix(f"{path}: ").partition("\n")[0]
        raise ValueError(f"{path}: {told or type(error).__name__}") from None
    model = build_detector(**description["model"])
    tensors = read_tensors(file)
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{path}: {name} has values that are not finite")
    model.load_state_dict(tensors)
    model.card = card
    return model.eval()


def draws_masks(path: str | None) -> bool:
    """Whether a file is a detector's that draws masks; None, a name of torchvision's or another's file is not."""
    if path is None or not Path(path).is_file() or Path(path).suffix != ".safetensors":
        return False
    with open_tensors(Path(path)) as file:
        model = _description(file, Path(path)).get("model") if KEY in (file.metadata() or {}) else None
    return isinstance(model, dict) and model.get("masks") is True


def _compare(file: Any, model: FasterRCNN) -> None:
    """The file's tensors, by its header, against those of the described model."""
    wanted, there = model.state_dict(), set(file.keys())
    for name in sorted(there ^ wanted.keys()):
        raise ValueError(f"tensors: {name} is {'none of the described model' if name in there else 'missing'}")
    for name, tensor in wanted.items():
        part = file.get_slice(name)
        shape, kind = part.get_shape(), str(part.get_dtype())
        if shape != list(tensor.shape):
            raise ValueError(f"tensors: {name} has shape {shape}; the described model's is {list(tensor.shape)}")
        if tensor.is_floating_point() != (kind in ("F64", "F32", "F16", "BF16")):
            raise ValueError(f"tensors: {name} is of {kind}; the described model's is {tensor.dtype}")


def default_checkpoint() -> Path:
    """The tree crown detector that the package ships."""
    if not DETECTOR.is_file():
        raise FileNotFoundError(f"{DETECTOR}: the package was installed without its detector; name a file of weights")
    return DETECTOR
