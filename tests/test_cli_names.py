"""Other programs' names for our commands and options: refused, and ours is said."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from roialign.cli import app
from test_detection_formats import said


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("predict photo.jpg", "No such command 'predict'; here it is detect."),
        ("val", "No such command 'val'; here it is evaluate."),
        ("test", "No such command 'test'; here it is evaluate."),  # whose spelling is nearest to detect
        ("detect --conf 0.5", "No such option: --conf; here it is --score"),
        ("detect --conf=0.5", "No such option: --conf; here it is --score"),
        ("detect --source photos", "No such option: --source; here it is the argument images"),
        ("train --source photos", "No such option: --source; here it is --images"),
        ("train --imgsz 640", "No such option: --imgsz; here it is --crop"),
        ("evaluate --imgsz 640", "No such option: --imgsz; here it is --tile"),
        ("train --data data.yaml", "No such option: --data; here it is the argument annotations"),
        ("train --model a.safetensors", "No such option: --model; here it is --weights"),
        ("export --weights a.safetensors", "No such option: --weights; here it is the argument model"),
        ("evaluate --project runs", "No such option: --project; here it is --out"),
        ("export --conf 0.5", "No such option: --conf "),  # it has none
        ("train --epoch 3", "No such option: --epoch (Possible options: --epochs)"),  # by the spelling, as ever
    ],
)
def test_a_foreign_name_is_refused_and_ours_said(line: str, told: str) -> None:
    result = CliRunner().invoke(app, line.split(), terminal_width=200)
    assert result.exit_code == 2
    assert told in said(result).replace("│", "").replace("  ", " ")
    assert ("here it is" in said(result)) == ("here it is" in told)


@pytest.mark.parametrize("line", ["-h", "train -h", "explain -h"])
def test_help_has_its_short_name(line: str) -> None:
    short, long = (CliRunner().invoke(app, line.replace("-h", name).split()) for name in ("-h", "--help"))
    assert (short.exit_code, short.output) == (0, long.output)
    assert "Usage: " in short.output
