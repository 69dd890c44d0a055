"""Signals to the system's processes: killed, stopped, asked to end.

Mechanism: pidfd_send_signal(2).  Proof: the exit seen on the pidfd, the state ``T`` for a stop,
else that the signal is pending no more (proc(5)).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site, matches
from colos.chaos.sandbox.processes import read_process
from colos.errors import InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target
    from colos.chaos.sandbox.session import Session

__all__ = ["Kill"]

_PROOF_S = 2.0
_STOPS = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_HARMLESS = {*_STOPS, signal.SIGCONT}


def _signal(name: object) -> signal.Signals:
    try:
        return signal.Signals[str(name)]
    except KeyError:
        raise InvalidSpecification(f"{name!r} is not a signal's name; use one such as 'SIGKILL' or 'SIGSTOP'") from None


class Kill(Fault):
    """Send a signal to one or all of the processes that match.  SIGKILL unless `signals` says more."""

    kind = "kill"
    family = "process"
    summary = "a signal to one process or to all that match; SIGKILL by default, any other by name"
    sees = "the signal"
    proof = "the exit on the pidfd, state T for a stop, else that it is pending no more"
    parameters: ClassVar[Mapping[str, object]] = {"signal": "SIGKILL"}

    def __init__(self, target: str = EVERYTHING, *, signals: Sequence[str] = ("SIGKILL",)) -> None:
        super().__init__(target)
        self.signals = tuple(_signal(name).name for name in signals)

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """Signals by pidfd are in every kernel that this package supports."""
        del session
        return None

    @classmethod
    def mechanism(cls, session: Session) -> str:
        """See Fault."""
        del session
        return "pidfd_send_signal"

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared signals."""
        return st.fixed_dictionaries({"signal": st.sampled_from(self.signals)})

    def deaths(self, target: str | None, topology: Sequence[str]) -> int:
        """All that match, unless every declared signal only stops or continues."""
        if all(_signal(name) in _HARMLESS for name in self.signals):
            return 0
        return sum(matches(path, target or EVERYTHING) for path in topology)

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Send it to everything that matches and is alive."""
        return _Signalled(site, site.reach.targets(target or EVERYTHING), _signal(cls.complete(arguments)["signal"]))


class _Signalled(Lease):
    mechanism = "pidfd_send_signal"

    def __init__(self, site: Site, targets: list[Target], number: signal.Signals) -> None:
        self._site = site
        self._number = number
        self.lasting = number in _STOPS
        self._hit: list[Target] = []
        for target in targets:
            if self._send(target):
                self._hit.append(target)
            else:
                target.close()
        self._proof = self._prove()
        if not self.lasting:
            self._let_go()

    def _send(self, target: Target) -> bool:
        with self._site.sandbox.stopping:
            if not target.signal(self._number):
                return False
            if self.lasting:
                self._site.overlays.hold(("stopped", *_key(target)), self, 0, lambda: None)
                self._site.stopped.add(_key(target))
            return True

    def _continue(self, target: Target) -> None:
        """Let it run, unless another lease keeps it stopped."""
        with self._site.sandbox.stopping:
            held, _ = self._site.overlays.release(("stopped", *_key(target)), self)
            if held is None:
                self._site.stopped.discard(_key(target))
                target.signal(signal.SIGCONT)

    def _prove(self) -> str | None:
        proven = [target for target in self._hit if self._shows(target)]
        if self.lasting:
            for target in self._hit:
                if target not in proven:
                    self._continue(target)  # it handles or ignores this stop: nobody holds it
        if not proven:
            return None
        whom = ", ".join(f"{target.process.command}[{target.process.inner_pid}]" for target in proven)
        return f"{self._number.name} to {whom}"

    def _shows(self, target: Target) -> bool:
        """The signal has done its work, or has at least been taken."""
        if self._number is signal.SIGKILL:
            return target.wait(_PROOF_S)
        deadline = time.monotonic() + _PROOF_S
        while time.monotonic() < deadline:
            if target.wait(0.001):
                return True
            process = read_process(target.pid)
            if self.lasting and process is not None and process.state in "Tt":
                return True
            if not self.lasting and not _pending(target.pid, self._number):
                return True
        return False

    def fired(self) -> str | None:
        return self._proof

    def heal(self) -> None:
        for target in self._hit:
            if target.pidfd >= 0:
                self._continue(target)

    def is_healed(self) -> bool:
        for target in self._hit:
            if target.pidfd >= 0 and target.alive() and _key(target) not in self._site.stopped:
                process = read_process(target.pid)
                if process is not None and process.state in "Tt":
                    return False
        self._let_go()
        return True

    def _let_go(self) -> None:
        for target in self._hit:
            target.close()


def _key(target: Target) -> tuple[int, int]:
    return target.pid, target.process.start_time


def _pending(pid: int, number: signal.Signals) -> bool:
    """Whether the signal still waits for the process (SigPnd and ShdPnd are hexadecimal masks)."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            masks = [int(line.split()[1], 16) for line in file if line.startswith(("SigPnd", "ShdPnd"))]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(mask >> (number - 1) & 1 for mask in masks)
