"""A deadline for what runs on the main thread and cannot be cancelled: a plain function of the author's.

A SIGALRM interrupts it wherever it waits, and its handler raises past it.  pytest-timeout's own
exception would end in Hypothesis, which takes it for a failing example; ours ends where it was armed.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["OpDeadline", "call_within"]

#: How often it rings again: Python swallows what is raised in a `__del__` or a callback of the garbage collector.
_AGAIN_S = 0.5
#: What is left of somebody else's alarm that is due.
_SOON_S = 0.001


class OpDeadline(TimeoutError):
    """What the author wrote was still waiting at the step's deadline, and was ended there."""


class _Rang(BaseException):
    """Leaves the author's function; a BaseException, so that no ``except Exception`` of theirs takes it."""


def call_within(seconds: float | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function.  Raises what it raises, and `OpDeadline` from where it still was after so many seconds.

    There is no deadline outside the main thread, where no handler runs, and none beside somebody
    else's alarm that is due before ours (pytest-timeout's).  One that is due later is put back.
    """
    if seconds is None or not _is_ours_to_set(seconds):
        return function(*args, **kwargs)
    on = [True]

    def ring(number: int, frame: FrameType | None) -> None:
        if on:
            raise _Rang

    handler = signal.signal(signal.SIGALRM, ring)
    began = time.monotonic()
    left_s, every_s = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
    try:
        try:
            return function(*args, **kwargs)
        finally:
            on.clear()  # inside: what rings before this is taken below
    except _Rang as rang:
        on.clear()
        raise OpDeadline(f"still waiting after {seconds:g} s").with_traceback(rang.__traceback__) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left_s:
            signal.setitimer(signal.ITIMER_REAL, max(left_s - (time.monotonic() - began), _SOON_S), every_s)


def _is_ours_to_set(seconds: float) -> bool:
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGALRM) is None:
        return False  # None: set in C, by somebody whom we could not put back
    due_s, _ = signal.getitimer(signal.ITIMER_REAL)
    return not 0 < due_s <= seconds
