"""Thousands of damaged annotation files: each is read rightly or refused in one line, and nothing else happens."""

from __future__ import annotations

import codecs
import copy
import json
import math
import os
import random
from pathlib import Path
from typing import Any

from annotated import check_entries
from roialign.detection.datasets import AnnotatedImages
from test_detection_annotations import base
from test_detection_annotations import photos as photos

MUTATIONS = int(os.environ.get("ROIALIGN_MUTATIONS", "500"))
NASTY = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2**31,
        2**63,
        10**400,
        0.5,
        -0.0,
        1e308,
        math.nan,
        math.inf,
        -math.inf,
        "",
        "0",
        "1",
    ),
    *("\ud800", "\0", "a.png", "..", "/", "x" * 300, [], {}, [[]], [None] * 4, [0, 0, 1e308, 1e308], {"id": 7}),
)
BYTES = (
    *(
        b"NaN",
        b"Infinity",
        b"1e999",
        b"-1e999",
        b"null",
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b"\\",
        b"\\ud800",
        b"\xff",
        b"\0",
    ),
    *(codecs.BOM_UTF8, b",", b":", b"9" * 5000, b"[" * 3000, b'{"id":' * 3000, b"true", b"1e400", b'"id":7,'),
)


def mutate(chance: random.Random) -> bytes:
    """A good file with one to four changes to its values or its bytes."""
    content: Any = base()
    for _ in range(chance.randrange(4)):
        node, places = content, []
        while isinstance(node, dict | list) and node and (not places or chance.random() < 0.8):
            key = chance.choice(sorted(node)) if isinstance(node, dict) else chance.randrange(len(node))
            places.append((node, key))
            node = node[key]
        if not places:
            break
        parent, key = places[-1]
        match chance.randrange(5):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case 2 if isinstance(parent, dict):
                parent[chance.choice(("id", "bbox", "width", "file_name", "other"))] = copy.deepcopy(parent[key])
            case _:
                parent[key] = copy.deepcopy(chance.choice(NASTY))
    raw = bytearray(json.dumps(content, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass"))
    for _ in range(chance.choice((0, 0, 0, 1, 2))):
        start = chance.randrange(len(raw) + 1)
        match chance.randrange(4):
            case 0:
                raw[start : start + chance.randrange(20)] = b""
            case 1:
                raw[start : start + 1] = bytes([chance.randrange(256)])
            case 2:
                raw = raw[:start] if chance.random() < 0.2 else raw
            case _:
                raw[start : start + chance.randrange(4)] = chance.choice(BYTES)
    return bytes(raw)


def attempt(file: Path, photos: Path) -> tuple[AnnotatedImages | None, Exception | None]:
    try:
        return AnnotatedImages(file, photos), None
    except (ValueError, FileNotFoundError) as error:
        return None, error


def test_mutated_files_are_read_or_refused(photos: Path, tmp_path: Path) -> None:
    chance = random.Random(20)
    file = tmp_path / "mutated.json"
    read = 0
    for number in range(MUTATIONS):
        raw = mutate(chance)
        file.write_bytes(raw)
        data, error = attempt(file, photos)
        if data is None:
            assert str(error).startswith(f"{file}: "), (number, raw)
            assert len(str(error).encode().splitlines()) == 1, (number, raw)  # and it can be printed
            continue
        read += 1
        check_entries(data, raw)
        assert all((entry.areas >= 0).all() for entry in data.entries), raw
        assert all(len(note.encode().splitlines()) == 1 for note in data.notes), raw
    assert MUTATIONS / 5 < read < MUTATIONS * 4 / 5  # it tries both
