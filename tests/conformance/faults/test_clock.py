"""A wall clock that is wrong: as a program reads it by libfaketime, and as an actor does by `wall_time`."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from sandbox_bench import DEADLINE_S, Agent, agent_in, agents_spec, eventually, heal, snapshot, spec

from colos.chaos import ActorSystem, ClockDrift, ClockJump, RuntimeClock
from colos.chaos.actor_system import RunningActors
from colos.chaos.fault import Lease, Site, environment_of
from colos.chaos.faults import fault_kinds
from colos.chaos.mechanisms import wallclocks
from colos.chaos.sandbox.session import Session
from colos.errors import FaultUnavailable, InvalidSpecification
from colos.runtime import Actor, ChildSpec, Supervisor, wall_time

SKEWS = [("clock-jump", {"seconds": 7200}), ("clock-drift", {"rate": 2}), ("clock-stopped", {})]
#: Clocks are compared across processes, one after the other, on a busy machine.
NEAR_S = 30.0


# --- programs ----------------------------------------------------------------------------------


@pytest.fixture
def program(namespaces: Session, sessions: Any) -> Iterator[Agent]:
    """A program that has libfaketime loaded, in the one tier that has it."""
    unavailable = fault_kinds()["clock-jump"].unavailable(namespaces)
    if unavailable:
        pytest.skip(": ".join(unavailable))
    with agent_in(namespaces) as agent:
        yield agent


def ahead(agent: Agent) -> float:
    """By how much its wall clock is ahead, as it reads it itself."""
    wall, monotonic = agent.ask("(time.time(), time.monotonic())")
    return float(wall - monotonic - (time.time() - time.monotonic()))


@pytest.mark.parametrize("seconds", [7200, -86400 * 30, 0.5])
def test_a_jump_is_seen_by_every_clock_call_and_undone(program: Agent, seconds: float) -> None:
    lease = program.inject("clock-jump", seconds=seconds)
    assert ahead(program) == pytest.approx(seconds, abs=0.2)
    assert program.ask("time.time() - time.time_ns() / 1e9") == pytest.approx(0, abs=0.2)
    date = f"{time.time() + seconds:.0f}"
    shown = program.ask("__import__('subprocess').run(['date', '+%s'], capture_output=True, text=True).stdout")
    assert int(shown) == pytest.approx(int(date), abs=NEAR_S), "and by what it starts"
    assert "libfaketime" in lease.mechanism
    assert "python" in (lease.fired() or "")
    heal(lease)
    assert ahead(program) == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize(("kind", "arguments"), SKEWS)
def test_the_monotonic_clock_stays_true(program: Agent, kind: str, arguments: Any) -> None:
    lease = program.inject(kind, **arguments)
    before, inside, after = time.monotonic(), program.ask("time.monotonic()"), time.monotonic()
    assert before <= inside <= after
    begun, ended = program.do("a = time.monotonic(); time.sleep(0.02); result = (a, time.monotonic())")
    assert ended - begun >= 0.02
    heal(lease)


def test_a_stopped_clock_stands(program: Agent) -> None:
    lease = program.inject("clock-stopped")
    first, second = program.do("a = time.time(); time.sleep(0.05); result = (a, time.time())")
    assert first == second
    assert program.ask("time.time()") == first
    heal(lease)
    assert program.ask("time.time()") > first


@pytest.mark.parametrize("rate", [0.1, 0.9, 3])
def test_a_drifting_clock_goes_at_its_rate_and_never_back(program: Agent, rate: float) -> None:
    lease = program.inject("clock-drift", rate=rate)
    readings = program.do(
        "result = []\nfor _ in range(100):\n    result.append((time.monotonic(), time.time())); time.sleep(0.004)"
    )
    walls = [wall for _, wall in readings]
    assert walls == sorted(walls)
    (begun, first), (ended, last) = readings[0], readings[-1]
    assert (last - first) / (ended - begun) == pytest.approx(rate, rel=0.3, abs=0.1)
    assert eventually(lease.fired, "a program has read it")
    heal(lease)
    assert ahead(program) == pytest.approx(0, abs=0.2)


def test_jumps_add_up_and_end_in_any_order(program: Agent) -> None:
    for order in itertools.permutations(range(3)):
        leases = [program.inject("clock-jump", seconds=seconds) for seconds in (1000, 200, 30)]
        left = 1230
        for at in order:
            assert ahead(program) == pytest.approx(left, abs=0.2)
            heal(leases[at])
            left -= (1000, 200, 30)[at]
        assert ahead(program) == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_all_of_them_at_once_end_in_any_order(program: Agent, order: tuple[int, ...]) -> None:
    before = snapshot(program.sandbox)
    leases: list[Lease] = [program.inject(kind, **arguments) for kind, arguments in SKEWS]
    first = program.ask("time.time()")
    assert first - time.time() == pytest.approx(7200, abs=NEAR_S)
    assert program.ask("time.time()") == first, "one of them has stopped it"
    for at in order:
        heal(leases[at])
    assert ahead(program) == pytest.approx(0, abs=0.2)
    assert snapshot(program.sandbox) == before


def test_a_file_that_the_system_has_removed(program: Agent) -> None:
    lease = program.inject("clock-jump")
    program.do("os.unlink(os.environ['FAKETIME_TIMESTAMP_FILE'])")
    heal(lease)


@pytest.mark.parametrize("kind", [kind for kind, _ in SKEWS])
def test_a_sandbox_destroyed_meanwhile(program: Agent, kind: str) -> None:
    first, second = program.inject(kind), program.inject(kind)
    program.sandbox.destroy()
    heal(first)
    heal(second)


def test_a_program_that_was_started_without_it_is_refused(namespaces: Session) -> None:
    with agent_in(namespaces, environment=()) as agent:
        before = snapshot(agent.sandbox)
        with pytest.raises(FaultUnavailable, match="without libfaketime"):
            agent.inject("clock-jump")
        assert snapshot(agent.sandbox) == before


def test_bare_has_none(bare: Session) -> None:
    for kind, _ in SKEWS:
        assert fault_kinds()[kind].unavailable(bare)
    with agent_in(bare) as agent, pytest.raises(FaultUnavailable):
        agent.inject("clock-jump")


def test_without_libfaketime_the_reason_and_the_cure_are_said(
    namespaces: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOS_LIBFAKETIME", "/nowhere/libfaketime.so.1")
    reason, cure = fault_kinds()["clock-jump"].unavailable(namespaces) or ("", "")
    assert "/nowhere/libfaketime.so.1" in reason
    assert "apt install libfaketime" in cure


def test_a_probe_that_is_cut_short_leaves_nothing_on_the_host(program: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    def left() -> set[str]:
        return {name for name in os.listdir("/dev/shm") if "faketime" in name}

    before = left()
    monkeypatch.setattr(wallclocks, "_READ", "import time; print(1); time.sleep(60)")
    monkeypatch.setattr(wallclocks, "_PROBE_S", 0.5)
    reason = wallclocks._probe.__wrapped__(wallclocks.library() or "")
    assert "timed out" in (reason or "")
    assert left() <= before


# --- the environment that a fault asks for --------------------------------------------------------


def test_a_declared_fault_is_given_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOS_LIBFAKETIME", "/x/libfaketime.so.1")
    monkeypatch.setenv("LD_PRELOAD", "/y/other.so")
    wanted = dict(environment_of((ClockJump(), RuntimeClock(), ClockDrift()), {}))
    assert wanted["LD_PRELOAD"] == "/x/libfaketime.so.1:/y/other.so"
    assert wanted["FAKETIME_TIMESTAMP_FILE"] == wallclocks.FILE
    assert environment_of((ClockJump(),), {"clock-jump": "not here"}) == ()
    assert environment_of((RuntimeClock(),), {}) == ()


def test_a_program_finds_it_with_its_paths(session: Session) -> None:
    with agent_in(session, environment=(("WANTED", "{run}/file"),)) as agent:
        assert agent.ask("os.environ['WANTED'] == os.environ['COLOS_RUN'] + '/file'")


# --- actors -------------------------------------------------------------------------------------------


class Watch(Actor):
    async def clocks(self) -> tuple[float, float, float]:
        return wall_time(), time.time(), time.monotonic()

    async def with_no_descriptor_left(self) -> float:
        held = []
        try:
            while True:
                held.append(os.dup(2))
        except OSError:
            return wall_time()
        finally:
            for descriptor in held:
                os.close(descriptor)


class WatchSupervisor(Supervisor):
    name = "watches"

    def children(self) -> tuple[ChildSpec, ...]:
        return (ChildSpec("first", Watch, name="first"), ChildSpec("second", Watch, name="second"))


class Node:
    """Two actors in a sandbox, and faults for them."""

    def __init__(self, running: RunningActors) -> None:
        self.running = running
        self.site = Site(running.sandbox, running)

    def inject(self, **arguments: Any) -> Lease:
        return RuntimeClock.inject(self.site, None, arguments)

    def ask(self, *names: str) -> list[tuple[float, float, float]]:
        async def clocks() -> list[tuple[float, float, float]]:
            return [await (await self.running.whereis(name)).clocks() for name in names]

        return list(self._with_client(clocks))

    def starved(self) -> float:
        async def read() -> float:
            return float(await (await self.running.whereis("first")).with_no_descriptor_left())

        return float(self._with_client(read))

    def ahead(self) -> float:
        ((shown, true, _),) = self.ask("first")
        return shown - true

    def _with_client(self, body: Callable[[], Any]) -> Any:
        async def main() -> Any:
            with anyio.fail_after(2 * DEADLINE_S):
                async with self.running.client() as client:
                    self.running.attach(client)
                    return await body()

        return anyio.run(main)


@pytest.fixture
def node(session: Session) -> Iterator[Node]:
    system = ActorSystem(WatchSupervisor)
    session.prepare(system.modules())
    sandbox = session.sandbox(spec())
    try:
        running = system.boot(sandbox)
        running.wait_ready(DEADLINE_S)
        yield Node(running)
    finally:
        sandbox.destroy()


def test_actors_read_a_wrong_time_and_then_the_true_one(node: Node) -> None:
    assert node.ahead() == pytest.approx(0, abs=0.5)
    lease = node.inject(offset_s=-7200)
    assert "-7200" in (lease.fired() or "")
    before = time.monotonic()
    for shown, true, monotonic in node.ask("first", "second"):
        assert shown - true == pytest.approx(-7200, abs=0.5)
        assert true == pytest.approx(time.time(), abs=NEAR_S), "the system's own stays true"
        assert before <= monotonic <= time.monotonic()
    heal(lease)
    assert node.ahead() == pytest.approx(0, abs=0.5)


def test_it_stands_and_goes_on(node: Node) -> None:
    lease = node.inject(offset_s=0, stopped=True)
    (first, *_), (second, *_) = node.ask("first", "second")
    assert first == second
    heal(lease)
    assert node.ask("first")[0][0] > first


def test_it_drifts(node: Node) -> None:
    lease = node.inject(offset_s=0, rate=50)
    (first, begun, _), (last, ended, _) = node.ask("first", "second")
    assert (last - first) / (ended - begun) == pytest.approx(50, rel=0.2)
    heal(lease)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_of_them_end_in_any_order(node: Node, order: tuple[int, int]) -> None:
    jumps = (5000, -300)
    leases = [node.inject(offset_s=jump) for jump in jumps]
    assert node.ahead() == pytest.approx(4700, abs=0.5)
    heal(leases[order[0]])
    assert node.ahead() == pytest.approx(jumps[order[1]], abs=0.5)
    heal(leases[order[1]])
    assert node.ahead() == pytest.approx(0, abs=0.5)


def test_an_actor_without_a_descriptor_left_reads_it_too(node: Node) -> None:
    lease = node.inject(offset_s=7200)
    assert node.starved() - time.time() == pytest.approx(7200, abs=NEAR_S)
    heal(lease)


def test_libfaketime_does_not_reach_actors_and_does_not_say_so(namespaces: Session) -> None:
    """They are forked, not executed."""
    unavailable = fault_kinds()["clock-jump"].unavailable(namespaces)
    if unavailable:
        pytest.skip(": ".join(unavailable))
    system = ActorSystem(WatchSupervisor)
    namespaces.prepare(system.modules())
    sandbox = namespaces.sandbox(agents_spec(namespaces))
    try:
        running = system.boot(sandbox)
        running.wait_ready(DEADLINE_S)
        lease = ClockJump.inject(Site(sandbox, running), None, {})
        assert lease.fired() is None
        heal(lease)
    finally:
        sandbox.destroy()


def test_a_node_destroyed_meanwhile(node: Node) -> None:
    first, second = node.inject(), node.inject()
    node.running.sandbox.destroy()
    heal(first)
    heal(second)


def test_healed_is_what_the_files_show(node: Node) -> None:
    lease = node.inject()
    heal(lease)
    link = node.running.sandbox.outside("{run}/.wall-clock")
    os.symlink("0.0 1.0 1.0", link)
    assert not lease.is_healed()
    os.unlink(link)
    assert lease.is_healed()


# --- bad parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        ("clock-jump", {"seconds": 0}, "not 0 seconds"),
        ("clock-jump", {"seconds": 1e12}, "is a number from"),
        ("clock-jump", {"seconds": "soon"}, "is a number from"),
        ("clock-drift", {"rate": 1}, "1 is no drift"),
        ("clock-drift", {"rate": 0}, "from 0.01 to 100"),
        ("clock-drift", {"rate": float("nan")}, "from 0.01 to 100"),
        ("runtime-clock", {"offset_s": float("inf")}, "is a number from"),
        ("runtime-clock", {"rate": -1}, "from 0.01 to 100"),
        ("runtime-clock", {"stopped": 1}, "true or false"),
        ("runtime-clock", {"offset_s": 0}, "is right"),
    ],
)
def test_impossible_parameters_are_refused(agent: Agent, kind: str, arguments: dict[str, Any], says: str) -> None:
    before = snapshot(agent.sandbox)
    with pytest.raises(InvalidSpecification, match=says):
        agent.inject(kind, **arguments)
    assert snapshot(agent.sandbox) == before


def test_impossible_declarations_are_refused() -> None:
    with pytest.raises(InvalidSpecification):
        ClockJump(seconds=(0,))
    with pytest.raises(InvalidSpecification):
        ClockDrift(rates=(1,))
