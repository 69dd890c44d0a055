"""Memory that cannot be had: the address space of live processes is limited.

Mechanism: prlimit(2) on RLIMIT_AS, to what the process has mapped and `free` bytes more.  Proof: the
limit that the kernel reports, against VmSize in /proc/PID/status.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site, count_of
from colos.chaos.sandbox.processes import mapped_bytes
from colos.chaos.softlimits import SoftLimit

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target
    from colos.chaos.sandbox.session import Session

__all__ = ["MemoryLimit"]

_MIB = 1 << 20
_FREES = (64 * _MIB, 16 * _MIB, 4 * _MIB, _MIB, 0)  # less fault first


class MemoryLimit(Fault):
    """The process can map `free` more bytes, and then gets ENOMEM.

    What it has mapped stays, and its allocator may still hand out what it holds in reserve, so a small
    allocation may succeed for a while.  A stack that must grow ends in SIGSEGV, as it does at this
    limit; an interpreter that cannot go on without memory may abort.  setrlimit(2) RLIMIT_AS.
    """

    kind = "memory-limit"
    uses = "prlimit"
    family = "memory"
    summary = "the live process can map no more memory: mmap and brk give ENOMEM"
    sees = "ENOMEM from mmap, brk and mremap; NULL from malloc; in Python MemoryError"
    proof = "the kernel's own limit against VmSize"
    parameters: ClassVar[Mapping[str, object]] = {"free": _MIB}

    def __init__(
        self, target: str = EVERYTHING, *, frees: tuple[int, ...] = _FREES, at_most: int | None = None
    ) -> None:
        super().__init__(target, at_most=at_most)
        self.frees = tuple(count_of(free, "what is left free") for free in frees)

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """prlimit needs no privilege on processes of the same user."""
        del session
        return None

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """How many bytes are left."""
        return st.fixed_dictionaries({"free": st.sampled_from(self.frees)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Lower the soft limit of everything that matches and is alive."""
        free = count_of(cls.complete(arguments)["free"], "what is left free")
        return _Limited(site, site.reach.targets(target or EVERYTHING), free)


class _Limited(SoftLimit):
    resource = resource.RLIMIT_AS

    def wanted(self, target: Target, free: int) -> int:
        return mapped_bytes(target.pid) + free

    def shows(self, target: Target, limit: int, free: int) -> str | None:
        mapped = mapped_bytes(target.pid)
        return f"may map {limit} bytes and has {mapped}" if limit - mapped <= free else None
