"""The loopback of a network namespace: up and down, how fast it is, how late its packets arrive.

Never called in the host's own namespace: only by what has joined a sandbox's.

Sources: netdevice(7), rtnetlink(7), linux/pkt_sched.h, tc-tbf(8), tc-netem(8).
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from dataclasses import dataclass
from typing import Any

from colos.chaos.mechanisms import kernel
from colos.chaos.mechanisms.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    Message,
    attribute,
    attributes,
    converse,
)

__all__ = ["BURST", "DELAY", "RATE", "LinkState", "SetLink", "ShapeLink", "ShapeState", "probe", "probe_delay"]

_LO = "lo"
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1

#: What the queueing disciplines are called.
RATE, DELAY = "tbf", "netem"
#: How many bytes go through at full speed before the rate holds: a loopback's packet has up to 64 KiB.
BURST = (1 << 16) + 64

_NETLINK_ROUTE = 0
_NEW, _DELETE, _GET = 36, 37, 38
_ROOT = 0xFFFFFFFF
_RATE_HANDLE, _BELOW_RATE, _DELAY_HANDLE = 1 << 16, 1 << 16 | 1, 2 << 16
_KIND, _OPTIONS, _STATS2 = 1, 2, 7
_BASIC, _QUEUE = 1, 3
_TBF_PARAMETERS, _TBF_BURST = 1, 6
_ETHERNET = 1
_QUEUE_BYTES = 1 << 20
_QUEUE_PACKETS = 10_000
_TICK_NS = 64


@dataclass(frozen=True)
class LinkState:
    """Whether the loopback is up, and whether a datagram that is sent through it arrives."""

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Look, inside."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.bind(("127.0.0.1", 0))
            one.setblocking(False)
            up = bool(_flags(one) & _IFF_UP)
            try:
                one.sendto(b"?", one.getsockname())
                arrived = one.recv(1) == b"?"
            except OSError:  # ENETDOWN, or EAGAIN: nothing came
                arrived = False
        return (up, arrived), ()


@dataclass(frozen=True)
class SetLink:
    """Set the loopback up or down.  Its addresses stay."""

    up: bool

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Set it, inside."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            flags = _flags(control)
            flags = flags | _IFF_UP if self.up else flags & ~_IFF_UP
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", _LO.encode(), flags))
        return None, ()


def _flags(control: socket.socket) -> int:
    request = struct.pack("16sH14x", _LO.encode(), 0)
    return int(struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)[0])


@dataclass(frozen=True)
class ShapeLink:
    """Give the loopback this rate (bytes a second) and this delay of each packet; None: neither.

    What is on its way at this moment is lost.
    """

    rate: int | None = None
    delay_ms: float | None = None

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Shape it, inside."""
        try:
            _ask(_DELETE, 0, _ROOT, b"")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):  # there was none
                raise
        if self.rate is not None:
            _ask(_NEW, _RATE_HANDLE, _ROOT, _rate(self.rate))
        if self.delay_ms is not None:
            _ask(_NEW, _DELAY_HANDLE, _ROOT if self.rate is None else _BELOW_RATE, _delay(self.delay_ms))
        return None, ()


@dataclass(frozen=True)
class ShapeState:
    """The queueing disciplines that are there: by kind, how many packets went through and how many had to wait."""

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Look, inside."""
        request = Message(_GET, NLM_F_REQUEST | NLM_F_DUMP, _header(0, 0))
        found: dict[str, tuple[int, int]] = {}
        for answer in converse(_NETLINK_ROUTE, [request]):
            parts = dict(attributes(answer[20:]))
            name = parts[_KIND].rstrip(b"\0").decode()
            if name in (RATE, DELAY):
                stats = dict(attributes(parts.get(_STATS2, b"")))
                packets = struct.unpack_from("=QI", stats.get(_BASIC, bytes(12)))[1]
                found[name] = (packets, struct.unpack_from("=5I", stats.get(_QUEUE, bytes(20)))[4])
        return found, ()


def _header(handle: int, parent: int) -> bytes:
    return struct.pack("=BxxxiIII", socket.AF_UNSPEC, socket.if_nametoindex(_LO), handle, parent, 0)


def _ask(kind: int, handle: int, parent: int, options: bytes) -> None:
    flags = NLM_F_REQUEST | NLM_F_ACK | (NLM_F_CREATE | NLM_F_REPLACE if kind == _NEW else 0)
    converse(_NETLINK_ROUTE, [Message(kind, flags, _header(handle, parent) + options)])


def _rate(rate: int) -> bytes:
    specification = struct.pack("=BBHhHI", 0, _ETHERNET, 0, 0, 0, rate)
    parameters = specification + bytes(12) + struct.pack("=III", _QUEUE_BYTES, 0, 0)
    burst = attribute(_TBF_BURST, struct.pack("=I", BURST))
    return attribute(_KIND, RATE) + attribute(_OPTIONS, [attribute(_TBF_PARAMETERS, parameters), burst])


def _delay(delay_ms: float) -> bytes:
    ticks = int(delay_ms * 1_000_000) // _TICK_NS
    return attribute(_KIND, DELAY) + attribute(_OPTIONS, struct.pack("=6I", ticks, _QUEUE_PACKETS, 0, 0, 0, 0))


def probe() -> str | None:
    """Slow a throwaway network namespace of this (single-threaded) process's own down; why it cannot be, else None."""
    return _probe(ShapeLink(rate=1 << 20), RATE)


def probe_delay() -> str | None:
    """The same for a delay."""
    return _probe(ShapeLink(delay_ms=1), DELAY)


def _probe(shape: ShapeLink, name: str) -> str | None:
    try:
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNET)
        kernel.loopback_up()
        shape()
        found, _ = ShapeState()()
    except OSError as error:
        if error.errno == errno.ENOENT:
            return f"this kernel has no sch_{name}"
        return f"a network namespace's loopback cannot be shaped with sch_{name}: {error.strerror}"
    return None if name in found else f"sch_{name} was asked for, but the kernel shows {sorted(found) or 'nothing'}"
