"""Each row of the design's error table; nothing that a caller passes may crash or hang the process."""

from __future__ import annotations

import functools
import json
import re

import pytest
import torch
from torch import Tensor

import roialign
from helpers import as_rotated, for_bins, generic_case, rows, run_python, some_offset
from hostile import CALLS
from hostile_forms import FORMS
from roialign import (
    deform_roi_pool,
    prroi_pool,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    roi_align_rotated,
    roi_pool,
)
from roialign.boxes import whole_index

INF, NAN = float("inf"), float("nan")
POOLS = {
    "avg": lambda input, rois: roi_align(input, rois, 2),
    "avg fixed": lambda input, rois: roi_align(input, rois, 2, 1.0, 2, True),
    "max": lambda input, rois: roi_align(input, rois, 2, mode="max"),
    "prroi": lambda input, rois: prroi_pool(input, rois, 2),
    "pool": lambda input, rois: roi_pool(input, rois, 2),
    "ps_align": lambda input, rois: ps_roi_align(for_bins(input, 4), rois, 2),
    "ps_pool": lambda input, rois: ps_roi_pool(for_bins(input, 4), rois, 2),
    "rotated": lambda input, rois: roi_align_rotated(input, as_rotated(rois), 2),
    "rotated fixed": lambda input, rois: roi_align_rotated(input, as_rotated(rois), 2, 1.0, 2, aligned=False),
    "deform": lambda input, rois: deform_roi_pool(input, rois, some_offset(rois, 2, 2), 2),
}
CONSTANT = ("pool", "ps_pool")  # in the boxes


@functools.cache
def hostile_answers(backend: str) -> dict[str, tuple[str, str]]:
    """What came of each hostile call, all made in one process of its own; a crash leaves calls without an answer."""
    code = "import hostile; hostile.main()"
    try:
        output = run_python(code, backend, timeout=300)
    except AssertionError as crash:
        output = str(crash)
    answers = {}
    for line in output.splitlines():
        if line.startswith("{"):
            answer = json.loads(line)
            if "raised" in answer:
                answers[answer["name"]] = (answer["raised"], answer["message"])
    return answers


@pytest.mark.xdist_group("hostile")
@pytest.mark.parametrize("name", CALLS)
def test_hostile_call(backend: str, name: str) -> None:
    answers = hostile_answers(backend)
    assert name in answers, f"the process did not survive this call or one before; {len(answers)} were answered"
    raised, message = answers[name]
    if backend == "triton" and name in FORMS and "cannot serve this call" in message:  # no kernel; it said so
        return
    if backend == "triton" and CALLS[name].error is IndexError:  # nobody waits for the device: such a box gives NaN
        assert raised == "nothing", message
        return
    assert raised == CALLS[name].error.__name__, message
    missing = [word for word in CALLS[name].words if word not in message]
    assert not missing, f"{missing} not in {message!r}"


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("column", [1, 2, 3, 4])
def test_a_box_that_is_not_finite(pool: str, value: float, column: int) -> None:
    """Its output is NaN and its gradient 0; its neighbours do not notice."""
    clean, rois = generic_case()
    bad = rois.clone()
    bad[2, column] = value
    input, leaf = clean.clone().requires_grad_(), bad.clone().requires_grad_(pool not in CONSTANT)
    pooled = POOLS[pool](input, leaf)
    assert pooled[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(pooled[others], POOLS[pool](clean, rois[others]), rtol=0, atol=1e-10)
    pooled.nansum().backward()

    reference = clean.clone().requires_grad_()
    leaf_others = rois[others].requires_grad_(pool not in CONSTANT)
    POOLS[pool](reference, leaf_others).sum().backward()
    torch.testing.assert_close(input.grad, reference.grad, rtol=0, atol=1e-10)
    if pool not in CONSTANT:
        assert torch.equal(leaf.grad[2], torch.zeros(5, dtype=torch.float64))
        torch.testing.assert_close(leaf.grad[others], leaf_others.grad, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("pool", POOLS)
def test_a_bad_box_gives_no_gradient_whatever_arrives(pool: str) -> None:
    """Even where the gradient that arrives is itself NaN at the bad box."""
    input, rois = generic_case()
    rois[2, 1] = NAN
    input.requires_grad_()
    pooled = POOLS[pool](input, rois)
    grad = torch.ones_like(pooled)
    grad[2] = NAN
    pooled.backward(grad)
    assert input.grad is not None
    assert input.grad.isfinite().all()
    assert input.grad.abs().sum() > 0


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_finite_boxes(pool: str, dtype: torch.dtype) -> None:
    """Near the end of the floating range a size may overflow: the answer is a mean of the map's values, 0, or NaN."""
    huge = torch.finfo(dtype).max
    input = torch.ones(1, 1, 4, 4, dtype=dtype, requires_grad=True)
    rois = rows((-huge, -huge, huge, huge), (0, 0, huge, huge), (huge, 0, -huge, 4), (0, huge, 2, huge), dtype=dtype)
    pooled = POOLS[pool](input, rois)
    assert (pooled.isnan() | ((pooled >= 0) & (pooled <= 1 + 1e-6))).all()
    pooled.nansum().backward()
    assert input.grad is not None
    assert input.grad.isfinite().all()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("pool", POOLS)
def test_an_index_error_leaves_no_mark(pool: str) -> None:
    """After the error the same call with good boxes works, and batch indices up to N - 1 are good."""
    input, rois = generic_case()
    bad = rois.clone()
    expected = POOLS[pool](input, rois)
    for value, shown in ((2.0, "2"), (0.5, "0.5"), (NAN, "nan"), (-INF, "-inf")):
        bad[4, 0] = value
        with pytest.raises(IndexError, match=rf"row 4 has batch index {re.escape(shown)}, but .*N = 2"):
            POOLS[pool](input, bad)
    assert torch.equal(POOLS[pool](input, rois), expected)


def test_what_is_no_index_is_minus_one() -> None:
    column = torch.tensor([0, 2, 3, -1, -2, 0.5, NAN, INF, -INF])
    assert whole_index(column, 3).tolist() == [0, 2, *[-1] * 7]


def test_a_single_box_in_a_list_counts() -> None:
    for boxes in ([torch.ones(1, 4), torch.ones(0, 4)], [torch.ones(0, 4), torch.ones(2, 4)]):
        with pytest.raises(ValueError, match=rf"boxes: got {sum(map(len, boxes))} boxes on an empty feature map"):
            roi_align(torch.ones(2, 1, 0, 4), boxes, 2)
    assert roi_align(torch.ones(2, 1, 0, 4), [torch.ones(0, 4)] * 2, 2).shape == (0, 1, 2, 2)


def test_a_hint_is_given_to_whom_it_helps() -> None:
    """[K, 4] in place of [K, 5] is most likely one image's boxes; nothing else is."""
    hint = "(for one image, pass [boxes])"
    with pytest.raises(ValueError, match=re.escape(hint)):
        roi_align(torch.ones(1, 1, 4, 4), torch.ones(3, 4), 2)
    for boxes in (torch.ones(3, 6), torch.ones(4), torch.ones(1, 3, 4), [torch.ones(3, 5)], [torch.ones(1, 3, 4)]):
        with pytest.raises(ValueError, match="boxes") as raised:
            roi_align(torch.ones(1, 1, 4, 4), boxes, 2)
        assert hint not in str(raised.value)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_index_error_in_a_pyramid_and_under_vmap(mode: str) -> None:
    input, rois = generic_case()
    stacked = torch.stack([rois, rois])
    stacked[1, 3, 0] = 5
    with pytest.raises(IndexError, match=r"row 3 .*index 5.*N = 2"):
        torch.vmap(lambda boxes: roi_align(input, boxes, 2, mode=mode))(stacked)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("images", "channels"), [(0, 3), (2, 0), (0, 0), (2, 3)])
def test_nothing_gives_nothing(pool: str, images: int, channels: int) -> None:
    """No boxes or no channels is a legal call, on an empty map too, in each format; the result is of the right kind."""
    for height, width in ((4, 4), (0, 4), (0, 0)):
        input = torch.ones(images, channels, height, width, dtype=torch.bfloat16)
        for none in (torch.zeros(0, 5), [torch.zeros(0, 4)] * images, torch.zeros(0, 5, dtype=torch.int64)):
            pooled = POOLS[pool](input, none)
            assert pooled.shape == (0, channels, 2, 2)
            assert pooled.dtype == torch.bfloat16
    if images:
        pooled = POOLS[pool](torch.ones(images, channels, 8, 8), rows((0, 1, 1, 5, 5), (1, 2, 2, 6, 6)).float())
        rounded = 2.0**-22 * pool.startswith("rotated")  # its weights are not multiples of a power of two
        torch.testing.assert_close(pooled, torch.ones(2, channels, 2, 2), rtol=0, atol=rounded)


MEASURE = """
import resource, sys, time, torch, roialign
input = torch.ones(1, 2, 8, 8, requires_grad=True)
def pool(box, ratio):
    rois = torch.tensor([[0.0, *box]], requires_grad=True)
    for aligned in (False, True):
        roialign.roi_align(input, rois, 7, 1.0, ratio, aligned, mode=sys.argv[1]).sum().backward()
pool((1, 1, 6, 6), 2), pool((1, 1, 6, 6), 0), pool((-9, -9, 60, 60), 0), pool((1, 1, 6, 6), 60)
for ratio, side in ((0, 1e9), (100_000, 8.0), (100_000, 1e9), (0, 1e30), (2**31 - 1, 1e9)):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    pool((-side / 2, -side / 2, side / 2, side / 2), ratio)
    pool((0, 0, side, side), ratio)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(ratio, side, grown / 1024, time.perf_counter() - start, flush=True)
"""


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_work_is_bounded_by_the_map(backend: str, mode: str) -> None:
    """Forward and backward, in seconds and in megabytes. Visiting the samples would take 1e10 steps and more."""
    lines = run_python(MEASURE, backend, mode, timeout=120).splitlines()
    assert len(lines) == 5
    for line in lines:
        _, _, megabytes, seconds = map(float, line.split())
        assert megabytes < 64, line
        assert seconds < 30, line  # a hang, not a speed


CROWD = """
import resource, sys, torch, roialign
rois = torch.tensor([[0.0, 0, 0, 4096, 2]]).repeat(10, 1)
peaks = []
for few in (rois[:2], rois):
    roialign.roi_align(torch.ones(1, 1, 3, 4097), few, 7, mode=sys.argv[1])
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[1] - peaks[0])
"""


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_memory_is_bounded_whatever_the_boxes(backend: str, mode: str) -> None:
    """Eight more boxes as wide as a wide map: with a tiny output they may not cost hundreds of megabytes each."""
    assert float(run_python(CROWD, backend, mode, timeout=120)) < 400


def test_scale_and_box_may_overflow_together(backend: str) -> None:
    """Finite numbers whose product is not, in float64: as a coordinate that is not finite. In float32 alone it is."""
    assert backend in roialign.backends.available()
    box = torch.tensor([[0, 0, 0, 3e38, 3e38]])
    assert roi_align(torch.ones(1, 1, 4, 4), box, 2, 1e300).isnan().all()
    assert roi_align(torch.ones(1, 1, 4, 4), box, 2, 1e30).eq(0).all()  # 1e-68 of the samples are on the map


def test_what_the_scale_makes_small_is_no_overflow(backend: str) -> None:
    """Finite is what counts in cells, whatever it is in pixels: 2e300 of them are two cells at scale 1e-300."""
    assert backend in roialign.backends.available()
    map = torch.rand(1, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = roi_align(map, rows((0, 0, 2, 2)), 2, 1.0, 2)
    for box, scale in (
        ((0, 0, 2, 2e300), (1e-300, 1.0)),
        ((0, 0, 2e300, 2), (1.0, 1e-300)),
        ((0, 0, 2e300, 2e-10), (1e10, 1e-300)),
        ((0, 0, 2e-10, 2e300), (1e-300, 1e10)),
    ):
        torch.testing.assert_close(roi_align(map, rows(box), 2, scale, 2), expected, rtol=1e-12, atol=0)
        assert roi_align(map, rows(box), 2, 1e10, 2).isnan().all()


def test_edges_may_be_finite_and_the_size_not(backend: str) -> None:
    """Such a box is as one that is not finite: NaN, and no gradient. One far out with a size is merely off the map."""
    assert backend in roialign.backends.available()
    for pool in POOLS.values():
        for box in ((-1e308, 0, 1e308, 1), (0, -1e308, 1, 1e308)):
            map = torch.ones(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
            out = pool(map, rows(box))
            assert out.isnan().all()
            out.sum().backward()
            assert map.grad is not None
            assert map.grad.eq(0).all()
        for box in ((1e308, 0, 1.5e308, 1), (0, 1e308, 1, 1.5e308)):
            assert pool(torch.ones(1, 1, 4, 4, dtype=torch.float64), rows(box)).eq(0).all()


def test_a_nan_in_the_map_stays_where_it_is(backend: str) -> None:
    """It reaches the bins that read it, and those only: not through a weight of 0 that multiplies it."""
    assert backend in roialign.backends.available()
    clean = torch.rand(1, 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    far, near = rows((1, 1, 3.9, 3.9)), rows((6.2, 6.2, 7.8, 7.8))
    for value in (NAN, INF, -INF):
        dirty = clean.clone()
        dirty[0, 0, 7, 7] = value
        for pool in POOLS.values():
            expected: Tensor = pool(clean, far)
            torch.testing.assert_close(pool(dirty, far), expected, rtol=0, atol=1e-10)
            touched = pool(dirty, near)
            assert touched[:, 1].isfinite().all()
            if value != -INF:  # a maximum does not see -inf beside larger values
                assert not touched[:, 0].isfinite().all()
