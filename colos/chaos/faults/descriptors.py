"""Descriptor exhaustion on live processes.

Mechanism: prlimit(2) on RLIMIT_NOFILE, the soft limit only (raising a hard limit needs a
capability).  The limit bounds the descriptor's *number*, so it is set to the lowest unused number
plus what is to stay free; descriptors that are open stay open.  Proof: the limit that the kernel
reports, against /proc/PID/fd.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site
from colos.chaos.sandbox.processes import descendants

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target
    from colos.chaos.sandbox.session import Session

__all__ = ["DescriptorExhaustion"]

_MOST_FREE = 3


class DescriptorExhaustion(Fault):
    """The process can open `free` more descriptors, and then gets EMFILE."""

    kind = "descriptor-exhaustion"
    summary = "the live process has no descriptor left: open, socket, accept and pipe give EMFILE"
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
        return _Exhausted(site, site.reach.targets(target or EVERYTHING), int(cls.complete(arguments)["free"]))


def _limits(pid: int) -> tuple[int, int] | None:
    try:
        return resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except ProcessLookupError:
        return None


def _lowest_unused(pid: int) -> int:
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in range(len(used) + 1) if number not in used)


class _Exhausted(Lease):
    mechanism = "prlimit"

    def __init__(self, site: Site, targets: list[Target], free: int) -> None:
        self._site = site
        self._lowered: dict[Target, int] = {}
        self._proof: list[str] = []
        for target in targets:
            if not self._lower(target, free):
                target.close()

    def _lower(self, target: Target, free: int) -> bool:
        try:
            limits = _limits(target.pid)
            if limits is None:
                return False
            wanted = min(_lowest_unused(target.pid) + free, limits[0])
            holds = int(self._site.overlays.hold(self._key(target), self, wanted, lambda: limits[0]))
            self._lowered[target] = wanted
            resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (holds, limits[1]))
            if _limits(target.pid) == (holds, limits[1]) and _lowest_unused(target.pid) + free >= holds:
                name = f"{target.process.command}[{target.process.inner_pid}]"
                self._proof.append(
                    f"{name} may use {holds} descriptors and has {len(os.listdir(f'/proc/{target.pid}/fd'))}"
                )
        except (FileNotFoundError, ProcessLookupError):
            return target in self._lowered  # it died meanwhile: nothing to exhaust, maybe something to forget
        return True

    @staticmethod
    def _key(target: Target) -> tuple[str, int, int]:
        return ("nofile", target.pid, target.process.start_time)

    def fired(self) -> str | None:
        return "; ".join(self._proof) or None

    def heal(self) -> None:
        for target, lowered in self._lowered.items():
            if target.pidfd < 0:
                continue
            holds, original = self._site.overlays.release(self._key(target), self)
            wanted = original if holds is None else int(holds)
            if target.alive():
                self._raise(target.pid, lowered, wanted)
                for child in descendants(target.pid):  # what it forked meanwhile has inherited the low limit
                    self._raise(child.pid, lowered, wanted)

    @staticmethod
    def _raise(pid: int, lowered: int, wanted: int) -> None:
        limits = _limits(pid)
        if limits is not None and limits[0] <= max(lowered, 0) and wanted is not None:
            try:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (wanted, limits[1]))
            except ProcessLookupError:
                return

    def is_healed(self) -> bool:
        for target, lowered in self._lowered.items():
            if target.pidfd >= 0 and target.alive():
                limits = _limits(target.pid)
                held = self._key(target) in self._site.overlays
                if limits is not None and limits[0] <= lowered and not held:
                    return False
        for target in self._lowered:
            target.close()
        return True
