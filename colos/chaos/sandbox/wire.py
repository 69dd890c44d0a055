"""How the harness's own processes talk: one packet a message, descriptors beside it.

SOCK_SEQPACKET keeps message boundaries and says end-of-file when the peer is gone, whatever
killed it; that end-of-file is the lifeline of every process here (DESIGN law 5).
"""

from __future__ import annotations

import os
import pickle
import select
import socket
from array import array
from typing import Any

__all__ = ["LARGEST_MESSAGE", "pair", "readable", "receive", "send"]

LARGEST_MESSAGE = 128 * 1024
_MOST_DESCRIPTORS = 4
_DESCRIPTOR = array("i")


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends; both close on exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def readable(descriptor: socket.socket | int, timeout_s: float) -> bool:
    """Wait until there is something to read, or an end; False at the deadline."""
    poll = select.poll()  # select(2) knows no descriptor above 1023, and pytest may have more
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


def send(channel: socket.socket, message: object, descriptors: tuple[int, ...] = ()) -> None:
    """Send one message.

    Raises `OSError` when the peer is gone, `ValueError` when the message is too large for a packet.
    """
    packet = pickle.dumps(message, protocol=5)
    if len(packet) > LARGEST_MESSAGE:
        raise ValueError(f"a harness message of {len(packet)} bytes is over the {LARGEST_MESSAGE} that fit a packet")
    socket.send_fds(channel, [packet], list(descriptors))


def receive(channel: socket.socket) -> tuple[Any, list[int]] | None:
    """The next message and its descriptors, or None when the peer is gone."""
    try:
        # Close-on-exec from the first instant: what a program inherits, it keeps for ever.
        # (socket.recv_fds takes flags and ignores them.)
        packet, ancillary, flags, _ = channel.recvmsg(
            LARGEST_MESSAGE, socket.CMSG_SPACE(_MOST_DESCRIPTORS * _DESCRIPTOR.itemsize), socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:
        return None
    if not packet:
        return None
    descriptors = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % _DESCRIPTOR.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for descriptor in descriptors:
            os.close(descriptor)
        raise ValueError("a harness message arrived cut short")
    return pickle.loads(packet), list(descriptors)
