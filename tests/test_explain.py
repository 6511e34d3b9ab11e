"""What is explained is what is pooled: every intermediate against loops, differences and numbers worked by hand."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html import unescape
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

import oracle
import roialign
from roialign.explain import Explanation

# (map, box, output size, scale, sampling ratio, aligned): inside, across, outside, inverted, tiny, adaptive, one cell.
SETTINGS = [
    ((8, 8), (0, 3, 7, 8), (2, 2), 1.0, 2, False),
    ((8, 8), (20.5, 36.0, 90.0, 101.0), (2, 3), 1 / 16, 2, True),
    ((1, 1), (0, 0, 1, 1), (1, 1), 1.0, 0, False),
    ((5, 9), (-4.2, -1.1, 6.3, 11.7), (3, 4), 1.0, 3, False),
    ((8, 8), (15, 15, 20, 20), (2, 2), 1.0, 2, False),
    ((8, 8), (6.5, 2, 1.5, 6), (3, 3), 1.0, 2, True),
    ((8, 8), (6.5, 6, 1.5, 2), (2, 2), 1.0, 0, True),
    ((8, 8), (0.3, 1.1, 7.9, 6.2), (2, 2), 1.0, 0, True),
    ((6, 7), (2.0, 2.0, 2.1, 2.1), (2, 2), (0.5, 0.25), 1, False),
    ((12, 20), (3.3, 1.7, 77.0, 40.2), (14, 14), 0.25, 2, True),
]


def make(setting: tuple, mode: str = "avg", seed: int = 0) -> Explanation:
    size, box, bins, scale, ratio, aligned = setting
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return roialign.explain(values, box, bins, scale, ratio, aligned, mode=mode)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_output_is_the_operators(setting: tuple, mode: str) -> None:
    told = make(setting, mode)
    _, box, bins, scale, ratio, aligned = setting
    rois = torch.tensor([[0, *box]], dtype=torch.float64)
    features = told.map[None, None]
    pooled = roialign.roi_align(features, rois, bins, scale, ratio, aligned, mode=mode)
    torch.testing.assert_close(told.output, pooled[0, 0], atol=1e-12, rtol=0)
    torch.testing.assert_close(told.roi_pool, roialign.roi_pool(features, rois, bins, scale)[0, 0], atol=0, rtol=0)
    torch.testing.assert_close(told.Ay @ told.map @ told.Ax.T, told.avg, atol=1e-12, rtol=0)


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_sample_is_the_loops(setting: tuple) -> None:
    told = make(setting)
    (height, width), box, bins, scale, ratio, aligned = setting
    scale_y, scale_x = scale if isinstance(scale, tuple) else (scale, scale)
    rows = oracle.sample_positions(box[1], box[3], bins[0], scale_y, ratio, aligned, np.float64)
    columns = oracle.sample_positions(box[0], box[2], bins[1], scale_x, ratio, aligned, np.float64)
    assert told.samples.shape == (*bins, len(rows[0]), len(columns[0]), 2)
    for p, q in np.ndindex(bins):
        found = []
        for (i, y), (j, x) in product(enumerate(rows[p]), enumerate(columns[q])):
            at = (p, q, i, j)
            assert told.samples[at].tolist() == pytest.approx([y, x], abs=1e-12)
            inside = -1 <= y <= height and -1 <= x <= width
            value, weights = 0.0, {}
            if inside:
                y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                for r, c in product({math.floor(y), math.ceil(y)}, {math.floor(x), math.ceil(x)}):
                    weights[r, c] = (1 - abs(y - r)) * (1 - abs(x - c))
                    value += weights[r, c] * float(told.map[r, c])
            assert float(told.sample_values[at]) == pytest.approx(value, abs=1e-12)
            assert bool(told.y.inside[p, i] & told.x.inside[q, j]) == inside
            pairs = zip(told.taps[at].tolist(), told.weights[at].tolist(), strict=True)
            stated = {tuple(tap): weight for tap, weight in pairs if tap != [-1, -1] and weight}
            assert stated == pytest.approx(weights, abs=1e-12)
            found.append(value)
        if found:
            assert float(told.avg[p, q]) == pytest.approx(sum(found) / len(found), abs=1e-12)
            assert float(told.max[p, q]) == pytest.approx(max(found), abs=1e-12)


@pytest.mark.parametrize("setting", SETTINGS)
def test_exact_is_the_mean_over_the_same_bins(setting: tuple) -> None:
    told = make(setting)
    y, x = told.y.edges, told.x.edges
    window = torch.tensor([[0.0, x[0], y[0], x[-1], y[-1]]], dtype=torch.float64)
    expected = oracle.prroi_pool(told.map[None, None], window, setting[2], (1.0, 1.0))[0, 0]
    torch.testing.assert_close(told.exact, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(told.y.exact_matrix @ told.map @ told.x.exact_matrix.T, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("setting", SETTINGS[1:6] + SETTINGS[-1:])
def test_gradient_is_the_difference_quotient(setting: tuple, mode: str) -> None:
    told = make(setting, mode)
    size, box, bins, scale, ratio, aligned = setting
    bin = (bins[0] - 1, 0)
    step = 1e-6

    def pooled(values: Tensor, edges: list[float]) -> float:
        return float(roialign.explain(values, edges, bins, scale, ratio, aligned, mode=mode).output[bin])

    def quotients(moved: list[tuple[float, float]]) -> list[float]:
        return [(high - low) / (2 * step) for low, high in moved]

    by_edge = []
    for k in range(4):
        low, high = list(box), list(box)
        low[k], high[k] = box[k] - step, box[k] + step
        by_edge.append((pooled(told.map, low), pooled(told.map, high)))
    gradient = told.gradient(*bin)
    assert gradient.box.tolist() == pytest.approx(quotients(by_edge), abs=1e-6)
    for cell in [(0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, size[1] // 2)]:
        low_map, high_map = told.map.clone(), told.map.clone()
        low_map[cell] -= step
        high_map[cell] += step
        (expected,) = quotients([(pooled(low_map, list(box)), pooled(high_map, list(box)))])
        assert float(gradient.map[cell]) == pytest.approx(expected, abs=1e-6)


def test_the_worked_case_by_hand() -> None:
    """7 x 5 cells, 2 x 2 bins of 3.5 x 2.5, 4 samples each; on the built-in map every sum can be done on paper."""
    told = roialign.explain((8, 8), (0, 3, 7, 8), 2, sampling_ratio=2, mode="max")
    assert told.x.edges.tolist() == [0, 3.5, 7]
    assert told.y.edges.tolist() == [3, 5.5, 8]
    assert told.x.samples.tolist() == [[0.875, 2.625], [4.375, 6.125]]
    assert told.y.samples.tolist() == [[3.625, 4.875], [6.125, 7.375]]  # the last is moved to 7, the last cell's centre
    # (y, x) = (3.625, 0.875) lies between rows 3 and 4, columns 0 and 1, where the map has 5 5 / 5 4.
    assert told.map[3:5, :2].tolist() == [[5, 5], [5, 4]]
    assert told.weights[0, 0, 0, 0].tolist() == [0.375 * 0.125, 0.375 * 0.875, 0.625 * 0.125, 0.625 * 0.875]
    assert float(told.sample_values[0, 0, 0, 0]) == 0.375 * 5 + 0.625 * (0.125 * 5 + 0.875 * 4)  # 4.453125
    assert told.taps[1, 1, 1, 1].tolist() == [[7, 6], [7, 7], [-1, -1], [-1, -1]]
    assert float(told.sample_values[1, 1, 1, 1]) == 0.875 * 3 + 0.125 * 0
    assert told.output.tolist() == [[4.453125, 8.75], [5.25, 5.625]]


def test_shifts_in_pixels_by_hand() -> None:
    """Stride 16. Along x, 20.5 / 16 = 1.28 becomes cell 1, 16 pixels; 90 / 16 = 5.6 ends with cell 6, at 112 pixels."""
    told = roialign.explain((8, 8), (20.5, 36.0, 90.0, 101.0), 2, 1 / 16, 2, aligned=True)
    assert told.x.pool_cells.tolist() == [[1, 4], [4, 7]]
    assert told.x.pool_shift.tolist() == [16 - 20.5, 112 - 90]
    assert told.y.pool_shift.tolist() == [32 - 36, 112 - 101]
    assert told.x.align_shift.abs().max() < 1e-12
    assert told.y.box.tolist() == [36 / 16 - 0.5, 101 / 16 - 0.5]
    unaligned = roialign.explain((8, 8), (20.5, 36.0, 90.0, 101.0), 2, 1 / 16, 2, aligned=False)
    assert unaligned.x.align_shift.tolist() == [8, 8]  # half a cell


def test_a_grid_too_large_to_list_is_counted() -> None:
    told = roialign.explain((8, 8), (-1e9, -1e9, 1e9, 1e9), 2, sampling_ratio=0, aligned=True)
    assert told.x.grid == 10**9
    assert told.samples.shape == (2, 2, 0, 0, 2)
    pooled = roialign.roi_align(told.map[None, None], torch.tensor([[0, -1e9, -1e9, 1e9, 1e9]]).double(), 2, 1, 0, True)
    torch.testing.assert_close(told.output, pooled[0, 0], atol=0, rtol=1e-9)


def test_one_cell_of_a_half_precision_map_and_a_map_with_infinity() -> None:
    assert roialign.explain(torch.full((1, 1, 1, 1), 3.0).half(), [0, 0, 1, 1], 1, 1, 2).output.tolist() == [[3.0]]
    values = torch.ones(8, 8)
    values[0, 0] = math.inf
    told = roialign.explain(values, (4, 4, 7, 7), 2, 1, 2)
    assert told.output.tolist() == [[1, 1], [1, 1]]  # a cell that no sample reads does not spread


def test_an_image_gives_scale_and_map() -> None:
    image = torch.zeros(3, 40, 80)
    image[:, :, 40:] = 0.5
    told = roialign.explain((4, 4), (0, 0, 80, 40), 2, None, 2, True, image=image)
    assert (told.y.scale, told.x.scale) == (0.1, 0.05)
    assert told.map.tolist() == [[0, 0, 0.5, 0.5]] * 4
    assert told.x.align_shift.abs().max() < 1e-12
    assert "data:image/jpeg;base64," in told.to_html()


@pytest.mark.parametrize("setting", SETTINGS)
def test_json_carries_every_value(setting: tuple) -> None:
    told = make(setting)
    read = json.loads(json.dumps(told.to_dict()))
    assert set(read) == {
        "map", "box", "output_size", "sampling_ratio", "aligned", "mode", "x", "y", "avg", "max", "exact", "roi_pool",
        "output", "sample_values",
    }  # fmt: skip
    for name in ("map", "avg", "max", "exact", "roi_pool", "sample_values"):
        assert read[name] == getattr(told, name).tolist()
    for name in ("samples", "taps", "weights", "matrix", "edges", "pool_cells"):
        assert read["y"][name] == getattr(told.y, name).tolist()
        assert read["x"][name] == getattr(told.x, name).tolist()


def test_notebooks_show_the_page() -> None:
    told = make(SETTINGS[1])
    shown = told._repr_html_()
    assert shown.startswith("<iframe")
    page = unescape(shown.split('srcdoc="')[1].split('"')[0])
    assert page == told.to_html()
    assert "20.5" in page


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_page_opens_at_the_explanation(setting: tuple) -> None:
    """What the page starts from, pooled by the operators, is what was explained."""
    told = make(setting, "max")
    initial = re.search(r'<script type="application/json" id="initial">(.*?)</script>', told.to_html("zh"))
    assert initial is not None
    state = json.loads(initial[1])
    assert (state["language"], state["operator"]) == ("zh", "roi_align")
    pooled = roialign.roi_align(
        torch.tensor(state["values"], dtype=torch.float64)[None, None],
        [torch.tensor([state["box"]], dtype=torch.float64)],
        state["output_size"],
        state["spatial_scale"],
        state["sampling_ratio"],
        state["aligned"],
        mode=state["mode"],
    )
    torch.testing.assert_close(pooled[0, 0], told.output, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((8,), (0, 0, 1, 1), 2), r"input_or_size: got \(8,\)"),
        (((0, 8), (0, 0, 1, 1), 2), "at least 1 x 1"),
        ((torch.ones(3, 8, 8), (0, 0, 1, 1), 2), r"shape \(3, 8, 8\).*choose one"),
        ((torch.ones(0, 8), (0, 0, 1, 1), 2), "at least one"),
        (((8, 8), (0, 0, 1), 2), "box: got 3 numbers"),
        (((8, 8), (0, 0, math.nan, 1), 2), "expected finite numbers"),
        (((8, 8), (0, 0, 1, 1), 0), "output_size: got 0"),
        (((8, 8), (0, 0, 1, 1), 2, -1.0), "spatial_scale: got -1.0"),
    ],
)
def test_errors_name_the_argument(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        roialign.explain(*arguments)


def test_other_errors() -> None:
    with pytest.raises(ValueError, match="mode: got 'median'"):
        roialign.explain((8, 8), (0, 0, 1, 1), 2, mode="median")
    with pytest.raises(ValueError, match=r"image: got a Tensor of shape \(8, 8\)"):
        roialign.explain((8, 8), (0, 0, 1, 1), 2, image=torch.ones(8, 8))
    with pytest.raises(ValueError, match="expected a bin of 2 x 2"):
        make(SETTINGS[0]).gradient(2, 0)


def test_it_is_loaded_on_first_use_and_needs_matplotlib_only_to_draw() -> None:
    code = (
        "import sys, roialign\n"
        "sys.modules['matplotlib'] = None\n"
        "assert 'roialign.explain' not in sys.modules\n"
        "told = roialign.explain((8, 8), (0, 3, 7, 8), 2, sampling_ratio=2)\n"
        "from roialign.explain import Explanation, explain\n"
        "assert isinstance(told, Explanation) and roialign.explain.explain is explain\n"
        "assert '<html' in told.to_html()\n"
        "try: told.plot()\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'roialign[explain]'" in done.stdout
    with pytest.raises(AttributeError, match="no attribute 'explains'"):
        roialign.explains  # noqa: B018
