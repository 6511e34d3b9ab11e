"""roi_align forward: against loops, torchvision, ONNX, grid_sample and numbers worked by hand."""

from __future__ import annotations

import onnx.backend.test.case.node.roialign as onnx_cases
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import oracle
import roialign
from helpers import DTYPES, assert_pooled, by_image, generic_case, rows
from roialign import roi_align
from strategies import Case, cases

pytestmark = pytest.mark.usefixtures("backend")

WIDE = (torch.float32, torch.float64)
MODES = ("avg", "max")


def random_boxes(seed: int, count: int, images: int, side: float, dtype: torch.dtype) -> Tensor:
    """Boxes inside, across and outside a map of this side, some without area, none inverted."""
    generator = torch.Generator().manual_seed(seed)
    corner = (torch.rand(count, 2, generator=generator, dtype=torch.float64) * 2 - 0.5) * side
    extent = torch.rand(count, 2, generator=generator, dtype=torch.float64) ** 2 * side * 1.2
    extent[::17] = 0
    image = torch.randint(images, (count, 1), generator=generator).double()
    return torch.cat([image, corner, corner + extent], 1).to(dtype)


@pytest.mark.parametrize("mode", MODES)
@given(case=cases())
def test_equals_the_loop(mode: str, case: Case) -> None:
    arguments = (case.size, case.scale, case.ratio, case.aligned)
    actual = roi_align(case.input, case.rois, *arguments, mode=mode)
    assert_pooled(actual, oracle.roi_align(case.input, case.rois, *arguments, mode), case.input)


@pytest.mark.parametrize("mode", MODES)
@given(case=cases(dtypes=WIDE, box_dtypes=WIDE, layouts=("contiguous",), minimum=1), ratio=st.integers(20, 64))
def test_fine_grids_equal_the_loop(mode: str, case: Case, ratio: int) -> None:
    """More samples than cells: they are counted, not visited, and that must not show."""
    rois, size = case.rois[:1], (1, 2)
    actual = roi_align(case.input, rois, size, case.scale, ratio, case.aligned, mode=mode)
    assert_pooled(actual, oracle.roi_align(case.input, rois, size, case.scale, ratio, case.aligned, mode), case.input)


@pytest.mark.parametrize("dtype", WIDE)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 8), ratio=st.integers(-1, 4), aligned=st.booleans())
def test_equals_torchvision(dtype: torch.dtype, seed: int, size: int, ratio: int, aligned: bool) -> None:
    input = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    rois = random_boxes(seed, 40, 2, 60.0, dtype)
    expected = torchvision.ops.roi_align(input, rois, size, 0.25, ratio, aligned)
    assert_pooled(roi_align(input, rois, size, 0.25, ratio, aligned), expected, input)


@given(case=cases(minimum=1))
def test_a_list_of_boxes_is_the_same_as_rows(case: Case) -> None:
    order = case.rois[:, 0].argsort(stable=True)
    boxes = by_image(case.rois, case.input.shape[0])
    arguments = (case.size, case.scale, case.ratio, case.aligned)
    expected = roi_align(case.input, case.rois[order], *arguments)
    assert_pooled(roi_align(case.input, boxes, *arguments), expected, case.input)
    assert_pooled(roi_align(case.input, tuple(boxes), *arguments), expected, case.input)


@given(case=cases(minimum=1), extra=st.integers(0, 5))
def test_boxes_do_not_depend_on_each_other(case: Case, extra: int) -> None:
    """A box's answer is the same alone and in company, in any order."""
    arguments = (case.size, case.scale, case.ratio, case.aligned)
    together = roi_align(case.input, torch.cat([case.rois.flip(0)] * (extra + 1)), *arguments)[: len(case.rois)].flip(0)
    alone = torch.cat([roi_align(case.input, row[None], *arguments) for row in case.rois])
    assert_pooled(together, alone, case.input)


def test_the_tutorial_by_hand() -> None:
    """Cell (y, x) holds 8y + x, so a sample at (y, x) inside the map is 8y + x and a bin is 8y + x of its centre.

    Scale 5: the box spans x from 0 to 4.375 and y from 1.875 to 3.125. Along y it is 1.25 long, bins of 0.625 with
    centres at 2.1875 and 2.8125; along x bins of 2.1875 with centres at 1.09375 and 3.28125.
    """
    ramp = torch.arange(64.0).reshape(1, 1, 8, 8)
    pooled = roialign.RoIAlign(output_size=2, sampling_ratio=2, spatial_scale=5)(
        ramp, [torch.tensor([[0.0, 0.375, 0.875, 0.625]])]
    )
    expected = [[17.5 + 1.09375, 17.5 + 3.28125], [22.5 + 1.09375, 22.5 + 3.28125]]
    assert_pooled(pooled, torch.tensor([[expected]]), ramp)


@pytest.mark.parametrize(
    ("box", "size", "ratio", "aligned", "avg", "maximum"),
    [
        # The row 0 10 20 30. Samples at 0.5 and 1.5 | 2.5 and 3.5; the last is clamped to cell 3, worth 30.
        ((0, 0, 4, 1), (1, 2), 2, False, [10.0, 27.5], [15.0, 30.0]),
        # Shifted by half a cell: samples at 0 and 1 | 2 and 3.
        ((0, 0, 4, 1), (1, 2), 2, True, [5.0, 25.0], [10.0, 30.0]),
        # Samples at 3.5, 4.5, 5.5 and 6.5: beyond 4 they count 0, but they do count.
        ((3, 0, 7, 1), (1, 1), 4, False, [7.5], [30.0]),
        # Samples at -1.5, -0.5, 0.5 and 1.5: 0 outside, 0 clamped, 5, 15.
        ((-2, 0, 2, 1), (1, 1), 4, False, [5.0], [15.0]),
        # A sample exactly at 4 is still inside (closed range), worth 30; one at 5 is not.
        ((3.5, 0, 4.5, 1), (1, 1), 1, False, [30.0], [30.0]),
        ((4.5, 0, 5.5, 1), (1, 1), 1, False, [0.0], [0.0]),
        # No extent, not aligned: one cell long all the same, so its sample lies at 1.5.
        ((1, 0, 1, 0), (1, 1), 0, False, [15.0], [15.0]),
        # No extent, aligned, adaptive: there is no sample.
        ((1, 0, 1, 0), (1, 1), 0, True, [0.0], [0.0]),
        # No extent, aligned, one sample: it lies on the box, at 1 - 0.5.
        ((1, 0.5, 1, 0.5), (1, 1), 1, True, [5.0], [5.0]),
        # No extent, aligned: all samples lie exactly at 4, the border, and are inside. At 4.1 none is.
        ((4.5, 0.5, 4.5, 0.5), (1, 1), 4, True, [30.0], [30.0]),
        ((4.6, 0.5, 4.6, 0.5), (1, 1), 4, True, [0.0], [0.0]),
        # The same at the other border, -1.
        ((-0.5, 0.5, -0.5, 0.5), (1, 1), 4, True, [0.0], [0.0]),
        # Inverted, aligned, fixed grid: the window from 4 down to 0, the bins in that order.
        ((4, 0, 0, 1), (1, 2), 2, True, [25.0, 5.0], [30.0, 10.0]),
        # Inverted and adaptive: no sample.
        ((4, 0, 0, 1), (1, 2), 0, True, [0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_one_row_by_hand(
    box: tuple[float, ...], size: tuple[int, int], ratio: int, aligned: bool, avg: list[float], maximum: list[float]
) -> None:
    for dtype in WIDE:
        row = torch.tensor([0.0, 10.0, 20.0, 30.0], dtype=dtype).expand(1, 1, 3, 4)
        for mode, expected in (("avg", avg), ("max", maximum)):
            pooled = roi_align(row, rows(box, dtype=dtype), size, 1.0, ratio, aligned, mode=mode)
            assert_pooled(pooled, torch.tensor(expected).reshape(1, 1, *size), row)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", WIDE)
def test_many_samples_rounded_onto_a_border(dtype: torch.dtype, mode: str) -> None:
    """Boxes so narrow that neighbouring samples round to one position: which of them are inside is still exact."""
    input = 1 + torch.arange(12, dtype=dtype).reshape(1, 1, 3, 4)
    step = torch.finfo(dtype).eps
    rois = rows(*[(edge, 1, edge + width * step, 2) for edge in (4.5, -0.5) for width in (0, 4, 8, 64)], dtype=dtype)
    rois = torch.cat([rois, rois[:, [0, 3, 2, 1, 4]]])  # and inverted
    arguments = ((1, 2), (1.0, 1.0), 40, True)
    actual = roi_align(input, rois, *arguments, mode=mode)
    assert_pooled(actual, oracle.roi_align(input, rois, *arguments, mode), input)


@pytest.mark.parametrize(
    ("box", "ratio", "expected"),
    [
        ((1, 1, 3, 3), 4, -3),
        ((2, 1, 9, 3), 4, 0),
        ((0, 1, 3.9, 3), 20, -3),
        ((-1.15, 1, 3, 3), 20, 0),  # one sample at -1.05, the next at -0.84
        ((-1.9, 1, 3, 3), 20, 0),  # some between -2 and -1
        ((1, 1, 4.15, 3), 20, 0),  # one at 4.07, the one before at 3.91
        ((3.9, 1, 0.5, 3), 20, -3),  # inverted, and so aligned
        ((4.65, 1, 1.5, 3), 20, 0),  # the first at 4.07
    ],
)
def test_a_maximum_with_samples_outside_is_not_negative(box: tuple[float, ...], ratio: int, expected: float) -> None:
    """A sample outside counts 0 and so beats every negative value; with all samples inside it cannot."""
    negative = torch.full((1, 1, 4, 4), -3.0)
    inverted = box[2] < box[0]
    pooled = roi_align(negative, rows(box), 1, 1.0, ratio, aligned=inverted, mode="max")
    assert_pooled(pooled.flatten(), torch.tensor([float(expected)]), negative)


@pytest.mark.parametrize("side", [8.0, 1e9])
def test_a_huge_adaptive_box_by_hand(side: float) -> None:
    """Samples lie one pixel apart, from -side/2 + 0.5 on. Per axis those from -0.5 to 7.5 are inside, 9 of 1e9; of the
    box of side 8 those from -0.5 to 3.5, 5 of 8."""
    ones = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    inside = 5 if side == 8 else 9
    box = rows((-side / 2, -side / 2, side / 2, side / 2))
    pooled = roi_align(ones, box, 1)
    torch.testing.assert_close(pooled.item() * side**2, float(inside**2), rtol=1e-9, atol=0)
    assert roi_align(ones, box, 1, mode="max").item() == pytest.approx(1)


def test_very_fine_grids_approach_the_integral() -> None:
    input, rois = generic_case()
    rois = rois[[0, 3]]  # inside the map, where RoIAlign and Precise RoI pooling mean the same
    fine = roi_align(input, rois, 2, sampling_ratio=100_000)
    narrow = rois[1:].clone()
    narrow[:, 3:] = narrow[:, 1:3] + 1  # without alignment a box is at least one cell long
    exact = roialign.prroi_pool(input, torch.cat([rois[:1], narrow]), 2)
    torch.testing.assert_close(fine, exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("aligned", [False, True])
def test_onnx_published_vectors(aligned: bool) -> None:
    recorded = _onnx_case(f"test_roialign_aligned_{str(aligned).lower()}")
    input, boxes, expected = recorded
    for mode_input in (input, input.double()):
        actual = roi_align(mode_input, [boxes], 5, 1.0, 2, aligned)
        torch.testing.assert_close(actual.float(), expected, rtol=0, atol=1e-4)  # published to four digits


def test_onnx_maximum_follows_another_rule() -> None:
    """ONNX takes the maximum of the weighted corners, we of the interpolated samples: onnx issue 4764."""
    input, boxes, theirs = _onnx_case("test_roialign_mode_max")
    ours = roi_align(input, [boxes], 5, 1.0, 2, False, mode="max")
    whole = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
    assert_pooled(ours, oracle.roi_align(input, whole, (5, 5), (1.0, 1.0), 2, False, "max"), input)
    assert (ours - theirs).abs().max() > 0.1


def _onnx_case(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, boxes and the published output of one of ONNX's own test cases."""
    found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def record(node: object, inputs: list[object], outputs: list[object], name: str) -> None:
        found[name] = (torch.tensor(inputs[0]), torch.tensor(inputs[1]), torch.tensor(outputs[0]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_cases, "expect", record)
        getattr(onnx_cases.RoiAlign, name.replace("test_roialign", "export_roialign"))()
    return found[name]


@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", WIDE)
def test_a_ramp_gives_bin_centres(ratio: int, dtype: torch.dtype) -> None:
    """detectron2's idea: interpolation and mean of a linear map are exact, so a bin is the map at its centre."""
    ramp = (10 * torch.arange(20)[:, None] + torch.arange(30)).to(dtype)[None, None]
    box = rows((2.3, 3.1, 21.5, 16.3), dtype=dtype)
    y = 3.1 - 0.5 + (torch.arange(4, dtype=torch.float64) + 0.5) * (13.2 / 4)
    x = 2.3 - 0.5 + (torch.arange(3, dtype=torch.float64) + 0.5) * (19.2 / 3)
    expected = (10 * y[:, None] + x)[None, None]
    assert_pooled(roi_align(ramp, box, (4, 3), 1.0, ratio, True), expected, ramp)


def test_an_enlarged_map_pools_the_same() -> None:
    """detectron2's idea: with alignment, a map resized to 2x and boxes of 2x mean the same region."""
    ramp = (3 * torch.arange(12)[:, None] + torch.arange(16)).double()[None, None]
    large = torch.nn.functional.interpolate(ramp, scale_factor=2, mode="bilinear", align_corners=False)
    box = rows((2.2, 2.7, 11.1, 8.9))
    double = torch.cat([box[:, :1], box[:, 1:] * 2], 1)
    assert_pooled(roi_align(large, double, 5, 1.0, 2, True), roi_align(ramp, box, 5, 1.0, 2, True), ramp)
    assert_pooled(roi_align(large, box, 5, 2.0, 2, True), roi_align(ramp, box, 5, 1.0, 2, True), ramp)


@given(seed=st.integers(0, 2**31))
def test_one_sample_a_bin_is_grid_sample(seed: int) -> None:
    """With one sample per bin RoIAlign reads the map at the bins' centres, as grid_sample does."""
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(1, 2, 9, 11, generator=generator, dtype=torch.float64)
    low = torch.rand(2, generator=generator, dtype=torch.float64) * 4 + 0.5
    x, y = low.tolist()
    width, height = 5.3, 3.7
    centre_x = x + (torch.arange(4) + 0.5) * width / 4  # in pixels, which grid_sample counts from the map's edge
    centre_y = y + (torch.arange(3) + 0.5) * height / 3
    grid = torch.stack(
        [(2 * centre_x / 11 - 1).expand(3, 4), (2 * centre_y / 9 - 1)[:, None].expand(3, 4)], -1
    ).double()
    expected = torch.nn.functional.grid_sample(input, grid[None], padding_mode="border", align_corners=False)
    actual = roi_align(input, rows((x, y, x + width, y + height)), (3, 4), 1.0, 1, True)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)  # the grid above is rounded to float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_module_is_the_function(dtype: torch.dtype, mode: str) -> None:
    input, rois = generic_case(dtype=dtype)
    module = roialign.RoIAlign((3, 2), 0.5, 2, True, mode=mode)
    assert_pooled(module(input, rois), roi_align(input, rois, (3, 2), 0.5, 2, True, mode=mode), input)
    assert f"mode='{mode}'" in repr(module)


def test_numpy_integers_and_lists_are_sizes() -> None:
    input, rois = generic_case()
    numpy = pytest.importorskip("numpy")
    expected = roi_align(input, rois, (3, 2), 1.0, 2)
    assert torch.equal(roi_align(input, rois, [3, 2], numpy.float64(1.0), numpy.int64(2)), expected)
    assert torch.equal(roi_align(input, rois, torch.Size([3, 2]), 1, 2), expected)
    assert torch.equal(roi_align(input, rois, (3, 2), 1.0, -7), roi_align(input, rois, (3, 2)))
