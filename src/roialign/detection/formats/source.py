"""What a reader is asked for; annotation files and the images that they name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from ...terminal import shown

PARTS = ("train", "val", "test")
COLUMNS = ("image_path", "xmin", "ymin", "xmax", "ymax", "label")  # DeepForest's


class Source(NamedTuple):
    """Annotations as the user names them."""

    path: Path
    images: Path | None = None  # the folder of the images; None: as the format has it
    part: str | None = None  # one of PARTS; None: everything
    columns: Sequence[str] = COLUMNS  # of a table: their headings
    masks: bool = False  # the objects' outlines are wanted, too


def read_bytes(file: Path, place: str = "") -> bytes:
    """A file's content.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be read.
    """
    at = f"{place}: " if place else ""
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{at}no such file") from None
    except OSError as error:
        raise ValueError(f"{at}cannot be read: {error.strerror}") from None


def read_text(file: Path, place: str = "") -> str:
    """A file's content as UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(file, place).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = f"{place}: " if place else ""
        raise ValueError(f"{at}not UTF-8: {error.reason} at byte {error.start}") from None


def within(file: Path, root: Path) -> str:
    """A file's name for messages: short if it lies in the folder."""
    return shown(file.relative_to(root) if file.is_relative_to(root) else file)


def locate(names: Sequence[str], folders: Sequence[Path]) -> tuple[list[Path], dict[str, list[str]]]:
    """The files of images, in the folder that has most of them.

    Annotation tools write paths of the machine that they ran on, and Label Studio eight digits before a file's name.
    Where the names as they are lead nowhere, their ends are looked for, if these differ.

    Returns:
        The files, which need not be there; and what the user should know, with examples.
    """
    best, folder, spelling = -1, folders[0], _SPELLINGS[0]
    for spell in _SPELLINGS:
        if best > 0 or len(set(map(spell, names))) < len(set(names)):
            break
        for each in folders:
            count = sum(os.path.isfile(each / spell(name)) for name in names)
            if count > best:
                best, folder, spelling = count, each, spell
            if count == len(names):
                break
    files = [folder / spelling(name) for name in names]
    if spelling is _SPELLINGS[0]:
        return files, {f"images lie outside {folder}": [repr(name) for name in names if _leaves(PurePath(name))]}
    found = [f"{name!r} is {str(file)!r}" for name, file in zip(names, files, strict=True)]
    return files, {"images are found by the end of their names": found}


_SPELLINGS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: re.split(r"[/\\]", name)[-1],
    lambda name: re.sub(r"^[0-9a-f]{8}-", "", re.split(r"[/\\]", name)[-1]),
)


def _leaves(name: PurePath) -> bool:
    return name.is_absolute() or ".." in name.parts
