"""A file of tensors that a training replaces while it is read: what is read is one file or the other."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from roialign.detection import weights
from roialign.detection.checkpoint import pack_tensors, read_description
from roialign.detection.weights import open_tensors


def content(number: int) -> bytes:
    """Headers and values of other lengths for each number."""
    return pack_tensors({"w": torch.full((4000 + number,), float(number))}, {"number": [number] * number})


def put(path: Path, number: int) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(content(number))
    os.replace(beside, path)


def read(path: Path) -> tuple[int, list[float]]:
    """How many values there are, and which."""
    with open_tensors(path) as file:
        values = file.get_tensor("w")
    return len(values) - 4000, values.unique().tolist()


@pytest.mark.parametrize("when", ["before", "after"])
def test_replaced_once_between_the_two_openings(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened, calls = tmp_path / "m.safetensors", weights.safe_open, itertools.count()
    put(path, 9)

    def open_it(*arguments: Any) -> Any:
        first = next(calls) == 0
        if first and when == "before":  # as if the header had been read already
            put(path, 3)
            raise RuntimeError("size is smaller than the required mapping size")
        file = opened(*arguments)
        if first:
            put(path, 3)
        return file

    monkeypatch.setattr(weights, "safe_open", open_it)
    assert read(path) == (3, [3.0])
    assert next(calls) == 2
    assert read_description(path) == {"number": [3, 3, 3]}


def test_replaced_all_the_time(tmp_path: Path) -> None:
    path, stop = tmp_path / "m.safetensors", threading.Event()
    put(path, 1)

    def write() -> None:
        for number in itertools.cycle(range(1, 40)):
            if stop.is_set():
                return
            put(path, number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [read(path) for _ in range(300)]
    finally:
        stop.set()
        writer.join()
    assert all(values == [float(number)] for number, values in seen)
    assert len({number for number, _ in seen}) > 1


def test_a_torn_file_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content(5)[:-8])
    with pytest.raises(ValueError, match=r"m\.safetensors: not a safetensors file, as a training leaves: "):
        open_tensors(path)
