"""A flag that SIGINT or SIGTERM sets, for a loop that stops where its state is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopFlag:
    """While open, the first SIGINT or SIGTERM only sets `is_set`; a second one acts as usual."""

    def __init__(self) -> None:
        self.is_set = False
        self._former: dict[int, object] = {}

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._set)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}
