"""Ends, crashes, pauses and storms: what a process sees of them; and the end of a whole system."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from sandbox_bench import DEADLINE_S, Agent, agent_in, eventually, gone, heal, limits_of, spec, state_of

from colos.chaos import (
    ActorSystem,
    ChaosMachine,
    CommandSystem,
    Crash,
    NodeKill,
    PauseFor,
    Restarts,
    RootKill,
    SignalStorm,
    Terminate,
    ZygoteKill,
    file_exists,
)
from colos.chaos.actor_system import RunningActors
from colos.chaos.fault import Fault, Lease, Site
from colos.chaos.faults import fault_kinds
from colos.chaos.faults.node import _zygote
from colos.chaos.sandbox.session import Session
from colos.demo.ledger import RepairedLedgerSupervisor
from colos.errors import InvalidSpecification

STATUS_OF = "os.waitpid(child, 0)[1]"


def fork(agent: Agent, body: str = "idle") -> Any:
    agent.do(f"child = fork('victim', {body})")
    return agent.process("victim")


# --- terminate and crash ---------------------------------------------------------------------


def test_a_process_that_does_not_care_is_terminated(agent: Agent) -> None:
    fork(agent)
    lease = agent.inject("terminate", "agent/victim")
    assert not lease.lasting
    assert agent.ask(f"os.WTERMSIG({STATUS_OF})") == signal.SIGTERM
    assert (lease.fired() or "").startswith("SIGTERM to victim[")
    heal(lease)


def test_a_process_may_end_in_order_when_it_is_terminated(agent: Agent) -> None:
    fork(agent, "lambda: (signal.signal(signal.SIGTERM, lambda *_: os._exit(7)), [signal.pause() for _ in range(9)])")
    eventually(lambda: catches(agent.process("victim").pid, signal.SIGTERM), "it has its handler")
    lease = agent.inject("terminate", "agent/victim")
    assert agent.ask(f"os.WEXITSTATUS({STATUS_OF})") == 7
    assert lease.fired()


def test_who_ignores_it_is_not_terminated(agent: Agent) -> None:
    agent.do("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    heal(agent.inject("terminate", "agent"))
    assert agent.ask("6 * 7") == 42


def catches(pid: int, number: int) -> bool:
    with open(f"/proc/{pid}/status") as file:
        (mask,) = (int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT"])
def test_a_crash_shows_in_the_wait_status_and_leaves_no_core(agent: Agent, name: str) -> None:
    agent.do("resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)")
    fork(agent)
    lease = agent.inject("crash", "agent/victim", signal=name)
    assert not lease.lasting
    assert (lease.fired() or "").startswith(f"{name} to victim[")
    status = agent.ask(STATUS_OF)
    assert os.WTERMSIG(status) == signal.Signals[name]
    assert not os.WCOREDUMP(status)
    assert agent.ask("os.listdir('.')") == []
    heal(lease)


def test_who_survives_has_not_crashed_and_has_its_limit_back(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colos.chaos.signalling._PROOF_S", 0.05)  # it waits for an end that does not come
    agent.do("hits = []; signal.signal(signal.SIGABRT, lambda *_: hits.append(1))")
    before = limits_of(agent.process().pid)
    lease = agent.inject("crash", "agent", signal="SIGABRT")
    assert lease.fired() is None
    assert agent.ask("hits") == [1]
    assert limits_of(agent.process().pid) == before
    heal(lease)


def test_a_crash_waits_for_a_paused_process_to_go_on(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSEGV is no SIGKILL: whoever is stopped takes it when it is continued."""
    monkeypatch.setattr("colos.chaos.signalling._PROOF_S", 0.05)
    fork(agent)
    stop = agent.inject("pause", "agent/victim")
    crash = agent.inject("crash", "agent/victim")
    assert crash.fired() is None
    heal(stop)
    heal(crash)
    assert agent.ask(f"os.WTERMSIG({STATUS_OF})") == signal.SIGSEGV


# --- pauses ----------------------------------------------------------------------------------


def test_a_pause_lasts_until_it_is_healed(agent: Agent) -> None:
    process = agent.process()
    lease = agent.inject("pause", "agent")
    assert lease.lasting
    assert lease.fired()
    agent.tell("result = 6 * 7")
    assert state_of(process) == "T"
    heal(lease)
    assert agent.hear() == 42


def test_a_paused_process_goes_on_by_itself(agent: Agent) -> None:
    process = agent.process()
    begun = time.monotonic()
    lease = agent.inject("pause-for", "agent", seconds=0.05)
    assert "for 0.05 s" in (lease.fired() or "")
    agent.tell("result = 6 * 7")
    assert agent.hear() == 42
    assert time.monotonic() - begun >= 0.05
    assert state_of(process) != "T"
    heal(lease)
    assert lease.fired()


def test_the_target_sees_that_time_has_passed(agent: Agent) -> None:
    agent.do(
        "begun, begin = os.pipe()\n"
        "def watch():\n"
        "  last = time.monotonic(); os.write(begin, b'runs')\n"
        "  while True:\n"
        "    now = time.monotonic()\n"
        "    if now - last > 0.2: os.write(begin, b'late')\n"
        "    last = now\n"
        "fork('victim', watch); assert os.read(begun, 4) == b'runs'; os.set_blocking(begun, False)"
    )
    lease = agent.inject("pause-for", "agent/victim", seconds=0.3)
    assert lease.fired()

    def seen() -> bool:
        return agent.refused("assert os.read(begun, 4) == b'late'") == 0

    eventually(seen, "it has seen a jump")
    heal(lease)


def test_healing_a_pause_early_continues_at_once(agent: Agent) -> None:
    lease = agent.inject("pause-for", "agent", seconds=60)
    assert lease.fired()
    assert state_of(agent.process()) == "T"
    heal(lease)
    assert agent.ask("6 * 7") == 42
    assert "colos-pause-for" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("first", [0, 1])
def test_a_pause_that_ends_leaves_another_lease_its_stop(agent: Agent, first: int) -> None:
    process = agent.process()
    leases = [agent.inject("pause", "agent"), agent.inject("pause-for", "agent", seconds=60)]
    heal(leases[first])
    assert state_of(process) == "T"
    heal(leases[1 - first])
    assert agent.ask("6 * 7") == 42


def test_a_pause_that_runs_out_leaves_another_lease_its_stop(agent: Agent) -> None:
    process = agent.process()
    pause = agent.inject("pause", "agent")
    short = agent.inject("pause-for", "agent", seconds=0.01)
    eventually(short.is_healed, "its time is over")
    assert state_of(process) == "T"
    heal(pause)
    assert state_of(process) != "T"


@pytest.mark.parametrize("bad", [0, -1, 61, True, "long", None])
def test_a_pause_has_a_length(bad: Any) -> None:
    with pytest.raises(InvalidSpecification, match="at most 60"):
        PauseFor(seconds=(bad,))


@pytest.mark.parametrize("bad", ["SIGKILL", "segv", 11, None])
def test_a_crash_is_one_of_two(bad: Any) -> None:
    with pytest.raises(InvalidSpecification, match="SIGSEGV or SIGABRT"):
        Crash(signals=(bad,))


# --- storms ----------------------------------------------------------------------------------


def test_a_handler_is_called_over_and_over(agent: Agent) -> None:
    agent.do("hits = []; signal.signal(signal.SIGCHLD, lambda *_: hits.append(1))")
    lease = agent.inject("signal-storm", "agent", count=50, over_s=0.05)
    assert lease.lasting
    eventually(lambda: agent.ask("len(hits)") >= 10, "they have come")
    # While the storm goes on, one of its signals may be pending at the moment of the look, which proves nothing.
    assert eventually(lease.fired, "it has shown").startswith("SIGCHLD: ")
    heal(lease)
    assert 10 <= agent.ask("len(hits)") <= 50


def test_a_system_call_is_interrupted(agent: Agent) -> None:
    """Through the C library, for Python tries again by itself (PEP 475)."""
    agent.do("libc = ctypes.CDLL(None, use_errno=True); signal.signal(signal.SIGURG, lambda *_: None)")
    agent.do("signal.siginterrupt(signal.SIGURG, True)")
    lease = agent.inject("signal-storm", "agent", signal="SIGURG", count=2000, over_s=2)
    assert agent.do("code = libc.usleep(1000000); result = (code, ctypes.get_errno())") == (-1, 4)
    heal(lease)


def test_a_storm_ends_by_itself(agent: Agent) -> None:
    lease = agent.inject("signal-storm", "agent", count=3, over_s=0)
    eventually(lambda: "colos-signal-storm" not in [t.name for t in threading.enumerate()], "it is over")
    assert f"3 to {agent.process().command}[" in (lease.fired() or "")
    heal(lease)


def test_a_healed_storm_sends_no_more(agent: Agent) -> None:
    agent.do("hits = []; signal.signal(signal.SIGCHLD, lambda *_: hits.append(1))")
    lease = agent.inject("signal-storm", "agent", count=100000, over_s=60)
    heal(lease)
    hits = agent.ask("len(hits)")
    assert agent.ask("[time.sleep(0.001) for _ in range(20)] and len(hits)") == hits


def test_blocked_signals_reach_nobody(agent: Agent) -> None:
    agent.do("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD]); signal.signal(signal.SIGCHLD, print)")
    lease = agent.inject("signal-storm", "agent", count=5, over_s=0)
    heal(lease)
    assert lease.fired() is None


def test_nobody_dies_of_the_default(agent: Agent) -> None:
    victim = fork(agent)
    heal(agent.inject("signal-storm", "agent/*"))
    assert state_of(victim) == "S"


def test_a_storm_of_what_ends_a_process_costs_deaths(agent: Agent) -> None:
    assert SignalStorm().deaths("*", ("a", "b")) == 0
    assert SignalStorm(signals=("SIGURG", "SIGHUP")).deaths("*", ("a", "b")) == 2
    fork(agent)
    lease = agent.inject("signal-storm", "agent/victim", signal="SIGHUP", count=5, over_s=0)
    assert agent.ask(f"os.WTERMSIG({STATUS_OF})") == signal.SIGHUP
    heal(lease)
    assert lease.fired()


@pytest.mark.parametrize(
    "bad",
    [{"signals": ("SIGSTOP",)}, {"signals": ("SIGKILL",)}, {"signals": ("SIGCONT",)}, {"signals": ("CHLD",)}]
    + [{"counts": (count,)} for count in (0, -1, 100_001, 1.5)]
    + [{"over_s": over} for over in (-1, 61, "long", True)],
)
def test_a_storm_is_bounded(bad: Any) -> None:
    with pytest.raises(InvalidSpecification):
        SignalStorm(**bad)


def pump_until(agent: Agent, holds: Callable[[], bool]) -> None:
    eventually(lambda: (agent.sandbox.pump(0.01), holds())[1], "the keeper has said so")


def has_started(agent: Agent, times: int) -> bool:
    return agent.sandbox.starts == times


# --- the whole system ------------------------------------------------------------------------


def test_a_node_kill_ends_everybody(agent: Agent) -> None:
    agent.do("fork('one', idle); fork('two', spin); daemon('three')")
    before = agent.sandbox.processes()
    lease = agent.inject("node-kill")
    assert not lease.lasting
    assert "all 4" in (lease.fired() or "")
    heal(lease)
    assert all(state_of(process) in ("Z", "X") or gone(process) for process in before)
    pump_until(agent, lambda: agent.sandbox.stopped)
    assert agent.sandbox.exits == [(-signal.SIGKILL, False)]


def test_a_killed_node_is_restarted_by_its_policy_and_finds_its_files(session: Session) -> None:
    with agent_in(session, restarts=Restarts(limit=3)) as agent:
        agent.do("put('kept', b'written')")
        for starts, kind in ((2, "node-kill"), (3, "root-kill")):
            assert agent.inject(kind).fired()
            pump_until(agent, functools.partial(has_started, agent, starts))
            with open(agent.running.path("{data}/kept")) as file:
                assert file.read() == "written"


def test_a_root_kill_ends_the_main_process_only(agent: Agent) -> None:
    agent.do("fork('orphan', idle)")
    orphan, main = agent.process("orphan"), agent.process()
    lease = agent.inject("root-kill")
    assert lease.fired() == f"SIGKILL to {main.command}[{main.inner_pid}]"
    eventually(lambda: gone(main), "the keeper has reaped it")
    assert state_of(orphan) == "S"


def test_a_program_has_no_zygote(agent: Agent) -> None:
    lease = agent.inject("zygote-kill")
    assert lease.fired() is None
    heal(lease)


def test_who_is_dead_already_is_missed(agent: Agent) -> None:
    agent.inject("root-kill")
    pump_until(agent, lambda: agent.sandbox.stopped)
    for kind in ("root-kill", "node-kill"):
        lease = agent.inject(kind)
        assert lease.fired() is None
        heal(lease)


@pytest.mark.parametrize("bad", ["SIGTERM", "SIGCONT", None])
def test_a_zygote_is_killed_or_hangs(bad: Any) -> None:
    with pytest.raises(InvalidSpecification, match="SIGKILL or SIGSTOP"):
        ZygoteKill(signals=(bad,))


# --- a node of actors ------------------------------------------------------------------------


@pytest.fixture
def node(session: Session) -> Iterator[RunningActors]:
    system = ActorSystem(RepairedLedgerSupervisor)
    session.prepare(system.modules())
    sandbox = session.sandbox(spec())
    try:
        running = system.boot(sandbox)
        running.wait_ready(DEADLINE_S)
        yield running
    finally:
        sandbox.destroy()


def inject(site: Site, kind: str, target: str | None = None, **arguments: Any) -> Lease:
    return fault_kinds()[kind].inject(site, target, arguments)


def with_client(running: RunningActors, body: Callable[[], Any]) -> Any:
    async def main() -> Any:
        with anyio.fail_after(2 * DEADLINE_S):
            async with running.client() as client:
                running.attach(client)
                return await body()

    return anyio.run(main)


def test_a_node_ends_with_its_root(node: RunningActors) -> None:
    site = Site(node.sandbox, node)
    root = next(p for p in node.sandbox.processes() if p.inner_pid == node.sandbox.main_pid)
    lease = inject(site, "root-kill")
    assert lease.fired() == f"SIGKILL to {root.command}[{root.inner_pid}]"
    heal(lease)
    eventually(lambda: not [p for p in node.sandbox.processes() if p.state != "Z"], "all of it has ended")


def test_all_of_a_node_is_killed(node: RunningActors) -> None:
    everybody = {f"[{process.inner_pid}]" for process in node.sandbox.processes()}
    lease = inject(Site(node.sandbox, node), "node-kill")
    assert all(pid in (lease.fired() or "") for pid in everybody)
    heal(lease)
    eventually(lambda: not [process for process in node.sandbox.processes() if process.state != "Z"], "all are gone")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_a_node_without_its_zygote_restarts_its_actors(node: RunningActors, name: str) -> None:
    site = Site(node.sandbox, node)
    actors = {target.process.inner_pid for target in node.targets("*")}
    lease = inject(site, "zygote-kill", signal=name)
    assert (lease.fired() or "").startswith(f"{name} to ")
    assert lease.lasting == (name == "SIGSTOP")
    assert {target.process.inner_pid for target in node.targets("*")} == actors, "no actor was hit"
    if lease.lasting:
        heal(lease)  # else the root waits for it for seconds, before the spare takes its place
    assert inject(site, "kill", "ledger/front").fired()

    async def submit() -> Any:
        assert await node.quiet(DEADLINE_S)
        return await (await node.whereis("front")).submit("a job")

    assert with_client(node, submit) == 1
    heal(lease)


def test_the_spare_is_not_the_zygote_and_takes_its_place(node: RunningActors) -> None:
    site = Site(node.sandbox, node)
    hit = []
    for _ in range(3):  # each time the spare of the last
        zygote = _zygote(site)
        assert zygote is not None
        hit.append(zygote.process.inner_pid)
        zygote.close()
        lease = inject(site, "zygote-kill")
        assert (lease.fired() or "").endswith(f"[{hit[-1]}]")
    assert len(set(hit)) == 3
    assert not node.sandbox.stopped


# --- what a system survives ------------------------------------------------------------------


def machine_of(system: Any, fault: Fault) -> ChaosMachine:
    class Machine(ChaosMachine):
        pass

    Machine.system = system
    machine = object.__new__(Machine)
    machine._executor = type("Nothing", (), {"active_steps": lambda self: []})()  # type: ignore[assignment]
    return machine


@pytest.mark.parametrize("kind", [NodeKill, RootKill])
def test_a_system_is_killed_whole_as_often_as_it_is_started_again(kind: type[Fault]) -> None:
    fault = kind()
    assert fault.deaths(None, ("a", "b")) == 2
    without = machine_of(CommandSystem(["sleep", "1"], ready=file_exists("{run}/x")), fault)
    assert without._possible(fault) == []
    assert machine_of(ActorSystem(RepairedLedgerSupervisor), fault)._possible(fault) == []
    again = machine_of(CommandSystem(["sleep", "1"], ready=file_exists("{run}/x"), restarts=Restarts(limit=2)), fault)
    assert again._possible(fault) == [None]
    again._deaths = 2
    assert again._possible(fault) == []


def test_a_zygote_is_nobody_that_a_system_has_declared() -> None:
    fault = ZygoteKill()
    assert fault.deaths(None, ("a", "b")) == 0
    assert machine_of(ActorSystem(RepairedLedgerSupervisor), fault)._possible(fault) == [None]
    assert Terminate().deaths("a", ("a", "b")) == Crash().deaths("a", ("a", "b")) == 1
