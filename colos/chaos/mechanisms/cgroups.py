"""A share of a core by cgroup quota, where a cgroup v2 with the cpu controller may be written to.

A group is made beside the processes that it will hold, below the nearest ancestor that hands the
cpu controller down (a process may be moved only below an ancestor that the user may write to,
and a group with processes of its own hands nothing down).  Whatever is made here is removed here:
by `remove`, or by a janitor when this process is killed first.  Source: cgroups(7), cgroup-v2.rst
("Delegation Containment", "No Internal Process Constraint", "cpu.max").
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import subprocess
import time

__all__ = ["Group", "QuotaGroup", "group_of", "hierarchy", "probe"]

_PERIOD_US = 10_000
_PERIOD_US_MAX = 1_000_000
_QUOTA_US_MIN = 1_000  # the kernel takes no less
_TRIES = 500
_PAUSE_S = 0.002
_JANITOR_S = 5.0
_NUMBERS = itertools.count(1)
#: Waits for its lifeline's end, then for the group to be empty.
_JANITOR = (
    'read -r _; n=0; while [ -d "$1" ] && ! rmdir "$1" 2>/dev/null && [ $n -lt 600 ]; do sleep 0.1; n=$((n+1)); done'
)


@functools.cache
def probe() -> str | None:
    """Whether a share of a core can be given by quota here: None, or the reason why not.  Tries it once, on a child."""
    home = _home()
    if home is None:
        return "no cgroup v2 above this process hands down the cpu controller and may be written to by this user"
    child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
    try:
        group = QuotaGroup(0.5)
        try:
            group.take(child.pid)
        finally:
            group.remove()
    except OSError as error:
        return f"{home}: {error.strerror}"
    finally:
        child.kill()
        child.wait(_JANITOR_S)
    return None


class Group:
    """A group of its own below `home`, which takes processes in and gives each back.  Raises `OSError`."""

    def __init__(self, home: str) -> None:
        self.path = f"{home}/colos-{os.getpid()}-{next(_NUMBERS)}"
        self._origin: str | None = None
        os.mkdir(self.path)
        try:
            self.janitor = subprocess.Popen(
                ["/bin/sh", "-c", _JANITOR, "colos-janitor", self.path],
                stdin=subprocess.PIPE,  # its lifeline
                start_new_session=True,  # Ctrl-C is not for it
            )
        except BaseException:
            os.rmdir(self.path)
            raise

    def take(self, pid: int) -> None:
        """Move a process in, with all its threads; what it forks from here on is in, too."""
        self._origin = group_of(pid)
        _write(f"{self.path}/cgroup.procs", str(pid))

    def members(self) -> list[int]:
        """Who is in."""
        try:
            with open(f"{self.path}/cgroup.procs", encoding="ascii") as file:
                return [int(line) for line in file]
        except FileNotFoundError:
            return []

    def remove(self) -> None:
        """Move everybody back and remove the group.  May be called twice.  Raises `OSError`."""
        for _ in range(_TRIES):
            for pid in self.members():
                try:
                    _write(f"{self._origin}/cgroup.procs", str(pid))
                except ProcessLookupError:
                    continue  # it has just ended
            try:
                os.rmdir(self.path)
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(_PAUSE_S)  # a dead process leaves its group when it is reaped
            else:
                break
        if self.janitor.stdin is not None:
            self.janitor.stdin.close()
        if not self.exists():
            self.janitor.wait(_JANITOR_S)  # else it goes on trying

    def exists(self) -> bool:
        """Whether it is still there."""
        return os.path.isdir(self.path)


class QuotaGroup(Group):
    """A group whose processes together get a share of one core.  Raises `OSError` where it cannot be made."""

    def __init__(self, share: float) -> None:
        home = _home()
        if home is None:
            raise PermissionError(errno.EACCES, "no cgroup with the cpu controller to write to")
        super().__init__(home)
        try:
            self.limit(share)
        except BaseException:
            self.remove()
            raise

    def limit(self, share: float) -> None:
        """Set the share."""
        period = min(max(_PERIOD_US, int(_QUOTA_US_MIN / share) + 1), _PERIOD_US_MAX)
        _write(f"{self.path}/cpu.max", f"{max(_QUOTA_US_MIN, int(period * share))} {period}")

    def throttled(self) -> int:
        """How many times the quota was used up and somebody had to wait."""
        try:
            with open(f"{self.path}/cpu.stat", encoding="ascii") as file:
                return next((int(line.split()[1]) for line in file if line.startswith("nr_throttled ")), 0)
        except FileNotFoundError:
            return 0


def _home() -> str | None:
    """The nearest ancestor of this process's group below which a quota can be given by this user."""
    mounted = hierarchy()
    own = group_of(os.getpid()) if mounted else None
    if mounted is None or own is None:
        return None
    while own.startswith(mounted):
        if (
            "cpu" in _read(f"{own}/cgroup.subtree_control").split()
            and os.access(own, os.W_OK)
            and os.access(f"{own}/cgroup.procs", os.W_OK)
        ):
            return own
        own = os.path.dirname(own)
    return None


def hierarchy() -> str | None:
    """Where the cgroup v2 hierarchy is mounted whole, as far as this process may see it."""
    for line in _read("/proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split(" ", 1)[0] == "cgroup2" and fields.split()[3] == "/":
            return fields.split()[4]
    return None


def group_of(pid: int) -> str | None:
    """The directory of a process's group."""
    mounted = hierarchy()
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        if mounted is not None and line.startswith("0::/"):
            return f"{mounted}/{line[4:]}".rstrip("/")
    return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
