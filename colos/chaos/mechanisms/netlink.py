"""Netlink messages by hand: attributes, requests that are acknowledged, and dumps.

Sources: netlink(7), rtnetlink(7).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = [
    "NLM_F_ACK",
    "NLM_F_CREATE",
    "NLM_F_DUMP",
    "NLM_F_REPLACE",
    "NLM_F_REQUEST",
    "Message",
    "attribute",
    "attributes",
    "converse",
]

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_REPLACE = 0x100
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NESTED = 1 << 15
_TYPE_MASK = 0x3FFF  # without the flags for nesting and for byte order
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER = 1 << 16
_TIMEOUT_S = 5.0
_MOST_READS = 1000


@dataclass(frozen=True)
class Message:
    """One netlink message, without its header."""

    kind: int
    flags: int
    body: bytes


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def attribute(kind: int, value: bytes | str | Sequence[bytes]) -> bytes:
    """One attribute: bytes as they are, a string with its NUL, or a nest of attributes."""
    if isinstance(value, str):
        value = value.encode() + b"\0"
    elif not isinstance(value, bytes):
        value, kind = b"".join(value), kind | _NESTED
    return _padded(_ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in `data`, by kind."""
    while len(data) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(data)
        if size < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, data[_ATTRIBUTE.size : size]
        data = data[size + (-size % 4) :]


def converse(protocol: int, messages: Sequence[Message]) -> list[bytes]:
    """Send messages in one packet and give the bodies of what comes back before the last acknowledgement.

    A message with `NLM_F_ACK` or `NLM_F_DUMP` must be the last but those that ask for neither.
    Raises `OSError` with the first errno that the kernel gave.
    """
    packet, last = b"", 0
    for number, message in enumerate(messages, 1):
        size = _HEADER.size + len(message.body)
        packet += _padded(_HEADER.pack(size, message.kind, message.flags, number, 0) + message.body)
        if message.flags & (NLM_F_ACK | NLM_F_DUMP):
            last = number
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as channel:
        channel.settimeout(_TIMEOUT_S)
        channel.bind((0, 0))
        channel.send(packet)
        return _answers(channel, last)


def _answers(channel: socket.socket, last: int) -> list[bytes]:
    bodies: list[bytes] = []
    for _ in range(_MOST_READS):
        data = channel.recv(_BUFFER)
        while len(data) >= _HEADER.size:
            size, kind, _, number, _ = _HEADER.unpack_from(data)
            body = data[_HEADER.size : size]
            data = data[size + (-size % 4) :]
            if kind == _NLMSG_ERROR:
                (error,) = struct.unpack_from("=i", body)
                if error:
                    raise OSError(-error, f"netlink: {os.strerror(-error)}")
            elif kind != _NLMSG_DONE:
                bodies.append(body)
                continue
            if number == last:
                return bodies
    raise TimeoutError(f"netlink gave no end in {_MOST_READS} packets")
