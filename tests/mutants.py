"""Mutation testing: change one operator, constant or word of a file, run the file's own tests, and see who notices.

``make mutants``, or ``make mutants MUTANTS="axis.py tiles.py:40 --sample 50"``. A mutant that no test notices is a
survivor; it wants a test, or an entry in mutants*.txt with the reason why it is the same program. What is explained
there is run again only where its line is named. For each file one process collects its tests and forks for each mutant,
which is put in the place of the code it was made of: nothing on disk is changed, and a mutant costs little more than
the tests until the first that fails; those that caught one before come first. Needs Linux; the C++ part also cmake and
a compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import helpers
from mutated import CannotReplaceError, replace_core, replace_source, run_forked
from mutations import Mutant, cpp_mutants, python_mutants

ROOT = Path(__file__).parent.parent
OUT = ROOT / "build" / "mutants"
SAME = sorted((ROOT / "tests").glob("mutants*.txt"))
LOG = OUT / "last.log"  # what the tests printed last
JOBS = 2
EXAMPLES = 25  # of each of hypothesis's tests
MEMORY = 8 << 30  # bytes; more is a mutant caught

# file -> its tests, the quickest first: the first failure ends a run.
POOLS = [
    f"test_{name}.py"
    for name in ("limits", "thresholds", "differential", "ranks", "rotated", "deformable", "other_pools", "roi_align")
]
FORMATS = ("__init__", "coco", "outlines", "source", "table", "voc", "yolo")
READERS = ("formats", "exports", "faults", "annotations")
REFERENCE = ("position_sensitive", "multiscale", "layouts_dtypes", "gradients")
CALLS = ["test_arguments.py", "test_ranks_calls.py", "test_errors.py"]
TESTS = {
    "src/roialign/axis.py": ["test_axis.py", *POOLS, "test_gradients.py", "test_explain.py"],
    "src/roialign/boxes.py": [*CALLS, "test_multiscale.py", "test_differential.py"],
    "src/roialign/spec.py": [*CALLS, "test_multiscale.py", "test_layouts_dtypes.py"],
    "src/roialign/functional.py": [*CALLS, "test_position_sensitive.py", "test_layouts_dtypes.py", "test_recorders.py"],
    "src/roialign/modules.py": CALLS,
    "src/roialign/levels.py": ["test_pyramid.py", "test_multiscale.py", *CALLS, "test_tracing.py", "test_recorders.py"],
    "src/roialign/pyramid.py": ["test_import.py", "test_multiscale.py", *CALLS],
    **{
        f"src/roialign/backends/{name}.py": ["test_reference.py", *POOLS, *(f"test_{test}.py" for test in REFERENCE)]
        for name in ("reference", "contraction")
    },
    "src/roialign/backends/tracing.py": ["test_tracing.py"],
    "src/roialign/detection/evaluation.py": ["test_detection_evaluation.py", "test_detection_images.py"],
    "src/roialign/detection/tiles.py": ["test_detection_images.py", "test_detection_description.py"],
    "src/roialign/detection/datasets.py": ["test_detection_annotations.py", "test_detection_images.py"],
    "src/roialign/detection/views.py": ["test_detection_views.py"],
    "src/roialign/detection/annotations.py": ["test_detection_annotations.py", "test_detection_mutations.py"],
    **{
        f"src/roialign/detection/{name}.py": [f"test_detection_{test}.py" for test in READERS]
        for name in ("classes", "inputs", "fields", *(f"formats/{each}" for each in FORMATS))
    },
    "src/roialign/detection/checkpoint.py": ["test_detection_description.py", "test_detection_model.py"],
    "src/roialign/detection/weights.py": ["test_detection_description.py", "test_detection_model.py"],
    "src/roialign/detection/voting.py": ["test_detection_voting.py"],
    "src/roialign/detection/confusion.py": ["test_detection_pictures.py"],
    "csrc/rules.h": [*POOLS, "test_gradients.py"],
    "csrc/tables.cpp": [*POOLS, "test_gradients.py", "test_layouts_dtypes.py", "test_core.py::test_tables_take_little"],
}
# What runs in a process of its own would run the original; the others are long and find no more.
SKIP = [
    "accelerate",
    "subprocess",
    "process",
    "fork",
    "bounded",
    "command",
    "large",
    "long_map",
    "detectors",
    "cannot_be_imported",
    "needs_matplotlib",
]
WITHOUT = {
    "axis.py": "[native",
    "reference.py": "[native",
    "contraction.py": "[native",
    "rules.h": "[reference",
    "tables.cpp": "[reference",
    "levels.py": "symbols",
}
NO_PROGRAM, NOT_TRIED = 100, 101
RESULTS = {
    0: "survived",
    NOT_TRIED: "not tried",
    NO_PROGRAM: "no program",
    -signal.SIGXCPU: "timeout",
    -signal.SIGKILL: "timeout",
}

# Imported before the first fork. None of them may start a thread: a fork has only its own.
HEAVY = [
    "torch", "torch._dynamo", "torch._subclasses.fake_tensor", "torch.fx.experimental.proxy_tensor", "torch.onnx",
    "torchvision", "numpy", "hypothesis", "pytest", "_pytest.doctest", "PIL.Image", "safetensors.torch", "accelerate",
    "faster_coco_eval", "matplotlib.figure", "matplotlib.backends.backend_agg", "typer", "rich.console",
    "onnx.backend.test.case.node.roialign",
]  # fmt: skip


class Core:
    """The core, built once for one instruction set, as rules and tables are the same for all. A mutant is one more
    object of each source that includes it, which the linker takes instead; the bounds of vectors are watched."""

    build = OUT / "core"

    def __init__(self) -> None:
        options = ["-DSKBUILD=ON", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", f"-DPython_EXECUTABLE={sys.executable}"]
        where = [sys.executable, "-m", "nanobind", "--cmake_dir"]
        options.append(
            f"-Dnanobind_DIR={subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()}"
        )
        run = ["cmake", "-S", ROOT, "-B", self.build, "-G", "Unix Makefiles", "-DROIALIGN_SETS=baseline", *options]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["cmake", "--build", self.build, "--parallel", str(JOBS)], check=True, stdout=subprocess.DEVNULL)

    def make(self, path: str, source: str, folder: Path) -> Path:
        """The core with one source changed; raises CalledProcessError where it does not compile."""
        quiet = {"cwd": self.build, "check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        (folder / path).write_text(source)
        made: list[Path] = []
        for each in json.loads((self.build / "compile_commands.json").read_text()):
            command = shlex.split(each["command"].replace(f"{ROOT}/csrc", f"{folder}/csrc"))
            at = command.index("-o") + 1
            needs = (self.build / f"{command[at]}.d").read_text().split()
            if str(ROOT / path) in needs:
                command[at] = str(folder / f"{len(made)}.o")
                made.append(Path(command[at]))
                subprocess.run([*command, "-O0", "-w", "-D_GLIBCXX_ASSERTIONS"], **quiet)
        core = folder / "_core.so"
        link = shlex.split((self.build / "CMakeFiles/_core.dir/link.txt").read_text())
        at = link.index("-o")
        subprocess.run([*link[:at], "-o", core, *made, *link[at + 2 :]], **quiet)
        return core


class Tests:
    """The tests of one file, collected once. A plugin of pytest: it takes the loop over them over."""

    def __init__(self, path: str, work: Callable[[Tests], None]) -> None:
        self.path, self.work = path, work
        self.original = (ROOT / path).read_text("utf-8")
        self.session: Any = None
        self.items: list[pytest.Item] = []
        self.caught: Counter[str] = Counter()  # by each test

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.session, self.items = session, session.items
        self.work(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            print(report.nodeid, report.longreprtext, sep="\n")

    def collect(self) -> None:
        """And work."""
        skip = [*SKIP, *filter(None, [WITHOUT.get(Path(self.path).name)])]
        options = ["-q", "--no-header", "--capture=no", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov"]
        options += ["-p", "no:faulthandler"]  # where mutants crash it would tell at length
        options += ["-W", "ignore:Module already imported:pytest.PytestWarning", "--tb=short"]
        options += ["--hypothesis-profile=mutants", "-k", f"not ({' or '.join(skip)})"]
        files = [str(ROOT / "tests" / each) if each.startswith("test_") else each for each in TESTS[self.path]]
        status = pytest.main([*options, *files], plugins=[self])
        if status:
            raise SystemExit(f"{self.path}: pytest ends with {status}")

    def first_to_fail(self) -> str:
        """Run the tests until one fails; its name."""
        items = sorted(self.items, key=lambda item: -self.caught[item.nodeid])  # stable
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.session.testsfailed:
                return item.nodeid
        return ""


def child(mutant: Mutant, core: Core | None, folder: Path, tests: Tests) -> int:
    """Run the tests on the mutant, in this process, which ends with it. 0 is a survivor."""
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    output = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(folder)
    try:
        if core:
            replace_core(core.make(mutant.path, mutant.source, folder))
        else:
            name = mutant.path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            replace_source(name, ROOT / mutant.path, mutant.source, tests.original)
    except subprocess.CalledProcessError:
        return NO_PROGRAM
    except CannotReplaceError:
        return NOT_TRIED
    failed = tests.first_to_fail()
    (folder / "failed").write_text(failed, "utf-8")
    return int(bool(failed))


def start(mutant: Mutant, core: Core | None, number: int, limit: int, tests: Tests) -> tuple[int, Path]:
    folder = OUT / "work" / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise SystemExit(f"{threads} threads where a process is to fork: a fork would not be clean")
    pid = os.fork()
    if pid:
        return pid, folder
    code = 99
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        code = child(mutant, core, folder, tests)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_all(
    mutants: list[Mutant], core: Core | None, limit: int, tests: Tests, report: Callable[[Mutant, str, float], None]
) -> None:
    """Two at a time, each with ``limit`` seconds of the processor, and twenty times that on a busy machine's clock."""
    waiting = list(enumerate(mutants))[::-1]
    running: dict[int, tuple[Mutant, Path, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < JOBS:
                number, mutant = waiting.pop()
                pid, folder = start(mutant, core, number, limit, tests)
                running[pid] = mutant, folder, time.monotonic() + 20 * limit
            time.sleep(0.02)
            for pid, (mutant, folder, deadline) in list(running.items()):
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGXCPU)
                done, status, used = os.wait4(pid, os.WNOHANG)
                if done:
                    kill_group(pid)
                    if (folder / "failed").exists():
                        tests.caught[(folder / "failed").read_text("utf-8")] += 1
                    report(
                        mutant, RESULTS.get(os.waitstatus_to_exitcode(status), "caught"), used.ru_utime + used.ru_stime
                    )
                    del running[pid]
                    os.replace(folder / "log", LOG)
                    shutil.rmtree(folder)
    finally:
        for pid in running:
            kill_group(pid)


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def explained() -> dict[tuple[str, str, str], str]:
    """mutants*.txt: blocks of a file's name, pairs of lines ``- before`` and ``+ after``, and the reason."""
    reasons = {}
    for block in re.split(r"\n\s*\n", "\n\n".join(each.read_text("utf-8") for each in SAME)):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if not lines:
            continue
        path, why = lines[0], " ".join(line for line in lines[1:] if line[:2] not in ("- ", "+ ")).strip()
        before = [line[2:].strip() for line in lines if line.startswith("- ")]
        after = [line[2:].strip() for line in lines if line.startswith("+ ")]
        if path not in TESTS or not why or len(before) != len(after) or not before:
            raise ValueError(f"mutants*.txt: expected a file, pairs of - and + lines, and a reason; got\n{block}")
        reasons |= {(path, old, new): why for old, new in zip(before, after, strict=True)}
    return reasons


def judge(tests: Tests, lines: list[int], options: argparse.Namespace) -> int:
    """Run one file's mutants; returns how many survivors there are that mutants*.txt do not explain."""
    path, original = tests.path, tests.original
    python = path.endswith(".py")
    core = None if python else Core()
    untouched: list[tuple[str, float]] = []
    run_all([Mutant(path, 0, "", "", original)], core, 600, tests, lambda _, *result: untouched.append(result))
    if untouched[0][0] != "survived":
        raise SystemExit(f"{path}: {untouched[0][0]} without any change; its tests say:\n{LOG.read_text('utf-8')}")
    limit = 10 + round(2 * untouched[0][1])
    mutants = list((python_mutants if python else cpp_mutants)(path, original))
    known = explained()
    if stale := {key for key in known if key[0] == path} - {(path, each.before, each.after) for each in mutants}:
        print(*(f"mutants*.txt: no such mutant any more: {key}" for key in sorted(stale)), sep="\n")
    todo = [each for each in mutants if each.line in lines or not (lines or (path, each.before, each.after) in known)]
    counts = Counter({} if lines else {"explained": len(mutants) - len(todo)})
    if options.sample and options.sample < len(todo):
        todo = random.Random(options.seed).sample(todo, options.sample)
    with (OUT / f"{Path(path).name}.txt").open("w", encoding="utf-8") as log:

        def report(mutant: Mutant, result: str, _: float) -> None:
            if result == "survived" and (path, mutant.before, mutant.after) in known:
                result = "the same program"
            counts[result] += 1
            print(result, mutant, file=log, flush=True)
            if result in ("survived", "not tried"):
                print(result, mutant, flush=True)

        run_all(todo, core, limit, tests, report)
    found = ", ".join(f"{count} {result}" for result, count in counts.most_common())
    spent = sum(os.times()[2:4])  # a busy machine's clock says little
    print(f"{path}: {len(todo)} of {len(mutants)} mutants: {found}; {spent:.0f} s of a processor", flush=True)
    return counts["survived"] + counts["not tried"]


def judge_apart(path: str, lines: list[int], options: argparse.Namespace) -> bool:
    """The same in a process that imports roialign and this file's tests; whether all is well."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    code, found = 1, [1]
    try:
        helpers.run_python = run_forked
        tests = Tests(path, lambda tests: found.append(judge(tests, lines, options)))
        tests.collect()
        code = int(found[-1] > 0)
    except SystemExit as stopped:
        print(stopped, flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Mutation testing; exits 1 if a survivor is unexplained.")
    parser.add_argument(
        "files", nargs="*", help="ends of names, with :LINE if need be, e.g. axis.py:40; all by default"
    )
    parser.add_argument("--sample", type=int, help="this many mutants of each file")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    options = parser.parse_args()
    chosen: dict[str, list[int]] = {} if options.files else {path: [] for path in TESTS}
    for name in options.files:
        end, _, line = name.partition(":")
        found = [path for path in TESTS if path.endswith(end)]
        if not found:
            parser.error(f"{name}: no such file; expected one of {', '.join(TESTS)}")
        for path in found:
            chosen.setdefault(path, []).extend([int(line)] if line else [])

    os.environ |= {"CI": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    os.environ |= {"ROIALIGN_FUZZ_SECONDS": "6", "ROIALIGN_FUZZ_SEED": "0"}
    os.chdir(ROOT)
    OUT.mkdir(parents=True, exist_ok=True)
    for module in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    import hypothesis
    import torch

    torch.set_num_threads(1)
    hypothesis.settings.register_profile(
        "mutants",
        deadline=None,
        max_examples=EXAMPLES,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    well = [judge_apart(path, lines, options) for path, lines in chosen.items()]
    shutil.rmtree(OUT / "work", ignore_errors=True)
    sys.exit(not all(well))


if __name__ == "__main__":
    main()
