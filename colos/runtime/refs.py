"""References: how one process names another."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from colos.errors import RuntimeFailure

if TYPE_CHECKING:
    from colos.runtime.switchboard import Switchboard

DEADLINE_S: Final = 5.0
"""How long a call waits for its answer, and a message for room, unless told otherwise."""
ROOT_PATH: Final = "(root)"
ROOT_ID: Final = 0
"""The id of the node's root process, and of its top supervisor; others count from 1."""

_bound: Switchboard | None = None


class _Here(threading.local):
    board: Switchboard | None = None


_here: Final = _Here()


def bind(board: Switchboard | None) -> None:
    """From now on, references that are unpickled in this process speak through `board`."""
    global _bound
    _bound = board


@contextmanager
def binding(board: Switchboard) -> Iterator[None]:
    """The same for a block without an await in it, and for this thread only: another may have a loop of its own."""
    before, _here.board = _here.board, board
    try:
        yield
    finally:
        _here.board = before


def _revive(path: str, id_: int, node: str) -> ActorRef:
    board = _here.board or _bound
    return ActorRef(path, id_, node, None if board is None else board.other(node))


class ActorRef:
    """Names one incarnation of a process, as a pid does; it never reaches a later one.

    ``await ref.deposit("a", 5)`` calls with the default deadline; every keyword goes to the method.
    `call`, `cast`, `cast_nowait`, `path`, `id` and `node` are this class's own: a method of such a name is
    reached through `call`.  Picklable: what a ref says travels over the connections of the process
    that unpickles it.
    """

    __slots__ = ("_board", "id", "node", "path")

    def __init__(self, path: str, id: int, node: str = "", board: Switchboard | None = None) -> None:  # noqa: A002 - its public name
        self.path = path
        self.id = id
        self.node = node
        self._board = board

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return functools.partial(self._call_plainly, name)

    async def _call_plainly(self, method: str, /, *args: object, **kwargs: object) -> Any:
        return await board_of(self).call(self.path, self.id, method, args, kwargs, DEADLINE_S)

    async def call(self, method: str, /, *args: object, timeout: float | None = DEADLINE_S, **kwargs: object) -> Any:
        """Call a method and wait for its answer, `timeout` seconds at most (None: the default).

        `timeout` is the one keyword that does not reach the method.  Raises what the method
        raised, or NoSuchActor, ActorExited (both: it did not happen), ConnectionLost, CallTimeout
        (both: unknown), NotPicklable, MessageTooLarge, NoSuchMethod.
        """
        return await board_of(self).call(self.path, self.id, method, args, kwargs, _deadline(timeout))

    async def cast(self, method: str, /, *args: object, timeout: float | None = DEADLINE_S, **kwargs: object) -> None:
        """Send without an answer; waits while the mailbox and the socket to it are full.

        Raises MailboxFull if that lasts `timeout` seconds, NoSuchActor or ActorExited if it is known
        to be dead: in each case nothing was sent.
        """
        await board_of(self).cast(self.path, self.id, method, args, kwargs, _deadline(timeout))

    def cast_nowait(self, method: str, /, *args: object, **kwargs: object) -> None:
        """Send without an answer, now; raises MailboxFull instead of waiting."""
        board_of(self).cast_nowait(self.path, self.id, method, args, kwargs)

    def __reduce__(self) -> tuple[object, ...]:
        return (_revive, (self.path, self.id, self.node))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorRef) and (self.id, self.path, self.node) == (other.id, other.path, other.node)

    def __hash__(self) -> int:
        return hash((self.path, self.id))

    def __repr__(self) -> str:
        return f"<ActorRef {self.path} #{self.id}>"


def _deadline(timeout: float | None) -> float:
    return DEADLINE_S if timeout is None else timeout


def board_of(ref: ActorRef) -> Switchboard:
    """What a reference speaks through.  Raises RuntimeFailure where there is nothing."""
    if ref._board is None:
        raise RuntimeFailure(f"{ref!r} was unpickled outside a node and cannot speak; use connect(run_dir)")
    return ref._board
