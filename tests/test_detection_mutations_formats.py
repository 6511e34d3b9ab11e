"""Hundreds of damaged files of each format: each is read rightly or refused in one line, and nothing else happens."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest

from annotated import SCENES, check_entries, paint, write_csv, write_voc, write_yolo
from roialign.detection.datasets import AnnotatedImages

MUTATIONS = int(os.environ.get("ROIALIGN_MUTATIONS", "500")) // 2
WORDS = """nan inf -1 1e999 0.5 999 b .png .. / \\ , ; " ' [ ] { } : - ~ | ? ,, labels null no < > </ <name> <object>
<bndbox> <xmin> &amp; &#0; &#10; &x; <!DOCTYPE <!-- <![CDATA[ ]]> *a &a !!python/none !!binary <<:
"\\ud800" "\\n" &a[*a]"""
PIECES = (
    *(word.encode() for word in WORDS.split()),
    *(
        b" ",
        b"\t",
        b"\0",
        b"\n",
        b"\r",
        b"\n\n",
        b"\xc2\x85",
        b"\xe2\x80\xa8",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
    ),
    *(b": ", b"- ", b"a 1", b"9" * 400, b"[" * 300, b"<a>" * 3000, b"%YAML 9.9\n---\n", b"x" * 5000),
    b"<?xml version='1.0' encoding='utf-16'?>",
)
FORMATS = {
    "yaml": ("images/train", write_yolo, "data.yaml"),
    "labels": ("images/train", write_yolo, "labels/train/b.txt"),
    "xml": ("JPEGImages", write_voc, "Annotations/b.xml"),
    "csv": (".", write_csv, "boxes.csv"),
}


def mutate(good: bytes, chance: random.Random) -> bytes:
    """One to four changes: of the bytes, or of a word for another, which leaves the grammar whole."""
    raw = bytearray(good)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        words = [match.span() for match in re.finditer(rb"[\w.]+", raw)]
        start, stop = chance.choice(words) if words else (0, 0)
        place = chance.choice((start, stop, chance.randrange(len(raw) + 1)))
        match chance.randrange(8):
            case 0:
                raw[place : place + chance.randrange(20)] = b""
            case 1:
                raw[place : place + 1] = bytes([chance.randrange(256)])
            case 2:
                raw[place:place] = raw[place : place + chance.randrange(200)]
            case 3:
                raw = raw[:place] if chance.random() < 0.2 else raw
            case 4 | 5:
                raw[start:stop] = chance.choice((*(raw[a:b] for a, b in words), b"", b"nan", b"-7", b"1e9", b"0.1"))
            case _:
                raw[place : place + chance.randrange(4)] = chance.choice(PIECES)
    return bytes(raw)


def attempt(source: Path) -> tuple[AnnotatedImages | None, str]:
    try:
        return AnnotatedImages(source), ""
    except (ValueError, FileNotFoundError) as error:
        return None, str(error)


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    images, writer, file = FORMATS[name]
    paint(tmp_path / images, SCENES)
    source = writer(tmp_path, SCENES)
    good = (tmp_path / file).read_bytes()
    chance = random.Random(name)
    read = 0
    for number in range(MUTATIONS):
        raw = mutate(good, chance)
        (tmp_path / file).write_bytes(raw)
        data, error = attempt(source)
        lines = [error] if data is None else data.notes
        assert all(len(line.encode().splitlines()) == 1 for line in lines), (number, raw)  # and can be printed
        assert all(line.startswith(f"{source}: ") for line in lines), (number, raw)
        assert all(len(line) < 2000 for line in lines), (number, raw)
        if data is None:
            continue
        read += 1
        check_entries(data, raw)
        assert all((entry.areas > 0).all() for entry in data.entries), raw
    assert MUTATIONS / 20 < read < MUTATIONS * 19 / 20  # it tries both
