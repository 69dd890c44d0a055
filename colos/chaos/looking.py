"""What all built-in properties look with: a condition watched up to a deadline, a process named for a person."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from colos.chaos.sandbox.processes import Process

__all__ = ["SETTLE_S", "listed", "named", "until"]

#: How long what looks like a leak may take to go away by itself.
SETTLE_S = 1.0
_POLL_S = 0.002
_MOST_NAMED = 5


def until(holds: Callable[[], bool], timeout_s: float = SETTLE_S, pause_s: float = _POLL_S) -> bool:
    """Whether a condition comes to hold before the deadline; looked at least once."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause_s)  # the kernel offers nothing to wait on here
    return True


def named(process: Process) -> str:
    """A process as a person finds it again."""
    return f"{process.command} (pid {process.inner_pid} inside)"


def listed(things: Iterable[str]) -> str:
    """The first few, and how many more."""
    said = list(things)
    more = f" and {len(said) - _MOST_NAMED} more" if len(said) > _MOST_NAMED else ""
    return ", ".join(said[:_MOST_NAMED]) + more
