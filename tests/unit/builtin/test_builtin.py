"""The built-in properties, each over a tiny program that really does it and one that does not."""

from __future__ import annotations

import signal

import pytest
from sandbox_bench import Agent, agent_in, eventually, heal, state_of

from colos.chaos.builtin import DESCRIPTOR_SLACK, DescriptorCount, outliving, zombies
from colos.chaos.sandbox.session import Session


def test_a_child_that_nobody_reaps_is_a_zombie(agent: Agent) -> None:
    agent.do("child = fork('lazybones', lambda: None)")
    child = eventually(lambda: [p for p in agent.sandbox.processes() if p.state == "Z"], "it has died")[0]
    violation = zombies(agent.sandbox)
    assert violation is not None
    assert violation.name == "builtin:no_zombie"
    assert f"lazybones (pid {child.inner_pid} inside)" in violation.detail


def test_a_reaped_child_is_none(agent: Agent) -> None:
    agent.do("os.waitpid(fork('child', lambda: None), 0); fork('lives', idle)")
    assert zombies(agent.sandbox) is None


def test_an_orphan_is_reaped_by_the_sandbox(agent: Agent) -> None:
    agent.do("daemon('stray')")
    agent.inject("kill", "agent/stray")
    assert zombies(agent.sandbox) is None
    assert "stray" not in {process.command for process in agent.sandbox.processes()}


def test_a_parent_that_reaps_a_moment_later_is_none(agent: Agent) -> None:
    agent.do("fork('late', lambda: (os.fork() or os._exit(0), signal.sigtimedwait([], 0.2), os.wait(), idle()))")
    eventually(lambda: [p for p in agent.sandbox.processes() if p.state == "Z"], "there is one for a while")
    assert zombies(agent.sandbox) is None


def test_a_parent_that_always_has_a_new_one_is_none(agent: Agent) -> None:
    agent.do(
        "def churn():\n  while True:\n    if os.fork() == 0: os._exit(0)\n"
        "    signal.sigtimedwait([], 0.005); os.wait()\nfork('churn', churn)"
    )
    assert zombies(agent.sandbox) is None


def test_a_daemon_outlives_the_system(agent: Agent) -> None:
    agent.do("daemon('stray')")
    assert agent.running.stop(10)
    violation = outliving(agent.sandbox)
    assert violation is not None
    assert violation.name == "builtin:no_process_outlives_the_system"
    assert "stray (pid " in violation.detail


def test_a_child_that_ignores_the_end_outlives_the_system(agent: Agent) -> None:
    agent.do("fork('child', idle)")
    assert agent.running.stop(10)
    violation = outliving(agent.sandbox)
    assert violation is not None
    assert "child (pid " in violation.detail


def test_nothing_outlives_a_system_that_ends_its_children(agent: Agent) -> None:
    agent.do(
        "children = [fork('child', idle)]\ndef end(*_):\n  [os.kill(c, 9) for c in children]; os._exit(0)\n"
        "signal.signal(signal.SIGTERM, end)"
    )
    assert agent.running.stop(10)
    assert outliving(agent.sandbox) is None
    assert agent.sandbox.exits == [(0, False)]


def test_a_program_that_keeps_descriptors_leaks(agent: Agent) -> None:
    count = DescriptorCount(agent.sandbox)
    count.look()
    agent.do(f"leaked = [os.open('/dev/null', os.O_RDONLY) for _ in range({DESCRIPTOR_SLACK} + 1)]")
    violation = count.leak()
    assert violation is not None
    assert violation.name == "builtin:no_descriptor_leak"
    first, last = (int(part.split()[-1]) for part in violation.detail.split("→"))
    assert last == first + DESCRIPTOR_SLACK + 1
    assert f"(pid {agent.sandbox.main_pid} inside)" in violation.detail
    agent.do("[os.close(fd) for fd in leaked]")
    assert count.leak() is None


def test_a_few_descriptors_more_are_no_leak(agent: Agent) -> None:
    count = DescriptorCount(agent.sandbox)
    count.look()
    agent.do(f"kept = [os.open('/dev/null', os.O_RDONLY) for _ in range({DESCRIPTOR_SLACK})]")
    assert count.leak() is None


def test_a_process_is_counted_from_when_it_was_first_seen(agent: Agent) -> None:
    count = DescriptorCount(agent.sandbox)
    count.look()
    agent.do("fork('many', lambda: ([os.open('/dev/null', os.O_RDONLY) for _ in range(50)], put('opened'), idle()))")
    eventually(lambda: agent.ask("os.path.exists('opened')"), "it has opened them")
    count.look()
    assert count.leak() is None


def test_a_leak_ends_with_its_process(agent: Agent) -> None:
    agent.do(
        "fork('leaker', lambda: (signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]), put('blocked'),"
        " signal.sigwait([signal.SIGUSR1]), [os.open('/dev/null', os.O_RDONLY) for _ in range(50)],"
        " put('opened'), idle()))"
    )
    eventually(lambda: agent.ask("os.path.exists('blocked')"), "it waits for its signal")
    count = DescriptorCount(agent.sandbox)
    count.look()
    agent.inject("kill", "agent/leaker", signal="SIGUSR1")
    eventually(lambda: agent.ask("os.path.exists('opened')"), "it has opened them")
    violation = count.leak()
    assert violation is not None
    assert "leaker" in violation.detail
    agent.inject("kill", "agent/leaker")
    assert count.leak() is None


@pytest.mark.parametrize("number", [signal.SIGSTOP])
def test_what_a_healed_fault_leaves_is_no_violation(session: Session, number: signal.Signals) -> None:
    with agent_in(session) as agent:
        count = DescriptorCount(agent.sandbox)
        count.look()
        leases = [
            agent.inject("kill", "agent", signal=number.name),
            agent.inject("cpu-starvation", "agent"),
            agent.inject("descriptor-exhaustion", "agent"),
        ]
        for lease in leases:
            heal(lease)
        assert zombies(agent.sandbox) is None
        assert count.leak() is None
        assert state_of(agent.process()) != "T"
        assert agent.running.stop(10)
        assert outliving(agent.sandbox) is None
