"""Detect on many machines: Ray Data hands parts of the images to workers, each of which has a detector on its device.

A worker that dies is started again by Ray, and its part given out again; a part is written atomically by whoever has
done it, and what is written is not done again (:mod:`roialign.detection.shards`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from rich.console import Console

from ..samples import HELDOUT
from ..terminal import say, shown
from .checkpoint import default_checkpoint, load_detector
from .detector import Detector, told_by
from .images import DamagedImageError, Photo
from .masks import encode_all
from .pages import read_images
from .precision import lower
from .predict import progress_bar
from .shards import FORMAT, Parts, cut, digest
from .storage import Image, at_hand, list_images
from .tiles import USUAL, Found, Tiling, detect

DEATHS = 2  # of workers that looked at an image, after which nobody looks at it again
MEMORY = 256 * 2**20  # bytes that a local cluster's processes share, where nothing but lists and the detector passes


class Job(NamedTuple):
    """What a worker has to know."""

    weights: bytes
    device: str | None
    precision: str
    score: float
    options: Mapping[str, Any]  # of detect
    about: Mapping[str, Any]  # for the files' metadata
    systems: Sequence[Any]  # that the images are on
    out: str


def detect_on_cluster(
    patterns: Sequence[str],
    out: str,
    console: Console,
    *,
    address: str | None = None,
    weights: Path | None = None,
    score: float | None = None,
    tiling: Tiling = USUAL,
    device: str | None = None,
    precision: str = "float32",
) -> list[str]:
    """Detect in images on a Ray cluster, and write what was found as Parquet files, a row for each image.

    When it is called again with the same images, weights and options it goes on: parts that are done stay.

    Args:
        patterns: files, folders and globs, as paths or as addresses that pyarrow reads; none: a photo that the package
            ships.
        out: folder to write, a path or an address; all machines must see it.
        console: where to report.
        address: of the cluster's head, such as ``"auto"`` or ``"host:6379"``; None: a cluster on this machine, for as
            long as it takes.
        weights: the detector's file, which is sent to the workers; None: the one that the package ships.
        score: the least score of a box; None: what suits the detector by its card, or 0.5.
        tiling: how images are looked at.
        device: ``"cpu"`` or ``"cuda"``; None: the cluster's GPUs, a worker for each, or its CPUs if it has none.
        precision: as in :class:`roialign.detection.Detector`.

    Returns:
        What was wrong with each image that could not be read.

    Raises:
        FileExistsError: in the folder is something else, or what was begun with other images, weights or options.
        ChildProcessError: workers cannot go on.
        ModuleNotFoundError: Ray or pyarrow is missing.
        ValueError: the cluster lacks the device, or an option is wrong.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--ray: starts processes itself; leave torchrun and accelerate launch out")
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"device: got {device!r}; expected cpu or cuda, of which --ray takes all that the cluster has")
    ray = _ray(local=address is None)
    options = tiling._asdict()
    model = load_detector(weights)
    lower(model, precision)
    list(detect(model, [], **options))  # which checks them
    told = told_by(model)
    score = told.score if score is None else score
    content = (weights or default_checkpoint()).read_bytes()
    systems, images = list_images(patterns or [str(HELDOUT.parent / "YELL_lower.jpg")])
    every, folder = cut(images), Parts(out)
    about = {"format": FORMAT, "score": score, "classes": told.classes, "category_ids": told.category_ids}
    identity = {"images": len(images), "listing": digest(images), "parts": len(every), **about}
    identity |= {"weights": hashlib.blake2b(content, digest_size=16).hexdigest()}
    identity |= {name: value for name, value in options.items() if name != "batch"} | {"precision": precision}
    done = folder.begin(identity, len(every))
    left = {number: part for number, part in enumerate(every) if number not in done}
    if done:
        say(console, f"{len(done)} of {len(every)} parts were done")
    job = Job(content, device, precision, score, options, about, systems, out)
    with progress_bar(console) as progress:
        bar = progress.add_task("detecting", total=len(images), completed=len(images) - sum(map(len, left.values())))
        for count in _run(ray, address, job, left, progress.console) if left else ():
            progress.advance(bar, count)
    boxes, faults = folder.summary(every)
    what = f"{boxes} boxes of score {score:.2f} or more in {len(images) - len(faults)} of {len(images)} images"
    say(console, f"{what}; wrote {len(every)} parts to {folder.name}")
    return faults


def _ray(local: bool) -> Any:
    """Ray, which tells nobody that it is used, and whose cluster here obeys nobody else."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if local:  # as it is by default from Ray 2.59 on
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    # What the core complains of goes to Ray's own files; on the screen would be what concerns Ray Data alone.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"--ray needs {error.name}: pip install 'roialign[ray]'", name=error.name) from None
    return ray


@contextmanager
def _connected(ray: Any, address: str | None, bytes: int) -> Iterator[None]:
    """To a cluster that runs, or to one that is here for as long."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init(address="local", include_dashboard=False, object_store_memory=MEMORY + 4 * bytes, **quiet)
    else:
        ray.init(address=address, **quiet)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True  # which we tell ourselves
    logging.getLogger("ray.data").setLevel("CRITICAL")
    try:
        yield
    finally:
        ray.shutdown()


def _run(
    ray: Any, address: str | None, job: Job, left: Mapping[int, Sequence[Image]], console: Console
) -> Iterator[int]:
    """Have the parts done; yields how many images each had, when it is written."""
    with _connected(ray, address, len(job.weights)):
        there = ray.cluster_resources()
        gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 1))
        if job.device == "cuda" and not gpus:
            raise ValueError("device: got 'cuda'; Ray says that the cluster has no GPU")
        on_gpus = gpus > 0 and job.device != "cpu"
        workers = min(gpus if on_gpus else cpus, len(left))
        say(console, f"{workers} workers, each on a {'GPU' if on_gpus else 'CPU'}")
        rows = [{"part": number, "images": pickle.dumps(list(part))} for number, part in left.items()]
        diary = ray.remote(num_cpus=0)(make_diary()).remote()
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            Worker,
            fn_constructor_args=[job if on_gpus else job._replace(device="cpu"), diary],
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=0 if on_gpus else 1,
            num_gpus=1 if on_gpus else 0,
        )
        try:
            for row in results.iter_rows():
                yield row["images"]
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error  # what a worker raised, or what Ray says of its end
            line, *_ = [*str(cause).splitlines(), ""]
            raise ChildProcessError(f"--ray: {line}; what is written stays, start again to go on") from error


def make_diary() -> type:
    """The class of which Ray runs one beside the workers: it knows who was looked at when a worker died.

    It is made here so that Ray sends its code: a process that imported it would import PyTorch with it.
    """

    class Diary:
        def __init__(self) -> None:
            self.begun: set[int] = set()
            self.at: dict[int, int] = {}
            self.deaths: dict[tuple[int, int], int] = {}

        def begin(self, part: int) -> tuple[bool, dict[int, int]]:
            """Whether the part was begun before, and how many workers died at which of its images."""
            again = part in self.begun
            self.begun.add(part)
            if part in self.at:
                died = part, self.at.pop(part)
                self.deaths[died] = self.deaths.get(died, 0) + 1
            return again, {image: count for (of, image), count in self.deaths.items() if of == part}

        def look(self, part: int, image: int) -> None:
            """An image's turn has come."""
            self.at[part] = image

    return Diary


class Worker:
    """A detector on a device, which Ray keeps as long as there are parts."""

    def __init__(self, job: Job, diary: Any) -> None:
        import ray

        self.job, self.diary, self.get = job, diary, ray.get
        self.folder = Parts(job.out)
        with TemporaryDirectory(prefix="roialign-") as folder:
            file = Path(folder) / "model.safetensors"
            file.write_bytes(job.weights)
            self.detector = Detector(file, job.device, job.precision)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, int]:
        """Look at the images of a part, and write it."""
        number, images = int(row["part"]), pickle.loads(row["images"])
        again, deaths = self.get(self.diary.begin.remote(number))
        if again:  # a worker has died: one by one, so that it is known at which image it does
            rows = []
            for index, image in enumerate(images):
                if deaths.get(index, 0) >= DEATHS:
                    rows.append({"image": image.name, "error": f"{DEATHS} workers died when they looked at it"})
                    continue
                self.get(self.diary.look.remote(number, index))
                rows += self._look([image])
        else:
            rows = self._look(images)
        self.folder.write(number, rows, self.job.about)
        return {"part": number, "images": len(images)}

    def _look(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        """The rows of the images, in order."""
        rows: list[dict[str, Any]] = []
        waiting: deque[dict[str, Any]] = deque()  # rows that lack their boxes yet

        def photos() -> Iterator[Photo]:
            for image in images:
                try:
                    with at_hand(self.job.systems[image.system], image) as path:
                        for photo in _opened(path):
                            seen = {"frame": photo.frame, "time": photo.time}
                            rows.append({
                                "image": image.name, **seen, "width": photo.width, "height": photo.height
                            })  # fmt: skip
                            waiting.append(rows[-1])
                            yield photo
                except DamagedImageError as fault:
                    rows.append({"image": image.name, "error": shown(fault)})

        for found in detect(self.detector.model, photos(), **self.job.options):
            row = waiting.popleft()
            row |= self._columns(found.above(self.job.score), row["width"], row["height"])
        return rows

    def _columns(self, found: Found, width: int, height: int) -> dict[str, Any]:
        labels = found.labels.tolist()
        columns = {"boxes": found.boxes.tolist(), "scores": found.scores.tolist(), "labels": labels}
        columns["names"] = [self.detector.classes[label - 1] for label in labels]
        if found.grids is not None:
            columns["masks"] = [mask["counts"] for mask in encode_all(found, width, height)]
        return columns


def _opened(path: Path) -> Iterator[Photo]:
    """The images in the file; what is wrong with it is said without the path, which may be a copy's."""
    try:
        yield from read_images(path)
    except DamagedImageError as fault:
        raise DamagedImageError(str(fault).removeprefix(f"{path}: ")) from None
