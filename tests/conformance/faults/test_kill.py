"""Signals: every one by name, what proves it, and stops that several leases hold."""

from __future__ import annotations

import os
import signal

import pytest
from sandbox_bench import Agent, agent_in, descriptors, eventually, gone, heal, state_of

from colos.chaos import Kill, Restarts
from colos.chaos.sandbox.session import Session
from colos.errors import InvalidSpecification

FATAL = [
    s.name
    for s in signal.Signals
    if s
    not in (
        signal.SIGSTOP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGCONT,
        signal.SIGCHLD,
        signal.SIGURG,
        signal.SIGWINCH,
    )
]
HARMLESS = ["SIGCONT", "SIGCHLD", "SIGURG", "SIGWINCH"]


@pytest.mark.parametrize("name", FATAL)
def test_a_signal_that_kills(agent: Agent, name: str) -> None:
    agent.do("for n in ('SIGINT', 'SIGPIPE', 'SIGXFSZ'): signal.signal(getattr(signal, n), signal.SIG_DFL)")
    agent.do("child = fork('victim', idle)")
    victim = agent.process("victim")
    lease = agent.inject("kill", "agent/victim", signal=name)
    assert not lease.lasting
    assert lease.mechanism == "pidfd_send_signal"
    assert lease.fired() == f"{signal.Signals[name].name} to victim[{victim.inner_pid}]"
    if name not in ("SIGPROF", "SIGALRM"):
        assert agent.ask("os.WTERMSIG(os.waitpid(child, 0)[1])") == signal.Signals[name]
    assert lease.is_healed()
    heal(lease)


@pytest.mark.parametrize("name", HARMLESS)
def test_a_signal_that_kills_nobody(agent: Agent, name: str) -> None:
    agent.do("child = fork('victim', idle)")
    lease = agent.inject("kill", "agent/victim", signal=name)
    assert lease.fired()
    assert state_of(agent.process("victim")) == "S"
    heal(lease)


def test_the_default_is_sigkill(agent: Agent) -> None:
    agent.do("child = fork('victim', idle)")
    assert (agent.inject("kill", "agent/victim").fired() or "").startswith("SIGKILL to victim")
    assert agent.ask("os.WTERMSIG(os.waitpid(child, 0)[1])") == signal.SIGKILL


def test_a_pattern_kills_all_and_only_those(agent: Agent) -> None:
    agent.do("for name in ('one', 'two', 'three'): fork(name, idle)")
    agent.do("daemon('stray')")
    processes = {process.command: process for process in agent.sandbox.processes()}
    proof = agent.inject("kill", "agent/*").fired() or ""
    for name in ("one", "two", "three", "stray"):
        assert name in proof
        assert state_of(processes[name]) in ("Z", "gone")
    assert agent.ask("6 * 7") == 42


def test_a_handler_proves_the_delivery(agent: Agent) -> None:
    agent.do("def note(number, frame): put('noted', str(number).encode())\nsignal.signal(signal.SIGTERM, note)")
    lease = agent.inject("kill", "agent", signal="SIGTERM")
    assert (lease.fired() or "").startswith("SIGTERM to ")
    assert agent.ask("open('noted').read()") == str(int(signal.SIGTERM))
    heal(lease)


def test_an_ignored_signal_was_delivered(agent: Agent) -> None:
    agent.do("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    assert agent.inject("kill", "agent", signal="SIGTERM").fired()
    assert agent.ask("6 * 7") == 42


def test_a_blocked_signal_is_no_proof(agent: Agent) -> None:
    agent.do("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])")
    assert agent.inject("kill", "agent", signal="SIGTERM").fired() is None


def test_a_killed_program_is_restarted_by_its_policy(session: Session) -> None:
    with agent_in(session, restarts=Restarts(limit=3)) as agent:
        agent.inject("kill", "agent")
        eventually(lambda: agent.sandbox.pump(0.01) or agent.sandbox.starts == 2, "it is started again")


# --- stops -----------------------------------------------------------------------------------


def test_a_stop_lasts_until_it_is_healed(agent: Agent) -> None:
    process = agent.process()
    lease = agent.inject("kill", "agent", signal="SIGSTOP")
    assert lease.lasting
    assert lease.fired()
    assert state_of(process) == "T"
    agent.tell("result = 6 * 7")
    assert state_of(process) == "T"
    heal(lease)
    assert state_of(process) != "T"
    assert agent.hear() == 42


@pytest.mark.parametrize("first", [0, 1])
def test_two_stops_hold_until_both_are_healed(agent: Agent, first: int) -> None:
    process = agent.process()
    leases = [agent.inject("kill", "agent", signal="SIGSTOP") for _ in range(2)]
    heal(leases[first])
    assert state_of(process) == "T", "the other lease holds it still"
    heal(leases[1 - first])
    assert state_of(process) != "T"
    assert agent.ask("6 * 7") == 42


@pytest.mark.parametrize("name", ["SIGTSTP"])
def test_a_stop_that_nothing_obeys_is_no_proof_and_holds_nothing(agent: Agent, name: str) -> None:
    """A process group without a terminal's job control ignores these: signal(7), setpgid(2)."""
    lease = agent.inject("kill", "agent", signal=name)
    assert lease.fired() is None
    assert not agent.site.stopped
    heal(lease)
    assert agent.ask("6 * 7") == 42


def test_a_stopped_process_can_be_killed_and_then_healed(agent: Agent) -> None:
    before = descriptors()
    agent.do("fork('victim', idle)")
    victim = agent.process("victim")
    stop = agent.inject("kill", "agent/victim", signal="SIGSTOP")
    kill = agent.inject("kill", "agent/victim")
    assert kill.fired()
    assert state_of(victim) in ("Z", "X") or gone(victim)
    heal(kill)
    heal(stop)
    assert descriptors() == before


def test_a_healed_stop_that_does_not_take_is_seen(agent: Agent) -> None:
    """Healing is observed: here somebody else stops the process again."""
    process = agent.process()
    lease = agent.inject("kill", "agent", signal="SIGSTOP")
    lease.heal()
    os.kill(process.pid, signal.SIGSTOP)
    eventually(lambda: state_of(process) == "T", "it is stopped again")
    assert not lease.is_healed()
    os.kill(process.pid, signal.SIGCONT)
    eventually(lease.is_healed, "it runs")


@pytest.mark.parametrize("bad", ["SIGNOTHING", "9", 9, "", None])
def test_a_signal_by_another_name_is_refused(bad: object) -> None:
    with pytest.raises(InvalidSpecification, match="not a signal's name"):
        Kill(signals=(bad,))  # type: ignore[arg-type]


def test_only_stops_and_continues_cost_no_death() -> None:
    assert Kill(signals=("SIGSTOP", "SIGCONT")).deaths("*", ("a", "b")) == 0
    assert Kill(signals=("SIGSTOP", "SIGTERM")).deaths("*", ("a", "b")) == 2
