"""Every test that asks for ``backend`` runs once per backend that can serve on this machine."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

import roialign
from helpers import READY
from pages import Open, State
from resident import Held

collect_ignore = ["mutants.py"]  # a program, for Linux

# PyTorch's cache of compiled graphs does not know for which instruction set it holds code (seen in 2.14: AVX2 code does
# not compile under ATEN_CPU_CAPABILITY=default), so each set has its own.
CACHE = Path(__file__).parents[1] / "build" / "inductor" / torch.backends.cpu.get_cpu_capability().lower()
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE))

# Workers of pytest-xdist share the cores: threads that wait for each other keep them from the other workers' tests.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# Triton's interpreter runs the GPU's kernels on a CPU, slowly. ``make test`` has a run of its own for it.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

hypothesis.settings.register_profile(
    "roialign",
    deadline=None,
    # On a GPU each example may take a build of its kernels.
    max_examples=4 if INTERPRETED or torch.cuda.is_available() else 60,
    derandomize=bool(os.environ.get("CI")),
    # The backend stays the same for all examples of one test.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("roialign")


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes a browser is left to `make test-all`."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What was imported stays: it is not gone through again whenever garbage is collected."""
    gc.collect()
    gc.freeze()


held = Held()


@pytest.hookimpl(trylast=True)  # after the test's fixtures are gone
def pytest_runtest_teardown() -> None:
    """Workers stay small: a detector that one test built is not kept through thousands of others."""
    held.give_back()


@pytest.fixture(params=READY)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the backend that serves every call of the test."""
    with roialign.backends.use(request.param):
        yield request.param


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, the machine's own: nothing is downloaded. Without one the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs: pip install 'roialign[all]'")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("ROIALIGN_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium, or its path in ROIALIGN_CHROMIUM")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Open the interactive page; in the end there must have been no error and no request but for the file itself."""
    from roialign.explain.page import make_page

    contexts, complaints = [], []

    def see_request(request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            complaints.append(f"request: {request.url}")

    def open_page(state: State | None = None, fragment: str = "", **options: Any) -> Any:
        path = tmp_path / f"page{len(contexts)}.html"
        path.write_text(make_page(state), "utf-8")
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", see_request)
        page.goto(f"{path.as_uri()}{fragment}")
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints
