"""Packets that do not arrive: lost at random, of one connection, between two sides; and new connections refused.

Mechanism: nf_tables filters in the sandbox's own network namespace.  In `bare` the filter would be the
host's, and there is none.  Unix sockets have no packets and no filter.  Proof: the filter's own counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site, count_of
from colos.chaos.mechanisms.chance import digest
from colos.chaos.mechanisms.nftables import CURE, MILLION, AddFilter, CountHits, RemoveFilter, Rule
from colos.chaos.mechanisms.sockets import TCP, Socket, sockets_of
from colos.chaos.sandbox.spec import NAMESPACES
from colos.errors import FaultUnavailable, InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.session import Session

__all__ = ["ConnectionRefused", "HalfOpen", "PacketLoss", "Partition"]

_BARE = ("in a bare sandbox the network is the host's", "user namespaces: see what `colos doctor` says of the tier")
_NAMES = itertools.count(1)  # of filters, as the kernel knows them
_MOST_SEED = 255


class _Filter(Fault):
    """What all of these need."""

    family = "network"
    uses = "nftables"

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """A network namespace of its own, and a kernel with nf_tables."""
        if session.tier != NAMESPACES:
            return _BARE
        reason = session.probe("nftables")
        return None if reason is None else (reason, CURE)

    @classmethod
    def own_network(cls, site: Site) -> None:
        """Raise `FaultUnavailable` where the network is not the sandbox's own."""
        if site.sandbox.tier != NAMESPACES:
            raise FaultUnavailable(cls.kind, *_BARE)


class PacketLoss(_Filter):
    """A `share` (0.1 is a tenth) of the packets on the loopback is lost; which, is a hash over `seed` and their number.

    TCP sends again, later and later; datagrams are gone.
    """

    kind = "packet-loss"
    targeted = False
    summary = "a share of the packets on the sandbox's loopback is lost"
    sees = "TCP that stalls and goes on, datagrams that never come"
    proof = "the filter's count of dropped packets"
    parameters: ClassVar[Mapping[str, object]] = {"share": 0.1, "seed": 0}

    def __init__(self, *, shares: Sequence[float] = (0.01, 0.1, 0.3)) -> None:
        super().__init__()
        self.shares = tuple(_share(value) for value in shares)

    def __repr__(self) -> str:
        return f"PacketLoss(shares={self.shares})"

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared shares, simplest the first of them, and which packets it takes."""
        return st.fixed_dictionaries({"share": st.sampled_from(self.shares), "seed": st.integers(0, _MOST_SEED)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Begin to lose packets."""
        del target
        complete = cls.complete(arguments)
        share, seed = _share(complete["share"]), count_of(complete["seed"], "a seed")
        cls.own_network(site)
        drawn = int.from_bytes(_hash(seed, "packets")[:4], "big")
        return _Filtered(site, "dropped", [Rule(share=max(1, round(share * MILLION)), seed=drawn)])


class ConnectionRefused(_Filter):
    """New TCP connections to the ports that the process listens on now are refused.  No parameters.

    Connections that are open stay so.  A port that it listens on later is not refused.
    """

    kind = "connection-refused"
    summary = "new TCP connections to the process's listening ports are refused, though it listens"
    sees = "nothing itself; whoever connects: ECONNREFUSED"
    proof = "the filter's count of refused openings"

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """There is nothing to choose."""
        return st.just({})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Refuse from now on."""
        del arguments
        cls.own_network(site)
        ports = sorted({one.local_port for one in _tcp_of(site, target or EVERYTHING) if one.listening})
        rules = [Rule(destination=port, opening=True, reset=True) for port in ports]
        return _Filtered(site, "openings refused", rules)


class HalfOpen(_Filter):
    """The TCP connections that the process has now carry nothing any more, and neither side is told.

    `which` is ``"all"`` of them, or ``"one"``, chosen by a hash over `seed`.  New connections work.
    """

    kind = "half-open"
    summary = "the process's open TCP connections carry nothing any more, without an end or a reset"
    sees = "sends that succeed until the buffer is full, and answers that never come"
    proof = "the filter's count of dropped packets"
    parameters: ClassVar[Mapping[str, object]] = {"which": "all", "seed": 0}

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One connection, or all."""
        return st.fixed_dictionaries({"which": st.sampled_from(("one", "all")), "seed": st.integers(0, _MOST_SEED)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Drop what they carry from now on."""
        complete = cls.complete(arguments)
        which, seed = complete["which"], count_of(complete["seed"], "a seed")
        if which not in ("all", "one"):
            raise InvalidSpecification(f"'all' or 'one' of the connections, not {which!r}")
        cls.own_network(site)
        pairs = sorted(_pairs(_tcp_of(site, target or EVERYTHING)))
        if which == "one" and pairs:
            pairs = [pairs[int.from_bytes(_hash(seed, "connection")[:8], "big") % len(pairs)]]
        return _Filtered(site, "dropped", _both_ways(pairs))


class Partition(_Filter):
    """Between the process and `peer` (a path or a pattern; ``"*"``: all the others) TCP carries nothing.

    What is open between them now carries nothing any more; to what either listens on now nobody can
    open a new connection, third parties included: the kernel cannot tell who knocks.  What they have
    open with third parties goes on.  Unix sockets are not cut: the kernel has no filter for them.
    """

    kind = "partition"
    summary = "two sides' TCP connections carry nothing, and new ones do not come about"
    sees = "answers that never come; connect runs into its timeout"
    proof = "the filter's count of dropped packets"
    parameters: ClassVar[Mapping[str, object]] = {"peer": EVERYTHING}

    def __init__(
        self, target: str = EVERYTHING, *, peers: Sequence[str] = (EVERYTHING,), at_most: int | None = None
    ) -> None:
        super().__init__(target, at_most=at_most)
        self.peers = tuple(_peer(value) for value in peers)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared peers."""
        return st.fixed_dictionaries({"peer": st.sampled_from(self.peers)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Part them."""
        peer = _peer(cls.complete(arguments)["peer"])
        cls.own_network(site)
        return _Filtered(site, "dropped", _parting(site, target or EVERYTHING, peer))


def _parting(site: Site, target: str, peer: str) -> list[Rule]:
    """What keeps the two sides apart; nothing when one of them is nobody."""
    everybody = peer == EVERYTHING
    here = _pids_of(site, target)
    if not here or not (everybody or _pids_of(site, peer) - here):
        return []
    near = _tcp_of(site, target)
    far = [one for one in _tcp_of(site, peer) if one.inode not in {ours.inode for ours in near}]
    ours, theirs = _pairs(near), _pairs(far)
    between = {pair for pair in ours if (pair[::-1] not in ours if everybody else pair[::-1] in theirs)}
    ports = sorted({one.local_port for one in (*near, *far) if one.listening})
    return [*_both_ways(sorted(between)), *(Rule(destination=port, opening=True) for port in ports)]


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InvalidSpecification(f"a share of packets is more than 0 and at most 1, not {value!r}")
    return float(value)


def _peer(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidSpecification(f"a peer is a process's path or a pattern such as 'kv/*', not {value!r}")
    return value


def _hash(seed: int, key: str) -> bytes:
    return digest(f"{seed}:{key}")


def _tcp_of(site: Site, pattern: str) -> list[Socket]:
    found = []
    for target in site.reach.targets(pattern):
        try:
            found += [one for one in sockets_of(target.pid, target.pidfd) if one.protocol == TCP]
        finally:
            target.close()
    return found


def _pids_of(site: Site, pattern: str) -> set[int]:
    targets = site.reach.targets(pattern)
    for target in targets:
        target.close()
    return {target.pid for target in targets}


def _pairs(sockets: Iterable[Socket]) -> set[tuple[int, int]]:
    """Local and remote port of each connection."""
    return {(one.local_port, one.remote_port) for one in sockets if one.connected}


def _both_ways(pairs: Iterable[tuple[int, int]]) -> list[Rule]:
    return [rule for near, far in pairs for rule in (Rule(near, far), Rule(far, near))]


class _Filtered(Lease):
    """One filter with a name of its own: whatever the others say, the strictest holds."""

    mechanism = "nftables"

    def __init__(self, site: Site, what: str, rules: Sequence[Rule]) -> None:
        self._sandbox = site.sandbox
        self._what = what
        self._name = f"colos-{next(_NAMES)}"
        self._proof: str | None = None
        self._acts = bool(rules)
        if rules:
            site.sandbox.join(AddFilter(self._name, tuple(rules)))

    def _count(self) -> list[int] | None:
        try:
            hits, _ = self._sandbox.join(CountHits(self._name))
        except ProcessLookupError:
            return None  # the sandbox is gone, and its filters with it
        return list(hits) if hits is not None else None

    def fired(self) -> str | None:
        hits = sum(self._count() or []) if self._acts else 0
        if hits:
            self._proof = f"{hits} packets {self._what}" if self._what == "dropped" else f"{hits} {self._what}"
        return self._proof

    def heal(self) -> None:
        if not self._acts:
            return
        self.fired()
        self._acts = False
        try:
            self._sandbox.join(RemoveFilter(self._name))
        except ProcessLookupError:
            pass

    def is_healed(self) -> bool:
        return self._count() is None
