"""Values as files have them: taken if they can mean one thing only, else shown in a short line."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
EXAMPLES = 3  # of one fault, in a message
LONGEST = 300  # characters of a path or of one such example; of a longer one its ends
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf|infinity)", re.ASCII | re.IGNORECASE)


def take(record: dict[str, Any], key: str, accept: Callable[[Any], T | None], expected: str) -> T:
    """The value of a key.

    Raises:
        ValueError: there is none, or ``accept`` gives None for it.
    """
    if key not in record:
        raise ValueError(f"no {key}")
    value = accept(record[key])
    if value is None:
        raise ValueError(f"{key}: got {shown(record[key])}; expected {expected}")
    return value


def number(value: Any) -> float | None:
    """A number, be it infinite or NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # of a huge int
        return math.inf


def number_in(text: str) -> float | None:
    """A number in text; not all that Python's ``float`` takes, such as 1_000."""
    return number(float(text)) if _NUMBER.fullmatch(text) else None


def whole(value: Any) -> int | None:
    """Of 64 bits; also 7.0, which tables make of 7."""
    return int(value) if number(value) is not None and -(2**63) <= value < 2**63 and int(value) == value else None


def whole_in(text: str) -> int | None:
    """A whole number in text, to the last of its digits."""
    real = number_in(text)
    try:
        return whole(int(text)) if real is not None else None
    except ValueError:  # 7.0, or thousands of digits
        return whole(real)


def length(value: Any) -> int | None:
    """Pixels along a side."""
    pixels = whole(value)
    return pixels if pixels is not None and pixels >= 1 else None


def text(value: Any) -> str | None:
    """Also fit to be written to a file as UTF-8: no lone surrogates."""
    return value if isinstance(value, str) and value == value.encode("utf-8", "ignore").decode() else None


def flag(value: Any) -> bool | None:
    """0 or 1, or what JSON has for them."""
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def some(heading: str, examples: Iterable[str]) -> str:
    """A line with the first few examples."""
    every = list(examples)
    return f"{heading}: {', '.join(map(_ends, every[:EXAMPLES]))}{', ...' if len(every) > EXAMPLES else ''}"


def frame_fault(frame: object, other: object) -> ValueError:
    """Boxes of several frames of one file, as ``roialign detect`` writes them: all would be taken for the first's."""
    told = f"frame: got {shown(frame)}, and {shown(other)} of the same file before"
    return ValueError(f"{told}; of a file of several images only the first can be learned from or judged by")


def path_shown(path: Path) -> str:
    """A path in one line, short if anybody made it long."""
    return _ends(repr(str(path)))


def _ends(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]}...{line[-LONGEST // 2 :]}"


def shown(value: Any) -> str:
    """A value as JSON has it, in one short line."""
    named = {None: "null", True: "true", False: "false"}
    return named[value] if value is None or isinstance(value, bool) else _SHORT.repr(value)
