"""Whether a thread belongs to certain processes or descends from them: asked at each trapped call, so remembered.

A number alone is no identity: what is remembered of a thread is kept with a pidfd of it, which tells when the number
has come to mean another.  Sources: pidfd_open(2), PIDFD_THREAD (Linux 6.9); proc(5).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Final

from colos.chaos.mechanisms.rawcalls import call, thread_group

__all__ = ["Families"]

_PIDFD_THREAD: Final = os.O_EXCL
_FOREBEARS_MAX: Final = 64
_KEPT_MAX: Final = 256

Pids = tuple[tuple[int, int], ...]
"""Processes by pid and start time."""


class Families:
    """What is known of the threads that made calls."""

    def __init__(self, start_time: Callable[[int], int]) -> None:
        """`start_time` tells when a process started, 0 if it is gone."""
        self._start_time = start_time
        self._known: dict[int, tuple[int, dict[Pids, bool]]] = {}

    def holds(self, thread: int, pids: Pids) -> bool:
        """Whether a thread is of one of these, or descends from one through processes that still live.

        Raises OSError when it is gone.
        """
        known = self._known.get(thread)
        if known is not None and not _lives(known[0]):
            self._forget(thread)
            known = None
        if known is None:
            known = self._meet(thread)
        if known is None:
            return self._descends(thread, pids)
        answer = known[1].get(pids)
        if answer is None:
            answer = known[1][pids] = self._descends(thread, pids)
        return answer

    def close(self) -> None:
        """Remember nothing."""
        for thread in list(self._known):
            self._forget(thread)

    def _meet(self, thread: int) -> tuple[int, dict[Pids, bool]] | None:
        try:
            pidfd = call("pidfd_open", thread, _PIDFD_THREAD)
        except OSError:  # an older kernel, or no descriptor left: then it is found out anew each time
            return None
        if len(self._known) >= _KEPT_MAX:
            self._forget(next(iter(self._known)))
        self._known[thread] = pidfd, {}
        return self._known[thread]

    def _forget(self, thread: int) -> None:
        os.close(self._known.pop(thread)[0])

    def _descends(self, thread: int, pids: Pids) -> bool:
        wanted = dict(pids)
        pid = thread_group(thread)
        for _ in range(_FOREBEARS_MAX):
            started = wanted.get(pid)
            if started is not None and started == self._start_time(pid):
                return True
            if pid <= 1:
                return False
            pid = _parent(pid)
        return False


def _lives(pidfd: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it has become somebody else's, and lives
        return True
    return True


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])
