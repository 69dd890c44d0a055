"""A live process's own sockets: what they are connected to, and how to end a connection under its hands.

A descriptor is duplicated out of the process (pidfd_getfd(2): ptrace rights, see `rawcalls`); what is
done to the duplicate is done to the one socket behind both.  Nothing here sets a flag on it, as a
`socket.socket` around it could.

Sources: connect(2) ("connectionless ... AF_UNSPEC"), tcp(7), unix(7), shutdown(2), socket(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from colos.chaos.mechanisms.rawcalls import LIBC, call

__all__ = ["TCP", "UNIX", "Ending", "Socket", "end_connection", "probe", "sockets_of"]

TCP, UNIX = "tcp", "unix"

_LISTEN, _CLOSE = 10, 7  # TCP's states, net/tcp_states.h
_OPEN = {1: "established", 2: "opening", 3: "opening", 4: "half closed", 5: "half closed", 8: "half closed"}
_NAME_BYTES = 128
_UNSPECIFIED = struct.pack("=H14x", socket.AF_UNSPEC)
_GONE = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True)
class Socket:
    """One socket of a process.  Ports are TCP's; `named` says that one end of a Unix connection has a path."""

    descriptor: int
    inode: int
    protocol: str
    listening: bool
    connected: bool
    local_port: int = 0
    remote_port: int = 0
    named: bool = False
    peer_pid: int = 0


@dataclass(frozen=True)
class Ending:
    """What ending a connection changed."""

    before: str
    after: str


def sockets_of(pid: int, pidfd: int) -> list[Socket]:
    """The stream sockets of a process, each once, by descriptor.  Empty when it is gone.

    Raises `PermissionError` when this user may not look into it.
    """
    found: dict[int, Socket] = {}
    for descriptor, inode in _inodes(pid):
        if inode not in found:
            with _duplicate(pidfd, descriptor) as ours:
                described = None if ours is None else _describe(ours, descriptor, inode)
            if described is not None:
                found[inode] = described
    return list(found.values())


def end_connection(pidfd: int, wanted: Socket) -> Ending | None:
    """Reset a TCP connection, shut a Unix one down; None when it was over already.

    TCP: both ends get ECONNRESET (connect(2) to AF_UNSPEC drops the connection and sends a reset).
    Unix: both ends read end-of-file and write EPIPE; the kernel has no reset for those.
    """
    with _duplicate(pidfd, wanted.descriptor) as ours:
        if ours is None or os.fstat(ours).st_ino != wanted.inode:
            return None
        if wanted.protocol == TCP:
            return _reset(ours)
        return _shut_down(ours)


def probe() -> str | None:
    """Whether a child's socket can be duplicated and reset; why not, else None."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as near:
        near.connect(server.getsockname())
        child = os.fork()
        if child == 0:
            signal.pause()
        pidfd = os.pidfd_open(child)
        try:
            tcp = [one for one in sockets_of(child, pidfd) if one.connected]
            ended = [end_connection(pidfd, one) for one in tcp]
        except OSError as error:
            return f"a process's sockets cannot be taken out of it: {error.strerror}"
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(pidfd)
    return None if any(ended) else "a TCP connection was reset and stands still"


# --- underneath -----------------------------------------------------------------------------


def _inodes(pid: int) -> Iterator[tuple[int, int]]:
    try:
        names = sorted(os.listdir(f"/proc/{pid}/fd"), key=int)
    except _GONE:
        return
    for name in names:
        try:
            link = os.readlink(f"/proc/{pid}/fd/{name}")
        except _GONE:
            continue
        if link.startswith("socket:["):
            yield int(name), int(link[8:-1])


@contextmanager
def _duplicate(pidfd: int, descriptor: int) -> Iterator[int | None]:
    """A duplicate of a process's descriptor; None when the process or the descriptor is gone."""
    try:
        ours = call("pidfd_getfd", pidfd, descriptor, 0)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.ESRCH):
            raise
        yield None
        return
    try:
        yield ours
    finally:
        os.close(ours)


def _describe(ours: int, descriptor: int, inode: int) -> Socket | None:
    if _option(ours, socket.SO_TYPE) != socket.SOCK_STREAM:
        return None
    family = _option(ours, socket.SO_DOMAIN)
    if family in (socket.AF_INET, socket.AF_INET6) and _option(ours, socket.SO_PROTOCOL) == socket.IPPROTO_TCP:
        state = _tcp_state(ours)
        local, remote = _name(LIBC.getsockname, ours), _name(LIBC.getpeername, ours)
        return Socket(descriptor, inode, TCP, state == _LISTEN, state in _OPEN, _port(local), _port(remote))
    if family == socket.AF_UNIX:
        listening = bool(_option(ours, socket.SO_ACCEPTCONN))
        local, remote = _name(LIBC.getsockname, ours), _name(LIBC.getpeername, ours)
        named = len(local) > 2 or len(remote) > 2
        peer = struct.unpack("=iII", _option_bytes(ours, socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return Socket(descriptor, inode, UNIX, listening, bool(remote) and _speaks(ours), named=named, peer_pid=peer)
    return None


def _reset(ours: int) -> Ending | None:
    before = _tcp_state(ours)
    if before not in _OPEN:
        return None
    address = ctypes.create_string_buffer(_UNSPECIFIED, len(_UNSPECIFIED))
    if LIBC.connect(ours, address, len(_UNSPECIFIED)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"connect(AF_UNSPEC): {os.strerror(code)}")
    after = _tcp_state(ours)
    return Ending(_OPEN[before], "closed") if after == _CLOSE else None


def _shut_down(ours: int) -> Ending | None:
    if not _speaks(ours):
        return None
    if LIBC.shutdown(ours, socket.SHUT_RDWR) < 0:
        code = ctypes.get_errno()
        if code == errno.ENOTCONN:
            return None
        raise OSError(code, f"shutdown: {os.strerror(code)}")
    return None if _speaks(ours) else Ending("connected", "shut down")


def _speaks(ours: int) -> bool:
    """Whether a Unix stream is connected and open in at least one direction.  poll(2)."""
    look = select.poll()
    look.register(ours, select.POLLOUT)
    return not any(event & select.POLLHUP for _, event in look.poll(0))


def _tcp_state(ours: int) -> int:
    return _option_bytes(ours, socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def _option(ours: int, option: int) -> int:
    return int(struct.unpack("=i", _option_bytes(ours, socket.SOL_SOCKET, option, 4))[0])


def _option_bytes(ours: int, level: int, option: int, size: int) -> bytes:
    buffer, length = ctypes.create_string_buffer(size), ctypes.c_uint32(size)
    if LIBC.getsockopt(ours, level, option, buffer, ctypes.byref(length)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"getsockopt: {os.strerror(code)}")
    return buffer.raw


def _name(function: Callable[..., int], ours: int) -> bytes:
    """What getsockname(2) or getpeername(2) says, as bytes; empty where there is no peer."""
    buffer, length = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_uint32(_NAME_BYTES)
    if function(ours, buffer, ctypes.byref(length)) < 0:
        return b""
    return buffer.raw[: min(length.value, _NAME_BYTES)]


def _port(name: bytes) -> int:
    return int(struct.unpack_from(">H", name, 2)[0]) if len(name) >= 4 else 0
