"""A full disk for the `bare` tier: trapped calls, served by the keeper's poll loop.

The program's process installs the filter before it becomes the program; the listener comes to
the keeper by descriptor passing.  Everything the program forks inherits the filter.
"""

from __future__ import annotations

import os
import select
import socket
from dataclasses import dataclass, field
from typing import Any

from colos.chaos.mechanisms.diskcalls import CREATING
from colos.chaos.mechanisms.diskquota import TRAPS, DiskQuota
from colos.chaos.mechanisms.diskusage import BLOCK, Tree
from colos.chaos.mechanisms.syscalls import Listener, Notification, install
from colos.chaos.sandbox import wire

__all__ = ["DiskTrap"]

_HANDOVER_S = 5.0


class DiskTrap:
    """The quota on one data directory, the leases that limit it, and the listeners of every start.

    Several leases may hold at once and end in any order: of each resource the tightest counts.
    """

    def __init__(self, data: str) -> None:
        self._quota = DiskQuota(data)
        self._tree = Tree(os.path.realpath(data))
        self._leases: dict[int, _Held] = {}
        self._listeners: dict[int, Listener] = {}
        self._poll: select.poll | None = None

    def prepare(self) -> tuple[socket.socket, socket.socket]:
        """Before the fork: the pair through which the listener will come."""
        return wire.pair()

    def install(self, handover: tuple[socket.socket, socket.socket]) -> None:
        """In the child: trap, and pass the listener up."""
        ours, theirs = handover
        ours.close()
        listener = install(TRAPS)
        wire.send(theirs, "listener", (listener,))
        theirs.close()
        os.close(listener)

    def accept(self, handover: tuple[socket.socket, socket.socket], poll: select.poll) -> None:
        """In the keeper: take the listener, or notice that the child died first."""
        ours, theirs = handover
        theirs.close()
        with ours:
            ours.settimeout(_HANDOVER_S)
            received = wire.receive(ours)
        for descriptor in received[1] if received is not None else ():
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
                self._handle(listener, notification)
        elif self._poll is not None:
            self._poll.unregister(descriptor)
            del self._listeners[descriptor]
            listener.close()

    def _handle(self, listener: Listener, notification: Notification) -> None:
        self._tree.saw(notification.pid)
        before = dict(self._quota.hits)
        self._quota.handle(listener, notification)
        resource = "inodes" if notification.call in CREATING else "bytes"
        for name, count in self._quota.hits.items():
            new = count - before.get(name, 0)
            if new:
                for lease in self._leases.values():
                    if lease.resource == resource:
                        lease.hits[name] = lease.hits.get(name, 0) + new

    def answer(self, request: tuple[Any, ...]) -> Any:
        """What the disk-full fault asks of the keeper."""
        match request:
            case ("hold", name, resource, free):
                self._leases[name] = _Held(resource, self._used()[resource] + free)
                self._apply()
                return None
            case ("release", name):
                if self._leases.pop(name, None) is not None:
                    self._apply()
                return None
            case ("hits", name):
                lease = self._leases.get(name)
                return dict(lease.hits) if lease is not None else None
        return f"unknown request {request!r}"

    def _used(self) -> dict[str, int]:
        sizes = self._tree.measure()
        return {"bytes": sum(sizes.values()) * BLOCK, "inodes": len(sizes)}

    def _apply(self) -> None:
        """Limit each resource to the tightest of the leases that hold it."""
        if not self._leases:
            self._quota.lift()
            return
        used, free = self._used(), {}
        for resource, now in used.items():
            caps = [lease.cap for lease in self._leases.values() if lease.resource == resource]
            free[resource] = max(0, min(caps) - now) if caps else None
        self._quota.limit(bytes_free=free["bytes"], inodes_free=free["inodes"])


@dataclass
class _Held:
    """One lease's limit: no more of the resource than `cap` in all, and how often that was felt."""

    resource: str
    cap: int
    hits: dict[str, int] = field(default_factory=dict)
