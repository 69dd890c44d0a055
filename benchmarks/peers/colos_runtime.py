"""ColOS's runtime, on asyncio or trio: an actor of a node asks other actors of it, as the peers' programs ask theirs.

    python colos_runtime.py asyncio|trio [--quick]

One-way is `send` to a mailbox, and `cast` for comparison; neither is acknowledged, and the last is confirmed by a call.
"Known" is the `Down` message of an actor that monitors it: the root has seen the end, and said so.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import anyio
import figures

from colos.runtime import (
    Actor,
    ActorRef,
    ChildSpec,
    Down,
    Node,
    NodeClient,
    Supervisor,
    exit_signal,
    monitor,
    receive,
    send,
    spawn,
)

_DEADLINE_S = 25.0


class Answerer(Actor):
    def __init__(self) -> None:
        self.got = 0

    async def answer(self, value: object) -> object:
        return value

    async def pid(self) -> int:
        return os.getpid()

    async def take(self, message: bytes) -> None:
        self.got += 1

    async def info(self, message: object) -> None:
        self.got += 1

    async def count(self) -> int:
        return self.got


class Driver(Actor):
    """The actor that measures: each method answers with its samples."""

    async def spawns(self, count: int, seconds: float, rested: bool = True) -> list[float]:
        took = []
        for _ in (figures.spaced if rested else figures.within)(count, seconds):
            started = time.perf_counter()
            ref = await spawn(Answerer)
            await ref.answer(1)
            took.append(figures.ms_since(started))
            await monitor(ref)
            await exit_signal(ref, "kill")
            await receive(Down, timeout=_DEADLINE_S)  # so that its end does not compete with the next start
        return took

    async def calls(self, ref: ActorRef, count: int, seconds: float) -> list[float]:
        return await calls(ref, count, seconds)

    async def sends(self, ref: ActorRef, payload: bytes, count: int, seconds: float) -> tuple[int, float]:
        """How many were sent, and the seconds until the last was confirmed."""
        before = await ref.count()
        started = time.perf_counter()
        sent = 0
        for _ in figures.within(count, seconds):
            await send(ref, payload)
            sent += 1
        assert await ref.call("count", timeout=_DEADLINE_S) == before + sent
        return sent, time.perf_counter() - started

    async def casts(self, ref: ActorRef, payload: bytes, count: int, seconds: float) -> tuple[int, float]:
        """The same with `cast`."""
        before = await ref.count()
        started = time.perf_counter()
        sent = 0
        for _ in figures.within(count, seconds):
            await ref.cast("take", payload)
            sent += 1
        assert await ref.call("count", timeout=_DEADLINE_S) == before + sent
        return sent, time.perf_counter() - started

    async def kills(self, count: int, seconds: float) -> list[float]:
        took = []
        for _ in figures.within(count, seconds):
            ref = await spawn(Answerer)
            victim = await ref.pid()
            watch = await monitor(ref)
            started = time.perf_counter()
            os.kill(victim, signal.SIGKILL)
            down = await receive(Down, timeout=_DEADLINE_S)
            took.append(figures.ms_since(started))
            assert down.monitor == watch, down
        return took


class App(Supervisor):
    def children(self) -> list[ChildSpec]:
        return [ChildSpec("driver", Driver, name="driver")]


async def calls(ref: ActorRef, count: int, seconds: float) -> list[float]:
    await ref.answer(0)
    took = []
    for number in figures.within(count, seconds):
        started = time.perf_counter()
        await ref.answer(number)
        took.append(figures.us_since(started))
    return took


async def spawns_outside(node: NodeClient, count: int, seconds: float) -> list[float]:
    """Spawned and asked by a program that is not in the node."""
    took = []
    for _ in figures.spaced(count, seconds):
        started = time.perf_counter()
        ref = await node.spawn(Answerer)
        await ref.answer(1)
        took.append(figures.ms_since(started))
        watch = await node.monitor(ref)
        await node.exit_signal(ref, "kill")
        await node.down(watch)
    return took


async def memory(node: NodeClient, plan: figures.Plan) -> None:
    refs = [await node.spawn(Answerer) for _ in range(plan.idlers)]
    pids = [await ref.pid() for ref in refs]
    await anyio.sleep(figures.IDLE_S)
    figures.say_memory(pids)
    for ref in refs:
        await node.exit_signal(ref, "kill")


async def streams(driver: ActorRef, ref: ActorRef, plan: figures.Plan) -> None:
    small = (ref, figures.SMALL, plan.messages, plan.seconds)
    sent, took = await driver.call("sends", *small, timeout=_DEADLINE_S)
    figures.say("one_way_per_s", [sent / took], "send, not acknowledged")
    sent, took = await driver.call("casts", *small, timeout=_DEADLINE_S)
    figures.say("one_way_cast_per_s", [sent / took], "cast, not acknowledged")
    sent, took = await driver.call("sends", ref, figures.BIG, plan.bigs, plan.seconds, timeout=_DEADLINE_S)
    figures.say("big_mb_per_s", [figures.big_mb_per_s(sent, took)])


async def measure(node: NodeClient, plan: figures.Plan) -> None:
    driver = await node.whereis("driver")
    few, many = (plan.spawns, plan.seconds), (plan.calls, plan.seconds)
    figures.say("spawn_ms", await driver.call("spawns", *few, timeout=_DEADLINE_S))
    figures.say("spawn_in_a_row_ms", await driver.call("spawns", *few, rested=False, timeout=_DEADLINE_S))
    figures.say("spawn_outside_ms", await spawns_outside(node, *few))
    ref = await node.spawn(Answerer)
    figures.say("call_us", await driver.call("calls", ref, *many, timeout=_DEADLINE_S))
    figures.say("call_outside_us", await calls(ref, *many))
    with figures.pinned():
        figures.say("call_pinned_us", await driver.call("calls", ref, *many, timeout=_DEADLINE_S))
    await streams(driver, ref, plan)
    figures.say("kill_known_ms", await driver.call("kills", plan.kills, plan.seconds, timeout=_DEADLINE_S), "Down")
    await memory(node, plan)


async def main(backend: str) -> None:
    async with Node(App, backend=backend) as node:
        await measure(node, figures.plan_of_argv())


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], backend=sys.argv[1])
