"""Too little memory, as the kernel's memory controller has it: pressure, and the OOM killer.

Mechanism: a memory cgroup of the fault's own (version 2), into which the live processes are moved; so
nothing but they can run out of anything.  Memory that they had before is not counted again.  A process is in one
cgroup at a time: of two such faults on it the later one holds, until it is healed.  Proof: the kernel's
own count in ``memory.events``.  Where no cgroup is delegated neither exists; the kind
`oom-kill-lookalike` does, under its own name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site, count_of, matches
from colos.chaos.mechanisms import memorycgroup
from colos.errors import FaultUnavailable, InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target
    from colos.chaos.sandbox.session import Session

__all__ = ["MemoryPressure", "OomKill"]

_MIB = 1 << 20
_LEAST = 64 << 10
_FREES = (64 * _MIB, 16 * _MIB, 4 * _MIB, _LEAST)  # less fault first


class _InGroup(Fault):
    """What both have in common: how many bytes may still be used."""

    family = "memory"
    uses = memorycgroup.MECHANISM
    parameters: ClassVar[Mapping[str, object]] = {"free": _LEAST}
    limit: ClassVar[str]
    event: ClassVar[str]

    def __init__(
        self, target: str = EVERYTHING, *, frees: tuple[int, ...] = _FREES, at_most: int | None = None
    ) -> None:
        super().__init__(target, at_most=at_most)
        self.frees = tuple(_free(free) for free in frees)

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """Where a memory cgroup may be made."""
        del session
        reason = memorycgroup.probe()
        return None if reason is None else (reason, memorycgroup.CURE)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """How many bytes are left."""
        return st.fixed_dictionaries({"free": st.sampled_from(self.frees)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Move everything that matches and is alive into a group with that limit."""
        free = _free(cls.complete(arguments)["free"])
        reason = memorycgroup.probe()
        if reason is not None:
            raise FaultUnavailable(cls.kind, reason, memorycgroup.CURE)
        return _Grouped(site, site.reach.targets(target or EVERYTHING), free, cls.limit, cls.event)


def _free(value: object) -> int:
    free = count_of(value, "how many bytes are left")
    if free < _LEAST:
        raise InvalidSpecification(f"how many bytes are left is {_LEAST} or more, not {free}")
    return free


class MemoryPressure(_InGroup):
    """The processes may use `free` more bytes; past that the kernel reclaims from them and slows them down.

    It fires when they use more.  cgroup-v2 memory.high.
    """

    kind = "memory-pressure"
    limit, event = "memory.high", "high"
    summary = "past so many more bytes the kernel reclaims the live processes' memory and throttles them"
    sees = "nothing but time that passes, and page faults"
    proof = "the kernel's count of memory.high events"


class OomKill(_InGroup):
    """The processes may use `free` more bytes; past that the kernel's OOM killer ends one of them.

    It fires when they use more.  cgroup-v2 memory.max.
    """

    kind = "oom-kill"
    limit, event = "memory.max", "oom_kill"
    summary = "past so many more bytes the kernel's OOM killer ends one of the live processes"
    sees = "SIGKILL"
    proof = "the kernel's count of oom_kill events"

    def deaths(self, target: str | None, topology: Sequence[str]) -> int:
        """All that match: whoever is started again in the group meets the limit again."""
        return sum(matches(path, target or EVERYTHING) for path in topology)


class _Grouped(Lease):
    mechanism = memorycgroup.MECHANISM

    def __init__(self, site: Site, targets: list[Target], free: int, limit: str, event: str) -> None:
        self._site = site
        self._event = event
        self._proof: str | None = None
        self._group = memorycgroup.MemoryGroup()
        self._home = memorycgroup.origin_of(site.sandbox.keeper)
        try:
            self._group.set(limit, str(free))
            for target in targets:
                self._move(target)
        except BaseException:
            self._group.remove(self._home)
            raise
        finally:
            for target in targets:
                target.close()

    def _move(self, target: Target) -> None:
        try:
            origin = memorycgroup.origin_of(target.pid)
        except (FileNotFoundError, ProcessLookupError):
            return
        if target.alive():
            self._group.add(target.pid, origin)

    def fired(self) -> str | None:
        count = self._group.count(self._event)
        if count:  # what it did before it was healed stays the proof
            self._proof = f"{self._event} counted {count} times in {self._group.path}"
        return self._proof

    def heal(self) -> None:
        self.fired()
        self._group.remove(self._home)

    def is_healed(self) -> bool:
        return not self._group.exists()
