"""Which Triton is here, for what hangs on it."""

from __future__ import annotations

import re

NEWEST = (2**31,)


def version() -> tuple[int, ...]:
    """The first two numbers; what has none, such as a build of Triton's main branch, counts as the newest."""
    import triton

    found = re.match(r"(\d+)\.(\d+)", triton.__version__)
    return tuple(map(int, found.groups())) if found else NEWEST
