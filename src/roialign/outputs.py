"""Files that commands write: never over what they read, through a link, or over a file that no run of ours has left."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import os
import stat
import unicodedata
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

LOG = "roialign-outputs.jsonl"  # in a folder: what we wrote there, a line a file
HEADER = {"roialign": "the files that it wrote here, which it may replace while they are as it left them"}
LONGEST = 255  # bytes of a file's name


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content so that whoever reads it, even after a crash, finds the old or the new, never a part.

    Raises:
        FileExistsError: a link, a folder or a device is there.
    """
    with _replacing(path) as partial, open(partial, "r+b") as file:
        file.write(content)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """An empty file, to be written within the block, that takes the path's place when that ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_ordinary(path)
    # One name, of bounded length: what a crash left is overwritten next time.
    name = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    partial = path.with_name(f".{name}.partial")
    partial.unlink(missing_ok=True)
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield partial
        with open(partial, "r+b") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_files(outputs: Iterable[Path | None], inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuse files to write, named by the user, that are inputs, the same file twice, or no ordinary files.

    Any other file that is there is replaced: the user named it.

    Raises:
        FileExistsError: with the path.
    """
    read, places = _identities(inputs), set()
    for path in outputs:
        if path is None:
            continue
        _check_ordinary(path)
        if path.exists() and _identity(path.stat()) in read:
            raise FileExistsError(f"{path}: is read; name another file to write")
        place = (os.path.realpath(path.parent), _alike(path.name))
        if place in places:
            raise FileExistsError(f"{path}: two files would be written there")
        places.add(place)


class Folder:
    """A folder that one command at a time writes to.

    The folder keeps a list of what was written there (LOG). A file may be written where nothing is, or where a file is
    as a run of ours left it; nothing else is ever replaced, no link followed, no name used twice in a run. The folder
    itself may be a link, since the user named it.

    Args:
        path: the folder; it is made.
        writes: False in a process that looks on while another writes, or :meth:`join` it.

    Raises:
        FileExistsError: another process writes there, or the list is not ours.
        OSError: it cannot be made or written to.
    """

    def __init__(self, path: str | Path, writes: bool = True) -> None:
        self.path = Path(path)
        self._inputs: set[tuple[int, int]] = set()
        self._left: dict[str, set[str]] = {}  # by name, the digests of what was written
        self._claimed = {_alike(LOG)}
        self._numbers: dict[str, int] = {}
        self._closing: weakref.finalize[[int], Folder] | None = None
        if writes:
            self.path.mkdir(parents=True, exist_ok=True)
            self._open_log()
            try:
                _lock(self._log, self.path)
                self._read()
            except BaseException:
                self.close()
                raise

    def join(self, names: Iterable[str]) -> None:
        """Write beside the process that holds the folder, under names that it has claimed there for this one."""
        self._open_log()
        self._claimed |= set(map(_alike, names))

    def _open_log(self) -> None:
        _check_ordinary(self.path / LOG)
        self._log = os.open(self.path / LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._closing = weakref.finalize(self, os.close, self._log)
        _open.add(self)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let others write there."""
        if self._closing is not None:
            self._closing()

    def protect(self, inputs: Iterable[str | Path | None]) -> None:
        """What the command reads is not written over, even if a run of ours has left it."""
        self._inputs |= _identities(inputs)

    def claim(self, *names: str) -> None:
        """Say before the work what will be written.

        Raises:
            FileExistsError: there is something that is not ours to replace.
        """
        for name in names:
            if not self._is_free(name):
                raise FileExistsError(
                    f"{self.path / name}: is there, and no file that roialign left; move it or name another folder"
                )
            self._claimed.add(_alike(name))

    def reserve(self, *files: Path | None) -> None:
        """Of files that the user has named, and that are written otherwise, :meth:`pick` shall not give the names."""
        here = os.path.realpath(self.path)
        self._claimed |= {_alike(file.name) for file in files if file and os.path.realpath(file.parent) == here}

    def pick(self, stem: str, suffix: str) -> str:
        """Claim a name that is free: the stem's, numbered if that is taken, and shortened if it is too long."""
        for number in itertools.count(self._numbers.get(stem + suffix, 1)):
            tail = suffix if number == 1 else f"-{number}{suffix}"
            name = _fit(stem, tail)
            if self._is_free(name):
                self._numbers[stem + suffix] = number + 1
                self._claimed.add(_alike(name))
                return name
        raise AssertionError("unreachable")

    def write(self, name: str, content: bytes) -> Path:
        """Write a file whose name was claimed."""
        with self.stage(name) as partial:
            partial.write_bytes(content)
        return self.path / name

    @contextmanager
    def stage(self, name: str) -> Iterator[Path]:
        """A file to write, however large, under another name; it takes the claimed one when the block ends well."""
        if _alike(name) not in self._claimed:
            raise ValueError(f"name: got {name!r}, which was not claimed")
        with _replacing(self.path / name) as partial:
            yield partial
            digest = _digest(partial)
            if digest not in self._left.setdefault(_alike(name), set()):
                self._left[_alike(name)].add(digest)
                self._note({"name": name, "blake2b": digest})  # first, so that a crash leaves no file that is nobody's

    @contextmanager
    def open(self, name: str) -> Iterator[io.BytesIO]:
        """A file in memory, written when the block ends."""
        file = io.BytesIO()
        yield file
        self.write(name, file.getvalue())

    def wrote(self, file: Path) -> bool:
        """This file is in the folder, as a run of ours left it."""
        digests = self._left.get(_alike(file.name), set())
        return bool(digests) and file.parent.samefile(self.path) and _digest(file) in digests

    def _is_free(self, name: str) -> bool:
        if _alike(name) in self._claimed:
            return False
        path = self.path / name
        try:
            there = path.lstat()
        except FileNotFoundError:
            return True
        if not stat.S_ISREG(there.st_mode) or _identity(there) in self._inputs:
            return False
        digests = self._left.get(_alike(name), set())
        return bool(digests) and _digest(path) in digests

    def _read(self) -> None:
        content = (self.path / LOG).read_bytes()
        lines = content.splitlines()
        if not lines:
            self._note(HEADER)
        elif _parsed(lines[0]) != HEADER:
            raise FileExistsError(f"{self.path / LOG}: is not roialign's; move it or name another folder")
        for entry in map(_parsed, lines[1:]):
            if {"name", "blake2b"} <= entry.keys():
                self._left.setdefault(_alike(str(entry["name"])), set()).add(str(entry["blake2b"]))
        if lines and not content.endswith(b"\n"):  # a crash left half a line
            os.write(self._log, b"\n")

    def _note(self, entry: dict[str, str]) -> None:
        os.write(self._log, json.dumps(entry).encode() + b"\n")
        os.fsync(self._log)


_open: weakref.WeakSet[Folder] = weakref.WeakSet()


def _let_go() -> None:
    """A forked child, such as a data loader's, shall not hold the folder when its parent is gone."""
    for folder in list(_open):
        folder.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _lock(file: int, path: Path) -> None:
    """Hold a file until it is closed or the process ends, however it ends."""
    try:
        import fcntl
    except ModuleNotFoundError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileExistsError(f"{path}: another roialign is writing there; wait or name another folder") from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):  # some network file systems have no locks
            raise


def _parsed(line: bytes) -> dict[str, object]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # half a line, from a crash
        return {}
    return entry if isinstance(entry, dict) else {}


def _check_ordinary(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise FileExistsError(f"{path}: is a link, a folder or a device; name an ordinary file to write")


def _identities(paths: Iterable[str | Path | None]) -> set[tuple[int, int]]:
    return {_identity(os.stat(path)) for path in paths if path is not None and os.path.exists(path)}


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _alike(name: str) -> str:
    """The same for names that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _fit(stem: str, tail: str) -> str:
    while len(os.fsencode(stem + tail)) > LONGEST:
        stem = stem[:-1]
    return stem + tail


def _digest(path: Path) -> str:
    total = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(2**20):
            total.update(part)
    return total.hexdigest()
