"""CPU starvation: live processes get only a share of the time, or none of it for keyed intervals.

Mechanism: a duty cycle of SIGSTOP and SIGCONT, driven from a thread of the harness (works in both
tiers, for any process of the same user).  Proof: stops that /proc showed.  An idle process has no share
to measure, but it is stopped all the same.
"""

from __future__ import annotations

import heapq
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site, count_of
from colos.chaos.mechanisms.chance import chance
from colos.chaos.sandbox.processes import read_process
from colos.chaos.signalling import Stops, is_stopped, name_of
from colos.errors import InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target
    from colos.chaos.sandbox.session import Session

__all__ = ["CpuStarvation", "StarvationIntervals"]

_PERIOD_S = 0.005
_JOIN_S = 2.0
_FIRST_STOP_S = 1.0
_DUTY = "stop-continue"


class CpuStarvation(Fault):
    """The process runs for `share` of the time (0.1 is a tenth), in slices of 5 ms."""

    kind = "cpu-starvation"
    uses = _DUTY
    family = "cpu"
    summary = "the live process gets a share of the CPU, in slices of 5 ms"
    sees = "nothing but time that passes"
    proof = "stops seen in /proc"
    parameters: ClassVar[Mapping[str, object]] = {"share": 0.1}

    def __init__(
        self, target: str = EVERYTHING, *, shares: tuple[float, ...] = (0.3, 0.1), at_most: int | None = None
    ) -> None:
        super().__init__(target, at_most=at_most)
        self.shares = tuple(_share(value) for value in shares)

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """Stopping needs nothing but signals."""
        del session
        return None

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared shares."""
        return st.fixed_dictionaries({"share": st.sampled_from(self.shares)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Begin the duty cycle on everything that matches and is alive."""
        share = _share(cls.complete(arguments)["share"])
        return _Starved(site, site.reach.targets(target or EVERYTHING), share)


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise InvalidSpecification(f"a CPU share is a number between 0 and 1, not {value!r}")
    return float(value)


class StarvationIntervals(Fault):
    """Each process is stopped for intervals of 1 ms to 2 s, at most `share_max` of the time (0.2, or less) in total.

    As the chaos mode of rr has them: most programs work until one of their processes is not run for
    just so long.  Every length and every gap comes from hash(`seed`, process, n).  Lengths are
    spread evenly over their logarithm; the first ones are short (10 ms at most, then twice as long
    each time), so that a short run has some too.
    """

    kind = "starvation-intervals"
    uses = _DUTY
    family = "cpu"
    summary = "each live process is stopped for keyed intervals of 1 ms to 2 s, at most a fifth of the time"
    sees = "nothing but jumps of the time; its peers see it late, and in another order"
    proof = "stops seen in /proc"
    parameters: ClassVar[Mapping[str, object]] = {"seed": 0, "share_max": 0.2}

    def __init__(
        self, target: str = EVERYTHING, *, shares_max: Sequence[float] = (0.05, 0.2), at_most: int | None = None
    ) -> None:
        super().__init__(target, at_most=at_most)
        self.shares_max = tuple(_share_max(value) for value in shares_max)

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """Stopping needs nothing but signals."""
        del session
        return None

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """Which schedule, and how much of the time."""
        return st.fixed_dictionaries({"seed": st.integers(0, 65535), "share_max": st.sampled_from(self.shares_max)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Begin the schedule of everything that matches and is alive."""
        complete = cls.complete(arguments)
        seed, share_max = count_of(complete["seed"], "a seed"), _share_max(complete["share_max"])
        return _Interrupted(site, site.reach.targets(target or EVERYTHING), seed, share_max)


SHARE_MAX = 0.2
_SHORTEST_S, _LONGEST_S, _FIRST_LONGEST_S = 0.001, 2.0, 0.01


def _share_max(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= SHARE_MAX:
        raise InvalidSpecification(
            f"starvation intervals take more than 0 and at most {SHARE_MAX:g} of the time, not {value!r}"
        )
    return float(value)


def intervals(seed: int, process: int, share_max: float) -> Iterator[tuple[float, float]]:
    """The schedule of one process: how long it runs and then is stopped, in seconds, without end.

    At no moment has it been stopped for more than `share_max` of the time since the beginning.
    """
    n = 0
    while True:
        length, gap = chance(seed, process, n, "length"), chance(seed, process, n, "gap")
        longest_s = min(_LONGEST_S, _FIRST_LONGEST_S * 2.0 ** min(n, 16))
        stopped_s = _SHORTEST_S * (longest_s / _SHORTEST_S) ** length
        yield stopped_s * (1 / share_max - 1) * (1 + gap), stopped_s
        n += 1


class _Starved(Lease):
    mechanism = _DUTY

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


class _Interrupted(Lease):
    """One thread keeps the appointments of all: when whom to stop, and when to let it run again."""

    mechanism = _DUTY

    def __init__(self, site: Site, targets: list[Target], seed: int, share_max: float) -> None:
        self._targets = targets
        self._stops = Stops(site, self)
        self._plans = [intervals(seed, at, share_max) for at in range(len(targets))]
        self._seen: dict[Target, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="colos-starvation-intervals", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        now = time.monotonic()
        # When, whose turn, and for how long it is stopped then; 0 for being continued.
        turns = [(now + run_s, at, stop_s) for at, (run_s, stop_s) in enumerate(map(next, self._plans))]
        heapq.heapify(turns)
        try:
            while turns and any(target.alive() for target in self._targets):
                when, at, stop_s = turns[0]
                if self._over.wait(max(0.0, when - time.monotonic())):
                    return
                heapq.heapreplace(turns, self._take_turn(at, stop_s))
        finally:
            for target in self._targets:
                self._stops.let_go(target)

    def _take_turn(self, at: int, stop_s: float) -> tuple[float, int, float]:
        """Stop it or let it run; what is next with this one."""
        target, now = self._targets[at], time.monotonic()
        if stop_s:
            self._stops.stop(target)
            return now + stop_s, at, 0.0
        if is_stopped(target):  # looked at last: it acts on the stop when it next has the CPU
            self._seen[target] = self._seen.get(target, 0) + 1
        self._stops.let_go(target)
        run_s, stop_s = next(self._plans[at])
        return now + run_s, at, stop_s

    def fired(self) -> str | None:
        seen = dict(self._seen)
        return ", ".join(f"{name_of(target)} stopped {count} times" for target, count in seen.items()) or None

    def heal(self) -> None:
        self._over.set()
        self._thread.join(_JOIN_S)

    def is_healed(self) -> bool:
        if self._thread.is_alive() or self._stops.left(self._targets):
            return False
        for target in self._targets:
            target.close()
        return True
