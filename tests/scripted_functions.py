"""Functions that TorchScript compiles, in a file of their own: it reads annotations as they stand."""

from typing import List, Tuple  # noqa: UP035

import torch
from torch import Tensor

import roialign
from roialign import prroi_pool, roi_align, roi_pool


def with_defaults(x: Tensor, rois: Tensor) -> Tensor:
    return roi_align(x, rois, 2) + roi_pool(x, rois, [2, 2]) + prroi_pool(x, rois, output_size=(2, 2))


def with_all(x: Tensor, boxes: List[Tensor], size: Tuple[int, int]) -> Tensor:  # noqa: UP006
    return roi_align(x, boxes, size, spatial_scale=0.5, sampling_ratio=2, aligned=True, mode="max")


if __name__ == "__main__":
    torch.manual_seed(0)
    x, rois = torch.rand(2, 3, 8, 8), torch.tensor([[0.0, 1, 1, 6, 7], [1, 2, 0, 9, 5], [1, 3, 3, 4, 4]])
    lists = [rois[:1, 1:], rois[1:, 1:]]
    for scripted, function, arguments in (
        (torch.jit.script(with_defaults), with_defaults, (x, rois)),
        (torch.jit.script(with_all), with_all, (x, lists, (2, 3))),
        (torch.jit.script(roi_align), roi_align, (x, rois, (2, 2), 0.5)),
        (torch.jit.script(roi_align), roi_align, (x, lists, 2)),
        (torch.jit.script(roi_pool), roialign.roi_pool, (x, rois, 2, 0.5)),
        (torch.jit.script(prroi_pool), roialign.prroi_pool, (x, lists, 2)),
    ):
        print(float((scripted(*arguments) - function(*arguments)).abs().max()))
