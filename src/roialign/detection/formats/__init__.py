"""Annotations of any format, told apart by what they are. A new format is a file with ``parts`` and ``read``.

Whatever is wrong leaves here as a ValueError or a FileNotFoundError, in one line that begins with the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..annotations import Annotations, Checked, check
from . import coco, table, voc, yolo
from .source import COLUMNS as COLUMNS
from .source import PARTS as PARTS
from .source import Source as Source

WANTED = "expected COCO's JSON, YOLO's yaml, a folder of Pascal VOC's or a table of boxes"
LABELS = "YOLO's labels; name the yaml that has their names: and train:"


class _Format(NamedTuple):
    parts: Callable[[Path], tuple[str, ...]]
    read: Callable[[Source], Annotations]


COCO, TABLE, VOC, YOLO = (_Format(module.parts, module.read) for module in (coco, table, voc, yolo))
_BY_SUFFIX = {".json": COCO, ".yaml": YOLO, ".yml": YOLO, ".csv": TABLE, ".tsv": TABLE}


def parts(path: Path) -> tuple[str, ...]:
    """Which of PARTS the annotations have; none if they are not parted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what is wrong, in one line.
    """
    form, file = _find(path)
    with _named(file):
        return form.parts(file)


def read(source: Source) -> Checked:
    """Read annotations, and the sizes of their images from their heads.

    Raises:
        FileNotFoundError: the annotations or some images are not there.
        ValueError: what is wrong, in one line with file, place and id.
    """
    form, file = _find(source.path)
    with _named(file):
        there = form.parts(file)
        if source.part and source.part not in there:
            raise ValueError(f"has no part {source.part}; it has {', '.join(there) or 'one part only'}")
        if source.masks and form in (TABLE, VOC):
            raise ValueError("has boxes only; masks are in COCO's JSON (segmentation) and in YOLO's outlines")
        found = form.read(source._replace(path=file))
        try:
            checked = check(found, source.masks)
        except FileNotFoundError as error:
            where = "" if source.images or form is YOLO else "; --images names their folder"
            raise FileNotFoundError(f"{error}{where}") from None
    return checked._replace(notes=[f"{file}: {note}" for note in checked.notes])


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """What is wrong begins with the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: {error}") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _find(path: Path) -> tuple[_Format, Path]:
    """The format, and the file that has it if a folder was named."""
    with _named(path):
        if os.path.isdir(path):
            found = _in_folder(path)
            if found is None:
                below = [file.name for file in sorted(path.iterdir()) if file.is_dir() and _in_folder(file)]
                raise ValueError(f"a folder; {f'name one of those in it: {below}' if below else WANTED}")
            return found
        if not os.path.exists(path):
            raise FileNotFoundError("no such file")
        return _of_file(path), path


def _of_file(path: Path) -> _Format:
    suffix = path.suffix.lower()
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    with path.open("rb") as file:
        start = file.read(4096)
    if b"\0" in start:  # no text: a detector, a picture
        raise ValueError(WANTED)
    line = start.decode("utf-8", "replace").lstrip("\ufeff \r\n\t").partition("\n")[0]
    if line.startswith(("{", "[")):
        return COCO
    if line.startswith("<") or suffix == ".xml":
        raise ValueError("a file of Pascal VOC's; name their folder")
    if len(line.split()) >= 5 and not line.strip("0123456789.+-e \r\t"):
        raise ValueError(LABELS)
    if any(line.count(delimiter) >= 5 for delimiter in table.DELIMITERS):
        return TABLE
    raise ValueError(WANTED)


def _in_folder(path: Path) -> tuple[_Format, Path] | None:
    """What a folder has; None: nothing known."""
    inside = sorted(path.iterdir())
    suffixes = {file.suffix.lower() for file in inside}
    if ".xml" in suffixes or (path / "Annotations").is_dir():
        return VOC, path
    yamls = [file for file in inside if file.suffix.lower() in (".yaml", ".yml")]
    if yamls:
        return YOLO, _one(path, yamls, "data.yaml")
    if (path / "labels").is_dir() or ".txt" in suffixes:
        raise ValueError(f"a folder; {LABELS}")
    files = [*inside, *sorted((path / "annotations").glob("*"))]
    files = [file for file in files if file.suffix.lower() in _BY_SUFFIX]
    if not files:
        return None
    file = _one(path, files, "_annotations.coco.json")
    return _BY_SUFFIX[file.suffix.lower()], file


def _one(path: Path, files: list[Path], usual: str) -> Path:
    """The only file, or the one with the usual name."""
    named = [file for file in files if file.name == usual]
    if len(files) > 1 and not named:
        raise ValueError(f"a folder; name one of those in it: {[str(file.relative_to(path)) for file in files]}")
    return (named or files)[0]
