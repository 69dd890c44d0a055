"""Thespian on its multiprocTCPBase, the system base its documents recommend.

One-way is `tell`; its transport acknowledges each message, and the sender waits for that.
"Known" is the parent actor's ChildActorExited.
"""

from __future__ import annotations

import os
import signal
import socket
import time

import figures
from thespian.actors import Actor, ActorExitRequest, ActorSystem, ChildActorExited

_DEADLINE_S = 10.0


class Answerer(Actor):
    def __init__(self) -> None:
        super().__init__()
        self.got = 0

    def receiveMessage(self, message: object, sender: object) -> None:  # noqa: N802 - Thespian's name
        if not isinstance(message, tuple):
            return
        method, value = message
        if method == "answer":
            self.send(sender, value)
        elif method == "take":
            self.got += 1
        elif method == "count":
            self.send(sender, self.got)
        elif method == "pid":
            self.send(sender, os.getpid())


class Parent(Actor):
    """Starts a child, kills it, and tells the milliseconds until it was told of the end."""

    def receiveMessage(self, message: object, sender: object) -> None:  # noqa: N802 - Thespian's name
        if message == "kill one":
            self.asked_by = sender
            self.send(self.createActor(Answerer), ("pid", None))
        elif isinstance(message, int):
            self.started = time.perf_counter()
            os.kill(message, signal.SIGKILL)
        elif isinstance(message, ChildActorExited):
            self.send(self.asked_by, figures.ms_since(self.started))


def ask(system: ActorSystem, actor: object, message: object) -> object:
    answer = system.ask(actor, message, _DEADLINE_S)
    assert answer is not None, f"no answer to {message!r:.40} within {_DEADLINE_S:g} s"
    return answer


def spawns(system: ActorSystem, plan: figures.Plan) -> list[float]:
    took = []
    for _ in figures.spaced(plan.spawns, plan.seconds):
        started = time.perf_counter()
        actor = system.createActor(Answerer)
        ask(system, actor, ("answer", 1))
        took.append(figures.ms_since(started))
        system.tell(actor, ActorExitRequest())
    return took


def calls(system: ActorSystem, actor: object, plan: figures.Plan) -> list[float]:
    ask(system, actor, ("answer", "warm"))
    took = []
    for number in figures.within(plan.calls, plan.seconds):
        started = time.perf_counter()
        ask(system, actor, ("answer", number + 1))
        took.append(figures.us_since(started))
    return took


def stream(system: ActorSystem, actor: object, payload: bytes, count: int, seconds: float) -> tuple[int, float]:
    """How many were sent, and the seconds until the last was confirmed."""
    before = ask(system, actor, ("count", None))
    started = time.perf_counter()
    sent = 0
    for _ in figures.within(count, seconds):
        system.tell(actor, ("take", payload))
        sent += 1
    assert ask(system, actor, ("count", None)) == before + sent
    return sent, time.perf_counter() - started


def kills(system: ActorSystem, plan: figures.Plan) -> list[float]:
    parent = system.createActor(Parent)
    return [ask(system, parent, "kill one") for _ in figures.within(plan.kills, plan.seconds)]


def memory(system: ActorSystem, plan: figures.Plan) -> None:
    actors = [system.createActor(Answerer) for _ in range(plan.idlers)]
    pids = [ask(system, actor, ("pid", None)) for actor in actors]
    time.sleep(figures.IDLE_S)
    figures.say_memory(pids)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    plan = figures.plan_of_argv()
    where = {"Admin Port": free_port(), "Convention Address.IPv4": "", "Admin Address": "127.0.0.1"}
    system = ActorSystem("multiprocTCPBase", where)
    try:
        figures.say("spawn_ms", spawns(system, plan))
        actor = system.createActor(Answerer)
        figures.say("call_us", calls(system, actor, plan))
        with figures.pinned(ask(system, actor, ("pid", None))):
            figures.say("call_pinned_us", calls(system, actor, plan))
        sent, took = stream(system, actor, figures.SMALL, plan.messages, plan.seconds)
        figures.say("one_way_per_s", [sent / took], "each acknowledged and waited for")
        sent, took = stream(system, actor, figures.BIG, plan.bigs, plan.seconds)
        figures.say("big_mb_per_s", [figures.big_mb_per_s(sent, took)])
        figures.say("kill_known_ms", kills(system, plan), "ChildActorExited")
        memory(system, plan)
    finally:
        system.shutdown()


if __name__ == "__main__":
    main()
