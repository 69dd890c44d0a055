"""What every kind of fault must keep, whatever it does; a new kind is picked up from the registry.

A kind is given a living system (the agent) that writes, creates, opens and computes, so that any
fault has something to bite on.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import tomllib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sandbox_bench import (
    DEADLINE_S,
    Agent,
    agent_in,
    descriptors,
    eventually,
    heal,
    limits_of,
    snapshot,
    state_of,
)

from colos.chaos.fault import EVERYTHING, Fault
from colos.chaos.faults import fault_kinds
from colos.chaos.sandbox.processes import read_process
from colos.chaos.sandbox.session import Session
from colos.chaos.scenario import Inject, Scenario, dumps, loads
from colos.errors import InvalidSpecification

KINDS = sorted(fault_kinds())
#: A program without actors has nothing that these could hit; their own tests show that they fire.
NEEDS_A_NODE = {"zygote-kill"}
WORK = """
import contextlib
for attempt in range(3):
    with contextlib.suppress(OSError): put(f'work{attempt}', b'x' * 70000)
    with contextlib.suppress(OSError): os.mkdir(f'dir{attempt}')
    with contextlib.suppress(OSError): os.close(os.open('/dev/null', os.O_RDONLY))
    with contextlib.suppress(OSError): socket.socket().close()
    with contextlib.suppress(OSError): mmap.mmap(-1, 1 << 20).close()
    sum(range(20000))
"""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def system(session: Session, kind: str, request: pytest.FixtureRequest) -> Agent:
    unavailable = fault_kinds()[kind].unavailable(session)
    if unavailable is not None:
        pytest.skip(": ".join(unavailable))
    agent: Agent = request.getfixturevalue("agent")
    return agent


def work(agent: Agent) -> None:
    """Have the system do a bit of everything; it may be dead, stopped or refused."""
    if lives(agent):
        agent.tell(WORK)


def lives(agent: Agent) -> bool:
    return any(
        process.inner_pid == agent.sandbox.main_pid and process.state != "Z" for process in agent.sandbox.processes()
    )


def target_of(kind: str) -> str | None:
    return "agent" if fault_kinds()[kind].targeted else None


def ends(kind: str) -> bool:
    """Whether it is over for the agent after a step of this kind (and a kill can be a stop)."""
    return kind != "kill" and fault_kinds()[kind]().deaths(target_of(kind), ("agent",)) > 0


def compare(before: dict[str, Any], after: dict[str, Any]) -> None:
    """What is still there is as it was."""
    assert {name: after[name] for name in before if name in after} == {
        name: value for name, value in before.items() if name in after
    }


# --- the life of one lease -------------------------------------------------------------------


def test_fires_with_proof_and_heals_without_a_trace(system: Agent, kind: str) -> None:
    if kind in NEEDS_A_NODE:
        pytest.skip("the agent is no node of actors")
    before, open_before = snapshot(system.sandbox), descriptors()
    lease = system.inject(kind, target_of(kind))
    assert lease.mechanism
    work(system)
    proof = eventually(lease.fired, f"{kind} has fired")
    assert isinstance(proof, str)
    heal(lease)
    assert lease.fired(), "the proof outlives the healing"
    compare(before, snapshot(system.sandbox))
    assert descriptors() == open_before


def test_a_system_that_survives_works_afterwards(system: Agent, kind: str) -> None:
    lease = system.inject(kind, target_of(kind))
    heal(lease)
    if lease.lasting:
        assert system.ask("6 * 7") == 42
        assert system.ask("put('after', b'x' * 10000)") == 10000
        system.do("os.close(os.open('/dev/null', os.O_RDONLY))")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first-first", "last-first"])
def test_two_leases_on_the_same_thing_end_in_any_order(system: Agent, kind: str, order: tuple[int, int]) -> None:
    before, open_before = snapshot(system.sandbox), descriptors()
    leases = [system.inject(kind, target_of(kind)), system.inject(kind, target_of(kind))]
    work(system)
    for at in order:
        heal(leases[at])
    compare(before, snapshot(system.sandbox))
    assert descriptors() == open_before


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_leases_of_all_kinds_at_once_end_in_any_order(session: Session, order: tuple[int, ...]) -> None:
    with agent_in(session) as agent:
        kinds = [kind for kind in KINDS if fault_kinds()[kind].unavailable(session) is None and not ends(kind)]
        before, open_before = snapshot(agent.sandbox), descriptors()
        leases = []
        for kind in kinds:
            if kind == "kill":
                leases.append(agent.inject(kind, "agent", signal="SIGSTOP"))
            else:
                leases.append(agent.inject(kind, target_of(kind)))
        for at in [*order, *range(3, len(leases))]:
            if at < len(leases):
                heal(leases[at])
        compare(before, snapshot(agent.sandbox))
        assert descriptors() == open_before
        assert agent.ask("6 * 7") == 42


# --- targets that are not there ----------------------------------------------------------------


def test_a_target_that_matches_nothing_is_not_said_to_be_hit(system: Agent, kind: str) -> None:
    if not fault_kinds()[kind].targeted:
        pytest.skip("it has no target")
    before, open_before = snapshot(system.sandbox), descriptors()
    lease = system.inject(kind, "nobody/*")
    assert lease.fired() is None
    heal(lease)
    assert lease.fired() is None
    assert snapshot(system.sandbox) == before
    assert descriptors() == open_before


def test_a_target_that_is_dead_but_not_reaped_is_not_said_to_be_hit(system: Agent, kind: str) -> None:
    if not fault_kinds()[kind].targeted:
        pytest.skip("it has no target")
    system.do("fork('victim', idle)")
    victim = system.process("victim")
    os.kill(victim.pid, signal.SIGKILL)
    eventually(lambda: state_of(victim) == "Z", "it is a zombie")
    lease = system.inject(kind, "agent/victim")
    assert lease.fired() is None
    heal(lease)
    assert lease.fired() is None


def test_a_target_that_dies_while_the_fault_acts(system: Agent, kind: str) -> None:
    if not fault_kinds()[kind].targeted:
        pytest.skip("it has no target")
    open_before = descriptors()
    system.do("fork('victim', idle)")
    victim = system.process("victim")
    lease = system.inject(kind, "agent/victim")
    os.kill(victim.pid, signal.SIGKILL)
    eventually(lambda: state_of(victim) in ("Z", "gone"), "it has died")
    heal(lease)
    assert descriptors() == open_before


def test_a_system_that_dies_while_the_fault_acts(system: Agent, kind: str) -> None:
    lease = system.inject(kind, target_of(kind))
    main = system.running.targets("agent")
    for target in main:
        target.signal(signal.SIGKILL)
        assert target.wait(DEADLINE_S)
        target.close()
    heal(lease)


# --- contained -----------------------------------------------------------------------------


def test_a_bystander_of_the_same_user_is_untouched(system: Agent, kind: str) -> None:
    """It has the agent's name, too; and it is no process of the sandbox."""
    bystander = subprocess.Popen(["/bin/sleep", "60"])
    try:
        process = read_process(bystander.pid)
        assert process is not None
        limits, own = limits_of(bystander.pid), limits_of(os.getpid())
        lease = system.inject(kind, EVERYTHING if fault_kinds()[kind].targeted else None)
        work(system)
        seen = {state_of(process) for _ in range(200)}
        assert "T" not in seen
        assert (limits_of(bystander.pid), limits_of(os.getpid())) == (limits, own)
        assert bystander.poll() is None
        heal(lease)
        assert (limits_of(bystander.pid), limits_of(os.getpid())) == (limits, own)
        assert bystander.poll() is None
        keeper = read_process(system.sandbox.keeper)
        assert keeper is not None
        assert keeper.state != "T"
    finally:
        bystander.kill()
        bystander.wait()


def test_another_sandbox_is_untouched(system: Agent, kind: str, session: Session) -> None:
    with agent_in(session) as other:
        before = snapshot(other.sandbox)
        lease = system.inject(kind, EVERYTHING if fault_kinds()[kind].targeted else None)
        assert other.ask("put('file', b'x' * 100000)") == 100000
        other.do("os.unlink('file')")
        assert snapshot(other.sandbox) == before
        heal(lease)
        assert snapshot(other.sandbox) == before


# --- as a declaration and as data -------------------------------------------------------------


def test_says_what_it_is_and_whether_it_can_be(kind: str, session: Session) -> None:
    fault = fault_kinds()[kind]
    assert fault.kind == kind
    assert fault.summary
    assert fault.__doc__
    assert kind == kind.lower().replace("_", "-")
    unavailable = fault.unavailable(session)
    if unavailable is not None:
        reason, cure = unavailable
        assert reason
        assert cure


def test_its_file_documents_its_parameters(kind: str) -> None:
    fault = fault_kinds()[kind]
    text = (fault.__doc__ or "") + fault.summary
    for name, default in fault.parameters.items():
        assert name in text or str(default) in text, f"{kind} does not say what {name!r} is"


@settings(max_examples=50, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_its_steps_are_data_with_defaults_left_out(kind: str, data: st.DataObject) -> None:
    fault: type[Fault] = fault_kinds()[kind]
    arguments = data.draw(fault().arguments())
    assert arguments.keys() <= fault.parameters.keys()
    short = fault.shorten(arguments)
    assert all(fault.parameters[name] != value for name, value in short.items())
    assert fault.complete(short) == fault.complete(arguments)
    step = Inject(kind, "f1", "agent" if fault.targeted else None, short)
    saved = dumps(Scenario("tests/test_x.py::TestX", "always:x", (step,)))
    (line,) = tomllib.loads(saved)["steps"]
    assert line.keys() <= {"fault", "id", "target", "args", *fault.parameters}
    assert loads(saved, "x.toml").steps == (step,)


def test_with_every_default_a_step_is_bare(kind: str) -> None:
    fault = fault_kinds()[kind]
    assert fault.shorten(dict(fault.parameters)) == {}
    assert fault.complete({}) == dict(fault.parameters)


def test_candidates_come_from_the_topology(kind: str) -> None:
    fault = fault_kinds()[kind]
    topology = ("a/one", "a/two", "b")
    if not fault.targeted:
        assert fault().candidates(topology) == ()
        return
    assert fault("a/*").candidates(topology) == ("a/one", "a/two", "a/*")  # type: ignore[call-arg]
    assert fault("b").candidates(topology) == ("b",)  # type: ignore[call-arg]
    with pytest.raises(InvalidSpecification, match="matches nothing"):
        fault("c").candidates(topology)  # type: ignore[call-arg]


def test_its_deaths_are_counted_by_target(kind: str) -> None:
    fault = fault_kinds()[kind]()
    deaths = fault.deaths("a/*" if fault.targeted else None, ("a/one", "a/two", "b"))
    assert deaths in ((0, 2) if fault.targeted else (0, 3))
