"""What an author subclasses: Actor."""

from __future__ import annotations

import inspect
from typing import ClassVar

from colos.runtime import here, reasons
from colos.runtime.mailbox import Overflow
from colos.runtime.refs import ActorRef


class Actor:
    """One OS process with a mailbox.  Subclass it; it is constructed in its own process.

    Every public ``async def`` method can be called and cast to from outside, one message at a
    time.  An exception from a method goes to the caller; if it is not an instance of one of
    `expected`, it then also ends the actor, with that reason, and its supervisor decides.
    Source: gen_server(3).
    """

    expected: ClassVar[tuple[type[BaseException], ...]] = ()
    """Exceptions that are answers: the caller gets them and the actor lives on."""
    mailbox_limit: ClassVar[int] = 1000
    """Messages that may wait in this process; beyond it the sockets fill, then senders wait."""
    mailbox_overflow: ClassVar[Overflow] = "wait"
    """Or "drop_oldest": beyond the limit the oldest cast or message is dropped, never a call."""

    async def init(self) -> None:
        """Runs after construction, before the actor counts as started.  If it raises, the start failed."""

    async def info(self, message: object) -> None:
        """Everything that comes and is neither call nor cast: sent messages, ExitSignal, Down, timers."""
        print(f"{self.path}: a message that nobody handles: {message!r}")

    async def terminate(self, reason: object) -> None:
        """Runs before an end in order, within the child's `shutdown_s`; never after a crash."""

    @property
    def ref(self) -> ActorRef:
        """This very incarnation, to hand to others."""
        return here.here().ref

    @property
    def path(self) -> str:
        """This actor's place in the tree, such as ``ledger/writer``; the same for every incarnation."""
        return here.here().ref.path

    async def whereis(self, name: str) -> ActorRef:
        """The process registered under a name, or at a path.  Raises NoSuchActor."""
        return await here.here().board.whereis(name)

    def stop(self, reason: object = reasons.NORMAL) -> None:
        """End in order after the current message: terminate(reason) runs, and then its supervisor decides."""
        here.here().stop(reasons.checked(reason))


def public_methods(actor: type[Actor]) -> frozenset[str]:
    """The methods that may be called from outside."""
    return frozenset(
        name
        for name in dir(actor)
        if not name.startswith("_")
        and not hasattr(Actor, name)
        and inspect.iscoroutinefunction(inspect.getattr_static(actor, name))
    )
