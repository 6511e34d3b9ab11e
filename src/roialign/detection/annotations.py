"""COCO annotation files: what is wrong in one is said before it is used, with its place."""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .images import Head, read_head

T = TypeVar("T")
ImageId = int | str  # as the annotations have it
WANTED = "expected COCO's JSON, an object with the lists images, annotations and categories"
YOLO = "YOLO's labels? supervision's DetectionDataset.from_yolo(...).as_coco(...) converts them"
VOC = "Pascal VOC's XML? supervision's DetectionDataset.from_pascal_voc(...).as_coco(...) converts it"
CSV = "a table? docs/detection.md has the lines of Python that convert it"
EXAMPLES = 3  # of one fault, in a message


class Entry(NamedTuple):
    """An image of a data set and its boxes."""

    id: ImageId
    file: Path
    width: int
    height: int
    boxes: Tensor  # [N, 4] float32: x1, y1, x2, y2 in pixels, cut to the image, each with an area
    labels: Tensor  # [N] int64, from 1
    crowds: Tensor  # [M, 4] float32: where boxes are not told apart; detections of the class are no fault there
    crowd_labels: Tensor  # [M] int64
    areas: Tensor  # [N] float32: the objects', which may be less than their boxes'
    name: str  # of the file, as the annotations have it
    left_out: int  # boxes that have no area inside the image


class Coco(NamedTuple):
    """What an annotation file says."""

    entries: list[Entry]
    categories: dict[int, str]  # names by id, ids ascending
    notes: list[str]  # what its user should know, a line each


class _Image(NamedTuple):
    id: ImageId
    name: str
    size: tuple[int, int] | None  # None: it is the file's


class _Box(NamedTuple):
    image: ImageId
    category: int
    bbox: list[float]
    area: float  # NaN: the box's
    crowd: bool


def read_coco(path: Path, folder: Path) -> Coco:
    """Read a COCO detection file, and the sizes of its images from their heads.

    Args:
        path: the JSON, in UTF-8 with or without a byte order mark.
        folder: that of the images.

    Raises:
        FileNotFoundError: the file or some images are not there.
        ValueError: what is wrong, in one line with file, place and id.
    """
    content = _parse(path)
    try:
        categories = dict(sorted(_once(content, "categories", _category)))
        images = [image for _, image in _once(content, "images", _image)]
        known = {image.id: index for index, image in enumerate(images)}
        found = _each(content, "annotations", lambda record: _box(record, known, categories))
        files = [folder / image.name for image in images]
        missing = [repr(str(file)) for file in files if not os.path.isfile(file)]
        if missing:
            raise FileNotFoundError(_some(f"{path}: {len(missing)} of {len(files)} images are not there", missing))
        pairs = iter(zip(images, files, strict=True))
        heads = _each(content, "images", lambda _: _head(*next(pairs)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    owners = torch.tensor([known[box.image] for box in found], dtype=torch.int64)
    entries, faults = _entries(images, files, [head[:2] for head in heads], found, owners, list(categories))
    told = {
        "boxes are left out": [f"{_place(content, 'annotations', index)}: {fault}" for index, fault in faults.items()],
        f"images lie outside {folder}": [repr(image.name) for image in images if _leaves(PurePath(image.name))],
        "images are not shown as a whole": [
            f"{entry.name!r} ({note})" for entry, (*_, note) in zip(entries, heads, strict=True) if note
        ],
    }
    notes = [_some(f"{path}: {len(each)} {what}", each) for what, each in told.items() if each]
    return Coco(entries, categories, notes)


def _parse(path: Path) -> dict[str, list[Any]]:
    """The three lists of the file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is something else; with what to do about it.
    """
    try:
        if path.is_dir():
            inside = {file.suffix.lower() for file in path.iterdir()}
            hint = YOLO if inside & {".txt", ".yaml"} else VOC if ".xml" in inside else WANTED
            hint = WANTED if ".json" in inside else hint
            raise ValueError(f"{path}: a folder; {hint}")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        content = json.loads(raw, object_pairs_hook=_keys_once)
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply; {WANTED}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}; {_looks_like(raw, path.suffix.lower())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: got {_shown(content)}; {WANTED}")
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise ValueError(f"{path}: no {key}; {WANTED}")
        if not isinstance(content[key], list):
            raise ValueError(f"{path}: {key}: got {_shown(content[key])}; expected a list")
        if not content[key] and key != "annotations":
            raise ValueError(f"{path}: {key}: an empty list; expected at least one")
    return content


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that is there twice, Python's reader would silently keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return found


def _looks_like(raw: bytes, suffix: str) -> str:
    """What to do with a file that is not JSON."""
    line = raw[:4096].decode("utf-8", "replace").lstrip("\ufeff \r\n\t").partition("\n")[0]
    if line.startswith("<") or suffix == ".xml":
        return VOC
    if suffix in (".yaml", ".yml") or (len(line.split()) >= 5 and not line.strip("0123456789.+-e \r\t")):
        return YOLO
    if suffix in (".csv", ".tsv") or (not line.startswith(("{", "[")) and line.count(",") >= 3):
        return CSV
    return WANTED


def _each(content: Mapping[str, list[Any]], key: str, read: Callable[[dict[str, Any]], T]) -> list[T]:
    """Every record of a list, read; an error names the record."""
    found = []
    for index, record in enumerate(content[key]):
        try:
            if not isinstance(record, dict):
                raise ValueError(f"got {_shown(record)}; expected an object")
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
    return f"{key}[{index}]" + (f" (id {_shown(record['id'])})" if isinstance(record, dict) and "id" in record else "")


def _category(record: dict[str, Any]) -> tuple[int, str]:
    return _take(record, "id", _whole, "a whole number"), _take(record, "name", _text, "text")


def _image(record: dict[str, Any]) -> tuple[ImageId, _Image]:
    name: ImageId = _take(record, "id", _id, "a whole number or text")
    file = _take(record, "file_name", lambda value: value if isinstance(value, str) else None, "text")
    # Both must be right if they are there, and there to be of use.
    size = [_take(record, key, _length, "a whole number from 1") for key in ("width", "height") if key in record]
    return name, _Image(name, file, (size[0], size[1]) if len(size) == 2 else None)


def _box(record: dict[str, Any], images: Mapping[ImageId, int], categories: Mapping[int, str]) -> _Box:
    image: ImageId = _take(record, "image_id", _id, "a whole number or text")
    if image not in images:
        raise ValueError(f"image_id: got {_shown(image)}, which no image has as its id")
    category = _take(record, "category_id", _whole, "a whole number")
    if category not in categories:
        raise ValueError(f"category_id: got {category}; the categories have {_shown(list(categories))}")
    return _Box(
        image,
        category,
        _take(record, "bbox", _bbox, "four numbers: x, y, width, height"),
        _take(record, "area", _area, "a number from 0") if "area" in record else math.nan,
        _take(record, "iscrowd", _flag, "0 or 1") if "iscrowd" in record else False,
    )


def _take(record: dict[str, Any], key: str, accept: Callable[[Any], T | None], expected: str) -> T:
    if key not in record:
        raise ValueError(f"no {key}")
    value = accept(record[key])
    if value is None:
        raise ValueError(f"{key}: got {_shown(record[key])}; expected {expected}")
    return value


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # of a huge int
        return math.inf


def _whole(value: Any) -> int | None:
    """Of 64 bits; also 7.0, which tables make of 7."""
    return int(value) if _number(value) is not None and -(2**63) <= value < 2**63 and int(value) == value else None


def _length(value: Any) -> int | None:
    length = _whole(value)
    return length if length is not None and length >= 1 else None


def _text(value: Any) -> str | None:
    """Also fit to be written to a file as UTF-8: no lone surrogates."""
    return value if isinstance(value, str) and value == value.encode("utf-8", "ignore").decode() else None


def _id(value: Any) -> Any:
    return _text(value) if isinstance(value, str) else _whole(value)


def _bbox(value: Any) -> list[float] | None:
    numbers = [_number(each) for each in value] if isinstance(value, list) and len(value) == 4 else [None]
    return None if None in numbers else numbers  # type: ignore[return-value]


def _area(value: Any) -> float | None:
    area = _number(value)
    return area if area is not None and 0 <= area < math.inf else None


def _flag(value: Any) -> bool | None:
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def _head(image: _Image, file: Path) -> Head:
    """The file's; its size must be what the annotations say, turned as EXIF says or not."""
    head = read_head(file, upright=image.size is None)
    if image.size in (None, head[:2]):
        return head
    turned = read_head(file)
    if image.size != turned[:2]:
        says, has = (f"{width} x {height}" for width, height in (image.size, head[:2]))
        raise ValueError(f"width, height: got {says}; {str(file)!r} has {has} pixels")
    return turned


def _entries(
    images: list[_Image],
    files: list[Path],
    sizes: list[tuple[int, int]],
    found: list[_Box],
    owners: Tensor,
    category_ids: list[int],
) -> tuple[list[Entry], dict[int, str]]:
    """The images with their boxes; and which annotations are left out, and why."""
    label = {number: index for index, number in enumerate(category_ids, 1)}
    labels = torch.tensor([label[box.category] for box in found], dtype=torch.int64)
    crowd = torch.tensor([box.crowd for box in found], dtype=torch.bool)
    raw = torch.tensor([box.bbox for box in found], dtype=torch.float64).reshape(-1, 4)
    edges = torch.tensor(sizes, dtype=torch.float64)[owners]
    boxes = torch.cat([raw[:, :2].clamp(min=0), torch.minimum(raw[:, :2] + raw[:, 2:], edges)], 1).float()
    finite = raw.isfinite().all(1)
    counts = finite & (boxes[:, :2] < boxes[:, 2:]).all(1)  # in float32, as all others will see them
    own = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    areas = torch.tensor([box.area for box in found]).fmin(own)
    entries = []
    for index, group in enumerate(owners.argsort(stable=True).split(owners.bincount(minlength=len(images)).tolist())):
        kept, crowds = group[counts[group] & ~crowd[group]], group[counts[group] & crowd[group]]
        entries.append(
            Entry(
                images[index].id,
                files[index],
                *sizes[index],
                boxes[kept],
                labels[kept],
                boxes[crowds],
                labels[crowds],
                areas[kept],
                images[index].name,
                len(group) - len(kept) - len(crowds),
            )
        )
    left_out = (~counts).nonzero().flatten().tolist()
    return entries, {k: "bbox has no area inside its image" if finite[k] else "bbox is not finite" for k in left_out}


def _leaves(name: PurePath) -> bool:
    return name.is_absolute() or ".." in name.parts


def _some(heading: str, examples: Iterable[str]) -> str:
    shown = list(examples)
    return f"{heading}: {', '.join(shown[:EXAMPLES])}{', ...' if len(shown) > EXAMPLES else ''}"


def _shown(value: Any) -> str:
    """A value as JSON has it, in one short line."""
    named = {None: "null", True: "true", False: "false"}
    return named[value] if value is None or isinstance(value, bool) else reprlib.repr(value)
