"""The standard library's multiprocessing, by one start method (fork, forkserver or spawn), over a Pipe.

One-way messages are not acknowledged; the last is confirmed by a call.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection, wait

import figures


def serve(pipe: Connection) -> None:
    got = 0
    while True:
        try:
            method, value = pipe.recv()
        except EOFError:
            return
        if method == "answer":
            pipe.send(value)
        elif method == "take":
            got += 1
        else:
            pipe.send(got)


class Peer:
    """A process, and the Pipe to it."""

    def __init__(self, method: str) -> None:
        context = multiprocessing.get_context(method)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def call(self, method: str, value: object = None) -> object:
        self.pipe.send((method, value))
        return self.pipe.recv()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def spawns(method: str, plan: figures.Plan) -> list[float]:
    took = []
    for _ in figures.spaced(plan.spawns, plan.seconds):
        started = time.perf_counter()
        peer = Peer(method)
        peer.call("answer", 1)
        took.append(figures.ms_since(started))
        peer.end()
    return took


def calls(peer: Peer, plan: figures.Plan) -> list[float]:
    peer.call("answer", 0)
    took = []
    for number in figures.within(plan.calls, plan.seconds):
        started = time.perf_counter()
        peer.call("answer", number)
        took.append(figures.us_since(started))
    return took


def stream(peer: Peer, payload: bytes, count: int, seconds: float) -> tuple[int, float]:
    """How many were sent, and the seconds until the last was confirmed."""
    before = peer.call("count")
    started = time.perf_counter()
    sent = 0
    for _ in figures.within(count, seconds):
        peer.pipe.send(("take", payload))
        sent += 1
    assert peer.call("count") == before + sent
    return sent, time.perf_counter() - started


def kills(method: str, plan: figures.Plan) -> list[float]:
    took = []
    for _ in figures.within(plan.kills, plan.seconds):
        peer = Peer(method)
        peer.call("answer", 1)
        started = time.perf_counter()
        os.kill(peer.process.pid, signal.SIGKILL)
        wait([peer.process.sentinel])
        took.append(figures.ms_since(started))
        peer.end()
    return took


def memory(method: str, plan: figures.Plan) -> None:
    peers = [Peer(method) for _ in range(plan.idlers)]
    for peer in peers:
        peer.call("answer", 1)
    time.sleep(figures.IDLE_S)
    figures.say_memory(peer.process.pid for peer in peers)
    for peer in peers:
        peer.end()


def main() -> None:
    method, plan = sys.argv[1], figures.plan_of_argv()
    Peer(method).end()  # the forkserver is started once, as ColOS's zygote is
    figures.say("spawn_ms", spawns(method, plan))
    peer = Peer(method)
    figures.say("call_us", calls(peer, plan))
    with figures.pinned():
        figures.say("call_pinned_us", calls(peer, plan))
    sent, took = stream(peer, figures.SMALL, plan.messages, plan.seconds)
    figures.say("one_way_per_s", [sent / took], "not acknowledged")
    sent, took = stream(peer, figures.BIG, plan.bigs, plan.seconds)
    figures.say("big_mb_per_s", [figures.big_mb_per_s(sent, took)])
    peer.end()
    figures.say("kill_known_ms", kills(method, plan), "the sentinel")
    memory(method, plan)


if __name__ == "__main__":
    main()
