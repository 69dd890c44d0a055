"""The properties that hold for every system unless it says otherwise (DESIGN law 8).

Each looks at the kernel's own tables.  They are switched off by name: ``without = ("no_zombie",)``.
Those of a running system are looked at when every fault is healed and the author's properties hold;
those of what it leaves behind when it has stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from colos.chaos.leaks import DESCRIPTOR_SLACK, SOCKET_SLACK, DescriptorCount, dead_sockets
from colos.chaos.looking import SETTLE_S, listed, named, until
from colos.chaos.properties import Violation
from colos.chaos.remains import SharedMemory, TemporaryFiles
from colos.chaos.sandbox.handle import Sandbox
from colos.chaos.sandbox.processes import Process
from colos.chaos.system import RunningSystem
from colos.chaos.unrest import BusyLoop, RestartStorm

__all__ = ["BUILTIN", "DESCRIPTOR_SLACK", "Builtin", "DescriptorCount", "outliving", "zombies"]

#: The names of the built-in properties, as ``without`` and scenarios know them.
BUILTIN = (
    "no_zombie",
    "no_restart_storm",
    "no_busy_loop",
    "no_socket_leak",
    "no_descriptor_leak",
    "no_process_outlives_the_system",
    "no_shared_memory_leak",
    "no_temporary_file_leak",
)


def zombies(sandbox: Sandbox) -> Violation | None:
    """A process that ended and that its parent does not reap within a second."""
    dead: list[Process] = []

    def none_left() -> bool:
        known = {(process.pid, process.start_time) for process in dead}
        now = [process for process in sandbox.processes() if process.state == "Z"]
        # Only one that stays counts: a busy parent has a new short-lived zombie at every look.
        dead[:] = [process for process in now if not known or (process.pid, process.start_time) in known]
        return not dead

    if until(none_left):
        return None
    said = listed(map(named, dead))
    return Violation("builtin:no_zombie", f"{said}: ended and not reaped by its parent for {SETTLE_S:g} s")


def outliving(sandbox: Sandbox) -> Violation | None:
    """A process that still runs when the system says that it has stopped."""
    left: list[Process] = []

    def none_left() -> bool:
        left[:] = [process for process in sandbox.processes() if process.state != "Z"]
        return not left

    if until(none_left):
        return None
    said = listed(map(named, left))
    return Violation("builtin:no_process_outlives_the_system", f"{said}: still running after the system stopped")


class Builtin:
    """The built-in properties over one run: what they must have seen before, and their verdict."""

    def __init__(self, running: RunningSystem, without: Collection[str], tolerance: int | None) -> None:
        """The system is ready: what there is now is how it should be."""
        self._running = running
        self._sandbox = running.sandbox
        self._without = without
        self._descriptors = DescriptorCount(self._sandbox)
        self._storm = RestartStorm(running, tolerance)
        self._busy = BusyLoop(self._sandbox)
        self._memory = SharedMemory(self._sandbox)
        self._files = TemporaryFiles(self._sandbox)
        self._living: dict[tuple[int, int], int] = {}
        self._pids: set[int] = set()
        self._died_at = 0.0
        self.look()

    def look(self, *, killed: bool = False) -> None:
        """Take in who runs.  `killed`: a fault that is over at once has just ended somebody, perhaps."""
        processes = self._sandbox.processes()
        living = {(one.pid, one.start_time): one.inner_pid for one in processes if one.state != "Z"}
        if killed or self._living.keys() - living.keys():
            self._died_at = time.time()
        self._living = living
        self._pids.update(living.values())
        self._descriptors.look(processes)

    def healed(self) -> None:
        """Every fault is healed."""
        self._storm.healed()

    def settled(self) -> None:
        """And the system is quiet."""
        self._busy.look()

    def of_the_running(self, leave_alone: Callable[[], None]) -> Violation | None:
        """What a healed system does that it should not.  `leave_alone`: see `BusyLoop.loop`."""
        checks: tuple[tuple[str, Callable[[], Violation | None]], ...] = (
            ("no_zombie", lambda: zombies(self._sandbox)),
            ("no_restart_storm", self._storm.storm),
            ("", self._descriptor_leaks),
            ("no_busy_loop", lambda: self._busy.loop(leave_alone)),
        )
        violation = self._first_of(checks)
        self.look(killed=self._sandbox.stopped)
        return violation

    def of_the_stopped(self, waited_s: float, stopped: bool) -> Violation | None:
        """What it leaves when it was asked to stop, and has `stopped` within the time."""

        def none_outlives() -> Violation | None:
            if stopped:
                return outliving(self._sandbox)
            detail = f"it was asked to stop with SIGTERM and still ran {waited_s:g} s later"
            return Violation("builtin:no_process_outlives_the_system", detail)

        violation = self._first_of((("no_process_outlives_the_system", none_outlives),))
        if violation is not None or not stopped or self._sandbox.processes():
            return violation  # whoever still runs may use what is there
        last = set(self._living.values())
        return self._first_of(
            (
                ("no_shared_memory_leak", lambda: self._memory.leak(self._died_at, self._pids, last)),
                ("no_temporary_file_leak", lambda: self._files.leak(self._died_at)),
            )
        )

    def _descriptor_leaks(self) -> Violation | None:
        if not self._descriptors.grown(SOCKET_SLACK):
            return None  # one look for both: every example pays for it
        return self._first_of(
            (
                ("no_socket_leak", lambda: dead_sockets(self._sandbox, self._descriptors)),
                ("no_descriptor_leak", self._descriptors.leak),
            )
        )

    def _first_of(self, checks: tuple[tuple[str, Callable[[], Violation | None]], ...]) -> Violation | None:
        for name, check in checks:
            violation = check() if name not in self._without else None
            if violation is not None:
                return violation
        return None
