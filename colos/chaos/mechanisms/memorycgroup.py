"""Memory cgroups of our own, where the system's manager has delegated a place for them (cgroup v2).

A group can be made where a cgroup that we are in, directly or further below, hands the memory
controller on (``cgroup.subtree_control``) and its directory and ``cgroup.procs`` are ours to write:
under systemd in what ``systemd-run --user --scope -p Delegate=yes`` or a user's ``app.slice`` gives.
Memory is charged to the group that a process is in when it first touches it, so what a process had
before it was moved does not count.  cgroup v1 has no delegation to ordinary users, and is not used.

Nothing above our own group is written to but the new directory.  A group is empty once healed, and
removed; one that a killed harness left behind (empty, for its processes have ended) is removed by
the next.  Source: the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import itertools
import os
import time

from colos.errors import HarnessBroken

__all__ = ["CURE", "MECHANISM", "PREFIX", "MemoryGroup", "origin_of", "place_for", "probe"]

#: As leases and the catalogue name it.
MECHANISM = "memory-cgroup"
#: How a group of ours is named: the harness's pid and a number follow.
PREFIX = "colos-"
CURE = "run under a delegated cgroup (v2): systemd-run --user --scope -p Delegate=yes pytest ..."
_NUMBERS = itertools.count()
_EMPTY_S = 2.0
_MOUNTINFO = "/proc/self/mountinfo"
_OWN = "/proc/self/cgroup"


def probe() -> str | None:
    """Whether a memory cgroup can be made: None, or the reason why not."""
    found = place_for(_read(_MOUNTINFO), _read(_OWN))
    return found if not found.startswith("/") else None


def place_for(mountinfo: str, own: str) -> str:
    """The directory under which a group can be made, else the reason why there is none.

    The arguments are what /proc/self/mountinfo and /proc/self/cgroup say.
    """
    top = next((fields[4] for fields in map(str.split, mountinfo.splitlines()) if _is_cgroup2(fields)), None)
    if top is None:
        return "no cgroup v2 hierarchy is mounted here"
    inside = next((line[3:] for line in own.splitlines() if line.startswith("0::")), None)
    if inside is None:
        return "this process is in no cgroup of version 2"
    if "memory" not in _words(f"{top}/cgroup.controllers"):
        return "the cgroup v2 hierarchy has no memory controller (version 1 has it, or it is switched off)"
    at = os.path.normpath(f"{top}/{inside}")
    while at == top or at.startswith(f"{top}/"):
        mine = os.access(at, os.W_OK | os.X_OK) and os.access(f"{at}/cgroup.procs", os.W_OK)
        if mine and "memory" in _words(f"{at}/cgroup.subtree_control"):
            return at
        at = os.path.dirname(at)
    return "no cgroup above this process hands the memory controller on to groups that this user may make"


def _is_cgroup2(fields: list[str]) -> bool:
    return "-" in fields and fields[fields.index("-") + 1] == "cgroup2"


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _words(path: str) -> list[str]:
    try:
        return _read(path).split()
    except OSError:
        return []


class MemoryGroup:
    """One group, made empty.  Raises `OSError` where none can be made."""

    def __init__(self) -> None:
        place = place_for(_read(_MOUNTINFO), _read(_OWN))
        if not place.startswith("/"):
            raise OSError(errno.ENOSYS, place)
        _sweep(place)
        self.path = f"{place}/{PREFIX}{os.getpid()}-{next(_NUMBERS)}"
        os.mkdir(self.path)
        self._came_from: dict[int, str] = {}

    def set(self, name: str, value: str) -> None:
        """Write one of the group's files, such as ``memory.max``.  Raises `OSError`."""
        _write(f"{self.path}/{name}", value)

    def add(self, pid: int, origin: str) -> bool:
        """Move a process in; `origin` is where it goes back to.  False when it is gone."""
        try:
            _write(f"{self.path}/cgroup.procs", str(pid))
        except ProcessLookupError:
            return False
        self._came_from[pid] = origin
        return True

    def count(self, event: str) -> int:
        """How often something happened in it, from ``memory.events``."""
        words = _words(f"{self.path}/memory.events")
        return int(words[words.index(event) + 1]) if event in words else 0

    def pids(self) -> list[int]:
        """Who is in it."""
        return [int(word) for word in _words(f"{self.path}/cgroup.procs")]

    def exists(self) -> bool:
        """Whether the kernel shows it."""
        return os.path.isdir(self.path)

    def remove(self, otherwise: str) -> None:
        """Lift every limit, send everybody back (children that were born in it to `otherwise`), and remove it."""
        if not self.exists():
            return
        for name in ("memory.high", "memory.max"):
            self.set(name, "max")
        deadline = time.monotonic() + _EMPTY_S
        while True:
            for pid in self.pids():
                self._send_back(pid, otherwise)
            try:
                os.rmdir(self.path)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                    raise HarnessBroken("a memory cgroup", f"{self.path} cannot be removed: {error}") from None
                time.sleep(0.001)
            else:
                return

    def _send_back(self, pid: int, otherwise: str) -> None:
        for origin in (self._came_from.get(pid, otherwise), otherwise):
            try:
                _write(f"{origin}/cgroup.procs", str(pid))
            except FileNotFoundError:
                continue  # the group of an earlier fault, healed meanwhile
            except ProcessLookupError:
                return  # it has ended
            else:
                return


def origin_of(pid: int) -> str:
    """The directory of the cgroup (v2) that a process is in.  Raises `OSError` when it is gone."""
    mounts = map(str.split, _read(_MOUNTINFO).splitlines())
    top = next(fields[4] for fields in mounts if _is_cgroup2(fields))
    inside = next(line[3:] for line in _read(f"/proc/{pid}/cgroup").splitlines() if line.startswith("0::"))
    return os.path.normpath(f"{top}/{inside}")


def _write(path: str, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _sweep(place: str) -> None:
    """Remove the groups of harnesses that are no more; rmdir refuses one that is in use."""
    for name in os.listdir(place):
        pid = name.removeprefix(PREFIX).partition("-")[0]
        if name.startswith(PREFIX) and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            try:
                os.rmdir(f"{place}/{name}")
            except OSError:
                continue
