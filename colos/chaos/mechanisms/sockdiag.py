"""Which Unix sockets have lost their other end, as the kernel's socket monitoring tells it.

/proc/net/unix calls such a socket connected still.  A netlink socket answers for the network
namespace that it was made in, wherever it is passed; no privilege is needed.
Sources: sock_diag(7), netlink(7), linux/unix_diag.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["OpenDiag", "closed_by_peer", "open_diag", "probe"]

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST_DUMP = 0x301
_TCP_ESTABLISHED = 1
_UDIAG_SHOW_NAME = 1
_UNIX_DIAG_NAME, _UNIX_DIAG_SHUTDOWN = 0, 6
_SHUTDOWN_BOTH = 3  # what the kernel sets on a socket when its peer is closed
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_ENTRY = struct.Struct("=BBBBI8x")
_ATTRIBUTE = struct.Struct("=HH")
_ANSWER_S = 1.0
_MOST_BYTES = 1 << 16
_MOST_PARTS = 4096  # a bound on one answer: some 2 million sockets


def open_diag() -> socket.socket:
    """A netlink socket that answers for this process's network namespace.  Raises `OSError`."""
    diag = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    diag.settimeout(_ANSWER_S)
    return diag


@dataclass(frozen=True)
class OpenDiag:
    """Make the netlink socket inside a sandbox, and pass it out."""

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Make it, inside."""
        return None, (open_diag().detach(),)


def probe() -> str | None:
    """None where the kernel tells of Unix sockets; else the reason why not."""
    try:
        with open_diag() as diag:
            closed_by_peer(diag)
    except OSError as error:
        return f"the kernel does not tell of Unix sockets (sock_diag(7)): {error.strerror or error}"
    return None


def closed_by_peer(diag: socket.socket) -> dict[int, str]:
    """Each connected Unix socket whose other end is closed: its inode, and the name it is bound to.  Raises `OSError`.

    One that was shut down in both directions by its own process is told too: it is of no more use.
    """
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, 1 << _TCP_ESTABLISHED, 0, _UDIAG_SHOW_NAME, 0, 0)
    diag.send(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0) + request)
    found: dict[int, str] = {}
    for part in _parts(diag):
        inode = _ENTRY.unpack_from(part)[4]
        attributes = dict(_attributes(part[_ENTRY.size :]))
        if attributes.get(_UNIX_DIAG_SHUTDOWN) == bytes([_SHUTDOWN_BOTH]):
            name = attributes.get(_UNIX_DIAG_NAME, b"")
            found[inode] = name.replace(b"\0", b"@" if name.startswith(b"\0") else b"").decode(errors="replace")
    return found


def _parts(diag: socket.socket) -> Iterator[bytes]:
    for _ in range(_MOST_PARTS):
        answer = diag.recv(_MOST_BYTES)
        at = 0
        while at + _HEADER.size <= len(answer):
            length, kind, *_ = _HEADER.unpack_from(answer, at)
            body = answer[at + _HEADER.size : at + length]
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", body)[0]
                raise OSError(number, os.strerror(number))
            yield body
            at += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
