"""The lease that lowers a resource limit of live processes: what the kinds of that mechanism share.

Mechanism: prlimit(2), the soft limit only (raising a hard limit needs a capability, lowering it
could not be healed).  Children inherit the limit, so those that were forked meanwhile are healed
too.  Sources: prlimit(2), setrlimit(2).
"""

from __future__ import annotations

import os
import resource
import time
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from colos.chaos.fault import Lease, Site

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target

__all__ = ["SoftLimit"]

_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)  # a process that ends belongs to root meanwhile
_BOUNDLESS = 1 << 63  # RLIM_INFINITY, which Python gives as -1, in the order of numbers


class SoftLimit(Lease):
    """Lowers one limit of every target so that `free` more of it can be had; the tightest lease holds.

    A kind says which limit, what it must be (`wanted`), and what shows that it binds (`shows`).
    """

    mechanism = "prlimit"
    resource: ClassVar[int]

    def __init__(self, site: Site, targets: list[Target], free: int) -> None:
        self._site = site
        self._since = _now_ticks()
        self._lowered: dict[Target, tuple[int, int]] = {}  # what was wanted, and what was there
        self._given: dict[int, int] = {}  # what was set, and what was there: children inherit it
        self._proof: list[str] = []
        for target in targets:
            if not self._lower(target, free):
                target.close()

    @abstractmethod
    def wanted(self, target: Target, free: int) -> int:
        """The limit under which `free` more can be had.  Raises `OSError` for a process that is gone."""

    @abstractmethod
    def shows(self, target: Target, limit: int, free: int) -> str | None:
        """What is to be seen of the target under this limit that proves that it binds, or None."""

    # --- acting -------------------------------------------------------------------------

    def _lower(self, target: Target, free: int) -> bool:
        try:
            limits = self._limits(target.pid)
            if limits is None:
                return False
            wanted = self.wanted(target, free)
            # Never above what is there: that is another lease's limit, or the process's own.
            holds = min(int(self._site.overlays.hold(self._key(target), self, wanted, lambda: limits[0])), limits[0])
            self._lowered[target] = (wanted, limits[0])
            self._given[holds] = limits[0]
            self._set(target.pid, holds)
            shown = self.shows(target, holds, free)
            if shown is not None and self._limits(target.pid) == (holds, limits[1]):
                self._proof.append(f"{target.process.command}[{target.process.inner_pid}] {shown}")
        except _GONE:
            return target in self._lowered  # it died meanwhile: nothing to exhaust, maybe something to forget
        return True

    def fired(self) -> str | None:
        """See Lease."""
        return "; ".join(self._proof) or None

    # --- healing ------------------------------------------------------------------------

    def heal(self) -> None:
        """See Lease."""
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
            if process.start_time >= self._since and (
                (self.resource, process.pid, process.start_time) not in self._site.overlays
            ):
                limits = self._limits(process.pid)
                if limits is not None and self._given.get(limits[0], limits[0]) > limits[0]:
                    found.append((process.pid, limits[0]))
        return found

    def _raise(self, pid: int, lowered: int, wanted: int) -> None:
        limits = self._limits(pid)
        if limits is not None and limits[0] <= lowered:
            try:
                self._set(pid, wanted)
            except _GONE:
                return

    def is_healed(self) -> bool:
        """See Lease."""
        for target, (lowered, original) in self._lowered.items():
            if target.pidfd >= 0 and target.alive() and self._key(target) not in self._site.overlays:
                limits = self._limits(target.pid)
                if limits is not None and limits[0] <= lowered and limits[0] < original:
                    return False
        if self._heirs():
            return False
        for target in self._lowered:
            target.close()
        return True

    # --- the limit itself, with no limit as a large number --------------------------------

    def _key(self, target: Target) -> tuple[int, int, int]:
        return self.resource, target.pid, target.process.start_time

    def _limits(self, pid: int) -> tuple[int, int] | None:
        try:
            soft, hard = resource.prlimit(pid, self.resource)
        except _GONE:
            return None
        return _BOUNDLESS if soft == resource.RLIM_INFINITY else soft, hard

    def _set(self, pid: int, soft: int) -> None:
        _, hard = resource.prlimit(pid, self.resource)
        resource.prlimit(pid, self.resource, (resource.RLIM_INFINITY if soft >= _BOUNDLESS else soft, hard))


def _now_ticks() -> int:
    """The present in the unit of a process's start time.  proc(5)."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
