"""CPU starvation: live processes get only a share of the time.

Mechanism: a duty cycle of SIGSTOP and SIGCONT, driven from a thread of the harness (works in both
tiers, for any process of the same user).  Proof: stops that /proc showed.  An idle process has no
share to measure, but it is stopped all the same.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site
from colos.chaos.sandbox.processes import read_process
from colos.errors import InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target
    from colos.chaos.sandbox.session import Session

__all__ = ["CpuStarvation"]

_PERIOD_S = 0.005
_JOIN_S = 2.0
_FIRST_STOP_S = 1.0


class CpuStarvation(Fault):
    """The process runs for `share` of the time (0.1 is a tenth), in slices of 5 ms."""

    kind = "cpu-starvation"
    family = "cpu"
    summary = "the live process gets a share of the CPU, in slices of 5 ms"
    sees = "nothing but time that passes"
    proof = "stops seen in /proc"
    parameters: ClassVar[Mapping[str, object]] = {"share": 0.1}

    def __init__(self, target: str = EVERYTHING, *, shares: tuple[float, ...] = (0.1, 0.3)) -> None:
        super().__init__(target)
        self.shares = tuple(_share(value) for value in shares)

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """Stopping needs nothing but signals."""
        del session
        return None

    @classmethod
    def mechanism(cls, session: Session) -> str:
        """See Fault."""
        del session
        return "stop-continue"

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared shares."""
        return st.fixed_dictionaries({"share": st.sampled_from(self.shares)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Begin the duty cycle on everything that matches and is alive."""
        share = _share(cls.complete(arguments)["share"])
        return _Starved(site, site.reach.targets(target or EVERYTHING), share)


def _share(value: object) -> float:
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise InvalidSpecification(f"a CPU share is a number between 0 and 1, not {value!r}")
    return float(value)


class _Starved(Lease):
    mechanism = "stop-continue"

    def __init__(self, site: Site, targets: list[Target], share: float) -> None:
        self._site = site
        self._targets = targets
        self._share = share
        self._stops = 0
        self._seen = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._cycle, name="colos-cpu-starvation", daemon=True)
        self._thread.start()
        self._seen.wait(_FIRST_STOP_S)

    def _cycle(self) -> None:
        try:
            while not self._over.is_set() and self._any_alive():
                self._all(signal.SIGSTOP)
                self._over.wait(_PERIOD_S * (1 - self._share))
                self._observe()
                self._all(signal.SIGCONT)
                self._over.wait(_PERIOD_S * self._share)
        finally:
            self._all(signal.SIGCONT)
            self._seen.set()

    def _any_alive(self) -> bool:
        return any(target.alive() for target in self._targets)

    def _all(self, number: signal.Signals) -> None:
        with self._site.sandbox.stopping:
            for target in self._targets:
                if (target.pid, target.process.start_time) not in self._site.stopped:
                    target.signal(number)

    def _observe(self) -> None:
        """Count a stop only when /proc shows one.

        A stop is acted on by the target itself, when it next has the CPU: on one core that is after
        this thread has slept, so the look comes last in the slice.
        """
        for target in self._targets:
            process = read_process(target.pid)
            if process is not None and process.state == "T":
                self._stops += 1
                self._seen.set()

    def fired(self) -> str | None:
        return f"stopped {self._stops} times, for {1 - self._share:.0%} of the time" if self._stops else None

    def heal(self) -> None:
        self._over.set()
        self._thread.join(_JOIN_S)

    def is_healed(self) -> bool:
        if self._thread.is_alive():
            return False
        for target in self._targets:
            if target.pidfd >= 0 and (target.pid, target.process.start_time) not in self._site.stopped:
                process = read_process(target.pid)
                if process is not None and process.state == "T" and target.alive():
                    return False
        for target in self._targets:
            target.close()
        return True
