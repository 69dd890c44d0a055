"""A process's `stats` file: what changes with every message, in memory that is also a file.

Text of fixed width, so that `cat` shows it and nothing is written, only memory changed.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

_WIDTH: Final = 40
_FIELDS: Final = ("mailbox", "call", "beat")
_LINE: Final = 8 + _WIDTH + 1
_TEMPLATE: Final = b"".join(b"%-8s%-40s\n" % (name.encode(), b"-" if name == "call" else b"0") for name in _FIELDS)
_MAILBOX, _CALL, _BEAT = (slice(index * _LINE + 8, index * _LINE + 8 + _WIDTH) for index in range(3))
_IDLE: Final = b"-".ljust(_WIDTH)


class Stats:
    """The process's own hand on it.  Where there is no room for the file, there is none, and all else goes on."""

    def __init__(self, path: str) -> None:
        self._map: mmap.mmap | bytearray = bytearray(_TEMPLATE)
        self._names: dict[str, bytes] = {}
        self._counts: dict[int, bytes] = {}
        self._shown = 0
        self._doing = ""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, _TEMPLATE)
                # A mapped page without a block behind it would be a SIGBUS on a full disk.
                os.posix_fallocate(descriptor, 0, len(_TEMPLATE))
                self._map = mmap.mmap(descriptor, len(_TEMPLATE))
            finally:
                os.close(descriptor)
        except (OSError, ValueError):  # a view only, see rundir
            pass
        self._beats = 0

    def close_after_fork(self) -> None:
        """In a process forked from this one: what happens there is not what happens here."""
        self._map = bytearray(self._map[:])

    def waiting(self, count: int) -> None:
        """How many messages wait."""
        if count != self._shown:
            self._shown = count
            shown = self._counts.get(count)
            if shown is None:
                shown = self._counts[count] = b"%-40d" % count
            self._map[_MAILBOX] = shown

    def arrived(self, count: int) -> None:
        """How many messages wait, now that some have come: worth telling if nobody takes them at once."""
        if self._doing:
            self.waiting(count)

    def busy(self, method: str) -> None:
        """What is being done."""
        if method == self._doing:  # one message after another
            return
        name = self._names.get(method)
        if name is None:
            name = self._names[method] = method.encode(errors="replace")[:_WIDTH].ljust(_WIDTH)
        self._map[_CALL] = name
        self._doing = method

    def idle(self) -> None:
        """Nothing is."""
        if self._doing:
            self._map[_CALL] = _IDLE
            self._doing = ""

    def beat(self) -> None:
        """The event loop turns."""
        self._beats += 1
        self._map[_BEAT] = b"%-40d" % self._beats


def read_stats(path: str) -> dict[str, str]:
    """What the file says; empty if there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            pairs = (line.split(None, 1) for line in file)
            return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}
    except OSError:  # never written, or removed meanwhile
        return {}
