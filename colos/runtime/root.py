"""A node's root process: it carries out its supervisor's decisions, and answers questions about the node."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import anyio
import anyio.abc

from colos.errors import NoSuchMethod
from colos.runtime import message, process, rundir, zygote
from colos.runtime.message import ProtocolError
from colos.runtime.process import Death
from colos.runtime.registry import Entry, Registry
from colos.runtime.rundir import ExitRecord, RunDirectory, exit_text
from colos.runtime.supervisor import ChildSpec, Exited, RestartFailed, State, TreeSpec, decide
from colos.runtime.transport import BrokenConnectionError, Changes, Connection, Listener
from colos.runtime.worker import describe

CLEAN: Final = 0
GAVE_UP: Final = 1
START_FAILED: Final = 2

_KILL_S: Final = 5.0
"""How long a SIGKILLed process may take to be gone: one in uninterruptible sleep may never."""
_FAREWELL_S: Final = 2.0
"""How long a process that said its last words may take to end."""
_EXITS_KEPT: Final = 16
_QUESTIONS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One child as the root sees it.  `id` is 0 and `pid` None where there is no process."""

    path: str
    id: int
    pid: int | None
    state: str
    restarts: int
    name: str | None


class _Child:
    """One incarnation."""

    def __init__(self, spec: ChildSpec, index: int, path: str, id_: int, control: socket.socket) -> None:
        self.spec = spec
        self.index = index
        self.path = path
        self.id = id_
        self.socket = control
        self.control: Connection | None = None
        self.pid: int | None = None
        self.ready = False
        self.stopping = False
        self.words: tuple[str, str] | None = None
        self.record: ExitRecord | None = None
        self.born = time.monotonic()

    def send(self, kind: int) -> None:
        """Tell it something; if it cannot hear any more, its death will say so."""
        if self.control is not None:
            try:
                self.control.post(message.encode(kind))
            except BrokenConnectionError:
                pass

    @property
    def state(self) -> str:
        if self.record is not None:
            return "exited"
        return "stopping" if self.stopping else "running" if self.ready else "starting"


class Root:
    """The supervisor's executor.  Everything between two awaits happens at one instant."""

    def __init__(self, tree: TreeSpec, run_directory: RunDirectory, backend: str) -> None:
        self.tree = tree
        self.dir = run_directory
        self.failure = ""
        """Why the node did not start or gave up, for people."""
        self._blamed: ExitRecord | None = None
        self._nursery = zygote.Nursery(tree, run_directory.path, backend, os.getpid())
        self._current: dict[str, _Child] = {}
        self._ended: deque[_Child] = deque()
        self._exits: defaultdict[str, deque[ExitRecord]] = defaultdict(lambda: deque(maxlen=_EXITS_KEPT))
        self._restarts: dict[str, int] = {spec.id: 0 for spec in tree.children}
        self._registry = Registry()
        self._stop_asked = False
        self._running = False
        self._stopping = False
        self._zygote: zygote.Zygote | None = None
        self._handlers: dict[str, Callable[..., Any]] = {
            "whereis": self._whereis,
            "processes": self._processes,
            "quiet": self._wait_quiet,
            "exits": self._exits_of,
            "reason": self._reason,
            "stop": self._stop_when_asked,
        }

    def account(self) -> str:
        """Why the node failed, with what is known of the child behind it."""
        text = f"{self.tree.label}: {self.failure}\n"
        return f"{text}\n{exit_text(self._blamed, None)}" if self._blamed else text

    # --- before the loop

    def fork(self) -> None:
        """Fork the first children, which wait for their turn, and the zygote.  Raises OSError."""
        conceived = [self._conceive(spec, index) for index, spec in enumerate(self.tree.children)]
        # All forks in a row: every page written between two of them would have to be copied once more.
        for child, theirs in conceived:
            child.pid = zygote.fork_actor(self._nursery, child.index, child.id, theirs)
        self._zygote = zygote.Zygote(self._nursery)
        for child, theirs in conceived:
            theirs.close()
            assert child.pid is not None
            self.dir.set_pid(child.id, child.pid, process.start_time_ticks(child.pid))

    def _conceive(self, spec: ChildSpec, index: int) -> tuple[_Child, socket.socket]:
        path = f"{self.tree.name}/{spec.id}"
        id_ = self.dir.add_actor(path, self.tree.name, _spec_text(spec), self._restarts[spec.id])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._current[spec.id] = child = _Child(spec, index, path, id_, ours)
        return child, theirs

    # --- the loop

    async def run(self, listening: socket.socket, lifeline: socket.socket | None, ready: Callable[[], None]) -> int:
        """Start the children, keep them running, stop them; the exit code."""
        with anyio.open_signal_receiver(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT) as signals:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                self._changes = Changes()
                tasks.start_soon(self._obey_signals, signals)
                tasks.start_soon(Listener(listening, tasks.start_soon, self._attend).run)
                if lifeline is not None:
                    tasks.start_soon(self._hold, lifeline)
                for child in self._current.values():
                    self._hear(child)
                self._reap()  # whoever died before the signal had a receiver
                code = await self._supervise(ready)
                tasks.cancel_scope.cancel()
        return code

    async def _supervise(self, ready: Callable[[], None]) -> int:
        for child in list(self._current.values()):
            if not await self._start(child):
                await self._stop_all()
                return CLEAN if self._stop_asked else START_FAILED
        self._running = True
        ready()
        code = await self._keep_running()
        self._running = False
        await self._stop_all()
        return code

    async def _keep_running(self) -> int:
        restart = {spec.id: spec.restart for spec in self.tree.children}
        state = State(restart, self.tree.intensity, self.tree.period_s)
        while not self._stop_asked and not self.failure:
            if not self._ended:
                await self._changes.wait()
                continue
            child = self._ended.popleft()
            assert child.record is not None
            failed_restart = not child.record.was_ready
            event = (RestartFailed if failed_restart else Exited)(child.spec.id, child.record.reason)
            decision = decide(state, event, time.monotonic())
            state = decision.state
            if decision.action == "give up":
                limit = f"more than {self.tree.intensity} restarts within {self.tree.period_s:g} s"
                self._blamed = child.record
                self.failure = f"gave up: {limit}; the last: {child.path}: {child.record.reason}"
            elif decision.action == "leave":
                del self._current[child.spec.id]
                self._changes.notify()
            else:
                await self._restart(child)
        return GAVE_UP if self.failure else CLEAN

    async def _restart(self, old: _Child) -> None:
        self._restarts[old.spec.id] += 1
        try:
            child, theirs = self._conceive(old.spec, old.index)
        except OSError as error:  # no inode, no descriptor: one more failed try
            old.record = _unborn(old, describe(error))
            self._ended.append(old)
            return
        with theirs:
            self._hear(child)
            try:
                assert self._zygote is not None
                self._zygote.spawn(child.index, child.id, theirs)
            except OSError as error:
                self._bury(child, None, describe(error))
                return
        await self._start(child)

    async def _start(self, child: _Child) -> bool:
        """Let a child begin, and wait until it is ready; else it is dead afterwards, or the node is stopping."""
        child.send(message.GO)
        began = await self._until(
            lambda: child.ready or child.record is not None or self._stop_asked or bool(self.failure),
            child.spec.start_s,
        )
        if child.ready and child.record is None:
            return True
        if child.record is None and not began:
            child.words = (f"error: it was not ready within {child.spec.start_s:g} s", "")
        if child.record is None:
            await self._kill(child)
        if not self._running and child.record is not None and not self._stop_asked:
            self._blamed = child.record
            self.failure = self.failure or f"{child.path} did not start: {child.record.reason}"
        return False

    # --- children

    def _hear(self, child: _Child) -> None:
        child.control = Connection(child.socket, self._tasks.start_soon)
        self._tasks.start_soon(self._listen_to, child, child.control)

    async def _listen_to(self, child: _Child, control: Connection) -> None:
        try:
            while True:
                for frame in await control.receive():
                    self._note(child, frame)
                self._reap()  # a HELLO came late if it has died since; only now, when all it said is noted
        except (EOFError, ProtocolError):
            pass  # dead, or as good as dead
        if child.record is not None:
            return
        if child.pid is None:
            self._bury(child, None, "error: it died before it could say its pid")
        else:
            # Nobody can stop it in order any more; on a process that is exiting this has no effect.
            self._signal(child, signal.SIGKILL)
        self._reap()

    def _note(self, child: _Child, frame: message.Frame) -> None:
        if frame.kind == message.HELLO:
            if child.pid is None:
                child.pid = int(frame.body)
                self.dir.set_pid(child.id, child.pid, process.start_time_ticks(child.pid))
            self._register(child)
        elif frame.kind == message.READY:
            child.ready = True
        elif frame.kind == message.STOP:
            child.stopping = True
            self._free_names(child)
        elif frame.kind == message.EXIT:
            reason, trace = message.decode(frame.body)
            child.words = child.words or (reason, trace)
            self._free_names(child)  # it ends now: nobody is to find it any more
        self._changes.notify()

    def _register(self, child: _Child) -> None:
        if child.record is None:
            self._registry.add(Entry(child.path, child.id), child.spec.name)
            if child.spec.name is not None:
                self.dir.link_name(child.spec.name, child.id)

    def _free_names(self, child: _Child) -> None:
        for name in self._registry.remove(child.id):
            self.dir.unlink_name(name)

    def _look(self) -> None:
        """Take in what children have said and which have died by now, before answering a question about them."""
        for child in list(self._current.values()):
            if child.control is not None and child.record is None:
                self._read_what_it_said(child, child.control)
        self._reap()

    def _reap(self) -> None:
        """Collect every child that is dead, adopted strangers too, without waiting."""
        while (pid := process.peek_dead_child()) is not None:
            child = next((child for child in self._current.values() if child.pid == pid and not child.record), None)
            if child is not None:
                self._bury(child, process.reap(pid), "")
            elif self._zygote is not None and pid == self._zygote.pid:
                self._zygote, death = None, process.reap(pid)
                if not self._stopping:
                    self.failure = f"stopped: its zygote died, so no child can be restarted: {death.reason}"
            elif any(child.pid is None and not child.record for child in self._current.values()):
                return  # it may be a child whose HELLO is still unread: looked at again after that
            else:
                process.reap(pid)
            self._changes.notify()

    def _bury(self, child: _Child, death: Death | None, reason: str) -> None:
        """Record a death: last words are read, names are freed, then everybody may know."""
        if child.control is not None:
            self._read_what_it_said(child, child.control)
        trace = ""
        killed = death is not None and os.WIFSIGNALED(death.status)
        if child.words is not None:
            reason, trace = child.words
        if death is not None and (child.words is None or (killed and not reason.startswith("error"))):
            reason, trace = death.reason, ""
        stderr = rundir.tail(f"{self.dir.actor(child.id)}/log")
        ran_s = time.monotonic() - child.born
        record = ExitRecord(child.path, child.id, child.pid, reason, trace, stderr, ran_s, child.ready)
        self._free_names(child)
        self.dir.set_exit(child.id, child.path, exit_text(record, death))
        child.record = record
        self._exits[child.path].append(record)
        if child.control is not None:
            child.control.close()
        self._ended.append(child)
        self._changes.notify()

    def _read_what_it_said(self, child: _Child, control: Connection) -> None:
        # Of a dead child this is all it ever sent; a grandchild that holds the socket open only hides the end.
        try:
            while not control.closed:
                for frame in control.receive_now():
                    self._note(child, frame)
        except (BlockingIOError, EOFError, ProtocolError):
            pass

    # --- stopping

    async def _stop_all(self) -> None:
        self._stopping = True
        if self._zygote is not None:
            self._zygote.kill()  # so that it dies meanwhile
        for child in reversed(list(self._current.values())):
            if child.record is None:
                child.stopping = True
                await self._stop(child)
        await self._until(lambda: all(child.record for child in self._current.values()), _FAREWELL_S)
        for child in self._current.values():
            if child.record is None:
                await self._kill(child)

    async def _stop(self, child: _Child) -> None:
        """Ask a child to end, and wait for its last words, after which nothing of its author's runs; else kill it."""
        if child.ready and child.spec.shutdown_s > 0:
            child.send(message.STOP)
            if await self._until(lambda: bool(child.record or child.words), child.spec.shutdown_s):
                return
        await self._kill(child)

    async def _kill(self, child: _Child) -> None:
        self._signal(child, signal.SIGKILL)
        if child.pid is None and child.control is not None:
            child.control.close()  # its lifeline
        if not await self._until(lambda: child.record is not None, _KILL_S):
            process.complain(f"{child.path} (pid {child.pid}) survives SIGKILL")

    def _signal(self, child: _Child, number: signal.Signals) -> None:
        # Only this process reaps its children, so the pid of one that is not buried is still its own.
        if child.pid is not None and child.record is None:
            try:
                os.kill(child.pid, number)
            except ProcessLookupError:  # never its child: the pid came from another namespace
                pass

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        with anyio.move_on_after(timeout_s):
            while not condition():
                await self._changes.wait()
        return condition()

    def end(self) -> None:
        """After the loop: nothing of the node may be left."""
        if self._zygote is not None:
            self._zygote.kill()
            process.reap(self._zygote.pid)
        left = process.kill_all_children(_KILL_S)
        if left:
            process.complain(f"these survive SIGKILL: {left}")
        self.dir.close()

    async def _obey_signals(self, signals: AsyncIterator[signal.Signals]) -> None:
        async for number in signals:
            if number == signal.SIGCHLD:
                self._reap()
            else:
                self._stop_asked = True
                self._changes.notify()

    async def _hold(self, lifeline: socket.socket) -> None:
        """Stop when whoever started this node has gone."""
        while True:
            await anyio.wait_readable(lifeline)
            if not lifeline.recv(4096):
                break
        self._stop_asked = True
        self._changes.notify()

    # --- questions

    async def _attend(self, connection: Connection) -> None:
        places = anyio.Semaphore(_QUESTIONS_MAX)
        while True:
            for frame in await connection.receive():
                if frame.kind != message.CALL:
                    raise ProtocolError(f"a client sent a frame of kind {frame.kind}")
                await places.acquire()
                self._tasks.start_soon(self._answer, connection, frame, places)

    async def _answer(self, connection: Connection, frame: message.Frame, places: anyio.Semaphore) -> None:
        method = "?"
        try:
            method, args, kwargs = message.decode(frame.body)
            if method not in self._handlers:
                raise NoSuchMethod("(root)", str(method), tuple(self._handlers))
            value = self._handlers[method](*args, **kwargs)
            if hasattr(value, "__await__"):
                value = await value
            answer = message.encode_result(frame.request, "(root)", method, value)
        except Exception as error:  # a client's mistake, or an answer like NoSuchActor: it is the client's to see
            answer = message.encode_failure(frame.request, error, "")
        finally:
            places.release()
        try:
            connection.post(answer)
        except BrokenConnectionError:  # who asked is gone
            pass

    def _whereis(self, name: str) -> tuple[str, int]:
        self._look()
        entry = self._registry.whereis(name)
        return entry.path, entry.id

    def _processes(self) -> list[ProcessInfo]:
        self._look()
        found = []
        for spec in self.tree.children:
            child, path = self._current.get(spec.id), f"{self.tree.name}/{spec.id}"
            restarts = self._restarts[spec.id]
            if child is None or child.record is not None:
                found.append(ProcessInfo(path, 0, None, "exited", restarts, spec.name))
            else:
                found.append(ProcessInfo(path, child.id, child.pid, child.state, restarts, spec.name))
        return found

    async def _wait_quiet(self, timeout_s: float) -> bool:
        self._look()
        return await self._until(self._is_quiet, timeout_s)

    def _is_quiet(self) -> bool:
        def runs(child: _Child) -> bool:
            return child.state == "running" and not child.words and not (child.pid and process.is_dying(child.pid))

        return self._running and not self._ended and all(runs(child) for child in self._current.values())

    def _exits_of(self, path: str) -> list[ExitRecord]:
        self._look()
        return list(self._exits.get(path, ()))

    async def _reason(self, id_: int, timeout_s: float) -> str:
        self._look()

        def known() -> str:
            return next((end.reason for ends in self._exits.values() for end in ends if end.id == id_), "")

        await self._until(lambda: bool(known()), timeout_s)
        return known()

    def _stop_when_asked(self) -> None:
        self._stop_asked = True
        self._changes.notify()


def _unborn(child: _Child, reason: str) -> ExitRecord:
    return ExitRecord(child.path, child.id, None, reason, "", "", 0.0, False)


def _spec_text(spec: ChildSpec) -> str:
    actor = f"{spec.actor.__module__}:{spec.actor.__qualname__}"
    lines = (f"actor {actor}", f"name {spec.name or '-'}", f"restart {spec.restart}", f"shutdown_s {spec.shutdown_s:g}")
    return "\n".join(lines) + "\n"
