"""Speaking: a process's own connections to others, and the calls that wait on them.

At most one connection to each incarnation, made at first use.  Messages go over it in order, and
the answers come back over it; so a full mailbox never stands in an answer's way.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import anyio

from colos.errors import (
    ActorExited,
    CallTimeout,
    ConnectionLost,
    MailboxFull,
    NoSuchActor,
    NoSuchNode,
    RuntimeFailure,
)
from colos.runtime import message, transport
from colos.runtime.message import Frame, Notice
from colos.runtime.reasons import text
from colos.runtime.refs import DEADLINE_S, ROOT_ID, ROOT_PATH, ActorRef, binding
from colos.runtime.trace import Tracer, request_text
from colos.runtime.transport import BrokenConnectionError, Connection
from colos.runtime.waiting import Event, Spawn, event

if TYPE_CHECKING:
    from colos.runtime.callers import Callers

_REASON_S: Final = 0.5
_RETRY_S: Final = 0.002
_COMPACT: Final = 256


@dataclass(slots=True, eq=False)
class _Pending:
    """A call on its way: `answer`, `lost` or `late` says how it ended, when `done` is set."""

    done: Event = field(default_factory=event)
    answer: Frame | None = None
    lost: bool = False
    taken: bool = True


class Peer:
    """The one connection from here to one incarnation."""

    def __init__(self, board: Switchboard, path: str, id_: int, connection: Connection) -> None:
        self.path = path
        self.id = id_
        self.connection = connection
        self.pending: dict[int, _Pending] = {}
        self.ended = event()
        self.reason: object = ""
        self.goodbye: Frame | None = None
        self.signals = 0
        """How many exit signals were sent there through the root, which is another way: see callers."""
        self._board = board

    def listen(self) -> None:
        """Hand answers to those who wait, until the connection ends."""
        # Its end or garbage: either way nothing more can be understood here, and those who wait are told.
        self.connection.listen(self._take_all, lambda _: self.end())

    def _take_all(self, frames: list[Frame]) -> None:
        for frame in frames:
            self.take(frame)

    def take(self, frame: Frame) -> None:
        """One frame that came back."""
        if frame.kind == message.GOODBYE:
            self.goodbye = frame
            self.reason = message.decode(frame)
        elif frame.kind == message.NOTICE:
            self._board.on_notice(self._board.node, Notice(*message.decode(frame)))
        else:
            waiting = self.pending.pop(frame.request, None)
            if waiting is None:
                return  # a late answer, whose call is over; its number is never used again
            if frame.mark:
                self._board.answer_in_order(self, waiting, frame)
            else:
                waiting.answer = frame
                waiting.done.set()

    def end(self) -> None:
        """The connection has ended: whoever waits is told."""
        self.connection.close()
        goodbye = self.goodbye
        for request, waiting in self.pending.items():
            waiting.lost = True
            waiting.taken = goodbye is None or request <= goodbye.request
            waiting.done.set()
        self.pending.clear()
        self._board.forget(self)
        self.ended.set()


class _Deadlines:
    """One sleeping task for the deadlines of all calls: a scope for each would cost more than the call."""

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._heap: list[tuple[float, int, _Pending]] = []
        self._numbers = itertools.count()
        self._sooner = event()
        self._wakes_at = float("inf")
        self._running = False

    def add(self, waiting: _Pending, timeout_s: float) -> None:
        """Wake a call after so many seconds, if it still waits."""
        at = monotonic() + timeout_s
        heap = self._heap
        if len(heap) > _COMPACT and len(heap) & (len(heap) - 1) == 0:
            heap[:] = [entry for entry in heap if not entry[2].done.is_set()]
            heapq.heapify(heap)
        heapq.heappush(heap, (at, next(self._numbers), waiting))
        if not self._running:
            self._running = True
            self._spawn(self._run)
        elif at < self._wakes_at:
            self._sooner.set()

    async def _run(self) -> None:
        heap = self._heap
        try:
            while heap:
                self._wakes_at = heap[0][0]
                self._sooner = event()
                with anyio.move_on_after(self._wakes_at - monotonic()):
                    await self._sooner.wait()
                now = monotonic()
                while heap and heap[0][0] <= now:
                    heapq.heappop(heap)[2].done.set()
        finally:
            self._running = False
            self._wakes_at = float("inf")


class Switchboard:
    """A process's connections into one node; `other` gives the one into another node."""

    def __init__(
        self,
        run_dir: str,
        spawn: Spawn,
        *,
        node: str | None = None,
        own: ActorRef | None = None,
        root: Connection | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """`node` is how the node calls itself, where that is not `run_dir`; `root`, a connection already made."""
        self.run_dir = run_dir
        self.node = node or run_dir
        self.own = own
        self.callers: Callers | None = None
        self.tracer = tracer or Tracer()
        self.on_notice: Callable[[str, Notice], None] = lambda node, notice: None
        self.on_lost: Callable[[Switchboard], None] = lambda board: None
        """The connection to another node's root has ended: what it would have told, it tells no more."""
        self.links: set[ActorRef] = set()
        """Whom this process has linked to there, in another node."""
        self._spawn = spawn
        self._over = ""
        """Why nobody can be reached any more."""
        self._peers: dict[int, Peer] = {}
        self._found: dict[str, ActorRef] = {}
        self._numbers = itertools.count(1)
        self._deadlines = _Deadlines(spawn)
        self._others: dict[str, Switchboard] = {}
        if root is not None:
            self.root_peer = self._peers[ROOT_ID] = Peer(self, ROOT_PATH, ROOT_ID, root)

    def other(self, node: str) -> Switchboard:
        """The switchboard into another node, by its run directory."""
        if node in ("", self.node):
            return self
        board = self._others.get(node)
        if board is None:
            board = Switchboard(node, self._spawn, own=self.own, tracer=self.tracer)
            board._others = self._others
            board.callers = self.callers
            board.on_notice = self.on_notice
            board.on_lost = self.on_lost
            board._over = self._over
            self._others[node] = board
            self._others.setdefault(self.node, self)
        return board

    def _boards(self) -> list[Switchboard]:
        """This one and those into other nodes, among which this one may be."""
        return [self, *(board for board in self._others.values() if board is not self)]

    # --- the root

    async def whereis(self, name: str) -> ActorRef:
        """The process behind a registered name or a path.  Raises NoSuchActor, NoSuchNode.

        The root is asked, unless we are connected to whom it named last time: a name stays with its
        holder until that dies, and death ends the connection.  What may tell of a death sooner (a failed
        call, an answer of the root's) makes us ask again: whoever knows of a death finds the name free.
        """
        known = self._found.get(name)
        if known is not None and known.id in self._peers:
            return known
        path, id_ = await self.ask_root("whereis", name)
        self._found[name] = found = self.ref(path, id_)
        return found

    def ref(self, path: str, id_: int) -> ActorRef:
        """A reference into this node."""
        return ActorRef(path, id_, self.node, self)

    async def ask_root(self, question: str, *args: object, timeout_s: float = DEADLINE_S) -> Any:
        """Put a question to the node's root.  Raises NoSuchNode if it is gone."""
        try:
            answer = await self.call(ROOT_PATH, ROOT_ID, question, args, {}, timeout_s)
            if question != "whereis":
                self._found.clear()
            return answer
        except (NoSuchActor, ActorExited, ConnectionLost) as error:
            if error.name != ROOT_PATH:
                raise  # an answer: that process does not exist
            raise NoSuchNode(self.run_dir, self._last_words()) from error

    def forget_names(self) -> None:
        """A death became known: names are to be asked anew."""
        self._found.clear()

    # --- messages

    async def call(
        self, path: str, id_: int, method: str, args: tuple[object, ...], kwargs: dict[str, object], timeout_s: float
    ) -> Any:
        """See ActorRef.call."""
        if self.own is not None and id_ == self.own.id and self.node == self.own.node:
            raise RuntimeFailure(f"{path!r} calls {method!r} on itself: it would wait for itself for ever; use cast")
        request = next(self._numbers)
        peer = self._peers.get(id_)
        signals = peer.signals if peer is not None else 0
        frame = message.encode_request(message.CALL, request, path, method, args, kwargs, signals)
        if self.tracer.watchers and id_ != ROOT_ID:
            self.tracer.tell("out", message.CALL, path, request_text(method, args, kwargs))
        waiting = _Pending()
        left_s = timeout_s
        if peer is None or peer.connection.full:
            begun = monotonic()
            peer = None
            with anyio.move_on_after(timeout_s):
                peer = await self._reach(path, id_)
                await peer.connection.room()
            left_s = timeout_s - (monotonic() - begun)
            if peer is None or left_s <= 0:
                raise CallTimeout(path, method, timeout_s)
        peer.pending[request] = waiting
        try:
            try:
                peer.connection.post(frame)
            except BrokenConnectionError:
                raise await self._unsent(peer) from None
            if left_s != float("inf"):
                self._deadlines.add(waiting, left_s)
            await waiting.done.wait()
        finally:
            peer.pending.pop(request, None)
        if waiting.answer is not None:
            return self._open(waiting.answer, path, method)
        if waiting.lost:
            raise await self._lost(peer, method, waiting)
        raise CallTimeout(path, method, timeout_s)

    async def post(self, path: str, id_: int, frame: message.Parts, timeout_s: float) -> None:
        """Send a frame that has no answer.  Raises MailboxFull, NoSuchActor, ActorExited: nothing was sent."""
        peer = self._peers.get(id_)
        if peer is None or peer.connection.full:
            peer = None
            with anyio.move_on_after(timeout_s):
                reached = await self._reach(path, id_)
                await reached.connection.room()
                peer = reached
            if peer is None:
                raise MailboxFull(path)
        try:
            peer.connection.post(frame)
        except BrokenConnectionError:
            raise await self._unsent(peer) from None

    def post_now(self, path: str, id_: int, frame: message.Parts) -> None:
        """The same at once, or MailboxFull."""
        try:
            taken = self._connected(path, id_).connection.post_now(frame)
        except BlockingIOError:
            taken = False
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoSuchActor(path, self._exit_file(id_)) from None
        except BrokenConnectionError:
            raise ActorExited(path, self._exit_file(id_) or "its connection is closed") from None
        if not taken:
            raise MailboxFull(path)

    async def cast(
        self, path: str, id_: int, method: str, args: tuple[object, ...], kwargs: dict[str, object], timeout_s: float
    ) -> None:
        """See ActorRef.cast."""
        number, mark = next(self._numbers), self.signals_to(id_)
        frame = message.encode_request(message.CAST, number, path, method, args, kwargs, mark)
        if self.tracer.watchers:
            self.tracer.tell("out", message.CAST, path, request_text(method, args, kwargs))
        await self.post(path, id_, frame, timeout_s)

    def cast_nowait(
        self, path: str, id_: int, method: str, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        """See ActorRef.cast_nowait."""
        number, mark = next(self._numbers), self.signals_to(id_)
        frame = message.encode_request(message.CAST, number, path, method, args, kwargs, mark)
        if self.tracer.watchers:
            self.tracer.tell("out", message.CAST, path, request_text(method, args, kwargs))
        self.post_now(path, id_, frame)

    def posted_to(self, key: tuple[str, int] | None) -> int:
        """How many messages this process has sent to another on a connection of its own."""
        if key is None:
            return 0
        board = self if key[0] == self.node else self._others.get(key[0])
        peer = board._peers.get(key[1]) if board is not None else None
        return peer.connection.posted - 1 if peer is not None else 0  # all but the IDENT

    def signals_to(self, id_: int) -> int:
        """How many exit signals this process has sent to another."""
        peer = self._peers.get(id_)
        return peer.signals if peer is not None else 0

    async def signal(self, path: str, id_: int, reason: object) -> None:
        """Send an exit signal: it goes through the root, in its order with the messages.  The dead are silent."""
        if self.own is None:
            await self.ask_root("exit", id_, reason, -1)
            return
        try:
            with anyio.fail_after(DEADLINE_S):
                peer = await self._reach(path, id_)
                await peer.connection.flushed()
        except (TimeoutError, NoSuchActor):  # it does not read, so what is on its way cannot be waited for; or is dead
            await self.ask_root("exit", id_, reason, -1)
            return
        peer.signals += 1
        with anyio.CancelScope(shield=True):  # once counted, it must be sent: what follows waits for it there
            await self.ask_root("exit", id_, reason, peer.connection.posted - 1)

    def answer_in_order(self, peer: Peer, waiting: _Pending, frame: Frame) -> None:
        """Give out an answer when what its sender sent us before it is in the mailbox."""

        def give() -> None:
            waiting.answer = frame
            waiting.done.set()

        key = (self.node, peer.id)
        if self.callers is None:
            give()
        else:
            self.callers.after(key, frame.mark, give)

    # --- connections

    async def _reach(self, path: str, id_: int) -> Peer:
        while True:
            try:
                return self._connected(path, id_)
            except BlockingIOError:
                # Its backlog is full; the kernel offers no wait for that.  The caller's deadline bounds this.
                await anyio.sleep(_RETRY_S)
            except (FileNotFoundError, ConnectionRefusedError):
                raise NoSuchActor(path, text(await self.why(id_))) from None

    def _connected(self, path: str, id_: int) -> Peer:
        peer = self._peers.get(id_)
        if peer is None:
            if self._over:
                raise RuntimeFailure(f"{self._over}, and cannot speak to {path!r}")
            directory = self.run_dir if id_ == ROOT_ID else f"{self.run_dir}/actors/{id_}"
            connection = Connection(transport.connect(directory), self._spawn)
            if self.own is not None:
                who = f"{self.own.node}\0{self.own.path}" if id_ == ROOT_ID else self.own.node
                try:
                    connection.post(message.encode(message.IDENT, self.own.id, who.encode()))
                except BrokenConnectionError:  # it died between the kernel's taking us and now
                    connection.close()
                    raise ConnectionRefusedError from None
            peer = self._peers[id_] = Peer(self, path, id_, connection)
            peer.listen()
        return peer

    async def _unsent(self, peer: Peer) -> RuntimeFailure:
        # Nothing of this frame left.  Its goodbye, if it said one, is still to be read.
        with anyio.move_on_after(_REASON_S):
            await peer.ended.wait()
        return ActorExited(peer.path, peer.reason or await self.why(peer.id) or "reason unknown")

    async def _lost(self, peer: Peer, method: str, waiting: _Pending) -> RuntimeFailure:
        reason = peer.reason or await self.why(peer.id)
        if waiting.taken:
            return ConnectionLost(peer.path, method, reason)
        return ActorExited(peer.path, reason)

    async def why(self, id_: int) -> object:
        """Why an incarnation is dead, where the node can tell soon; else an empty string."""
        if id_ == ROOT_ID:
            return ""
        try:
            return await self.ask_root("reason", id_, _REASON_S, timeout_s=2 * _REASON_S)
        except (RuntimeFailure, OSError):  # the node is gone, slow, or there is no descriptor to ask with
            return self._exit_file(id_)

    def _exit_file(self, id_: int) -> str:
        return _first_line(f"{self.run_dir}/actors/{id_}/exit")

    def _last_words(self) -> str:
        return _first_line(f"{self.run_dir}/crash")

    def _open(self, answer: Frame, path: str, method: str) -> Any:
        with binding(self):
            if answer.kind == message.RESULT:
                return message.decode(answer)
            error = message.decode_failure(answer, path, method)
        self._found.clear()  # it may have died of this
        raise error

    def forget(self, peer: Peer) -> None:
        """Drop a connection that ended; the next message makes a new one, or learns that nobody is there."""
        if self._peers.get(peer.id) is peer:
            del self._peers[peer.id]
            if peer.id == ROOT_ID and self.own is not None and self.own.node != self.node:
                self.on_lost(self)

    async def root_ended(self) -> None:
        """Wait until the connection to the root, which must exist, has ended."""
        peer = self._peers.get(ROOT_ID)
        if peer is not None:
            await peer.ended.wait()

    def other_roots(self) -> list[Connection]:
        """The connections to other nodes' roots."""
        boards = (board for board in self._boards() if board is not self)
        return [board._peers[ROOT_ID].connection for board in boards if ROOT_ID in board._peers]

    async def flush_all(self) -> None:
        """Wait until all that was sent to anybody is in the kernel's hands."""
        for board in self._boards():
            for peer in list(board._peers.values()):
                await peer.connection.flushed()

    def close_after_fork(self) -> None:
        """In a process forked from this one: it is another, and can speak to nobody."""
        for board in self._boards():
            board._over = "this is a forked copy of a process"
            for peer in board._peers.values():
                peer.connection.close_after_fork()
            board._peers.clear()

    def close(self) -> None:
        """End every connection; who waits for an answer is told that it is lost."""
        for board in self._boards():
            board._over = "this connection to a node was closed when its block was left"
            for peer in list(board._peers.values()):
                peer.end()


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:  # not written, or the directory is gone
        return ""
