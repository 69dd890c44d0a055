"""Framed Unix-socket streams, bounded mailboxes, backpressure.

Sending tries the system call first and waits only when the kernel's buffer is full; receiving is
called back when there is something to read, and reads.  A frame is handed over whole or not at all: what the kernel
does not take at once lies in the connection's outbox, so that cancelling a sender never tears a
frame apart.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio
import anyio.lowlevel

from colos.runtime import process
from colos.runtime.message import Frame, Parser, Parts, ProtocolError
from colos.runtime.waiting import Changes, Spawn, readiness

SOCKET_NAME: Final = "sock"
OUTBOX_BYTES_MAX: Final = 256 << 10
"""A sender waits while more than this is on its way."""
REPLY_BYTES_MAX: Final = 128 << 20
"""A client that lets more than this pile up in answers is cut off: it must not stop the actor."""
_READ_BYTES: Final = 64 << 10
_KERNEL_BYTES: Final = 512 << 10
"""What the kernel is asked to hold of what is on its way, which it cuts to its limit (net.core.wmem_max)."""
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


class _Space(threading.local):
    """What a thread's connections read into: to allocate so much for each read would cost more than the read.

    A thread's own, because a read lets go of the interpreter: another loop's would overwrite what has just come.
    """

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_READ_BYTES))


_space: Final = _Space()


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
    """A framed stream over a connected non-blocking socket; of the thread that makes it.

    Either somebody listens, or one task receives; any task posts.  `posted` counts the frames handed over.
    """

    def __init__(self, connected: socket.socket, spawn: Spawn, outbox_bytes_max: int = REPLY_BYTES_MAX) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES)
        self.posted = 0
        self.closed = False
        self._socket = connected
        self._readiness = readiness(connected, spawn)
        self._on_frames: Callable[[list[Frame]], None]
        self._on_end: Callable[[ProtocolError | None], None] | None = None
        self._space = _space.view
        self._parser = Parser()
        self._outbox: deque[bytes | memoryview] = deque()
        self._outbox_bytes = 0
        self._outbox_bytes_max = outbox_bytes_max
        self._flushing = False
        self._reads = 0
        self._moved = Changes()

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
            size = len(part)
            if sent >= size:
                sent -= size
                continue
            rest: bytes | memoryview = part
            if sent or type(part) is not bytes:
                rest = memoryview(part)[sent:]
                if not rest.readonly:  # its author goes on with it, and what was posted must not change
                    rest = bytes(rest)
                size -= sent
                sent = 0
            self._outbox.append(rest)
            self._outbox_bytes += size
        if self._outbox and not self._flushing:
            self._flushing = True
            self._readiness.on_writable(self._flush)

    def _flush(self) -> None:
        """Give the kernel as much as it takes now, many small frames at a time."""
        outbox = self._outbox
        try:
            while outbox:
                parts = tuple(itertools.islice(outbox, _PARTS_MAX))
                sent = self._try_send(parts)
                self._outbox_bytes -= sent
                for part in parts:
                    size = len(part)
                    if sent < size:
                        break
                    sent -= size
                    outbox.popleft()
                else:
                    continue
                if sent:
                    outbox[0] = memoryview(part)[sent:]
                break
        except BrokenConnectionError:
            # Whoever receives on this connection sees its end and tells those who wait for an answer.
            return
        if not self._outbox:
            self._stop_flushing()
        self._moved.notify()

    def _stop_flushing(self) -> None:
        if self._flushing:
            self._flushing = False
            self._readiness.on_writable(None)

    def close_sending(self) -> None:
        """Give up what is in the outbox; what the other side still says can be received."""
        self._outbox.clear()
        self._outbox_bytes = 0
        self._stop_flushing()
        self._moved.notify()

    def listen(self, on_frames: Callable[[list[Frame]], None], on_end: Callable[[ProtocolError | None], None]) -> None:
        """From now on, hand over what comes, and once at its end say so, with what was no frame if that ended it.

        Its own closing is an end, too, of which is told at another turn of the loop.
        """
        self._on_frames = on_frames
        self._on_end = on_end
        self.resume()

    def pause(self) -> None:
        """Hand over nothing for now: the other side has to wait."""
        self._readiness.on_readable(None)

    def resume(self) -> None:
        """Go on."""
        if not self.closed:
            self._readiness.on_readable(self._read)

    def _read(self) -> None:
        """One read's worth at a turn: whoever sends without end must not have this process to himself."""
        try:
            frames = self.receive_now()
        except BlockingIOError:
            return
        except EOFError:
            self._end()
            return
        except ProtocolError as error:
            self._end(error)
            return
        if frames:
            try:
                self._on_frames(frames)
            except ProtocolError as error:
                self._end(error)

    def _end(self, error: ProtocolError | None = None) -> None:
        self.pause()
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(error)

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
            count = self._socket.recv_into(self._space)
        except BlockingIOError:
            raise
        except OSError as error:
            # ECONNRESET: the other side died with our messages unread.  What it sent before came first.
            raise EOFError from error
        if not count:
            raise EOFError
        return self._parser.feed(bytes(self._space[:count]))

    def peek(self) -> bytes:
        """What comes next, left where it is; empty if nothing is here yet, or it has ended."""
        try:
            return self._socket.recv(_PEEK_BYTES, socket.MSG_PEEK)
        except OSError:  # nothing to read, or its end: who receives meets it
            return b""

    def close(self) -> None:
        """Close at once; who listens, and tasks that wait on this connection, are told."""
        if self.closed:
            return
        self.closed = True
        self.close_sending()
        self._readiness.close(self._end if self._on_end is not None else None)
        anyio.notify_closing(self._socket)  # to a task that receives
        self._socket.close()

    def detach(self) -> socket.socket:
        """Give the socket away, still open; this connection is then a closed one."""
        self.closed = True
        self.close_sending()
        self._readiness.close()
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
        serve: Callable[[Connection], Awaitable[None]] | None,
        accepted: Callable[[Connection], None] | None = None,
    ) -> None:
        """`serve` is a task for each connection, closed at its end; `accepted`, called at once, sees it first."""
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
        if not _same_user(accepted):
            accepted.close()
            return
        connection = Connection(accepted, self._spawn)
        if self._serve is not None:
            self._spawn(self._attend, self._serve, connection)
        if self._accepted is not None:
            self._accepted(connection)

    async def _attend(self, serve: Callable[[Connection], Awaitable[None]], connection: Connection) -> None:
        try:
            await serve(connection)
        except EOFError:
            pass  # the ordinary end of a connection
        except ProtocolError as error:
            process.complain(f"closed a connection: {error}")
        finally:
            connection.close()
