"""Host names that cannot be looked up, or only slowly; and a machine that has moved to another time zone.

Mechanism: files bound over /etc/hosts, /etc/resolv.conf, /etc/nsswitch.conf and /etc/localtime in the
sandbox's own mount namespace (mount(2)), and a name server on its own loopback.  In `bare` these
files are the host's, and are never touched.  Proof: the questions that the name server was asked;
what is mounted, read back.

A running process notices: the C library reads hosts anew for each look-up, and looks whether
resolv.conf (glibc 2.26) and nsswitch.conf (glibc 2.33) have changed.  What a program itself has
kept, and its open connections, stay.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

from colos.chaos.fault import Fault, Lease, Site
from colos.chaos.mechanisms.overmounts import overmounts
from colos.chaos.mechanisms.resolver import NOT_KNOWN, SERVER_FAILED, SILENT, OpenResolver, Resolver, hosts_in
from colos.chaos.sandbox.spec import NAMESPACES
from colos.errors import FaultUnavailable, InvalidSpecification

if TYPE_CHECKING:
    from colos.chaos.sandbox.session import Session

__all__ = ["NameLookupFails", "NameLookupSlow", "TimezoneChanged"]

_BARE = ("in a bare sandbox /etc is the host's", "user namespaces: see what `colos doctor` says of the tier")
_HOSTS, _RESOLV, _NSSWITCH, _LOCALTIME = "/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/localtime"
_CODES = {"failed": SERVER_FAILED, "unknown": NOT_KNOWN, "silent": SILENT}
_ADDRESSES = itertools.count(1)  # of name servers: each lease has its own
_MOST_DELAY_MS = 4000  # the resolver gives up after 5 s
_MOST_MINUTES = 14 * 60


class _OverEtc(Fault):
    """What all of these need."""

    family = "names and chance"
    uses = "bind-mount"
    targeted = False
    needed_files: ClassVar[tuple[str, ...]] = (_HOSTS, _RESOLV)

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """A file system view of its own, with files to bind over."""
        if session.tier != NAMESPACES:
            return _BARE
        missing = [path for path in cls.needed_files if not os.path.exists(path)]
        return (f"there is no {missing[0]} to bind a file over", f"touch {missing[0]}") if missing else None

    @classmethod
    def own_etc(cls, site: Site) -> None:
        """Raise `FaultUnavailable` where /etc is not the sandbox's own."""
        if site.sandbox.tier != NAMESPACES:
            raise FaultUnavailable(cls.kind, *_BARE)


class NameLookupFails(_OverEtc):
    """No host name can be looked up, localhost included.  `how`: the name server that answers instead

    - ``"failed"``: says that it has failed: EAI_AGAIN at once (the default);
    - ``"unknown"``: says that there is no such name: EAI_NONAME at once;
    - ``"silent"``: says nothing: EAI_AGAIN after a second.
    """

    kind = "name-lookup-fails"
    summary = "host names cannot be looked up: /etc/hosts is empty and the name server fails, denies or is silent"
    sees = "getaddrinfo: EAI_AGAIN or EAI_NONAME"
    proof = "the questions that the sandbox's name server was asked"
    parameters: ClassVar[Mapping[str, object]] = {"how": "failed"}

    def __init__(self, *, how: Sequence[str] = tuple(_CODES)) -> None:
        super().__init__()
        self.how = tuple(_how(name) for name in how)

    def __repr__(self) -> str:
        return f"NameLookupFails(how={self.how})"

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared ways."""
        return st.fixed_dictionaries({"how": st.sampled_from(self.how)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Fail every look-up from now on."""
        del target
        how = _how(cls.complete(arguments)["how"])
        cls.own_etc(site)
        return _LookedUp(site, {}, _CODES[how], 0.0, "timeout:1 attempts:1")


class NameLookupSlow(_OverEtc):
    """Host names are looked up `delay_ms` late: what /etc/hosts knows is answered so late, by a name server.

    The look-up of a name that it does not know is late, too, and fails (EAI_AGAIN): a sandbox has no outside.
    """

    kind = "name-lookup-slow"
    summary = "host names are looked up late: a name server answers instead of /etc/hosts"
    sees = "getaddrinfo that takes its time"
    proof = "the questions that the sandbox's name server was asked"
    parameters: ClassVar[Mapping[str, object]] = {"delay_ms": 200}

    def __init__(self, *, delays_ms: Sequence[int] = (50, 200, 1000)) -> None:
        super().__init__()
        self.delays_ms = tuple(sorted(_delay(value) for value in delays_ms))

    def __repr__(self) -> str:
        return f"NameLookupSlow(delays_ms={self.delays_ms})"

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared delays, the shortest first."""
        return st.fixed_dictionaries({"delay_ms": st.sampled_from(self.delays_ms)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Delay every look-up from now on."""
        del target
        delay_ms = _delay(cls.complete(arguments)["delay_ms"])
        cls.own_etc(site)
        # This process sees the file itself, though another lease may have hidden it inside.
        with open(_HOSTS, encoding="utf-8", errors="replace") as file:
            known = hosts_in(file.read())
        return _LookedUp(site, known, SERVER_FAILED, delay_ms / 1000, "timeout:5 attempts:2")


class TimezoneChanged(_OverEtc):
    """The machine's time zone is `minutes` east of Greenwich (negative: west), and is called COLOS.

    Seen by programs without TZ: by those that start meanwhile, and, with glibc, at a running one's next
    localtime(3) or tzset(3).  Where /etc/localtime is a link, whoever names the zone that it points to is
    moved with it.
    """

    kind = "timezone-changed"
    summary = "the machine's time zone is another one: a file is bound over /etc/localtime"
    sees = "another local time; the same UTC"
    proof = "what is mounted there, read back from inside"
    parameters: ClassVar[Mapping[str, object]] = {"minutes": 345}
    needed_files = (_LOCALTIME,)

    def __init__(self, *, minutes: Sequence[int] = (60, 345, 840, -720)) -> None:
        super().__init__()
        self.minutes = tuple(_minutes(value) for value in minutes)

    def __repr__(self) -> str:
        return f"TimezoneChanged(minutes={self.minutes})"

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """One of the declared offsets."""
        return st.fixed_dictionaries({"minutes": st.sampled_from(self.minutes)})

    @classmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Move the machine; of several leases the last one holds."""
        del target
        minutes = _minutes(cls.complete(arguments)["minutes"])
        cls.own_etc(site)
        return _Moved(site, _zone(minutes), minutes)


def _how(name: object) -> str:
    if name not in _CODES:
        raise InvalidSpecification(f"a look-up fails in the way {', '.join(map(repr, _CODES))}, not {name!r}")
    return str(name)


def _delay(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST_DELAY_MS:
        raise InvalidSpecification(f"a look-up is 1 to {_MOST_DELAY_MS} whole milliseconds late, not {value!r}")
    return value


def _minutes(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < abs(value) <= _MOST_MINUTES:
        raise InvalidSpecification(
            f"a zone is 1 to {_MOST_MINUTES} whole minutes east or (negative) west, not {value!r}"
        )
    return value


def _zone(minutes: int) -> bytes:
    """A time zone with one offset for all time, as RFC 8536 has it."""
    name = b"COLOS\0"
    counts = (0, 0, 0, 0, 1, len(name))
    block = struct.pack(">iBB", minutes * 60, 0, 0) + name
    header = [struct.pack(">4sc15x6I", b"TZif", version, *counts) for version in (b"2", b"2")]
    hours, rest = divmod(abs(minutes), 60)
    # POSIX counts westward.
    footer = f"\nCOLOS{'-' if minutes > 0 else ''}{hours}:{rest:02}\n".encode()
    return header[0] + block + header[1] + block + footer


class _Bound(Lease):
    """Files bound over others for as long as the lease lasts."""

    mechanism = "bind-mount"

    def __init__(self, site: Site, files: Mapping[str, bytes]) -> None:
        self._overmounts = overmounts(site.sandbox)
        self._tickets: list[int] = []
        try:
            for path, data in files.items():
                self._tickets.append(self._overmounts.over(path, data))
        except BaseException:
            self.heal()
            raise

    def heal(self) -> None:
        for ticket in self._tickets:
            self._overmounts.off(ticket)

    def is_healed(self) -> bool:
        return not any(self._overmounts.is_shown(ticket) for ticket in self._tickets)


class _LookedUp(_Bound):
    """Look-ups go to a name server of the lease's own, and to nothing else."""

    def __init__(self, site: Site, known: Mapping[str, list[bytes]], code: int, delay_s: float, options: str) -> None:
        number = next(_ADDRESSES)
        address = f"127.53.{number >> 8 & 255}.{number & 255}"
        files = {_HOSTS: b"", _RESOLV: f"nameserver {address}\noptions {options}\n".encode()}
        if os.path.exists(_NSSWITCH):
            files[_NSSWITCH] = _only_files_and_dns()
        _, (server,) = site.sandbox.join(OpenResolver(address))
        self._resolver = Resolver(server, known, code, delay_s)
        super().__init__(site, files)

    def fired(self) -> str | None:
        return f"the name server was asked {self._resolver.asked} times" if self._resolver.asked else None

    def heal(self) -> None:
        try:
            super().heal()
        finally:
            self._resolver.close()

    def is_healed(self) -> bool:
        return super().is_healed() and self._resolver.closed()


def _only_files_and_dns() -> bytes:
    """The machine's nsswitch.conf without the ways around: resolved, mDNS, nss-myhostname."""
    with open(_NSSWITCH, "rb") as file:
        lines = [line for line in file.read().splitlines() if not line.lstrip().startswith(b"hosts:")]
    return b"\n".join([*lines, b"hosts: files dns", b""])


class _Moved(_Bound):
    """Another zone is what is seen at /etc/localtime."""

    def __init__(self, site: Site, zone: bytes, minutes: int) -> None:
        super().__init__(site, {_LOCALTIME: zone})
        self._proof = None
        (ticket,) = self._tickets
        with open(site.sandbox.outside(os.path.realpath(_LOCALTIME)), "rb") as file:
            if file.read() == zone and self._overmounts.is_shown(ticket):
                self._proof = f"/etc/localtime is {minutes} minutes east"

    def fired(self) -> str | None:
        return self._proof
