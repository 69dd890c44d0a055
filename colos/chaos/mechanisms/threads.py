"""The threads of a live process: on which CPUs each may run, and under which policy.

A process has neither as a whole: both belong to a thread, and are inherited by what it starts.
Sources: sched_setaffinity(2), sched_setscheduler(2), sched(7), proc(5).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

__all__ = ["GONE", "cpus_of", "lowest_policy", "policy_of", "probe", "set_cpus", "set_policy", "threads_of"]

#: What the kernel says of a thread that has ended; one that is ending may belong to root already.
GONE = (FileNotFoundError, ProcessLookupError)
_FAIR = (os.SCHED_OTHER, os.SCHED_BATCH) if hasattr(os, "SCHED_BATCH") else ()
_PROBE_S = 5.0


def probe() -> str | None:
    """Whether CPUs and policies of threads can be set from here: None, or the reason why not."""
    if not hasattr(os, "sched_setaffinity") or not hasattr(os, "sched_setscheduler"):
        return "this Python has no os.sched_setaffinity"
    return None


def threads_of(pid: int) -> list[int]:
    """Its threads now; none when it is gone."""
    try:
        return sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    except GONE:
        return []


def cpus_of(thread: int) -> frozenset[int]:
    """The CPUs that a thread may use.  Raises `OSError`."""
    return frozenset(os.sched_getaffinity(thread))


def set_cpus(thread: int, cpus: frozenset[int]) -> None:
    """Let a thread use these CPUs only.  Raises `OSError`."""
    os.sched_setaffinity(thread, cpus)


def policy_of(thread: int) -> int | None:
    """A thread's policy, where it is an ordinary one; None for a real-time one, or one that is the lowest already."""
    policy = os.sched_getscheduler(thread)
    return policy if policy & ~os.SCHED_RESET_ON_FORK in (*_FAIR, os.SCHED_IDLE) else None


def set_policy(thread: int, policy: int) -> None:
    """Give a thread an ordinary policy.  Raises `OSError`."""
    os.sched_setscheduler(thread, policy, os.sched_param(0))


def lowest_policy() -> int:
    """The lowest policy that this user can also leave again.

    SCHED_IDLE can be left with CAP_SYS_NICE, or where RLIMIT_NICE allows the thread's nice value
    (since Linux 2.6.39); raising the nice value itself needs the same to be taken back.  Everybody
    can leave SCHED_BATCH, under which a thread that wakes up preempts nobody.
    """
    return os.SCHED_IDLE if _tried(_can_leave_idle) else os.SCHED_BATCH


def _can_leave_idle() -> bool:
    own = threading.get_native_id()
    try:
        before = os.sched_getscheduler(own)
        set_policy(own, os.SCHED_IDLE)
        set_policy(own, before)
    except OSError:
        return False
    return True


def _tried(what: Callable[[], bool]) -> bool:
    """Try it in a thread that ends: what cannot be left stays with it."""
    said: list[bool] = []
    thread = threading.Thread(target=lambda: said.append(what()), name="colos-probe", daemon=True)
    thread.start()
    thread.join(_PROBE_S)
    return bool(said and said[0])
