"""What the tests of the interactive page share."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from roialign.explain.page import OPERATORS

State = dict[str, Any]
Open = Callable[..., Any]  # (state, fragment, **options of the browser's context) -> Playwright's page


def settle(page: Any) -> None:
    """Wait until what was changed is drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def state_of(page: Any) -> State:
    """The page's state, once it is drawn."""
    settle(page)
    return page.evaluate("roialign.page.state")  # type: ignore[no-any-return]


def wait_until(page: Any, condition: str) -> None:
    """Playwright's own waiting would have the page evaluate text, which its security policy forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"still not: {condition}")


def random_state(number: int) -> State:
    """Any setting a caller may pass: boxes inside, across, outside, inverted, empty, huge; every operator."""
    chance = random.Random(number)
    height, width = chance.randint(1, 9), chance.randint(1, 9)
    scale = [chance.choice((0.25, 1.0, 0.0625, 0.3, 3.0)) for _ in range(2)]

    def edges(length: int, scale: float) -> tuple[float, float]:
        kind = chance.choice(("inside", "across", "outside", "inverted", "empty", "whole", "huge", "thin"))
        low, high = sorted(chance.uniform(-2, length + 2) for _ in range(2))
        if kind == "across":
            low, high = -chance.uniform(0, length + 2), length + chance.uniform(0, length + 2)
        elif kind == "outside":
            low, high = (length + low + 2, length + high + 2) if chance.random() < 0.5 else (low - 9, high - length - 9)
        elif kind == "inverted":
            low, high = high, low
        elif kind == "empty":
            high = low
        elif kind == "whole":
            low, high = float(round(low)), float(round(high))
        elif kind == "huge":
            low, high = low - 10 ** chance.uniform(1, 9), high + 10 ** chance.uniform(1, 9)
        elif kind == "thin":
            high = low + 10 ** chance.uniform(-12, -1)
        return low / scale, high / scale

    (y1, y2), (x1, x2) = edges(height, scale[0]), edges(width, scale[1])
    values = [[chance.uniform(-100, 100) for _ in range(width)] for _ in range(height)]
    return {
        "size": [height, width],
        "box": [x1, y1, x2, y2],
        "output_size": [chance.randint(1, 5), chance.randint(1, 5)],
        "sampling_ratio": chance.choice((-1, 0, 0, 1, 2, 3, 7, 40, 1001)),
        "spatial_scale": scale if chance.random() < 0.8 else scale[0],
        "aligned": chance.random() < 0.5,
        "operator": chance.choice((OPERATORS[0], *OPERATORS)),
        "mode": chance.choice(("avg", "max")),
        "values": values if chance.random() < 0.8 else None,
    }
