"""What a process waits with: events, and sockets that call back.

Where asyncio's loop runs, it is used directly: through anyio, waiting once more for the same socket
costs two system calls and two turns of the loop, which are half of a call's time.  Everywhere else
(trio) anyio does it, with a task for each socket.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NoReturn, Protocol

import anyio

if TYPE_CHECKING:
    import asyncio

Spawn = Callable[..., object]
"""Starts a background task, as an anyio task group's `start_soon` does."""
Act = Callable[[], None]


def _running_loop() -> asyncio.AbstractEventLoop | None:
    events = sys.modules.get("asyncio.events")  # a node on trio need not load it
    return None if events is None else events._get_running_loop()


# --- events ------------------------------------------------------------------------------


class Event(Protocol):
    """Set once; whoever waits goes on."""

    def set(self) -> object:
        """Wake everybody, and let nobody wait from here on."""

    def is_set(self) -> bool:
        """Whether it was set."""

    async def wait(self) -> object:
        """Wait for it."""


class _AsyncioEvent:
    __slots__ = ("_is_set", "_loop", "_waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_set = False
        self._waiters: list[asyncio.Future[None]] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait(self) -> None:
        if self._is_set:
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except BaseException:  # cancelled; who waits again and again must not pile up here
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            raise


def event() -> Event:
    """An event of the loop that runs here."""
    loop = _running_loop()
    return anyio.Event() if loop is None else _AsyncioEvent(loop)


class Changes:
    """Wakes everybody who waits whenever something changed; what changed is theirs to look at.

    Between looking and waiting there must be no await, and then nothing is missed.
    """

    def __init__(self) -> None:
        self._event = event()

    def notify(self) -> None:
        """Wake those who wait now."""
        changed, self._event = self._event, event()
        changed.set()

    async def wait(self) -> None:
        """Wait for the next change."""
        await self._event.wait()


# --- sockets -----------------------------------------------------------------------------


class Readiness(Protocol):
    """Calls back at each turn of the loop at which a socket can be read, or written to; what raises ends the process.

    Whoever is called back reads or writes, or stops this: else it is called again at the next turn.
    """

    def on_readable(self, act: Act | None) -> None:
        """Call `act` from now on; None: nobody."""

    def on_writable(self, act: Act | None) -> None:
        """The same for writing."""

    def close(self, then: Act | None = None) -> None:
        """Before the socket is closed; `then` is called at another turn of the loop, while that runs."""


def readiness(connected: socket.socket, spawn: Spawn) -> Readiness:
    """A socket's, with the loop that runs here."""
    loop = _running_loop()
    return _AnyioReadiness(connected, spawn) if loop is None else _AsyncioReadiness(connected, spawn, loop)


async def _raise(error: BaseException) -> NoReturn:
    raise error


class _AsyncioReadiness:
    def __init__(self, connected: socket.socket, spawn: Spawn, loop: asyncio.AbstractEventLoop) -> None:
        self._descriptor = connected.fileno()
        self._spawn = spawn
        self._loop = loop
        self._reads = False
        self._writes = False

    def on_readable(self, act: Act | None) -> None:
        if act is not None:
            self._reads = True
            self._loop.add_reader(self._descriptor, self._call, act)
        elif self._reads:
            self._reads = False
            self._loop.remove_reader(self._descriptor)

    def on_writable(self, act: Act | None) -> None:
        if act is not None:
            self._writes = True
            self._loop.add_writer(self._descriptor, self._call, act)
        elif self._writes:
            self._writes = False
            self._loop.remove_writer(self._descriptor)

    def close(self, then: Act | None = None) -> None:
        self.on_readable(None)
        self.on_writable(None)
        if then is not None:
            self._loop.call_soon(self._call, then)

    def _call(self, act: Act) -> None:
        try:
            act()
        except BaseException as error:  # asyncio would only log it
            self.close()
            self._spawn(_raise, error)


class _AnyioReadiness:
    def __init__(self, connected: socket.socket, spawn: Spawn) -> None:
        self._socket = connected
        self._reading = _Direction(anyio.wait_readable, spawn)
        self._writing = _Direction(anyio.wait_writable, spawn)

    def on_readable(self, act: Act | None) -> None:
        self._reading.call(self._socket, act)

    def on_writable(self, act: Act | None) -> None:
        self._writing.call(self._socket, act)

    def close(self, then: Act | None = None) -> None:
        self._reading.end(then)
        self._writing.end()
        anyio.notify_closing(self._socket)


class _Direction:
    """One task, from the first call on to the end; it rests while nobody is to be called."""

    def __init__(self, wait: Callable[[socket.socket], Awaitable[None]], spawn: Spawn) -> None:
        self._wait = wait
        self._spawn = spawn
        self._act: Act | None = None
        self._then: Act | None = None
        self._wanted: Event | None = None
        self._ended = False

    def call(self, connected: socket.socket, act: Act | None) -> None:
        self._act = act
        if act is None or self._ended:
            return
        if self._wanted is None:
            self._wanted = event()
            self._spawn(self._run, connected)
        self._wanted.set()

    def end(self, then: Act | None = None) -> None:
        self._act = None
        self._then = then
        self._ended = True
        if self._wanted is not None:
            self._wanted.set()

    async def _run(self, connected: socket.socket) -> None:
        try:
            while not self._ended:
                if self._act is None:
                    self._wanted = event()
                    await self._wanted.wait()
                    continue
                await self._wait(connected)
                if self._act is not None:
                    self._act()
        except anyio.ClosedResourceError:  # the end came while it waited
            pass
        if self._then is not None:
            self._then()
