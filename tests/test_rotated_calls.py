"""Every way to call roi_align_rotated: forms of boxes, wrong ones, modules, a pyramid, transforms of torch.func."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import roialign
from helpers import assert_pooled, by_image
from roialign import backends, roi_align_rotated
from test_rotated import some_boxes, some_map

pytestmark = pytest.mark.usefixtures("backend")


def test_a_list_of_boxes_is_the_same_as_rows() -> None:
    input, rois = some_map(), some_boxes(20)
    order = rois[:, 0].argsort(stable=True)
    expected = roi_align_rotated(input, rois[order], 3, 0.8, 2)
    assert_pooled(roi_align_rotated(input, by_image(rois, 2), 3, 0.8, 2), expected, input)
    nothing = roi_align_rotated(input, [torch.zeros(0, 5), torch.zeros(0, 5)], 3)
    assert nothing.shape == (0, 3, 3, 3)


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        (torch.zeros(2, 5), r"Tensor\[K, 6\].*cx, cy, w, h, angle.*for one image, pass \[boxes\]"),
        (torch.zeros(2, 4), r"boxes: got a tensor of shape \(2, 4\); expected Tensor\[K, 6\]"),
        ([torch.zeros(2, 4)], r"boxes\[0\]: got a tensor of shape \(2, 4\).*Tensor\[L, 5\] per image"),
        (
            [torch.zeros(2, 5)] * 2,
            r"a list of 2 tensors for an input of 1 images; expected one Tensor\[L, 5\] per image",
        ),
    ],
)
def test_wrong_boxes(boxes: Tensor | list[Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        roi_align_rotated(torch.zeros(1, 1, 4, 4), boxes, 2)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"unit": "grad"}, ValueError, "unit: got 'grad'; expected 'degrees' or 'radians'"),
        ({"clockwise": 2}, TypeError, "clockwise: got 2; expected True or False"),
        ({"aligned": "yes"}, TypeError, "aligned: got 'yes'; expected True or False"),
    ],
)
def test_wrong_arguments(how: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        roi_align_rotated(torch.zeros(1, 1, 4, 4), torch.zeros(1, 6), 2, **how)  # type: ignore[arg-type]
    with pytest.raises(error, match=words):
        roialign.RoIAlignRotated(2, 1.0, 2, **how)  # type: ignore[arg-type]


def test_a_wrong_index_is_named() -> None:
    rois = some_boxes(3)
    rois[1, 0] = 7
    with pytest.raises(IndexError, match=r"boxes: row 1 has batch index 7.*N = 2"):
        roi_align_rotated(some_map(), rois, 2)


def test_an_adaptive_grid_that_cannot_be_seen_is_refused() -> None:
    """Whoever records plain ATen, or differentiates by torch.func, sees no sizes."""
    input, rois = some_map(), some_boxes(3)
    with backends.use("reference"), pytest.raises(ValueError, match="sampling_ratio: got 0, an adaptive grid"):
        torch.func.jvp(lambda rois: roi_align_rotated(input, rois, 2), (rois,), (rois,))
    fixed = torch.func.jvp(lambda rois: roi_align_rotated(input, rois, 2, 1.0, 2), (rois,), (torch.ones_like(rois),))
    step = 1e-6
    ends = [roi_align_rotated(input, torch.cat([rois[:, :1], rois[:, 1:] + s], 1), 2, 1.0, 2) for s in (step, -step)]
    torch.testing.assert_close(fixed[1], (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-6)


def test_vmap_over_boxes_and_maps(backend: str) -> None:
    """The operator joins the batches into one call, so that sizes are seen; the reference's own graph sees none."""
    inputs = torch.stack([some_map(seed=0), some_map(seed=1)])
    rois = torch.stack([some_boxes(5, seed=0), some_boxes(5, seed=1)])
    for ratio in (0, 2) if backend == "native" else (2,):
        expected = torch.stack([roi_align_rotated(*pair, 2, 0.9, ratio) for pair in zip(inputs, rois, strict=True)])
        actual = torch.vmap(lambda input, rois, ratio=ratio: roi_align_rotated(input, rois, 2, 0.9, ratio))(
            inputs, rois
        )
        assert_pooled(actual, expected, inputs)


def test_modules_are_the_functions() -> None:
    input, rois = some_map(), some_boxes(12)
    pooler = roialign.RoIAlignRotated((3, 2), 0.5, -1, aligned=False, clockwise=True, unit="radians")
    how = {"aligned": False, "clockwise": True, "unit": "radians"}
    assert_pooled(pooler(input, rois), roi_align_rotated(input, rois, (3, 2), 0.5, 0, **how), input)  # type: ignore[arg-type]
    assert repr(pooler) == (
        "RoIAlignRotated(output_size=(3, 2), spatial_scale=0.5, sampling_ratio=0, aligned=False, "
        "clockwise=True, unit='radians')"
    )


def test_a_pyramid_pools_each_box_on_the_level_of_its_area() -> None:
    """By width times height, however long and thin; in degrees, counter-clockwise, aligned."""
    fine = some_map(12, 16)
    coarse = torch.nn.functional.avg_pool2d(fine, 2)
    pooler = roialign.MultiScaleRoIAlign(
        ["0", "1"], 2, 2, canonical_scale=8, canonical_level=3, operator="roi_align_rotated"
    )
    # Areas 63 and 64 stand on either side of a level; corners would say otherwise.
    boxes = torch.tensor([[30, 20, 3, 21, 30], [30, 20, 32, 2, 30], [20, 30, 1, 1, 0], [20, 30, 20, 20, 77.0]]).double()
    pooled = pooler({"0": fine, "1": coarse}, [boxes, boxes[:0]], [(48, 64), (48, 64)])
    rois = torch.nn.functional.pad(boxes, (1, 0))
    each = [roi_align_rotated(map, rois, 2, scale, 2) for map, scale in ((fine, 0.25), (coarse, 0.125))]
    expected = torch.stack([each[level][row] for row, level in enumerate((0, 1, 0, 1))])
    assert_pooled(pooled, expected, fine)
    with pytest.raises(ValueError, match=r"operator: got 'deform_roi_pool'; expected one of .*'roi_align_rotated'"):
        roialign.MultiScaleRoIAlign(["0"], 2, 2, operator="deform_roi_pool")
