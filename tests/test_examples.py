"""What a newcomer runs first: the README's code, the examples, the command line."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import roialign
from roialign import __main__ as entry
from roialign.cli import app

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_readme_code_gives_the_numbers_it_states(readme: str) -> None:
    text = (ROOT / readme).read_text()
    code = re.search(r"```python\n(import torch.*?)```", text, re.DOTALL)
    assert code is not None
    lines = code[1].strip().splitlines()
    stated = [float(number) for number in re.findall(r"\d+\.\d+", lines[-1])]
    scope: dict[str, object] = {}
    exec("\n".join(lines[:-1]), scope)
    pooled = eval(lines[-1], scope)
    assert pooled.shape == (1, 1, 2, 2)
    torch.testing.assert_close(pooled.flatten(), torch.tensor(stated), atol=0.006, rtol=0)


def test_simple_example(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "simple.py"))
    assert "torch.Size([1, 1, 2, 2])" in capsys.readouterr().out


@pytest.mark.slow
def test_faster_rcnn_example(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    scope = runpy.run_path(str(ROOT / "examples" / "faster_rcnn.py"))
    assert isinstance(scope["roi_pooler"], roialign.MultiScaleRoIAlign)
    assert all(torch.isfinite(loss) for loss in scope["losses"].values())
    assert "boxes from a model" in capsys.readouterr().out


@pytest.mark.slow
def test_what_differs_example_still_differs_in_our_favour(capsys: pytest.CaptureFixture[str]) -> None:
    scope = runpy.run_path(str(ROOT / "examples" / "what_differs.py"))
    cases = scope["CASES"]

    def ours(name: str) -> str:
        """The answer in this process: ours does not die."""
        try:
            exec(scope["program"]("roialign", cases[name]), {})
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return capsys.readouterr().out.strip()

    telling = [name for name in cases if name.startswith(("batch", "NaN", "infinite", "float16", "pyramid: level"))]
    assert len(telling) == 6  # the others' values are tested elsewhere
    answers = {name: ours(name) for name in telling}
    assert answers["batch index 7 of 1 image"].startswith("IndexError: boxes: row 0 has batch index 7")
    assert answers["NaN in a box"] == "tensor([[[[nan]]]])"
    assert answers["float16: ones under a 512-pixel box"] == "1.0"
    assert answers["pyramid: level misspelt"] == "ValueError: x: has no level 'p3'; it has ['0', '1']"
    for name in telling[0], "NaN in a box":  # an error and a number, as the example comes by them
        assert scope["answer"]("roialign", cases[name]) == answers[name]


@pytest.mark.slow
def test_demo_draws_every_crown_and_tells_where(tmp_path: Path) -> None:
    # A process of its own: the tutorial's detector and its gradients take 2.5 GB, which a worker would keep.
    command = [sys.executable, "-m", "roialign", "demo", "--out", str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    for text in ("18.59375", "(61, 3, 96, 96)", "loss_classifier", "crowns.png"):
        assert text in done.stdout
    with Image.open(tmp_path / "crowns.png") as picture:
        assert picture.size == (1600, 840)
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 10_000  # a photo, not an empty page
    right = re.search(r"found: (\d+) of 96 trees", " ".join(re.sub(r"[│\n]", " ", done.stdout).split()))
    assert right is not None
    assert int(right[1]) > 55
    with Image.open(tmp_path / "detection.png") as picture:
        panels = [picture.convert("RGB").crop((0, y, 1600, y + 530)).getcolors(1 << 24) or [] for y in (0, 530)]
    found, truth = ({colour: count for count, colour in colours} for colours in panels)
    right_colour, wrong, missed = ((240, 228, 66), (213, 94, 0), (86, 180, 233))
    assert min(found[right_colour], found[wrong], truth[right_colour], truth[missed]) > 300
    assert found.get(missed, 0) == truth.get(wrong, 0) == 0
    with Image.open(tmp_path / "explain.png") as picture:
        assert "18.59375" in picture.info["Description"]
    assert "0.375" in (tmp_path / "explain.html").read_text(encoding="utf-8")


def test_version_and_help() -> None:
    done = subprocess.run([sys.executable, "-m", "roialign", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == roialign.__version__
    assert "demo" in CliRunner().invoke(app, ["--help"]).output


def test_without_extras_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "roialign.cli", None)
    with pytest.raises(SystemExit, match=r"pip install 'roialign\[all\]'"):
        entry.main()
