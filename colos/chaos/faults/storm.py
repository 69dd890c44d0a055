"""A signal storm: many signals of one kind within a short time.

Mechanism: pidfd_send_signal(2) from a thread of the harness.  Proof: signals that the kernel took,
and that none is pending at last (proc(5)), so that they reached the process.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site, count_of, matches
from colos.chaos.signalling import HARMLESS, MECHANISM, STOPS, is_pending, name_of, signal_named
from colos.errors import InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target
    from colos.chaos.sandbox.session import Session

__all__ = ["SignalStorm"]

COUNT_MAX = 100_000
OVER_S_MAX = 60.0
_REFUSED = STOPS | {signal.SIGKILL, signal.SIGCONT}
_FIRST_S = 1.0
_JOIN_S = 2.0


class SignalStorm(Fault):
    """`count` signals (1 to 100,000), evenly over `over_s` seconds (at most 60), all of one `signal`.

    SIGCHLD by default: it ends nobody, and a program that handles it must expect it without a dead
    child.  What a program catches interrupts its system calls (EINTR, where the handler is not
    SA_RESTART); what it ignores the kernel drops; of what is pending already one is kept (signal(7)).
    Stops, SIGCONT and SIGKILL are other kinds' work.
    """

    kind = "signal-storm"
    uses = MECHANISM
    family = "process"
    summary = "many signals of one kind within a short time; SIGCHLD by default"
    sees = "its handler called over and over, EINTR"
    proof = "signals taken by the kernel, and none pending"
    parameters: ClassVar[Mapping[str, object]] = {"signal": "SIGCHLD", "count": 200, "over_s": 0.2}

    def __init__(
        self,
        target: str = EVERYTHING,
        *,
        signals: Sequence[str] = ("SIGCHLD",),
        counts: Sequence[int] = (200, 1000),
        over_s: float = 0.2,
        at_most: int | None = None,
    ) -> None:
        super().__init__(target, at_most=at_most)
        self.signals = tuple(_storming(name).name for name in signals)
        self.counts = tuple(_count(count) for count in counts)
        self.over_s = _over(over_s)

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """Signals by pidfd are in every kernel that this package supports."""
        del session
        return None

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """Which signal, and how many."""
        return st.fixed_dictionaries(
            {
                "signal": st.sampled_from(self.signals),
                "count": st.sampled_from(self.counts),
                "over_s": st.just(self.over_s),
            }
        )

    def deaths(self, target: str | None, topology: Sequence[str]) -> int:
        """All that match, unless every declared signal ends nobody."""
        if all(signal_named(name) in HARMLESS for name in self.signals):
            return 0
        return sum(matches(path, target or EVERYTHING) for path in topology)

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Begin to send."""
        complete = cls.complete(arguments)
        number, count, over_s = (
            _storming(complete["signal"]),
            _count(complete["count"]),
            _over(complete["over_s"]),
        )
        return _Storm(site.reach.targets(target or EVERYTHING), number, count, over_s)


def _storming(name: object) -> signal.Signals:
    number = signal_named(name)
    if number in _REFUSED:
        raise InvalidSpecification(f"a storm is of any signal but {', '.join(sorted(n.name for n in _REFUSED))}")
    return number


def _count(value: object) -> int:
    count = count_of(value, "how many signals a storm has")
    if not 1 <= count <= COUNT_MAX:
        raise InvalidSpecification(f"a storm has 1 to {COUNT_MAX} signals, not {count}")
    return count


def _over(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= OVER_S_MAX:
        raise InvalidSpecification(f"a storm takes 0 to {OVER_S_MAX:g} seconds, not {value!r}")
    return float(value)


class _Storm(Lease):
    mechanism = MECHANISM

    def __init__(self, targets: list[Target], number: signal.Signals, count: int, over_s: float) -> None:
        self._targets = targets
        self._number = number
        self._count = count
        self._pause_s = over_s / count
        self._sent = dict.fromkeys(targets, 0)
        self._proof: str | None = None
        self._over = threading.Event()
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._send, name="colos-signal-storm", daemon=True)
        self._thread.start()
        self._first.wait(_FIRST_S)

    def _send(self) -> None:
        try:
            begun = time.monotonic()
            for n in range(self._count):
                for target in self._targets:
                    self._sent[target] += target.signal(self._number)
                self._first.set()
                # Against the clock: a wait takes longer than it is asked to.
                if self._over.wait(max(0.0, begun + (n + 1) * self._pause_s - time.monotonic())):
                    return
        finally:
            self._first.set()

    def fired(self) -> str | None:
        reached = [
            f"{sent} to {name_of(target)}"
            for target, sent in self._sent.items()
            if sent and target.pidfd >= 0 and (not target.alive() or not is_pending(target.pid, self._number))
        ]
        if reached:
            self._proof = f"{self._number.name}: {', '.join(reached)}"
        return self._proof

    def heal(self) -> None:
        self._over.set()
        self._thread.join(_JOIN_S)

    def is_healed(self) -> bool:
        if self._thread.is_alive():
            return False
        self.fired()  # while the pidfds are there to ask
        for target in self._targets:
            target.close()
        return True
