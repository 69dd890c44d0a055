"""One process of a node, as its root knows it."""

from __future__ import annotations

import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colos.errors import NameTaken
from colos.runtime import message
from colos.runtime.message import Notice
from colos.runtime.rundir import ExitRecord
from colos.runtime.supervisor import Plan
from colos.runtime.transport import BrokenConnectionError, Connection

if TYPE_CHECKING:
    from colos.runtime.supervision import Supervision


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One process or supervisor as the root sees it.  `id` is 0 and `pid` None where there is no process."""

    path: str
    id: int
    pid: int | None
    state: str
    restarts: int
    name: str | None
    kind: str = "actor"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a process stands: its parent first, then that one's parent, and so on, as (path, id)."""

    ancestors: tuple[tuple[str, int], ...]

    @property
    def parent(self) -> str:
        """The parent's path."""
        return self.ancestors[0][0] if self.ancestors else "-"


class Party:
    """Whom the root talks with: a process of the node, or a client from outside."""

    id: int
    path: str
    node = ""
    connection: Connection | None = None

    def send(self, frame: bytes) -> None:
        """Tell it something; if it cannot hear any more, its death will say so."""
        if self.connection is not None:
            try:
                self.connection.post(frame)
            except BrokenConnectionError:
                pass

    def notify(self, notice: Notice) -> None:
        """Tell it a signal."""
        self.send(message.encode_plain(message.NOTICE, tuple(notice)))


class Guest(Party):
    """A client from outside, or a process of another node (which says so)."""

    def __init__(self, id_: int, connection: Connection) -> None:
        self.id = id_
        self.path = f"(client {-id_})"
        self.connection = connection
        self.sender_id, self.sender_path = id_, self.path
        self.reason: object = None

    def identify(self, node: str, path: str, id_: int) -> None:
        """It is a process of another node."""
        self.node, self.sender_id, self.sender_path = node, id_, path
        self.path = f"{path} #{id_} of {node}"


class Child(Party):
    """An OS process.  `record` is set when it has died, and all is known of its death."""

    socket: socket.socket
    """The root's end of its control socket, once it was forked."""

    def __init__(self, plan: Plan, path: str, id_: int, origin: Origin) -> None:
        self.plan = plan
        self.path = path
        self.id = id_
        self.origin = origin
        self.supervision: Supervision | None = None
        self.key = ""
        """Which of the nursery's plans is its own; empty: the root tells it."""
        self.extra: bytes | None = None
        self.pid: int | None = None
        self.heard = False
        """It has said HELLO: it listens."""
        self.ready = False
        self.stopping = False
        self.traps = False
        self.condemned: object = None
        """The reason to record when the SIGKILL that the root sent it has done its work."""
        self.refused: NameTaken | None = None
        """Its name was taken when it came."""
        self.spawner = 0
        """Who waits for its init(), and is told of a failure by that instead of by its link."""
        self.unnoted: deque[message.Frame] = deque()
        self.words: tuple[object, str, str] | None = None
        self.record: ExitRecord | None = None
        self.born = time.monotonic()

    @property
    def state(self) -> str:
        """In the words of the run directory."""
        if self.record is not None:
            return "exited"
        return "stopping" if self.stopping else "running" if self.ready else "starting"

    def info(self, name: str | None, restarts: int) -> ProcessInfo:
        """What is known of it now."""
        return ProcessInfo(self.path, self.id, self.pid, self.state, restarts, name, self.plan.kind)

    def be(self) -> None:
        """Tell it who it is."""
        self.send(message.encode_plain(message.BE, (self.path, self.id, self.key)))

    def go(self) -> None:
        """Let it begin."""
        plan = None if self.key else self.plan
        self.send(message.encode_plain(message.GO, (self.origin.ancestors, plan, self.extra)))
