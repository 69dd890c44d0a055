"""An actor's standard streams: its log instead of a terminal, and nothing to read."""

from __future__ import annotations

import faulthandler
import io
import os
import sys
from typing import Any


class _LogWriter(io.RawIOBase):
    """Unbuffered standard output.  What a full disk does not take is lost: a print must not end an actor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: object, /) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        try:
            os.write(self._descriptor, view)
        except OSError:  # see the class
            pass
        return len(view)


class _NoInput(io.RawIOBase):
    """An actor's standard input, which is /dev/null: always at its end."""

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0

    def readinto(self, buffer: object, /) -> int:
        return 0


_streams: list[Any] = []
"""An actor's stdin, stdout and stderr, made before it is forked."""
_inherited: list[object] = []
"""The streams of the process this was forked from: kept, so that what they hold is not written twice."""


def prepare_streams() -> None:
    """Make the objects that will be every actor's standard streams; they open nothing."""
    faulthandler.enable(file=2)  # SIGSEGV and the like leave a traceback in whatever is stderr then
    if not _streams:
        # TextIOWrapper takes a raw stream, as `python -u` does, but is not typed so.
        raw: tuple[Any, Any] = (_LogWriter(1), _LogWriter(2))
        _streams.append(io.TextIOWrapper(io.BufferedReader(_NoInput()), "utf-8"))
        _streams.extend(io.TextIOWrapper(stream, "utf-8", "backslashreplace", write_through=True) for stream in raw)


def open_log(path: str) -> None:
    """Make a file this process's stdout and stderr, and /dev/null its stdin."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError:  # no room for a log: the actor can do without
        log = null
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for descriptor in {null, log}:
        if descriptor > 2:
            os.close(descriptor)
    _inherited.extend((sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__))
    sys.stdin, sys.stdout, sys.stderr = _streams
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = _streams  # type: ignore[misc]
