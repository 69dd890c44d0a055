"""How many processes and threads RLIMIT_NPROC counts for this user here, found out by forking.

The kernel counts tasks of one real user in one user namespace, and in those around it; no file
shows that number.  So a process without capabilities lowers its own limit until fork(2) fails.

Void for the real root (user 0 of the first user namespace), whatever its capabilities: measured on
Linux 6.18, and fork(2) says so.  Sources: getrlimit(2) RLIMIT_NPROC, fork(2) EAGAIN.
"""

from __future__ import annotations

import functools
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from colos.chaos.mechanisms import kernel

__all__ = ["CountTasks", "await_end", "count_tasks", "probe"]

_WAIT_S = 10.0
_REAPED_S = 2.0
_CEILING = 1 << 22  # PID_MAX_LIMIT of the kernel
_SOURCE = """import sys
sys.path[:] = {path!r}
from colos.chaos.mechanisms.processcount import CountTasks
(value, _), _ = CountTasks()()
print(-1 if value is None else value)"""


@dataclass(frozen=True)
class CountTasks:
    """A request for `Sandbox.join`: runs in a process of its own, which it leaves without privileges."""

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """What the kernel counts without the caller (None where the limit binds nobody), and the caller's pid."""
        kernel.drop_privileges()
        return (self._count(), os.getpid()), ()

    def _count(self) -> int | None:
        if _forks(0):
            return None
        high = 1
        while high < _CEILING and not _forks(high):
            high *= 2
        low = high // 2  # fails with that, works with `high`
        while high - low > 1:
            middle = (low + high) // 2
            if _forks(middle):
                high = middle
            else:
                low = middle
        return low - 1  # `low` tasks there are, and the caller is one of them


def _forks(limit: int) -> bool:
    """Whether a process under this limit can fork."""
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if hard != resource.RLIM_INFINITY and limit > hard:
        return True  # past what any process here may ask for
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard))
    try:
        child = os.fork()
    except BlockingIOError:
        return False
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return True


def count_tasks() -> int | None:
    """The same for the user of this process, in its own user namespace.  Raises `OSError`."""
    command = [sys.executable, "-c", _SOURCE.format(path=sys.path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_WAIT_S, check=True)
        count = int(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        raise OSError(0, f"the processes of this user cannot be counted: {error}") from error
    return count if count >= 0 else None


def await_end(pid: int) -> None:
    """Wait until a process that counted is reaped: until then it is counted itself, though dead."""
    deadline = time.monotonic() + _REAPED_S
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.0005)


@functools.cache
def probe() -> str | None:
    """Whether the limit binds this user: None, or the reason why not."""
    try:
        bound = count_tasks() is not None
    except OSError as error:
        return str(error)
    return None if bound else "RLIMIT_NPROC does not bind root, also not without capabilities"
