"""A wall clock that is wrong: it jumps, drifts or stands still.  The monotonic clock never does.

`clock-jump`, `clock-drift` and `clock-stopped` are for programs: libfaketime, in their environment from
their start, stands before the C library's clock calls.  They reach what is executed and dynamically linked;
an actor is only forked, and so has a kind of its own.  `runtime-clock` puts wrong what
`colos.runtime.wall_time()` gives, and nothing else: it is the one fault here that is not the kernel's own
doing, which is why it has another name.

Proof: a program in the sandbox that reads both its clocks, and the processes that have libfaketime loaded;
for actors the clock's own file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from hypothesis import strategies as st

from colos.chaos.fault import Fault, Lease, Site
from colos.chaos.mechanisms import wallclocks
from colos.chaos.mechanisms.wallclocks import Face, Fake, Setting
from colos.chaos.sandbox.spec import NAMESPACES
from colos.errors import FaultUnavailable, HarnessBroken, InvalidSpecification
from colos.runtime.clock import put_right, put_wrong, read_skew

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Sandbox
    from colos.chaos.sandbox.session import Session

__all__ = ["ClockDrift", "ClockJump", "ClockStopped", "RuntimeClock"]

_MOST_S = 10 * 365 * 86400
_FASTEST = 100
_SEEN_S = 0.002  # what a program must read beside the true time to count as proof


def _number(value: object, low: float, high: float, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidSpecification(f"{what} is a number from {low:g} to {high:g}, not {value!r}")
    return value


def _jump(value: object) -> float:
    seconds = _number(value, -_MOST_S, _MOST_S, "a clock's jump in seconds")
    if seconds == 0:
        raise InvalidSpecification("a clock's jump is forward (above 0) or back (below 0), not 0 seconds")
    return seconds


def _rate(value: object) -> float:
    rate = _number(value, 1 / _FASTEST, _FASTEST, "a clock's rate in seconds a second")
    if rate == 1:
        raise InvalidSpecification("a clock's rate is above 1 (fast) or below it (slow): 1 is no drift")
    return rate


# --- programs --------------------------------------------------------------------------------


class _Clock(Fault):
    """What all of the family share: libfaketime, for the whole sandbox."""

    family = "clock"
    uses = "libfaketime"
    targeted = False
    sees = "time(2), gettimeofday(2), clock_gettime(CLOCK_REALTIME)"
    proof = "a program inside that read both its clocks, and who has libfaketime loaded"

    def __init__(self) -> None:
        super().__init__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """A libfaketime that works, and a /dev/shm of the sandbox's own."""
        if session.tier != NAMESPACES:
            return (
                "a program that is killed leaves libfaketime's files in /dev/shm, here the host's",
                wallclocks.BARE_CURE,
            )
        reason = wallclocks.probe()
        return None if reason is None else (reason, wallclocks.CURE)

    @classmethod
    def environment(cls) -> Mapping[str, str]:
        """Libfaketime from the start, with the true time."""
        return wallclocks.environment()

    @classmethod
    def setting(cls, arguments: Mapping[str, Any]) -> Setting:
        """What it does to the clock.  Raises `InvalidSpecification` for what cannot be."""
        raise NotImplementedError

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Put the clock of every program in the sandbox wrong."""
        del target
        setting = cls.setting(cls.complete(arguments))
        if site.sandbox.tier != NAMESPACES:
            raise FaultUnavailable(cls.kind, "a bare sandbox has no /dev/shm of its own", wallclocks.BARE_CURE)
        if not wallclocks.is_loaded(dict(site.sandbox.place.extra)):
            cure = f"declare {cls.__name__} in the machine's faults"
            raise FaultUnavailable(cls.kind, "the system was started without libfaketime", cure)
        return _Faked(site.sandbox, setting)


class ClockJump(_Clock):
    """The wall clock jumps by `seconds`: forward above 0, back below (up to ten years).  clock_settime(2).

    Healed, it jumps back.  Files' times stay true.  Of several leases the jumps add up.
    """

    kind = "clock-jump"
    summary = "a program's wall clock jumps, by libfaketime; the monotonic clock and files' times stay true"
    parameters: ClassVar[Mapping[str, object]] = {"seconds": 3600}

    def __init__(self, *, seconds: Sequence[float] = (60, 3600, -60, -3600)) -> None:
        super().__init__()
        self.seconds = tuple(_jump(value) for value in seconds)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared jumps."""
        return st.fixed_dictionaries({"seconds": st.sampled_from(self.seconds)})

    @classmethod
    def setting(cls, arguments: Mapping[str, Any]) -> Setting:
        """A jump."""
        return Setting(offset_s=_jump(arguments["seconds"]))


class ClockDrift(_Clock):
    """The wall clock goes `rate` seconds in a second (0.01 to 100; 2 is twice as fast).  adjtimex(2).

    In steps of 10 ms, and never back.  Healed, it jumps to the true time.  Of several leases the rates multiply.
    """

    kind = "clock-drift"
    summary = "a program's wall clock goes too fast or too slow, by libfaketime; the monotonic clock stays true"
    parameters: ClassVar[Mapping[str, object]] = {"rate": 2}

    def __init__(self, *, rates: Sequence[float] = (1.1, 2, 0.5)) -> None:
        super().__init__()
        self.rates = tuple(_rate(value) for value in rates)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared rates."""
        return st.fixed_dictionaries({"rate": st.sampled_from(self.rates)})

    @classmethod
    def setting(cls, arguments: Mapping[str, Any]) -> Setting:
        """A rate."""
        return Setting(rate=_rate(arguments["rate"]))


class ClockStopped(_Clock):
    """The wall clock stands still, as a virtual machine's does that was suspended.

    Healed, it jumps to the true time.
    """

    kind = "clock-stopped"
    summary = "a program's wall clock stands still, by libfaketime; the monotonic clock goes on"

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """Nothing to choose."""
        return st.just({})

    @classmethod
    def setting(cls, arguments: Mapping[str, Any]) -> Setting:
        """It stands."""
        del arguments
        return Setting(rate=0.0)


class _Faked(Lease):
    mechanism = "libfaketime"

    def __init__(self, sandbox: Sandbox, setting: Setting) -> None:
        self._sandbox = sandbox
        self._fake = _fake(sandbox)
        self._fake.set(self._fake.face.put(self, setting, time.time()))
        self._acts = True
        try:
            self._proof = self._prove()
        except BaseException:
            self.heal()
            raise

    def _prove(self) -> str | None:
        """Who has it loaded; and what a program reads that is started in there as the system's are."""
        loaded = wallclocks.users_of({p.pid: f"{p.command}[{p.inner_pid}]" for p in self._sandbox.processes()})
        skew = self._fake.face.skew
        if not loaded or skew is None:
            return None
        place = self._sandbox.place
        reading = wallclocks.Reading(tuple((name, place.expand(value)) for name, value in place.extra))
        epoch = time.time() - time.monotonic()
        (wall, monotonic), _ = self._sandbox.join(reading)
        true = epoch + monotonic
        ahead = wall - true
        # It is where it should be, give or take a step and a busy machine, and not where the true time is.
        expected = skew.at(true) - true
        if abs(ahead) < _SEEN_S or abs(ahead - expected) > max(0.1, abs(expected) / 2):
            return None
        return f"a program read {ahead:+.3f} s beside the true time; loaded in {', '.join(loaded)}"

    def fired(self) -> str | None:
        if self._proof is None and self._acts:  # a drift shows with time
            try:
                self._proof = self._prove()
            except (OSError, HarnessBroken):
                return None  # the sandbox is ending
        return self._proof

    def heal(self) -> None:
        if self._acts:
            self._acts = False
            self._fake.set(self._fake.face.take(self, time.time()))

    def is_healed(self) -> bool:
        return not self._acts and (bool(self._fake.face.settings) or self._fake.is_true())


_FAKES: WeakKeyDictionary[Sandbox, Fake] = WeakKeyDictionary()


def _fake(sandbox: Sandbox) -> Fake:
    if sandbox not in _FAKES:
        _FAKES[sandbox] = Fake(sandbox.outside(wallclocks.FILE))
    return _FAKES[sandbox]


# --- actors ----------------------------------------------------------------------------------


class RuntimeClock(Fault):
    """`colos.runtime.wall_time()` gives a wrong time to every process of the node.

    It jumps by `offset_s` seconds (forward above 0, back below, up to ten years), goes `rate` seconds in a
    second from there (0.01 to 100), or stands still (`stopped`).  Healed, it shows the true time.  Of several
    leases the jumps add up and the rates multiply.

    Not the kernel's doing: time.time() and all else stay true, so only what an actor asks of `wall_time` is
    wrong.  (An actor is forked, not executed: libfaketime cannot get before its clock calls.)
    """

    kind = "runtime-clock"
    uses = "colos.runtime.clock"
    family = "clock"
    targeted = False
    summary = (
        "what colos.runtime.wall_time() gives to actors jumps, drifts or stands; the system's own clock stays true"
    )
    sees = "colos.runtime.wall_time()"
    proof = "wall_time's own reading, of the node's directory"
    parameters: ClassVar[Mapping[str, object]] = {"offset_s": 3600, "rate": 1, "stopped": False}

    def __init__(self) -> None:
        super().__init__()

    def __repr__(self) -> str:
        return "RuntimeClock()"

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """It needs nothing but a file."""
        del session
        return None

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """A jump; perhaps a drift or a stop as well."""
        return st.fixed_dictionaries(
            {
                "offset_s": st.sampled_from((60, 3600, -60, -3600)),
                "rate": st.sampled_from((1, 2, 0.5)),
                "stopped": st.booleans(),
            }
        )

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Put it wrong for all actors."""
        del target
        complete = cls.complete(arguments)
        offset = _number(complete["offset_s"], -_MOST_S, _MOST_S, "a clock's jump in seconds")
        rate = _number(complete["rate"], 1 / _FASTEST, _FASTEST, "a clock's rate in seconds a second")
        stopped = complete["stopped"]
        if not isinstance(stopped, bool):
            raise InvalidSpecification(f"whether a clock is stopped is true or false, not {stopped!r}")
        if offset == 0 and rate == 1 and not stopped:
            raise InvalidSpecification("a clock that does not jump, goes at rate 1 and is not stopped is right")
        return _Skewed(site.sandbox, Setting(offset, 0.0 if stopped else rate))


class _Skewed(Lease):
    mechanism = "colos.runtime.clock"

    def __init__(self, sandbox: Sandbox, setting: Setting) -> None:
        self._directory = sandbox.outside("{run}")
        self._face = _FACES.setdefault(sandbox, Face())
        skew = self._face.put(self, setting, time.time())
        try:
            put_wrong(self._directory, skew)
        except BaseException:
            self._face.take(self, time.time())
            raise
        self._read: Callable[[], object] = lambda: read_skew(self._directory)
        seen = read_skew(self._directory)
        self._proof = None
        if seen == skew:
            now = time.time()
            self._proof = (
                f"wall_time() is {seen.at(now) - now:+.3f} s beside the true time, at {skew.rate:g} s a second"
            )

    def fired(self) -> str | None:
        return self._proof

    def heal(self) -> None:
        if self not in self._face.settings:
            return
        skew = self._face.take(self, time.time())
        try:
            if skew is None:
                put_right(self._directory)
            elif self._read() is not None:
                put_wrong(self._directory, skew)
        except OSError:
            if self._read() is not None:  # else the sandbox is gone, with its directory
                raise

    def is_healed(self) -> bool:
        return self not in self._face.settings and (bool(self._face.settings) or self._read() is None)


_FACES: WeakKeyDictionary[Sandbox, Face] = WeakKeyDictionary()
