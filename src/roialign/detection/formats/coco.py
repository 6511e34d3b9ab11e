"""COCO's JSON, and what mmdetection, Label Studio and CVAT make of it."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar

from ..annotations import Annotations, Box, Entry, ImageId, Picture
from ..fields import flag, frame_fault, length, number, shown, take, text, whole
from .outlines import corners_of, outline_of
from .source import Source, locate, read_bytes

T = TypeVar("T")
WANTED = "expected COCO's JSON, an object with the lists images, annotations and categories"


class _Image(NamedTuple):
    id: ImageId
    name: str
    size: tuple[int, int] | None  # None: it is the file's


def parts(path: Path) -> tuple[str, ...]:
    """A file has no parts."""
    return ()


def read(source: Source) -> Annotations:
    """Read a COCO detection file, in UTF-8 with or without a byte order mark.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: what is wrong, with its place and id.
    """
    content = _parse(read_bytes(source.path))
    categories = dict(sorted(_once(content, "categories", _category)))
    images = [image for _, image in _once(content, "images", _image)]
    _check_frames(content, images)
    known = {image.id: index for index, image in enumerate(images)}
    boxes = _each(content, "annotations", lambda record: _box(record, images, known, categories, source.masks))
    folders = _folders(source.path) if source.images is None else [source.images]
    files, told = locate([image.name for image in images], folders)
    pictures = [
        Picture(image.id, image.name, file, _place(content, "images", index), image.size)
        for index, (image, file) in enumerate(zip(images, files, strict=True))
    ]
    return Annotations(
        pictures, boxes, categories, lambda index: _place(content, "annotations", index), [source.path], told
    )


def _check_frames(content: Mapping[str, list[Any]], images: list[_Image]) -> None:
    first: dict[str, Any] = {}
    for index, (image, record) in enumerate(zip(images, content["images"], strict=True)):
        frame = record.get("frame_id")
        if first.setdefault(image.name, frame) != frame:
            raise ValueError(f"{_place(content, 'images', index)}: {frame_fault(frame, first[image.name])}")


def _folders(path: Path) -> list[Path]:
    """Where the images may be: beside the file, or as in COCO's own folders and CVAT's."""
    part = path.stem.removeprefix("instances_")
    above = path.parent.parent
    others = (path.parent / "images", above / "images" / part, above / "images", above / part)
    return [path.parent, *(folder for folder in others if folder.is_dir())]


def _parse(raw: bytes) -> dict[str, list[Any]]:
    """The three lists of the file.

    Raises:
        ValueError: it is something else.
    """
    try:
        content = json.loads(raw, object_pairs_hook=_keys_once)
    except RecursionError:
        raise ValueError(f"nested too deeply; {WANTED}") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}; {WANTED}") from None
    if not isinstance(content, dict):
        raise ValueError(f"got {shown(content)}; {WANTED}")
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise ValueError(f"no {key}; {WANTED}")
        if not isinstance(content[key], list):
            raise ValueError(f"{key}: got {shown(content[key])}; expected a list")
        if not content[key] and key != "annotations":
            raise ValueError(f"{key}: an empty list; expected at least one")
    return content


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that is there twice, Python's reader would silently keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return found


def _each(content: Mapping[str, list[Any]], key: str, read: Callable[[dict[str, Any]], T]) -> list[T]:
    """Every record of a list, read; an error names the record."""
    found = []
    for index, record in enumerate(content[key]):
        try:
            if not isinstance(record, dict):
                raise ValueError(f"got {shown(record)}; expected an object")
            found.append(read(record))
        except ValueError as error:
            raise ValueError(f"{_place(content, key, index)}: {error}") from None
    return found


def _once(
    content: Mapping[str, list[Any]], key: str, read: Callable[[dict[str, Any]], tuple[Any, T]]
) -> list[tuple[Any, T]]:
    """As :func:`_each`, of records whose ids must differ."""
    found = _each(content, key, read)
    first: dict[Any, int] = {}
    for index, (name, _) in enumerate(found):
        if first.setdefault(name, index) != index:
            raise ValueError(f"{_place(content, key, index)}: {key}[{first[name]}] has this id too")
    return found


def _place(content: Mapping[str, list[Any]], key: str, index: int) -> str:
    record = content[key][index]
    return f"{key}[{index}]" + (f" (id {shown(record['id'])})" if isinstance(record, dict) and "id" in record else "")


def _category(record: dict[str, Any]) -> tuple[int, str]:
    return take(record, "id", whole, "a whole number"), take(record, "name", text, "text")


def _image(record: dict[str, Any]) -> tuple[ImageId, _Image]:
    name: ImageId = take(record, "id", _id, "a whole number or text")
    file = take(record, "file_name", lambda value: value if isinstance(value, str) else None, "text")
    # Both must be right if they are there, and there to be of use.
    size = [take(record, key, length, "a whole number from 1") for key in ("width", "height") if key in record]
    return name, _Image(name, file, (size[0], size[1]) if len(size) == 2 else None)


def _box(
    record: dict[str, Any],
    images: list[_Image],
    known: Mapping[ImageId, int],
    categories: Mapping[int, str],
    masks: bool,
) -> Box:
    image: ImageId = take(record, "image_id", _id, "a whole number or text")
    if image not in known:
        raise ValueError(f"image_id: got {shown(image)}, which no image has as its id")
    category = take(record, "category_id", whole, "a whole number")
    if category not in categories:
        raise ValueError(f"category_id: got {category}; the categories have {shown(list(categories))}")
    if record.get("bbox") in (None, []) and "segmentation" in record:
        corners = corners_of(record["segmentation"], images[known[image]].size)
    else:
        x, y, width, height = take(record, "bbox", _bbox, "four numbers: x, y, width, height")
        corners = (x, y, _end(x, width), _end(y, height))
    area = take(record, "area", _area, "a number from 0") if "area" in record else math.nan
    # COCO's crowds and mmdetection's boxes to be ignored.
    apart = [take(record, key, flag, "0 or 1") for key in ("iscrowd", "ignore") if key in record]
    outline = None
    # Where objects are not told apart a box will do.
    if masks and not (any(apart) and record.get("segmentation") in (None, [])):
        outline = outline_of(record.get("segmentation"), images[known[image]].size)
    return Box(known[image], category, corners, area, any(apart), outline)


def _id(value: Any) -> Any:
    return text(value) if isinstance(value, str) else whole(value)


def _bbox(value: Any) -> list[float] | None:
    numbers = [number(each) for each in value] if isinstance(value, list) and len(value) == 4 else [None]
    return None if None in numbers else numbers  # type: ignore[return-value]


def _end(start: float, extent: float) -> float:
    """Their sum, which is finite where both are."""
    end = start + extent
    overflows = math.isinf(end) and math.isfinite(start) and math.isfinite(extent)
    return math.copysign(sys.float_info.max, end) if overflows else end


def _area(value: Any) -> float | None:
    area = number(value)
    return area if area is not None and 0 <= area < math.inf else None


def pack(entries: Iterable[Entry], categories: Mapping[int, str], folder: Path) -> bytes:
    """A COCO file that will lie in the folder, from which the names of its images lead to them.

    Args:
        entries: the images with their boxes, and with their masks if they have any.
        categories: names by id, in the order of the labels.
        folder: of the file.
    """
    ids = list(categories)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for entry in entries:
        name = relative(entry.file, folder)
        images.append({"id": entry.id, "file_name": name, "width": entry.width, "height": entry.height})
        sizes = (entry.crowds[:, 2:] - entry.crowds[:, :2]).prod(1)
        parts = (
            (entry.boxes, entry.labels, entry.areas, entry.masks, 0),
            (entry.crowds, entry.crowd_labels, sizes, entry.crowd_masks, 1),
        )
        for *values, masks, crowd in parts:
            rows = zip(*(each.tolist() for each in values), strict=True)
            for ((x1, y1, x2, y2), label, area), mask in zip_longest(rows, masks):
                annotations.append({
                    "id": len(annotations) + 1,
                    "image_id": entry.id,
                    "category_id": ids[label - 1],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": area,
                    "iscrowd": crowd,
                    **({"segmentation": mask.rle()} if mask else {}),
                })  # fmt: skip
    classes = [{"id": number, "name": name} for number, name in categories.items()]
    return json.dumps({"images": images, "annotations": annotations, "categories": classes}, indent=1).encode()


def relative(file: Path, folder: Path) -> str:
    """A file's name as it leads there from a folder: links to folders are followed, a link to the file is not."""
    file = Path(os.path.realpath(file.parent)) / file.name
    try:
        return PurePath(os.path.relpath(file, os.path.realpath(folder))).as_posix()
    except ValueError:  # on Windows: another drive
        return file.as_posix()
