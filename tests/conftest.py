"""Every test that asks for ``backend`` runs once per backend that can serve on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

import roialign

READY = [name for name, status in roialign.backends.available().items() if status.ready]

hypothesis.settings.register_profile(
    "roialign",
    deadline=None,
    max_examples=60,
    derandomize=bool(os.environ.get("CI")),
    # The backend stays the same for all examples of one test.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("roialign")


@pytest.fixture(params=READY)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the backend that serves every call of the test."""
    with roialign.backends.use(request.param):
        yield request.param
