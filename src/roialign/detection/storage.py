"""Images on any file system that pyarrow reads: paths, and addresses such as ``s3://bucket/folder``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from .images import SUFFIXES, DamagedImageError, find_images

GLOB = set("*[")  # a question mark begins an address's options


class Store(NamedTuple):
    """A place on a file system."""

    system: Any  # pyarrow.fs.FileSystem
    path: str  # within it, without a slash at its end
    scheme: str  # what names begin with; empty for a local one

    def within(self, name: str) -> str:
        """The path of what lies in this folder."""
        return f"{self.path}/{name}"

    def names(self) -> list[str]:
        """What lies in this folder; nothing if there is none."""
        from pyarrow.fs import FileSelector

        found = self.system.get_file_info(FileSelector(self.path, allow_not_found=True))
        return [info.base_name for info in found]


class Image(NamedTuple):
    """An image, or a video, that a list has."""

    name: str  # its absolute path, or its address; what is no UTF-8 is escaped
    size: int  # bytes
    system: int  # which of the list's file systems
    path: str  # within that


class Listed(NamedTuple):
    """Images, sorted by name, and the file systems that they are on."""

    systems: list[Any]
    images: list[Image]


def locate(address: str) -> Store:
    """Where a path or an address leads.

    Raises:
        ValueError: pyarrow knows no such file system.
        ModuleNotFoundError: pyarrow is missing.
    """
    try:
        from pyarrow.fs import FileSystem, LocalFileSystem
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--ray needs pyarrow: pip install 'roialign[ray]'", name="pyarrow") from None
    scheme, parted, _ = address.partition("://")
    if not parted:
        return Store(LocalFileSystem(), os.path.abspath(address), "")
    try:
        system, path = FileSystem.from_uri(address)
    except ValueError as error:  # pyarrow's ArrowInvalid is one
        raise ValueError(f"{address}: {error}") from None
    local = system.type_name == "local"
    return Store(system, path.rstrip("/"), "" if local else f"{scheme}://")


def list_images(patterns: Sequence[str]) -> Listed:
    """The files that names, folders (searched through) and glob patterns stand for, each once, sorted by name.

    Raises:
        FileNotFoundError: a name, folder or pattern that stands for nothing.
        ValueError: an address that pyarrow does not know, or one with ``**``.
    """
    systems: list[Any] = []
    found: dict[str, Image] = {}
    for pattern in patterns:
        store = locate(pattern)
        if store.system not in systems:
            systems.append(store.system)
        number = systems.index(store.system)
        if not store.scheme:
            files = [(path, Path(path).stat().st_size) for path in map(os.path.abspath, find_images([store.path]))]
        else:
            files = _files(store, pattern)
        for path, size in files:
            name = f"{store.scheme}{path}".encode(errors="backslashreplace").decode()
            found[name] = Image(name, size, number, path)
    return Listed(systems, [found[name] for name in sorted(found)])


def _files(store: Store, pattern: str) -> list[tuple[str, int]]:
    """Of an address that is not local: paths and sizes."""
    from pyarrow.fs import FileSelector, FileType

    if "**" in store.path:
        raise ValueError(f"{pattern}: got a pattern with **; name the folder, which is searched through")
    if GLOB & set(store.path):
        fixed = store.path[: min(store.path.find(mark) for mark in GLOB & set(store.path))].rpartition("/")[0]
        some = store.system.get_file_info(FileSelector(fixed, recursive=True))
        # With a slash, or a pattern would fit the end of a path as well.
        infos = [info for info in some if PurePosixPath(f"/{info.path}").match(f"/{store.path}")]
    else:
        infos = [store.system.get_file_info(store.path)]
        if infos[0].type == FileType.Directory:
            some = store.system.get_file_info(FileSelector(store.path, recursive=True))
            infos = [info for info in some if f".{info.extension}".lower() in SUFFIXES]
    files = [(info.path, info.size) for info in infos if info.type == FileType.File]
    if not files:
        raise FileNotFoundError(f"{pattern}: no images there")
    return files


@contextmanager
def at_hand(system: Any, image: Image) -> Iterator[Path]:
    """The image as a local file: itself, or a copy for as long as it is needed.

    Raises:
        DamagedImageError: it is no longer there.
        OSError: it cannot be fetched.
    """
    if system.type_name == "local":
        path = Path(image.path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent}: is not there; all machines must see the images")
        yield path
        return
    with TemporaryDirectory(prefix="roialign-") as folder:
        copy = Path(folder) / PurePosixPath(image.path).name
        try:
            with system.open_input_stream(image.path) as source, copy.open("wb") as file:
                shutil.copyfileobj(source, file, 2**20)
        except FileNotFoundError:
            raise DamagedImageError("is no longer there") from None
        yield copy
