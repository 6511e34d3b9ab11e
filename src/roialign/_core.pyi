"""The C++ core; csrc/arguments.h says what an array is. Each direction returns the first bad row, or -1."""

from collections.abc import Sequence
from typing import Any

KINDS: dict[str, int]  # what `kind` may be
DTYPES: dict[str, int]  # PyTorch's names, and their numbers in an array

Array = tuple[Any, ...]
Maps = tuple[Array, ...]

def forward(
    kind: int,
    features: Maps,
    rois: Array,
    level: Array | None,
    output: Array,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> int: ...
def backward_input(
    grads: Maps,
    kind: int,
    features: Maps,
    rois: Array,
    level: Array | None,
    grad: Array,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> int: ...
def backward_boxes(
    grad_rois: int,
    kind: int,
    features: Maps,
    rois: Array,
    level: Array | None,
    grad: Array,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> int: ...
def set_thread_pool(parallel_for: int, get_num_threads: int) -> None: ...
def thread_count() -> int: ...
def choose_kernels(name: str) -> bool: ...
def kernels() -> str: ...
