"""Ray: actors that need no CPU of its count, on this machine alone, without its dashboard.

One-way is a call whose reference nobody asks about; Ray answers each.  "Known" is the failure of a call that waits.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time

import figures

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DISABLE_IMPORT_WARNING="1", RAY_DEDUP_LOGS="0")
import ray

_DEADLINE_S = 10.0


@ray.remote(num_cpus=0, max_restarts=0)
class Answerer:
    def __init__(self) -> None:
        self.got = 0

    def answer(self, value: object) -> object:
        return value

    def pid(self) -> int:
        return os.getpid()

    def take(self, message: bytes) -> None:
        self.got += 1

    def count(self) -> int:
        return self.got

    def wait(self) -> None:
        time.sleep(60)


def ask(reference: ray.ObjectRef) -> object:
    return ray.get(reference, timeout=_DEADLINE_S)


def spawns(plan: figures.Plan) -> list[float]:
    took = []
    for _ in figures.spaced(plan.spawns, plan.seconds):
        started = time.perf_counter()
        actor = Answerer.remote()
        ask(actor.answer.remote(1))
        took.append(figures.ms_since(started))
        ray.kill(actor)
    return took


def calls(actor: object, plan: figures.Plan) -> list[float]:
    ask(actor.answer.remote(0))
    took = []
    for number in figures.within(plan.calls, plan.seconds):
        started = time.perf_counter()
        ask(actor.answer.remote(number))
        took.append(figures.us_since(started))
    return took


def stream(actor: object, payload: bytes, count: int, seconds: float) -> tuple[int, float]:
    """How many were sent, and the seconds until the last was confirmed."""
    before = ask(actor.count.remote())
    started = time.perf_counter()
    sent = 0
    for _ in figures.within(count, seconds):
        actor.take.remote(payload)
        sent += 1
    assert ask(actor.count.remote()) == before + sent
    return sent, time.perf_counter() - started


def kills(plan: figures.Plan) -> list[float]:
    took = []
    for _ in figures.within(plan.kills, plan.seconds):
        actor = Answerer.remote()
        victim = ask(actor.pid.remote())
        waiting = actor.wait.remote()
        time.sleep(0.05)
        started = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        try:
            ask(waiting)
        except ray.exceptions.RayActorError:
            took.append(figures.ms_since(started))
    return took


def memory(plan: figures.Plan) -> None:
    actors = [Answerer.remote() for _ in range(plan.idlers)]
    pids = [ask(actor.pid.remote()) for actor in actors]
    time.sleep(figures.IDLE_S)
    figures.say_memory(pids)


def measure(plan: figures.Plan) -> None:
    ask(Answerer.remote().answer.remote(1))  # the first one also brings the class to the cluster
    figures.say("spawn_ms", spawns(plan), "the first ones find workers that it started ahead")
    actor = Answerer.remote()
    figures.say("call_us", calls(actor, plan))
    with figures.pinned():
        figures.say("call_pinned_us", calls(actor, plan))
    sent, took = stream(actor, figures.SMALL, plan.messages, plan.seconds)
    figures.say("one_way_per_s", [sent / took], "each answered")
    sent, took = stream(actor, figures.BIG, plan.bigs, plan.seconds)
    figures.say("big_mb_per_s", [figures.big_mb_per_s(sent, took)], "through its object store")
    figures.say("kill_known_ms", kills(plan), "the failure of a waiting call")
    memory(plan)


def main() -> None:
    folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets lie in it
    try:
        ray.init(
            include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=folder,
            object_store_memory=1 << 30,
        )  # fmt: skip
        measure(figures.plan_of_argv())
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
