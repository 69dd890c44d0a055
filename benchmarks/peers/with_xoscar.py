"""xoscar: each actor in a sub pool (an OS process) of its own, as every actor of ColOS is one.

One-way is `ref.take.tell`; the receiving pool acknowledges each message, and the sender does not wait for that.
"Known" is the main pool's `on_process_down`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

import figures
import xoscar as xo


class Answerer(xo.Actor):
    def __init__(self) -> None:
        super().__init__()
        self.got = 0

    async def answer(self, value: object) -> object:
        return value

    async def pid(self) -> int:
        return os.getpid()

    async def take(self, message: bytes) -> None:
        self.got += 1

    async def count(self) -> int:
        return self.got


class Pool:
    """A main pool, and actors in processes of their own."""

    async def __aenter__(self) -> Pool:
        self.down: asyncio.Queue = asyncio.Queue()
        self.pool = await xo.create_actor_pool(
            "127.0.0.1", n_process=1, auto_recover=False, on_process_down=lambda _, where: self.down.put_nowait(where)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.stop()

    async def start(self) -> xo.ActorRef:
        address = await self.pool.append_sub_pool()
        from with_xoscar import Answerer  # by this name the other process can import it

        return await xo.create_actor(Answerer, address=address)

    async def end(self, ref: xo.ActorRef) -> None:
        await self.pool.remove_sub_pool(ref.address, force=True)

    async def forget(self, address: str) -> None:
        """After its process was killed: no longer watch it."""
        self.pool.sub_processes.pop(address, None)


async def spawns(pool: Pool, plan: figures.Plan) -> list[float]:
    took = []
    for _ in figures.spaced(plan.spawns, plan.seconds):
        started = time.perf_counter()
        ref = await pool.start()
        await ref.answer(1)
        took.append(figures.ms_since(started))
        await pool.end(ref)
    return took


async def calls(ref: xo.ActorRef, plan: figures.Plan) -> list[float]:
    await ref.answer(0)
    took = []
    for number in figures.within(plan.calls, plan.seconds):
        started = time.perf_counter()
        await ref.answer(number)
        took.append(figures.us_since(started))
    return took


async def stream(ref: xo.ActorRef, payload: bytes, count: int, seconds: float) -> tuple[int, float]:
    """How many were sent, and the seconds until the last was confirmed."""
    before = await ref.count()
    started = time.perf_counter()
    sent = 0
    for _ in figures.within(count, seconds):
        await ref.take.tell(payload)
        sent += 1
    while await ref.count() < before + sent:
        pass
    return sent, time.perf_counter() - started


async def kills(pool: Pool, plan: figures.Plan) -> list[float]:
    took = []
    for _ in figures.within(plan.kills, plan.seconds):
        ref = await pool.start()
        pid = await ref.pid()
        started = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        await asyncio.wait_for(pool.down.get(), 5.0)
        took.append(figures.ms_since(started))
        await pool.forget(ref.address)
    return took


async def memory(pool: Pool, plan: figures.Plan) -> None:
    refs = [await pool.start() for _ in range(plan.idlers)]
    pids = [await ref.pid() for ref in refs]
    await asyncio.sleep(figures.IDLE_S)
    figures.say_memory(pids)
    for ref in refs:
        await pool.end(ref)


async def main() -> None:
    plan = figures.plan_of_argv()
    async with Pool() as pool:
        figures.say("spawn_ms", await spawns(pool, plan), "append_sub_pool and create_actor")
        ref = await pool.start()
        figures.say("call_us", await calls(ref, plan))
        with figures.pinned():
            figures.say("call_pinned_us", await calls(ref, plan))
        sent, took = await stream(ref, figures.SMALL, plan.messages, plan.seconds)
        figures.say("one_way_per_s", [sent / took], "each acknowledged")
        sent, took = await stream(ref, figures.BIG, plan.bigs, plan.seconds)
        figures.say("big_mb_per_s", [figures.big_mb_per_s(sent, took)])
        figures.say("kill_known_ms", await kills(pool, plan), "on_process_down, polled every 0.5 s")
        await memory(pool, plan)


if __name__ == "__main__":
    asyncio.run(main())
