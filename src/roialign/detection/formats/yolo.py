"""YOLO's text files, as Ultralytics reads them: a yaml names classes and folders of images, each with a label file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from ..annotations import Annotations, Box, Picture
from ..fields import number_in, path_shown, shown, text, whole, whole_in
from ..images import SUFFIXES
from ..masks import Polygons
from .outlines import Corners, around_points
from .source import PARTS, Source, read_text, within

LEAST, MOST = -0.01, 1.01  # of a fraction of the image: Ultralytics' own margins
KEYS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}


def parts(path: Path) -> tuple[str, ...]:
    """Those of PARTS that the yaml names."""
    content = _parse(read_text(path))
    return tuple(part for part in PARTS if _entry(content, part))


def read(source: Source) -> Annotations:
    """Read what a yaml names: ``names``, ``path``, and ``train``, ``val`` and ``test``, folders or lists of images.

    A row is a class and centre, width and height in fractions of the image, or the points of an outline, whose box is
    taken. The label file of ``images/a.jpg`` is ``labels/a.txt``; an image without one has no objects. Images are in
    the order of their paths, classes in the yaml's.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: what is wrong, with its place.
    """
    if source.images is not None:
        raise ValueError("--images is not for YOLO, whose yaml says where the images are")
    content = _parse(read_text(source.path))
    names = _names(content)
    keypoints = _keypoints(content)
    folder = source.path.parent
    wanted = PARTS if source.part is None else (source.part,)
    files = sorted({file: None for part in wanted for file in _images(folder, content, part)})
    if not files:
        raise ValueError(f"{source.part or 'train'}: no images there")
    boxes: list[Box] = []
    places: list[str] = []
    bare: list[str] = []
    read = [source.path]
    for index, file in enumerate(files):
        labels = _labels(file)
        if labels is None:
            bare.append(repr(str(file)))
            continue
        read.append(labels)
        place = within(labels, folder)
        for line, row in enumerate(read_text(labels, place).splitlines(), 1):
            if not row.strip():
                continue
            try:
                category, corners, outline = _row(row.split(), names, keypoints)
                if source.masks and outline is None:
                    raise ValueError("got a box; expected class and the points of an outline, since masks are wanted")
            except ValueError as error:
                raise ValueError(f"{place}: line {line}: {error}") from None
            boxes.append(Box(index, category + 1, corners, outline=outline if source.masks else None))
            places.append(f"{place}: line {line}")
    if len(bare) == len(files):
        raise ValueError(f"no label files: for {bare[0]} expected {path_shown(_expected(files[0])[0])}")
    pictures = [Picture(k, within(file, folder), file, within(file, folder)) for k, file in enumerate(files, 1)]
    told = {"images have no label file and count as images without objects": bare}
    categories = {category + 1: name for category, name in sorted(names.items())}
    return Annotations(pictures, boxes, categories, places.__getitem__, read, told, fractions=True)


class _Loader(yaml.BaseLoader):  # type: ignore[misc]
    """Plain lists, objects and text, so that a class may be called no; a key that is there twice is refused."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in seen:
                raise ValueError(f"the key {shown(key)} is there twice")
            seen.add(key)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def _parse(content: str) -> dict[str, Any]:
    try:
        found = yaml.load(content, Loader=_Loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"got {shown(found)}; expected YOLO's names: and train:")
    return found


def _names(content: dict[str, Any]) -> dict[int, str]:
    """The classes by their numbers in the label files."""
    given = content.get("names")
    if not isinstance(given, list | dict) or not given:
        raise ValueError(f"names: got {shown(given)}; expected a list of the classes, or an object by number")
    numbered = given.items() if isinstance(given, dict) else ((str(index), name) for index, name in enumerate(given))
    names: dict[int, str] = {}
    for key, name in numbered:
        category = _whole_in(key)
        if category is None or category < 0 or category in names or whole(category + 1) is None:  # which is its id
            raise ValueError(f"names: got {shown(key)}; expected whole numbers from 0, each once")
        if not text(name):
            raise ValueError(f"names: {category}: got {shown(name)}; expected text")
        names[category] = name
    if content.get("nc") and _whole_in(content["nc"]) != len(names):
        raise ValueError(f"nc: got {shown(content['nc'])}; there are {len(names)} names")
    return names


def _whole_in(value: Any) -> int | None:
    return whole_in(value) if isinstance(value, str) else None


def _keypoints(content: dict[str, Any]) -> int:
    """How many numbers follow a box where the labels are poses."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    sides = [_whole_in(side) for side in shape] if isinstance(shape, list) else []
    if len(sides) != 2 or sides[0] is None or sides[0] < 1 or sides[1] not in (2, 3):
        raise ValueError(f"kpt_shape: got {shown(shape)}; expected how many points, and 2 or 3")
    return sides[0] * sides[1]


def _entry(content: dict[str, Any], part: str) -> list[str]:
    """What the yaml has for a part: one text or several."""
    found: Any = next((content[key] for key in KEYS[part] if content.get(key)), [])
    given: list[Any] = found if isinstance(found, list) else [found]
    if not all(isinstance(each, str) and "\0" not in each for each in given):
        raise ValueError(f"{part}: got {shown(given)}; expected a folder, a list of images in a .txt, or several")
    return given


def _images(folder: Path, content: dict[str, Any], part: str) -> list[Path]:
    """The images of a part."""
    root = content.get("path") or "."
    if not isinstance(root, str) or "\0" in root:
        raise ValueError(f"path: got {shown(root)}; expected the folder of the data set")
    # Ultralytics looks for a relative one from where it runs and in a folder of its own; many yamls lie in it.
    roots = [folder / root, Path(root), folder]
    return list(chain.from_iterable(_listed(_found(roots, name, part), part) for name in _entry(content, part)))


def _found(roots: Sequence[Path], name: str, part: str) -> Path:
    # Roboflow's yamls lead one folder up and mean their own.
    names = [name, name.removeprefix("../")]
    for candidate in (root / each for root in roots for each in names):
        if os.path.exists(candidate):
            return candidate
    raise FileNotFoundError(f"{part}: {path_shown(roots[0] / name)} is not there")


def _listed(path: Path, part: str) -> list[Path]:
    """The images in a folder, or in the list that a text file has."""
    if os.path.isdir(path):
        return [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    if path.suffix.lower() != ".txt":
        raise ValueError(f"{part}: got {path_shown(path)}; expected a folder, or a list of images in a .txt")
    names = [line.strip() for line in read_text(path, shown(path)).splitlines()]
    return [path.parent / name for name in names if name]


def _expected(file: Path) -> list[Path]:
    """Where the label file of an image may be: in the same place below labels, or beside it."""
    beside = file.with_suffix(".txt")
    folders = file.absolute().parts[:-1]
    if "images" not in folders:
        return [beside]
    last = len(folders) - 1 - folders[::-1].index("images")
    return [Path(*folders[:last], "labels", *folders[last + 1 :], beside.name), beside]


def _labels(file: Path) -> Path | None:
    return next((each for each in _expected(file) if os.path.isfile(each)), None)


def _row(fields: list[str], names: dict[int, str], keypoints: int) -> tuple[int, Corners, Polygons | None]:
    """Class, corners and outline, if it has one, in fractions of the image."""
    values = [number_in(field) for field in fields]
    if None in values:
        raise ValueError(f"got {shown(fields[values.index(None)])}; expected a number")
    numbers = [value for value in values[1:] if value is not None]
    category = whole_in(fields[0])
    if category not in names:
        raise ValueError(f"class: got {shown(fields[0])}; the names have {shown(sorted(names))}")
    assert category is not None
    if keypoints and len(numbers) == 4 + keypoints:
        numbers = numbers[:4]
    outline = not keypoints and len(numbers) >= 6 and len(numbers) % 2 == 0
    if len(numbers) != 4 and not outline:
        raise ValueError(
            f"got {len(fields)} numbers; expected 5 (class, centre x, centre y, width, height), or class and the "
            "points of an outline"
        )
    for field, value in zip(fields[1:], numbers, strict=False):
        if math.isfinite(value) and not LEAST <= value <= MOST:
            raise ValueError(f"got {shown(field)}; expected fractions of the image, from 0 to 1")
    if outline:
        return category, around_points(numbers), (tuple(numbers),)
    x, y, width, height = numbers
    return category, (x - width / 2, y - height / 2, x + width / 2, y + height / 2), None
