"""The bytes that a call must move, whoever computes it, and how fast this device moves bytes.

A copy of a large tensor takes its turn beside the others; the roofline is its time for as many bytes as the call must
read and write: of the maps the cells that some sample touches, once, and every number of the result.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from roialign import axis
from roialign.boxes import fpn_levels

from .directions import Mode
from .peer import Call
from .workloads import Workload, strides_log2

COPIED = 2**28  # bytes, each read once and written once


def copy(device: torch.device) -> Call:
    """Move 2 * COPIED bytes."""
    source, target = (torch.ones(COPIED // 4, device=device) for _ in range(2))
    return lambda: (target.copy_(source),)


def must_move(workload: Workload, mode: Mode) -> int:
    """Bytes; of ``roi_align`` of maps ``[1, C, H, W]``, which is what our kernels on a GPU are timed on.

    Forward: the touched cells in, the output out. Backward: the output's gradient in, that of the maps out, all of it,
    as most of it may be 0 but none may be left unwritten; with the gradient to the boxes also the touched cells in.
    """
    touched = sum(int(cells.sum()) for cells in touched_cells(workload)) * workload.channels
    forward, backward = touched + workload.pooled(), workload.pooled() + workload.cells()
    if mode.box_gradient:
        backward += touched
    return {"forward": forward, "backward": backward, "step": forward + backward}[mode.part] * mode.dtype.itemsize


@cache
def touched_cells(workload: Workload) -> list[Tensor]:
    """``[H, W]`` bool of each map: cells that weigh in some bin of some box."""
    boxes = workload.make_boxes()
    level = torch.zeros(len(boxes), dtype=torch.int64)
    if len(workload.maps) > 1:
        level = fpn_levels([boxes], strides_log2(workload), 224, 4)
    found = []
    for i, ((height, width), stride) in enumerate(workload.maps):
        x1, y1, x2, y2 = boxes[level == i].unbind(1)
        rows = _touched(workload, y1, y2, height, 1 / stride)
        columns = _touched(workload, x1, x2, width, 1 / stride)
        found.append((rows.T.float() @ columns.float()) > 0)  # a box's cells are its rows times its columns
    return found


def _touched(workload: Workload, lo: Tensor, hi: Tensor, length: int, scale: float) -> Tensor:
    """``[K, L]`` bool: cells along one axis that weigh in some bin of each box."""
    window = axis.align_window(lo, hi, workload.output, scale, workload.ratio, workload.aligned)
    return (axis.mean_matrix(window, workload.output, length) != 0).any(1)
