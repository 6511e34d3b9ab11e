"""Pascal VOC: a folder with an XML file for each image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from xml.etree import ElementTree

from ..annotations import Annotations, Box, Picture
from ..fields import length, number_in, shown
from ..images import SUFFIXES
from .source import PARTS, Source, read_bytes, read_text, within


def parts(path: Path) -> tuple[str, ...]:
    """Those of PARTS that have a list of images, if ``train`` has one."""
    there = tuple(part for part in PARTS if _list(path, part).is_file())
    return there if "train" in there else ()


def read(source: Source) -> Annotations:
    """Read a folder with ``Annotations``, ``JPEGImages`` and ``ImageSets/Main``, or with XML files beside their images.

    VOC counts pixels from 1, and a box has its last: its edges are xmin - 1, ymin - 1, xmax, ymax. Classes are in the
    alphabet's order.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: what is wrong, with its place.
    """
    path = source.path
    nested = path / "Annotations"
    folder = nested if nested.is_dir() else path
    usual = path / "JPEGImages"
    if path.name == folder.name == "Annotations":  # named in the place of its data set
        usual = path.parent / usual.name
    images = source.images or (usual if usual.is_dir() else folder)
    files = _files(path, folder, source.part)
    pictures: list[Picture] = []
    found: list[tuple[int, str, tuple[float, ...], bool]] = []
    places: list[str] = []
    first: dict[Path, str] = {}
    for file in files:
        place = within(file, path)
        try:
            root = _parse(read_bytes(file))
            picture = _picture(root, file.relative_to(folder), images, len(pictures) + 1, place)
            if first.setdefault(picture.file, place) != place:
                raise ValueError(f"filename: {first[picture.file]} has {picture.name!r} too")
            for at, element in _objects(root):
                name, corners, difficult = _named(at, element)
                found.append((len(pictures), name, corners, difficult))
                places.append(f"{place}: {at} ({shown(name)})")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{place}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        pictures.append(picture)
    numbers = {name: number for number, name in enumerate(sorted({name for _, name, *_ in found}), 1)}
    if not numbers:
        raise ValueError("no object in any file")
    boxes = [
        Box(picture, numbers[name], (x1 - 1, y1 - 1, x2, y2), math.nan, difficult)
        for picture, name, (x1, y1, x2, y2), difficult in found
    ]
    outside = [place for place, box in zip(places, boxes, strict=True) if min(box.corners[:2]) < 0]
    told = {"boxes begin before the first pixel, which is 1 in Pascal VOC": outside}
    categories = {number: name for name, number in numbers.items()}
    return Annotations(pictures, boxes, categories, places.__getitem__, files, told)


def _list(path: Path, part: str) -> Path:
    return path / "ImageSets" / "Main" / f"{part}.txt"


def _files(path: Path, folder: Path, part: str | None) -> list[Path]:
    """The XML files, all or those of a part, in order."""
    if part is None:
        every = folder.rglob("*") if folder != path else folder.iterdir()
        files = sorted(file for file in every if file.suffix.lower() == ".xml")
    else:
        listed = _list(path, part)
        place = within(listed, path)
        names = [line.strip().strip('"') for line in read_text(listed, place).splitlines()]
        first: dict[str, int] = {}
        for line, name in enumerate(names, 1):
            if ".." in PurePath(name).parts or PurePath(name).is_absolute() or "\0" in name:
                raise ValueError(f"{place}: line {line}: got {shown(name)}; expected a name in {folder.name}")
            if name and first.setdefault(name, line) != line:
                raise ValueError(f"{place}: line {line}: got {shown(name)}, as in line {first[name]}")
        files = [folder / f"{name}.xml" for name in first]
    if not files:
        raise ValueError(f"no XML files{f' in {place}' if part else ''}")
    return files


class _Builder(ElementTree.TreeBuilder):
    """Of a tree without a document type, which alone can define the entities that a small file explodes by."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ValueError("has a document type, which Pascal VOC has not")


def _parse(raw: bytes) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(raw, ElementTree.XMLParser(target=_Builder()))
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"not XML: {error}") from None
    if root.tag != "annotation":
        raise ValueError(f"got {shown(root.tag)}; expected Pascal VOC's annotation")
    return root


def _picture(root: ElementTree.Element, file: Path, images: Path, number: int, place: str) -> Picture:
    """The image of a file, by the name that it has in it; some tools write that without its suffix or folder."""
    name = _text(root, "filename")
    candidates = [name, str(file.parent / name), *(str(file.with_suffix(suffix)) for suffix in _suffixes())]
    there = next((each for each in candidates if os.path.isfile(images / each)), name)
    size = _only(root, "size")
    sides = None if size is None else [_number(size, side) for side in ("width", "height")]
    if sides in (None, [0, 0]):  # some tools do not know
        return Picture(number, there, images / there, place)
    width, height = map(length, sides or ())
    if width is None or height is None:
        raise ValueError(f"size: got {shown(sides)}; expected whole numbers from 1")
    return Picture(number, there, images / there, place, (width, height))


def _suffixes() -> Iterator[str]:
    for suffix in SUFFIXES:
        yield from (suffix, suffix.upper())


def _objects(root: ElementTree.Element) -> Iterator[tuple[str, ElementTree.Element]]:
    for index, element in enumerate(root.findall("object")):
        yield f"object[{index}]", element


def _named(at: str, element: ElementTree.Element) -> tuple[str, tuple[float, ...], bool]:
    """Class, xmin, ymin, xmax, ymax and whether it is difficult."""
    try:
        name = _text(element, "name")
        at += f" ({shown(name)})"
        frame = _only(element, "bndbox")
        if frame is None:
            raise ValueError("no bndbox")
        corners = tuple(_number(frame, edge) for edge in ("xmin", "ymin", "xmax", "ymax"))
        difficult = _number(element, "difficult") if _only(element, "difficult") is not None else 0
        if difficult not in (0, 1):
            raise ValueError(f"difficult: got {difficult:g}; expected 0 or 1")
    except ValueError as error:
        raise ValueError(f"{at}: {error}") from None
    return name, corners, bool(difficult)


def _only(element: ElementTree.Element, tag: str) -> ElementTree.Element | None:
    found = element.findall(tag)
    if len(found) > 1:
        raise ValueError(f"{tag} is there {len(found)} times")
    return found[0] if found else None


def _text(element: ElementTree.Element, tag: str) -> str:
    child = _only(element, tag)
    if child is None:
        raise ValueError(f"no {tag}")
    value = (child.text or "").strip()
    if not value:
        raise ValueError(f"{tag}: got ''; expected text")
    return value


def _number(element: ElementTree.Element, tag: str) -> float:
    value = _text(element, tag)
    parsed = number_in(value)
    if parsed is None:
        raise ValueError(f"{tag}: got {shown(value)}; expected a number")
    return parsed
