"""Leaks of a running system: descriptors, and sockets that nobody is at the other end of."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

from colos.chaos.looking import SETTLE_S, listed, named, until
from colos.chaos.mechanisms.sockdiag import OpenDiag, closed_by_peer, open_diag
from colos.chaos.properties import Violation
from colos.chaos.sandbox.handle import Sandbox
from colos.chaos.sandbox.processes import Process
from colos.chaos.sandbox.spec import NAMESPACES

__all__ = ["DESCRIPTOR_SLACK", "SOCKET_SLACK", "DescriptorCount", "dead_sockets"]

#: How many descriptors a process may keep more than it had when it was first quiet: caches and
#: lazily opened files are not leaks; one descriptor a request is, after a few requests.
DESCRIPTOR_SLACK = 16
#: How many dead sockets a process may keep: a pool notices a lost connection when it is next used.
SOCKET_SLACK = 4
_CLOSE_WAIT = "08"  # include/net/tcp_states.h, in hexadecimal as proc(5) shows it
_PAUSE_S = 0.02  # /proc/net/tcp walks the kernel's whole table: some ms


class DescriptorCount:
    """How many descriptors each process had when it was first seen quiet, against the end."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._first: dict[tuple[int, int], int] = {}

    def look(self, processes: list[Process] | None = None) -> None:
        """Remember every process that is new."""
        for process in self._sandbox.processes() if processes is None else processes:
            key = (process.pid, process.start_time)
            if key not in self._first:
                count = _open_descriptors(process.pid)
                if count is not None:
                    self._first[key] = count

    def grown(self, slack: int) -> list[tuple[Process, int, int]]:
        """The processes that hold more than `slack` more than they did: with how many, then and now."""
        found = []
        for process in self._sandbox.processes():
            first = self._first.get((process.pid, process.start_time))
            now = _open_descriptors(process.pid)
            if first is not None and now is not None and now > first + slack:
                found.append((process, first, now))
        return found

    def leak(self) -> Violation | None:
        """A process that holds many more than it did, and goes on holding them."""
        grown: list[tuple[Process, int, int]] = []

        def none_left() -> bool:
            grown[:] = self.grown(DESCRIPTOR_SLACK)
            return not grown

        if until(none_left):
            return None
        said = listed(f"{named(process)}: {first} → {now}" for process, first, now in grown)
        return Violation("builtin:no_descriptor_leak", f"open descriptors grew and stayed: {said}")


def _open_descriptors(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # it has just ended, or has made itself undumpable


def dead_sockets(sandbox: Sandbox, count: DescriptorCount) -> Violation | None:
    """A process that keeps sockets whose other end is closed.

    A connection that lives at both ends is nobody's leak: pools keep them, and so does the runtime, one for each
    pair of actors.  (One more for each request is: `DescriptorCount.leak` counts those.)  But a socket whose
    peer has closed can never be used again.  A server closes it when it reads the end of file, at once; a pool when
    the connection is next wanted.  So it is a leak when one process keeps more than `SOCKET_SLACK` of them for a
    second in a system that is healed and quiet: TCP sockets in CLOSE_WAIT, Unix sockets without a peer.

    A half-closed connection (the peer still reads) is left alone in Unix sockets; TCP cannot tell it from a
    closed one, and a second with nothing to do is long for it.  A socket file that stays is no leak: the next
    start takes it over.  Only processes whose descriptors grew are looked at, so that a good system pays nothing.
    """
    if not count.grown(SOCKET_SLACK):
        return None
    kept: dict[tuple[int, int], tuple[Process, dict[int, str]]] = {}
    with _Ends(sandbox) as ends:
        first = True

        def none_left() -> bool:
            nonlocal first
            dead, known = ends.dead(), dict(kept)
            kept.clear()
            for process, *_ in count.grown(SOCKET_SLACK) if dead else ():
                key = (process.pid, process.start_time)
                held = {inode: dead[inode] for inode in _sockets(process.pid) if inode in dead}
                if not first:  # only those that stay count: a busy server has new ones at every look
                    held = {inode: text for inode, text in held.items() if key in known and inode in known[key][1]}
                if len(held) > SOCKET_SLACK:
                    kept[key] = (process, held)
            first = False
            return not kept

        if until(none_left, pause_s=_PAUSE_S):
            return None
    said = "; ".join(
        f"{named(process)} holds {len(held)} sockets whose other end is closed: "
        f"{listed(f'{text} (inode {inode})' for inode, text in sorted(held.items()))}"
        for process, held in kept.values()
    )
    return Violation("builtin:no_socket_leak", f"{said}; unchanged for {SETTLE_S:g} s after healing")


def _sockets(pid: int) -> Iterator[int]:
    """The inodes of the sockets that a process has descriptors of."""
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                link = os.readlink(f"/proc/{pid}/fd/{name}")
            except FileNotFoundError:
                continue  # closed meanwhile
            if link.startswith("socket:["):
                yield int(link[8:-1])
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return


class _Ends(ExitStack):
    """The sockets of a sandbox whose other end is closed, as the kernel's tables have them."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__()
        self._sandbox = sandbox
        self._diags: list[socket.socket] = []
        try:
            # A socket accepted from a client of ours belongs to our namespace: it is made with the client's.
            self._diags.append(self.enter_context(open_diag()))
            if sandbox.tier == NAMESPACES:
                _, descriptors = sandbox.join(OpenDiag())
                inside = self.enter_context(socket.socket(fileno=descriptors[0]))
                inside.settimeout(1.0)
                self._diags.append(inside)
        except OSError:
            pass  # a kernel without sock_diag: TCP only

    def dead(self) -> dict[int, str]:
        """What each is, by inode."""
        found: dict[int, str] = {}
        for diag in self._diags:
            try:
                for inode, name in closed_by_peer(diag).items():
                    found[inode] = f"Unix socket at {name}" if name else "Unix socket without a name"
            except OSError:
                continue  # a kernel without unix_diag
        for table in ("tcp", "tcp6"):
            found.update(_close_wait(f"/proc/{self._sandbox.keeper}/net/{table}"))
        return found


def _close_wait(table: str) -> dict[int, str]:
    try:
        with open(table) as file:
            rows = [line.split() for line in file.readlines()[1:]]
    except OSError:
        return {}  # no IPv6 here
    return {
        int(row[9]): f"TCP {_port(row[1])} ← {_port(row[2])} in CLOSE_WAIT" for row in rows if row[3] == _CLOSE_WAIT
    }


def _port(address: str) -> str:
    return f"port {int(address.rpartition(':')[2], 16)}"
