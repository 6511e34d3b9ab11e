"""The house is built as docs/contributing.md says: what may import what, how long a file gets, where everything is."""

from __future__ import annotations

import ast
import fnmatch
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import roialign

ROOT = Path(__file__).parents[1]
LINES = 400  # of a file
FUNCTION = 80  # lines of a function
PLACES = ("src", "csrc", "tests", "benchmarks", "examples", "docs/figures.py", "docs/family.py")
KINDS = (".py", ".pyi", ".cpp", ".h", ".js", ".css", ".html")


def sources(*kinds: str) -> Iterator[Path]:
    for place in PLACES:
        path = ROOT / place
        yield from sorted(each for each in ([path] if path.is_file() else path.rglob("*")) if each.suffix in kinds)


# Imports.


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """The contracts of a checkout's pyproject.toml, held to its own sources."""
    code = "from importlinter.cli import lint_imports_command as lint; lint()"
    path = os.pathsep.join([str(folder / "src"), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "300"}  # no line broken
    # Without site, whose hooks would find the package of an editable install first.
    command = [sys.executable, "-S", "-c", code, "--no-cache"]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_imports_keep_the_contracts() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


WRONG = [
    ("axis.py", "from . import boxes", "axis -> roialign.boxes"),
    ("terminal.py", "from .spec import Pooling", "terminal -> roialign.spec"),
    ("boxes.py", "import roialign", "boxes -> roialign"),
    ("spec.py", "from .backends import tracing", "spec -> roialign.backends.tracing"),
    ("functional.py", "from .modules import RoIAlign", "functional -> roialign.modules"),
    ("explain/values.py", "from ..detection import tiles", "explain.values -> roialign.detection.tiles"),
    ("functional.py", "def late(): import torchvision", "functional -> torchvision"),
    ("backends/tracing.py", "import numpy", "backends.tracing -> numpy"),
    ("backends/reference.py", "from . import native", "backends.reference -> roialign.backends.native"),
    ("backends/torchvision.py", "from . import native", "backends.torchvision -> roialign.backends.native"),
    ("detection/tiles.py", "def late(): from . import training", "cycles are allowed in roialign.detection"),
    ("modules.py", "def late(): from benchmarks import plot", "modules -> benchmarks.plot"),
    ("newcomer.py", "", "- roialign.newcomer"),
    ("backends/newcomer.py", "", "- roialign.backends.newcomer"),
]


@pytest.mark.parametrize(("file", "line", "complaint"), WRONG, ids=[f"{file} {line}" for file, line, _ in WRONG])
def test_contracts_notice(file: str, line: str, complaint: str, tmp_path: Path) -> None:
    """One wrong line in a copy of the package."""
    code = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.jpg", "*.safetensors")
    for folder in ("src", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=code)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "src" / "roialign" / file).open("a") as changed:
        changed.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert complaint in done.stdout


# Lengths.


def functions(path: Path, text: str) -> Iterator[tuple[str, int]]:
    """What a function begins with, and its lines."""
    if path.suffix in (".py", ".pyi"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield node.name, node.end_lineno - node.lineno + 1
        return
    # C++: a block is a function's if a parenthesis stands before it. Blocks within one, being shorter, do no harm.
    # Comments, strings and macros hold no code.
    hidden = r"""//[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])'|^[ ]*\#(?:\\\n|[^\n])*"""
    text = re.sub(hidden, lambda match: "\n" * match[0].count("\n"), text, flags=re.MULTILINE)
    begun, opened = 0, []
    for mark in re.finditer(r"[{};]", text):
        if mark[0] == "{":
            opened.append((begun, mark.start()))
        elif mark[0] == "}":
            start, end = opened.pop()
            head = text[start:end].lstrip()
            if "(" in head:
                yield head.split("\n")[0].strip(), text.count("\n", end - len(head), mark.end()) + 1
        begun = mark.end()


def test_no_file_is_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in sources(*KINDS)}
    assert {"csrc/core.h", "src/roialign/axis.py", "tests/test_house.py", "docs/figures.py"} <= set(lengths)
    assert not {file: lines for file, lines in lengths.items() if lines > LINES}


def test_no_function_is_long() -> None:
    found = [
        (str(path.relative_to(ROOT)), name, lines)
        for path in sources(".py", ".cpp", ".h")
        for name, lines in functions(path, path.read_text("utf-8"))
    ]
    assert sum(file.startswith("csrc/") for file, _, _ in found) > 100
    assert not [function for function in found if function[-1] > FUNCTION]


def test_lines_of_a_function_by_hand() -> None:
    python = "class A:\n    @property\n    def f(self):\n        def g():\n            return 1\n\n        return g\n"
    assert dict(functions(Path("a.py"), python)) == {"f": 5, "g": 2}
    cpp = """#define BRACE {
namespace a {
template <class T>
struct B {
  int c;
  int d() const { return c; }
};

int e(int x,  // {
      int y) {
  const char* z = "}";
  if (x) {
    return '}';
  }
  return y;
}
}  // namespace a
"""
    assert dict(functions(Path("a.h"), cpp)) == {"int d() const": 1, "int e(int x,": 8, "if (x)": 3}


# The plan.


def plan() -> dict[str, bool]:
    """The paths of the plan in docs/contributing.md, which may be patterns, and whether it looks into them."""
    text = (ROOT / "docs" / "contributing.md").read_text("utf-8")
    block = re.search(r"## The house's plan\n(?:\S.*\n|\n)+((?: {4}.*\n|\n)+)", text)
    assert block is not None
    paths: dict[str, bool] = {}
    above: list[str] = []
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip()) - 4) // 2
        if depth > 4 or not line.strip():  # an explanation goes on
            continue
        for name in re.split(r"\s{2,}", line.strip())[0].split(" "):
            above[depth:] = [name.rstrip("/")]
            paths["/".join(above)] = False
            if depth:
                paths["/".join(above[:depth])] = True
    return paths


def test_the_plan_names_everything_and_nothing_else() -> None:
    written = plan()
    assert written["src/roialign/backends"]
    files = [str(path.relative_to(ROOT)) for path in sources(".py", ".cpp", ".h")]
    there = {str(path) for file in files for path in (Path(file), *Path(file).parents)}
    gone = [path for path in written if not fnmatch.filter(there, path) and not (ROOT / path).exists()]
    assert not gone, "in the plan, and not in the tree"
    patterns = [*written, *(f"{path}/*" for path, looked_into in written.items() if not looked_into)]
    named = {path for pattern in patterns for path in fnmatch.filter(there, pattern)}
    house = {path for path in there if path.startswith(("src/roialign/", "csrc/")) and "__init__" not in path}
    assert not sorted(house - named), "in the tree, and not in the plan"


# Beside the house.


def test_the_bug_form_asks_for_what_can_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    form = " ".join((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text("utf-8").split())
    code = re.search(r'python -c "(.*?)"`', form)
    assert code is not None
    exec(code[1])
    printed = capsys.readouterr().out
    assert f"{roialign.__version__}\n{torch.__version__}\n" in printed
    assert str(roialign.backends.available()) in printed
