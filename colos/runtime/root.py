"""A node's root process: it forks the node's processes, sees them die, and tells whoever is to know.

It carries the node's supervisors (`supervision`) and answers questions (`desk`).  Everything between
two awaits happens at one instant.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final

import anyio
import anyio.abc

from colos.errors import NameTaken
from colos.runtime import message, process, reasons, rundir
from colos.runtime.forks import Forks
from colos.runtime.incarnation import Child, Guest, Origin, Party
from colos.runtime.links import Relations, Watch
from colos.runtime.message import Notice, ProtocolError
from colos.runtime.process import Death
from colos.runtime.recent import Departed
from colos.runtime.refs import ROOT_ID
from colos.runtime.registry import Entry, Registry
from colos.runtime.rundir import ExitRecord, RunDirectory, exit_text
from colos.runtime.supervision import Supervision
from colos.runtime.supervisor import Plan, TreeSpec
from colos.runtime.transport import Connection, Listener
from colos.runtime.waiting import Changes
from colos.runtime.watchdog import Watchdog

if TYPE_CHECKING:
    from colos.runtime.desk import Desk
    from colos.runtime.heart import Pulse

CLEAN: Final = 0
GAVE_UP: Final = 1
START_FAILED: Final = 2

_KILL_S: Final = 5.0
"""How long a SIGKILLed process may take to be gone: one in uninterruptible sleep may never."""
_FAREWELL_S: Final = 2.0
"""How long a process that said its last words may take to end."""
_BIRTH_S: Final = 5.0
"""How long the zygote may take to fork before the spare takes its place."""
_OBEY_S: Final = 2.0
"""How long a process that does not trap exits may take to die of a signal before it is killed."""
_LOOSE_S: Final = 1.0
"""How long unsupervised processes may take to end when their node does."""


class Root:
    """The node."""

    tasks: anyio.abc.TaskGroup
    changes: Changes
    desk: Desk

    def __init__(self, tree: TreeSpec, run_directory: RunDirectory, backend: str, pulse: Pulse | None = None) -> None:
        self._pulse = pulse
        self._foreign = frozenset(process.children())
        """Who was there before: whoever started them waits for them."""
        self.tree = tree
        self.dir = run_directory
        self.failure = ""
        """Why the node did not start or gave up, for people."""
        self.top = Supervision(self, tree, tree.name, ROOT_ID, Origin(()), tree.name)
        self.children: dict[int, Child] = {}
        self.supervisions: dict[int, Supervision] = {ROOT_ID: self.top}
        self.guests: dict[int, Guest] = {}
        self.registry = Registry()
        self.relations = Relations()
        self.departed = Departed()
        self.stopping = False
        self._forks = Forks(tree, run_directory.path, backend)
        self._pids: dict[int, Child] = {}

    def account(self) -> str:
        """Why the node failed, with what is known of the process behind it."""
        text = f"{self.tree.label}: {self.failure}\n"
        blamed = self.top.blamed
        return f"{text}\n{exit_text(blamed, None)}" if blamed else text

    # --- before the loop

    def fork_first(self) -> None:
        """Fork the first processes, which wait for their turn, and the zygote.  Raises OSError."""
        self.top.conceive(ahead=True)
        for child, pid in self._forks.fork_first(self.children.values()):
            self._know(child, pid)

    def conceive(
        self, plan: Plan, path: str, origin: Origin, restarts: int, *, key: str, extra: bytes | None = None
    ) -> Child:
        """A process that is still to be forked.  Raises OSError."""
        id_ = self.dir.add_actor(path, origin.parent, plan, restarts)
        self.children[id_] = child = Child(plan, path, id_, origin)
        child.key, child.extra = key, extra
        return child

    def conceive_supervision(self, plan: Plan, path: str, origin: Origin, restarts: int, key: str) -> Supervision:
        """A supervisor that is still to be begun.  Raises OSError."""
        assert plan.tree is not None
        id_ = self.dir.add_actor(path, origin.parent, plan, restarts)
        self.supervisions[id_] = supervision = Supervision(self, plan.tree, path, id_, origin, key, plan)
        self.registry.add(Entry(path, id_))
        if plan.name is not None:
            self.give_name(plan.name, Entry(path, id_))
        return supervision

    # --- the loop

    async def run(self, listening: socket.socket, lifeline: socket.socket | None, ready: Callable[[], None]) -> int:
        """Start the children, keep them running, stop them; the exit code."""
        from colos.runtime.desk import Desk  # it needs this module's Root

        self.desk = desk = Desk(self)
        with anyio.open_signal_receiver(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT) as signals:
            async with anyio.create_task_group() as tasks:
                self.tasks = tasks
                self.changes = Changes()
                tasks.start_soon(self._obey_signals, signals)
                tasks.start_soon(Listener(listening, tasks.start_soon, desk.attend).run)
                if lifeline is not None:
                    tasks.start_soon(self._hold, lifeline)
                if self._pulse is not None and self._pulse.watch_s is not None:
                    tasks.start_soon(self._beat, self._pulse, self._pulse.watch_s / 4)
                tasks.start_soon(Watchdog(self).run)
                for child in list(self.children.values()):
                    self._hear(child)
                self.reap()  # whoever died before the signal had a receiver
                code = await self._live(ready)
                tasks.cancel_scope.cancel()
        return code

    async def _live(self, ready: Callable[[], None]) -> int:
        top = self.top
        top.begin()
        await self.until(lambda: top.ready or top.record is not None)
        began = top.ready
        if began:
            if self._pulse is not None:
                self._pulse.ready()
            ready()
            self._forks.make_spare()
        await self.until(lambda: top.record is not None)
        self.failure = self.failure or top.why
        await self._stop_loose()
        if not self.failure:
            return CLEAN
        return GAVE_UP if began else START_FAILED

    async def until(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait for something that a change of the node brings about; False at the deadline."""
        if condition():
            return True
        with anyio.move_on_after(timeout_s):
            while not condition():
                await self.changes.wait()
        return condition()

    # --- starting

    def fork(self, child: Child) -> None:
        """Have a conceived process forked; if that cannot be, it is dead already."""
        try:
            child.socket = self._forks.fork()
        except OSError as error:
            self._bury(child, None, reasons.describe(error))
        else:
            self._hear(child)

    async def begin(self, child: Child, interrupted: Callable[[], bool]) -> None:
        """Let a process begin, and wait until it is ready; else it is dead afterwards, or interrupted."""
        child.go()
        timeout_s = child.plan.start_s

        def over() -> bool:
            return child.ready or child.record is not None or interrupted()

        if not child.heard and not await self.until(lambda: child.heard or over(), min(_BIRTH_S, timeout_s)):
            self._forks.replace()
        began = await self.until(over, timeout_s)
        if child.record is None and not began:
            child.words = (f"error: it was not ready within {timeout_s:g} s", "", "")
            await self.kill(child)
        self.tasks.start_soon(self._settle)

    async def _settle(self) -> None:
        self._forks.settle()  # at the next turn: who waits for this start has been told by then

    # --- processes

    def _hear(self, child: Child) -> None:
        child.connection = connection = Connection(child.socket, self.tasks.start_soon)
        connection.listen(functools.partial(self._heard, child), functools.partial(self._deaf, child))
        child.be()

    def _heard(self, child: Child, frames: list[message.Frame]) -> None:
        child.unnoted.extend(frames)
        self._note_all(child)
        self.reap()  # it may have died before its BORN was read; only now, when all it said is noted

    def _deaf(self, child: Child, _: ProtocolError | None) -> None:
        """The connection has ended: it is dead, or as good as dead."""
        self.reap()
        if child.record is not None:
            return
        if child.pid is None:
            self._bury(child, None, "error: it died before it could say its pid")
        else:
            self._signal(child, signal.SIGKILL)  # nobody can stop it in order any more

    def _note(self, child: Child, frame: message.Frame) -> None:
        kind = frame.kind
        if kind == message.CALL:
            self.desk.take(child, frame)
            return
        if kind == message.BORN:
            if child.pid is None:
                self._know(child, frame.request)
        elif kind == message.HELLO:
            child.heard = True
            self._register(child)
        elif kind == message.READY:
            child.ready = True
        elif kind == message.TRAP:
            child.traps = bool(frame.request)
        elif kind == message.STOP:
            child.stopping = True
            self._free_names(child)
        elif kind == message.EXIT:
            child.words = child.words or message.decode(frame)
            self._free_names(child)  # it ends now: nobody is to find it any more
        self.changes.notify()

    def _know(self, child: Child, pid: int) -> None:
        child.pid = pid
        self._pids[pid] = child
        self.dir.set_pid(child.id, pid, process.start_time_ticks(pid))

    def _register(self, child: Child) -> None:
        if child.record is None:
            entry = Entry(child.path, child.id)
            self.registry.add(entry)
            if child.plan.name is not None:
                try:
                    self.give_name(child.plan.name, entry)
                except NameTaken as error:
                    child.refused = error
                    self.condemn(child, reasons.describe(error))

    def give_name(self, name: str, entry: Entry) -> None:
        """Register and show a name.  Raises NameTaken."""
        self.registry.register(name, entry)
        self.dir.link_name(name, entry.id)

    def _free_names(self, member: Child | Supervision) -> None:
        name = self.registry.remove(member.id, member.path)
        if name is not None:
            self.dir.unlink_name(name)

    def look(self) -> None:
        """Take in what processes have said and which have died by now, before answering a question about them."""
        for child in list(self.children.values()):
            if child.connection is not None:
                self._read_what_it_said(child, child.connection)
        self.reap()

    def reap(self) -> None:
        """Collect every child that is dead, adopted strangers too, without waiting."""
        while (pid := process.peek_dead_child(self._foreign)) is not None:
            child = self._pids.get(pid)
            if child is not None:
                self._bury(child, process.reap(pid), "")
            elif not self._forks.owns(pid) and any(child.pid is None for child in self.children.values()):
                return  # it may be a child whose BORN is still unread: looked at again after that
            else:
                why = self._forks.died(pid, process.reap(pid))
                self.failure = self.failure or why
            self.changes.notify()

    def _bury(self, child: Child, death: Death | None, reason: object) -> None:
        """Record a death: last words are read, names are freed, then everybody may know."""
        if child.connection is not None:
            self._read_what_it_said(child, child.connection)
        trace = report = ""
        if child.words is not None:
            reason, trace, report = child.words
        killed = death is not None and os.WIFSIGNALED(death.status)
        if child.condemned is not None and killed:
            reason, trace = child.condemned, ""
        elif death is not None and (child.words is None or (killed and not _is_error(reason))):
            reason, trace = death.reason, ""
        stderr = rundir.tail(f"{self.dir.actor(child.id)}/log")
        ran_s = time.monotonic() - child.born
        record = ExitRecord(child.path, child.id, child.pid, reason, trace, stderr, ran_s, child.ready, report)
        self._free_names(child)
        self.dir.set_exit(child.id, child.path, exit_text(record, death))
        child.record = record
        self.departed.add(record)
        self.children.pop(child.id, None)
        if child.pid is not None:
            self._pids.pop(child.pid, None)
        if child.connection is not None:
            child.connection.close()
        self._tell(self.relations.died(child.id), child.id, child.path, reason, silent=child.spawner)
        if child.supervision is not None:
            child.supervision.child_ended(child, reason)
        self.changes.notify()

    def bury_supervision(self, supervision: Supervision, reason: object) -> None:
        """The same of a supervisor."""
        record = ExitRecord(supervision.path, supervision.id, None, reason, "", "", 0.0, supervision.begun)
        supervision.record = record
        self.departed.add(record)
        if supervision is not self.top:
            self.supervisions.pop(supervision.id, None)
            self._free_names(supervision)
            self.dir.set_exit(supervision.id, supervision.path, exit_text(record, None))
        self._tell(self.relations.died(supervision.id), supervision.id, supervision.path, reason)
        if supervision.parent is not None:
            supervision.parent.child_ended(supervision, reason)
        self.changes.notify()

    def _tell(
        self,
        related: tuple[list[int], list[Watch]],
        id_: int,
        path: str,
        reason: object,
        *,
        node: str = "",
        silent: int = 0,
    ) -> None:
        linked, watches = related
        for watch in watches:
            party = self.party(watch.watcher)
            if party is not None:
                party.notify(Notice("down", path, id_, reason, -1, watch.number, node))
                self.show_relations(party.id)
        for other in linked:
            party = self.party(other)
            if party is not None and other != silent:
                party.notify(Notice("link", path, id_, reason, -1, 0, node))
                self.show_relations(party.id)
                self.enforce(party, reason)

    def show_relations(self, id_: int) -> None:
        """Write whom a process is linked to and whom it monitors."""
        if id_ in self.children:
            links, monitors = self.relations.linked(id_), self.relations.monitors(id_)
            self.dir.set_relations(id_, [*map(self.name_for_people, links)], [*map(self.name_for_people, monitors)])

    def name_for_people(self, id_: int) -> str:
        """The path and id of whoever has an id."""
        someone = self.party(id_) or self.supervisions.get(id_)
        return f"{someone.path} #{id_}" if someone is not None else f"#{id_}"

    def party(self, id_: int) -> Party | None:
        """A living process, or a client from outside."""
        return self.children.get(id_) or self.guests.get(id_)

    def guest_left(self, guest: Guest) -> None:
        """A client, or a process of another node, is gone."""
        reason = guest.reason if guest.reason is not None else reasons.NOCONNECTION
        # To others it is who it is in its own node.
        self._tell(self.relations.died(guest.id), guest.sender_id, guest.sender_path, reason, node=guest.node)
        self.guests.pop(guest.id, None)

    def enforce(self, party: Party, reason: object) -> None:
        """A process that does not trap exits dies of a signal, even one that is stuck and cannot hear it."""
        if isinstance(party, Child) and not party.traps and reason != reasons.NORMAL:
            self.tasks.start_soon(self._enforce, party, reason)

    async def _enforce(self, child: Child, reason: object) -> None:
        if not await self.until(lambda: bool(child.record or child.words or child.traps), _OBEY_S):
            self.condemn(child, reason)

    def condemn(self, child: Child, reason: object) -> None:
        """SIGKILL a process; `reason` is what it dies of."""
        if child.condemned is None:
            child.condemned = reason
        self._free_names(child)
        self._signal(child, signal.SIGKILL)

    def _read_what_it_said(self, child: Child, control: Connection) -> None:
        # Of a dead child this is all it ever sent; a grandchild that holds the socket open only hides the end.
        try:
            while not control.closed:
                child.unnoted.extend(control.receive_now())
        except (BlockingIOError, EOFError, ProtocolError):
            pass
        self._note_all(child)

    def _note_all(self, child: Child) -> None:
        # One by one from a queue: noting a question may find the child dead, and then its last words come first.
        while child.unnoted:
            self._note(child, child.unnoted.popleft())

    # --- stopping

    def ask_to_stop(self) -> None:
        """Stop the node in order."""
        self.stopping = True
        self._forks.kill()  # so that they die meanwhile
        self.top.ask_to_stop(reasons.SHUTDOWN)

    async def _stop_loose(self) -> None:
        """Whoever is left has no supervisor, or outlived it."""
        self.stopping = True
        for child in self.children.values():
            child.stopping = True
            child.send(message.encode(message.STOP))
        await self.until(lambda: not self.children, _LOOSE_S)
        for child in list(self.children.values()):
            self.condemn(child, reasons.KILLED)
        if not await self.until(lambda: not self.children, _KILL_S):
            left = ", ".join(f"{child.path} (pid {child.pid})" for child in self.children.values())
            process.complain(f"these survive SIGKILL: {left}")

    async def stop(self, child: Child) -> None:
        """Ask a process to end, and wait for its last words and its end; else kill it."""
        if child.ready and child.plan.shutdown_s > 0:
            child.send(message.encode(message.STOP))
            if await self.until(lambda: bool(child.record or child.words), child.plan.shutdown_s):
                if not await self.until(lambda: child.record is not None, _FAREWELL_S):
                    await self.kill(child)
                return
        await self.kill(child)

    async def kill(self, child: Child) -> None:
        """SIGKILL a process, and wait until it is gone."""
        self._signal(child, signal.SIGKILL)
        if child.pid is None and child.connection is not None:
            child.connection.close()  # its lifeline
        if not await self.until(lambda: child.record is not None, _KILL_S):
            process.complain(f"{child.path} (pid {child.pid}) survives SIGKILL")

    def _signal(self, child: Child, number: signal.Signals) -> None:
        # Only this process reaps its children, so the pid of one that is not buried is still its own.
        if child.pid is not None and child.record is None:
            try:
                os.kill(child.pid, number)
            except ProcessLookupError:  # never its child: the pid came from another namespace
                pass

    def quit(self, child: Child) -> None:
        """Have a process write down its stacks."""
        self._signal(child, signal.SIGQUIT)

    def end(self) -> None:
        """After the loop: nothing of the node may be left."""
        self._forks.kill()
        left = process.kill_all_children(_KILL_S, self._foreign)
        if left:
            process.complain(f"these survive SIGKILL: {left}")
        self.dir.close()

    async def _obey_signals(self, signals: AsyncIterator[signal.Signals]) -> None:
        async for number in signals:
            if number == signal.SIGCHLD:
                self.reap()
            else:
                self.ask_to_stop()

    async def _beat(self, pulse: Pulse, every_s: float) -> None:
        while True:
            pulse.beat()
            await anyio.sleep(every_s)

    async def _hold(self, lifeline: socket.socket) -> None:
        """Stop when whoever started this node has gone."""
        while True:
            await anyio.wait_readable(lifeline)
            if not lifeline.recv(4096):
                break
        self.ask_to_stop()

    # --- what others see

    def show(self, id_: int, state: str) -> None:
        """Write a supervisor's state."""
        if id_ != ROOT_ID:
            self.dir.set_state(id_, state)

    def runs(self, child: Child) -> bool:
        """Whether a process is ready, and no death of it is under way."""
        return child.state == "running" and not child.words and not (child.pid and process.is_dying(child.pid))


def _is_error(reason: object) -> bool:
    return isinstance(reason, str) and reason.startswith("error")
