"""Signals to the system's processes: killed, crashed, asked to end, stopped for good or for a while.

Mechanism: pidfd_send_signal(2), see `colos.chaos.signalling`.
"""

from __future__ import annotations

import resource
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site, matches
from colos.chaos.signalling import HARMLESS, MECHANISM, Signalled, signal_named
from colos.errors import InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target
    from colos.chaos.sandbox.session import Session

__all__ = ["Crash", "Kill", "Pause", "PauseFor", "Terminate"]

CRASHES = ("SIGSEGV", "SIGABRT")
PAUSE_S_MAX = 60.0
_JOIN_S = 2.0


class _Signal(Fault):
    """What every signal to chosen processes has in common."""

    family = "process"
    uses = MECHANISM

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """Signals by pidfd are in every kernel that this package supports."""
        del session
        return None

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """Nothing beside the target."""
        return st.just({})


def _all_that_match(target: str | None, topology: Sequence[str]) -> int:
    return sum(matches(path, target or EVERYTHING) for path in topology)


class Kill(_Signal):
    """Send a signal to one or all of the processes that match.  SIGKILL unless `signals` says more."""

    kind = "kill"
    summary = "a signal to one process or to all that match; SIGKILL by default, any other by name"
    sees = "the signal"
    proof = "the exit on the pidfd, state T for a stop, else that it is pending no more"
    parameters: ClassVar[Mapping[str, object]] = {"signal": "SIGKILL"}

    def __init__(
        self, target: str = EVERYTHING, *, signals: Sequence[str] = ("SIGKILL",), at_most: int | None = None
    ) -> None:
        super().__init__(target, at_most=at_most)
        self.signals = tuple(signal_named(name).name for name in signals)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared signals."""
        return st.fixed_dictionaries({"signal": st.sampled_from(self.signals)})

    def deaths(self, target: str | None, topology: Sequence[str]) -> int:
        """All that match, unless every declared signal ends nobody."""
        if all(signal_named(name) in HARMLESS for name in self.signals):
            return 0
        return _all_that_match(target, topology)

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Send it to everything that matches and is alive."""
        number = signal_named(cls.complete(arguments)["signal"])
        return Signalled(site, site.reach.targets(target or EVERYTHING), number)


class Terminate(_Signal):
    """Ask the process to end, by SIGTERM: what an init, an orchestrator or an operator sends first (signal(7))."""

    kind = "terminate"
    summary = "SIGTERM to one process or to all that match: they may end in order, or not at all"
    sees = "SIGTERM, and its own handler"
    proof = "the exit on the pidfd, else that it is pending no more"

    def deaths(self, target: str | None, topology: Sequence[str]) -> int:
        """All that match."""
        return _all_that_match(target, topology)

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Send it to everything that matches and is alive."""
        del arguments
        return Signalled(site, site.reach.targets(target or EVERYTHING), signal.SIGTERM)


class Crash(_Signal):
    """The process ends as after a bug in native code: by `signal`, SIGSEGV (a bad address) or SIGABRT (abort(3)).

    Its handlers run first (faulthandler's, say); one that returns and lets the process live on
    makes it no crash.  No core is dumped: a handler of core_pattern (core(5)) runs outside the sandbox.
    """

    kind = "crash"
    summary = "the process crashes: SIGSEGV or SIGABRT, without a core"
    sees = "its end, with that signal in its wait status"
    proof = "the exit on the pidfd"
    parameters: ClassVar[Mapping[str, object]] = {"signal": "SIGSEGV"}

    def __init__(
        self, target: str = EVERYTHING, *, signals: Sequence[str] = CRASHES, at_most: int | None = None
    ) -> None:
        super().__init__(target, at_most=at_most)
        self.signals = tuple(_crash(name).name for name in signals)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared signals."""
        return st.fixed_dictionaries({"signal": st.sampled_from(self.signals)})

    def deaths(self, target: str | None, topology: Sequence[str]) -> int:
        """All that match."""
        return _all_that_match(target, topology)

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Crash everything that matches and is alive."""
        number = _crash(cls.complete(arguments)["signal"])
        return _Crashed(site, site.reach.targets(target or EVERYTHING), number)


def _crash(name: object) -> signal.Signals:
    if name not in CRASHES:
        raise InvalidSpecification(f"a crash is by {' or '.join(CRASHES)}, not {name!r}")
    return signal_named(name)


class _Crashed(Signalled):
    """A signal that must end its targets, none of which may dump a core."""

    def __init__(self, site: Site, targets: list[Target], number: signal.Signals) -> None:
        self._limits = {target: _forbid_core(target) for target in targets}
        super().__init__(site, targets, number, must_end=True)

    def _let_go(self) -> None:
        for target, before in self._limits.items():
            if before is not None:
                _limit_core(target, before)  # it has survived: as it was
        super()._let_go()


def _forbid_core(target: Target) -> tuple[int, int] | None:
    """No core for this process; its limits before.  A limit of 1 byte stops a handler too, one of 0 does not."""
    try:
        before = resource.prlimit(target.pid, resource.RLIMIT_CORE)
    except OSError:  # it is gone
        return None
    _limit_core(target, (min(1, before[1]) if before[1] != resource.RLIM_INFINITY else 1, before[1]))
    return before


def _limit_core(target: Target, limits: tuple[int, int]) -> None:
    try:
        if target.pidfd >= 0 and target.alive():
            resource.prlimit(target.pid, resource.RLIMIT_CORE, limits)
    except OSError:  # it is gone
        return


class Pause(_Signal):
    """The process stands still, by SIGSTOP, until it is healed: what a debugger or a frozen machine does to it."""

    kind = "pause"
    summary = "SIGSTOP to one process or to all that match, until healed"
    sees = "nothing; its peers see silence, and time has passed when it goes on"
    proof = "state T in /proc"

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Stop everything that matches and is alive."""
        del arguments
        return Signalled(site, site.reach.targets(target or EVERYTHING), signal.SIGSTOP)


class PauseFor(_Signal):
    """The process stands still for `seconds` (more than 0, at most 60), then goes on by itself; healed, at once."""

    kind = "pause-for"
    summary = "SIGSTOP to one process or to all that match, SIGCONT some seconds later"
    sees = "a jump of the clock; its peers see a silence that ends"
    proof = "state T in /proc"
    parameters: ClassVar[Mapping[str, object]] = {"seconds": 0.1}

    def __init__(
        self, target: str = EVERYTHING, *, seconds: Sequence[float] = (0.1, 0.5, 2.0), at_most: int | None = None
    ) -> None:
        super().__init__(target, at_most=at_most)
        self.seconds = tuple(_seconds(value) for value in seconds)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared times."""
        return st.fixed_dictionaries({"seconds": st.sampled_from(self.seconds)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Stop everything that matches and is alive, and set the clock."""
        seconds = _seconds(cls.complete(arguments)["seconds"])
        return _Paused(site, site.reach.targets(target or EVERYTHING), seconds)


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= PAUSE_S_MAX:
        raise InvalidSpecification(f"a pause is more than 0 and at most {PAUSE_S_MAX:g} seconds, not {value!r}")
    return float(value)


class _Paused(Signalled):
    """A stop that ends by itself: a thread waits for the time or for the heal, whichever comes first."""

    def __init__(self, site: Site, targets: list[Target], seconds: float) -> None:
        self._over = threading.Event()
        self._until = time.monotonic() + seconds
        super().__init__(site, targets, signal.SIGSTOP)
        if self._proof is not None:
            self._proof += f" for {seconds:g} s"
        self._thread = threading.Thread(target=self._wait, name="colos-pause-for", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        self._over.wait(max(0.0, self._until - time.monotonic()))
        super().heal()

    def heal(self) -> None:
        self._over.set()
        self._thread.join(_JOIN_S)

    def is_healed(self) -> bool:
        return not self._thread.is_alive() and super().is_healed()
