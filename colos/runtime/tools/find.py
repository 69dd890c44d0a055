"""Which nodes and processes there are, by the files of their run directories alone."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass, field
from typing import Any

from colos.errors import RuntimeFailure
from colos.runtime import message, process, rundir, transport
from colos.runtime.refs import ROOT_PATH
from colos.runtime.stats import read_stats


class NotFoundError(Exception):
    """What was asked for is not there; the text says what is."""


@dataclass(frozen=True, slots=True)
class Node:
    """A run directory.  `root_pid` is the pid, as this process sees it, of who holds its lock; 0 if unknown."""

    directory: str
    alive: bool
    root_pid: int = 0

    @property
    def name(self) -> str:
        """What people call it."""
        return os.path.basename(self.directory)


@dataclass(slots=True)
class Found:
    """One incarnation, as its files say.  `alive`: its pid is still this very process."""

    id: int
    directory: str
    path: str
    kind: str
    pid: int | None
    alive: bool
    state: str
    name: str | None = None
    parent: str | None = None
    restarts: int = 0
    mailbox: int | None = None
    doing: str | None = None
    links: list[str] = field(default_factory=list)
    monitors: list[str] = field(default_factory=list)
    last_crash: str | None = None
    """The reason in the newest `exit` file of its path."""


# --- nodes -------------------------------------------------------------------------------


def node_at(directory: str) -> Node:
    """A run directory, looked at without disturbing a node that is about to take its lock."""
    directory = os.path.realpath(directory)
    holder = _lock_holder(f"{directory}/lock")
    return Node(directory, holder is not None or _listens(directory), holder or 0)


def _lock_holder(path: str) -> int | None:
    """Who holds a flock, by /proc/locks: 0 if it cannot be said, None if nobody in sight."""
    try:
        status = os.stat(path)
        with open("/proc/locks") as file:
            lines = [line.split() for line in file]
    except OSError:  # no lock, or no /proc here
        return None
    inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for words in lines:
        if "FLOCK" in words and inode in words and "->" not in words:
            return max(0, int(words[words.index(inode) - 1]))
    return None


def _listens(directory: str) -> bool:
    """Whether a root holds the node's socket open: also one of another pid namespace, or a file system of its own."""
    try:
        transport.connect(directory).close()
    except BlockingIOError:  # its backlog is full
        return True
    except OSError:
        return False
    return True


def nodes() -> list[Node]:
    """Every node of this user, the living and the dead."""
    base = rundir.base_directory()
    places = [f"{base}/{name}" for name in sorted(os.listdir(base))]
    return [node_at(place) for place in places if os.path.exists(f"{place}/lock")]


def node_named(name: str) -> Node:
    """A node by its name or run directory.  Raises NotFoundError."""
    directory = rundir.node_directory(name)
    if os.path.exists(f"{directory}/lock"):
        return node_at(directory)
    raise NotFoundError(f"no node {name!r}: {directory} has no lock; {_known()}")


def _known() -> str:
    names = [node.name for node in nodes() if node.alive]
    return f"alive now: {', '.join(names)}" if names else f"no node is alive in {rundir.base_directory()}"


# --- processes ---------------------------------------------------------------------------


def processes(node: Node) -> list[Found]:
    """The newest incarnation of each path, supervisors too, in start order."""
    newest: dict[str, Found] = {}
    crashes: dict[str, str] = {}
    names = _names(node)
    for id_, directory in rundir.incarnations(node.directory):
        found = _read(id_, directory, names.get(id_))
        if found.path:  # else it is being made or removed
            ended = rundir.read_text(f"{directory}/exit").partition("\n")[0]
            if ended:
                crashes[found.path] = ended
            newest.pop(found.path, None)
            newest[found.path] = found
    for path, found in newest.items():
        found.last_crash = crashes.get(path)
    return list(newest.values())


def _names(node: Node) -> dict[int, str]:
    names = {}
    try:
        for name in os.listdir(f"{node.directory}/names"):
            target = os.path.basename(os.readlink(f"{node.directory}/names/{name}"))
            if target.isdigit() and not name.startswith("."):
                names[int(target)] = name
    except OSError:  # no names, or one went meanwhile
        pass
    return names


def _read(id_: int, directory: str, name: str | None) -> Found:
    def line(what: str) -> str:
        return rundir.read_text(f"{directory}/{what}")

    kind = line("spec").partition("\n")[0].removeprefix("kind ")
    pid, restarts, parent, state = line("pid"), line("restarts"), line("parent"), line("state")
    number = int(pid) if pid.isdigit() else None
    stats = read_stats(f"{directory}/stats")
    waiting, doing = stats.get("mailbox", ""), stats.get("call", "-")
    return Found(
        id_,
        directory,
        line("path"),
        kind or "?",
        number,
        number is not None and is_same(number, line("start_time")),
        state or "starting",
        name,
        None if parent in ("", "-") else parent,
        int(restarts) if restarts.isdigit() else 0,
        int(waiting) if waiting.isdigit() else None,
        None if doing == "-" else doing,
        line("links").splitlines(),
        line("monitors").splitlines(),
    )


def is_same(pid: int, start_time: str) -> bool:
    """Whether a pid still is the process that was started then, in this pid namespace."""
    ticks = process.start_time_ticks(pid)
    return ticks != 0 and str(ticks) == start_time and not process.is_dying(pid)


def living(target: str, node_name: str | None) -> tuple[Node, Found]:
    """A living process by its path or registered name.  Raises NotFoundError, which says whom there is."""
    among = [node_named(node_name)] if node_name else [node for node in nodes() if node.alive]
    if not all(node.alive for node in among):
        raise NotFoundError(f"the node {node_name!r} is dead; `colos ps {node_name}` shows what is left of it")
    hits = [(node, found) for node in among for found in processes(node) if target in (found.path, found.name)]
    alive = [(node, found) for node, found in hits if found.alive]
    if len(alive) == 1:
        return alive[0]
    if alive:
        raise NotFoundError(f"{target!r} lives in {', '.join(node.name for node, _ in alive)}: choose by --node")
    if hits:
        found = hits[0][1]
        if found.kind == "supervisor":
            raise NotFoundError(f"{target!r} is a supervisor, which has no process of its own")
        raise NotFoundError(
            f"{target!r} is dead: {found.last_crash or 'its pid is gone, or not in this pid namespace'}"
        )
    if not among:
        raise NotFoundError(_known())
    there = [found.name or found.path for node in among for found in processes(node) if found.alive]
    raise NotFoundError(f"no process {target!r}; alive now: {', '.join(there) or 'none'}")


# --- asking the root ---------------------------------------------------------------------


def ask_root(node: Node, question: str, timeout_s: float) -> Any:
    """A question to a node's root.  Raises OSError (TimeoutError among them) where it does not answer."""
    with transport.connect(node.directory) as connection:
        connection.settimeout(timeout_s)
        for part in message.encode_request(message.CALL, 1, ROOT_PATH, question, (), {}):
            connection.sendall(part)
        for frame in frames(connection):
            if frame.kind == message.RESULT:
                return message.decode(frame)
            if frame.kind == message.FAILURE:
                raise ConnectionError(str(message.decode_failure(frame, ROOT_PATH, question)))
    raise ConnectionError("it closed the connection")


def frames(connection: socket.socket) -> Any:
    """The frames that come over a blocking connection, until its end."""
    parser = message.Parser()
    while data := connection.recv(1 << 16):
        yield from parser.feed(data)


def complain(error: Exception | str) -> int:
    """Say on stderr why a command did not do what it was asked; the exit status."""
    print(f"colos: {error}", file=sys.stderr)
    return 1


FAILURES = (NotFoundError, RuntimeFailure, OSError, message.ProtocolError)
"""What a command reports in a line instead of a traceback."""
