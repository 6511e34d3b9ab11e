"""Ctrl-C, and a scheduler's end, as a wish that a loop asks for: so it ends where its state is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class InterruptedTrainingError(Exception):
    """The work stopped because somebody wished it, and its state is saved; the message says how to go on."""


class Wish:
    """Whether SIGINT or SIGTERM came inside the block; the second one ends it at once.

    Args:
        tell: is called with a line for the user when the first one comes.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell, self.asked = tell, False

    def __enter__(self) -> Wish:
        # Elsewhere than in the first thread nobody may listen, and nobody is asked to stop.
        signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._before = {each: signal.signal(each, self._note) for each in signals}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.tell("stopping after this step; once more: at once")


def deaf(worker: int) -> None:
    """Of a process that prepares data: whoever stops the training stops it, when all that it made was used."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
