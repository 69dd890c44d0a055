"""No process and no thread more: fork, clone and thread creation fail.

Mechanism: prlimit(2) on RLIMIT_NPROC.  It is compared with the number of all tasks (processes and
threads) of the same user: in `namespaces` those of the sandbox, in `bare` those of the whole host,
where what others of the same user start and end makes what is left a little more or less.  Proof: a
probe of the same user in the same place that meets EAGAIN under the same limit.

That limit does not bind root: for root the calls themselves are answered (seccomp user notification),
and the proof is the keeper's count.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos import trapped
from colos.chaos.fault import EVERYTHING, Fault, Lease, Site, count_of
from colos.chaos.mechanisms import processcount
from colos.chaos.mechanisms.rules import Fail, Rule, traps_for
from colos.chaos.mechanisms.syscalls import Trap
from colos.chaos.sandbox.spec import NAMESPACES
from colos.chaos.softlimits import SoftLimit
from colos.errors import FaultUnavailable

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target
    from colos.chaos.sandbox.session import Session

__all__ = ["ForkFails"]

_MOST_FREE = 3
_CALLS = ("fork", "vfork", "clone", "clone3")


class ForkFails(Fault):
    """The process can start `free` more processes or threads, and then gets EAGAIN.

    The limit is set against all tasks of the user, so another process of the system that ends makes
    room, as it would; root, whom RLIMIT_NPROC does not bind, may make `free` more calls, whatever ends
    meanwhile.  getrlimit(2), fork(2).
    """

    kind = "fork-fails"
    uses = f"prlimit|{trapped.MECHANISM}"
    family = "processes"
    summary = "the live process can start no process and no thread more"
    sees = "EAGAIN from fork, clone, vfork; in Python BlockingIOError, and RuntimeError for a thread"
    proof = "the kernel's count of tasks, found out by a probe that met EAGAIN, against the process's limit"
    parameters: ClassVar[Mapping[str, object]] = {"free": 0}

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """Wherever the limit binds the user, or system calls can be trapped."""
        return None if _is_bound() else trapped.unavailable(session)

    @classmethod
    def traps(cls, arguments: Mapping[str, Any]) -> tuple[Trap, ...]:
        """For root only."""
        del arguments
        return () if _is_bound() else traps_for(_CALLS)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """How many are left."""
        return st.fixed_dictionaries({"free": st.integers(0, _MOST_FREE).map(lambda fewer: _MOST_FREE - fewer)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Lower the soft limit of everything that matches and is alive."""
        free = count_of(cls.complete(arguments)["free"], "what is left free")
        if not _is_bound():
            rule = Rule(_CALLS, Fail(errno.EAGAIN), spare=free)
            return trapped.TrappedLease(site, cls.kind, target or EVERYTHING, (rule,))
        count = _count(site)
        if count is None:
            raise FaultUnavailable(cls.kind, "RLIMIT_NPROC does not bind this user here", "see `colos doctor`")
        return _Forkless(site, site.reach.targets(target or EVERYTHING), free, count)


def _is_bound() -> bool:
    return processcount.probe() is None


def _count(site: Site) -> int | None:
    if site.sandbox.tier != NAMESPACES:
        return processcount.count_tasks()
    (count, counter), _ = site.sandbox.join(processcount.CountTasks())
    processcount.await_end(counter)
    return None if count is None else int(count)


class _Forkless(SoftLimit):
    resource = resource.RLIMIT_NPROC

    def __init__(self, site: Site, targets: list[Target], free: int, count: int) -> None:
        self._count = count
        super().__init__(site, targets, free)

    def wanted(self, target: Target, free: int) -> int:
        del target
        return self._count + free

    def shows(self, target: Target, limit: int, free: int) -> str | None:
        del target
        if limit <= self._count + free:
            return f"may have {limit} tasks of its user about, and {self._count} there are"
        return None
