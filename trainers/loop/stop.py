"""SIGINT and SIGTERM as a wish that is granted at the next good moment."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopWish:
    """While open, the first SIGINT or SIGTERM only sets `wished`; a second one acts as usual."""

    def __init__(self) -> None:
        self.wished = False
        self._former: dict[int, object] = {}

    def __enter__(self) -> StopWish:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._wish)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _wish(self, number: int, frame: FrameType | None) -> None:
        self.wished = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}
