"""What an author subclasses, and how actors are spoken to: Actor, ActorRef, call and cast."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

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
from colos.runtime.transport import BrokenConnectionError, Connection, Spawn

DEADLINE_S: Final = 5.0
"""How long a call waits for its answer, and a cast for room, unless told otherwise."""
_REASON_S: Final = 0.5
_RETRY_S: Final = 0.002
ROOT_PATH: Final = "(root)"
ROOT_ID: Final = 0
"""The id under which the node's root process answers; actors count from 1."""


class Actor:
    """One OS process with a mailbox.  Subclass it; it is constructed in its own process.

    Every public ``async def`` method can be called and cast to from outside, one message at a
    time.  An exception from a method goes to the caller; if it is not an instance of one of
    `expected`, it then also ends the actor, with that reason, and its supervisor decides.
    """

    expected: ClassVar[tuple[type[BaseException], ...]] = ()
    """Exceptions that are answers: the caller gets them and the actor lives on."""
    mailbox_limit: ClassVar[int] = 1000
    """Messages that may wait in this process; beyond it the sockets fill, then senders wait."""

    async def init(self) -> None:
        """Runs after construction, before the actor counts as started.  If it raises, the start failed."""

    async def terminate(self, reason: str) -> None:
        """Runs before a clean end ("shutdown" or "normal"), within the child's `shutdown_s`; never after a crash."""

    @property
    def ref(self) -> ActorRef:
        """This very incarnation, to hand to others."""
        return here().ref

    @property
    def path(self) -> str:
        """This actor's place in the tree, such as ``ledger/writer``; the same for every incarnation."""
        return here().ref.path

    async def whereis(self, name: str) -> ActorRef:
        """The actor registered under a name, or at a path.  Raises NoSuchActor."""
        return await here().board.whereis(name)

    def stop(self) -> None:
        """End normally after the current message: terminate("normal") runs; a permanent child is restarted."""
        here().stop()


def public_methods(actor: type[Actor]) -> frozenset[str]:
    """The methods that may be called from outside."""
    return frozenset(
        name
        for name in dir(actor)
        if not name.startswith("_")
        and not hasattr(Actor, name)
        and inspect.iscoroutinefunction(inspect.getattr_static(actor, name))
    )


@dataclass
class Here:
    """What an actor process knows of itself."""

    ref: ActorRef
    board: Switchboard
    stop: Callable[[], None]


_here: Here | None = None


def here() -> Here:
    """This process's actor.  Raises RuntimeFailure in a process that is none."""
    if _here is None:
        raise RuntimeFailure("this process is not an actor: ref, path, whereis and stop exist only inside one")
    return _here


def be_here(identity: Here) -> None:
    """Make this process an actor, once."""
    global _here
    _here = identity
    bind_refs(identity.board)


# --- references --------------------------------------------------------------------------

_binding: Switchboard | None = None


def bind_refs(board: Switchboard | None) -> Switchboard | None:
    """From now on, references that are unpickled speak through `board`; returns the one before."""
    global _binding
    before, _binding = _binding, board
    return before


def _revive(path: str, id_: int) -> ActorRef:
    return ActorRef(path, id_, _binding)


class ActorRef:
    """Names one incarnation of an actor, as a pid does; it never reaches a later one.

    ``await ref.deposit("a", 5)`` calls with the default deadline; every keyword goes to the method.
    `call`, `cast`, `cast_nowait`, `path` and `id` are this class's own: a method of such a name is
    reached through `call`.  Picklable: what a ref says travels over the connections of the process
    that unpickles it.
    """

    __slots__ = ("_board", "id", "path")

    def __init__(self, path: str, id: int, board: Switchboard | None = None) -> None:  # noqa: A002 - its public name
        self.path = path
        self.id = id
        self._board = board

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return functools.partial(self._call_plainly, name)

    async def _call_plainly(self, method: str, /, *args: object, **kwargs: object) -> Any:
        return await self._speak().call(self.path, self.id, method, args, kwargs, DEADLINE_S)

    async def call(self, method: str, /, *args: object, timeout: float | None = DEADLINE_S, **kwargs: object) -> Any:
        """Call a method and wait for its answer, `timeout` seconds at most (None: the default).

        `timeout` is the one keyword that does not reach the method.  Raises what the method
        raised, or NoSuchActor, ActorExited (both: it did not happen), ConnectionLost, CallTimeout
        (both: unknown), NotPicklable, MessageTooLarge, NoSuchMethod.
        """
        return await self._speak().call(self.path, self.id, method, args, kwargs, _deadline(timeout))

    async def cast(self, method: str, /, *args: object, timeout: float | None = DEADLINE_S, **kwargs: object) -> None:
        """Send without an answer; waits while the mailbox and the socket to it are full.

        Raises MailboxFull if that lasts `timeout` seconds, NoSuchActor or ActorExited if it is known
        to be dead: in each case nothing was sent.
        """
        await self._speak().cast(self.path, self.id, method, args, kwargs, _deadline(timeout))

    def cast_nowait(self, method: str, /, *args: object, **kwargs: object) -> None:
        """Send without an answer, now; raises MailboxFull instead of waiting."""
        self._speak().cast_nowait(self.path, self.id, method, args, kwargs)

    def _speak(self) -> Switchboard:
        if self._board is None:
            raise RuntimeFailure(f"{self!r} was unpickled outside a node and cannot speak; use connect(run_dir)")
        return self._board

    def __reduce__(self) -> tuple[object, ...]:
        return (_revive, (self.path, self.id))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorRef) and (self.path, self.id) == (other.path, other.id)

    def __hash__(self) -> int:
        return hash((self.path, self.id))

    def __repr__(self) -> str:
        return f"<ActorRef {self.path} #{self.id}>"


def _deadline(timeout: float | None) -> float:
    return DEADLINE_S if timeout is None else timeout


# --- speaking ----------------------------------------------------------------------------


@dataclass
class _Pending:
    """A call on its way: exactly one of `answer` and `lost` is set when `done` is."""

    method: str
    done: anyio.Event = field(default_factory=anyio.Event)
    answer: message.Frame | None = None
    lost: bool = False
    taken: bool = True


class _Peer:
    """The one connection from here to one incarnation, and the calls that wait on it."""

    def __init__(self, board: Switchboard, path: str, connection: Connection) -> None:
        self.path = path
        self.connection = connection
        self.pending: dict[int, _Pending] = {}
        self.ended = anyio.Event()
        self.reason = ""
        self._board = board

    async def listen(self) -> None:
        """Hand answers to those who wait, until the connection ends."""
        goodbye: message.Frame | None = None
        try:
            while True:
                for frame in await self.connection.receive():
                    if frame.kind == message.GOODBYE:
                        goodbye = frame
                    elif waiting := self.pending.pop(frame.request, None):
                        waiting.answer = frame
                        waiting.done.set()
                    # else: a late answer, whose call is over; its number is never used again
        except (EOFError, message.ProtocolError):
            pass  # either way nothing more can be understood here; those who wait are told below
        finally:
            self._end(goodbye)

    def _end(self, goodbye: message.Frame | None) -> None:
        self.connection.close()
        if goodbye is not None:
            self.reason = goodbye.body.decode(errors="replace")
        for request, waiting in self.pending.items():
            waiting.lost = True
            waiting.taken = goodbye is None or request <= goodbye.request
            waiting.done.set()
        self.pending.clear()
        self._board.forget(self)
        self.ended.set()


class Switchboard:
    """A process's connections into one node: at most one to each actor, made at first use."""

    def __init__(self, run_dir: str, spawn: Spawn, own_id: int | None = None) -> None:
        self.run_dir = run_dir
        self._spawn = spawn
        self._own_id = own_id
        self._peers: dict[int, _Peer] = {}
        self._found: dict[str, ActorRef] = {}
        self._numbers = itertools.count(1)

    async def whereis(self, name: str) -> ActorRef:
        """The actor behind a registered name or a path.  Raises NoSuchActor, NoSuchNode.

        The root is asked, unless we are connected to whom it named last time: a name stays with its
        actor until that dies, and death ends the connection.  What may tell of a death sooner (a failed
        call, an answer of the root's) makes us ask again: whoever knows of a death finds the name free.
        """
        known = self._found.get(name)
        if known is not None and known.id in self._peers:
            return known
        path, id_ = await self.ask_root("whereis", name)
        self._found[name] = found = ActorRef(path, id_, self)
        return found

    async def ask_root(self, question: str, *args: object, timeout_s: float = DEADLINE_S) -> Any:
        """Put a question to the node's root.  Raises NoSuchNode if it is gone."""
        try:
            answer = await self.call(ROOT_PATH, ROOT_ID, question, args, {}, timeout_s)
            if question != "whereis":
                self._found.clear()
            return answer
        except (NoSuchActor, ActorExited, ConnectionLost) as error:
            if error.name != ROOT_PATH:
                raise  # an answer: that actor does not exist
            raise NoSuchNode(self.run_dir, self._last_words()) from error

    async def call(
        self, path: str, id_: int, method: str, args: tuple[object, ...], kwargs: dict[str, object], timeout_s: float
    ) -> Any:
        """See ActorRef.call."""
        if id_ == self._own_id:
            raise RuntimeFailure(f"{path!r} calls {method!r} on itself: it would wait for itself for ever; use cast")
        request = next(self._numbers)
        frame = message.encode_request(message.CALL, request, path, method, args, kwargs)
        waiting = _Pending(method)
        peer: _Peer | None = None
        with anyio.move_on_after(timeout_s):
            peer = await self._reach(path, id_)
            peer.pending[request] = waiting
            try:
                await self._post(peer, id_, frame)
                await waiting.done.wait()
            finally:
                peer.pending.pop(request, None)
        if peer is not None and waiting.lost:
            raise await self._lost(peer, id_, waiting)
        if waiting.answer is None:
            raise CallTimeout(path, method, timeout_s)
        return self._open(waiting.answer, path, method)

    async def cast(
        self, path: str, id_: int, method: str, args: tuple[object, ...], kwargs: dict[str, object], timeout_s: float
    ) -> None:
        """See ActorRef.cast."""
        frame = message.encode_request(message.CAST, next(self._numbers), path, method, args, kwargs)
        sent = False
        with anyio.move_on_after(timeout_s):
            peer = await self._reach(path, id_)
            await self._post(peer, id_, frame)
            sent = True
        if not sent:
            raise MailboxFull(path)

    def cast_nowait(
        self, path: str, id_: int, method: str, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        """See ActorRef.cast_nowait."""
        frame = message.encode_request(message.CAST, next(self._numbers), path, method, args, kwargs)
        try:
            peer = self._connected(path, id_)
            taken = peer.connection.post_now(frame)
        except BlockingIOError:
            taken = False
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoSuchActor(path, self._exit_file(id_)) from None
        except BrokenConnectionError:
            raise ActorExited(path, self._exit_file(id_) or "its connection is closed") from None
        if not taken:
            raise MailboxFull(path)

    async def _reach(self, path: str, id_: int) -> _Peer:
        while True:
            try:
                return self._connected(path, id_)
            except BlockingIOError:
                # Its backlog is full; the kernel offers no wait for that.  The caller's deadline bounds this.
                await anyio.sleep(_RETRY_S)
            except (FileNotFoundError, ConnectionRefusedError):
                raise NoSuchActor(path, await self._why(id_)) from None

    def _connected(self, path: str, id_: int) -> _Peer:
        peer = self._peers.get(id_)
        if peer is None:
            directory = self.run_dir if id_ == ROOT_ID else f"{self.run_dir}/actors/{id_}"
            peer = _Peer(self, path, Connection(transport.connect(directory), self._spawn))
            self._peers[id_] = peer
            self._spawn(peer.listen)
        return peer

    async def _post(self, peer: _Peer, id_: int, frame: bytes) -> None:
        await peer.connection.room()
        try:
            peer.connection.post(frame)
        except BrokenConnectionError:
            # Nothing of this frame left.  Its goodbye, if it said one, is still to be read.
            with anyio.move_on_after(_REASON_S):
                await peer.ended.wait()
            raise ActorExited(peer.path, peer.reason or await self._why(id_) or "reason unknown") from None

    async def _lost(self, peer: _Peer, id_: int, waiting: _Pending) -> RuntimeFailure:
        reason = peer.reason or await self._why(id_)
        if waiting.taken:
            return ConnectionLost(peer.path, waiting.method, reason)
        return ActorExited(peer.path, reason)

    async def _why(self, id_: int) -> str:
        """Why an incarnation is dead, where the node can tell soon; else an empty string."""
        if id_ == ROOT_ID:
            return ""
        try:
            return str(await self.ask_root("reason", id_, _REASON_S, timeout_s=2 * _REASON_S))
        except (RuntimeFailure, OSError):  # the node is gone, slow, or there is no descriptor to ask with
            return self._exit_file(id_)

    def _exit_file(self, id_: int) -> str:
        return _first_line(f"{self.run_dir}/actors/{id_}/exit")

    def _last_words(self) -> str:
        return _first_line(f"{self.run_dir}/crash")

    def _open(self, answer: message.Frame, path: str, method: str) -> Any:
        before = bind_refs(self)
        try:
            if answer.kind == message.RESULT:
                return message.decode(answer.body)
            error = message.decode_failure(answer.body, path, method)
        finally:
            bind_refs(before)
        self._found.clear()  # it may have died of this
        raise error

    def forget(self, peer: _Peer) -> None:
        """Drop a connection that ended; the next message makes a new one, or learns that nobody is there."""
        for id_, known in self._peers.items():
            if known is peer:
                del self._peers[id_]
                return

    async def root_ended(self) -> None:
        """Wait until the connection to the root, which must exist, has ended."""
        peer = self._peers.get(ROOT_ID)
        if peer is not None:
            await peer.ended.wait()

    def connections(self) -> list[Connection]:
        """All of them, for a process that is about to end or to be forked."""
        return [peer.connection for peer in self._peers.values()]


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:  # not written, or the directory is gone
        return ""
