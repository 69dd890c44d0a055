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
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site, count_of

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target
    from colos.chaos.sandbox.session import Session

__all__ = ["DescriptorExhaustion"]

_MOST_FREE = 3


class DescriptorExhaustion(Fault):
    """The process can open `free` more descriptors, and then gets EMFILE."""

    kind = "descriptor-exhaustion"
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

    @classmethod
    def mechanism(cls, session: Session) -> str:
        """See Fault."""
        del session
        return "prlimit"

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """How many are left."""
        return st.fixed_dictionaries({"free": st.integers(0, _MOST_FREE)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Lower the soft limit of everything that matches and is alive."""
        free = count_of(cls.complete(arguments)["free"], "what is left free")
        return _Exhausted(site, site.reach.targets(target or EVERYTHING), free)


_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)  # a process that ends belongs to root meanwhile


def _limits(pid: int) -> tuple[int, int] | None:
    try:
        return resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except _GONE:
        return None


def _used(pid: int) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{pid}/fd")}


def _limit_for(used: set[int], free: int) -> int:
    """The limit under which exactly `free` numbers are unused."""
    unused = (number for number in range(len(used) + free + 1) if number not in used)
    return next(itertools.islice(unused, free, None))


def _now_ticks() -> int:
    """The present in the unit of a process's start time.  proc(5)."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


class _Exhausted(Lease):
    mechanism = "prlimit"

    def __init__(self, site: Site, targets: list[Target], free: int) -> None:
        self._site = site
        self._since = _now_ticks()
        self._lowered: dict[Target, tuple[int, int]] = {}  # what was wanted, and what was there
        self._given: dict[int, int] = {}  # what was set, and what was there: children inherit it
        self._proof: list[str] = []
        for target in targets:
            if not self._lower(target, free):
                target.close()

    def _lower(self, target: Target, free: int) -> bool:
        try:
            limits = _limits(target.pid)
            if limits is None:
                return False
            wanted = _limit_for(_used(target.pid), free)
            # Never above what is there: that is another lease's limit, or the process's own.
            holds = min(int(self._site.overlays.hold(self._key(target), self, wanted, lambda: limits[0])), limits[0])
            self._lowered[target] = (wanted, limits[0])
            self._given[holds] = limits[0]
            resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (holds, limits[1]))
            used = _used(target.pid)
            if _limits(target.pid) == (holds, limits[1]) and len(set(range(holds)) - used) <= free:
                name = f"{target.process.command}[{target.process.inner_pid}]"
                self._proof.append(f"{name} may use {holds} descriptors and has {len(used)}")
        except _GONE:
            return target in self._lowered  # it died meanwhile: nothing to exhaust, maybe something to forget
        return True

    @staticmethod
    def _key(target: Target) -> tuple[str, int, int]:
        return ("nofile", target.pid, target.process.start_time)

    def fired(self) -> str | None:
        return "; ".join(self._proof) or None

    def heal(self) -> None:
        for target, (lowered, before) in self._lowered.items():
            if target.pidfd < 0:
                continue
            holds, original = self._site.overlays.release(self._key(target), self)
            back = int(original if original is not None else before)
            wanted = back if holds is None else min(int(holds), back)
            self._lowered[target] = (lowered, wanted)
            self._given = {given: max(wanted, old) for given, old in self._given.items()}
            if target.alive():
                self._raise(target.pid, lowered, wanted)
        for pid, given in self._heirs():
            self._raise(pid, given, self._given[given])

    def _heirs(self) -> list[tuple[int, int]]:
        """What was forked meanwhile, orphans included, has inherited the low limit."""
        found = []
        for process in self._site.sandbox.processes():
            if process.start_time >= self._since and ("nofile", process.pid, process.start_time) not in (
                self._site.overlays
            ):
                limits = _limits(process.pid)
                if limits is not None and self._given.get(limits[0], limits[0]) > limits[0]:
                    found.append((process.pid, limits[0]))
        return found

    @staticmethod
    def _raise(pid: int, lowered: int, wanted: int) -> None:
        limits = _limits(pid)
        if limits is not None and limits[0] <= lowered:
            try:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (wanted, limits[1]))
            except _GONE:
                return

    def is_healed(self) -> bool:
        for target, (lowered, original) in self._lowered.items():
            if target.pidfd >= 0 and target.alive() and self._key(target) not in self._site.overlays:
                limits = _limits(target.pid)
                if limits is not None and limits[0] <= lowered and limits[0] < original:
                    return False
        if self._heirs():
            return False
        for target in self._lowered:
            target.close()
        return True
