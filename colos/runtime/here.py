"""This process, as its own code sees it; and what the runtime says to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from colos.errors import RuntimeFailure
from colos.runtime.refs import ActorRef

if TYPE_CHECKING:
    from colos.runtime.mailbox import Mailbox
    from colos.runtime.switchboard import Switchboard


@dataclass(frozen=True)
class ExitSignal:
    """A process that traps exits got an exit signal, or one it was linked to died."""

    sender: ActorRef
    reason: object


@dataclass(unsafe_hash=True)
class Monitor:
    """What `monitor` gave, and its one `Down` tells."""

    number: int
    target: ActorRef | str = field(compare=False)
    node: str = field(default="", repr=False)


@dataclass(frozen=True)
class Down:
    """A monitored process died, or was not there (reason "noproc")."""

    monitor: Monitor
    target: ActorRef | str
    reason: object


class Here(Protocol):
    """What a process can do to itself."""

    ref: ActorRef
    board: Switchboard
    mailbox: Mailbox
    ancestors: tuple[ActorRef, ...]
    traps: bool
    monitors: dict[int, Monitor]
    spawn: Any
    """Starts a background task, as an anyio task group's `start_soon` does."""
    author: Any
    """The actor object; None in a plain process."""

    def stop(self, reason: object) -> None:
        """End in order, soon."""
        ...

    def trap(self, flag: bool) -> None:
        """Set whether exit signals become messages."""
        ...

    def die(self, reason: object) -> None:
        """End now, as an exit signal does."""
        ...

    def signalled(self, sender: ActorRef, reason: object, *, linked: bool) -> None:
        """Take an exit signal."""
        ...


_here: Here | None = None


def here() -> Here:
    """This process.  Raises RuntimeFailure in a process that the runtime did not start."""
    if _here is None:
        raise RuntimeFailure("this process is not an actor: this exists only inside one")
    return _here


def be_here(process: Here) -> None:
    """Say which process this is, once."""
    global _here
    _here = process
