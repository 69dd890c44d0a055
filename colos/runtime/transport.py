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
from typing import Any, Final, Generic, TypeVar

import anyio

from colos.runtime import process
from colos.runtime.message import Frame, Parser, ProtocolError

T = TypeVar("T")
Spawn = Callable[..., object]
"""Starts a background task, as an anyio task group's `start_soon` does."""

SOCKET_NAME: Final = "sock"
OUTBOX_BYTES_MAX: Final = 256 << 10
"""A sender waits while more than this is on its way."""
REPLY_BYTES_MAX: Final = 128 << 20
"""A client that lets more than this pile up in answers is cut off: it must not stop the actor."""
_READ_BYTES: Final = 256 << 10
_BACKLOG: Final = 128
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

    One task receives; any task posts.  `taken` is the request number of the last message from the
    other side that was acted upon (0: none yet).
    """

    def __init__(self, connected: socket.socket, spawn: Spawn, outbox_bytes_max: int = REPLY_BYTES_MAX) -> None:
        connected.setblocking(False)
        self.taken = 0
        self.closed = False
        self._socket = connected
        self._spawn = spawn
        self._parser = Parser()
        self._outbox: deque[memoryview] = deque()
        self._outbox_bytes = 0
        self._outbox_bytes_max = outbox_bytes_max
        self._flushing = False
        self._moved = anyio.Event()

    def post(self, frame: bytes) -> None:
        """Hand over a frame, which is then on its way; never waits.  Raises BrokenConnectionError."""
        if self.closed:
            raise BrokenConnectionError
        sent = 0
        if not self._outbox:
            sent = self._try_send(memoryview(frame))
            if sent == len(frame):
                return
        if self._outbox_bytes > self._outbox_bytes_max:
            self.close()
            raise BrokenConnectionError
        self._enqueue(memoryview(frame)[sent:])

    def post_now(self, frame: bytes) -> bool:
        """Hand over a frame if the kernel takes some of it at once; else False, and nothing was sent."""
        if self.closed:
            raise BrokenConnectionError
        if self._outbox:
            return False
        sent = self._try_send(memoryview(frame))
        if 0 < sent < len(frame):
            self._enqueue(memoryview(frame)[sent:])
        return sent > 0

    async def room(self) -> None:
        """Wait until the outbox has room (or the connection is closed)."""
        while self._outbox_bytes > OUTBOX_BYTES_MAX and not self.closed:
            await self._moved.wait()

    async def flushed(self) -> None:
        """Wait until everything posted is in the kernel's hands (or the connection is closed)."""
        while self._outbox and not self.closed:
            await self._moved.wait()

    def _try_send(self, data: memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.close_sending()
            raise BrokenConnectionError from error

    def _enqueue(self, rest: memoryview) -> None:
        self._outbox.append(rest)
        self._outbox_bytes += len(rest)
        if not self._flushing:
            self._flushing = True
            self._spawn(self._flush)

    async def _flush(self) -> None:
        try:
            while self._outbox and not self.closed:
                first = self._outbox[0]
                sent = self._try_send(first)
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
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            raise
        except OSError as error:
            # ECONNRESET: the other side died with our messages unread.  What it sent before came first.
            raise EOFError from error
        if not data:
            raise EOFError
        return self._parser.feed(data)

    def close(self) -> None:
        """Close at once; tasks that wait on this connection are told."""
        if self.closed:
            return
        self.closed = True
        self.close_sending()
        anyio.notify_closing(self._socket)
        self._socket.close()

    def close_after_fork(self) -> None:
        """Drop the descriptor in a process forked from this one, where no event loop may be touched."""
        self._socket.close()


class Listener:
    """Accepts connections of the same user for as long as its task runs.

    Out of descriptors it pauses and goes on: a pending connection waits in the backlog, and the
    listening socket stays readable, so without a pause this would spin.
    """

    def __init__(self, listening: socket.socket, spawn: Spawn, serve: Callable[[Connection], Awaitable[None]]) -> None:
        self._socket = listening
        self._spawn = spawn
        self._serve = serve

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
            if not _same_user(accepted):
                accepted.close()
                continue
            self._spawn(self._attend, Connection(accepted, self._spawn))

    async def _attend(self, connection: Connection) -> None:
        try:
            await self._serve(connection)
        except EOFError:
            pass  # the ordinary end of a connection
        except ProtocolError as error:
            process.complain(f"closed a connection: {error}")
        finally:
            connection.close()


# --- mailboxes ---------------------------------------------------------------------------


class Mailbox(Generic[T]):
    """A bounded queue with one reader.  Who puts waits while it is full."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._items: deque[T] = deque()
        self._closed = False
        self._filled = anyio.Event()
        self._drained = anyio.Event()

    def __len__(self) -> int:
        return len(self._items)

    async def put(self, item: T) -> None:
        """Append, after waiting for room."""
        while len(self._items) >= self.limit:
            await self._drained.wait()
        self._items.append(item)
        self._filled.set()

    async def get(self) -> T | None:
        """The oldest item, after waiting for one; None from the moment it is closed."""
        while not self._items and not self._closed:
            self._filled = anyio.Event()
            await self._filled.wait()
        if self._closed:
            return None
        item = self._items.popleft()
        if len(self._items) == self.limit - 1:
            drained, self._drained = self._drained, anyio.Event()
            drained.set()
        return item

    def close(self) -> None:
        """Give out nothing more, whatever is still in it; its reader is woken."""
        self._closed = True
        self._filled.set()


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
