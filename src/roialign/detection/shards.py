"""Results in parts: a folder of Parquet files on any file system that pyarrow reads, each whole or not there.

Which images a part has follows from the sorted list of all, so that a part that is there is done, whoever wrote it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from ..outputs import write_atomically
from .storage import Image, locate

MANIFEST = "_roialign.json"  # who reads a folder of Parquet files leaves aside what begins with _
FORMAT = 1  # of the parts' columns and of what decides which images a part has
FEWEST, MOST, FILES = 8, 1024, 512  # images of a part, and how many parts there are between these
OBJECTS = ("s3", "gcs", "abfs")  # file systems on which a file appears when all of it is there


class Summary(NamedTuple):
    """What all parts have."""

    boxes: int
    faults: list[str]  # the images that could not be read, and why


def cut(images: Sequence[Image]) -> list[Sequence[Image]]:
    """The images of each part."""
    size = min(MOST, max(FEWEST, math.ceil(len(images) / FILES)))
    return [images[start : start + size] for start in range(0, len(images), size)]


def digest(images: Sequence[Image]) -> str:
    """Of their names and sizes."""
    text = "".join(f"{image.name}\0{image.size}\0" for image in images)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def schema(about: Mapping[str, Any]) -> Any:
    """The columns: a row for each image, or for each of several in a file. ``about`` goes into the files' metadata."""
    import pyarrow as pa

    columns = [
        pa.field("image", pa.string(), nullable=False),  # its path or address
        pa.field("frame", pa.int64()),  # of a video or another file of several images, from 0
        pa.field("time", pa.float64()),  # of the frame, in seconds
        pa.field("width", pa.int32()),  # pixels; of an image that could not be read null, as all that follows
        pa.field("height", pa.int32()),
        pa.field("boxes", pa.list_(pa.list_(pa.float32(), 4))),  # x1, y1, x2, y2 in pixels, best first
        pa.field("scores", pa.list_(pa.float32())),
        pa.field("labels", pa.list_(pa.int64())),  # from 1
        pa.field("names", pa.list_(pa.string())),  # of the classes
        pa.field(
            "masks", pa.list_(pa.string())
        ),  # counts of COCO's run-length encoding; null if the detector draws none
        pa.field("error", pa.string()),  # why the image, or the rest of a video, could not be read
    ]
    return pa.schema(columns, {"roialign": json.dumps(about)})


class Parts:
    """The folder, for whoever writes into it.

    Args:
        address: a path, or what pyarrow takes for one, such as ``s3://bucket/folder``.
    """

    def __init__(self, address: str) -> None:
        self.store = locate(address)
        # As messages have it: an address without its options and credentials.
        self.name = f"{self.store.scheme}{self.store.path}" if self.store.scheme else address

    def begin(self, identity: Mapping[str, Any], count: int) -> set[int]:
        """Say what the parts will be of, or go on; returns the numbers of those that are done.

        Raises:
            FileExistsError: the folder has something else, or what another detection has begun.
        """
        names = set(self.store.names())
        if MANIFEST in names:
            self._compare(identity)
        elif names:
            raise FileExistsError(f"{self.name}: is not empty, and none of --ray's; name another folder")
        else:
            self._put(MANIFEST, json.dumps(identity, indent=1).encode())
        return {number for number in range(count) if name_of(number) in names}

    def write(self, number: int, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
        """Write a part, atomically. It may be there already: then it has the same rows."""
        import pyarrow as pa
        from pyarrow import parquet

        content = pa.BufferOutputStream()
        parquet.write_table(pa.Table.from_pylist(rows, schema(about)), content, compression="zstd")
        self._put(name_of(number), content.getvalue().to_pybytes())

    def summary(self, parts: Sequence[Sequence[Image]]) -> Summary:
        """Read all parts, and hold them to what they should have.

        Raises:
            FileNotFoundError: one is not there.
            ValueError: one does not have its images, each once.
        """
        boxes, faults = 0, []
        for number, images in enumerate(parts):
            names = []
            for image, rows in groupby(self._rows(number), lambda row: row["image"]):
                names.append(image)
                for row in rows:
                    boxes += len(row["scores"] or ())
                    faults += [f"{image}: {row['error']}"] if row["error"] else []
            if names != [image.name for image in images]:
                raise ValueError(f"{self.name}/{name_of(number)}: does not have the images that it should")
        return Summary(boxes, faults)

    def _rows(self, number: int) -> Iterator[dict[str, Any]]:
        from pyarrow import parquet

        try:
            file = self.store.system.open_input_file(self.store.within(name_of(number)))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self.name}/{name_of(number)}: was written, but is not there; all machines must see the folder"
            ) from None
        with file, parquet.ParquetFile(file) as part:
            for batch in part.iter_batches(columns=["image", "scores", "error"]):
                yield from batch.to_pylist()

    def _compare(self, identity: Mapping[str, Any]) -> None:
        with self.store.system.open_input_stream(self.store.within(MANIFEST)) as file:
            content = file.read()
        try:
            before = dict(json.loads(content))
        except (ValueError, TypeError):
            raise FileExistsError(f"{self.name}/{MANIFEST}: is not roialign's; name another folder") from None
        for name in sorted(before.keys() | identity.keys()):
            was, now = before.get(name), identity.get(name)
            if was != now:
                raise FileExistsError(
                    f"{self.name}: was begun otherwise and cannot be gone on with: {name} was {was}, now it is "
                    f"{now}; name another folder"
                )

    def _put(self, name: str, content: bytes) -> None:
        path = self.store.within(name)
        if self.store.system.type_name == "local":
            write_atomically(Path(path), content)
            return
        objects = self.store.system.type_name in OBJECTS
        if not objects:
            self.store.system.create_dir(self.store.path, recursive=True)
        first = path if objects else self.store.within(f".{name}.{os.getpid()}")
        with self.store.system.open_output_stream(first) as file:
            file.write(content)
        if not objects:
            self.store.system.move(first, path)


def name_of(number: int) -> str:
    """A part's file."""
    return f"part-{number:06}.parquet"
