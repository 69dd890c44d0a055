"""What the machine around the test did to a run: a process that the kernel killed for memory, a full host disk.

Nobody injected those, so that the system is not to blame for what followed (law 7: blame only with evidence).
Counters are read when a run begins, and all else only when something was violated or could not be done.  The
sentences name no numbers that differ from run to run: runs are counted by them.

Sources: proc_vmstat(5) ``oom_kill``, the kernel's cgroup-v2.rst ``memory.events``, statvfs(3).
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from colos.chaos.mechanisms import memorycgroup

__all__ = [
    "FULL_BYTES",
    "MEMORY_CGROUP",
    "OOM_KILLED",
    "Environment",
    "full_file_system",
    "has_risen",
    "oom_kills_in",
    "shortage",
]

FULL_BYTES = 1 << 20
"""A file system with fewer bytes left for ordinary users is full; so is one without an inode left."""
OOM_KILLED = "the kernel's OOM killer ended a process on this machine, and no fault asked for it"
MEMORY_CGROUP = memorycgroup.MECHANISM
"""What those kinds of fault use for which the kernel's OOM killer acts."""
#: What the harness itself may run out of, and the family of faults that may be why.
_SHORT_OF = {
    errno.ENOSPC: "disk",
    errno.EDQUOT: "disk",
    errno.EMFILE: "descriptors",
    errno.ENFILE: "descriptors",
    errno.ENOMEM: "memory",
}


def _own_events() -> str | None:
    try:
        return f"{memorycgroup.origin_of(os.getpid())}/memory.events"
    except (OSError, StopIteration):
        return None  # no cgroup of version 2 is mounted


@dataclass(frozen=True)
class Environment:
    """Where to look: the kernel's counters, and the directories that every run needs on the host."""

    vmstat: str = "/proc/vmstat"
    #: ``memory.events`` of the harness's own cgroup, where it is in one of version 2.
    events: str | None = field(default_factory=_own_events)
    temporary: str = field(default_factory=tempfile.gettempdir)

    def oom_kills(self) -> tuple[int | None, ...]:
        """How many OOM kills each source has counted since the machine began; None where it cannot be read."""
        return tuple(oom_kills_in(path) for path in (self.vmstat, self.events) if path is not None)

    def excuse(
        self, before: Sequence[int | None], directories: Iterable[str | Path], *, oom_injected: bool
    ) -> str | None:
        """What the environment did since `before` (as `oom_kills` gave it), in one sentence; None for nothing.

        `directories` are those that the run writes to on the host, beside the temporary one.
        """
        if not oom_injected and has_risen(before, self.oom_kills()):
            return OOM_KILLED
        for directory in (*directories, self.temporary):
            full = full_file_system(directory)
            if full is not None:
                return f"the host's file system at {full} is full (less than {FULL_BYTES >> 20} MiB or no inode left)"
        return None


def oom_kills_in(path: str) -> int | None:
    """The count in a file of lines such as ``oom_kill 3``; None where there is none."""
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    except OSError:
        return None  # a kernel without it, or a sandbox around us that hides it
    return None


def has_risen(before: Sequence[int | None], after: Sequence[int | None]) -> bool:
    """Whether any source that could be read both times has counted more."""
    pairs = zip(before, after, strict=True)
    return any(then is not None and now is not None and now > then for then, now in pairs)


def full_file_system(directory: str | Path) -> str | None:
    """Where the file system of a directory is mounted, if it is full; of one that is not there yet, its parent's."""
    path = Path(os.path.abspath(directory))
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        state = os.statvfs(path)
        if state.f_flag & os.ST_RDONLY or not state.f_blocks:
            return None  # such a one has no room by design
        # Some file systems make inodes as they need them, and say that there are 0 in all.
        without_inodes = state.f_files > 0 and state.f_favail == 0
        if state.f_bavail * state.f_frsize >= FULL_BYTES and not without_inodes:
            return None
        while path != path.parent and path.parent.stat().st_dev == path.stat().st_dev:
            path = path.parent
    except OSError:
        return None  # it went away while we looked, and is no evidence of anything
    return str(path)


def shortage(error: OSError, families: Collection[str]) -> str | None:
    """What the harness itself ran out of, by an error that it met; None for other errors.

    Where a fault of the family (of `families` that were injected) may be why, it is no excuse.
    """
    if error.errno not in _SHORT_OF or _SHORT_OF[error.errno] in families:
        return None
    return f"the test machine ran out of what it needs itself: {errno.errorcode[error.errno]}"
