"""Carrying out what a rule says of a trapped call.  Nothing here waits: a delayed call is kept until it is due."""

from __future__ import annotations

import heapq
import itertools
import math
import os
import socket
import stat
import time
from typing import Final

from colos.chaos.mechanisms.diskcalls import WRITING, c_int, perform, would_write
from colos.chaos.mechanisms.rawcalls import open_of, read_memory, write_memory
from colos.chaos.mechanisms.rules import Action, Cut, Delay, Fail, Tear
from colos.chaos.mechanisms.syscalls import Listener, Notification

__all__ = ["Answers"]

WAITING_MAX: Final = 1024
"""How many calls may be delayed at a time; one more is carried out at once, and counted in `overrun`."""
_READ_MAX: Final = 1 << 20
_READING: Final = ("read", "pread64", "recvfrom")


class Answers:
    """The calls that wait for their time, and what can be done to one at once."""

    def __init__(self) -> None:
        self.overrun = 0
        self._due: list[tuple[float, int, int, Listener, Notification]] = []
        self._numbers = itertools.count()

    def act(self, listener: Listener, n: Notification, name: int, action: Action, luck: float) -> bool | None:
        """Do it: whether it was done; None where it cannot be done to this call, which still waits.  Raises OSError."""
        if isinstance(action, Fail):
            return listener.fail(n, action.errno)
        if isinstance(action, Delay):
            return self._delay(listener, n, name, action.least_s + luck * (action.most_s - action.least_s))
        if n.call in WRITING:
            return _write_a_part(listener, n, action)
        if n.call in _READING and isinstance(action, Cut):
            return _read_a_part(listener, n, action)
        return None

    # --- delays -----------------------------------------------------------------------------

    def _delay(self, listener: Listener, n: Notification, name: int, delay_s: float) -> bool | None:
        if len(self._due) >= WAITING_MAX:
            self.overrun += 1
            return None
        heapq.heappush(self._due, (time.monotonic() + delay_s, next(self._numbers), name, listener, n))
        return True

    @property
    def waiting(self) -> bool:
        """Whether any call is delayed now."""
        return bool(self._due)

    def next_due_s(self) -> float | None:
        """How long until a delayed call is to go on; None if none waits."""
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None

    def go_on(self) -> list[tuple[Listener, Notification]]:
        """The calls whose time has come."""
        now, ready = time.monotonic(), []
        while self._due and self._due[0][0] <= now:
            *_, listener, n = heapq.heappop(self._due)
            ready.append((listener, n))
        return ready

    def release(self, name: int) -> list[tuple[Listener, Notification]]:
        """The calls that a rule has made wait: it ends."""
        freed = [(listener, n) for _, _, of, listener, n in self._due if of == name]
        self._due = [entry for entry in self._due if entry[2] != name]
        heapq.heapify(self._due)
        return freed


# --- parts --------------------------------------------------------------------------------


def _write_a_part(listener: Listener, n: Notification, action: Cut | Tear) -> bool | None:
    """Of a write to a regular file; where it is to anything else, the answering process could have to wait."""
    descriptors = [open_of(n.pid, c_int(n.args[WRITING[n.call]]))]
    try:
        if not stat.S_ISREG(os.fstat(descriptors[0]).st_mode):
            return None
        write = would_write(n, descriptors)
        if write is None or n.call == "fallocate":
            return None
        length = math.ceil((write.end - write.start) * action.share)
        if length >= write.end - write.start or not listener.is_valid(n):
            return None
        done = perform(n, write, length)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    if done is None:
        return None
    if done < 0:
        return listener.fail(n, -done)
    return listener.fail(n, action.errno) if isinstance(action, Tear) else listener.answer(n, done)


def _read_a_part(listener: Listener, n: Notification, action: Cut) -> bool | None:
    """Of a read that has something now; the caller itself waits for what is not there yet."""
    wanted = min(n.args[2], _READ_MAX)
    length = math.ceil(wanted * action.share)
    if length >= wanted or (n.call == "recvfrom" and (n.args[3] or n.args[4])):
        return None  # one byte cannot be cut; flags and a sender's address are the kernel's to fill in
    descriptor = open_of(n.pid, c_int(n.args[0]))
    try:
        mode = os.fstat(descriptor).st_mode
        if not listener.is_valid(n):
            return None
        read_memory(n.pid, n.args[1], 1)  # a bad buffer must not cost the data
        if stat.S_ISSOCK(mode):
            with socket.socket(fileno=os.dup(descriptor)) as duplicate:
                data = duplicate.recv(length, socket.MSG_DONTWAIT)
        elif stat.S_ISREG(mode):
            data = os.pread(descriptor, length, n.args[3]) if n.call == "pread64" else os.read(descriptor, length)
        else:
            return None
    except BlockingIOError:
        return None
    finally:
        os.close(descriptor)
    write_memory(n.pid, n.args[1], data)
    return listener.answer(n, len(data))
