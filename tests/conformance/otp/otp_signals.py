"""Scenes for test_signals.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
from otp_cast import (
    Alive,
    Did,
    Got,
    Probe,
    ask,
    begin,
    dead,
    die,
    down,
    exit_self,
    found,
    got,
    idle,
    outcome,
    probe,
    settle,
    stand,
    tell,
    victim,
    waiting,
)

from colos.errors import MailboxFull
from colos.runtime import (
    Actor,
    ActorRef,
    Down,
    Exit,
    ExitSignal,
    demonitor,
    exit_signal,
    link,
    me,
    monitor,
    receive,
    register,
    send,
    send_nowait,
    spawn,
    start_task,
    trap_exit,
    unlink,
)

# --- order -------------------------------------------------------------------------------


async def persist(function: Callable[..., None], *args: object) -> None:
    """Send without waiting, again where it was refused: a refused message was not sent."""
    while True:
        try:
            return function(*args)
        except MailboxFull:
            await anyio.sleep(0.002)


async def speak(listener: ActorRef, name: str, operations: list[tuple[str, int]], last: object) -> None:
    """Send signals of several kinds, numbered; the link's is the last."""
    for number, (kind, size) in enumerate(operations):
        if kind == "send":
            await send(listener, (number, b"x" * size))
        elif kind == "named":
            await send(name, (number, b"x" * size))
        elif kind == "nowait":
            await persist(send_nowait, listener, (number, b"x" * size))
        else:
            await exit_signal(listener, ("number", number))
    await die(last)


async def order(operations: list[tuple[str, int]], last: object) -> list[Any]:
    """What a trapping listener hears of one speaker: numbers, then how the link and the monitor told its end."""
    trap_exit(True)
    name = f"listener_{me().id}"
    await register(name)
    ref, watch = await begin(speak, me(), name, operations, last, link=True, monitor=True)
    heard: list[Any] = []
    ends: list[Any] = []
    while len(ends) < 2:
        message = await got()
        if isinstance(message, ExitSignal) and message.reason != last:
            assert message.sender == ref
            heard.append(message.reason[1])
        elif isinstance(message, ExitSignal | Down):
            assert isinstance(message, ExitSignal) or message.monitor == watch
            ends.append((len(heard), message.reason))
        else:
            heard.append(message[0])
    return [heard, ends, len(await waiting())]


class Ear(Actor):
    """Writes down what it hears, however it comes."""

    mailbox_limit = 10_000

    async def init(self) -> None:
        self.seen: list[int] = []
        trap_exit(True)

    async def note(self, number: int, data: bytes = b"") -> None:
        self.seen.append(number)

    async def heard(self) -> list[int]:
        return self.seen

    async def info(self, message: Any) -> None:
        self.seen.append(message.reason[1] if isinstance(message, ExitSignal) else message[0])


async def address(ear: ActorRef, operations: list[tuple[str, int]]) -> list[int]:
    """Speak to an actor in every way there is; what it has heard."""
    for number, (kind, size) in enumerate(operations):
        if kind == "call":
            await ear.note(number, b"x" * size)
        elif kind == "cast":
            await ear.cast("note", number, b"x" * size)
        elif kind == "cast_nowait":
            await persist(ear.cast_nowait, "note", number, b"x" * size)
        elif kind == "send":
            await send(ear, (number, b"x" * size))
        else:
            await exit_signal(ear, ("number", number))
    return await ear.heard()  # type: ignore[no-any-return]


async def order_to_an_actor(operations: list[tuple[str, int]]) -> list[int]:
    ear = await begin(Ear)  # whose parent is this process; the signals come from another
    task = await start_task(address, ear, operations)
    return await task.result(timeout=15.0)  # type: ignore[no-any-return]


async def number_to(listener: ActorRef, count: int) -> None:
    for number in range(count):
        await send(listener, (me(), number))


async def several_speakers(counts: list[int]) -> list[list[int]]:
    """What each of several speakers was heard to say."""
    refs = [await begin(number_to, me(), count) for count in counts]
    heard: dict[ActorRef, list[int]] = {ref: [] for ref in refs}
    for _ in range(sum(counts)):
        sender, number = await got()
        heard[sender].append(number)
    assert not await waiting()
    return [heard[ref] for ref in refs]


# --- exit signals ------------------------------------------------------------------------


async def _known(result: tuple[Any, ...], sender: ActorRef) -> tuple[Any, ...]:
    """("message", reason), if it came from where it should."""
    if result[0] == "message":
        return ("message", result[2]) if result[1] == sender else ("message of a stranger", result[1], result[2])
    return result


async def exit2(trap: bool, reason: object) -> list[Any]:
    """exit(Pid, Reason) to another, and what `kill` then does to one who lives."""
    ref = await stand(trap)
    watch = await monitor(ref)
    await exit_signal(ref, reason)
    await send(ref, Probe())
    result = await _known(await outcome(ref, watch), me())
    if result[0] != "dies":
        await exit_signal(ref, "kill")
        return [result, await down(watch)]
    return [result, result[1]]


async def self_exit2(trap: bool, reason: object) -> tuple[Any, ...]:
    """exit(self(), Reason)."""
    ref = await stand(trap)
    watch = await monitor(ref)
    await tell(ref, exit_self, reason)
    return await _known(await outcome(ref, watch), ref)


async def by_link(trap_before: bool, trap: bool, reason: object) -> list[Any]:
    """A linked process ends; the flag was `trap_before` when the link was made."""
    ref, other = await stand(trap_before), await stand()
    watch = await monitor(ref)
    await ask(ref, link, other)
    await ask(ref, monitor, other)
    was = await ask(ref, trap_exit, trap)
    await tell(other, die, reason)
    result: tuple[Any, ...] | None = None
    while result is None:
        message = await got(lambda one: isinstance(one, Down | Got))
        if isinstance(message, Down):
            return [("dies", message.reason), was]
        if isinstance(message.message, ExitSignal):
            result = await _known(("message", message.message.sender, message.message.reason), other)
        else:  # its Down has come; so must the link's, if it comes at all
            await settle_or_die(ref)
            late = [one for one in await waiting() if isinstance(one, Down | Got)]
            if any(isinstance(one, Down) for one in late):
                return [("dies", late[-1].reason), was]
            signals = [one.message for one in late if isinstance(one.message, ExitSignal)]
            result = await _known(("message", signals[0].sender, signals[0].reason), other) if signals else ("ignored",)
    await exit_signal(ref, "the end")  # it lives on, unharmed
    if not trap:
        return [result, was] if await down(watch) == "the end" else ["it was dead", was]
    return [result, was] if await probe(ref) else ["it was dead", was]


async def settle_or_die(ref: ActorRef) -> None:
    """`settle`, of one who may die meanwhile."""
    watch = await monitor(ref)
    for _ in range(3):
        await tell(ref, found, "nobody_has_this_name")
        message = await got(
            lambda one: (isinstance(one, Did) and one.by == ref) or (isinstance(one, Down) and one.monitor == watch)
        )
        if isinstance(message, Down):
            return
    await demonitor(watch, flush=True)


async def graph(
    size: int, edges: list[tuple[int, int]], trapping: set[int], first: int, reason: object, deaths: int, notices: int
) -> tuple[dict[int, object], list[tuple[int, int, object]], set[int]]:
    """Linked processes, of which one ends: who died of what, who was told of whom, who answers afterwards."""
    refs = [await stand(number in trapping) for number in range(size)]
    for one, other in edges:
        await ask(refs[one], link, refs[other])
    for ref in refs:
        await monitor(ref)
    await tell(refs[first], die, reason)
    died: dict[int, object] = {}
    told: list[tuple[int, int, object]] = []
    with anyio.move_on_after(15.0):
        while len(died) < deaths or len(told) < notices:
            message = await receive()
            if isinstance(message, Down):
                died[refs.index(message.target)] = message.reason  # type: ignore[arg-type]
            elif isinstance(message, Got) and isinstance(message.message, ExitSignal):
                told.append((refs.index(message.by), refs.index(message.message.sender), message.message.reason))
    for number in sorted(set(range(size)) - set(died)):
        await settle_or_die(refs[number])
    alive: set[int] = set()
    for number in set(range(size)) - set(died):
        await send(refs[number], Probe())
        if isinstance(await got(lambda one: isinstance(one, Alive | Down)), Alive):
            alive.add(number)
    told += [
        (refs.index(one.by), refs.index(one.message.sender), one.message.reason)
        for one in await waiting()
        if isinstance(one, Got) and isinstance(one.message, ExitSignal)
    ]
    return died, sorted(told, key=repr), alive


# --- links -------------------------------------------------------------------------------


async def link_history(operations: list[tuple[int, str]], dies: int, reason: object) -> list[object]:
    """Two trapping processes link and unlink; then one ends: of what reasons the other is told."""
    pair = [await stand(True), await stand(True)]
    for side, kind in operations:
        await ask(pair[side], link if kind == "link" else unlink, pair[1 - side])
    other = pair[1 - dies]
    await ask(other, monitor, pair[dies])
    await tell(pair[dies], die, reason)
    told: list[object] = []
    seen = False
    while not seen:
        message = (await got(lambda one: isinstance(one, Got))).message
        seen = isinstance(message, Down)
        told += [message.reason] if isinstance(message, ExitSignal) else []
    await settle(other)
    late = [one.message for one in await waiting() if isinstance(one, Got)]
    return told + [message.reason for message in late if isinstance(message, ExitSignal)]


async def unlink_race(rounds: int) -> list[object]:
    """Unlink processes that die just now: the exit signals that came after unlink had returned."""
    trap_exit(True)
    late: list[object] = []
    for _ in range(rounds):
        ref, watch = await begin(idle, link=True, monitor=True)
        await exit_signal(ref, "kill")
        await unlink(ref)
        await waiting_exits()  # those that had come before are allowed
        await down(watch)
        await found("nobody_has_this_name")
        late += await waiting_exits()
    return late


async def waiting_exits() -> list[object]:
    """The exit signals in the mailbox, taken out."""
    taken: list[object] = []
    while True:
        try:
            taken.append((await receive(ExitSignal, timeout=0)).reason)
        except TimeoutError:
            return taken


async def link_dead(trap: bool) -> tuple[Any, ...]:
    """Link somebody who has been."""
    gone = await dead()
    ref = await stand(trap)
    watch = await monitor(ref)
    await tell(ref, link, gone)
    result = await outcome(ref, watch)
    return await _known(result, gone)


# --- spawn, linked and monitored ---------------------------------------------------------


async def spawn_both(reason: object, rounds: int) -> list[tuple[object, object]]:
    """Processes that die at once: what the link and the monitor say, which were there before."""
    trap_exit(True)
    said: list[tuple[object, object]] = []
    for _ in range(rounds):
        ref, watch = await begin(die, reason, link=True, monitor=True)
        signal = await got(lambda one, ref=ref: isinstance(one, ExitSignal) and one.sender == ref)
        said.append((signal.reason, await down(watch)))
    assert not await waiting()
    return said


async def spawner(reason: object) -> None:
    await spawn(die, reason, link=True)
    await anyio.sleep_forever()


async def spawn_link_kills(reason: object) -> object:
    """What a process dies of that spawned, linked, one which dies at once."""
    _, watch = await begin(spawner, reason, monitor=True)
    return await down(watch)


async def link_survives_its_maker(reason: object) -> object:
    """A child that was spawned linked dies with its parent."""
    parent = await stand()
    child = await ask(parent, spawn_linked_victim)
    watch = await monitor(child)
    await tell(parent, die, reason)
    return await down(watch)


async def spawn_linked_victim() -> ActorRef:
    return await spawn(victim, me(), link=True)  # type: ignore[no-any-return]


async def outlives_its_parent() -> bool:
    """A child that was spawned unlinked lives on when its parent dies."""
    parent = await stand()
    child = await ask(parent, spawn_victim, me())
    watch = await monitor(parent)
    await tell(parent, die, "foo")
    await down(watch)
    alive = await probe(child)
    await exit_signal(child, "kill")
    return alive


async def spawn_victim(boss: ActorRef) -> ActorRef:
    return await spawn(victim, boss)  # type: ignore[no-any-return]


async def raise_exit(reason: object) -> object:
    """What a monitor says of `raise Exit(reason)`."""
    _, watch = await begin(_raise, reason, monitor=True)
    return await down(watch)


async def _raise(reason: object) -> None:
    raise Exit(reason)
