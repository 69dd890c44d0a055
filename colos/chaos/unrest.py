"""A system that should be idle and is not: it spins, or what it starts dies again and again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from colos.chaos.looking import listed, named
from colos.chaos.properties import Violation
from colos.chaos.sandbox.handle import Sandbox
from colos.chaos.sandbox.processes import Process
from colos.chaos.system import RunningSystem

__all__ = ["BURNT_S", "STORM_DEATHS", "BusyLoop", "RestartStorm"]

#: How much CPU time a process must burn without a pause: a slow finish is no loop.
BURNT_S = 1.0
_SUSPICION = 0.5
_BUSY = 0.8
#: Longer and longer, so that a system that was just about to be idle costs little.
_WINDOWS_S = (0.002, 0.01, 0.05, 0.2)
_MEASURED_S = 0.05
_LOOK_S = 20.0
#: The longest wait for a core that may be missing in the count because it is not over yet.
_UNCOUNTED_S = 0.2

#: How often one process must have died since all faults were healed: once or twice may be an after-effect.
STORM_DEATHS = 3
#: How long restarts are watched, and after which pause they count as over.
_STORM_S = 5.0
_CALM_S = 1.0
_PAUSE_S = 0.02
#: How long a start may take to say whether it is a restart.
_UNSURE_S = 0.2


@dataclass(frozen=True)
class _Usage:
    process: Process
    at: float
    cpu_s: float


def _cpu_s(pid: int) -> float | None:
    """The CPU time of all threads of a process, to the nanosecond.  Source: clock_getcpuclockid(3)."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None  # it has ended


def _waited_s(pid: int) -> float:
    """How long its threads were ready to run and had to wait for a core (proc(5), schedstat)."""
    waited = 0
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat") as file:
                waited += int(file.read().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0  # it has ended, or the kernel does not count
    return waited / 1e9


_Measure: TypeAlias = tuple[float, float, float, bool, float, float]


def _wanted_s(first: _Measure, last: _Measure) -> float:
    """How long it ran or was ready to, between two measures."""
    return (last[1] - first[1]) + (last[2] - first[2])


def _is_ready(pid: int) -> bool:
    """Whether any of its threads runs or could: a process's own state is that of its first thread only."""
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[0] == b"R":
                    return True
    except (OSError, IndexError):
        return False  # it has ended
    return False


class BusyLoop:
    """A process that burns a core though every fault is healed and nobody asks it anything.

    The first look costs nothing: the time from the settling to the end of the other checks passes anyway.  Only
    who used half of it, or is ready to run at its end, is looked at again, for longer and longer; and only who
    goes on until it has burnt `BURNT_S` of CPU time is a loop.  What it waited for a core counts as used, so that a
    busy machine excuses nobody; but only burnt time convicts, so that it blames nobody either.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._before: dict[tuple[int, int], _Usage] = {}

    def look(self) -> None:
        """The system is settled: begin to measure."""
        self._before = self._usages(self._sandbox.processes())

    def _usages(self, processes: list[Process]) -> dict[tuple[int, int], _Usage]:
        found = {}
        for process in processes:
            cpu_s = _cpu_s(process.pid) if process.state not in "ZXT" else None
            if cpu_s is not None:
                found[process.pid, process.start_time] = _Usage(process, time.monotonic(), cpu_s)
        return found

    def loop(self, leave_alone: Callable[[], None]) -> Violation | None:
        """Who spins.  `leave_alone` ends what the author still has running against the system."""
        for usage in self._suspects():
            violation = self._watch(usage.process, leave_alone)
            if violation is not None:
                return violation
        return None

    def _suspects(self) -> list[_Usage]:
        found = []
        for key, now in self._usages(self._sandbox.processes()).items():
            before = self._before.get(key)
            used = before is not None and now.cpu_s - before.cpu_s >= _SUSPICION * (now.at - before.at)
            if used or _is_ready(now.process.pid):
                found.append(now)
        return found

    def _watch(self, process: Process, leave_alone: Callable[[], None]) -> Violation | None:
        first = self._measure(process)
        last = first
        windows = iter(_WINDOWS_S)
        window_s = _WINDOWS_S[0]
        while first is not None and last is not None and last[0] - first[0] < _LOOK_S:
            window_s = next(windows, window_s)
            time.sleep(window_s)  # nothing to wait on: idleness has no event
            before, last = last, self._measure(process)
            if last is None:
                return None
            # A wait for a core is counted when it is over: who waits at this moment may be as busy as ever.
            if _wanted_s(before, last) < _BUSY * (last[0] - before[0]) and not last[3]:
                return None
            if window_s == _MEASURED_S:  # not to be cheap any more: now nobody may ask it anything
                leave_alone()
                first = last = self._measure(process)
            elif last[1] - first[1] >= BURNT_S:
                if _wanted_s(first, last) < _BUSY * (last[0] - first[0]) - _UNCOUNTED_S:
                    return None  # it paused between the looks, each of which met it at work
                user_s, system_s = last[4] - first[4], last[5] - first[5]
                return Violation(
                    "builtin:no_busy_loop",
                    f"{named(process)} burnt {last[1] - first[1]:.1f} s of CPU in {last[0] - first[0]:.1f} s "
                    f"(user {user_s:.1f} s, system {system_s:.1f} s) without a pause, after every fault was healed "
                    "and with nobody asking it anything",
                )
        return None

    def _measure(self, process: Process) -> _Measure | None:
        """Now, CPU time, time waited for a core, whether it is ready to run, user and system time."""
        cpu_s, waited_s = _cpu_s(process.pid), _waited_s(process.pid)
        try:
            with open(f"/proc/{process.pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return None
        if cpu_s is None or int(fields[19]) != process.start_time:
            return None
        ticks = os.sysconf("SC_CLK_TCK")
        return (
            time.monotonic(),
            cpu_s,
            waited_s,
            _is_ready(process.pid),
            int(fields[11]) / ticks,
            int(fields[12]) / ticks,
        )


class RestartStorm:
    """Restarts that go on after every fault is healed: what comes up dies again.

    What the faults killed does not count: they are over.  Neither does an after-effect, which is a death or two
    of each process, or a process that tries until what it needs is there, and then stays.  It is a storm when one
    process died at least `STORM_DEATHS` times and still does after 5 s; or when the supervisor gave up, and the
    deaths after the healing alone were more than it tolerates.  The counts are the supervisor's own: the node's
    run directory, or the keeper's; what a program restarts by itself is not seen.
    """

    def __init__(self, running: RunningSystem, tolerance: int | None) -> None:
        self._running = running
        self._tolerance = tolerance
        self._mark = 0
        self._healed_at = 0.0

    def healed(self) -> None:
        """Every fault is healed: count from here."""
        self._running.sandbox.catch_up()
        self._mark = self._running.births()
        self._healed_at = time.monotonic()

    def storm(self) -> Violation | None:
        """Whether restarts go on; returns at once when there was none."""
        self._running.sandbox.catch_up()
        if self._running.births() == self._mark:
            return None
        sandbox = self._running.sandbox
        begun = last_at = time.monotonic()
        births = self._running.births()
        while True:
            sandbox.catch_up()
            now, latest = time.monotonic(), self._running.births()
            if latest != births:
                births, last_at = latest, now
            if sandbox.stopped:
                limit = STORM_DEATHS if self._tolerance is None else self._tolerance
                return self._violation("and its supervisor gave up", min(STORM_DEATHS - 1, limit))
            if now - begun >= _STORM_S:
                return self._violation("and it goes on", STORM_DEATHS - 1)
            if now - last_at >= (_CALM_S if self._running.deaths(self._mark) else _UNSURE_S):
                return None  # it has calmed down, or what was started is no restart
            time.sleep(_PAUSE_S)  # the run directory tells nobody when it changes

    def _violation(self, end: str, most: int) -> Violation | None:
        often = {path: told for path, told in self._running.deaths(self._mark).items() if told[0] > most}
        if not often:
            return None
        said = listed(
            f"{path} died {times} times or more (last: {reason or 'no reason known'})"
            for path, (times, reason) in often.items()
        )
        since = time.monotonic() - self._healed_at
        return Violation(
            "builtin:no_restart_storm",
            f"in the {since:.1f} s since every fault was healed, {said}, {end}; "
            f"{self._running.births() - self._mark} starts in all",
        )
