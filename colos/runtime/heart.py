"""A node's first process: it forks the root, waits, and leaves nothing behind when the root is gone.

It has no event loop and runs no code of an author's, so little can happen to it.  Whatever a dead
root leaves (its processes die with it; what *they* forked does not) becomes this process's own child,
because it is a subreaper, and is killed.  As PID 1 of a container it reaps strangers and stops the
node in order on SIGTERM.  Source: heart(3), prctl(2) PR_SET_CHILD_SUBREAPER.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

from colos.runtime import process

_KILL_S: Final = 5.0
_BEGIN_S: Final = 30.0
"""How much longer than `watch_s` a new root may take to its first beat: before its loop it imports, forks, and asks an
author's `children()`, which takes what it takes."""
_READY: Final = 8
_BEAT_BYTES: Final = 8
_SIGNALS: Final = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
PERIOD_S: Final = 60.0
"""The window in which restarts are counted."""


class Pulse:
    """What root and heart share: the root's heartbeat, and whether it has been ready."""

    def __init__(self, watch_s: float | None) -> None:
        self.watch_s = watch_s
        self._shared = mmap.mmap(-1, 16)

    def beat(self) -> None:
        """The root's event loop turns."""
        self._shared[:_BEAT_BYTES] = (self.beats() + 1).to_bytes(_BEAT_BYTES, "little")

    def beats(self) -> int:
        """How often it has."""
        return int.from_bytes(self._shared[:_BEAT_BYTES], "little")

    @property
    def was_ready(self) -> bool:
        """Whether a root has ever been ready."""
        return self._shared[_READY] == 1

    def ready(self) -> None:
        """It is now."""
        self._shared[_READY] = 1


class Heart:
    """Guards roots, one after another."""

    def __init__(
        self,
        be_root: Callable[[Pulse], int],
        *,
        lifeline: socket.socket | None,
        restarts: int,
        watch_s: float | None,
        stop_s: float,
    ) -> None:
        """`be_root` is run in a fork and gives its exit status.

        `restarts` within a minute are allowed; a root whose loop stands still for `watch_s` is killed;
        `stop_s` is what it has for stopping in order.
        """
        self._be_root = be_root
        self._lifeline = lifeline
        self._restarts_left = restarts
        self._restarts: list[float] = []
        self._stop_s = stop_s
        self._pulse = Pulse(watch_s)
        self._root = 0
        self._bell = -1
        self._stopping = False
        self._kill_at = float("inf")
        self._beat = (0, float("inf"))

    def guard(self) -> int:
        """Until the node has ended; its exit status."""
        process.become_subreaper()
        self._bell, ringer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(ringer, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _ring)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # only now: what was blocked meanwhile is heard
        while True:
            self._fork()
            status = self._wait()
            self._root = 0
            left = process.kill_all_children(_KILL_S)
            if left:
                process.complain(f"these survive SIGKILL: {left}")
            self._obey()
            code = os.waitstatus_to_exitcode(status)
            if self._stopping and code == -signal.SIGTERM:  # it was asked before it had begun anything
                return 0
            if code == 0 or self._stopping or not self._may_restart():
                return code if code >= 0 else 1
            process.complain(f"the root {process.describe_status(status)}; it is started again")

    def _may_restart(self) -> bool:
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if at >= now - PERIOD_S]
        if not self._pulse.was_ready or len(self._restarts) >= self._restarts_left:
            return False
        self._restarts.append(now)
        return True

    def _fork(self) -> None:
        here = os.getpid()
        # A signal to the child that comes before it has forgotten this process's handlers must not be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid == 0:
            self._become_root(here)
        self._root = pid
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._beat = (self._pulse.beats(), time.monotonic() + _BEGIN_S)

    def _become_root(self, heart: int) -> NoReturn:
        code = 1
        try:
            process.reset_signals()
            # Of a dead heart the root learns in time to stop in order, and to leave nothing either.
            if process.die_with_parent(heart, signal.SIGTERM):
                code = self._be_root(self._pulse)
        finally:
            os._exit(code)

    def _wait(self) -> int:
        """Wait for the root's end, and see to it that it comes when it must; its wait status."""
        while True:
            status = self._reap()
            if status is not None:
                return status
            watched: list[Any] = [self._bell]
            if self._lifeline is not None and not self._stopping:
                watched.append(self._lifeline)
            readable, _, _ = select.select(watched, [], [], self._patience())
            self._obey()
            if self._lifeline in readable and not self._alive(self._lifeline):
                self._stop(signal.SIGTERM)  # which the root, unless it is stuck, has seen by itself
            self._check()

    @property
    def orphaned(self) -> bool:
        """Whether who started this node is gone."""
        return self._lifeline is not None and not self._alive(self._lifeline)

    def _alive(self, lifeline: socket.socket | None) -> bool:
        assert lifeline is not None
        try:
            return bool(lifeline.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:  # the root has read it
            return True
        except OSError:
            return False

    def _reap(self) -> int | None:
        """Collect who has died; the root's status, if it is among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0
            if pid == 0:
                return None
            if pid == self._root:
                return status

    def _patience(self) -> float | None:
        watch_s = self._pulse.watch_s
        waits = [self._kill_at - time.monotonic()] if self._kill_at < float("inf") else []
        if watch_s is not None:
            waits.append(watch_s / 2)
        return max(0.0, min(waits)) if waits else None

    def _check(self) -> None:
        now = time.monotonic()
        beats = self._pulse.beats()
        if beats != self._beat[0]:
            self._beat = (beats, now)
        watch_s = self._pulse.watch_s
        if watch_s is not None and now - self._beat[1] > watch_s:
            process.complain(f"the root's event loop has stood still for {watch_s:g} s")
            self._beat = (beats, now)
            os.kill(self._root, signal.SIGKILL)
        if now > self._kill_at:
            self._kill_at = float("inf")
            os.kill(self._root, signal.SIGKILL)

    def _stop(self, number: int) -> None:
        self._stopping = True
        if self._kill_at == float("inf"):
            self._kill_at = time.monotonic() + self._stop_s
        if self._root:
            os.kill(self._root, number)
            os.kill(self._root, signal.SIGCONT)  # a stopped root hears it only then

    def _obey(self) -> None:
        """Do what the signals ask for that have come."""
        try:
            numbers = os.read(self._bell, 4096)
        except BlockingIOError:
            return
        if signal.SIGQUIT in numbers:  # no patience any more
            self._stop(signal.SIGKILL)
        elif signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._stop(signal.SIGTERM)


def _ring(number: int, frame: object) -> None:
    """Nothing: the wake-up descriptor tells, at a moment when it can be acted upon."""
