"""The first calls of a user: the native core of the package that is installed here, held to the reference."""

import pathlib
import shutil

import torch

import roialign
import roialign._core

core = pathlib.Path(roialign._core.__file__)
assert core.is_relative_to(pathlib.Path.cwd()), f"{core}: not of this environment"
assert not any(map(shutil.which, ("cc", "gcc", "g++", "c++", "clang"))), "there is a compiler"

generator = torch.Generator().manual_seed(0)
corners = torch.rand(20, 2, 2, generator=generator).mul(40).sub(4).sort(dim=1).values
boxes = torch.cat([torch.arange(20).remainder(2)[:, None], corners.flatten(1)], 1)
turned = torch.cat([boxes, torch.rand(20, 1, generator=generator) * 360], 1)
offset = torch.randn(20, 2, 3, 3, generator=generator)
pools = {
    "roi_align": lambda map: roialign.roi_align(map, boxes, 3, 0.5, aligned=True),
    "roi_align, max": lambda map: roialign.roi_align(map, boxes, 3, 0.5, 2, mode="max"),
    "roi_pool": lambda map: roialign.roi_pool(map, boxes, 3, 0.5),
    "prroi_pool": lambda map: roialign.prroi_pool(map, boxes, 3, 0.5),
    "ps_roi_align": lambda map: roialign.ps_roi_align(map, boxes, 3, 0.5),
    "roi_align_rotated": lambda map: roialign.roi_align_rotated(map, turned, 3, 0.5),
    "deform_roi_pool": lambda map: roialign.deform_roi_pool(map, boxes, offset, 3, 0.5),
}
for name, pool in pools.items():
    answers = []
    for backend in ("native", "reference"):
        map = torch.rand(2, 18, 18, 20, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with roialign.backends.use(backend):
            pooled = pool(map)
        pooled.square().sum().backward()
        answers.append((pooled.detach(), map.grad))
    for ours, truth in zip(*answers, strict=True):
        bound = 1e-5 * max(1.0, float(truth.abs().max()))  # float32 in another order of sums, as in tests/helpers.py
        torch.testing.assert_close(ours, truth, rtol=0, atol=bound, msg=lambda said, name=name: f"{name}: {said}")
print("passed: PyTorch", torch.__version__, "kernels", roialign._core.kernels())
