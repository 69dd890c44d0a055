"""Descriptor exhaustion on live processes.

Mechanism: prlimit(2) on RLIMIT_NOFILE, the soft limit only (raising a hard limit needs a
capability).  The limit bounds the descriptor's *number*, so it is set to where exactly as many
numbers below it are unused as are to stay free; descriptors that are open stay open.  Proof: the
limit that the kernel reports, against /proc/PID/fd.
"""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site, count_of
from colos.chaos.softlimits import SoftLimit

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target
    from colos.chaos.sandbox.session import Session

__all__ = ["DescriptorExhaustion"]

_MOST_FREE = 3


class DescriptorExhaustion(Fault):
    """The process can open `free` more descriptors, and then gets EMFILE."""

    kind = "descriptor-exhaustion"
    uses = "prlimit"
    family = "descriptors"
    summary = "the live process has no descriptor left: open, socket, accept and pipe give EMFILE"
    sees = "EMFILE"
    proof = "the kernel's own limit against /proc/PID/fd"
    parameters: ClassVar[Mapping[str, object]] = {"free": 0}

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """prlimit needs no privilege on processes of the same user."""
        del session
        return None

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """How many are left."""
        return st.fixed_dictionaries({"free": st.integers(0, _MOST_FREE)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Lower the soft limit of everything that matches and is alive."""
        free = count_of(cls.complete(arguments)["free"], "what is left free")
        return _Exhausted(site, site.reach.targets(target or EVERYTHING), free)


def _used(pid: int) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{pid}/fd")}


def _limit_for(used: set[int], free: int) -> int:
    """The limit under which exactly `free` numbers are unused."""
    unused = (number for number in range(len(used) + free + 1) if number not in used)
    return next(itertools.islice(unused, free, None))


class _Exhausted(SoftLimit):
    resource = resource.RLIMIT_NOFILE

    def wanted(self, target: Target, free: int) -> int:
        return _limit_for(_used(target.pid), free)

    def shows(self, target: Target, limit: int, free: int) -> str | None:
        used = _used(target.pid)
        if len(set(range(limit)) - used) <= free:
            return f"may use {limit} descriptors and has {len(used)}"
        return None
