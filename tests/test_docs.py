"""The documentation is true: its code runs and prints what it says, its site builds, no link is dead."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
import torch
import torchvision
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

import roialign
from roialign.cli import app
from roialign.integrations.torchvision import _takeover

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
            Path(roialign.__file__).parent / "data" / "tree_crowns.safetensors",
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
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
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
                if words[:1] == ["roialign"] and words[1] not in ("bench", "train", "evaluate", "detect"):
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


def test_site_builds_strictly_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    """From the file system: each link and each file that a page loads is a file of the site, and nothing is remote."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()
    pages = {page: Links(page) for page in tmp_path.rglob("*.html")}
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
    assert not list(tmp_path.rglob("*.py"))


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
    assert "docs/images/explain.png" in local
    for target in local:
        assert (ROOT / target).exists(), target


def test_readme_explanation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = [code for language, code in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))]
    (code,) = [code for code in blocks if "roialign.explain(" in code]
    exec(code, {})
    assert (tmp_path / "shift.pdf").read_bytes().startswith(b"%PDF")


def test_readme_picture_is_what_the_code_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import figures  # type: ignore[import-not-found]

    with Image.open(figures.PICTURE) as picture:
        assert picture.info["Description"] == repr(figures.example())
        assert picture.width >= 1500
