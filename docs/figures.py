"""Makes the figures of the documentation: run as a program, it writes docs/figures, which is committed.

A figure of several parts is several files, one after another in a page's text, so that they stand side by side on a
desk and one below the other on a phone. Their words stay text: they can be found and read aloud, the reader's browser
has the letters of any language, and the Chinese files are the English ones with other words. They follow dark mode.

MkDocs runs this file as a hook, which adds the interactive pages to the site.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, unescape

import family
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import roialign
from roialign.explain import Explanation
from roialign.explain.figures import bins, gradient, matrices, quantisation, region, sample, style, sums
from roialign.explain.page import make_page
from roialign.samples import load_photo

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
FOLDER = Path(__file__).parent / "figures"
BIN = (0, 0)  # the bin that is looked into
PART = 3.25  # inches: the width of a part, of which two stand side by side on a page of the site

RC = {
    **style.RC,
    "axes.titlesize": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "roialign",
}

# Inverting lightness and keeping hues darkens all of a drawing alike, so that what can be told apart stays so. Where
# there is a photo only what lies around it changes.
STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC",
  sans-serif; white-space: pre }
[id^="halo"] text { paint-order: stroke; stroke: #fff; stroke-width: 2.5px; stroke-linejoin: round }
@media (prefers-color-scheme: dark) { DARK }
"""
MONO = "font-family: ui-monospace, 'Cascadia Code', Menlo, Consolas, 'Noto Sans Mono CJK SC', monospace"
DARK = "svg { filter: invert(0.88) hue-rotate(180deg) }"
DARK_AROUND_PHOTO = """
  #patch_1 path { fill: #1f1f1f !important }
  text { fill: #e0e0e0 !important }
  path[id] { stroke: #e0e0e0 !important }
"""


def example() -> Explanation:
    """The box of the README's picture: pixels of an image, on a map of stride 16."""
    return roialign.explain((8, 8), (21.0, 37.0, 98.0, 102.0), 2, 1 / 16, 2, True)


def worked() -> Explanation:
    """The classic drawing's region, 7 x 5 cells in 2 x 2 bins of 4 samples, by the maximum."""
    return roialign.explain((8, 8), (0, 3, 7, 8), 2, sampling_ratio=2, mode="max")


def crown() -> Explanation:
    """A tree crown of the photo that the package ships and its surroundings, 7 x 7 bins on cells of 16 pixels."""
    image, boxes = load_photo()
    left, top = (int(edge) // 16 * 16 - 48 for edge in boxes[17][:2])
    box = boxes[17] - torch.tensor([left, top, left, top])
    return roialign.explain((9, 9), box, 7, 1 / 16, 2, True, image=image[:, top : top + 144, left : left + 144])


def simple() -> Explanation:
    """The tutorial's first example."""
    return roialign.explain(torch.arange(64.0).reshape(8, 8), (0.0, 0.375, 0.875, 0.625), 2, 5.0, 2)


def _axes(width: float, height: float, left: float, bottom: float, right: float, top: float) -> tuple[Figure, Axes]:
    """A figure and its axes, inches from its sides: where things stand depends on no letter's width."""
    figure = Figure(figsize=(width, height))
    return figure, figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )


def _title(figure: Figure, words: str) -> None:
    figure.text(0.06 / figure.get_figwidth(), 1 - 0.06 / figure.get_figheight(), words, va="top", linespacing=1.3)


def draw_cut(told: Explanation, first: str = "1  Cut the box, unrounded, into bins\n", names: bool = False) -> Figure:
    """The map, the box, its bins and samples."""
    figure, axes = _axes(PART, 4.05, 0.25, 0.6, 0.08, 0.65 if first else 0.4)
    region.draw_region(axes, told, 2.9, None if names or told.image is not None else BIN, names)
    if names:
        sums.name_samples(axes, told, sums.listed_bins(told, BIN))
    figure.legend(handles=region.legend_handles(axes, told), loc="lower left", ncols=2, fontsize=8)
    _title(figure, first + region.title(told).replace("bins, ", "bins,\n"))
    return figure


def draw_sample(told: Explanation) -> Figure:
    """One sample between its neighbours."""
    figure, axes = _axes(PART, 4.05, 0.1, 0.1, 0.1, 0.55)
    sample.draw_sample(axes, told, BIN)
    _title(figure, "2  A sample mixes its four neighbours:\neach weighs as much as the area opposite")
    return figure


def draw_bin(told: Explanation) -> Figure:
    """What a bin makes of its samples' values."""
    figure, axes = _axes(2, 4.05, 0.45, 0.25, 0.56, 0.75)
    bins.draw_strip(axes, told, BIN)
    axes.yaxis.labelpad = 1
    _title(figure, "3  A bin is what its\nsamples make, here\nthe outlined one")
    return figure


def draw_closeup(told: Explanation) -> Figure:
    """The samples of a bin, and their values."""
    figure, axes = _axes(PART, 3.2, 0.5, 0.45, 0.2, 0.4)
    bins.draw_closeup(axes, told, BIN, 2.2)
    _title(figure, "Bin (0, 0) and its samples")
    return figure


def draw_outputs(told: Explanation) -> Figure:
    """What each operator makes of the box."""
    figure = Figure(figsize=(PART, 3.2))
    outputs = {"avg": "mean", "max": "maximum", "exact": "exact (PrRoIPool)", "roi_pool": "RoIPool, for comparison"}
    for place, (name, words) in enumerate(outputs.items()):
        down, across = divmod(place, 2)
        axes = figure.add_axes((0.04 + 0.5 * across, 0.52 - 0.5 * down, 0.42, 0.36))
        bins.draw_output(axes, getattr(told, name), words, BIN, 1.2, name == told.mode)
    return figure


def draw_pool(told: Explanation) -> Figure:
    """The whole cells that RoIPool reads."""
    return _draw_shift(told, quantisation.draw_pool, "RoIPool rounds to whole cells", told.roi_pool, "output")


def draw_align(told: Explanation) -> Figure:
    """The box that RoIAlign reads."""
    name = f"output ({told.mode})"
    return _draw_shift(told, quantisation.draw_align, "RoIAlign (aligned) rounds nothing", told.output, name)


def _draw_shift(told: Explanation, draw: Callable[..., None], words: str, values: torch.Tensor, name: str) -> Figure:
    pool = draw is quantisation.draw_pool
    figure, axes = _axes(PART, 4.9, 0.45, 1.55, 0.25, 0.7)
    draw(axes, told, quantisation.both_views(told), 2.6, BIN)
    shift = ("pool_shift", "align_shift")[not pool]
    off = quantisation.summary(getattr(told.y, shift), getattr(told.x, shift))
    _title(figure, f"{words}:\n{off}")
    bins.draw_output(figure.add_axes((0.02, 0.03, 0.4, 0.17)), values, name, BIN, 0.8)
    handles = quantisation.legend_handles()
    figure.legend(handles=handles[:3] if pool else handles, loc="lower left", bbox_to_anchor=(0.46, 0), fontsize=8)
    return figure


def draw_sums(told: Explanation) -> Figure:
    """Every sum of the worked example."""
    figure, axes = _axes(3.8, 4.9, 0.06, 0.05, 0.06, 0.5)
    sums.write_sums(axes, told, sums.listed_bins(told, BIN), 72 * 3.68)
    _title(figure, "Every sum:\nweight along y \N{MIDDLE DOT} (weight along x \N{MIDDLE DOT} cell + ...)")
    return figure


def draw_matrix(place: int) -> Callable[[Explanation], Figure]:
    """One of the four matrices, with the sign that follows it."""

    def draw(told: Explanation) -> Figure:
        part = matrices.parts(told, BIN)[place]
        cell = 0.3
        width, height = cell * len(part.columns), cell * len(part.rows)
        sign = "\N{MULTIPLICATION SIGN}\N{MULTIPLICATION SIGN}= "[place]
        least = max(width, 1.1)  # room for a name wider than its matrix
        left = 0.42 + (least - width) / 2
        figure, axes = _axes(0.42 + least + 0.35, height + 0.85, left, 0.45, 0.35 + (least - width) / 2, 0.4)
        matrices.draw_part(axes, part, cell)
        if sign.strip():
            at = 1 - 0.17 / figure.get_figwidth(), (0.45 + height / 2) / figure.get_figheight()
            figure.text(*at, sign, ha="center", va="center", fontsize=15)
        return figure

    return draw


def draw_gradient(told: Explanation) -> Figure:
    """What a bin sends back."""
    figure, axes = _axes(3.75, 4.25, 0.5, 0.4, 0.3, 0.75)
    gradient.draw_gradient(axes, told, BIN, 3)
    _title(figure, "What bin (0, 0) sends back to the cells\nand to the box's edges")
    return figure


def draw_worked(told: Explanation) -> Figure:
    """The worked example's region, its samples numbered."""
    return draw_cut(told, "", names=True)


STEPS: dict[str, Callable[[Explanation], Figure]] = {"cut": draw_cut, "sample": draw_sample, "bin": draw_bin}
SHIFT: dict[str, Callable[[Explanation], Figure]] = {"pool": draw_pool, "align": draw_align}
ENGLISH: list[tuple[Callable[[], Explanation], dict[str, Callable[[Explanation], Figure]]]] = [
    (example, {**STEPS, "closeup": draw_closeup, "outputs": draw_outputs, **SHIFT, "gradient": draw_gradient}),
    (example, {name: draw_matrix(place) for place, name in enumerate(("ay", "map", "ax", "output"))}),
    (worked, {"cut": draw_worked, "sums": draw_sums}),
    (crown, {"cut": draw_cut}),
    (simple, STEPS),
]
CHINESE = {
    *(f"{name}-{step}" for name in ("example", "simple") for step in STEPS),
    "example-pool", "example-align", "worked-cut", "worked-sums",
}  # fmt: skip

NUMBER = r"([\N{MINUS SIGN}+]?\d[\d.e]*)"
TRANSLATIONS = {
    "1  Cut the box, unrounded, into bins": "1  把框切成格子，不取整",
    rf"{NUMBER} × {NUMBER} cells in {NUMBER} × {NUMBER} bins,": r"\1 × \2 个单元，切成 \3 × \4 个格子，",
    rf"{NUMBER} × {NUMBER} samples each": r"每格 \1 × \2 个采样点",
    "box on the map": "特征图上的框",
    "bins": "格子",
    "samples": "采样点",
    "2  A sample mixes its four neighbours:": "2  采样点由四个相邻单元混合而成：",
    "each weighs as much as the area opposite": "每个单元的权重等于对角那块的面积",
    rf"cell (\(\d+, \d+\)) = {NUMBER}": r"单元 \1 = \2",
    rf"sample at y = {NUMBER}, x = {NUMBER}": r"采样点 y = \1，x = \2",
    "3  A bin is what its": "3  格子的值由其中的",
    "samples make, here": "采样点得出，这里是",
    "the outlined one": "有边框的那个格子",
    "value": "值",
    rf"mean {NUMBER}": r"平均 \1",
    rf"maximum {NUMBER}": r"最大 \1",
    rf"exact {NUMBER}": r"精确 \1",
    "RoIPool rounds to whole cells:": "RoIPool 取整到整个单元：",
    rf"off by up to {NUMBER} pixels": r"最多偏 \1 像素",
    r"RoIAlign \(aligned\) rounds nothing:": "RoIAlign（aligned）不取整：",
    "reads exactly the box": "读的正好是框",
    rf"{NUMBER} pixels": r"\1 像素",
    "the box": "框",
    "what is read": "实际读取",
    "output": "输出",
    r"output \(avg\)": "输出（平均）",
    "Every sum:": "每个采样点的算式：",
    r"weight along y · \(weight along x · cell \+ ...\)": "y 方向权重 ·（x 方向权重 · 单元的值 + …）",
    r"bin (\(\d, \d\))": r"格子 \1",
    rf"    maximum {NUMBER}   \(mean {NUMBER}, exact {NUMBER}\)": r"    最大 \1 （平均 \2，精确 \3）",
}


def translate(words: str) -> str:
    """A line of an English figure in Chinese; what has no letters is the same in both."""
    for english, chinese in TRANSLATIONS.items():
        if found := re.fullmatch(english, words):
            return found.expand(chinese)
    if not re.search("[A-Za-z]{2}", words):
        return words
    raise ValueError(f"no Chinese for {words!r}: add it to TRANSLATIONS")


def _translated(text: re.Match[str]) -> str:
    return escape(translate(unescape(text[0])))


def as_svg(figure: Figure, photo: bool) -> str:
    """The figure as a small SVG file whose words are text."""
    for number, text in enumerate(figure.findobj(Text)):
        if text.get_path_effects():  # Matplotlib would draw the letters' outlines
            text.set_path_effects([])
            text.set_gid(f"halo{number}")
    file = StringIO()
    figure.savefig(file, format="svg", dpi=72, metadata={"Date": None})
    svg = file.getvalue()
    width, height = figure.get_size_inches()
    size = f'width="{width * 96:g}" height="{height * 96:g}" viewBox="0 0 {width * 72:g} {height * 72:g}"'
    svg = f'<svg xmlns="{SVG}" xmlns:xlink="{XLINK}" {size}>' + re.split(r"</metadata>", svg)[1]
    svg = re.sub(r"font-family: '[^']*Mono'", MONO, svg)
    svg = re.sub(r"font-family: '[^']*'; |text-anchor: start; | transform=\"rotate\(-0 [^\"]*\"", "", svg)
    svg = svg.replace("<text ", '<text xml:space="preserve" ')  # for browsers without white-space in SVG
    svg = re.sub(
        r"<[^>]*>", lambda tag: re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag[0]), svg
    )
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    classes = []
    for look, times in Counter(re.findall(r' style="([^"]+)"', svg)).items():
        if times > 3:
            svg = svg.replace(f' style="{look}"', f' class="c{len(classes)}"')
            classes.append(f".c{len(classes)} {{ {look} }}")
    own = STYLE.replace("DARK", DARK_AROUND_PHOTO if photo else DARK)
    svg = svg.replace("</style>", "\n".join((own, *classes, "</style>")), 1)
    return re.sub(r"data:image/png;base64,([^\"]+)", lambda png: _as_jpeg(png[1]), svg) if photo else svg


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"


def _as_jpeg(png: str) -> str:
    """A photo as a JPEG, a tenth as long."""
    jpeg = BytesIO()
    with Image.open(BytesIO(b64decode(png))) as picture:
        picture.convert("RGB").save(jpeg, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{b64encode(jpeg.getvalue()).decode()}"


def make() -> dict[str, str]:
    """Every figure: its file's name and its text."""
    made = {}
    for explained, figures in ENGLISH:
        told = explained()
        for part, draw in figures.items():
            name = f"{explained.__name__}-{part}"
            with rc_context(RC):
                svg = as_svg(draw(told), photo=told.image is not None)
            made[f"{name}.svg"] = svg
            if name in CHINESE:
                made[f"{name}.zh.svg"] = re.sub(
                    r"(?<=>)[^<>]+(?=</text>)", lambda m: escape(translate(unescape(m[0]))), svg
                )
    for name, draw_one in family.FIGURES.items():
        with rc_context(RC):
            made[f"{name}.svg"] = as_svg(draw_one(), photo=False)
    return made


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs' hook: add the interactive pages, which are in no folder."""
    from mkdocs.structure.files import File

    for name, page in (("page.html", make_page()), ("page-zh.html", make_page({"language": "zh"}))):
        files.append(File.generated(config, name, content=page))
    return files


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, svg in make().items():
        (FOLDER / name).write_text(svg, encoding="utf-8")
