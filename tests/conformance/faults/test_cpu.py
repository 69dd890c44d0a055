"""CPU starvation: a share of the time, whatever else stops or ends the process."""

from __future__ import annotations

import os
import threading
import time

import pytest
from sandbox_bench import Agent, eventually, heal, state_of

from colos.chaos import CpuStarvation
from colos.errors import InvalidSpecification

SPIN_S = 0.4


def cpu_of(agent: Agent, pid: int) -> float:
    return float(agent.ask(f"cpu_of({pid})"))


def used_in(agent: Agent, pids: list[int], seconds: float) -> list[float]:
    """How much CPU time each uses meanwhile."""
    first = [cpu_of(agent, pid) for pid in pids]
    time.sleep(seconds)
    return [cpu_of(agent, pid) - before for pid, before in zip(pids, first, strict=True)]


def test_a_busy_process_gets_its_share_only(agent: Agent) -> None:
    """Against another one on the same core in the same time: what else runs on the machine befalls both."""
    pids = [agent.do(f"result = fork({name!r}, spin)") for name in ("busy", "other")]
    for name in ("busy", "other"):
        os.sched_setaffinity(agent.process(name).pid, {min(os.sched_getaffinity(0))})
    lease = agent.inject("cpu-starvation", "agent/busy", share=0.1)
    starved, free = used_in(agent, pids, SPIN_S)
    assert starved < 0.6 * free, f"{starved:.2f} s against {free:.2f} s"
    proof = lease.fired() or ""
    assert "stopped" in proof
    heal(lease)
    before = cpu_of(agent, pids[0])
    eventually(lambda: cpu_of(agent, pids[0]) > before, "it runs again")


def test_a_process_on_the_cpu_of_the_harness_is_seen_stopped(agent: Agent) -> None:
    """It acts on the stop only when the harness lets go of the CPU."""
    agent.do("fork('busy', spin)")
    pid = agent.process("busy").pid
    allowed = os.sched_getaffinity(0)
    one = {min(allowed)}
    os.sched_setaffinity(pid, one)
    os.sched_setaffinity(0, one)
    try:
        lease = agent.inject("cpu-starvation", "agent/busy", share=0.1)
        assert lease.fired()
        heal(lease)
    finally:
        os.sched_setaffinity(0, allowed)


def test_an_idle_process_is_stopped_all_the_same(agent: Agent) -> None:
    agent.do("fork('idler', idle)")
    lease = agent.inject("cpu-starvation", "agent/idler")
    assert lease.fired()
    heal(lease)
    eventually(lambda: state_of(agent.process("idler")) == "S", "it sleeps again")


def test_a_starved_program_works(agent: Agent) -> None:
    lease = agent.inject("cpu-starvation", "agent", share=0.3)
    assert agent.ask("sum(range(100000))") == 4999950000
    heal(lease)


@pytest.mark.parametrize("starve_first", [True, False])
@pytest.mark.parametrize("heal_starvation_first", [True, False])
def test_a_stop_of_another_lease_holds(agent: Agent, starve_first: bool, heal_starvation_first: bool) -> None:
    agent.do("fork('victim', spin)")
    victim = agent.process("victim")

    def starve() -> object:
        return agent.inject("cpu-starvation", "agent/victim")

    def stop() -> object:
        return agent.inject("kill", "agent/victim", signal="SIGSTOP")

    if starve_first:
        starved, stopped = starve(), stop()
    else:
        stopped, starved = stop(), starve()
    assert stopped.fired()  # type: ignore[attr-defined]
    begun = time.monotonic()
    states = set()
    while time.monotonic() < begun + 0.05:  # ten periods: it is never continued
        states.add(state_of(victim))
    assert states == {"T"}
    if heal_starvation_first:
        heal(starved)  # type: ignore[arg-type]
        assert state_of(victim) == "T"
        heal(stopped)  # type: ignore[arg-type]
    else:
        heal(stopped)  # type: ignore[arg-type]
        heal(starved)  # type: ignore[arg-type]
    eventually(lambda: state_of(victim) == "R", "it runs again")


def test_a_process_that_exits_meanwhile(agent: Agent) -> None:
    agent.do("child = fork('victim', lambda: signal.sigtimedwait([], 0.05))")
    lease = agent.inject("cpu-starvation", "agent/victim")
    assert agent.ask("os.waitpid(child, 0)[1]") == 0
    assert lease.fired()
    heal(lease)


def test_no_thread_of_ours_goes_on(agent: Agent) -> None:
    lease = agent.inject("cpu-starvation", "agent")
    heal(lease)
    assert not [thread for thread in threading.enumerate() if thread.name == "colos-cpu-starvation"]


def test_a_sandbox_destroyed_meanwhile(agent: Agent) -> None:
    lease = agent.inject("cpu-starvation", "agent")
    agent.sandbox.destroy()
    heal(lease)


@pytest.mark.parametrize("bad", [0, 1, -0.1, 2, "much", None])
def test_a_share_is_between_none_and_all(bad: object) -> None:
    with pytest.raises(InvalidSpecification, match="between 0 and 1"):
        CpuStarvation(shares=(bad,))  # type: ignore[arg-type]
