"""A busy rival: processes that use the target's own cores as hard as they can.

Mechanism: processes of the harness's own, bound by sched_setaffinity(2) to the cores that the target
may use; see `colos.chaos.mechanisms.busy` for where they live and how they end.  Proof: the CPU time
that the kernel has charged to them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site, count_of
from colos.chaos.mechanisms import busy, threads
from colos.chaos.sandbox import wire
from colos.chaos.sandbox.processes import read_process
from colos.chaos.sandbox.spec import NAMESPACES
from colos.chaos.signalling import name_of
from colos.errors import InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target
    from colos.chaos.sandbox.session import Session

__all__ = ["CpuRival"]

RIVALS_MAX = 4
_CORES_MAX = 16
_PROOF_S = 2.0
_END_S = 5.0
_LOOK_S = 0.002


class CpuRival(Fault):
    """`rivals` (1 to 4) busy processes on each core that a target may use, the lowest 16 of them at most.

    They are the harness's own: no pattern means them.  With one rival a busy target has half its core.
    """

    kind = "cpu-rival"
    uses = "rival-process"
    family = "cpu"
    summary = "busy processes beside the target, on each of its cores"
    sees = "nothing but time that passes: it shares its cores"
    proof = "the CPU time that the kernel has charged to the rivals"
    parameters: ClassVar[Mapping[str, object]] = {"rivals": 1}

    def __init__(self, target: str = EVERYTHING, *, rivals: Sequence[int] = (1, 2), at_most: int | None = None) -> None:
        super().__init__(target, at_most=at_most)
        self.rivals = tuple(_rivals(value) for value in rivals)

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """A process of the same user needs nothing; binding it to a core needs Python's os module to know how."""
        del session
        reason = threads.probe()
        return None if reason is None else (reason, "CPython on Linux")

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """How many on each core."""
        return st.fixed_dictionaries({"rivals": st.sampled_from(self.rivals)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Start them beside everything that matches and is alive."""
        rivals = _rivals(cls.complete(arguments)["rivals"])
        return _Rivalled(site, site.reach.targets(target or EVERYTHING), rivals)


def _rivals(value: object) -> int:
    count = count_of(value, "how many rivals a core has")
    if not 1 <= count <= RIVALS_MAX:
        raise InvalidSpecification(f"a core has 1 to {RIVALS_MAX} rivals, not {count}")
    return count


class _Rival:
    """One of them, by pidfd; in `bare` it is a child of ours, too."""

    def __init__(self, site: Site, core: int) -> None:
        self._site = site
        self.core = core
        self._child: subprocess.Popen[bytes] | None = None
        if site.sandbox.tier == NAMESPACES:
            _, (self.pidfd,) = site.sandbox.join(busy.Busy())
            self.pid = busy.outer_pid(self.pidfd)
        else:
            self._child = busy.start_beside(site.sandbox.keeper)
            self.pid = self._child.pid
            self.pidfd = os.pidfd_open(self.pid)
        site.sandbox.harness_pids.add(self.pid)
        try:
            os.sched_setaffinity(self.pid, {core})
        except ProcessLookupError:
            pass  # the sandbox has just ended

    def end(self) -> None:
        """Kill it.  May be called twice."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended with the sandbox

    def ended(self) -> bool:
        """Whether it is gone, and reaped where that is our business."""
        if self.pidfd < 0:
            return True
        if not wire.readable(self.pidfd, 0):
            return False
        if self._child is not None:
            self._child.wait(_END_S)
            if self._child.stdin is not None:
                self._child.stdin.close()
        now = read_process(self.pid)
        if now is not None and now.command == busy.NAME:
            return False  # the sandbox's first process has yet to reap it
        self._site.sandbox.harness_pids.discard(self.pid)
        os.close(self.pidfd)
        self.pidfd = -1
        return True


class _Rivalled(Lease):
    mechanism = "rival-process"

    def __init__(self, site: Site, targets: list[Target], rivals: int) -> None:
        self._rivals: list[_Rival] = []
        self._beside = [name_of(target) for target in targets]
        #: What each had used when it was first seen to be one (before that an interpreter starts), and since.
        self._first: dict[int, float] = {}
        self._used: dict[int, float] = {}
        try:
            cores = sorted({core for target in targets for core in _cores_of(target)})[:_CORES_MAX]
            for core in cores * rivals:
                self._rivals.append(_Rival(site, core))
        except BaseException:
            self.heal()
            raise
        finally:
            for target in targets:
                target.close()
        deadline = time.monotonic() + _PROOF_S
        while not all(map(self._has_run, self._rivals)) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)  # the kernel counts in ticks, and tells nobody

    def _has_run(self, rival: _Rival) -> bool:
        """Whether it has had any of its core, as a rival."""
        now = read_process(rival.pid) if rival.pidfd >= 0 else None
        if now is not None and now.command == busy.NAME:
            used = busy.cpu_s_of(rival.pid)
            self._used[rival.pid] = max(self._used.get(rival.pid, 0.0), used - self._first.setdefault(rival.pid, used))
        return self._used.get(rival.pid, 0.0) > 0

    def fired(self) -> str | None:
        for rival in self._rivals:
            self._has_run(rival)
        total = sum(self._used.values())
        if not total:
            return None
        cores = ", ".join(str(core) for core in sorted({rival.core for rival in self._rivals}))
        count = sum(used > 0 for used in self._used.values())
        return f"{count} rivals of {', '.join(self._beside)} had {total:.2f} s of core {cores}"

    def heal(self) -> None:
        self.fired()
        for rival in self._rivals:
            rival.end()

    def is_healed(self) -> bool:
        left = [rival for rival in self._rivals if not rival.ended()]  # each is asked: asking lets go of it
        return not left


def _cores_of(target: Target) -> frozenset[int]:
    """The cores that any of its threads may use."""
    cores: frozenset[int] = frozenset()
    for thread in threads.threads_of(target.pid):
        try:
            cores |= threads.cpus_of(thread)
        except threads.GONE:
            continue
    return cores
