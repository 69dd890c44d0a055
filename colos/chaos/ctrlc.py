"""Ctrl-C, where Python may lose it."""

from __future__ import annotations

import signal
import threading
from types import FrameType

__all__ = ["CtrlC"]


class CtrlC:
    """While it is entered, Ctrl-C cannot get lost.

    KeyboardInterrupt may be raised where Python only reports exceptions: in a callback of the garbage
    collector (Hypothesis has one) or in a `__del__`.  Measured: 4 of 100, and exploring went on.
    """

    def __init__(self) -> None:
        self._came = False
        self._ours = False

    def __enter__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._take)

    def __exit__(self, *exc_info: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        if frame is None or frame.f_code.co_name != "gc_callback":  # Hypothesis's: spare its report of a lost one
            signal.default_int_handler(number, frame)

    def check(self) -> None:
        """Raise what was lost."""
        if self._came:
            raise KeyboardInterrupt
