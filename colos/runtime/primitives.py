"""What a process can do: Erlang's BIFs, as functions about *this* process.

Each raises RuntimeFailure outside a process of a node.  Sources: erlang(3), Erlang Reference
Manual, Processes; what OTP really does: observed.txt.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Literal

import anyio

from colos.errors import ActorExited, ConnectionLost, NoSuchActor
from colos.runtime import message, reasons
from colos.runtime.here import Down, Monitor, here
from colos.runtime.mailbox import Letter, Match
from colos.runtime.message import SEND
from colos.runtime.reasons import Exit
from colos.runtime.refs import DEADLINE_S, ActorRef, board_of
from colos.runtime.supervisor import Plan, plan_process
from colos.runtime.switchboard import Switchboard

_SLACK_S = 5.0
"""How much longer than the start itself a spawner waits for the root's word of it."""


def me() -> ActorRef:
    """This process."""
    return here().ref


def parent() -> ActorRef | None:
    """Who started this process: a supervisor, another process, or None for a client from outside."""
    return next(iter(here().ancestors), None)


def ancestors() -> tuple[ActorRef, ...]:
    """The parent, its parent, and so on, as it was when this process was started."""
    return here().ancestors


# --- starting others ---------------------------------------------------------------------


async def spawn(
    target: Callable[..., Any],
    *args: object,
    name: str | None = None,
    link: bool = False,
    monitor: bool = False,
    **kwargs: object,
) -> Any:
    """Start a process in this node: an ``async def`` function, or an Actor class, whose init() is waited for.

    `name` registers it, `link` links it to this process, `monitor` monitors it, all before it runs.
    Returns its ActorRef; with `monitor`, (ActorRef, Monitor).

    Raises StartFailed, NameTaken, NotPicklable, InvalidSpecification.
    """
    process = here()
    plan = plan_process(target, args, kwargs, name, id_of(target)).packed()
    if not monitor:
        return await start_plan(process.board, plan, link=link)
    number = _next_monitor()
    # Known before it is asked for: the process may have died, and its Down come, before the answer does.
    made = process.monitors[number] = Monitor(number, "", process.board.node)
    try:
        made.target = ref = await start_plan(process.board, plan, link=link, monitor=number)
    except BaseException:
        process.monitors.pop(number, None)
        raise
    return ref, made


def id_of(target: object) -> str:
    """The word for a process in its path, from its function's or class's name."""
    name = str(getattr(target, "__name__", "process"))
    return "".join(c for c in name if c.isalnum() or c == "_").lstrip("_") or "process"


async def start_plan(board: Switchboard, plan: Plan, *, link: bool = False, monitor: int = 0) -> ActorRef:
    """Ask the root for an unsupervised process."""
    path, id_ = await board.ask_root("spawn", plan, link, monitor, timeout_s=plan.start_s + _SLACK_S)
    return board.ref(path, id_)


class Task:
    """A function that runs in a process of its own."""

    def __init__(self, ref: ActorRef) -> None:
        self.ref = ref
        self._done = anyio.Event()
        self._value: object = None
        self._error: BaseException | None = None

    async def fetch(self) -> None:
        """Wait for the outcome; runs in the background from the start."""
        try:
            self._value = await board_of(self.ref).call(self.ref.path, self.ref.id, "result", (), {}, inf)
        except ConnectionLost as error:
            self._error = ActorExited(self.ref.path, error.reason)
        except NoSuchActor:  # it died before it could be asked
            self._error = ActorExited(self.ref.path, await board_of(self.ref).why(self.ref.id))
        except Exception as error:
            self._error = error
        finally:
            self._done.set()

    async def result(self, timeout: float | None = None) -> Any:
        """What the function returned.  Raises what it raised, ActorExited (the reason it died of), TimeoutError."""
        with anyio.fail_after(timeout):
            await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value

    async def cancel(self) -> None:
        """Kill it; `result` then raises ActorExited (killed)."""
        await board_of(self.ref).ask_root("exit", self.ref.id, reasons.KILL, -1)


async def start_task(function: Callable[..., Any], *args: object, link: bool = False, **kwargs: object) -> Task:
    """Run an ``async def`` function in a process of its own and get what it returns, or how it died.

    Source: Elixir's Task.
    """
    return await begin_task(here().board, here().spawn, function, args, kwargs, link=link)


async def begin_task(
    board: Switchboard,
    run: Callable[..., object],
    function: Callable[..., Any],
    args: tuple[object, ...],
    kwargs: dict[str, object],
    *,
    link: bool = False,
) -> Task:
    """Start a task through a switchboard; `run` starts what waits for its result."""
    plan = plan_process(function, args, kwargs, None, id_of(function), "task").packed()
    task = Task(await start_plan(board, plan, link=link))
    run(task.fetch)
    return task


# --- exits, links and monitors -----------------------------------------------------------


def trap_exit(flag: bool = True) -> bool:
    """Whether exit signals become ExitSignal messages from now on; returns what it was."""
    process = here()
    before = process.traps
    process.trap(flag)
    return before


async def exit_signal(ref: ActorRef, reason: object) -> None:
    """Send an exit signal: Erlang's exit(Pid, Reason).  The dead are silent."""
    process = here()
    reasons.checked(reason)
    if ref == process.ref and reason != reasons.KILL:
        process.signalled(ref, reason, linked=False)
        await anyio.lowlevel.checkpoint()
        return
    await send_exit(ref, reason)


async def send_exit(ref: ActorRef, reason: object) -> None:
    """The same from anywhere."""
    await board_of(ref).signal(ref.path, ref.id, reasons.checked(reason))


async def link(ref: ActorRef) -> None:
    """Link this process and another: the end of either is an exit signal to the other.

    The dead: an ExitSignal with reason noproc to who traps exits, else Exit("noproc") is raised.
    """
    process = here()
    if ref == process.ref:
        return
    board = board_of(ref)
    if board.node != process.ref.node:
        board.links.add(ref)
    try:
        alive = await board.ask_root("link", ref.id)
    except BaseException:
        board.links.discard(ref)
        raise
    if not alive:
        board.links.discard(ref)
        if not process.traps:
            raise Exit(reasons.NOPROC)
        process.signalled(ref, reasons.NOPROC, linked=True)


async def unlink(ref: ActorRef) -> None:
    """End a link; once this has returned, no signal of it comes any more."""
    if ref != here().ref:
        board = board_of(ref)
        await board.ask_root("unlink", ref.id)
        board.links.discard(ref)


_last_monitor = 0


def _next_monitor() -> int:
    global _last_monitor
    _last_monitor += 1
    return _last_monitor


async def monitor(target: ActorRef | str) -> Monitor:
    """Get one Down message when a process dies; at once if it is not there."""
    process = here()
    number = _next_monitor()
    board = process.board if isinstance(target, str) else board_of(target)
    made = process.monitors[number] = Monitor(number, target, board.node)
    try:
        await board.ask_root("monitor", number, target if isinstance(target, str) else target.id)
    except BaseException:
        process.monitors.pop(number, None)
        raise
    return made


async def demonitor(monitor: Monitor, flush: bool = False) -> None:
    """End a monitor; with `flush`, its Down is not in the mailbox afterwards either."""
    process = here()
    if process.monitors.pop(monitor.number, None) is not None:
        await process.board.other(monitor.node).ask_root("demonitor", monitor.number)
    if flush:
        process.mailbox.purge(lambda value: isinstance(value, Down) and value.monitor == monitor)


# --- messages ----------------------------------------------------------------------------


async def send(dest: ActorRef | str, value: object, timeout: float = DEADLINE_S) -> None:
    """Put a message into a mailbox.  To the dead it is silent; to an unknown name NoSuchActor.

    Raises MailboxFull after `timeout` seconds, NotPicklable, MessageTooLarge: then nothing was sent.
    """
    process = here()
    ref = await process.board.whereis(dest) if isinstance(dest, str) else dest
    if ref.id == process.ref.id and ref == process.ref:
        _send_to_self(value)
        await anyio.lowlevel.checkpoint()
    else:
        await send_through(ref, value, timeout)


async def send_through(ref: ActorRef, value: object, timeout: float = DEADLINE_S) -> None:
    """The same from anywhere."""
    board = board_of(ref)
    frame = message.encode_message(ref.path, value, board.signals_to(ref.id))
    if board.tracer.watchers:
        board.tracer.tell("out", SEND, ref.path, value)
    try:
        await board.post(ref.path, ref.id, frame, timeout)
    except (NoSuchActor, ActorExited):  # as in Erlang: who wants to know monitors
        pass


def send_nowait(ref: ActorRef, value: object) -> None:
    """The same at once: raises MailboxFull instead of waiting."""
    if ref == here().ref:
        _send_to_self(value)
        return
    board = board_of(ref)
    try:
        board.post_now(ref.path, ref.id, message.encode_message(ref.path, value, board.signals_to(ref.id)))
    except (NoSuchActor, ActorExited):  # see send_through
        pass


def _send_to_self(value: object) -> None:
    # Through the pickle, so that sender and receiver share nothing, as everywhere else.
    parts = message.encode_message(here().ref.path, value)
    (frame,) = message.Parser().feed(b"".join(parts))
    here().mailbox.put(Letter(frame, None))


async def receive(match: Match = None, timeout: float | None = None) -> Any:
    """Take the first message that matches: a type, a tuple of types, a predicate; None: any.

    What is skipped stays, in order.  Raises TimeoutError after `timeout` seconds; 0 looks once.
    """
    mailbox = here().mailbox
    await anyio.lowlevel.checkpoint()
    value, found, _ = mailbox.find(match)
    if found:
        return value
    if timeout is not None and timeout <= 0:
        raise TimeoutError("no such message is here")
    with anyio.fail_after(timeout):
        while not found:
            await mailbox.wait_hungrily()
            value, found, _ = mailbox.find(match)
    return value


class Timer:
    """A message to come."""

    def __init__(self) -> None:
        self._scope = anyio.CancelScope()
        self._state: Literal["pending", "sent", "cancelled"] = "pending"

    def cancel(self) -> bool:
        """True if it was still pending: its message never comes.  False: it had come, or was cancelled before."""
        if self._state != "pending":
            return False
        self._state = "cancelled"
        self._scope.cancel()
        return True

    async def run(self, delay_s: float, dest: ActorRef | str, value: object) -> None:
        """Wait, then send."""
        with self._scope:
            await anyio.sleep(delay_s)
        if self._state != "pending":
            return
        self._state = "sent"
        try:
            await send(dest, value)
        except NoSuchActor:  # as in Erlang: nobody has the name by now
            pass


def send_after(delay_s: float, dest: ActorRef | str, value: object) -> Timer:
    """Send a message in so many seconds; it is lost if this process ends first.  Source: erlang:send_after/3."""
    timer = Timer()
    here().spawn(timer.run, delay_s, dest, value)
    return timer


# --- names and groups --------------------------------------------------------------------


async def whereis(name: str, node: str | None = None) -> ActorRef:
    """The process registered under a name, or at a path; in another node by its name or run directory.

    Raises NoSuchActor, NoSuchNode.
    """
    from colos.runtime.rundir import node_directory  # only here: most processes never look beyond their node

    board = here().board
    return await (board if node is None else board.other(node_directory(node))).whereis(name)


async def register(name: str, ref: ActorRef | None = None) -> None:
    """Give a process (this one) a name.  Raises NameTaken, NoSuchActor, InvalidSpecification."""
    target = ref or here().ref
    await board_of(target).ask_root("register", name, target.id)


async def unregister(name: str) -> None:
    """Free a name.  Raises NoSuchActor."""
    await here().board.ask_root("unregister", name)


async def join(group: str, ref: ActorRef | None = None) -> None:
    """Put a process (this one) into a group of its node.  Source: pg(3)."""
    target = ref or here().ref
    await board_of(target).ask_root("join", group, target.id)


async def leave(group: str, ref: ActorRef | None = None) -> None:
    """Take a process (this one) out of a group."""
    target = ref or here().ref
    await board_of(target).ask_root("leave", group, target.id)


async def members(group: str) -> list[ActorRef]:
    """A group's living members, in order of joining."""
    return await members_through(here().board, group)


async def members_through(board: Switchboard, group: str) -> list[ActorRef]:
    """The same from anywhere."""
    return [board.ref(path, id_) for path, id_ in await board.ask_root("members", group)]


async def publish(group: str, value: object) -> int:
    """Send a message to every member of a group; to how many."""
    found = await members(group)
    for ref in found:
        await send(ref, value)
    return len(found)
