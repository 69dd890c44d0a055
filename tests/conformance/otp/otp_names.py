"""Scenes for test_monitors_and_names.py."""

from __future__ import annotations

import itertools
from typing import Any

import anyio
from otp_cast import (
    DEADLINE_S,
    Got,
    ask,
    begin,
    dead,
    die,
    down,
    found,
    fresh,
    got,
    idle,
    probe,
    settle,
    stand,
    tell,
    until,
    victim,
    waiting,
)

from colos.errors import NameTaken, NoSuchActor, RuntimeFailure, StartFailed
from colos.runtime import (
    Actor,
    ActorRef,
    Down,
    ExitSignal,
    Monitor,
    demonitor,
    exit_signal,
    join,
    leave,
    link,
    me,
    members,
    monitor,
    publish,
    receive,
    register,
    send,
    trap_exit,
    unregister,
)

# --- monitors ----------------------------------------------------------------------------


async def monitors(count: int, before: set[int], after: set[int], flush: bool, reason: object) -> list[Any]:
    """Monitor one process often; take some monitors back before its death, some after: which Downs are there."""
    ref = await stand()
    made = [await monitor(ref) for _ in range(count)]
    assert len(set(made)) == count
    for number in before:
        await demonitor(made[number], flush=flush)
    last = await monitor(ref)  # made last; when its Down has come, so have the others', in whatever order, soon
    await tell(ref, die, reason)
    assert await down(last) == reason
    remaining = set(range(count)) - before
    expected = remaining - after
    for number in remaining & after:
        await demonitor(made[number], flush=True)
    downs = {}
    for number in expected:
        message = await got(lambda one, number=number: isinstance(one, Down) and one.monitor == made[number])
        downs[number] = (message.target == ref, message.reason)
    await found("nobody_has_this_name")
    return [downs, [repr(message) for message in await waiting()]]


async def one_way(reason: object) -> bool:
    """The monitored hears nothing of its monitor's end, and lives."""
    watched, watcher = await stand(True), await stand()
    await ask(watcher, monitor, watched)
    watch = await monitor(watcher)
    await tell(watcher, die, reason)
    await down(watch)
    await settle(watched)
    return await probe(watched) and not [one for one in await waiting() if isinstance(one, Got)]


async def monitor_dead() -> list[Any]:
    gone = await dead()
    watch = await monitor(gone)
    message = await got(Down)
    return [message.monitor == watch, message.target == gone, message.reason, len(await waiting())]


async def monitor_nobody() -> list[Any]:
    watch = await monitor("no_such_name")
    message = await got(Down)
    return [message.monitor == watch, message.target, message.reason, len(await waiting())]


async def monitor_a_name(reason: object, moves: bool) -> list[Any]:
    """Monitor by a name, which the process may lose, to another, before it ends."""
    name, ref = fresh("name"), await stand()
    await register(name, ref)
    watch = await monitor(name)
    if moves:
        await unregister(name)
        await register(name, await stand())
    await tell(ref, die, reason)
    message = await got(Down)
    return [message.monitor == watch, message.target == name, message.reason]


async def demonitor_flush(rounds: int) -> list[str]:
    """Take monitors back with flush just when their process dies: what is left."""
    for _ in range(rounds):
        ref = await stand()
        watch = await monitor(ref)
        await exit_signal(ref, "foo")
        await demonitor(watch, flush=True)
        assert await until(lambda ref=ref: _is_dead(ref))
    return [repr(message) for message in await waiting()]


async def _is_dead(ref: ActorRef) -> bool:
    return (await down(await monitor(ref))) is not None


# --- names -------------------------------------------------------------------------------


async def _watch_name(boss: ActorRef, ref: ActorRef, name: str, kind: str) -> None:
    """Once told of its holder's death, look the name up and try to get it, at once."""
    trap_exit(True)
    await (link if kind == "link" else monitor)(ref)
    await send(boss, "watching")
    message = await receive((ExitSignal, Down))
    still_there = await found(name) == ref
    try:
        await register(name)
        won = True
    except NameTaken:
        won = False
    await send(boss, (me(), message.reason, still_there, won))
    await anyio.sleep_forever()


async def free_at_death(watchers: list[str], by_registering: bool, reason: object) -> list[Any]:
    """What those see who are told of a named process's death: reasons, whether it was still there, who got the name."""
    name = fresh("name")
    if by_registering:
        ref = await stand()
        await register(name, ref)
    else:
        ref = await begin(victim, me(), name=name)
    assert await found(name) == ref
    for kind in watchers:
        await begin(_watch_name, me(), ref, name, kind)
    for _ in watchers:
        assert await got(str) == "watching"
    await tell(ref, die, reason)
    said = [await got(tuple) for _ in watchers]
    winners = [who for who, _, _, won in said if won]
    holder = await found(name)
    return [[one[1] for one in said], [one[2] for one in said], len(winners), [holder] == winners]


async def one_name_each() -> list[str]:
    """A second name for a process, a taken name for another, a name for the dead: what each attempt ends with."""
    first, second, name, other = await stand(), await stand(), fresh("name"), fresh("name")
    await register(name, first)
    ends = []
    for attempt in ((other, first), (name, second), (name, first)):
        try:
            await register(*attempt)
            ends.append("no error")
        except NameTaken:
            ends.append("NameTaken")
    assert await found(name) == first
    assert await found(other) is None
    try:
        await register(fresh("name"), await dead())
        ends.append("no error")
    except RuntimeFailure:
        ends.append("error")
    await unregister(name)
    assert await found(name) is None
    await register(name, second)
    await register(other, first)
    assert [await found(name), await found(other)] == [second, first]
    return ends


async def _race(boss: ActorRef, name: str) -> None:
    await send(boss, "ready")
    await receive(str)
    try:
        await register(name)
        await send(boss, (me(), True))
    except NameTaken:
        await send(boss, (me(), False))
    await anyio.sleep_forever()


async def race_for_a_name(count: int) -> list[Any]:
    """How many of several get a name that all want at once, and whether it is theirs."""
    name = fresh("name")
    refs = [await begin(_race, me(), name) for _ in range(count)]
    for _ in refs:
        assert await got(str) == "ready"
    for ref in refs:
        await send(ref, "go")
    said = [await got(tuple) for _ in refs]
    winners = [who for who, won in said if won]
    return [len(winners), [await found(name)] == winners]


async def race_to_spawn(count: int) -> list[Any]:
    """The same of processes that are to be born with the name."""
    name = fresh("name")
    born: list[ActorRef] = []

    async def attempt() -> None:
        try:
            born.append(await begin(idle, name=name))
        except (NameTaken, StartFailed):
            pass

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(attempt)
    return [len(born), [await found(name)] == born]


# --- sending to the dead and the unknown -------------------------------------------------


async def send_to_nobody() -> list[str]:
    """What a send to the dead, and to an unknown name, ends with."""
    gone, name = await dead(), fresh("name")
    ends = []
    for target in (gone, name):
        try:
            await send(target, "x")
            ends.append("silence")
        except NoSuchActor:
            ends.append("NoSuchActor")
    holder = await stand()
    await register(name, holder)
    await send(name, "x")
    assert (await got(Got)).message == "x"
    watch = await monitor(holder)
    await exit_signal(holder, "kill")
    await down(watch)
    try:
        await send(name, "x")
        ends.append("silence")
    except NoSuchActor:
        ends.append("NoSuchActor")
    assert not await waiting()
    return ends


async def _last_words(boss: ActorRef, count: int, reason: object) -> None:
    for number in range(count):
        await send(boss, number)
    await die(reason)


async def last_words(count: int, reason: object) -> list[Any]:
    """A process sends and dies at once: what had come when its Down came, and what came after."""
    _, watch = await begin(_last_words, me(), count, reason, monitor=True)
    heard: list[int] = []
    while True:
        message = await got()
        if isinstance(message, Down):
            assert message.monitor == watch
            await found("nobody_has_this_name")
            return [heard, message.reason, len(await waiting())]
        heard.append(message)


# --- groups ------------------------------------------------------------------------------


class Member(Actor):
    def __init__(self, boss: ActorRef, group: str, joins: int) -> None:
        self.boss, self.group, self.joins = boss, group, joins

    async def init(self) -> None:
        for _ in range(self.joins):
            await join(self.group)

    async def info(self, message: object) -> None:
        if message == "leave":
            await leave(self.group)
        await send(self.boss, (self.ref, message))


async def groups(sizes: list[int], leaving: set[int], dying: set[int]) -> list[Any]:
    """Processes join a group; some leave, some die: to how many a publish goes, and who gets it."""
    group = fresh("group")
    refs = [await begin(Member, me(), group, joins) for joins in sizes]
    for number in leaving:
        await send(refs[number], "leave")
        assert await got(tuple) == (refs[number], "leave")
    for number in dying:
        watch = await monitor(refs[number])
        await exit_signal(refs[number], "kill")
        await down(watch)
    now = [refs.index(ref) for ref in await members(group)]
    count = await publish(group, "news")
    heard = sorted([refs.index((await got(tuple))[0]) for _ in range(count)])
    await found("nobody_has_this_name")
    return [sorted(now), heard, len(await waiting())]


# --- from outside the node ---------------------------------------------------------------


async def outside(node: Any, reason: object) -> list[Any]:
    """A client's monitors: told of a death, it looks the name up at once.  Runs in the test's own process."""
    name = f"outside_{next(_numbers)}"
    ref = await node.spawn(idle, name=name)
    watches: list[Monitor] = [await node.monitor(ref), await node.monitor(name), await node.monitor("no_such_name")]
    await node.exit_signal(ref, reason)
    with anyio.fail_after(DEADLINE_S):
        downs = [await node.down(watch) for watch in watches]
    try:
        await node.whereis(name)
        free = False
    except NoSuchActor:
        free = True
    return [[message.reason for message in downs], [downs[1].target == name, downs[2].target], free]


_numbers = itertools.count()
