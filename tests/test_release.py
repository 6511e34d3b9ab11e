"""What a release says of itself: one version, and what each extra brings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.metadata import requires
from pathlib import Path

import pytest

import roialign

ROOT = Path(__file__).parents[1]
INIT = "src/roialign/__init__.py"


def brought(extra: str) -> set[str]:
    """The packages that an extra names itself; those of the package alone for none."""
    of_extra = [line.partition(";") for line in requires("roialign") or []]
    marked = [(line, re.search(r"extra == ['\"](\w+)['\"]", marker)) for line, _, marker in of_extra]
    return {re.split(r"[\s<>=!~\[;]", line)[0] for line, mark in marked if (mark[1] if mark else "") == extra}


def test_the_operators_bring_torch_alone() -> None:
    assert brought("") == {"torch"}


def test_the_detector_brings_no_tool_of_development() -> None:
    """numpy aside, which the tests use, too."""
    assert {"torchvision", "safetensors", "typer"} <= brought("detection")
    assert {"pytest", "ruff", "mypy", "mkdocs", "onnx"} <= brought("test") | brought("docs") | brought("onnx")
    tools = (brought("test") | brought("docs") | brought("onnx")) - {"numpy"}
    assert not brought("detection") & tools
    assert not brought("explain") & tools


@pytest.mark.parametrize("file", ["pyproject.toml", "CMakeLists.txt"])
def test_the_version_is_written_once(file: str) -> None:
    assert roialign.__version__ not in re.sub(r'">?=?[\d.]+"', "", (ROOT / file).read_text("utf-8"))


def test_who_cites_has_the_version() -> None:
    assert f"\nversion: {roialign.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == roialign.__version__
    assert f'{{% set version = "{roialign.__version__}" %}}' in (ROOT / "packaging/conda/meta.yaml").read_text("utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what the release check reads first."""
    for name in ("CITATION.cff", "CHANGELOG.md", "packaging/conda/meta.yaml", "packaging/release-check", INIT):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


WRONG = [
    ("CITATION.cff", "version: ", "version: 9", "CITATION.cff has another version"),
    ("CHANGELOG.md", "## ", "### ", "CHANGELOG.md says nothing of"),
    ("packaging/conda/meta.yaml", 'version = "', 'version = "9', "meta.yaml has another version"),
]


@pytest.mark.parametrize(("file", "there", "wrong", "complaint"), WRONG, ids=[file for file, *_ in WRONG])
def test_the_release_check_notices(file: str, there: str, wrong: str, complaint: str, copy: Path) -> None:
    (copy / file).write_text((copy / file).read_text("utf-8").replace(there, wrong), "utf-8")
    done = subprocess.run([copy / "packaging/release-check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert complaint in done.stderr


@pytest.mark.parametrize(
    ("tag", "complaint"), [("v9.9.9", "the tag is v9.9.9"), ("", "calls")], ids=["other", "unreleased"]
)
def test_a_tag_must_be_the_version(tag: str, complaint: str, copy: Path) -> None:
    changes = copy / "CHANGELOG.md"
    version = roialign.__version__
    changes.write_text(re.sub(rf"## {version}.*", f"## {version} (unreleased)", changes.read_text("utf-8")), "utf-8")
    env = {**os.environ, "RELEASE_TAG": tag or f"v{version}"}
    done = subprocess.run([copy / "packaging/release-check"], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert complaint in done.stderr
