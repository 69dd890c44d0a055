"""Who speaks to this process: the connections that others made to it, read into its mailbox.

Messages of one sender keep their order, and so do its signals among them: before a signal is acted
upon, everything that its sender sent earlier is taken in (`after`).
"""

from __future__ import annotations

import functools
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

import anyio

from colos.runtime import message, process
from colos.runtime.mailbox import Letter, Mailbox
from colos.runtime.message import Frame, ProtocolError
from colos.runtime.stats import Stats
from colos.runtime.trace import Tracer
from colos.runtime.transport import Connection, Listener
from colos.runtime.waiting import Spawn

_ALL: Final = 1 << 64
_GONE_KEPT: Final = 1024
_CATCH_UP_S: Final = 5.0
"""How long a signal waits for a connection that it came after."""
_MESSAGES: Final = (message.CALL, message.CAST, message.SEND)

Barrier = tuple[int, Callable[[], None]]
"""What to do when so many messages of one sender are taken in."""


class Caller:
    """One connection from another process.  `key` is (node, id), or None for a client from outside."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.key: tuple[str, int] | None = None
        self.held: deque[Frame] = deque()
        self.barriers: deque[Barrier] = deque()
        self.received = 0
        self.taken = 0
        """The request number of the last message from here that was acted upon; 0: none yet."""

    def pass_barriers(self, *, everything: bool = False) -> None:
        """Act where enough has come."""
        while self.barriers and (everything or self.barriers[0][0] <= self.received):
            self.barriers.popleft()[1]()

    @property
    def name(self) -> str:
        """For people."""
        return "a client" if self.key is None else f"#{self.key[1]}"


class Callers:
    """All of them."""

    stats: Stats | None = None
    """Shows how many messages wait, where somebody else shows it when they are taken."""

    def __init__(self, listening: socket.socket, spawn: Spawn, mailbox: Mailbox, tracer: Tracer) -> None:
        self._socket = listening
        self._spawn = spawn
        self._mailbox = mailbox
        self._tracer = tracer
        self._all: dict[Connection, Caller] = {}
        self._known: dict[tuple[str, int], Caller] = {}
        self._early: dict[tuple[str, int], list[Barrier]] = {}
        self._signals: dict[tuple[str, int] | None, int] = {}
        """How many exit signals of each, which come through the root, were acted upon."""
        self._gone: dict[tuple[str, int], None] = {}
        """Whose connection has ended; the latest."""
        self._terminals: set[socket.socket] = set()
        self._listener = Listener(listening, spawn, None, self._meet)

    async def run(self) -> None:
        """Accept and read until cancelled."""
        await self._listener.run()

    def connections(self) -> list[Caller]:
        """Everybody connected now."""
        return list(self._all.values())

    def _meet(self, connection: Connection) -> None:
        self._all[connection] = caller = Caller(connection)
        connection.listen(functools.partial(self._take_in, caller), functools.partial(self._left, caller))

    def _take_in(self, caller: Caller, frames: list[Frame]) -> None:
        caller.held.extend(frames)
        if not self._admit(caller):
            caller.connection.pause()
            self._spawn(self._wait_for_room, caller)
        self._show_waiting()

    async def _wait_for_room(self, caller: Caller) -> None:
        try:
            while not self._admit(caller):
                self._show_waiting()
                await self._mailbox.turn()
        except ProtocolError as error:
            self._left(caller, error)
        else:
            self._show_waiting()
            caller.connection.resume()

    def _left(self, caller: Caller, error: ProtocolError | None) -> None:
        """Its connection has ended: all that came on it counts."""
        try:
            self._admit(caller, force=True)
            caller.pass_barriers(everything=True)
            self._admit(caller, force=True)
        except ProtocolError as another:
            error = error or another
        if error is not None:
            process.complain(f"closed a connection: {error}")
        caller.connection.close()
        self._all.pop(caller.connection, None)
        if caller.key is not None and self._known.get(caller.key) is caller:
            del self._known[caller.key]
            self._signals.pop(caller.key, None)
            self._gone[caller.key] = None
            if len(self._gone) > _GONE_KEPT:
                del self._gone[next(iter(self._gone))]

    def _show_waiting(self) -> None:
        if self.stats is not None:
            self.stats.arrived(len(self._mailbox.items))

    def _admit(self, caller: Caller, *, force: bool = False) -> bool:
        """Put what is held into the mailbox, and act where a barrier stands; False if it is full first."""
        mailbox, held = self._mailbox, caller.held
        waits = mailbox.overflow == "wait" and not force
        while held:
            if waits and not caller.barriers and mailbox.full:
                return False
            frame = held[0]
            kind = frame.kind
            if frame.mark and frame.mark > self._signals.get(caller.key, 0):
                return False  # an exit signal of its sender comes first, and is on its way through the root
            held.popleft()
            if kind in _MESSAGES:
                caller.received += 1
                if self._tracer.watchers:
                    self._tracer.tell_frame("in", frame, caller.name)
                mailbox.put(Letter(frame, caller))
                if caller.barriers:
                    caller.pass_barriers()
            else:
                self._admit_other(caller, frame)
        return True

    def _admit_other(self, caller: Caller, frame: Frame) -> None:
        if frame.kind == message.IDENT:
            try:
                caller.key = bytes(frame.body).decode(), frame.request
            except UnicodeDecodeError as error:
                caller.held.clear()
                raise ProtocolError(f"a client says who it is, and not in UTF-8: {error}") from error
            self._known[caller.key] = caller
            caller.barriers.extend(self._early.pop(caller.key, ()))
            caller.pass_barriers()
        elif frame.kind == message.WATCH:
            self._tracer.watch(caller.connection)
        elif frame.kind == message.ATTACH:
            del self._all[caller.connection]
            self._spawn(self._lend, caller.connection.detach(), bool(frame.request))
        else:
            caller.held.clear()
            raise ProtocolError(f"a client sent a frame of kind {frame.kind}")

    async def _lend(self, client: socket.socket, write: bool) -> None:
        """Serve a terminal."""
        self._terminals.add(client)
        try:
            from colos.runtime import terminal  # only a process that somebody attaches to needs it

            await terminal.serve(client, write)
        except Exception as error:
            process.complain(f"no terminal could be served: {type(error).__name__}: {error}")
        finally:
            self._terminals.discard(client)
            client.close()

    def after_signal(self, key: tuple[str, int], mark: int, act: Callable[[], None]) -> None:
        """The same for an exit signal, which what its sender sent afterwards has to wait for."""

        def count_and_act() -> None:
            self._signals[key] = self._signals.get(key, 0) + 1
            act()

        self.after(key, mark, count_and_act)

    def after(self, key: tuple[str, int], mark: int, act: Callable[[], None]) -> None:
        """Act when what a process sent is taken in: up to its `mark`-th message, or all there is (-1).

        What is here is taken in now, whether the mailbox is full or not.  What is not yet here (in the other
        side's outbox, say) is waited for, and nothing that comes behind it gets in before.
        """
        caller = self._known.get(key)
        if caller is None and key in self._gone:  # its connection has ended: all that came on it is here
            act()
        elif caller is None:
            early = self._early.setdefault(key, [])
            early.append((mark if mark >= 0 else _ALL, act))
            caller = self._find(key)  # which meets its IDENT, and hands the barrier over
            if caller is None and mark <= 0:
                early.pop()
                act()
            elif caller is None:
                self._spawn(self._give_up, key, (mark, act))
            if not early:
                self._early.pop(key, None)
        else:
            caller.barriers.append((mark if mark >= 0 else _ALL, act))
            caller.pass_barriers()
        if caller is not None:
            self._read(caller)
            if mark < 0:
                caller.pass_barriers(everything=True)
            self._mailbox.let_in()  # its own task, if it waits

    async def _give_up(self, key: tuple[str, int], barrier: Barrier) -> None:
        """The connection that a signal came after was never seen: it was lost with what was sent on it."""
        await anyio.sleep(_CATCH_UP_S)
        early = self._early.get(key, [])
        if barrier in early:
            early.remove(barrier)
            barrier[1]()
            self._mailbox.let_in()

    def _find(self, key: tuple[str, int]) -> Caller | None:
        if key[1] <= 0:  # the root, or a client from outside: neither connects here as itself
            return None
        self._listener.accept_now()
        ident = message.encode(message.IDENT, key[1], key[0].encode())
        for caller in list(self._all.values()):
            if caller.key is None and caller.connection.peek().startswith(ident):
                self._read(caller)
        return self._known.get(key)

    def _read(self, caller: Caller) -> None:
        """Take in what is here, while a signal waits for it."""
        try:
            self._admit(caller, force=True)
            while caller.barriers or caller.key is None:
                caller.held.extend(caller.connection.receive_now())
                self._admit(caller, force=True)
        except (BlockingIOError, EOFError):
            pass  # who listens meets the end, too
        except ProtocolError as error:  # which who listens cannot meet again
            self._left(caller, error)

    def refuse_newcomers(self) -> None:
        """Stop listening; who is connected but not yet heard is known to have been taken nothing from."""
        self._listener.accept_now()

    def close_after_fork(self) -> None:
        """Drop the descriptors in a process forked from this one."""
        self._socket.close()
        for connection in self._all:
            connection.close_after_fork()
        for client in self._terminals:
            client.close()
