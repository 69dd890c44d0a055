"""A process of a node from its first breath to its last words."""

from __future__ import annotations

import functools
import os
import pickle
import socket
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import anyio

from colos.runtime import behaviour, here, message, refs, rehearsal, rundir, streams, transport
from colos.runtime.callers import Callers
from colos.runtime.decisions import is_abnormal
from colos.runtime.here import Down, ExitSignal, Monitor
from colos.runtime.mailbox import Letter, Mailbox
from colos.runtime.message import Frame, Notice
from colos.runtime.reasons import NOCONNECTION, NORMAL, SHUTDOWN, text
from colos.runtime.refs import ActorRef
from colos.runtime.stats import Stats
from colos.runtime.supervisor import Plan
from colos.runtime.switchboard import Switchboard
from colos.runtime.trace import Tracer, request_text
from colos.runtime.transport import BrokenConnectionError, Connection
from colos.runtime.waiting import event

_FAREWELL_S: Final = 1.0
"""How long answers and goodbyes may take to leave at the end: a client that does not read loses them."""
_LETTERS_KEPT: Final = 5
_TURNS: Final = 3
"""Of the loop, after which what had been sent when this process was forked is read."""
_MAILBOX_LIMIT: Final = 1000
"""A plain process's; an actor's class says its own."""


def say_last_words(control: socket.socket, reason: object, trace: str) -> None:
    """Tell the root, outside an event loop, why this process ends."""
    try:
        control.setblocking(True)
        control.settimeout(_FAREWELL_S)
        control.sendall(message.encode_last_words(reason, trace))
    except OSError:  # it is gone, or does not listen; the wait status must do
        pass


def run(plans: Mapping[str, Plan], run_dir: str, control: socket.socket, backend: str) -> NoReturn:
    """Be a process of the node until its end; `control` is the socket to its root, and its lifeline.

    Who it is, the root says; and what for, where `plans` do not.
    """
    anyio.run(Worker(plans, run_dir, control).main, backend=backend)
    raise AssertionError("a process's main loop ends only with the process")


class Worker:
    """The process itself: what `here.here()` is."""

    ref: ActorRef
    plan: Plan
    board: Switchboard
    mailbox: Mailbox
    callers: Callers
    stats: Stats

    def __init__(self, plans: Mapping[str, Plan], run_dir: str, control: socket.socket) -> None:
        self.ancestors: tuple[ActorRef, ...] = ()
        self.traps = False
        self.monitors: dict[int, Monitor] = {}
        self.author: Any = None
        self.stop_reason: object = ""
        self.latest: deque[Letter] = deque(maxlen=_LETTERS_KEPT)
        """The last messages that were acted upon, for the crash report."""
        self.tracer = Tracer()
        self._plans = plans
        self._run_dir = run_dir
        self._control_socket = control
        self._extra: bytes | None = None
        self._death: tuple[object, str] | None = None
        self._is_somebody = False

    async def main(self) -> None:
        """Everything, in order."""
        async with anyio.create_task_group() as tasks:
            self.spawn = tasks.start_soon
            self._go = event()
            self._life = anyio.CancelScope()
            self._control = Connection(self._control_socket, self.spawn)
            self._control.listen(self._obey, self._orphaned)
            self._control.post(message.encode(message.BORN, os.getpid()))
            await self._wait_for_go()
            words = await self._live()
            await self._farewell(*(self._death or words))

    async def _wait_for_go(self) -> None:
        for _ in range(_TURNS):
            await anyio.lowlevel.checkpoint()
        if not self._is_somebody:
            try:
                await rehearsal.play()
            except OSError:  # no descriptor to spare: nothing is lost
                pass
        await self._go.wait()

    def _be(self, path: str, id_: int, key: str) -> None:
        """From here on it is somebody, and can be reached."""
        self._is_somebody = True
        directory = f"{self._run_dir}/actors/{id_}"
        streams.open_log(f"{directory}/log")
        listening = transport.listen(directory)
        if key:
            self.plan = self._plans[key]
        self.stats = Stats(f"{directory}/stats")
        ref = ActorRef(path, id_, self._run_dir)
        self.board = Switchboard(self._run_dir, self.spawn, own=ref, root=self._control, tracer=self.tracer)
        self.board.on_notice = self._on_notice
        self.board.on_lost = self._on_lost
        self.ref = ActorRef(path, id_, self._run_dir, self.board)
        refs.bind(self.board)
        here.be_here(self)
        self.mailbox = Mailbox(_MAILBOX_LIMIT)
        self.callers = self.board.callers = Callers(listening, self.spawn, self.mailbox, self.tracer)
        os.register_at_fork(after_in_child=self._close_after_fork)
        self._control.post(message.encode(message.HELLO))

    async def _live(self) -> tuple[object, str]:
        """Do what this process is for; the reason of its end, and a traceback."""
        words: tuple[object, str] = (NORMAL, "")
        with self._life:
            try:
                target, args, kwargs = self._what_to_run()
                self.mailbox.limit = getattr(target, "mailbox_limit", _MAILBOX_LIMIT)
                self.mailbox.overflow = getattr(target, "mailbox_overflow", "wait")
                if self.plan.kind == "actor":
                    self.callers.stats = self.stats
                self.spawn(self.callers.run)
                if self.plan.heartbeat_s is not None:
                    self.spawn(self._beat, self.plan.heartbeat_s / 4)
                words = await behaviour.RUN[self.plan.kind](self, target, args, kwargs)
            except (Exception, SystemExit) as error:
                words = behaviour.reason_of(error)
        return words

    def _what_to_run(self) -> tuple[Any, tuple[object, ...], dict[str, object]]:
        plan = self.plan
        target, args, kwargs = plan.target, plan.args, dict(plan.kwargs)
        if plan.payload is not None:
            target, args, kwargs = Plan.unpack(plan.payload)
        if self._extra is not None:  # what start_child gave beyond a dynamic supervisor's template
            more_args, more_kwargs = pickle.loads(self._extra)
            args, kwargs = (*args, *more_args), {**kwargs, **more_kwargs}
        return target, args, kwargs

    async def _beat(self, every_s: float) -> None:
        while True:
            self.stats.beat()
            await anyio.sleep(every_s)

    # --- the root

    def _obey(self, frames: list[Frame]) -> None:
        for frame in frames:
            if frame.kind == message.BE:
                self._be(*message.decode(frame))
            elif frame.kind == message.GO:
                ancestors, plan, self._extra = message.decode(frame)
                self.plan = plan or self.plan
                self.ancestors = tuple(self.board.ref(path, id_) for path, id_ in ancestors)
                self._go.set()
            elif frame.kind == message.STOP:
                self._asked_to_stop()
            else:
                self.board.root_peer.take(frame)

    def _orphaned(self, _: message.ProtocolError | None) -> NoReturn:
        os._exit(1)  # the lifeline: nobody is left who could restart, stop or reap this process

    def _asked_to_stop(self) -> None:
        if self.plan.kind == "actor":
            self.ask_to_stop(SHUTDOWN)
        else:  # as a supervisor of OTP does it
            self.signalled(self.ancestors[0], SHUTDOWN, linked=True)

    def ask_to_stop(self, reason: object) -> None:
        """End in order after the current message."""
        self.stop_reason = self.stop_reason or reason
        self.mailbox.close()

    def stop(self, reason: object) -> None:
        """The same, by this process itself: its root is told, and its names are free from here on."""
        self.tell_root(message.encode(message.STOP))
        self.ask_to_stop(reason)

    def ready(self) -> None:
        """It has begun."""
        self.show("running")
        self.tell_root(message.encode(message.READY))

    def show(self, state: str) -> None:
        """Write the state for who looks."""
        rundir.write(f"{self._run_dir}/actors/{self.ref.id}/state", f"{state}\n")

    def tell_root(self, frame: bytes) -> None:
        """Say something on the control socket."""
        self.answer(self._control, frame)

    def answer(self, connection: Connection, frame: message.Parts | bytes) -> None:
        """Send an answer, if who asked is still there."""
        try:
            connection.post(frame)
        except BrokenConnectionError:  # gone, or cut off for not reading
            pass

    # --- signals

    def trap(self, flag: bool) -> None:
        """See here.Here."""
        if flag != self.traps:
            self.traps = flag
            self.tell_root(message.encode(message.TRAP, int(flag)))

    def die(self, reason: object) -> None:
        """See here.Here."""
        if self._death is None:
            self._death = (reason, "")
            self._life.cancel()

    def signalled(self, sender: ActorRef, reason: object, *, linked: bool) -> None:
        """See here.Here.  What a *kill* is, the root decides: it cannot be trapped."""
        if self.traps:
            self.mailbox.put(Letter(None, None, ExitSignal(sender, reason)))
        elif reason != NORMAL or (sender == self.ref and not linked):
            self.die(reason)

    def _on_notice(self, node: str, notice: Notice) -> None:
        self.board.forget_names()
        what, path, id_, reason, mark, number, senders_node = notice
        key = (senders_node or node, id_)
        sender_board = self.board.other(key[0])
        sender = sender_board.ref(path, id_)
        if self.tracer.watchers:
            self.tracer.tell("in", message.NOTICE, path, f"{what}: {text(reason)}")

        def act() -> None:
            if what == "down":
                made = self.monitors.pop(number, None)
                if made is not None:
                    self.mailbox.put(Letter(None, None, Down(made, made.target or sender, reason)))
            else:
                sender_board.links.discard(sender)
                self.signalled(sender, reason, linked=what == "link")

        if what == "exit" and mark >= 0:
            self.callers.after_signal(key, mark, act)
        else:
            self.callers.after(key, mark, act)

    def _on_lost(self, board: Switchboard) -> None:
        """Another node is gone: so is, for all that can be known, whom this process watched there."""
        self.board.forget_names()
        watched = [made for made in self.monitors.values() if made.node == board.node]
        linked, board.links = board.links, set()

        def tell(made: Monitor) -> None:
            if self.monitors.pop(made.number, None) is not None:
                self.mailbox.put(Letter(None, None, Down(made, made.target, NOCONNECTION)))

        for made in watched:
            if isinstance(made.target, ActorRef):
                self.callers.after((board.node, made.target.id), -1, functools.partial(tell, made))
        for ref in linked:
            act = functools.partial(self.signalled, ref, NOCONNECTION, linked=True)
            self.callers.after((board.node, ref.id), -1, act)

    # --- the end

    def report(self, reason: object) -> str:
        """The crash report: what it was doing when it ended."""
        if not is_abnormal(reason):
            return ""
        lines = [f"mailbox: {len(self.mailbox)} waiting"]
        for letter in self.latest:
            try:
                value = letter.open()
                what = repr(value) if letter.is_message else request_text(*value)  # type: ignore[misc]
            except Exception as error:  # unpickling and repr are the author's code
                what = f"<{type(error).__name__}: {error}>"
            sender = "itself" if letter.caller is None else letter.caller.name
            lines.append(f"message from {sender}: {what[:500]}")
        return "\n".join(lines)

    async def _farewell(self, reason: object, trace: str) -> NoReturn:
        farewells = [(self._control, message.encode_last_words(reason, trace, self.report(reason)))]
        rundir.remove_file(f"{self._run_dir}/actors/{self.ref.id}/{transport.SOCKET_NAME}")
        self.callers.refuse_newcomers()
        farewells += [
            (caller.connection, message.encode_plain(message.GOODBYE, reason, caller.taken))
            for caller in self.callers.connections()
        ]
        goodbye = message.encode_plain(message.GOODBYE, reason)
        farewells += [(connection, goodbye) for connection in self.board.other_roots()]
        for connection, frame in farewells:
            self.answer(connection, frame)
        with anyio.move_on_after(_FAREWELL_S):
            # What it sent before its end arrives before its end is known.
            await self.board.flush_all()
            for connection, _ in farewells:
                await connection.flushed()
        # No interpreter shutdown: what was inherited (atexit hooks, buffers) is not this process's to run.
        os._exit(1 if is_abnormal(reason) else 0)

    def _close_after_fork(self) -> None:
        # A process that the actor forks must not keep its sockets open after its death.
        self.callers.close_after_fork()
        self.board.close_after_fork()
        self.stats.close_after_fork()
