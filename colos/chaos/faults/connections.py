"""Live connections that are cut under the hands of both ends.

Mechanism: the process's own socket, duplicated (pidfd_getfd(2)); a TCP connection is dropped with a
reset (connect(2) to AF_UNSPEC), a Unix one is shut down (shutdown(2)), for the kernel has no reset
for those.  Works in both tiers without privilege.  Proof: the socket's state before and after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Fault, Lease, Site, count_of
from colos.chaos.mechanisms.chance import digest
from colos.chaos.mechanisms.sockets import TCP, UNIX, Ending, Socket, end_connection, sockets_of
from colos.errors import InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.handle import Target
    from colos.chaos.sandbox.session import Session

__all__ = ["ConnectionReset"]

PROTOCOLS = (TCP, UNIX)
WHICH = ("one", "all")
_MOST_SEED = 255


class ConnectionReset(Fault):
    """The connections that the process has now are cut: by `protocol` ``"tcp"`` or ``"unix"``.

    `which` is ``"all"`` of them, or ``"one"``, chosen by a hash over `seed`.  Of Unix sockets only
    connections that were made through a name are meant, between processes of the sandbox: socket pairs
    and lines to the test are plumbing.
    """

    kind = "connection-reset"
    uses = "pidfd_getfd"
    family = "network"
    summary = "live connections are cut: TCP with a reset, Unix sockets by shutdown"
    sees = "both ends: ECONNRESET (TCP); end of file and EPIPE (Unix)"
    proof = "each socket's state before and after"
    parameters: ClassVar[Mapping[str, object]] = {"protocol": TCP, "which": "all", "seed": 0}

    def __init__(
        self, target: str = EVERYTHING, *, protocols: Sequence[str] = PROTOCOLS, at_most: int | None = None
    ) -> None:
        super().__init__(target, at_most=at_most)
        self.protocols = tuple(_one_of(PROTOCOLS, name, "protocol") for name in protocols)

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """A process's descriptors can be duplicated by who may trace it."""
        reason = session.probe("sockets")
        return None if reason is None else (reason, "Linux 5.6 or newer, and kernel.yama.ptrace_scope of at most 1")

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """Which protocol, and one connection or all."""
        return st.fixed_dictionaries(
            {
                "protocol": st.sampled_from(self.protocols),
                "which": st.sampled_from(WHICH),
                "seed": st.integers(0, _MOST_SEED),
            }
        )

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Cut them."""
        complete = cls.complete(arguments)
        protocol = _one_of(PROTOCOLS, complete["protocol"], "protocol")
        which = _one_of(WHICH, complete["which"], "which")
        seed = count_of(complete["seed"], "a seed") if which == "one" else None
        targets = site.reach.targets(target or EVERYTHING)
        try:
            return _Reset(_chosen(_connections(site, targets, protocol), seed))
        finally:
            for one in targets:
                one.close()


def _one_of(allowed: Sequence[str], value: object, what: str) -> str:
    if value not in allowed:
        raise InvalidSpecification(f"{what} is {' or '.join(map(repr, allowed))}, not {value!r}")
    return str(value)


def _connections(site: Site, targets: Sequence[Target], protocol: str) -> list[tuple[Target, Socket]]:
    """Every connection of these processes, once, in an order that the seed can mean something by."""
    inside = {process.pid for process in site.sandbox.processes()}
    found: dict[int, tuple[Target, Socket]] = {}
    for target in targets:
        for one in sockets_of(target.pid, target.pidfd):
            if one.protocol != protocol or not one.connected:
                continue
            if protocol == UNIX and not (one.named and one.peer_pid in inside):
                continue
            found.setdefault(one.inode, (target, one))
    return list(found.values())


def _chosen(connections: list[tuple[Target, Socket]], seed: int | None) -> list[tuple[Target, Socket]]:
    """All, or the one that the seed means."""
    if seed is None or not connections:
        return connections
    drawn = digest(f"{seed}:connection")
    return [connections[int.from_bytes(drawn, "big") % len(connections)]]


class _Reset(Lease):
    """Over as soon as it has begun."""

    mechanism = "pidfd_getfd"
    lasting = False

    def __init__(self, connections: list[tuple[Target, Socket]]) -> None:
        self._proof: list[str] = []
        for target, one in connections:
            ending = end_connection(target.pidfd, one)
            if ending is not None:
                self._proof.append(_said(target, one, ending))

    def fired(self) -> str | None:
        return "; ".join(self._proof) or None

    def heal(self) -> None:
        pass  # a connection that was cut stays so; new ones are free to be made

    def is_healed(self) -> bool:
        return True


def _said(target: Target, one: Socket, ending: Ending) -> str:
    where = f" {one.local_port} to {one.remote_port}" if one.protocol == TCP else ""
    name = f"{target.process.command}[{target.process.inner_pid}]"
    return f"{name}: {one.protocol}{where} was {ending.before}, is {ending.after}"
