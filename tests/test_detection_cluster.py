"""Detection on a Ray cluster: every image once whoever dies, damaged ones named, nothing mixed with anything else."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from PIL import Image as Picture
from typer.testing import CliRunner

from roialign.cli import app
from roialign.detection import Detector, build_detector, save_detector
from roialign.detection import shards as shards_module
from roialign.detection import storage as storage_module
from roialign.detection.cluster import Job, Worker, make_diary
from roialign.detection.shards import FEWEST, MANIFEST, Parts, cut, digest, name_of
from roialign.detection.storage import Image, Listed, Store, list_images

pytest.importorskip("pyarrow", reason="needs: pip install 'roialign[ray]'")
from pyarrow import dataset, fs

OPTIONS = ("--tile", "64", "--overlap", "16", "--score", "0.2")
ABOUT = {"classes": ["bush", "tree"]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    small = {"fpn_channels": 8, "head_channels": 8, "output_size": 2, "box_score_thresh": 0.0}
    model = build_detector(3, "mobilenet_v2_fpn", scale=1.0, **small)
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_detector(model, path, classes=["bush", "tree"], category_ids=[12, 90], metrics={"score_threshold": 0.2})
    return path


@pytest.fixture
def one_thread() -> Any:
    """As many as Ray gives a worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def photos(folder: Path, count: int, torn: set[int], side: int) -> None:
    for index in range(count):
        path = folder / ("deep" if index % 3 else ".") / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Picture.effect_noise((side, side - index % 7), 80).convert("RGB").save(path)
        if index in torn:
            path.write_bytes(path.read_bytes()[: 400 * (index % 2)])  # nothing, or a head alone


def expect_rows(rows: list[dict[str, Any]], folder: Path, torn: set[int], weights: Path, **options: int) -> None:
    """Each image of the folder once, with what the detector finds in it; the torn ones with a reason alone."""
    names = sorted(str(path) for path in folder.rglob("*.png"))
    assert [row["image"] for row in rows] == names
    detector = Detector(weights, "cpu")
    for index, row in enumerate(rows):
        if int(Path(row["image"]).stem) in torn:
            assert row["error"].startswith(("damaged: ", "not an image that can be read"))
            assert str(folder) not in row["error"]
            assert all(row[name] is None for name in ("width", "boxes", "scores", "labels", "names", "masks")), row
            continue
        assert row["error"] is None
        with Picture.open(row["image"]) as picture:
            assert (row["width"], row["height"]) == picture.size
        if index % 5 == 0:
            found = detector.detect(row["image"], **options)
            assert len(row["boxes"]) > 3
            assert row["boxes"] == found.boxes.tolist()
            assert row["scores"] == found.scores.tolist()
            assert row["labels"] == found.labels.tolist()
            assert row["names"] == found.names


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, and cannot be used."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ray.data", SimpleNamespace())


# A cluster.


def wait_for(happened: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (what := happened()):
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(f"did not happen; {process.communicate()[0]}")
        time.sleep(0.02)
    return what


def workers(process: subprocess.Popen[str], busy: bool = False) -> list[psutil.Process]:
    """Those that a driver has, or that have a part."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            title = " ".join(child.cmdline()).strip()
        except psutil.Error:  # it has just ended
            continue
        if "MapWorker" in title and (title.endswith(".submit") or not busy):
            found.append(child)
    return found


def end_of(processes: list[psutil.Process]) -> None:
    """Wait for it: they notice after a moment that who started them is gone."""
    end = time.monotonic() + 60
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < end, f"{process} goes on"
                time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_each_image_once_though_a_worker_and_the_driver_are_killed(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs: pip install 'roialign[ray]'")
    torn = {3, 14, 22, 39}
    photos(tmp_path / "in", 40, torn, 112)
    line = [sys.executable, "-m", "roialign", "detect", "in", "--out", "out", "--ray", "--weights", str(weights)]
    out = tmp_path / "out"

    def start() -> subprocess.Popen[str]:
        env = {**os.environ, "COLUMNS": "300"}
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([*line, *OPTIONS], cwd=tmp_path, env=env, **pipe)  # type: ignore[call-overload]

    def parts() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}

    first = start()
    wait_for(parts, first)
    orphans = workers(first)
    assert orphans
    first.send_signal(signal.SIGKILL)
    first.communicate()
    end_of(orphans)  # which may finish a part yet
    before = parts()
    assert 1 <= len(before) < 5

    second = start()
    worker = wait_for(lambda: workers(second, busy=True), second)[0]
    worker.kill()
    output, _ = second.communicate(timeout=240)
    assert second.returncode == 1, output
    assert f"{len(before)} of 5 parts were done" in output
    assert " in 36 of 40 images; wrote 5 parts to out" in output
    assert "roialign detect: 4 images could not be read:\n" in output
    for index in torn:
        assert output.count(f"{tmp_path}/in/{'deep/' if index % 3 else ''}{index:03}.png: ") == 1, output
    after = parts()
    assert len(after) == 5
    assert {name: after[name] for name in before} == before  # done once
    assert {path.name for path in out.iterdir()} == {MANIFEST, *after}

    rows = dataset.dataset(out).to_table().to_pylist()
    expect_rows(rows, tmp_path / "in", torn, weights, tile=64, overlap=16)

    without_ray(monkeypatch)  # which needs none, since nothing is left to do
    # Otherwise than it was begun it is not gone on with; that is known before there is a cluster.
    other = CliRunner().invoke(app, ["detect", str(tmp_path / "in"), "--out", str(out), "--ray", "--score", "0.4"])
    said = " ".join((str(other.exception) + other.output).split())
    assert "was begun otherwise and cannot be gone on with: category_ids was [12, 90], now it is [1]" in said
    again = CliRunner().invoke(app, ["detect", str(tmp_path / "in"), "--out", str(out), *line[7:], *OPTIONS])
    assert "5 of 5 parts were done" in again.output
    assert parts() == after


# What runs on it, here.


def in_process(worker: type[Worker], job: Job, diary: Any, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker without Ray: calls to its diary are made at once."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda result: result))
    remote = {name: SimpleNamespace(remote=getattr(diary, name)) for name in ("begin", "look")}
    return worker(job, SimpleNamespace(**remote))


def given(number: int, images: list[Image]) -> dict[str, Any]:
    return {"part": number, "images": pickle.dumps(images)}


@pytest.mark.usefixtures("one_thread")
def test_a_worker_on_a_file_system_that_is_not_local(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of pyarrow's that is no object store: copies are looked at, parts are renamed when they are whole."""
    store = Store(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket/in", "far://")
    monkeypatch.setattr(storage_module, "locate", lambda address: store)
    monkeypatch.setattr(shards_module, "locate", lambda address: store._replace(path="bucket/out"))
    photos(tmp_path / "bucket" / "in", 5, {3}, 90)
    (tmp_path / "bucket" / "in" / "notes.txt").write_text("no image by its name")
    listed = list_images(["far://bucket/in"])
    assert [image.name for image in listed.images] == [
        f"far://bucket/in/{name}.png" for name in ("000", "003", "deep/001", "deep/002", "deep/004")
    ]
    options = {"tile": 64, "overlap": 16, "batch": 1, "tta": False, "large": False}
    job = Job(weights.read_bytes(), "cpu", "float32", 0.2, options, ABOUT, listed.systems, "far://bucket/out")
    folder = Parts("far://bucket/out")
    assert folder.begin({"listing": digest(listed.images)}, 1) == set()
    worker = in_process(Worker, job, make_diary()(), monkeypatch)
    assert worker(given(0, listed.images)) == {"part": 0, "images": 5}

    assert sorted(path.name for path in (tmp_path / "bucket" / "out").iterdir()) == [MANIFEST, name_of(0)]
    table = dataset.dataset(tmp_path / "bucket" / "out").to_table()
    assert json.loads(table.schema.metadata[b"roialign"]) == ABOUT
    rows = table.to_pylist()
    for row in rows:
        row["image"] = row["image"].replace("far://", f"{tmp_path}/")
    expect_rows(rows, tmp_path / "bucket" / "in", {3}, weights, tile=64, overlap=16)
    boxes, faults = folder.summary([listed.images])
    assert boxes == sum(len(row["boxes"] or ()) for row in rows)
    assert [fault.split(": ")[:2] for fault in faults] == [["far://bucket/in/003.png", "damaged"]]

    (tmp_path / "bucket" / "in" / "000.png").unlink()  # since it was listed
    worker(given(1, listed.images[:1]))
    assert folder.summary([listed.images, listed.images[:1]])[1][1] == "far://bucket/in/000.png: is no longer there"


def test_an_image_at_which_workers_die_is_left_out(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "in", 3, set(), 70)
    systems, images = list_images([str(tmp_path / "in")])
    options = {"tile": 64, "overlap": 16, "batch": 1, "tta": False, "large": False}
    job = Job(weights.read_bytes(), "cpu", "float32", 0.2, options, ABOUT, systems, str(tmp_path / "out"))
    diary = make_diary()()

    class Deadly(Worker):
        def _look(self, images: Any) -> list[dict[str, Any]]:
            if any(image.name.endswith("001.png") for image in images):
                raise KeyboardInterrupt
            return super()._look(images)

    worker = in_process(Deadly, job, diary, monkeypatch)
    for _ in range(3):  # once nobody knows at which, twice it is seen
        with pytest.raises(KeyboardInterrupt):
            worker(given(0, images))
    worker(given(0, images))
    assert Parts(job.out).summary([images]).faults == [
        f"{tmp_path}/in/deep/001.png: 2 workers died when they looked at it"
    ]
    worker(given(1, images[:1]))  # others are looked at together, as ever
    assert diary.begin(1) == (True, {})


@pytest.mark.usefixtures("one_thread")
def test_a_detector_of_masks_has_them_in_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    small = {"fpn_channels": 8, "head_channels": 8, "output_size": 2, "box_score_thresh": 0.0}
    save_detector(build_detector(2, "mobilenet_v2_fpn", scale=1.0, masks=True, **small), tmp_path / "m.safetensors")
    photos(tmp_path / "in", 1, set(), 90)
    systems, images = list_images([str(tmp_path / "in")])
    options = {"tile": 64, "overlap": 16}
    job = Job(
        (tmp_path / "m.safetensors").read_bytes(), "cpu", "float32", 0.2, options, ABOUT, systems, str(tmp_path / "out")
    )
    in_process(Worker, job, make_diary()(), monkeypatch)(given(0, images))
    (row,) = dataset.dataset(tmp_path / "out").to_table().to_pylist()
    found = Detector(tmp_path / "m.safetensors", "cpu").detect(row["image"], score=0.2, **options)
    assert found.masks
    assert row["masks"] == [mask["counts"] for mask in found.masks]
    assert {tuple(mask["size"]) for mask in found.masks} == {(row["height"], row["width"])}


def test_a_name_that_is_no_text_is_escaped(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    odd = tmp_path / "in" / "\udcff.png"  # a byte that is no UTF-8
    odd.write_bytes(b"no image")
    systems, images = list_images([str(tmp_path / "in")])
    job = Job(weights.read_bytes(), "cpu", "float32", 0.2, {}, ABOUT, systems, str(tmp_path / "out"))
    in_process(Worker, job, make_diary()(), monkeypatch)(given(0, images))
    (fault,) = Parts(job.out).summary([images]).faults
    assert fault == f"{tmp_path}/in/\\udcff.png: not an image that can be read"


def test_parts_of_something_else_are_refused(tmp_path: Path) -> None:
    system = [fs.LocalFileSystem()]
    images = [Image(f"/in/{index}.png", 10, 0, f"/in/{index}.png") for index in range(20)]
    assert [len(part) for part in cut(images)] == [FEWEST, FEWEST, 4]
    assert sum(map(len, cut(images * 50_000)), 0) == 1_000_000
    assert len(cut(images * 50_000)) < 1000
    assert not cut([])
    other = [*images[:-1], images[-1]._replace(size=11)]
    assert len({digest(each) for each in (images, images[1:], other, [*images, images[0]])}) == 4
    assert Listed(system, images).images == images

    folder = Parts(str(tmp_path / "out"))
    assert folder.begin({"score": 0.5}, 3) == set()
    assert folder.begin({"score": 0.5}, 3) == set()
    folder.write(1, [{"image": image.name, "error": "torn"} for image in images[8:16]], ABOUT)
    assert folder.begin({"score": 0.5}, 3) == {1}
    with pytest.raises(FileExistsError, match=r"out: was begun otherwise .*: score was 0\.5, now it is 0\.6; name"):
        folder.begin({"score": 0.6}, 3)
    with pytest.raises(FileNotFoundError, match=r"part-000000\.parquet: was written, but is not there"):
        folder.summary(cut(images))
    folder.write(0, [{"image": image.name} for image in images[:7]], ABOUT)
    with pytest.raises(ValueError, match=r"part-000000\.parquet: does not have the images that it should"):
        folder.summary(cut(images))
    (tmp_path / "out" / MANIFEST).write_text("[1]")
    with pytest.raises(FileExistsError, match=f"{MANIFEST}: is not roialign's"):
        folder.begin({"score": 0.5}, 3)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").touch()
    with pytest.raises(FileExistsError, match=r"photos: is not empty, and none of --ray's"):
        Parts(str(tmp_path / "photos")).begin({}, 1)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["mine.txt"]


def test_lists_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path / "in", 4, {0}, 20)
    (tmp_path / "in" / "b.txt").write_bytes(b"12345")
    monkeypatch.chdir(tmp_path)

    def names(*patterns: str) -> list[str]:
        return [image.name.removeprefix(f"{tmp_path}/") for image in list_images(patterns).images]

    whole = ["in/000.png", "in/003.png", "in/deep/001.png", "in/deep/002.png"]
    assert names("in") == names("in/deep", "in", f"file://{tmp_path}/in") == whole
    assert names("in/*.png", "in/b.txt") == ["in/000.png", "in/003.png", "in/b.txt"]
    assert [image.size for image in list_images(["in/b.txt", "in/000.png"]).images] == [0, 5]
    with pytest.raises(FileNotFoundError, match="in/x: no images there"):
        names("in/x")
    with pytest.raises(ValueError, match="smoke://signals"):
        names("smoke://signals")

    far = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(storage_module, "locate", lambda address: Store(far, address.removeprefix("s3://"), "s3://"))
    assert names("s3://in") == [f"s3://{name}" for name in whole]
    assert names("s3://in/d*/*1.png", "s3://in/b.txt") == ["s3://in/b.txt", "s3://in/deep/001.png"]
    with pytest.raises(ValueError, match=r"s3://in/\*\*: got a pattern with \*\*; name the folder"):
        names("s3://in/**")
    with pytest.raises(FileNotFoundError, match=r"s3://in/\*\.jpg: no images there"):
        names("s3://in/*.jpg")
    with pytest.raises(FileNotFoundError, match="s3://out: no images there"):
        names("s3://out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--csv", "a.csv"), "--csv: does not go with --ray"),
        (("--no-draw", "--geojson", "a.geojson"), "--geojson: does not go with --ray"),
        (("--no-draw", "--geopackage", "a.gpkg"), "--geopackage: does not go with --ray"),
        (("--draw",), "--draw: does not go with --ray"),
        (("--device", "cuda:1"), "device: got 'cuda:1'; expected cpu or cuda"),
        (("--overlap", "9", "--tile", "9"), "tile, overlap: got 9, 9"),
        (("--weights", "none.safetensors"), "none.safetensors"),
    ],
)
def test_what_does_not_go_is_said_before_there_is_a_cluster(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    without_ray(monkeypatch)
    result = CliRunner().invoke(app, ["detect", "--ray", *words])
    assert result.exit_code != 0
    assert f"roialign detect: {message}" in str(result.exception) + result.output or message in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["ray", "pyarrow"])
def test_without_the_extra_it_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if package == "pyarrow":
        without_ray(monkeypatch)
        monkeypatch.setitem(sys.modules, "pyarrow.fs", None)
    else:
        monkeypatch.setitem(sys.modules, "ray", None)
    result = CliRunner().invoke(app, ["detect", "--ray-address", "auto"])
    assert f"roialign detect: --ray needs {package}: pip install 'roialign[ray]'" in result.output
