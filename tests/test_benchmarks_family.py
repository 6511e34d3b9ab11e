"""The benchmarks of signals, volumes and of operators other than roi_align: on what, and against whom."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import runner
from benchmarks.directions import DIRECTIONS, Mode
from benchmarks.peers import OURS, TRITON, Mmcv, Upright
from benchmarks.report import FLOOR, FLOOR_AT_HAND, PLAIN_FLOOR
from benchmarks.workloads import FAMILY, WORKLOADS, Case, Map, make_case

import oracle_gather
from test_benchmarks import SMALL


def test_the_family_is_pooled_in_its_shapes() -> None:
    """By the public functions: map, rows of boxes, output."""
    found = {}
    for workload in FAMILY:
        case = make_case(workload, Mode())
        found[workload.name] = tuple(case.maps[0].shape), case.rois.shape[1], workload.pooled_size()
    assert found == {
        "rfcn_voc_align": ((1, 1029, 38, 63), 5, (300, 21, 7, 7)),
        "rfcn_coco_align": ((1, 3969, 38, 63), 5, (300, 81, 7, 7)),
        "rfcn_voc_pool": ((1, 1029, 38, 63), 5, (300, 21, 7, 7)),
        "rfcn_coco_pool": ((1, 3969, 38, 63), 5, (300, 81, 7, 7)),
        "rotated": ((1, 256, 64, 64), 6, (512, 256, 7, 7)),
        "deformable": ((1, 256, 64, 64), 5 + 2 * 49, (512, 256, 7, 7)),
        "volumes": ((1, 32, 64, 64, 64), 7, (200, 32, 7, 7, 7)),
        "signals": ((1, 256, 4096), 3, (200, 256, 7)),
    }


@pytest.mark.parametrize("rank", [1, 3])
def test_sides_of_signals_and_volumes_are_the_roots_of_what_they_cover(rank: int) -> None:
    (small,) = (it for it in FAMILY if it.rank == rank)
    wide = replace(small, maps=(Map((40_000,) * rank, 4),), boxes=20_000)
    low, high = wide.make_boxes().double().chunk(2, 1)
    inside = (low > 0).all(1) & (high < 160_000).all(1)
    assert inside.double().mean() > 0.95
    side = (high - low)[inside].prod(1) ** (1 / rank)
    shortest, longest = wide.sides
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    place = (side / shortest).log() / math.log(longest / shortest)
    torch.testing.assert_close(place.quantile(quarters), quarters, atol=0.02, rtol=0)


def test_rotated_boxes_are_the_upright_ones_turned_by_any_angle() -> None:
    rotated = replace(WORKLOADS["rotated"], boxes=20_000)
    index, centre, size, angle = rotated.make_rois().split([1, 2, 2, 1], 1)
    assert (index == 0).all()
    torch.testing.assert_close(torch.cat([centre - size / 2, centre + size / 2], 1), rotated.make_boxes())
    quarters = torch.tensor([0.25, 0.5, 0.75])
    torch.testing.assert_close((angle[:, 0] / math.tau + 0.5).quantile(quarters), quarters, atol=0.02, rtol=0)


def test_bins_move_by_a_tenth_of_the_box() -> None:
    workload = WORKLOADS["deformable"]
    boxes, offset = workload.make_rois()[:, 1:].split([4, 2 * 49], 1)
    assert torch.equal(boxes, workload.make_boxes())
    assert offset.std().item() == pytest.approx(0.1, rel=0.02)
    assert offset.mean().item() == pytest.approx(0, abs=0.002)


def test_what_is_eased_is_compared_with_ours_on_what_is_left() -> None:
    """The upright boxes' poolings agree with ours of angle 0, and do not with ours of any angle."""

    class Uneased(Upright):
        name = "uneased"

        def eased(self, case: Case) -> Case:
            return case

    for name in ("rotated", "deformable"):
        result = runner.measure(SMALL[name], "forward", DIRECTIONS["forward"], [Upright(), Uneased()], 1, 0)
        assert set(result.others) == {"our roi_align", FLOOR, PLAIN_FLOOR, FLOOR_AT_HAND}
        assert result.refused["uneased"].startswith("disagrees")


def test_mmcv_is_called_in_its_own_convention(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in takes what mmcv's function takes, all by place, and answers by plain loops."""

    def roi_align_rotated(*arguments: Any) -> torch.Tensor:
        x, rois, size, scale, ratio, aligned, clockwise = arguments
        rois = torch.cat([rois[:, :5], -rois[:, 5:] if clockwise else rois[:, 5:]], 1)
        return oracle_gather.roi_align_rotated(x, rois, size, (scale, scale), ratio, aligned)

    monkeypatch.setitem(sys.modules, "mmcv.ops", SimpleNamespace(roi_align_rotated=roi_align_rotated))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "mmcv", SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setattr(Mmcv, "packages", ())
    result = runner.measure(SMALL["rotated"], "forward", DIRECTIONS["forward"], [Mmcv()], 1, 0)
    assert not result.refused
    assert set(result.others) == {"mmcv", FLOOR, PLAIN_FLOOR, FLOOR_AT_HAND}


def test_what_our_kernels_on_a_gpu_do_not_serve_is_not_planned_there() -> None:
    for workload in FAMILY:
        assert TRITON.why_not(workload, Mode(device="cuda")).startswith("cannot do ")
        assert not OURS.why_not(workload, Mode())
    pairs = runner.make_plan(directions=["box_gradient"]).pairs
    planned = {workload.name for workload, _ in pairs}
    assert {it.name for it in FAMILY} - planned == {"rfcn_voc_pool", "rfcn_coco_pool"}  # there is no such gradient
