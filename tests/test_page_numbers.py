"""The interactive page's numbers against Python's, in a headless browser."""

from __future__ import annotations

import json
import math

import torch

from pages import Open, State, random_state
from roialign import axis, prroi_pool, roi_align, roi_pool
from roialign.backends import use


def in_python(state: State) -> torch.Tensor:
    """The reference backend's answer, float64 ``[PH, PW]``."""
    height, width = state["size"]
    counting = torch.arange(height * width, dtype=torch.float64).reshape(height, width)
    values = counting if state["values"] is None else torch.tensor(state["values"], dtype=torch.float64)
    call = (values[None, None], [torch.tensor([state["box"]], dtype=torch.float64)], state["output_size"])
    scale = state["spatial_scale"]
    with use("reference"):
        if state["operator"] == "roi_align":
            how = state["sampling_ratio"], state["aligned"]
            return roi_align(*call, scale, *how, mode=state["mode"])[0, 0]
        return {"prroi_pool": prroi_pool, "roi_pool": roi_pool}[state["operator"]](*call, scale)[0, 0]


def matrix_in_python(state: State, along: int) -> torch.Tensor | None:
    """The axis matrix by ``axis.py``, where the operator is the product of two; ``along`` is 0 for y, 1 for x."""
    low, high = (torch.tensor([state["box"][1 - along + end]], dtype=torch.float64) for end in (0, 2))
    scale = state["spatial_scale"]
    scale = scale[along] if isinstance(scale, list) else scale
    bins, length = state["output_size"][along], state["size"][along]
    if state["operator"] == "prroi_pool":
        return axis.integral_matrix(low, high, bins, length, scale)[0]
    if state["operator"] == "roi_pool":
        return axis.pool_mask(low, high, bins, length, scale)[0].double()
    window = axis.align_window(low, high, bins, scale, state["sampling_ratio"], state["aligned"])
    if state["mode"] == "avg":
        return axis.mean_matrix(window, bins, length)[0]
    if int(window.grid) >= axis.max_samples(length):
        return None
    return axis.sample_matrix(window, bins, length, int(window.grid))[0][0].flatten(0, 1)


def test_numbers_equal_pythons(open_page: Open) -> None:
    page = open_page()
    states = [random_state(number) for number in range(600)]
    answers = page.evaluate(
        """(states) => states.map((state) => {
            const { bins, Ay, Ax } = roialign.compute(state);
            return { bins, Ay, Ax };
        })""",
        states,
    )
    covered = set()
    for state, answer in zip(states, answers, strict=True):
        message = json.dumps(state)
        bins = torch.tensor(answer["bins"], dtype=torch.float64)
        torch.testing.assert_close(
            bins, in_python(state), rtol=0, atol=1e-6, msg=lambda text, m=message: f"{m}\n{text}"
        )
        for name, along in (("Ay", 0), ("Ax", 1)):
            expected = matrix_in_python(state, along)
            if expected is not None:
                actual = torch.tensor(answer[name], dtype=torch.float64).reshape(expected.shape)
                torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9, msg=f"{name} of {message}")
        x1, y1, x2, y2 = state["box"]
        if bins.any():
            kinds = [
                "inverted" if x2 < x1 or y2 < y1 else "upright",
                "huge" if x2 - x1 > 1e4 else "usual",
                "adaptive" if state["sampling_ratio"] <= 0 else "fixed",
                state["aligned"],
            ]
            covered |= {(state["operator"], state["mode"], kind) for kind in kinds}
    wanted = {
        ("roi_align", mode, kind)
        for mode in ("avg", "max")
        for kind in ("inverted", "huge", "adaptive", "fixed", True, False)
    }
    assert wanted <= covered  # with an answer other than 0


def test_samples_lie_and_weigh_as_in_python(open_page: Open) -> None:
    page = open_page()
    checked = 0
    for number in range(80):
        state = random_state(number) | {"operator": "roi_align", "sampling_ratio": number % 4, "mode": "avg"}
        scales = state["spatial_scale"] if isinstance(state["spatial_scale"], list) else [state["spatial_scale"]] * 2
        grids = []
        for along in (0, 1):
            low, high = (torch.tensor([state["box"][1 - along + end]], dtype=torch.float64) for end in (0, 2))
            how = state["output_size"][along], scales[along], state["sampling_ratio"], state["aligned"]
            window = axis.align_window(low, high, *how)
            p = torch.arange(state["output_size"][along], dtype=torch.float64)[None, :, None]
            i = torch.arange(min(int(window.grid), 33), dtype=torch.float64)[None, None, :]
            grids.append(axis.sample_position(window, p, i)[0])
        if any(grid.shape[1] in (0, 33) for grid in grids):
            continue
        checked += 1
        found = page.evaluate("(s) => { const r = roialign.compute(s); return [r.y.samples, r.x.samples]; }", state)
        for grid, positions in zip(grids, found, strict=True):
            torch.testing.assert_close(torch.tensor(positions, dtype=torch.float64), grid, rtol=1e-12, atol=1e-9)
        bins = in_python(state)
        samples = page.evaluate("(s) => roialign.samplesOf(s, roialign.compute(s), 0, 0)", state)
        assert len(samples) == grids[0].shape[1] * grids[1].shape[1]
        for sample in samples:
            own = sum(cell["weight"] * cell["value"] for cell in sample["cells"])
            assert math.isclose(sample["value"], own, abs_tol=1e-9)
        mean = sum(sample["value"] for sample in samples) / len(samples)
        assert math.isclose(mean, float(bins[0, 0]), abs_tol=1e-6)
    assert checked > 30


def test_the_tutorials_worked_case(open_page: Open) -> None:
    """A 7 x 5 region, 2 x 2 bins, 4 samples each, maximum: hand-worked on the map that counts its cells.

    Bins are 3.5 cells wide and 2.5 high, so the last samples lie at x = 2.625 and 6.125, y = 1.875 and 4.375. The
    value at (y, x) is 8 y + x, as long as neither is beyond the last cell's centre.
    """
    page = open_page({
        "size": (8, 8), "box": (0, 0, 7, 5), "output_size": 2, "sampling_ratio": 2, "spatial_scale": 1.0,
        "aligned": False, "mode": "max",
    })  # fmt: skip
    shown = page.locator("#align-output [role=gridcell]").all_inner_texts()
    assert [float(text) for text in shown] == [17.63, 21.13, 37.63, 41.13]
    assert "17.625" in page.locator("#sum").inner_text()


def test_non_finite_numbers_answer_as_in_python(open_page: Open) -> None:
    page = open_page({
        "size": (3, 3), "box": (0, 0, 2, 2), "output_size": 1, "sampling_ratio": 1, "spatial_scale": 1.0,
        "aligned": False, "values": [[0, 0, math.nan], [0, 5, 0], [0, 0, 0]],
    })  # fmt: skip
    assert page.locator("#align-output [role=gridcell]").inner_text() == "5"  # the NaN weighs nothing
    page = open_page({"size": (3, 3), "box": (0, 0, math.nan, 2), "spatial_scale": 1.0})
    assert page.locator("#align-output [role=gridcell]").first.inner_text() == "NaN"
    assert "not a finite number" in page.locator("#answer").inner_text()
