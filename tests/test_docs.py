"""The documentation is true: its code runs and prints what it says, its site builds, no link is dead."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
import torchvision
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

import roialign
from helpers import slow_but
from roialign.cli import app
from roialign.integrations.accelerate import _takeover

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Pools(torch.nn.Module):
    """Stands for the reader's own model."""

    def __init__(self) -> None:
        super().__init__()
        self.pooler = roialign.RoIAlign(output_size=2, spatial_scale=0.5, sampling_ratio=2)

    def forward(self, image: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        return self.pooler(image, boxes)


def given(page: str, folder: Path) -> dict[str, object]:
    """What a page takes for granted: the reader's model, its arguments and files."""
    if page in ("torchvision.md", "mmcv.md"):
        return {"model": torch.nn.Sequential(torchvision.ops.RoIAlign(2, 1.0, 2))}
    if page == "detectron2.md":
        predictor = SimpleNamespace(model=torch.nn.Sequential(torchvision.ops.RoIAlign(2, 1.0, 2)))
        return {"DefaultPredictor": lambda cfg: predictor, "cfg": None}
    if page == "onnxruntime.md":
        args = torch.rand(1, 3, 8, 8), torch.tensor([[0.0, 1.0, 2.0, 9.0, 12.0]])
        return {"torch": torch, "model": Pools().eval(), "args": args}
    if page == "detection.md":
        (folder / "runs" / "crowns").mkdir(parents=True)
        shutil.copy(
            Path(roialign.__file__).parent / "samples" / "tree_crowns.safetensors",
            folder / "runs" / "crowns" / "model.safetensors",
        )
        Image.new("RGB", (64, 48)).save(folder / "photo.tif")
        (folder / "boxes.csv").write_text("image_path,xmin,ymin,xmax,ymax,label\nphoto.tif,4,6,30,20,tree\n")
    return {}


@pytest.fixture
def as_before() -> Iterator[None]:
    """A page's roialign.accelerate() ends with the page."""
    yield
    for user in list(_takeover.users):
        user.undo()


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize(
    "page",
    slow_but([page for page in PAGES if page.name != "onnxruntime.md"], PAGES),  # which calls a C++ compiler
    ids=lambda page: str(page.relative_to(DOCS)),
)
def test_code_prints_what_the_page_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's python blocks run one after another; the text block after one is what it prints, to the letter."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope: dict[str, object] = {"__name__": "__main__", **given(page.name, tmp_path)}
    printed: str | None = None
    for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            assert not printed, f"prints {printed!r}, which the page does not show"
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(code, str(page), "exec"), scope)
            printed = out.getvalue()
        elif language == "text":
            assert printed == code
            printed = None
        else:
            assert language == "console", f"a block of {language} would not be run"
            for command in code.splitlines():
                words = command.split()
                # Training and what needs the reader's files have tests of their own.
                if words[:1] == ["roialign"] and words[1] not in ("train", "evaluate", "detect", "convert", "export"):
                    result = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
                    assert result.exit_code == 0, result.output
    assert not printed, f"prints {printed!r}, which the page does not show"


class Links(HTMLParser):
    """What a page points to, and the places in it that can be pointed to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.anchors = {""}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value is not None and (tag, name) != ("base", "href"):
                (self.targets if tag == "a" else self.loaded).append(value)
            elif name in ("id", "name") and value is not None:
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()
    return folder


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    """From the file system: each link and each file that a page loads is a file of the site, and nothing is remote."""
    pages = {page: Links(page) for page in site.rglob("*.html")}
    assert {"index.html", "zh.html", "page.html", "reference.html"} <= {page.name for page in pages}
    for page, links in pages.items():
        if page.name == "404.html":  # a web server shows it, at any address
            continue
        for target in links.targets + links.loaded:
            parts = urlsplit(target)
            if parts.scheme in ("data", "javascript", "mailto"):
                continue
            if parts.scheme:
                assert target in links.targets, f"{page.name} loads {target} from elsewhere"
                continue
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert path.is_file(), f"{page.name}: {target}"
            if parts.fragment and path.suffix == ".html" and path.name not in ("page.html", "page-zh.html"):
                assert unquote(parts.fragment) in pages[path].anchors, f"{page.name}: {target}"
    assert not list(site.rglob("*.py"))


def test_search_works_from_disk(browser: Any, site: Path) -> None:
    """A page opened as a file finds words, asks for nothing but files, and says nothing on the console."""
    opened = browser.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: request.url.startswith("file:") or complaints.append(request.url))
    for words, page in (
        ("adaptive grid", "derivation.html"),
        ("采样点坐标", "zh.html"),
        ("foreign memory", "torchvision"),
    ):
        opened.goto((site / "start.html").as_uri())
        opened.locator(".md-search__input").fill(words)
        opened.keyboard.press("End")  # the theme listens for keys, of which Chinese words have none here
        opened.locator(".md-search-result__link").first.wait_for(state="attached")
        found = opened.locator(".md-search-result__link").evaluate_all("(links) => links.map((link) => link.href)")
        assert any(page in address for address in found)
    opened.close()
    assert not complaints


def test_figures_stack_on_a_phone_and_follow_the_sites_own_dark_mode(browser: Any, site: Path, tmp_path: Path) -> None:
    """Whatever the system says: the toggle of the page decides. Nothing is wider than the screen."""
    for scheme, system in (("default", "dark"), ("slate", "light")):
        opened = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=system)
        opened.goto((site / "zh.html").as_uri())
        assert opened.evaluate("document.documentElement.scrollWidth") <= 390
        opened.evaluate("(scheme) => document.body.setAttribute('data-md-color-scheme', scheme)", scheme)
        figures = opened.locator("article img")
        boxes = [figures.nth(k).bounding_box() for k in range(figures.count())]
        assert len(boxes) == 8
        for above, below in pairwise(boxes):
            assert above["y"] + above["height"] <= below["y"]
        figures.first.screenshot(path=tmp_path / "figure.png")
        with Image.open(tmp_path / "figure.png") as picture:
            margin = picture.convert("L").getpixel((3, picture.height - 40))
        assert margin > 230 if scheme == "default" else margin < 50
        opened.close()


def numbers(element: ET.Element) -> list[float]:
    """Where an element of a figure stands and how large it is."""
    places = " ".join(element.get(name, "") for name in ("d", "x", "y", "width", "height", "transform", "viewBox"))
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", places)]


def pixels(element: ET.Element) -> list[torch.Tensor]:
    """An embedded picture, of one size whatever the version made of it."""
    data = element.get("{http://www.w3.org/1999/xlink}href", "")
    if not data.startswith("data:"):
        return []
    with Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))) as picture:
        small = picture.convert("RGB").resize((64, 64), Image.Resampling.BOX)
    return [torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).float()]


def test_committed_figures_are_what_the_code_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same words and shapes at the same places, but for what another version of Matplotlib or of a font may move."""
    monkeypatch.syspath_prepend(str(DOCS))
    import figures  # type: ignore[import-not-found]

    made = figures.make()
    assert {path.name for path in figures.FOLDER.iterdir()} == set(made), "run make figures"
    assert sum(path.stat().st_size for path in figures.FOLDER.iterdir()) < 600_000
    for name, svg in made.items():
        committed = list(ET.parse(figures.FOLDER / name).iter())
        drawn = list(ET.fromstring(svg).iter())
        for kind, reach in (("text", 6), ("path", 2), ("use", 2), ("image", 2)):  # points
            ours, theirs = ([e for e in every if e.tag == f"{{{figures.SVG}}}{kind}"] for every in (committed, drawn))
            assert [e.text for e in ours] == [e.text for e in theirs], f"{name}: run make figures"
            for one, other in zip(ours, theirs, strict=True):
                assert numbers(one) == pytest.approx(numbers(other), abs=reach), f"{name}: run make figures"
                for a, b in zip(pixels(one), pixels(other), strict=True):
                    assert (a - b).abs().mean() < 3, f"{name}: run make figures"


def test_every_figure_is_shown_and_every_shown_one_is_there() -> None:
    shown = set()
    for page in (*PAGES, ROOT / "README.md", ROOT / "README.zh-CN.md"):
        text = page.read_text(encoding="utf-8")
        for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", text):
            assert alt, target
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
            shown.add((page.parent / target).name)
            if (target := Path(target)).suffix == ".svg":  # Chinese words on Chinese pages
                assert target.name.endswith(".zh.svg") == ("zh" in page.name)
    assert shown == {path.name for folder in ("figures", "images") for path in (DOCS / folder).iterdir()}


def test_notebook_runs() -> None:
    """All cells in order; what each shows, by its last line."""
    cells = json.loads((ROOT / "examples" / "play.ipynb").read_text(encoding="utf-8"))["cells"]
    scope: dict[str, object] = {}
    shown = []
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for cell in cells:
            assert not cell.get("outputs"), "a notebook is committed without outputs"
            if cell["cell_type"] == "code":
                lines = [line for line in "".join(cell["source"]).splitlines() if not line.startswith("%")]
                tree = ast.parse("\n".join(lines))
                last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
                exec(compile(tree, "play.ipynb", "exec"), scope)
                if last is not None:
                    shown.append(eval(compile(ast.Expression(last.value), "play.ipynb", "eval"), scope))
    assert "<iframe" in shown[0]._repr_html_()
    assert isinstance(shown[-1], Figure)
    lines = out.getvalue().splitlines()
    assert lines[0] == "[-5.0, 14.0]"
    errors = [float(line.split()[1]) for line in lines[1:6]]
    assert errors[-1] < 0.01 < errors[0]
    assert lines[-1] == "[12.0, 5.0]"  # the box has found the hill's top


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_readme_links_lead_somewhere(name: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    local = [target.split("#")[0] for target in targets if not urlsplit(target).scheme]
    assert "docs/images/crowns.jpg" in local
    for target in local:
        assert (ROOT / target).exists(), target


def test_readme_explanation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = [code for language, code in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))]
    (code,) = [code for code in blocks if "roialign.explain(" in code]
    exec(code, {})
    assert (tmp_path / "shift.pdf").read_bytes().startswith(b"%PDF")


HAN = "[\u3001\u3002\u4e00-\u9fff\uff00-\uffef]"


def prose(page: Path) -> str:
    """A page's text without its code and addresses."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`|\]\([^)]*\)", "`", text)


@pytest.mark.parametrize("page", [DOCS / "zh.md", ROOT / "README.zh-CN.md"], ids=lambda page: page.name)
def test_chinese_is_set_as_chinese(page: Path) -> None:
    """Full-width marks next to Chinese, and no line break within a paragraph, which would be shown as a space."""
    text = prose(page)
    assert not re.findall(f"{HAN}[,:;?!()]|[,:;?!()]{HAN}", text)
    lines = text.splitlines()
    for first, second in pairwise(lines):
        if re.match(r"\s*$|!\[|#|\||    ", first) or re.match(r"\s*$|!\[|- |\||    ", second):
            continue
        raise AssertionError(f"a paragraph goes on after a line break: {second!r}")


def test_chinese_has_one_word_for_a_bin_and_none_is_english() -> None:
    """格子 is a bin, 单元 a cell, 采样点 a sample: on the pages, on the interactive page and in the figures."""
    script = (ROOT / "src/roialign/explain/web/texts.js").read_text(encoding="utf-8")
    figures = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "figures").glob("*.zh.svg"))
    texts = [prose(DOCS / "zh.md"), prose(ROOT / "README.zh-CN.md"), script[script.index("  zh: {") :], figures]
    for text in texts:
        said = re.sub(r"格子(</b>)?（bin）|单元（cell）", "", text)
        assert not re.findall(f"{HAN} ?(?:bin|cell|sample)s?\\b|\\b(?:bin|cell|sample)s? ?{HAN}", said)
        assert not re.findall("整格|半格|每格像素|像素格|网格单元", said)


def test_release_is_dated_alike() -> None:
    """The citation has a date of release if the changelog's latest version has one, and the same version."""
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    version, date = re.findall(r"^## (\S+) \(([^)]+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[0]
    assert re.search(r"^version: (\S+)$", citation, re.M).group(1) == version  # type: ignore[union-attr]
    assert re.findall(r"^date-released: (\S+)$", citation, re.M) == ([] if date == "unreleased" else [date])


def test_files_that_comments_name_are_in_the_repository() -> None:
    sources = [*(ROOT / "csrc").rglob("*.*"), *(ROOT / "src").rglob("*.py"), *(ROOT / "src").rglob("*.js")]
    for source in sources:
        for name in re.findall(r"\b(?:docs/)?[\w-]+\.md\b", source.read_text(encoding="utf-8")):
            assert list(ROOT.glob(name)) + list((ROOT / "src/roialign").rglob(name)), f"{source.name}: {name}"
