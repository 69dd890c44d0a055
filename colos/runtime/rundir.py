"""The run directory: a node as files, written and read in one place.

    lock                 held (flock) by the root for as long as the node lives
    root.pid             the root's pid, in its own pid namespace
    supervisor           the supervisor's name and class
    sock                 where clients and actors ask the root
    crash                why the node could not start, or gave up
    names/NAME           -> ../actors/ID
    actors/ID/           one incarnation: pid path start_time parent spec state restarts log exit sock

It is a *view*: nothing in it is read back for a decision of the runtime.  That is why a write that
fails (a full disk) is counted and otherwise let go: the node lives on, its picture is stale.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from colos.runtime import process, reasons
from colos.runtime.process import Death
from colos.runtime.recent import KEEP_ALIKE, Recent
from colos.runtime.supervisor import Plan

STATES: Final = ("starting", "running", "stopping", "exited")
KEEP_EXITED: Final = 3
"""How many dead incarnations of each path stay readable."""
STDERR_TAIL_BYTES: Final = 4096


def write(path: str, text: str) -> bool:
    """Write a file so that a reader sees the old text or the new; False if the disk took neither.

    On a full disk a file that exists is overwritten in place: its first page needs no new block.
    """
    data = text.encode(errors="backslashreplace")
    draft = f"{path}.new"
    try:
        try:
            _put(draft, data, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.rename(draft, path)
            return True
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            remove_file(draft)
            _put(path, data, os.O_WRONLY)
            os.truncate(path, len(data))
            return True
    except OSError:  # a view only, see above
        return False


def write_new(path: str, text: str) -> bool:
    """Write a file that nobody reads yet; False if that failed."""
    try:
        _put(path, text.encode(errors="backslashreplace"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        return True
    except OSError:  # a view only, see above
        return False


def _put(path: str, data: bytes, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    finally:
        os.close(descriptor)


def remove_file(path: str) -> None:
    """Unlink a file if it is there."""
    try:
        os.unlink(path)
    except OSError:  # it is not there, or the directory is gone with it
        pass


def tail(path: str, limit_bytes: int = STDERR_TAIL_BYTES) -> str:
    """The end of a text file; empty if there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            data = os.pread(descriptor, limit_bytes, max(0, size - limit_bytes)) if size else b""
        finally:
            os.close(descriptor)
        return data.decode(errors="replace")
    except OSError:  # never written, or removed meanwhile
        return ""


def base_directory() -> str:
    """Where nodes' run directories are, made where missing.

    $COLOS_RUN, else $XDG_RUNTIME_DIR/colos, else one in /dev/shm, where there is one (in memory, files cost
    a tenth), else one in the temporary directory.
    """
    base = os.environ.get("COLOS_RUN")
    if not base and (runtime_dir := os.environ.get("XDG_RUNTIME_DIR")):
        base = f"{runtime_dir}/colos"
    if not base:
        memory = os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK)
        base = f"{'/dev/shm' if memory else tempfile.gettempdir()}/colos-{os.getuid()}"
    os.makedirs(base, mode=0o700, exist_ok=True)
    return base


def node_directory(node: str) -> str:
    """The run directory of a node, given by name; a path (with a "/") is one already."""
    return node if "/" in node else f"{base_directory()}/{node}"


@dataclass(frozen=True, slots=True)
class ActorEntry:
    """The newest incarnation of one path, as its files say.  `pid` is None until it is known."""

    id: int
    path: str
    pid: int | None
    state: str
    restarts: int


def read_actors(run_dir: str) -> list[ActorEntry]:
    """The node's processes, not its supervisors, in start order of their paths, while it may be changing.

    Pids are those of the node's pid namespace.  Whoever reads decides what an entry's age means:
    a process that was killed a moment ago may still be called running.
    """
    newest: dict[str, ActorEntry] = {}
    for id_, directory in incarnations(run_dir):
        path = read_text(f"{directory}/path")
        if path and not read_text(f"{directory}/spec").startswith("kind supervisor"):  # no path: being made or removed
            pid, restarts = read_text(f"{directory}/pid"), read_text(f"{directory}/restarts")
            entry = ActorEntry(
                id_,
                path,
                int(pid) if pid.isdigit() else None,
                read_text(f"{directory}/state") or "starting",
                int(restarts) if restarts.isdigit() else 0,
            )
            newest[path] = entry
    return list(newest.values())


def incarnations(run_dir: str) -> list[tuple[int, str]]:
    """The ids and directories of all that are kept, oldest first."""
    try:
        names = os.listdir(f"{run_dir}/actors")
    except FileNotFoundError:
        return []
    return sorted((int(name), f"{run_dir}/actors/{name}") for name in names if name.isdigit())


def read_text(path: str) -> str:
    """What a small file says; empty if it is not there."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:  # not written yet, or removed meanwhile
        return ""


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How one incarnation ended.  `pid` is the node's own namespace's; None if it died unborn."""

    path: str
    id: int
    pid: int | None
    reason: object
    traceback: str
    stderr: str
    ran_s: float
    was_ready: bool
    report: str = ""
    """What it was doing: its mailbox, its last messages."""

    @classmethod
    def unborn(cls, path: str, reason: object) -> ExitRecord:
        """Of what could not even be begun."""
        return cls(path, 0, None, reason, "", "", 0.0, False)


def exit_text(record: ExitRecord, death: Death | None) -> str:
    """The `exit` file: the reason in the first line, then what helps to understand it."""
    parts = [reasons.text(record.reason) + "\n"]
    if record.traceback:
        parts.append(record.traceback.rstrip() + "\n")
    if record.report:
        parts.append(record.report + "\n")
    if record.stderr.strip():
        parts.append(f"its output ends:\n{record.stderr.rstrip()}\n")
    usage = f"pid {record.pid}, ran {record.ran_s:.3f} s"
    if death is not None:
        usage += f", user {death.user_s:.3f} s, system {death.system_s:.3f} s, at most {death.rss_kib_max} KiB resident"
    parts.append(usage + "\n")
    return "\n".join(parts)


def _spec_text(plan: Plan) -> str:
    lines = [f"kind {plan.kind}", f"actor {plan.label}", f"name {plan.name or '-'}", f"restart {plan.restart}"]
    lines.append(f"shutdown_s {plan.shutdown_s:g}")
    if plan.heartbeat_s is not None:
        lines.append(f"heartbeat_s {plan.heartbeat_s:g}")
    return "\n".join(lines) + "\n"


class RunDirectory:
    """The root's hand on its run directory."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.failed_writes = 0
        self._next_id = 1
        self._exited: Recent[int] = Recent(KEEP_EXITED, KEEP_ALIKE)

    def make(self, supervisor: str) -> None:
        """Make the directories and clear away a dead node's.  Call it holding the lock.

        Ids go on from where the dead node's ended, so that a reference into it finds nobody.
        """
        before = incarnations(self.path)
        if before:
            self._next_id = before[-1][0] + 1
            shutil.rmtree(f"{self.path}/actors")
            shutil.rmtree(f"{self.path}/names", ignore_errors=True)
        for name in ("sock", "crash"):
            remove_file(f"{self.path}/{name}")
        for name in ("actors", "names"):
            os.makedirs(f"{self.path}/{name}", mode=0o700, exist_ok=True)
        write_new(f"{self.path}/supervisor", f"{supervisor}\n")
        write(f"{self.path}/root.pid", f"{os.getpid()}\n")

    def actor(self, id_: int) -> str:
        """The directory of one incarnation."""
        return f"{self.path}/actors/{id_}"

    def next_id(self) -> int:
        """The id that the next incarnation will have."""
        return self._next_id

    def add_actor(self, path: str, parent: str, plan: Plan, restarts: int) -> int:
        """Make the directory of a new incarnation; its id.  Raises OSError if there can be none."""
        id_ = self._next_id
        directory = self.actor(id_)
        os.mkdir(directory, 0o700)
        self._next_id += 1
        with self._counting():
            self._count(write_new(f"{directory}/path", f"{path}\n"))
            self._count(write_new(f"{directory}/parent", f"{parent}\n"))
            self._count(write_new(f"{directory}/spec", _spec_text(plan)))
            self._count(write_new(f"{directory}/restarts", f"{restarts}\n"))
            self._count(write_new(f"{directory}/state", "starting\n"))
        return id_

    def set_pid(self, id_: int, pid: int, start_time: int) -> None:
        """Say which process an incarnation is; `start_time` in clock ticks after boot."""
        self._count(write_new(f"{self.actor(id_)}/start_time", f"{start_time}\n"))
        self._count(write_new(f"{self.actor(id_)}/pid", f"{pid}\n"))

    def set_state(self, id_: int, state: str) -> None:
        """Write the state of what has no process of its own to write it."""
        self._count(write(f"{self.actor(id_)}/state", f"{state}\n"))

    def set_relations(self, id_: int, links: list[str], monitors: list[str]) -> None:
        """Write whom a process is linked to and whom it monitors, one a line; no file: nobody."""
        for name, others in (("links", links), ("monitors", monitors)):
            path = f"{self.actor(id_)}/{name}"
            if others:
                self._count(write(path, "\n".join(others) + "\n"))
            else:
                remove_file(path)

    def set_exit(self, id_: int, path: str, text: str) -> None:
        """Write an incarnation's end, and forget the oldest (see KEEP_EXITED, KEEP_ALIKE)."""
        directory = self.actor(id_)
        remove_file(f"{directory}/sock")  # a forked grandchild may hold the socket open: nobody answers there
        self._count(write(f"{directory}/exit", text))
        self._count(write(f"{directory}/state", "exited\n"))
        for forgotten in self._exited.add(path, id_):
            shutil.rmtree(self.actor(forgotten), ignore_errors=True)

    def link_name(self, name: str, id_: int) -> None:
        """Let names/NAME point at an incarnation."""
        with self._counting():
            draft = f"{self.path}/names/.{name}.new"
            remove_file(draft)
            os.symlink(f"../actors/{id_}", draft)
            os.rename(draft, f"{self.path}/names/{name}")

    def unlink_name(self, name: str) -> None:
        """Free a name."""
        remove_file(f"{self.path}/names/{name}")

    def close(self) -> None:
        """Say that nobody is here any more; what happened stays readable."""
        for name in ("sock", "root.pid"):
            remove_file(f"{self.path}/{name}")

    @contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # a view only, see the module's text
            self._count(False)

    def _count(self, written: bool) -> None:
        if not written:
            self.failed_writes += 1
            if self.failed_writes == 1:
                process.complain(f"{self.path} takes no more writes; its files are stale from here on")
