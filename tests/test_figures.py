"""Figures by what is drawn: the artists' coordinates, arrays and words are the explanation's numbers."""

from __future__ import annotations

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text
from PIL import Image
from typer.testing import CliRunner

import roialign
from helpers import slow_but
from roialign.cli import app
from roialign.explain import Explanation
from roialign.explain.figures import FIGURES, save, style
from roialign.samples import load_photo

MINUS = "\N{MINUS SIGN}"

EXPLAINED = {
    "worked": lambda: roialign.explain((8, 8), (0, 3, 7, 8), 2, sampling_ratio=2, mode="max"),
    "aligned": lambda: roialign.explain((8, 8), (20.5, 36.0, 90.0, 101.0), (2, 3), 1 / 16, 2, True),
    "1x1": lambda: roialign.explain((1, 1), (0, 0, 1, 1), 1),
    "7x7": lambda: roialign.explain((25, 42), (210, 130, 530, 410), 7, 1 / 32, 2, True),
    "14x14": lambda: roialign.explain((50, 84), (210.3, 130.7, 580.1, 410.9), 14, 1 / 16, 0, True),
    "inverted": lambda: roialign.explain((8, 8), (6.5, 2, 1.5, 6), 3, 1.0, 2, True),
    "across": lambda: roialign.explain((8, 8), (5.2, -2.5, 12.0, 4.0), (2, 3), 1.0, 2),
    "outside": lambda: roialign.explain((8, 8), (15, 15, 20, 20), 2, 1.0, 2),
    "adaptive": lambda: roialign.explain((8, 8), (0.3, 1.1, 7.9, 6.2), 2, 1.0, 0, True),
    "giant": lambda: roialign.explain((8, 8), (-1e9, -1e9, 1e9, 1e9), 2, 1.0, 0, True),
    "wide numbers": lambda: roialign.explain(torch.arange(64).reshape(8, 8) * -123.456, (1.3, 1.2, 6.1, 5.7), 2, 1, 2),
    "photo": lambda: roialign.explain((25, 25), (357, 20, 392, 69), 7, None, 2, True, image=load_photo()[0]),
}


def number(text: str) -> float:
    return float(text.replace(MINUS, "-"))


def crosses(axes: Axes, marker: str = "x") -> np.ndarray:
    """(x, y) of every mark of this shape."""
    found = [np.column_stack(line.get_data()) for line in axes.get_lines() if line.get_marker() == marker]
    return np.concatenate(found) if found else np.zeros((0, 2))


def rectangles(axes: Axes) -> list[tuple[float, float, float, float]]:
    """(x1, y1, x2, y2) of every rectangle, as it was given."""
    patches = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [(p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height()) for p in patches]


def window(told: Explanation) -> tuple[float, ...]:
    (y1, y2), (x1, x2) = (part.edges[[0, -1]].tolist() for part in (told.y, told.x))
    return x1, y1, x2, y2


def words(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


@pytest.mark.parametrize("name", ["worked", "aligned", "inverted", "across", "adaptive", "7x7"])
def test_map_draws_cells_box_bins_and_samples(name: str) -> None:
    told = EXPLAINED[name]()
    (axes,) = told.plot("map").axes
    image = axes.get_images()[0]
    left, right, bottom, top = image.get_extent()
    rows, columns = slice(int(top + 0.5), int(bottom + 0.5)), slice(int(left + 0.5), int(right + 0.5))
    np.testing.assert_array_equal(image.get_array(), told.map[rows, columns].numpy())
    assert any(np.allclose(rectangle, window(told)) for rectangle in rectangles(axes))
    inside = (told.y.inside[:, None, :, None] & told.x.inside[None, :, None, :]).flatten()
    places = told.samples.reshape(-1, 2).flip(-1).numpy()
    np.testing.assert_array_equal(crosses(axes), places[inside.numpy()])
    np.testing.assert_array_equal(crosses(axes, "o"), places[~inside.numpy()])
    for text in axes.texts:  # each number stands in the cell whose value it is
        x, y = text.get_position()
        assert number(text.get_text()) == float(told.map[round(y), round(x)])
    bins = next(lines for lines in axes.collections if len(lines.get_segments()) == sum(told.output_size) - 2)
    drawn = {tuple(np.round(segment.flatten(), 9)) for segment in bins.get_segments()}
    x1, y1, x2, y2 = window(told)
    expected = [(x, y1, x, y2) for x in told.x.edges[1:-1].tolist()]
    expected += [(x1, y, x2, y) for y in told.y.edges[1:-1].tolist()]
    assert drawn == {tuple(np.round(segment, 9)) for segment in expected}


def test_every_cell_of_the_worked_case_bears_its_value() -> None:
    told = EXPLAINED["worked"]()
    (axes,) = told.plot("map").axes
    assert len(axes.texts) == 64


@pytest.mark.parametrize("name", ["worked", "aligned", "inverted", "7x7", "14x14", "adaptive"])
def test_sample_draws_weights_as_opposite_areas(name: str) -> None:
    told = EXPLAINED[name]()
    (axes,) = told.plot("sample").axes
    areas = [abs((x2 - x1) * (y2 - y1)) for x1, y1, x2, y2 in rectangles(axes)[:4]]
    assert sum(areas) == pytest.approx(1)
    bin = style.first_bin(told)
    shares = [weights for weights in told.weights[bin].reshape(-1, 4).tolist() if weights == pytest.approx(areas)]
    assert shares  # the four areas are the weights of one of the bin's samples
    (place,) = {tuple(spot) for spot in crosses(axes).tolist()}
    assert any(place == pytest.approx(spot[::-1]) for spot in told.samples[bin].reshape(-1, 2).tolist())
    # A's corner and A's area lie at opposite ends of the square.
    corner = next(text for text in axes.texts if text.get_text() == "A" and text.get_fontweight() == "bold")
    x1, y1, x2, y2 = rectangles(axes)[0]
    assert {abs(x1 - corner.get_position()[0]), abs(y1 - corner.get_position()[1])} == {1}
    assert (x2, y2) == pytest.approx(place)
    stated = next(text for text in words(axes) if text.startswith("sample at")).splitlines()[1]
    terms, total = stated.split(" = ")
    assert eval(terms.replace("\N{MIDDLE DOT}", "*").replace(MINUS, "-")) == pytest.approx(number(total), rel=0.01)


def test_a_sample_outside_is_said_to_count_nothing() -> None:
    (axes,) = EXPLAINED["outside"]().plot("sample").axes
    assert any("y outside [\N{MINUS SIGN}1, 8] and x outside" in text for text in words(axes))
    (axes,) = EXPLAINED["giant"]().plot("sample").axes
    assert any("too many samples" in text for text in words(axes))


@pytest.mark.parametrize("name", ["worked", "aligned", "inverted", "across", "adaptive", "14x14"])
def test_values_draws_what_becomes_of_the_samples(name: str) -> None:
    told = EXPLAINED[name]()
    bin = style.first_bin(told)
    close, strip, *outputs = told.plot("values").axes
    np.testing.assert_allclose(np.sort(crosses(strip)[:, 1]), np.sort(told.sample_values[bin].flatten()))
    lines = [line.get_ydata() for line in strip.get_lines() if line.get_marker() == "None"]
    levels = [line[0] for line in lines if line[0] == line[1]]
    for name_of in ("avg", "max", "exact"):
        assert any(level == pytest.approx(float(getattr(told, name_of)[bin])) for level in levels)
    for axes, name_of in zip(outputs, ("avg", "max", "exact", "roi_pool"), strict=True):
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), getattr(told, name_of).numpy())
    # The picture under the samples is the interpolated map: at the pixel nearest to a sample, about its value.
    x1, x2, y2, y1 = close.get_images()[0].get_extent()
    picture = np.asarray(close.get_images()[0].get_array())
    spots = zip(told.samples[bin].reshape(-1, 2).tolist(), told.sample_values[bin].flatten().tolist(), strict=True)
    step = max(x2 - x1, y2 - y1) / len(picture)
    for (y, x), value in spots:
        row, column = int((y - y1) / (y2 - y1) * len(picture)), int((x - x1) / (x2 - x1) * len(picture))
        if 0 <= y <= told.map.shape[0] - 1 and 0 <= x <= told.map.shape[1] - 1:
            assert picture[row, column] == pytest.approx(value, abs=20 * step)


@pytest.mark.parametrize("name", ["worked", "aligned", "inverted", "1x1", "adaptive"])
def test_sums_can_be_checked_by_hand(name: str) -> None:
    """Each line of arithmetic is done again here, and the bins' results are of these numbers."""
    told = EXPLAINED[name]()
    _, axes = told.plot("sums").axes
    values: list[float] = []
    results = 0
    for line in words(axes):
        if "\N{MIDDLE DOT}" in line:
            _, place, terms, total = re.fullmatch(r" ?(\d+)  (\(.*?\)) +(.*) = (\S+)", line).groups()  # type: ignore[union-attr]
            done = eval(terms.replace("\N{MIDDLE DOT}", "*").replace(MINUS, "-"))
            assert done == pytest.approx(number(total), abs=2e-5)
            y, x = (number(part) for part in place.strip("()").split(", "))
            at = (told.samples - torch.tensor([y, x])).abs().sum(-1).flatten().argmin()
            assert float(told.sample_values.flatten()[at]) == pytest.approx(done, abs=2e-5)
            values.append(done)
        elif "maximum" in line:
            stated = {key: number(value) for key, value in re.findall(r"(maximum|mean) ([^\s,()]+)", line)}
            assert stated == pytest.approx({"maximum": max(values), "mean": sum(values) / len(values)}, abs=2e-5)
            values, results = [], results + 1
    listed = told.output_size[0] * told.output_size[1] if told.sample_values.numel() <= 16 else 1
    assert results == listed


@pytest.mark.parametrize("name", ["worked", "aligned", "inverted", "14x14", "outside"])
def test_roi_pool_draws_and_measures_the_shift(name: str) -> None:
    told = EXPLAINED[name]()
    pool, pooled, align, aligned = told.plot("roi_pool").axes
    np.testing.assert_array_equal(pooled.get_images()[0].get_array(), told.roi_pool.numpy())
    np.testing.assert_array_equal(aligned.get_images()[0].get_array(), told.output.numpy())
    scale = told.x.scale
    x1, y1, x2, y2 = told.box
    box = (x1 * scale - 0.5, y1 * scale - 0.5, x2 * scale - 0.5, y2 * scale - 0.5)
    (px1, px2), (py1, py2) = ((int(c[0, 0]), int(c[-1, 1])) for c in (told.x.pool_cells, told.y.pool_cells))
    cells = (px1 - 0.5, py1 - 0.5, px2 - 0.5, py2 - 0.5)
    for axes, read in ((pool, cells), (align, window(told))):
        drawn = rectangles(axes)
        assert any(rectangle == pytest.approx(box) for rectangle in drawn)
        assert any(rectangle == pytest.approx(read) for rectangle in drawn)
        moved = [(r - b) / scale for r, b in zip(read, box, strict=True)]  # from the picture, in pixels
        stated = [number(text.split()[0]) for text in words(axes) if text.endswith(("pixel", "pixels"))]
        left, right, top, bottom = stated
        if told.x.edges[0] > told.x.edges[-1]:
            left, right = right, left
        assert [left, top, right, bottom] == pytest.approx(moved, rel=0.01, abs=1e-6)


@pytest.mark.parametrize("name", ["worked", "aligned", "inverted", "across", "14x14", "1x1"])
def test_matrices_multiply_to_the_output(name: str) -> None:
    told = EXPLAINED[name]()
    drawn = [np.asarray(axes.get_images()[0].get_array()) for axes in told.plot("matrices").axes]
    ay, cells, ax, output = drawn
    np.testing.assert_allclose(ay @ cells @ ax, output, atol=1e-12)
    np.testing.assert_array_equal(output, told.avg.numpy())


@pytest.mark.parametrize("name", ["worked", "aligned", "inverted", "across", "7x7"])
def test_gradient_draws_cells_and_arrows(name: str) -> None:
    told = EXPLAINED[name]()
    bin = style.first_bin(told)
    (axes,) = told.plot("gradient", bin).axes
    gradient = told.gradient(*bin)
    image = axes.get_images()[0]
    left, right, bottom, top = image.get_extent()
    part = gradient.map[int(top + 0.5) : int(bottom + 0.5), int(left + 0.5) : int(right + 0.5)]
    np.testing.assert_array_equal(image.get_array(), part.numpy())
    x1, y1, x2, y2 = window(told)
    found = {}
    for arrow in (text for text in axes.texts if isinstance(text, Annotation)):
        (tip_x, tip_y), (foot_x, foot_y) = arrow.xyann, arrow.xy
        (foot_x, foot_y), (tip_x, tip_y) = (tip_x, tip_y), (foot_x, foot_y)
        across = abs(tip_x - foot_x) > abs(tip_y - foot_y)
        edge = [abs(foot_x - x1), abs(foot_y - y1), abs(foot_x - x2), abs(foot_y - y2)]
        k = min((0, 2) if across else (1, 3), key=edge.__getitem__)
        assert edge[k] == pytest.approx(0)
        found[k] = tip_x - foot_x if across else tip_y - foot_y
    biggest = int(gradient.box.abs().argmax())
    assert biggest in found
    for k, length in found.items():  # as long as the derivative, in its direction
        share = float(gradient.box[k] / gradient.box[biggest])
        assert length / found[biggest] == pytest.approx(share)
        assert np.sign(length) == np.sign(float(gradient.box[k]))
    stated = sorted(number(text.split()[0]) for text in words(axes) if text.endswith("per pixel"))
    assert stated == pytest.approx(sorted(gradient.box.tolist()), rel=0.01, abs=1e-9)


@pytest.mark.parametrize("name", slow_but({"worked", "across", "giant", "wide numbers"}, EXPLAINED))
def test_words_are_apart_and_on_the_page(name: str) -> None:
    """Whatever the box: no two texts overlap, none leaves the figure, none is too small to read."""
    told = EXPLAINED[name]()
    for kind in FIGURES:
        figure = told.plot(kind)
        boxes = text_boxes(figure)
        page = figure.bbox
        for text, box in boxes:
            assert box.x0 >= page.x0 - 1, (kind, text)
            assert box.x1 <= page.x1 + 1, (kind, text)
            assert box.y0 >= page.y0 - 1, (kind, text)
            assert box.y1 <= page.y1 + 1, (kind, text)
        for (first, a), (second, b) in combinations(boxes, 2):
            width = min(a.x1, b.x1) - max(a.x0, b.x0)
            height = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert not (width > 2 and height > 3), (kind, first, second)


def text_boxes(figure: Figure) -> list[tuple[str, matplotlib.transforms.BboxBase]]:
    """Every text that is drawn, and where."""
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    ticks = {id(text) for axis in figure.findobj(Axis) for text in axis.findobj(Text)}
    drawn = [text for text in figure.findobj(Text) if id(text) not in ticks]
    for axis in figure.findobj(Axis):  # those that lie in view; Matplotlib keeps others at hand
        drawn += [axis.label, axis.offsetText] if axis.axes.axison else []
        drawn += [tick.label1 for tick in axis._update_ticks()] if axis.axes.axison else []
    found = []
    for text in drawn:
        if text.get_text().strip() and text.get_visible():
            box = text.get_window_extent(canvas.get_renderer())
            clip = text.get_clip_box() if text.get_clip_on() else None
            if clip is None or clip.overlaps(box):
                assert text.get_fontsize() >= 5.5, text.get_text()
                found.append((text.get_text(), box))
    return found


def test_colours_are_readable_in_grey() -> None:
    for cmap in (style.CELLS, style.WEIGHTS):
        light = [luminance(cmap(step)) for step in np.linspace(0, 1, 50)]
        assert all(a > b for a, b in pairwise(light))  # darker is more, also in grey
        assert (min(light) + 0.05) / (luminance(matplotlib.colors.to_rgba(style.INK)) + 0.05) > 4.5  # WCAG AA
    box, pool = (luminance(matplotlib.colors.to_rgba(colour)) for colour in (style.BOX, style.POOL))
    assert box > 1.2 * pool


def luminance(colour: tuple[float, ...]) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_plot_says_what_there_is() -> None:
    told = EXPLAINED["worked"]()
    with pytest.raises(ValueError, match="figure: got 'maps'; expected one of 'overview', 'map'"):
        told.plot("maps")
    with pytest.raises(ValueError, match=r"bin: got \(2, 0\).*2 x 2"):
        told.plot("map", (2, 0))


def test_command_writes_figure_page_and_values(tmp_path: Path) -> None:
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        files = [tmp_path / f"a{suffix}", tmp_path / "a.html", tmp_path / "a.json"]
        names = [
            part
            for option, file in zip(("--out", "--html", "--json"), files, strict=True)
            for part in (option, str(file))
        ]
        line = ["explain", "--box", "-8", "3", "56", "40", "--size", "8", "8", "--scale", "1/8", "--output-size", "3"]
        result = CliRunner().invoke(app, [*line, "--sampling-ratio", "0", "--aligned", "--mode", "max", *names])
        assert result.exit_code == 0, result.output
        assert files[0].read_bytes().startswith(start)
    told = roialign.explain((8, 8), (-8, 3, 56, 40), 3, 0.125, 0, True, mode="max")
    assert json.loads(files[2].read_text()) == json.loads(json.dumps(told.to_dict()))
    assert files[1].read_text(encoding="utf-8") == told.to_html()
    assert f"{float(told.output[0, 1]):.6g}" in result.output
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.info["Description"] == repr(told)


def test_command_takes_a_photo(tmp_path: Path) -> None:
    photo = Path(roialign.__file__).parent / "samples" / "OSBS_029.jpg"
    out = tmp_path / "a.json"
    line = [
        "explain",
        "--box",
        "100",
        "30",
        "370",
        "180",
        "--size",
        "16",
        "16",
        "--image",
        str(photo),
        "--json",
        str(out),
    ]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    told = roialign.explain((16, 16), (100, 30, 370, 180), 2, None, 2, image=load_photo()[0])
    assert json.loads(out.read_text())["output"] == told.output.tolist()
    assert told.x.scale == 16 / 400


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "median"], "mode: got 'median'"),
        (["--scale", "1/0"], "expected a number such as"),
        (["--out", "figure.gif"], "figure.gif"),
        (["--output-size", "0"], "--output-size"),
    ],
)
def test_command_names_what_is_wrong(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["explain", "--box", "0", "0", "4", "4", "--size", "8", "8", *options])
    assert result.exit_code == 2
    assert message in re.sub(r"[\s│]+", " ", result.output)


def test_threads_draw_at_once() -> None:
    """Each draws what one alone draws, and Matplotlib's settings are what they were."""
    explanation = EXPLAINED["worked"]()

    def drawn(figure: str) -> bytes:
        file = io.BytesIO()
        save(explanation, file, figure)
        return file.getvalue()

    figures = ["map", "values"] * 4
    expected, before = {figure: drawn(figure) for figure in set(figures)}, dict(matplotlib.rcParams)
    with ThreadPoolExecutor(4) as pool:
        assert all(file == expected[figure] for figure, file in zip(figures, pool.map(drawn, figures), strict=True))
    assert dict(matplotlib.rcParams) == before
