"""What commands write and print: no file that is not ours is replaced, and any name is shown."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from roialign.outputs import LOG, Folder, check_files, write_atomically
from roialign.terminal import cell, say, shown


def put(folder: Path, **files: str) -> None:
    with Folder(folder) as out:
        for stem, text in files.items():
            out.claim(f"{stem}.txt")
            out.write(f"{stem}.txt", text.encode())


def test_a_run_replaces_what_the_last_one_left(tmp_path: Path) -> None:
    put(tmp_path, a="one", b="two")
    put(tmp_path, a="three")
    put(tmp_path, a="four", b="five")
    assert (tmp_path / "a.txt").read_text() == "four"
    assert {file.name for file in tmp_path.iterdir()} == {"a.txt", "b.txt", LOG}


def link(path: Path) -> None:
    path.symlink_to("elsewhere/kept")


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def hard_link(path: Path) -> None:
    path.hardlink_to(path.parent / "elsewhere" / "kept")


def edited(path: Path) -> None:
    put(path.parent, a="ours")
    path.write_text("ours, and a remark of the user")


@pytest.mark.parametrize("make", [link, dangling, hard_link, edited, Path.mkdir, lambda path: path.write_text("mine")])
def test_what_no_run_left_is_never_replaced(make: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    make(tmp_path / "a.txt")
    before = {path: (path.lstat().st_ino, path.is_file() and path.read_text()) for path in tmp_path.rglob("*[ta]")}
    with Folder(tmp_path) as out:
        with pytest.raises(FileExistsError, match=r"a\.txt: is there, and no file that roialign left"):
            out.claim("a.txt")
        assert out.pick("a", ".txt") == "a-2.txt"
        out.write("a-2.txt", b"drawn")
    assert {path: (path.lstat().st_ino, path.is_file() and path.read_text()) for path in before} == before
    assert (tmp_path / "elsewhere" / "kept").read_text() == "kept"
    assert not (tmp_path / "nowhere").exists()
    with Folder(tmp_path) as out:  # and once more the same
        assert out.pick("a", ".txt") == "a-2.txt"


def test_what_is_read_is_protected_even_if_it_is_ours(tmp_path: Path) -> None:
    put(tmp_path, a="one")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").symlink_to(tmp_path / "a.txt")
    for name in ("a.txt", "sub/a.txt"):
        with Folder(tmp_path) as out:
            assert out.wrote(tmp_path / "a.txt")
            out.protect([tmp_path / name, None, "NoFile_Weights.V1"])
            assert out.pick("a", ".txt") == "a-2.txt"


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("a", "a", "a-2.jpg"),
        ("photo", "PHOTO", "PHOTO-2.jpg"),  # one file on Windows and macOS
        ("stra\u00dfe", "STRASSE", "STRASSE-2.jpg"),
        ("b\u00e4ume", "ba\u0308ume", "ba\u0308ume-2.jpg"),
        ("a", "a-2", "a-2.jpg"),
        ("x" * 300, "x" * 301, "x" * 249 + "-2.jpg"),
        ("\u4e2d" * 100, "\u4e2d" * 100, "\u4e2d" * 83 + "-2.jpg"),  # three bytes each, of 255
        ("\udcff", ".", "..jpg"),
    ],
)
def test_two_pictures_never_have_one_name(first: str, second: str, name: str, tmp_path: Path) -> None:
    with Folder(tmp_path) as out:
        before = out.pick(first, ".jpg")
        assert out.pick(second, ".jpg") == name
        for each in (before, name):
            assert out.write(each, each.encode("utf-8", "surrogateescape")).exists()
    with Folder(tmp_path) as out:
        assert [out.pick(first, ".jpg"), out.pick(second, ".jpg")] == [before, name]


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with Folder(tmp_path), pytest.raises(FileExistsError, match="another roialign is writing there"):
        Folder(tmp_path)
    with Folder(tmp_path), Folder(tmp_path, writes=False) as onlooker:
        assert onlooker.path == tmp_path
    code = "import sys, time; from roialign.outputs import Folder; f = Folder(sys.argv[1]); print('held', flush=True)"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{code}; time.sleep(100)", str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FileExistsError, match="another roialign"):
            Folder(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    put(tmp_path, a="after the crash")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_childs_life_does_not_hold_the_folder(tmp_path: Path) -> None:
    code = """
import os, sys, time
from roialign.outputs import Folder
folder = Folder(sys.argv[1])
if os.fork() == 0:  # as a data loader's workers are made
    print("child", flush=True)
    time.sleep(100)
time.sleep(100)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == "child\n"
        parent.kill()
        parent.wait()
        try:
            put(tmp_path, a="the child still sleeps")
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def test_a_crash_between_list_and_file_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, a="one")
    with Folder(tmp_path) as out, monkeypatch.context() as patch:
        out.claim("a.txt")
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
        with pytest.raises(OSError, match="power cut"):
            out.write("a.txt", b"two")
    with (tmp_path / LOG).open("a") as log:
        log.write('{"name": "a.t')
    put(tmp_path, a="three", b="new")
    put(tmp_path, a="four", b="again")
    assert (tmp_path / "a.txt").read_text() == "four"
    assert [file.name for file in tmp_path.glob(".*.partial")] == []


@pytest.mark.parametrize("content", ["name,blake2b\n", '[{"name": 1}]\n', "[" * 100_000 + "\n", "\0\n"])
def test_a_list_that_is_not_ours_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / LOG).write_text(content)
    with pytest.raises(FileExistsError, match="is not roialign's"):
        Folder(tmp_path)
    assert (tmp_path / LOG).read_text() == content


def test_the_list_is_no_link_and_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "diary").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOG).symlink_to(tmp_path / "diary")
    with pytest.raises(FileExistsError, match="is a link"):
        Folder(tmp_path / "out")
    assert (tmp_path / "diary").read_text() == "mine"
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    put(tmp_path / "alias", a="the folder that was named may be a link")
    assert (tmp_path / "real" / "a.txt").exists()


def test_a_file_that_the_user_names(tmp_path: Path) -> None:
    photo, other = tmp_path / "photo.jpg", tmp_path / "other.json"
    photo.write_text("photo")
    other.write_text("old")
    (tmp_path / "link.json").symlink_to(photo)
    (tmp_path / "same.json").hardlink_to(photo)
    check_files([other, None, tmp_path / "new.json"], [photo, None])
    for outputs, message in (
        ([photo], "is read"),
        ([tmp_path / "same.json"], "is read"),
        ([tmp_path / "link.json"], "is a link"),
        ([Path(os.devnull)], "a device"),
        ([tmp_path], "a folder"),
        ([other, tmp_path / "." / "OTHER.json"], "two files would be written there"),
    ):
        with pytest.raises(FileExistsError, match=message):
            check_files(outputs, [photo])
    for path in (tmp_path / "link.json", Path(os.devnull)):
        with pytest.raises(FileExistsError, match="is a link, a folder or a device"):
            write_atomically(path, b"over it")
    assert photo.read_text() == "photo"


def test_a_partial_file_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.txt", b"one")
    names: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", lambda self, _: names.append(self))
        write_atomically(tmp_path / "a.txt", b"two")
    names[0].unlink()
    (tmp_path / "diary").write_text("mine")
    names[0].symlink_to(tmp_path / "diary")
    write_atomically(tmp_path / "a.txt", b"three")
    assert (tmp_path / "diary").read_text() == "mine"
    assert (tmp_path / "a.txt").read_text() == "three"


NAMES = {
    "plot[north].png": "plot[north].png",
    "site[/b].png": "site[/b].png",
    "[bold red]x[/]": "[bold red]x[/]",
    "[link=file:///etc]x": "[link=file:///etc]x",
    "\\[x]": "\\[x]",
    ":tree: :smile:": ":tree: :smile:",
    "a\x1b[31mb\x07\r\n\t": "a\\x1b[31mb\\x07\\r\\n\\t",
    os.fsdecode(b"caf\xe9.jpg"): "caf\\xe9.jpg",
    "\ud800": "\\ud800",
    "a\u202egpj.exe": "a\\u202egpj.exe",  # would turn what follows around
    "b\u00e4ume \u4e2d": "b\u00e4ume \u4e2d",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name: str) -> None:
    assert shown(name) == NAMES[name]
    console = Console(file=io.StringIO(), width=200, color_system="truecolor", force_terminal=True)
    say(console, name)
    table = Table(title=cell(name))
    table.add_column("name")
    table.add_row(cell(name))
    console.print(table)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.count(NAMES[name]) == 3
    assert printed.encode("utf-8")


def test_a_terminal_without_the_letters_shows_escapes() -> None:
    code = "from roialign.terminal import *; console = make_console(); say(console, '\u4e2d[/x] \\udcff')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=True
    )
    assert done.stdout.decode("ascii").strip() == "\\u4e2d[/x] \\xff"


def test_names_are_kept_in_the_list_whatever_is_in_them(tmp_path: Path) -> None:
    with Folder(tmp_path) as out:
        for name in NAMES:
            out.write(out.pick(name.replace("/", "_").replace("\ud800", ""), ".txt"), name.encode("utf-8", "replace"))
    lines = [json.loads(line) for line in (tmp_path / LOG).read_bytes().splitlines()]
    assert len(lines) == 1 + len(NAMES)
    with Folder(tmp_path) as out:
        assert sum(out.wrote(file) for file in tmp_path.iterdir()) == len(NAMES)
