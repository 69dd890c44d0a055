"""A full disk for the `bare` tier: trapped calls, served by the keeper's poll loop.

The program's process installs the filter before it becomes the program; the listener comes to
the keeper by descriptor passing.  Everything the program forks inherits the filter.
"""

from __future__ import annotations

import os
import select
import socket
from typing import Any

from colos.chaos.mechanisms.diskquota import TRAPS, DiskQuota
from colos.chaos.mechanisms.syscalls import Listener, install

__all__ = ["DiskTrap"]

_HANDOVER_S = 5.0


class DiskTrap:
    """The quota on one data directory, and the listeners of every start of the program."""

    def __init__(self, data: str) -> None:
        self._quota = DiskQuota(data)
        self._listeners: dict[int, Listener] = {}
        self._poll: select.poll | None = None

    def prepare(self) -> tuple[socket.socket, socket.socket]:
        """Before the fork: the pair through which the listener will come."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def install(self, handover: tuple[socket.socket, socket.socket]) -> None:
        """In the child: trap, and pass the listener up."""
        ours, theirs = handover
        ours.close()
        listener = install(TRAPS)
        socket.send_fds(theirs, [b"l"], [listener])
        theirs.close()
        os.close(listener)

    def accept(self, handover: tuple[socket.socket, socket.socket], poll: select.poll) -> None:
        """In the keeper: take the listener, or notice that the child died first."""
        ours, theirs = handover
        theirs.close()
        with ours:
            ours.settimeout(_HANDOVER_S)
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        for descriptor in descriptors:
            listener = Listener(descriptor)
            self._listeners[listener.fileno()] = listener
            poll.register(listener.fileno(), select.POLLIN)
        self._poll = poll

    def serve(self, descriptor: int, event: int) -> None:
        """One trapped call; a listener whose last process is gone is let go."""
        listener = self._listeners[descriptor]
        if event & select.POLLIN:
            notification = listener.receive()
            if notification is not None:
                self._quota.handle(listener, notification)
        elif self._poll is not None:
            self._poll.unregister(descriptor)
            del self._listeners[descriptor]
            listener.close()

    def answer(self, request: tuple[Any, ...]) -> Any:
        """What the disk-full fault asks of the keeper."""
        match request:
            case ("limit", bytes_free, inodes_free):
                self._quota.limit(bytes_free=bytes_free, inodes_free=inodes_free)
                return None
            case ("lift",):
                self._quota.lift()
                return None
            case ("hits",):
                return dict(self._quota.hits)
        return f"unknown request {request!r}"
