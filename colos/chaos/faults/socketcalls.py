"""Connections that a program makes and reads: refused, slow, and read in small pieces.

Mechanism: seccomp user notification on the calls themselves, so it works in both tiers, for TCP and Unix sockets.
What happens on the wire is not touched.  Proof: the keeper's count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from hypothesis import strategies as st

from colos.chaos.fault import EVERYTHING, Site
from colos.chaos.mechanisms.rules import Cut, Delay, Fail, Rule, errno_of
from colos.chaos.trapped import TrappedFault, one_or_more

__all__ = ["ConnectFails", "CutReads", "SlowNetwork"]

_CONNECTING: Final = ("connect",)
_RECEIVING: Final = ("recvfrom", "read")
_TALKING: Final = ("connect", "sendto", "sendmsg", "recvfrom", "recvmsg")
_SOCKETS: Final = "socket:*"


class ConnectFails(TrappedFault):
    """Connecting gives `errno`: ECONNREFUSED when nobody listens, ETIMEDOUT or EHOSTUNREACH when nobody answers.

    `address` is a pattern for where to: "inet:127.0.0.1:6379", "inet:*:5432", "unix:/run/*"; "*" is everywhere.
    connect(2).
    """

    kind = "connect-fails"
    family = "network"
    summary = "connecting to chosen TCP or Unix addresses is refused, or finds nobody"
    sees = "ECONNREFUSED, or the errno that was chosen"
    proof = "the keeper's count of the connects it has refused"
    parameters: ClassVar[Mapping[str, object]] = {"errno": "ECONNREFUSED", "address": "*"}

    def __init__(
        self,
        target: str = EVERYTHING,
        *,
        errnos: str | Sequence[str] = ("ECONNREFUSED",),
        address: str = "*",
        at_most: int | None = None,
    ) -> None:
        super().__init__(target, at_most=at_most)
        self.errnos = one_or_more(errnos)
        self.address = address
        for name in self.errnos:
            errno_of(name)

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared errnos."""
        return st.fixed_dictionaries({"errno": st.sampled_from(self.errnos), "address": st.just(self.address)})

    @classmethod
    def calls(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Connecting."""
        del arguments
        return _CONNECTING

    @classmethod
    def rules(cls, site: Site, arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
        """Refused."""
        return (
            Rule(
                _CONNECTING, Fail(errno_of(arguments["errno"])), subject=site.sandbox.place.expand(arguments["address"])
            ),
        )


class SlowNetwork(TrappedFault):
    """Connecting, sending and receiving each wait up to `seconds` before they begin; by chance, from `seed`."""

    kind = "slow-network"
    family = "network"
    summary = "connecting, sending and receiving on sockets each take longer, by chance"
    sees = "nothing but the time that passes"
    proof = "the keeper's count of the calls it has kept waiting"
    parameters: ClassVar[Mapping[str, object]] = {"seconds": 0.02, "seed": 0}

    def __init__(self, target: str = EVERYTHING, *, seconds: float = 0.02, at_most: int | None = None) -> None:
        super().__init__(target, at_most=at_most)
        self.seconds = Delay(0, seconds).most_s

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """The declared time, and the chance."""
        return st.fixed_dictionaries({"seconds": st.just(self.seconds), "seed": st.integers(0, 255)})

    @classmethod
    def calls(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """What sockets are used with."""
        del arguments
        return _TALKING

    @classmethod
    def rules(cls, site: Site, arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
        """Late."""
        del site
        return (Rule(_TALKING, Delay(0, arguments["seconds"]), seed=arguments["seed"]),)


class CutReads(TrappedFault):
    """What is read from sockets comes in pieces: a read takes `share` of what was asked for, one byte at least.

    A program that takes one recv for one message breaks; one that reads to a length or a delimiter does not.
    A read that would wait is not cut.  recv(2): a stream has no message boundaries.
    """

    kind = "cut-reads"
    family = "network"
    summary = "reads from sockets return a small part of what has arrived; the rest comes with the next"
    sees = "short reads"
    proof = "the keeper's count of the reads it has cut"
    parameters: ClassVar[Mapping[str, object]] = {"share": 0.0001}

    def __init__(self, target: str = EVERYTHING, *, share: float = 0.0001, at_most: int | None = None) -> None:
        super().__init__(target, at_most=at_most)
        self.share = Cut(share).share

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """As declared."""
        return st.fixed_dictionaries({"share": st.just(self.share)})

    @classmethod
    def calls(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """What streams are read with."""
        del arguments
        return _RECEIVING

    @classmethod
    def rules(cls, site: Site, arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
        """A part, and its length."""
        del site
        return (Rule(_RECEIVING, Cut(arguments["share"]), subject=_SOCKETS),)
