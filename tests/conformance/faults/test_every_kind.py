"""What every kind of fault must keep, whatever it does; a new kind is picked up from the registry.

A kind is given a living system (the agent) that writes, creates, opens and computes, so that any
fault has something to bite on.  Every test runs in each tier that has the kind, and as whoever runs
the tests: root or an ordinary user, who needs no privilege.  What a kind lacks here is the reason
why it is skipped.  A sandbox serves many tests: see the fixture `agent`.
"""

from __future__ import annotations

import errno
import functools
import inspect
import os
import random
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from probes import FEWER_ROUNDS, PROBES, Probe, ShownBy
from sandbox_bench import (
    DEADLINE_S,
    Agent,
    Sessions,
    agent_in,
    descriptors,
    differences,
    eventually,
    gone,
    harness,
    heal,
    limits_of,
    snapshot,
    state_of,
)

from colos.chaos.fault import EVERYTHING, Fault, Lease
from colos.chaos.faults import fault_kinds
from colos.chaos.sandbox.processes import read_process
from colos.chaos.sandbox.session import Session
from colos.chaos.scenario import Inject, Scenario, dumps, loads
from colos.errors import HarnessBroken, InvalidSpecification

KINDS = sorted(fault_kinds())
ROUNDS = 100
QUICKLY = settings(database=None, phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck))
#: A program without actors has nothing that these could hit; their own tests show that they fire.
NEEDS_A_NODE = {"zygote-kill"}
#: Nothing heals what these did to a file's content; its name and its mode stay.
SPOILS_CONTENTS = {"bit-rot"}
WORK = """
import contextlib, _thread
for attempt in range(20):
    with contextlib.suppress(OSError, RuntimeError): _thread.start_new_thread(int, ())
    with contextlib.suppress(OSError): os.getrandom(4)
    with contextlib.suppress(OSError): os.fsync(1)
    with contextlib.suppress(OSError): put(f'work{attempt % 3}', b'x')
    with contextlib.suppress(OSError), socket.socket() as s: s.connect(('127.0.0.1', 1))
    with contextlib.suppress(OSError):
        a, b = socket.socketpair()
        with a, b: a.send(b'hello'), b.recv(100)
    with contextlib.suppress(OSError):
        with open('work0', 'rb') as file: os.fsync(file.fileno())
for attempt in range(3):
    with contextlib.suppress(OSError): put(f'work{attempt}', b'x' * 70000)
    with contextlib.suppress(OSError): os.mkdir(f'dir{attempt}')
    with contextlib.suppress(OSError): os.close(os.open('/dev/null', os.O_RDONLY))
    with contextlib.suppress(OSError): socket.socket().close()
    with contextlib.suppress(OSError): mmap.mmap(-1, 1 << 20).close()
    sum(range(20000))
near.setblocking(False)
with contextlib.suppress(OSError): near.send(b'x' * 300000)
for attempt in range(64):
    with contextlib.suppress(OSError): post.sendto(b'x', post.getsockname())
with contextlib.suppress(OSError), socket.socket() as caller:
    caller.setblocking(False)
    caller.connect(door.getsockname())
with contextlib.suppress(OSError): socket.getaddrinfo('localhost', 1)
"""
#: What a fault of the network finds when it begins: a connection, a door to knock at, a letter box.
AT_HAND = """
put('kept', b'x' * 10000)
door = socket.create_server(('127.0.0.1', 0))
near = socket.create_connection(door.getsockname())
far, _ = door.accept()
post = socket.socket(type=socket.SOCK_DGRAM)
post.bind(('127.0.0.1', 0))
post.setblocking(False)
"""
#: A child, made without a descriptor or a file.
HEIR = """
if os.fork() == 0:
    try:
        idle()
    finally:
        os._exit(0)
"""
#: How long the system is waited for that may be stopped, or slow: what comes later is no failure.
PATIENCE_S = 0.05


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def system(session: Session, kind: str, request: pytest.FixtureRequest) -> Agent:
    skip_unless_available(kind, session)
    agent: Agent = request.getfixturevalue("agent")
    agent.do(AT_HAND)
    return agent


def skip_unless_available(kind: str, session: Session) -> None:
    unavailable = fault_kinds()[kind].unavailable(session)
    if unavailable is not None:
        pytest.skip(f"{kind}: {': '.join(unavailable)}")


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


def is_deadly(kind: str) -> bool:
    return fault_kinds()[kind]().deaths(target_of(kind), ("agent",)) > 0


def compare(before: dict[str, Any], after: dict[str, Any]) -> None:
    """What is still there is as it was."""
    assert [each for name in before if name in after for each in differences(before[name], after[name], name)] == []


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


def test_what_is_forked_meanwhile_is_healed_too(system: Agent, kind: str) -> None:
    """A child inherits limits, priorities and control groups: healing its parent is not enough."""
    if is_deadly(kind):
        pytest.skip("nobody is left to fork")
    before = snapshot(system.sandbox)
    named = f"{system.process().command}["
    (parent,) = (name for name in before if name.startswith(named))
    lease = system.inject(kind, target_of(kind))
    system.tell(HEIR)  # it is stopped perhaps, and does so when it is healed
    system.answers(PATIENCE_S)
    heal(lease)
    try:
        system.hear()
    except OSError:
        return  # forking is what is refused
    after = snapshot(system.sandbox)
    (heir,) = (name for name in after if name.startswith(named) and name != parent)
    assert differences(before[parent], after[heir]) == []


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first-first", "last-first"])
def test_two_leases_on_the_same_thing_end_in_any_order(system: Agent, kind: str, order: tuple[int, int]) -> None:
    """Or the second is refused, and nothing was done."""
    before, open_before = snapshot(system.sandbox), descriptors()
    leases = [system.inject(kind, target_of(kind))]
    during, open_during = snapshot(system.sandbox), descriptors()
    try:
        leases.append(system.inject(kind, target_of(kind)))
    except InvalidSpecification:
        compare(during, snapshot(system.sandbox))
        assert descriptors() == open_during
    work(system)
    for at in order:
        if at < len(leases):
            heal(leases[at])
    compare(before, snapshot(system.sandbox))
    assert descriptors() == open_before


def in_order(leases: list[Lease], order: str) -> list[Lease]:
    match order:
        case "first-first":
            return leases
        case "last-first":
            return leases[::-1]
        case _:
            return random.Random(order).sample(leases, len(leases))


@pytest.mark.parametrize("order", ["first-first", "last-first", "shuffled", "shuffled-again"])
def test_leases_of_all_kinds_at_once_end_in_any_order(session: Session, order: str) -> None:
    """All that leave the system alive, and the stop that a kill can be."""
    with agent_in(session) as agent:
        before, open_before = snapshot(agent.sandbox), descriptors()
        leases = []
        for kind in KINDS:
            if fault_kinds()[kind].unavailable(session) is None:
                with suppress(InvalidSpecification):  # it does not compose with what is held already
                    if kind == "kill":
                        leases.append(agent.inject(kind, "agent", signal="SIGSTOP"))
                    elif not is_deadly(kind):
                        leases.append(agent.inject(kind, target_of(kind)))
        assert leases
        for lease in in_order(leases, order):
            heal(lease)
        compare(before, snapshot(agent.sandbox))
        assert descriptors() == open_before
        assert agent.ask("6 * 7") == 42


# --- in the system's own eyes ---------------------------------------------------------------


def test_every_kind_has_a_probe() -> None:
    missing = "\n".join(f'    "{kind}": Probe("...", before=..., during=...),' for kind in KINDS if kind not in PROBES)
    assert not missing, f"probes.py has no entry for:\n{missing}"
    assert {*PROBES, *FEWER_ROUNDS} <= {*KINDS}, "probes.py knows kinds that are not there"


@pytest.mark.parametrize("kind", [kind for kind, probe in PROBES.items() if isinstance(probe, ShownBy)])
def test_what_is_shown_elsewhere_is_shown_there(kind: str) -> None:
    shown = PROBES[kind]
    assert isinstance(shown, ShownBy)
    file, _, test = shown.test.partition("::")
    text = (Path(__file__).parent / file).read_text()
    assert f"\ndef {test}(" in text
    body = text.partition(f"\ndef {test}(")[2].partition("\ndef ")[0]
    assert f'"{kind}"' in body, "it injects this kind"


def see(agent: Agent, look: str) -> object:
    """What the agent sees: its result, or the name of the errno that it met."""
    try:
        return agent.do(look)
    except OSError as error:
        if error.errno is None:
            raise  # the agent does not answer
        return errno.errorcode[error.errno]


def comes_to_see(agent: Agent, look: str, expected: object, when: str) -> None:
    """Look again and again until the expected is seen."""
    last: object = None

    def agrees() -> bool:
        nonlocal last
        last = see(agent, look)
        return bool(expected(last)) if callable(expected) else last == expected

    try:
        eventually(agrees, f"{when}, {expected!r} is seen")
    except AssertionError as error:
        raise AssertionError(f"{error}; seen: {last!r}") from None


def test_the_system_sees_it_with_its_own_eyes(system: Agent, kind: str) -> None:
    if kind not in PROBES:
        pytest.skip(f"{kind} has no probe: see the test above")
    probe = PROBES[kind]
    if not isinstance(probe, Probe):
        pytest.skip(f"{kind}: {probe.reason}; see {probe.test}")
    if probe.prepare:
        system.do(probe.prepare)
    comes_to_see(system, probe.look, probe.before, "before")
    lease = system.inject(kind, probe.target if fault_kinds()[kind].targeted else None, **probe.arguments)
    comes_to_see(system, probe.look, probe.during, "during")
    eventually(lease.fired, f"{kind} has fired")
    heal(lease)
    comes_to_see(system, probe.look, probe.before if probe.after is ... else probe.after, "after")


# --- again and again, and to the end ---------------------------------------------------------

KEPT = "put('kept', b'kept' * 5000); os.mkdir('folder', 0o750); put('folder/deep', b'deep')"
#: Names, modes, sizes and contents of all files, as the system sees them.
TREE = """
import zlib
result = {}
for folder, _, names in os.walk('.'):
    for path in [folder, *(os.path.join(folder, name) for name in names)]:
        about = os.stat(path)
        content = zlib.crc32(open(path, 'rb').read()) if path != folder else 0
        result[path] = (about.st_mode, about.st_size, content)
"""


@functools.cache
def drawn(kind: str) -> list[dict[str, Any]]:
    """What an author's bare declaration gives: the least of all first, then as Hypothesis draws them."""
    found: list[dict[str, Any]] = [least(fault_kinds()[kind]())]

    @settings(
        max_examples=ROUNDS, deadline=None, database=None, phases=[Phase.generate], derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(fault_kinds()[kind]().arguments())
    def collect(arguments: dict[str, Any]) -> None:
        found.append(arguments)

    collect()
    return found


def least(fault: Fault) -> dict[str, Any]:
    """What everything that this declaration may give is simplified to."""
    return find(fault.arguments(), lambda _: True, settings=QUICKLY, random=random.Random(0))


@contextmanager
def someone(agent: Agent, kind: str) -> Iterator[str | None]:
    """A target for one round: the agent, or a child of it that may die."""
    if not is_deadly(kind):
        yield target_of(kind)
        return
    agent.do("victim = fork('victim', idle)")
    yield "agent/victim"
    agent.do("os.kill(victim, signal.SIGKILL); os.waitpid(victim, 0)")


def harness_comes_to_be(before: dict[str, Any]) -> None:
    with suppress(AssertionError):  # the comparison says more
        eventually(lambda: harness() == before, "nothing is left of it in the harness")
    assert differences(before, harness()) == []


def test_a_hundred_rounds_leave_no_trace(system: Agent, kind: str) -> None:
    if is_deadly(kind) and not fault_kinds()[kind].targeted:
        pytest.skip(f"{kind}: a system ends once; see the tests of its death")
    system.do(KEPT)
    rounds, _ = FEWER_ROUNDS.get(kind, (ROUNDS, ""))
    arguments = drawn(kind)
    inside, ours, files = snapshot(system.sandbox), harness(), system.do(TREE)
    for at in range(rounds):
        with someone(system, kind) as target:
            heal(system.inject(kind, target, **arguments[at % len(arguments)]))
    left = system.do(TREE)
    if kind in SPOILS_CONTENTS:
        files, left = ({path: mode for path, (mode, *_) in tree.items()} for tree in (files, left))
    assert differences(files, left) == []
    assert differences(inside, snapshot(system.sandbox)) == []
    harness_comes_to_be(ours)


def test_the_sandbox_ends_while_the_fault_acts(session: Session, kind: str, system: Agent) -> None:
    """Another one than `system`, for which the session has made what it makes once."""
    assert lives(system)
    ours = harness()
    with agent_in(session) as agent:
        lease = agent.inject(kind, target_of(kind))
        work(agent)
        keeper = read_process(agent.sandbox.keeper)
        assert keeper is not None
        processes = [keeper, *agent.sandbox.processes()]
        agent.end()
        for act in (lease.heal, lease.heal, lambda: eventually(lease.is_healed, f"{lease!r} is healed")):
            with suppress(OSError, HarnessBroken):  # nothing is there to be healed; nothing worse may come
                act()
    for process in processes:
        eventually(lambda process=process: gone(process), f"{process} is gone")
    harness_comes_to_be(ours)


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


def test_another_sandbox_is_untouched(system: Agent, kind: str, session: Session, sessions: Sessions) -> None:
    other = sessions.neighbour(session.tier)
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


def test_a_draw_simplifies_to_the_first_of_what_was_declared(kind: str) -> None:
    fault: type[Fault] = fault_kinds()[kind]
    simplest = least(fault())
    for name, values in declared(fault).items():
        assert fault.complete(simplest)[name] == values[0]
        words = {plural: values[::-1] for plural in plurals(name) if plural in inspect.signature(fault).parameters}
        assert fault.complete(least(fault(**words)))[name] == values[-1]


def declared(fault: type[Fault]) -> dict[str, tuple[Any, ...]]:
    """The arguments of which a declaration lists the values: `shares=(0.1, 0.3)` for `share`."""
    accepted = inspect.signature(fault).parameters
    found = {}
    for name in fault.parameters:
        for plural in plurals(name):
            if plural in accepted and isinstance(accepted[plural].default, tuple):
                found[name] = accepted[plural].default
    return found


def plurals(name: str) -> tuple[str, ...]:
    return (f"{name}s", f"{name}es", f"{name[:-1]}ies")


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
    assert fault(target="a/*").candidates(topology) == ("a/one", "a/two", "a/*")  # type: ignore[call-arg]
    assert fault(target="b").candidates(topology) == ("b",)  # type: ignore[call-arg]
    with pytest.raises(InvalidSpecification, match="matches nothing"):
        fault(target="c").candidates(topology)  # type: ignore[call-arg]


def test_its_deaths_are_counted_by_target(kind: str) -> None:
    fault = fault_kinds()[kind]()
    deaths = fault.deaths("a/*" if fault.targeted else None, ("a/one", "a/two", "b"))
    assert deaths in ((0, 1, 2) if fault.targeted else (0, 3))
