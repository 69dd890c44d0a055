"""Signals as leases: what stops lasts until healed, what ends is seen to end, and stops of several leases add up.

Mechanism: pidfd_send_signal(2).  Proof: the exit seen on the pidfd, the state ``T`` for a stop,
else that the signal is pending no more (proc(5)).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from colos.chaos.fault import Lease, Site
from colos.chaos.sandbox.processes import read_process
from colos.errors import InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target

__all__ = ["HARMLESS", "MECHANISM", "STOPS", "Signalled", "Stops", "is_pending", "name_of", "signal_named"]

MECHANISM = "pidfd_send_signal"
STOPS = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
#: What ends no process that does not want it so: signal(7), "Standard signals".
HARMLESS = frozenset({*STOPS, signal.SIGCONT, signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH})
_PROOF_S = 2.0
_LOOK_S = 0.001


def signal_named(name: object) -> signal.Signals:
    """A signal by its name.  Raises `InvalidSpecification`."""
    try:
        return signal.Signals[str(name)]
    except KeyError:
        raise InvalidSpecification(f"{name!r} is not a signal's name; use one such as 'SIGKILL' or 'SIGSTOP'") from None


def name_of(target: Target) -> str:
    """A process as a proof names it: its command, and its pid as the system knows it."""
    return f"{target.process.command}[{target.process.inner_pid}]"


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether the signal still waits for the process (SigPnd and ShdPnd are hexadecimal masks)."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            masks = [int(line.split()[1], 16) for line in file if line.startswith(("SigPnd", "ShdPnd"))]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(mask >> (number - 1) & 1 for mask in masks)


class Stops:
    """The processes that one lease keeps stopped.  Whoever is stopped by two runs when both have let go."""

    def __init__(self, site: Site, lease: Lease) -> None:
        self._site = site
        self._lease = lease

    def stop(self, target: Target, number: signal.Signals = signal.SIGSTOP) -> bool:
        """Stop it, and let nobody else continue it; False when it is gone already."""
        with self._site.sandbox.stopping:
            if not target.signal(number):
                return False
            self._site.overlays.hold(("stopped", *_key(target)), self._lease, 0, lambda: None)
            self._site.stopped.add(_key(target))
            return True

    def let_go(self, target: Target) -> None:
        """Let it run, unless another lease keeps it stopped.  May be called twice."""
        with self._site.sandbox.stopping:
            held, _ = self._site.overlays.release(("stopped", *_key(target)), self._lease)
            if held is None:
                self._site.stopped.discard(_key(target))
                if target.pidfd >= 0:
                    target.signal(signal.SIGCONT)

    def left(self, targets: Iterable[Target]) -> bool:
        """Whether the machine shows one of them stopped though no lease holds it."""
        for target in targets:
            if target.pidfd >= 0 and target.alive() and _key(target) not in self._site.stopped and is_stopped(target):
                return True
        return False


def is_stopped(target: Target) -> bool:
    """Whether /proc shows it stopped: it acts on a stop itself, when it next has the CPU."""
    process = read_process(target.pid)
    return process is not None and process.state in "Tt"


def _key(target: Target) -> tuple[int, int]:
    return target.pid, target.process.start_time


class Signalled(Lease):
    """One signal to each of the targets.  A stop lasts until it is healed; anything else is over at once.

    With `must_end`, only an exit is proof.
    """

    mechanism = MECHANISM

    def __init__(self, site: Site, targets: list[Target], number: signal.Signals, *, must_end: bool = False) -> None:
        self._number = number
        self.lasting = number in STOPS
        self._must_end = must_end or number is signal.SIGKILL
        self._stops = Stops(site, self)
        self._hit: list[Target] = []
        for target in targets:
            if self._stops.stop(target, number) if self.lasting else target.signal(number):
                self._hit.append(target)
            else:
                target.close()
        self._proof = self._prove()
        if not self.lasting:
            self._let_go()

    def _prove(self) -> str | None:
        deadline = time.monotonic() + _PROOF_S
        proven = [target for target in self._hit if self._shows(target, deadline)]
        if self.lasting:
            for target in self._hit:
                if target not in proven:
                    self._stops.let_go(target)  # it handles or ignores this stop: nobody holds it
        if not proven:
            return None
        return f"{self._number.name} to {', '.join(map(name_of, proven))}"

    def _shows(self, target: Target, deadline: float) -> bool:
        """The signal has done its work, or has at least been taken."""
        if self._must_end:
            return target.wait(max(0.0, deadline - time.monotonic()))
        while True:
            if target.wait(_LOOK_S):
                return True
            if is_stopped(target) if self.lasting else not is_pending(target.pid, self._number):
                return True
            if time.monotonic() >= deadline:
                return False

    def fired(self) -> str | None:
        """See Lease."""
        return self._proof

    def heal(self) -> None:
        """See Lease."""
        for target in self._hit:
            if target.pidfd >= 0 and self.lasting:
                self._stops.let_go(target)

    def is_healed(self) -> bool:
        """See Lease."""
        if self._stops.left(self._hit):
            return False
        self._let_go()
        return True

    def _let_go(self) -> None:
        for target in self._hit:
            target.close()
