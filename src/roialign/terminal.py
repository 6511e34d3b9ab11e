"""What commands print: a name is shown as it is, whatever is in it, and no name ends a run."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text


def shown(text: object) -> str:
    """The text in one line that moves no cursor: control characters, and bytes that are no UTF-8, become escapes."""
    return "".join(character if character.isprintable() else _escape(character) for character in str(text))


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name that could not be decoded
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def make_console() -> Console:
    """The console of a command; what the terminal's encoding lacks is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return Console()


def cell(text: object, style: str = "") -> Text:
    """Text for a table or a console, in which nothing is markup."""
    return Text(shown(text), style)


def say(console: Console, text: object, style: str = "") -> None:
    """Print one line, as long as it is."""
    console.print(cell(text, style), soft_wrap=True)
