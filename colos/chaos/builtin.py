"""The properties that hold for every system unless it says otherwise (DESIGN law 8).

Each looks at the kernel's own tables.  They are switched off by name: ``without = ("no_zombie",)``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from colos.chaos.properties import Violation
from colos.chaos.sandbox.handle import Sandbox
from colos.chaos.sandbox.processes import Process

__all__ = ["BUILTIN", "DescriptorCount", "outliving", "zombies"]

#: The names of the built-in properties, as ``without`` and scenarios know them.
BUILTIN = ("no_descriptor_leak", "no_process_outlives_the_system", "no_zombie")

_SETTLE_S = 1.0
_POLL_S = 0.002
#: How many descriptors a process may keep more than it had when it was first quiet: caches and
#: lazily opened files are not leaks; one descriptor a request is, after a few requests.
DESCRIPTOR_SLACK = 16


def _until(holds: Callable[[], bool], timeout_s: float = _SETTLE_S) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)  # the kernel offers nothing to wait on here
    return True


def _named(processes: list[Process]) -> str:
    return ", ".join(f"{process.command} (pid {process.inner_pid} inside)" for process in processes)


def zombies(sandbox: Sandbox) -> Violation | None:
    """A process that ended and that its parent does not reap within a second."""
    dead: list[Process] = []

    def none_left() -> bool:
        known = {(process.pid, process.start_time) for process in dead}
        now = [process for process in sandbox.processes() if process.state == "Z"]
        # Only one that stays counts: a busy parent has a new short-lived zombie at every look.
        dead[:] = [process for process in now if not known or (process.pid, process.start_time) in known]
        return not dead

    if _until(none_left):
        return None
    return Violation("builtin:no_zombie", f"{_named(dead)}: ended and not reaped by its parent for {_SETTLE_S:g} s")


def outliving(sandbox: Sandbox) -> Violation | None:
    """A process that still runs when the system says that it has stopped."""
    left: list[Process] = []

    def none_left() -> bool:
        left[:] = [process for process in sandbox.processes() if process.state != "Z"]
        return not left

    if _until(none_left):
        return None
    return Violation(
        "builtin:no_process_outlives_the_system", f"{_named(left)}: still running after the system stopped"
    )


class DescriptorCount:
    """How many descriptors each process had when it was first seen quiet, against the end."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._first: dict[tuple[int, int], int] = {}

    def look(self) -> None:
        """Remember every process that is new."""
        for process in self._sandbox.processes():
            key = (process.pid, process.start_time)
            if key not in self._first:
                count = _open_descriptors(process.pid)
                if count is not None:
                    self._first[key] = count

    def leak(self) -> Violation | None:
        """A process that holds many more than it did, and goes on holding them."""
        grown: list[tuple[Process, int, int]] = []

        def none_left() -> bool:
            grown.clear()
            for process in self._sandbox.processes():
                first = self._first.get((process.pid, process.start_time))
                now = _open_descriptors(process.pid)
                if first is not None and now is not None and now > first + DESCRIPTOR_SLACK:
                    grown.append((process, first, now))
            return not grown

        if _until(none_left):
            return None
        said = ", ".join(f"{process.command} (pid {process.inner_pid} inside): {a} → {b}" for process, a, b in grown)
        return Violation("builtin:no_descriptor_leak", f"open descriptors grew and stayed: {said}")


def _open_descriptors(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # it has just ended, or has made itself undumpable
