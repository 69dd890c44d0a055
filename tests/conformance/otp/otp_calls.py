"""Scenes for test_calls_and_receive.py."""

# ruff: noqa: ASYNC110, ASYNC240 - actors that are to be busy poll for a file; no file here is slow
from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
from otp_cast import DEADLINE_S, begin, dead, die, down, fresh, got, idle, until, waiting

from colos.errors import ActorExited, CallTimeout, ConnectionLost, MailboxFull, NoSuchActor
from colos.runtime import (
    Actor,
    ActorRef,
    Exit,
    exit_signal,
    me,
    monitor,
    receive,
    register,
    send,
    send_after,
    send_nowait,
    start_task,
)


class Refused(Exception):
    """An answer, not a crash."""


class Desk(Actor):
    expected = (Refused,)

    async def init(self) -> None:
        self.seen: list[int] = []

    async def echo(self, value: object) -> object:
        return value

    async def refuse(self, text: str) -> None:
        raise Refused(text)

    async def fail(self, text: str) -> None:
        raise ValueError(text)

    async def end(self, reason: object) -> None:
        await die(reason)

    async def finish(self, reason: object) -> str:
        self.stop(reason)
        return "the last answer"

    async def block(self, gate: str) -> str:
        """Busy until the file appears; another says that it began."""
        Path(f"{gate}.begun").touch()
        while not os.path.exists(gate):
            await anyio.sleep(0.002)
        return "late"

    async def note(self, number: int) -> None:
        self.seen.append(number)

    async def notes(self) -> list[int]:
        return self.seen

    async def pid(self) -> int:
        return os.getpid()


class Small(Desk):
    mailbox_limit = 2


class Loose(Desk):
    mailbox_limit = 3
    mailbox_overflow = "drop_oldest"


async def busy(desk: ActorRef, gate: str) -> None:
    """Make a desk busy, and wait until it is."""
    await desk.cast("block", gate)

    async def begun() -> bool:
        return os.path.exists(f"{gate}.begun")

    assert await until(begun)


# --- how calls end -----------------------------------------------------------------------


async def call_ends(desk: ActorRef, method: str, *args: object, timeout: float = DEADLINE_S) -> tuple[Any, ...]:
    """What a call ends with, and the reason it says, if it says one."""
    try:
        return ("reply", await desk.call(method, *args, timeout=timeout))
    except (CallTimeout, Refused, ValueError) as error:
        return (type(error).__name__, str(error))
    except (NoSuchActor, ActorExited, ConnectionLost, Exit) as error:
        return (type(error).__name__, getattr(error, "reason", None), str(error))


async def answers(values: list[object]) -> list[object]:
    """Calls of one process to one desk, all at once: what each got."""
    desk = await begin(Desk)
    replies: list[object] = [None] * len(values)

    async def ask(number: int) -> None:
        replies[number] = (await call_ends(desk, "echo", values[number]))[1]

    async with anyio.create_task_group() as tasks:
        for number in range(len(values)):
            tasks.start_soon(ask, number)
    return replies


async def failures(text: str) -> list[Any]:
    """An expected exception, and then an unexpected one: what the caller got, and what the monitor said."""
    desk, watch = await begin(Desk, monitor=True)
    refused = await call_ends(desk, "refuse", text)
    alive = await call_ends(desk, "echo", 1)
    failed = await call_ends(desk, "fail", text)
    return [refused, alive, failed, await down(watch)]


async def call_to_the_dead() -> list[str]:
    """A call to one who has been, and to one who ended after it had answered."""
    desk = await begin(Desk)
    await call_ends(desk, "echo", 1)
    watch = await monitor(desk)
    await exit_signal(desk, "kill")
    await down(watch)
    return [(await call_ends(ref, "echo", 1))[0] for ref in (await dead(), desk)]


async def call_to_the_dying(reason: object, how: str, callers: int) -> list[Any]:
    """Several wait for an answer when the desk dies: what each got, and what the monitor said."""
    desk, watch = await begin(Desk, monitor=True)
    pid = await desk.pid()
    ends: list[tuple[Any, ...]] = []
    with tempfile.TemporaryDirectory() as directory:
        await busy(desk, f"{directory}/gate")

        async def ask() -> None:
            ends.append(await call_ends(desk, "echo", 1))

        async with anyio.create_task_group() as tasks:
            for _ in range(callers):
                tasks.start_soon(ask)
            await anyio.lowlevel.checkpoint()
            if how == "signal":
                await exit_signal(desk, reason)
            else:
                os.kill(pid, signal.SIGKILL)
        return [ends, await down(watch)]


async def call_that_ends_the_callee(reason: object) -> list[Any]:
    """The method itself ends the actor: what the caller got, and what the monitor said."""
    desk, watch = await begin(Desk, monitor=True)
    return [await call_ends(desk, "end", reason), await down(watch)]


async def stop_answers_first(reason: object) -> list[Any]:
    desk, watch = await begin(Desk, monitor=True)
    return [await call_ends(desk, "finish", reason), await down(watch)]


async def late_replies(count: int) -> list[Any]:
    """Calls time out, then their answers come: what they ended with, what later calls got, what is in the mailbox."""
    desk = await begin(Desk)
    with tempfile.TemporaryDirectory() as directory:
        gates = [f"{directory}/{number}" for number in range(count)]
        ends = [(await call_ends(desk, "block", gate, timeout=0.02))[0] for gate in gates]
        for gate in gates:
            Path(gate).touch()
        later = [(await call_ends(desk, "echo", number))[1] for number in range(3)]
    return [ends, later, [repr(message) for message in await waiting()]]


# --- tasks -------------------------------------------------------------------------------


async def task_ends(reason: object) -> list[Any]:
    """A task that returns, one that raises, one that dies, one that is cancelled."""
    ends: list[Any] = []
    ends.append(await (await start_task(_give, 7)).result(timeout=DEADLINE_S))
    for function, argument in ((_raise, "text"), (die, reason)):
        try:
            ends.append(await (await start_task(function, argument)).result(timeout=DEADLINE_S))
        except ValueError as error:
            ends.append(str(error))
        except ActorExited as error:
            ends.append(("ActorExited", error.reason))
    task = await start_task(idle)
    watch = await monitor(task.ref)
    try:
        await task.result(timeout=0.01)
    except TimeoutError:
        ends.append("TimeoutError")
    await task.cancel()
    ends.append(await down(watch))
    try:
        await task.result(timeout=DEADLINE_S)
    except ActorExited:
        ends.append("ActorExited")
    return ends


async def _give(value: object) -> object:
    return value


async def _raise(text: str) -> None:
    raise ValueError(text)


# --- selective receive -------------------------------------------------------------------

MATCHES: dict[str, Any] = {
    "int": int,
    "str": str,
    "bytes or int": (bytes, int),
    "anything": None,
    "tuple": tuple,
    "small": lambda message: isinstance(message, int) and message < 3,
}


class End:
    """The last message of a post."""


async def _post(boss: ActorRef, messages: list[object]) -> None:
    for message in messages:
        await send(boss, message)
    await send(boss, End())


async def selective(messages: list[object], matches: list[str]) -> list[Any]:
    """Take messages by matches, one look each ("nothing" where none is there), then all the rest."""
    await begin(_post, me(), messages)
    await got(End)  # which keeps all before it
    taken: list[object] = []
    for match in matches:
        try:
            taken.append(await receive(MATCHES[match], timeout=0))
        except TimeoutError:
            taken.append("nothing")
    return [taken, await waiting()]


async def selective_while_they_come(messages: list[object], matches: list[str]) -> list[Any]:
    """The same, waiting for each while messages come in."""
    await begin(_post, me(), messages)
    taken = [await got(MATCHES[match]) for match in matches]
    await got(End)
    return [taken, await waiting()]


# --- timers ------------------------------------------------------------------------------


async def timers(delays_s: list[float], cancelled: set[int], by_name: bool) -> list[Any]:
    """Set timers and cancel some at once: whose cancel said "pending", and how often each message came."""
    target: ActorRef | str = me()
    if by_name:
        target = fresh("timed")
        await register(target)
    made = [send_after(delay_s, target, number) for number, delay_s in enumerate(delays_s)]
    pending = {number for number in sorted(cancelled) if number < len(made) and made[number].cancel()}
    came: list[int] = [await got(int) for _ in range(len(made) - len(pending))]
    send_after(max(delays_s) + 0.05, target, "all the others would have come")
    await got(str)
    came += [message for message in await waiting() if isinstance(message, int)]
    again = [timer.cancel() for timer in made]
    return [sorted(pending), sorted(came), any(again)]


async def timer_to_the_dead() -> str:
    """A timer whose receiver is gone, or never was, hurts nobody."""
    send_after(0.0, await dead(), "x")
    send_after(0.0, "no_such_name", "x")
    send_after(0.05, me(), "later")
    return await got()  # type: ignore[no-any-return]


# --- full mailboxes ----------------------------------------------------------------------


async def _deaf(gate: str) -> None:
    """Receives nothing until the file is there; then everything, and says how much to whom it is told."""
    while not os.path.exists(gate):
        await anyio.sleep(0.002)
    count = 0
    while True:
        message = await receive()
        if isinstance(message, ActorRef):
            await send(message, count)
        else:
            count += 1


async def send_has_a_deadline(plain: bool) -> list[Any]:
    """Send to one who takes nothing, until it is refused; then all that was not refused comes."""
    with tempfile.TemporaryDirectory() as directory:
        gate = f"{directory}/gate"
        ref = await (begin(_deaf, gate) if plain else begin(Small))
        if not plain:
            await busy(ref, gate)
        sent = await _fill(lambda: send(ref, b"x" * 50_000, timeout=0.05))
        try:
            send_nowait(ref, b"x" * 50_000)
            refused = False
        except MailboxFull:
            refused = True
        Path(gate).touch()
        if plain:
            await send(ref, me(), timeout=DEADLINE_S)
            return [refused, await got(int) == sent + (not refused)]
        return [refused, await ref.call("echo", 1, timeout=DEADLINE_S) == 1]


async def _fill(attempt: Callable[[], Any]) -> int:
    """Send until it is refused; how many were not."""
    for number in range(20_000):
        try:
            await attempt()
        except MailboxFull:
            return number
    raise AssertionError("a mailbox that nobody reads never filled")


async def drop_oldest(count: int) -> list[Any]:
    """Casts to a busy actor that drops: what it saw in the end, and whether the call that waited was answered."""
    desk = await begin(Loose)
    answered: list[object] = []
    with tempfile.TemporaryDirectory() as directory:
        await busy(desk, f"{directory}/gate")

        async def ask() -> None:
            answered.append(await desk.call("echo", "kept", timeout=DEADLINE_S))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await anyio.lowlevel.checkpoint()
            for number in range(count):
                await desk.cast("note", number, timeout=DEADLINE_S)
            Path(f"{directory}/gate").touch()
    return [answered, await desk.notes()]


# --- a pool whose workers are killed -----------------------------------------------------


async def _work(number: int, gate: str) -> int:
    while not os.path.exists(gate):
        await anyio.sleep(0.002)
    return number


async def pool(size: int, killed: set[int]) -> list[object]:
    """Many wait for tasks of which some are killed: how each wait ended."""
    ends: list[object] = [None] * size
    with tempfile.TemporaryDirectory() as directory:
        tasks = [await start_task(_work, number, f"{directory}/gate") for number in range(size)]

        async def collect(number: int) -> None:
            try:
                ends[number] = await tasks[number].result(timeout=DEADLINE_S)
            except ActorExited as error:
                ends[number] = error.reason

        async with anyio.create_task_group() as group:
            for number in range(size):
                group.start_soon(collect, number)
            for number in killed:
                await exit_signal(tasks[number].ref, "kill")
            Path(f"{directory}/gate").touch()
    return ends
