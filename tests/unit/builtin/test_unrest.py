"""Systems that spin or die again and again when nothing breaks them any more, and some that only seem to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from sandbox_bench import Agent, agent_in, eventually

from colos.chaos import Restarts
from colos.chaos.sandbox.session import Session
from colos.chaos.unrest import BURNT_S, STORM_DEATHS, BusyLoop, RestartStorm


def looked(agent: Agent, told: list[str] | None = None) -> str | None:
    busy = BusyLoop(agent.sandbox)
    busy.look()
    agent.ask("None")  # some time passes
    violation = busy.loop(lambda: (told if told is not None else []).append("left alone"))
    if violation is None:
        return None
    assert violation.name == "builtin:no_busy_loop"
    return violation.detail


def test_a_process_that_spins_is_a_busy_loop(agent: Agent) -> None:
    agent.do("fork('spinner', spin)")
    told: list[str] = []
    detail = looked(agent, told)
    assert detail is not None, "it is always ready to run"
    burnt = detail.removeprefix(f"spinner (pid {agent.process('spinner').inner_pid} inside) burnt ")
    assert float(burnt.split()[0]) >= BURNT_S
    assert told == ["left alone"]


def test_one_of_its_threads_is_enough(agent: Agent) -> None:
    agent.do(
        "def threads():\n  import threading; threading.Thread(target=spin, daemon=True).start(); put('spins'); idle()\n"
        "fork('threads', threads)"
    )
    eventually(lambda: agent.ask("os.path.exists('spins')"), "it spins")
    detail = looked(agent)
    assert detail is not None
    assert detail.startswith("threads (pid ")


def test_a_thread_that_waits_for_a_core_is_as_busy_as_ever(agent: Agent) -> None:
    """On a crowded machine it may have used nothing yet; and its process's state is that of its first thread."""
    core = min(os.sched_getaffinity(0))
    rival = f"import os, time; os.sched_setaffinity(0, {{{core}}})\nwhile time.process_time() < 10: pass"
    rivals = [subprocess.Popen([sys.executable, "-c", rival]) for _ in range(4)]
    try:
        agent.do(
            f"def threads():\n  import threading; os.sched_setaffinity(0, {{{core}}})\n"
            "  threading.Thread(target=spin, daemon=True).start(); put('spins'); idle()\nfork('threads', threads)"
        )
        eventually(lambda: agent.ask("os.path.exists('spins')"), "it spins")
        assert looked(agent) is not None
    finally:
        for one in rivals:
            one.kill()
            one.wait()


def test_a_system_that_waits_is_none(agent: Agent) -> None:
    agent.do("fork('waits', idle)")
    told: list[str] = []
    assert looked(agent, told) is None
    assert told == []


def test_a_slow_finish_is_none(agent: Agent) -> None:
    agent.do("def work():\n  while time.process_time() < 0.4: pass\n  put('done'); idle()\nfork('works', work)")
    assert looked(agent) is None
    eventually(lambda: agent.ask("os.path.exists('done')"), "it has come to its end")


def test_one_that_is_busy_half_of_the_time_is_none(agent: Agent) -> None:
    agent.do(
        "def halves():\n  while True:\n    end = time.process_time() + 0.02\n"
        "    while time.process_time() < end: pass\n    time.sleep(0.05)\nfork('halves', halves)"
    )
    assert looked(agent) is None


def storm_in(agent: Agent, tolerance: int | None, planted: str) -> str | None:
    storm = RestartStorm(agent.running, tolerance)
    storm.healed()
    agent.do(planted)
    agent.tell("os._exit(4)")
    eventually(lambda: agent.sandbox.catch_up() or agent.sandbox.exits, "it has died")
    violation = storm.storm()
    if violation is None:
        return None
    assert violation.name == "builtin:no_restart_storm"
    return violation.detail


#: The agent removes and binds its socket at its start: where it cannot, it dies.
POISON = "os.unlink({0!r}); os.mkdir({0!r})"


def test_a_program_that_always_dies_again_is_a_storm(session: Session) -> None:
    with agent_in(session, restarts=Restarts(limit=1000, period_s=5)) as agent:
        detail = storm_in(agent, 1000, POISON.format(agent.sandbox.place.expand("{run}/agent.sock")))
        assert detail is not None
        assert "agent died" in detail
        assert "(last: status 1)" in detail
        assert int(detail.partition("agent died ")[2].split()[0]) >= STORM_DEATHS


def test_one_whose_supervisor_gives_up_is_a_storm(session: Session) -> None:
    with agent_in(session, restarts=Restarts(limit=2, period_s=5)) as agent:
        detail = storm_in(agent, 2, POISON.format(agent.sandbox.place.expand("{run}/agent.sock")))
        assert detail is not None
        assert "agent died 3 times or more (last: status 1), and its supervisor gave up" in detail


def test_giving_up_for_what_the_faults_did_is_none(session: Session) -> None:
    with agent_in(session, restarts=Restarts(limit=2, period_s=60)) as agent:
        for death in (1, 2):
            agent.inject("kill", "agent")
            eventually(lambda count=death: agent.sandbox.catch_up() or agent.sandbox.starts > count, "restarted")
        agent.running.wait_ready(10)
        storm = RestartStorm(agent.running, 2)
        storm.healed()
        agent.inject("kill", "agent")
        eventually(lambda: agent.sandbox.catch_up() or agent.sandbox.stopped, "its supervisor gave up")
        assert storm.storm() is None


def test_one_death_more_is_an_after_effect(session: Session) -> None:
    with agent_in(session, restarts=Restarts(limit=2, period_s=60)) as agent:
        assert storm_in(agent, 2, "pass") is None


def test_one_that_dies_until_what_it_needs_is_there_is_none(session: Session) -> None:
    with agent_in(session, restarts=Restarts(limit=1000, period_s=5)) as agent:
        socket = agent.sandbox.place.expand("{run}/agent.sock")
        log = agent.sandbox.place.expand("{run}/output.log")
        agent.do(
            "def help():\n  os.setsid()\n"
            f"  while open({log!r}).read().count('Traceback') < {STORM_DEATHS}: time.sleep(0.01)\n"
            f"  os.rmdir({socket!r})\nfork('helper', lambda: fork('helper', help))"
        )
        assert storm_in(agent, 1000, POISON.format(socket)) is None
        assert len(agent.sandbox.exits) >= STORM_DEATHS


@pytest.mark.parametrize("restarts", [None, Restarts(limit=5)])
def test_a_calm_system_has_none(session: Session, restarts: Restarts | None) -> None:
    with agent_in(session, restarts=restarts) as agent:
        storm = RestartStorm(agent.running, agent.declared.tolerance())
        storm.healed()
        assert storm.storm() is None
