"""Bare asyncio streams on both sides of an AF_UNIX socket, with a small pickled envelope and no runtime at all.

The floor: a process that listens, a process that connects, length-prefixed pickles of
(kind, request, method, arguments).  One-way messages are not acknowledged; the last is confirmed by a call.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time

import figures

CALL, CAST = 1, 2
_LIMIT = 1 << 20


def pack(envelope: object) -> bytes:
    body = pickle.dumps(envelope, 5)
    return len(body).to_bytes(4, "little") + body


async def unpack(reader: asyncio.StreamReader) -> tuple:
    size = int.from_bytes(await reader.readexactly(4), "little")
    return pickle.loads(await reader.readexactly(size))


# --- the process that answers --------------------------------------------------------------


class Answerer:
    def __init__(self) -> None:
        self.got = 0

    async def answer(self, value: object) -> object:
        return value

    async def take(self, message: bytes) -> None:
        self.got += 1

    async def count(self) -> int:
        return self.got


async def serve(path: str) -> None:
    reader, writer = await asyncio.open_unix_connection(path, limit=_LIMIT)
    target = Answerer()
    while True:
        try:
            kind, request, method, args = await unpack(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        result = await getattr(target, method)(*args)
        if kind == CALL:
            writer.write(pack((request, result)))
            await writer.drain()


# --- the process that asks -----------------------------------------------------------------


class Peer:
    """A process, and the one connection to it."""

    def __init__(self, process: subprocess.Popen, streams: tuple) -> None:
        self.process = process
        self.reader, self.writer = streams
        self.request = 0

    async def call(self, method: str, *args: object) -> object:
        self.request += 1
        self.writer.write(pack((CALL, self.request, method, args)))
        await self.writer.drain()
        request, result = await unpack(self.reader)
        assert request == self.request
        return result

    async def cast(self, method: str, *args: object) -> None:
        self.request += 1
        self.writer.write(pack((CAST, self.request, method, args)))
        await self.writer.drain()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.writer.close()


class Listener:
    """Starts processes that connect back to it."""

    async def __aenter__(self) -> Listener:
        self.folder = tempfile.TemporaryDirectory()
        self.path = f"{self.folder.name}/socket"
        self.came: asyncio.Queue = asyncio.Queue()
        self.server = await asyncio.start_unix_server(lambda *streams: self.came.put(streams), self.path, limit=_LIMIT)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        self.folder.cleanup()

    async def start(self) -> Peer:
        # Not asyncio's: its watcher would compete with the kills for the end of the process.
        process = subprocess.Popen([sys.executable, __file__, "--serve", self.path])  # noqa: ASYNC220
        return Peer(process, await self.came.get())


async def spawns(listener: Listener, plan: figures.Plan) -> list[float]:
    took = []
    for _ in figures.spaced(plan.spawns, plan.seconds):
        started = time.perf_counter()
        peer = await listener.start()
        await peer.call("answer", 1)
        took.append(figures.ms_since(started))
        peer.kill()
    return took


async def calls(peer: Peer, plan: figures.Plan) -> list[float]:
    await peer.call("answer", 0)
    took = []
    for number in figures.within(plan.calls, plan.seconds):
        started = time.perf_counter()
        await peer.call("answer", number)
        took.append(figures.us_since(started))
    return took


async def stream(peer: Peer, payload: bytes, count: int, seconds: float) -> tuple[int, float]:
    """How many were sent, and the seconds until the last was confirmed."""
    before = await peer.call("count")
    started = time.perf_counter()
    sent = 0
    for _ in figures.within(count, seconds):
        await peer.cast("take", payload)
        sent += 1
    assert await peer.call("count") == before + sent
    return sent, time.perf_counter() - started


async def kills(listener: Listener, plan: figures.Plan) -> list[float]:
    took = []
    for _ in figures.within(plan.kills, plan.seconds):
        peer = await listener.start()
        await peer.call("answer", 1)
        started = time.perf_counter()
        os.kill(peer.process.pid, signal.SIGKILL)
        assert await peer.reader.read() == b""
        took.append(figures.ms_since(started))
        peer.kill()
    return took


async def memory(listener: Listener, plan: figures.Plan) -> None:
    peers = [await listener.start() for _ in range(plan.idlers)]
    for peer in peers:
        await peer.call("answer", 1)
    await asyncio.sleep(figures.IDLE_S)
    figures.say_memory(peer.process.pid for peer in peers)
    for peer in peers:
        peer.kill()


async def main() -> None:
    plan = figures.plan_of_argv()
    async with Listener() as listener:
        figures.say("spawn_ms", await spawns(listener, plan), "a fresh interpreter")
        peer = await listener.start()
        figures.say("call_us", await calls(peer, plan))
        with figures.pinned():
            figures.say("call_pinned_us", await calls(peer, plan))
        sent, took = await stream(peer, figures.SMALL, plan.messages, plan.seconds)
        figures.say("one_way_per_s", [sent / took], "not acknowledged")
        sent, took = await stream(peer, figures.BIG, plan.bigs, plan.seconds)
        figures.say("big_mb_per_s", [figures.big_mb_per_s(sent, took)])
        peer.kill()
        figures.say("kill_known_ms", await kills(listener, plan), "the connection's end")
        await memory(listener, plan)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[2]) if sys.argv[1:2] == ["--serve"] else main())
