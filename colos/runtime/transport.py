"""Framed Unix-socket streams, bounded mailboxes, backpressure.

Sending tries the system call first and waits only when the kernel's buffer is full; receiving
waits for readability, then drains.  A frame is handed over whole or not at all: what the kernel
does not take at once lies in the connection's outbox, so that cancelling a sender never tears a
frame apart.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import anyio
import anyio.lowlevel

from colos.runtime import process
from colos.runtime.message import Frame, Parser, Parts, ProtocolError

Spawn = Callable[..., object]
"""Starts a background task, as an anyio task group's `start_soon` does."""

SOCKET_NAME: Final = "sock"
OUTBOX_BYTES_MAX: Final = 256 << 10
"""A sender waits while more than this is on its way."""
REPLY_BYTES_MAX: Final = 128 << 20
"""A client that lets more than this pile up in answers is cut off: it must not stop the actor."""
_READ_BYTES: Final = 256 << 10
_BACKLOG: Final = 128
_PARTS_MAX: Final = 1024
"""Linux's IOV_MAX: what one system call takes."""
_READS_IN_A_ROW: Final = 8
_PEEK_BYTES: Final = 4096
_ADDRESS_BYTES_MAX: Final = 100
_PAUSE_S: Final = (0.02, 0.5)
"""How long accepting pauses when there is no descriptor left: at first, and at most."""
_O_PATH: Final = getattr(os, "O_PATH", 0o10000000)
_SO_PEERCRED: Final = getattr(socket, "SO_PEERCRED", 17)
"""Linux's numbers, which PyPy's modules leave out."""
_OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class BrokenConnectionError(Exception):
    """The other side is gone; nothing of the frame that was being handed over has left."""


# --- addresses ---------------------------------------------------------------------------


@contextmanager
def _address(directory: str) -> Iterator[str]:
    """An address for `directory`/sock that fits into sockaddr_un however long the directory's path is."""
    path = f"{directory}/{SOCKET_NAME}"
    if len(os.fsencode(path)) <= _ADDRESS_BYTES_MAX:
        yield path
        return
    descriptor = os.open(directory, _O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)


def listen(directory: str) -> socket.socket:
    """A non-blocking listening socket at `directory`/sock.  The directory keeps other users out (0700)."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _address(directory) as address:
            listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(directory: str) -> socket.socket:
    """A connection to `directory`/sock, at once.

    Raises FileNotFoundError or ConnectionRefusedError when nothing listens, BlockingIOError when
    the listener's backlog is full.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        with _address(directory) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def _same_user(connection: socket.socket) -> bool:
    # Only the uid means anything: between pid namespaces the pid does not.
    credentials = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == os.geteuid())


# --- streams -----------------------------------------------------------------------------


class Connection:
    """A framed stream over a connected non-blocking socket.

    One task receives; any task posts.  `posted` counts the frames handed over.
    """

    def __init__(self, connected: socket.socket, spawn: Spawn, outbox_bytes_max: int = REPLY_BYTES_MAX) -> None:
        connected.setblocking(False)
        self.posted = 0
        self.closed = False
        self._socket = connected
        self._spawn = spawn
        self._parser = Parser()
        self._outbox: deque[memoryview] = deque()
        self._outbox_bytes = 0
        self._outbox_bytes_max = outbox_bytes_max
        self._flushing = False
        self._reads = 0
        self._moved = anyio.Event()

    def post(self, frame: bytes | Parts) -> None:
        """Hand over a frame, which is then on its way; never waits.  Raises BrokenConnectionError."""
        if self.closed:
            raise BrokenConnectionError
        self.posted += 1
        parts: Parts = (frame,) if isinstance(frame, bytes) else frame
        if self._outbox:
            if self._outbox_bytes > self._outbox_bytes_max:
                self.close()
                raise BrokenConnectionError
            self._enqueue(parts, 0)
            return
        sent = self._try_send(parts)
        if len(parts) > 1 or sent < len(parts[0]):
            self._enqueue(parts, sent)

    def post_now(self, frame: bytes | Parts) -> bool:
        """Hand over a frame if the kernel takes some of it at once; else False, and nothing was sent."""
        if self.closed:
            raise BrokenConnectionError
        if self._outbox:
            return False
        parts: Parts = (frame,) if isinstance(frame, bytes) else frame
        sent = self._try_send(parts)
        if sent:
            self.posted += 1
            self._enqueue(parts, sent)
        return sent > 0

    async def room(self) -> None:
        """Wait until the outbox has room (or the connection is closed)."""
        while self._outbox_bytes > OUTBOX_BYTES_MAX and not self.closed:
            await self._moved.wait()

    async def flushed(self) -> None:
        """Wait until everything posted is in the kernel's hands (or the connection is closed)."""
        while self._outbox and not self.closed:
            await self._moved.wait()

    @property
    def full(self) -> bool:
        """Whether a sender should wait for `room()`."""
        return self._outbox_bytes > OUTBOX_BYTES_MAX

    def _try_send(self, parts: Parts) -> int:
        try:
            if len(parts) == 1:
                return self._socket.send(parts[0])
            return self._socket.sendmsg(parts[:_PARTS_MAX])
        except BlockingIOError:
            return 0
        except OSError as error:
            self.close_sending()
            raise BrokenConnectionError from error

    def _enqueue(self, parts: Parts, sent: int) -> None:
        """Keep what the kernel has not taken of a frame."""
        for part in parts:
            if sent >= len(part):
                sent -= len(part)
                continue
            rest = memoryview(part)[sent:]
            if not rest.readonly:  # its author goes on with it, and what was posted must not change
                rest = memoryview(bytes(rest))
            sent = 0
            self._outbox.append(rest)
            self._outbox_bytes += len(rest)
        if self._outbox and not self._flushing:
            self._flushing = True
            self._spawn(self._flush)

    async def _flush(self) -> None:
        try:
            while self._outbox and not self.closed:
                first = self._outbox[0]
                sent = self._try_send((first,))
                if sent == 0:
                    await anyio.wait_writable(self._socket)
                    continue
                self._outbox_bytes -= sent
                if sent == len(first):
                    self._outbox.popleft()
                else:
                    self._outbox[0] = first[sent:]
                self._wake()
        except (BrokenConnectionError, anyio.ClosedResourceError):
            # Whoever receives on this connection sees its end and tells those who wait for an answer.
            pass
        finally:
            self._flushing = False

    def close_sending(self) -> None:
        """Give up what is in the outbox; what the other side still says can be received."""
        self._outbox.clear()
        self._outbox_bytes = 0
        self._wake()

    def _wake(self) -> None:
        moved, self._moved = self._moved, anyio.Event()
        moved.set()

    async def receive(self) -> list[Frame]:
        """The next frames, one at least.  Raises EOFError at the end, ProtocolError on garbage."""
        while not self.closed:
            self._reads += 1
            if self._reads % _READS_IN_A_ROW == 0:
                await anyio.lowlevel.checkpoint()  # whoever sends without end must not have this process to himself
            try:
                frames = self.receive_now()
            except BlockingIOError:
                try:
                    await anyio.wait_readable(self._socket)
                except anyio.ClosedResourceError:
                    break
                continue
            if frames:
                return frames
        raise EOFError

    def receive_now(self) -> list[Frame]:
        """One read's worth of frames, perhaps none yet.  BlockingIOError: nothing to read; EOFError: the end."""
        room = self._parser.pending()
        try:
            if room is not None:
                count = self._socket.recv_into(room)
                if count:
                    return self._parser.filled(count)
                raise EOFError
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            raise
        except OSError as error:
            # ECONNRESET: the other side died with our messages unread.  What it sent before came first.
            raise EOFError from error
        if not data:
            raise EOFError
        return self._parser.feed(data)

    def peek(self) -> bytes:
        """What comes next, left where it is; empty if nothing is here yet, or it has ended."""
        try:
            return self._socket.recv(_PEEK_BYTES, socket.MSG_PEEK)
        except OSError:  # nothing to read, or its end: who receives meets it
            return b""

    def close(self) -> None:
        """Close at once; tasks that wait on this connection are told."""
        if self.closed:
            return
        self.closed = True
        self.close_sending()
        anyio.notify_closing(self._socket)
        self._socket.close()

    def detach(self) -> socket.socket:
        """Give the socket away, still open; this connection is then a closed one."""
        self.closed = True
        self.close_sending()
        anyio.notify_closing(self._socket)
        return socket.socket(fileno=self._socket.detach())

    def close_after_fork(self) -> None:
        """Drop the descriptor in a process forked from this one, where no event loop may be touched."""
        self._socket.close()


class Listener:
    """Accepts connections of the same user for as long as its task runs.

    Out of descriptors it pauses and goes on: a pending connection waits in the backlog, and the
    listening socket stays readable, so without a pause this would spin.
    """

    def __init__(
        self,
        listening: socket.socket,
        spawn: Spawn,
        serve: Callable[[Connection], Awaitable[None]],
        accepted: Callable[[Connection], None] | None = None,
    ) -> None:
        """`serve` is a task for each connection; `accepted`, called at once, sees it first."""
        self._socket = listening
        self._spawn = spawn
        self._serve = serve
        self._accepted = accepted

    async def run(self) -> None:
        """Accept until cancelled."""
        pause_s = _PAUSE_S[0]
        while True:
            try:
                accepted, _ = self._socket.accept()
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
                continue
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    if error.errno in (errno.ECONNABORTED, errno.EINTR):
                        continue
                    raise
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_S[1])
                continue
            pause_s = _PAUSE_S[0]
            self._take(accepted)

    def accept_now(self) -> None:
        """Take in who has connected by now; what a dead process sent may still wait there."""
        try:
            while True:
                self._take(self._socket.accept()[0])
        except OSError:  # nobody else waits, or no descriptor is left: then it waits on
            pass

    def _take(self, accepted: socket.socket) -> None:
        if _same_user(accepted):
            connection = Connection(accepted, self._spawn)
            self._spawn(self._attend, connection)
            if self._accepted is not None:
                self._accepted(connection)
        else:
            accepted.close()

    async def _attend(self, connection: Connection) -> None:
        try:
            await self._serve(connection)
        except EOFError:
            pass  # the ordinary end of a connection
        except ProtocolError as error:
            process.complain(f"closed a connection: {error}")
        finally:
            connection.close()


# --- waiting -----------------------------------------------------------------------------


class Changes:
    """Wakes everybody who waits whenever something changed; what changed is theirs to look at.

    Between looking and waiting there must be no await, and then nothing is missed.
    """

    def __init__(self) -> None:
        self._event: Any = anyio.Event()

    def notify(self) -> None:
        """Wake those who wait now."""
        event, self._event = self._event, anyio.Event()
        event.set()

    async def wait(self) -> None:
        """Wait for the next change."""
        await self._event.wait()
