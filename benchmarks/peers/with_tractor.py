"""tractor: actors of one nursery, asked by `Portal.run`, streamed to in a context.

One-way messages are a stream's; they are not acknowledged, and the receiver confirms the last.
"Known" is the end of a nursery that waits for its one actor; a waiting call is never told.
"""

from __future__ import annotations

import os
import signal
import time

import figures
import tractor
import trio

_DEADLINE_S = 5.0


async def answer(value: object) -> object:
    return value


async def pid() -> int:
    return os.getpid()


@tractor.context
async def take(ctx: tractor.Context) -> None:
    """Receive until an empty message comes, and say how many others came."""
    await ctx.started()
    got = 0
    async with ctx.open_stream() as messages:
        async for message in messages:
            if message == b"":
                await messages.send(got)
                return
            got += 1


_names = iter(range(1_000_000))


async def start(nursery: tractor.ActorNursery) -> tractor.Portal:
    return await nursery.start_actor(f"answerer-{next(_names)}", enable_modules=[__name__])


async def spawns(nursery: tractor.ActorNursery, plan: figures.Plan) -> list[float]:
    took = []
    for _ in figures.spaced(plan.spawns, plan.seconds):
        started = time.perf_counter()
        portal = await start(nursery)
        await portal.run(answer, value=1)
        took.append(figures.ms_since(started))
        await portal.cancel_actor()
    return took


async def calls(portal: tractor.Portal, plan: figures.Plan) -> list[float]:
    await portal.run(answer, value=0)
    took = []
    for number in figures.within(plan.calls, plan.seconds):
        started = time.perf_counter()
        await portal.run(answer, value=number)
        took.append(figures.us_since(started))
    return took


async def stream(portal: tractor.Portal, payload: bytes, count: int, seconds: float) -> tuple[int, float]:
    """How many were sent, and the seconds until the last was confirmed."""
    sent = 0
    async with portal.open_context(take) as (context, _), context.open_stream() as messages:
        started = time.perf_counter()
        for _ in figures.within(count, seconds):
            await messages.send(payload)
            sent += 1
        await messages.send(b"")
        assert await messages.receive() == sent
        took = time.perf_counter() - started
    return sent, took


async def known_ms() -> float:
    """Milliseconds from the kill to the end of the nursery that waits for this one actor."""
    killed_at: list[float] = []
    with trio.fail_after(_DEADLINE_S):
        async with trio.open_nursery() as tasks:
            async with tractor.open_nursery() as nursery:
                portal = await start(nursery)
                tasks.start_soon(kill_soon, await portal.run(pid), killed_at)
            known_at = time.perf_counter()
    return (known_at - killed_at[0]) * 1e3


async def kill_soon(victim: int, killed_at: list[float]) -> None:
    """Once the nursery certainly waits."""
    await trio.sleep(0.05)
    killed_at.append(time.perf_counter())
    os.kill(victim, signal.SIGKILL)


async def kills(plan: figures.Plan) -> list[float]:
    return [await known_ms() for _ in figures.within(plan.kills, plan.seconds)]


async def memory(nursery: tractor.ActorNursery, plan: figures.Plan) -> None:
    portals = [await start(nursery) for _ in range(plan.idlers)]
    pids = [await portal.run(pid) for portal in portals]
    await trio.sleep(figures.IDLE_S)
    figures.say_memory(pids)
    for portal in portals:
        await portal.cancel_actor()


async def main() -> None:
    plan = figures.plan_of_argv()
    async with tractor.open_nursery() as nursery:
        figures.say("spawn_ms", await spawns(nursery, plan))
        portal = await start(nursery)
        figures.say("call_us", await calls(portal, plan))
        with figures.pinned():
            figures.say("call_pinned_us", await calls(portal, plan))
        sent, took = await stream(portal, figures.SMALL, plan.messages, plan.seconds)
        figures.say("one_way_per_s", [sent / took], "a stream, not acknowledged")
        sent, took = await stream(portal, figures.BIG, plan.bigs, plan.seconds)
        figures.say("big_mb_per_s", [figures.big_mb_per_s(sent, took)])
        await memory(nursery, plan)
        await portal.cancel_actor()
    figures.say("kill_known_ms", await kills(plan), "the end of a nursery that waits for it")


if __name__ == "__main__":
    trio.run(main)
