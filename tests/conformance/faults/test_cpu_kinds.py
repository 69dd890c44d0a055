"""Where and when a process runs: cores, priority, rivals, starvation intervals, and the quota where there is one."""

from __future__ import annotations

import os
import threading
from itertools import islice, permutations
from typing import Any

import pytest
from sandbox_bench import Agent, agent_in, descriptors, eventually, heal, read_process, state_of

from colos.chaos import CpuFewer, CpuRival, StarvationIntervals
from colos.chaos.fault import Lease
from colos.chaos.faults.cpu import intervals
from colos.chaos.mechanisms import busy, threads
from colos.chaos.sandbox.session import Session
from colos.errors import InvalidSpecification

ALL = frozenset(os.sched_getaffinity(0))
#: Three more threads that wait until `go` is set.
THREADS = (
    "import threading; go = threading.Event()\n"
    "more = [threading.Thread(target=go.wait, daemon=True) for _ in range(3)]\n"
    "for thread in more: thread.start()"
)
MASKS = "sorted({tuple(sorted(os.sched_getaffinity(int(t)))) for t in os.listdir('/proc/self/task')})"
POLICIES = "sorted({os.sched_getscheduler(int(t)) for t in os.listdir('/proc/self/task')})"

several_cpus = pytest.mark.skipif(len(ALL) < 2, reason="it takes two CPUs")


@pytest.fixture
def crowd(agent: Agent) -> Any:
    """The agent with four threads, which end with the test."""
    agent.do(THREADS)
    yield agent
    if agent.sandbox.main_pid:
        agent.do("go.set(); [thread.join() for thread in more]")


def masks(agent: Agent) -> set[tuple[int, ...]]:
    return set(agent.ask(MASKS))


def heir(agent: Agent, name: str = "heir") -> int:
    agent.do(f"fork({name!r}, idle)")
    return agent.process(name).pid


# --- cores -----------------------------------------------------------------------------------


@several_cpus
def test_all_threads_share_one_core_and_get_their_own_back(crowd: Agent) -> None:
    crowd.do(f"os.sched_setaffinity(more[0].native_id, {{{max(ALL)}}})")
    before = masks(crowd)
    assert len(before) == 2
    lease = crowd.inject("cpu-pin", "agent")
    assert masks(crowd) == {(min(ALL),)}
    assert "4 of 4 threads" in (lease.fired() or "")
    assert lease.mechanism == "sched-setaffinity"
    heal(lease)
    assert masks(crowd) == before
    assert crowd.ask("os.sched_getaffinity(more[0].native_id)") == {max(ALL)}
    assert crowd.ask("os.sched_getaffinity(more[1].native_id)") == ALL


@several_cpus
def test_processes_are_pinned_together(agent: Agent) -> None:
    agent.do("one = fork('one', idle); two = fork('two', idle)")
    agent.do(f"os.sched_setaffinity(two, {{{max(ALL)}}})")
    lease = agent.inject("cpu-pin", "agent/*")
    assert agent.ask("os.sched_getaffinity(one) == os.sched_getaffinity(two)")
    assert frozenset(agent.ask("os.sched_getaffinity(0)")) == ALL, "nobody else is pinned"
    heal(lease)
    assert agent.ask("os.sched_getaffinity(one)") == ALL
    assert agent.ask("os.sched_getaffinity(two)") == {max(ALL)}


@several_cpus
@pytest.mark.parametrize("parent_dies", [False, True], ids=["child", "orphan"])
def test_what_is_born_meanwhile_is_healed_too(agent: Agent, parent_dies: bool) -> None:
    lease = agent.inject("cpu-pin", "agent")
    agent.do(THREADS)
    agent.do("daemon('heir')" if parent_dies else "fork('heir', idle)")
    pid = agent.process("heir").pid
    assert masks(agent) == {(min(ALL),)}
    assert os.sched_getaffinity(pid) == {min(ALL)}
    lease.heal()
    assert masks(agent) == {tuple(sorted(ALL))}
    assert os.sched_getaffinity(pid) == ALL
    heal(lease)
    agent.do("go.set(); [thread.join() for thread in more]")


@several_cpus
def test_a_cpu_less(agent: Agent) -> None:
    lease = agent.inject("cpu-fewer", "agent")
    assert masks(agent) == {tuple(sorted(ALL)[:-1])}
    assert (lease.fired() or "").startswith(f"{agent.process().command}[")
    heal(lease)
    assert masks(agent) == {tuple(sorted(ALL))}


@several_cpus
def test_one_cpu_is_always_left_and_more_cannot_be_lost(agent: Agent) -> None:
    lease = agent.inject("cpu-fewer", "agent", fewer=10_000)
    assert masks(agent) == {(min(ALL),)}
    again = agent.inject("cpu-fewer", "agent")
    assert masks(agent) == {(min(ALL),)}
    heal(lease)
    heal(again)
    assert masks(agent) == {tuple(sorted(ALL))}


def test_who_has_one_cpu_already_is_not_said_to_be_hit(agent: Agent) -> None:
    agent.do(f"os.sched_setaffinity(0, {{{min(ALL)}}})")
    for kind in ("cpu-pin", "cpu-fewer"):
        lease = agent.inject(kind, "agent")
        assert lease.fired() is None
        heal(lease)
    assert masks(agent) == {(min(ALL),)}
    agent.do(f"os.sched_setaffinity(0, {set(ALL)})")


@several_cpus
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_leases_on_the_same_cores_end_in_any_order(agent: Agent, order: tuple[int, ...]) -> None:
    leases = [
        agent.inject("cpu-fewer", "agent"),
        agent.inject("cpu-pin", "agent"),
        agent.inject("cpu-pin", "agent/*"),
    ]
    pid = heir(agent)
    for at in order:
        assert masks(agent) != {tuple(sorted(ALL))} or at == 2
        heal(leases[at])
    assert masks(agent) == {tuple(sorted(ALL))}
    assert os.sched_getaffinity(pid) == ALL


@several_cpus
def test_a_healing_that_does_not_take_is_seen(agent: Agent) -> None:
    pid = agent.process().pid
    lease = agent.inject("cpu-pin", "agent")
    lease.heal()
    os.sched_setaffinity(pid, {min(ALL)})
    assert not lease.is_healed()
    os.sched_setaffinity(pid, ALL)
    assert lease.is_healed()


@several_cpus
def test_after_healing_a_process_may_choose_its_cores_itself(agent: Agent) -> None:
    heal(agent.inject("cpu-pin", "agent"))
    agent.do(f"os.sched_setaffinity(0, {{{max(ALL)}}})")
    lease = agent.inject("cpu-priority", "agent")
    again = agent.inject("cpu-pin", "agent")
    heal(again)
    heal(lease)
    assert masks(agent) == {(max(ALL),)}
    agent.do(f"os.sched_setaffinity(0, {set(ALL)})")


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "all", None])
def test_some_cpus_are_lost(bad: Any) -> None:
    with pytest.raises(InvalidSpecification, match="how many CPUs are lost"):
        CpuFewer(fewer=(bad,))


# --- priority --------------------------------------------------------------------------------


def test_all_threads_have_the_lowest_policy_and_get_their_own_back(crowd: Agent) -> None:
    lowest = threads.lowest_policy()
    crowd.do("os.sched_setscheduler(more[0].native_id, os.SCHED_BATCH, os.sched_param(0))")
    nice = crowd.ask("os.getpriority(os.PRIO_PROCESS, 0)")
    lease = crowd.inject("cpu-priority", "agent")
    assert crowd.ask(POLICIES) == [lowest]
    assert lease.fired()
    pid = heir(crowd)
    assert os.sched_getscheduler(pid) == lowest
    heal(lease)
    assert crowd.ask(POLICIES) == [os.SCHED_OTHER, os.SCHED_BATCH]
    assert crowd.ask("os.sched_getscheduler(more[0].native_id)") == os.SCHED_BATCH
    assert os.sched_getscheduler(pid) == os.SCHED_OTHER
    assert crowd.ask("os.getpriority(os.PRIO_PROCESS, 0)") == nice


@pytest.mark.skipif(threads.lowest_policy() != os.SCHED_IDLE, reason="this user could not leave SCHED_IDLE")
def test_it_waits_while_others_run(agent: Agent) -> None:
    """Both on one core: whoever is lowered gets next to nothing of it."""
    agent.do("low = fork('low', spin); high = fork('high', spin)")
    pin = agent.inject("cpu-pin", "agent/*")
    lease = agent.inject("cpu-priority", "agent/low")
    first = agent.ask("cpu_of(low), cpu_of(high)")
    eventually(lambda: agent.ask("cpu_of(high)") > first[1] + 0.2, "the other one has run")
    assert agent.ask("cpu_of(low)") - first[0] < 0.1
    heal(lease)
    heal(pin)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_leases_on_the_priority_end_in_any_order(agent: Agent, order: tuple[int, int]) -> None:
    leases = [agent.inject("cpu-priority", "agent") for _ in range(2)]
    heal(leases[order[0]])
    assert agent.ask(POLICIES) == [threads.lowest_policy()]
    heal(leases[order[1]])
    assert agent.ask(POLICIES) == [os.SCHED_OTHER]


# --- rivals ----------------------------------------------------------------------------------


def rivals() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        process = read_process(int(name)) if name.isdigit() else None
        if process is not None and process.command == busy.NAME and process.state != "Z":
            found.append(process.pid)
    return found


def own(lease: Lease) -> list[int]:
    return [rival.pid for rival in lease._rivals]  # type: ignore[attr-defined]


def test_a_busy_process_has_to_share_its_core(agent: Agent) -> None:
    core = min(ALL)
    agent.do(f"busy = fork('busy', spin); os.sched_setaffinity(busy, {{{core}}})")
    lease = agent.inject("cpu-rival", "agent/busy", rivals=4)
    assert "4 rivals of busy[" in (lease.fired() or "")
    assert {frozenset(os.sched_getaffinity(pid)) for pid in own(lease)} == {frozenset({core})}
    mine, theirs = agent.ask("cpu_of(busy)"), sum(map(busy.cpu_s_of, own(lease)))
    eventually(lambda: sum(map(busy.cpu_s_of, own(lease))) > theirs + 0.4, "they have run")
    assert agent.ask("cpu_of(busy)") - mine < 0.3, "it would have had as much as they"
    ended = own(lease)
    heal(lease)
    assert not set(ended) & set(rivals())
    assert lease.fired()


def test_rivals_are_nobody_of_the_systems(agent: Agent) -> None:
    lease = agent.inject("cpu-rival", "agent")
    pids = own(lease)
    assert len(pids) == len(ALL)
    assert set(pids) <= set(rivals())
    assert not {process.pid for process in agent.sandbox.processes()} & set(pids)
    assert agent.running.targets("agent/*") == []
    agent.inject("kill", "agent/*")
    assert set(pids) <= set(rivals())
    heal(lease)


def test_a_rival_lives_in_the_sandbox_and_ends_with_it(session: Session) -> None:
    before = descriptors()
    with agent_in(session) as agent:
        lease = agent.inject("cpu-rival", "agent")
        pids = own(lease)
        if session.tier == "namespaces":
            table = os.readlink(f"/proc/{agent.process().pid}/ns/pid")
            assert {os.readlink(f"/proc/{pid}/ns/pid") for pid in pids} == {table}
        agent.sandbox.destroy()
        eventually(lambda: not set(pids) & set(rivals()), "they have ended with it")
        heal(lease)
    assert descriptors() == before


def test_a_rival_outside_namespaces_ends_with_a_harness_that_is_killed(bare: Session) -> None:
    with agent_in(bare) as agent:
        lease = agent.inject("cpu-rival", "agent")
        pids = own(lease)
        for rival in lease._rivals:  # type: ignore[attr-defined]
            rival._child.stdin.close()  # what the kernel does with it when we are killed
        eventually(lambda: not set(pids) & set(rivals()), "they have ended")
        heal(lease)


def test_a_rival_that_does_not_end_is_seen(agent: Agent) -> None:
    lease = agent.inject("cpu-rival", "agent")
    assert not lease.is_healed()
    heal(lease)


@pytest.mark.parametrize("bad", [0, 5, -1, 1.5, True, None])
def test_there_are_few_rivals(bad: Any) -> None:
    with pytest.raises(InvalidSpecification):
        CpuRival(rivals=(bad,))


# --- intervals -------------------------------------------------------------------------------


def test_the_schedule_is_the_seeds_alone() -> None:
    first = list(islice(intervals(7, 0, 0.2), 50))
    assert first == list(islice(intervals(7, 0, 0.2), 50))
    assert first != list(islice(intervals(8, 0, 0.2), 50))
    assert first != list(islice(intervals(7, 1, 0.2), 50))


@pytest.mark.parametrize("share_max", [0.01, 0.2])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_never_stopped_for_more_than_its_share(seed: int, share_max: float) -> None:
    stopped = total = 0.0
    lengths = []
    for run_s, stop_s in islice(intervals(seed, 0, share_max), 300):
        assert 0.001 <= stop_s <= 2.0
        stopped, total = stopped + stop_s, total + run_s + stop_s
        assert stopped <= share_max * total + 1e-9
        lengths.append(stop_s)
    assert max(lengths) > 1.0
    assert min(lengths) < 0.002
    assert lengths[0] <= 0.01, "a short run has one, too"


def test_it_is_stopped_and_goes_on(agent: Agent) -> None:
    agent.do("fork('victim', spin)")
    victim = agent.process("victim")
    lease = agent.inject("starvation-intervals", "agent/victim", seed=1)
    eventually(lambda: state_of(victim) == "T", "it is stopped")
    eventually(lambda: state_of(victim) == "R", "it goes on")
    assert (eventually(lease.fired, "it was seen")).startswith("victim[")
    heal(lease)
    assert state_of(victim) == "R"
    assert "colos-starvation-intervals" not in [thread.name for thread in threading.enumerate()]


def test_an_interval_holds_against_a_duty_cycle_and_ends_under_a_pause(agent: Agent) -> None:
    agent.do("fork('victim', spin)")
    victim = agent.process("victim")
    starved = agent.inject("cpu-starvation", "agent/victim", share=0.9)
    lease = agent.inject("starvation-intervals", "agent/victim")
    key = (victim.pid, victim.start_time)
    eventually(lambda: key in agent.site.stopped, "an interval has begun")
    pause = agent.inject("pause", "agent/victim")
    heal(lease)
    heal(starved)
    assert state_of(victim) == "T"
    heal(pause)
    eventually(lambda: state_of(victim) == "R", "it runs again")


def test_healed_within_an_interval_it_runs_at_once(agent: Agent) -> None:
    agent.do("fork('victim', spin)")
    victim = agent.process("victim")
    for seed in range(6):
        lease = agent.inject("starvation-intervals", "agent/victim", seed=seed)
        eventually(lambda: agent.site.stopped, "an interval has begun")
        heal(lease)
        assert not agent.site.stopped
        assert state_of(victim) == "R"


def test_nothing_fired_before_the_first_interval(agent: Agent) -> None:
    lease = agent.inject("starvation-intervals", "agent", share_max=0.0001)
    heal(lease)
    assert lease.fired() is None


@pytest.mark.parametrize("bad", [0, 0.21, 1, -0.1, True, "much", None])
def test_intervals_take_a_fifth_at_most(bad: Any) -> None:
    with pytest.raises(InvalidSpecification, match=r"at most 0\.2"):
        StarvationIntervals(shares_max=(bad,))


@pytest.mark.parametrize("bad", [-1, 1.5, True, "x"])
def test_a_seed_is_a_whole_number(agent: Agent, bad: Any) -> None:
    with pytest.raises(InvalidSpecification, match="a seed"):
        agent.inject("starvation-intervals", "agent", seed=bad)
