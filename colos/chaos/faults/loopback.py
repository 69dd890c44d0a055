"""The machine's own network, all of it: down, slow, late.

Mechanisms: the ``lo`` of the sandbox's own network namespace, set down (netdevice(7)) or given a
queueing discipline (tc(8)).  In `bare` the loopback is the host's, and is never touched.  Proof: the
kernel's flags and counts, read back in there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from hypothesis import strategies as st

from colos.chaos.fault import Fault, Lease, Site
from colos.chaos.mechanisms.loopback import BURST, DELAY, RATE, LinkState, SetLink, ShapeLink, ShapeState
from colos.chaos.sandbox.spec import NAMESPACES
from colos.errors import FaultUnavailable, InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Sandbox
    from colos.chaos.sandbox.session import Session

__all__ = ["LoopbackDown", "PacketDelay", "SlowLink"]

_BARE = ("in a bare sandbox the loopback is the host's", "user namespaces: see what `colos doctor` says of the tier")
_DOWN = ("loopback", "down")
_MOST_RATE = (1 << 32) - 1
_MOST_DELAY_MS = 60_000


class LoopbackDown(Fault):
    """The loopback is down: what is sent is lost, connections that are open stand still, ::1 is gone.  No parameters.

    Connections go on after healing, when TCP sends again what was lost.  Unix sockets do not notice.
    """

    kind = "loopback-down"
    uses = "link-down"
    family = "network"
    targeted = False
    summary = "the sandbox's loopback is set down: no packet arrives, IPv4 or IPv6"
    sees = "nothing arrives: connect and receive run into their timeouts; EADDRNOTAVAIL for ::1"
    proof = "the interface's flags, and a probe datagram that did not arrive"

    def __init__(self) -> None:
        super().__init__()

    def __repr__(self) -> str:
        return "LoopbackDown()"

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """Only a loopback of its own may be set down."""
        return None if session.tier == NAMESPACES else _BARE

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """There is nothing to choose."""
        return st.just({})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Set it down."""
        del target, arguments
        _own_loopback(cls.kind, site)
        return _Down(site)


class SlowLink(Fault):
    """The loopback carries `bytes_per_s` bytes a second (the first 64 KiB go at once, as tc-tbf(8)'s burst).

    What does not fit waits, up to 1 MiB; what does not fit there is lost.  Healing loses what waits, and
    TCP sends it again.
    """

    kind = "slow-link"
    uses = "tc-tbf"
    family = "network"
    targeted = False
    summary = "the sandbox's loopback carries so many bytes a second and no more"
    sees = "late data, then full send buffers"
    proof = "the kernel's count of packets that had to wait"
    parameters: ClassVar[Mapping[str, object]] = {"bytes_per_s": 65536}

    def __init__(self, *, bytes_per_s: Sequence[int] = (1 << 20, 65536)) -> None:
        super().__init__()
        self.bytes_per_s = tuple(sorted((_rate(value) for value in bytes_per_s), reverse=True))

    def __repr__(self) -> str:
        return f"SlowLink(bytes_per_s={self.bytes_per_s})"

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """A loopback of its own, and a kernel with sch_tbf."""
        return _shaping(session, "loopback", "modprobe sch_tbf, or a kernel with CONFIG_NET_SCH_TBF")

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared rates, the fastest first."""
        return st.fixed_dictionaries({"bytes_per_s": st.sampled_from(self.bytes_per_s)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Slow it down; of several leases the slowest holds."""
        del target
        rate = _rate(cls.complete(arguments)["bytes_per_s"])
        _own_loopback(cls.kind, site)
        return _Shaped(site, "tc-tbf", ShapeLink(rate=rate))


class PacketDelay(Fault):
    """Every packet on the loopback arrives `ms` milliseconds late (so an answer takes twice that).  tc-netem(8)."""

    kind = "packet-delay"
    uses = "tc-netem"
    family = "network"
    targeted = False
    summary = "every packet on the sandbox's loopback arrives late"
    sees = "late data; connect takes twice the delay"
    proof = "the kernel's count of packets that were delayed"
    parameters: ClassVar[Mapping[str, object]] = {"ms": 20}

    def __init__(self, *, ms: Sequence[float] = (5, 20, 100)) -> None:
        super().__init__()
        self.ms = tuple(sorted(_delay(value) for value in ms))

    def __repr__(self) -> str:
        return f"PacketDelay(ms={self.ms})"

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """A loopback of its own, and a kernel with sch_netem."""
        return _shaping(session, "loopback.probe_delay", "modprobe sch_netem, or a kernel with CONFIG_NET_SCH_NETEM")

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared delays, the shortest first."""
        return st.fixed_dictionaries({"ms": st.sampled_from(self.ms)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Delay it; of several leases the longest holds."""
        del target
        delay = _delay(cls.complete(arguments)["ms"])
        _own_loopback(cls.kind, site)
        return _Shaped(site, "tc-netem", ShapeLink(delay_ms=delay))


def _own_loopback(kind: str, site: Site) -> None:
    if site.sandbox.tier != NAMESPACES:
        raise FaultUnavailable(kind, *_BARE)


def _shaping(session: Session, probe: str, cure: str) -> tuple[str, str] | None:
    if session.tier != NAMESPACES:
        return _BARE
    reason = session.probe(probe)
    return None if reason is None else (reason, cure)


def _rate(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST_RATE:
        raise InvalidSpecification(
            f"a link's rate is a whole number of bytes a second, 1 to {_MOST_RATE}, not {value!r}"
        )
    return value


def _delay(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST_DELAY_MS:
        raise InvalidSpecification(f"a packet's delay is more than 0 and at most {_MOST_DELAY_MS} ms, not {value!r}")
    return value


class _Down(Lease):
    mechanism = "link-down"

    def __init__(self, site: Site) -> None:
        self._site = site
        self._proof: str | None = None
        site.overlays.hold(_DOWN, self, 0, lambda: None)
        try:
            site.sandbox.join(SetLink(up=False))
            self._look()
        except BaseException:
            self.heal()
            raise

    def _look(self) -> None:
        (up, arrived), _ = self._site.sandbox.join(LinkState())
        if not up and not arrived:
            self._proof = "lo is down, and a probe datagram did not arrive"

    def fired(self) -> str | None:
        return self._proof

    def heal(self) -> None:
        held, _ = self._site.overlays.release(_DOWN, self)
        if held is None:
            try:
                self._site.sandbox.join(SetLink(up=True))
            except ProcessLookupError:
                pass  # the sandbox is gone, and its loopback with it

    def is_healed(self) -> bool:
        if _DOWN in self._site.overlays:
            return True  # another lease keeps it down
        try:
            (up, _), _ = self._site.sandbox.join(LinkState())
        except ProcessLookupError:
            return True
        return bool(up)  # a datagram may be lost to another fault


#: What each lease wants of a sandbox's loopback; there is one root discipline for all of them.
_WANTED: WeakKeyDictionary[Sandbox, dict[int, ShapeLink]] = WeakKeyDictionary()


class _Shaped(Lease):
    """The slowest rate and the longest delay of all leases hold."""

    def __init__(self, site: Site, mechanism: str, shape: ShapeLink) -> None:
        self.mechanism = mechanism
        self._sandbox = site.sandbox
        self._shape = shape
        self._name = RATE if shape.rate is not None else DELAY
        self._proof: str | None = None
        self._wanted = _WANTED.setdefault(site.sandbox, {})
        self._wanted[id(self)] = shape
        try:
            self._apply()
        except BaseException:
            self.heal()
            raise

    def _apply(self) -> None:
        rates = [shape.rate for shape in self._wanted.values() if shape.rate is not None]
        delays = [shape.delay_ms for shape in self._wanted.values() if shape.delay_ms is not None]
        self._sandbox.join(ShapeLink(min(rates, default=None), max(delays, default=None)))

    def fired(self) -> str | None:
        if id(self) in self._wanted:
            try:
                state, _ = self._sandbox.join(ShapeState())
            except ProcessLookupError:
                return self._proof
            packets, waited = state.get(self._name, (0, 0))
            if self._name == RATE and waited:
                self._proof = f"packets had to wait {waited} times, after the first {BURST} bytes"
            elif self._name == DELAY and packets:
                self._proof = f"{packets} packets delayed by {self._shape.delay_ms:g} ms or more"
        return self._proof

    def heal(self) -> None:
        if id(self) not in self._wanted:
            return
        self.fired()
        del self._wanted[id(self)]
        try:
            self._apply()
        except ProcessLookupError:
            pass  # the sandbox is gone, and its loopback with it

    def is_healed(self) -> bool:
        if any((shape.rate is None) == (self._shape.rate is None) for shape in self._wanted.values()):
            return id(self) not in self._wanted  # another lease shapes it still
        try:
            state, _ = self._sandbox.join(ShapeState())
        except ProcessLookupError:
            return True
        return self._name not in state
