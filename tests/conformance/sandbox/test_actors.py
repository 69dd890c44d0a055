"""A node of actors in a sandbox, reached from outside: the demo ledger."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from sandbox_bench import DEADLINE_S, eventually, spec

from colos.chaos import ActorSystem
from colos.chaos.actor_system import RunningActors
from colos.chaos.sandbox.session import Session
from colos.demo.ledger import RepairedLedgerSupervisor
from colos.errors import InvalidSpecification, NoSuchActor, StartFailed
from colos.runtime import Actor, ChildSpec, Supervisor

PATHS = ("ledger/counter", "ledger/front", "ledger/writer")


@pytest.fixture
def ledger(session: Session) -> Iterator[RunningActors]:
    system = ActorSystem(RepairedLedgerSupervisor)
    session.prepare(system.modules())
    sandbox = session.sandbox(spec())
    try:
        running = system.boot(sandbox)
        running.wait_ready(DEADLINE_S)
        yield running
    finally:
        sandbox.destroy()


def with_client(running: RunningActors, body: Callable[[], Any]) -> Any:
    async def main() -> Any:
        with anyio.fail_after(2 * DEADLINE_S):
            async with running.client() as client:
                running.attach(client)
                return await body()

    return anyio.run(main)


def test_the_topology_is_the_supervisors_children() -> None:
    assert sorted(ActorSystem(RepairedLedgerSupervisor).topology()) == list(PATHS)


def test_actors_are_called_from_outside(ledger: RunningActors) -> None:
    async def submit() -> tuple[int, list[str]]:
        front = await ledger.whereis("front")
        number = await front.submit("a job")
        return number, await front.jobs()

    assert with_client(ledger, submit) == (1, ["a job"])
    assert Path(ledger.path("{data}/jobs.jsonl")).read_text() == '"a job"\n'


def test_nobody_is_there_under_another_name(ledger: RunningActors) -> None:
    async def ask() -> None:
        await ledger.whereis("nobody")

    with pytest.raises(NoSuchActor):
        with_client(ledger, ask)


@pytest.mark.parametrize(("pattern", "count"), [("ledger/writer", 1), ("ledger/*", 3), ("ledger/nobody", 0)])
def test_targets_are_actors(ledger: RunningActors, pattern: str, count: int) -> None:
    targets = ledger.targets(pattern)
    assert len(targets) == count
    for target in targets:
        assert target.alive()
        assert target.pid in {process.pid for process in ledger.sandbox.processes()}
        target.close()


def test_quiet_when_a_killed_actor_is_back(ledger: RunningActors) -> None:
    async def kill_and_settle() -> list[str]:
        front = await ledger.whereis("front")
        await front.submit("before")
        (writer,) = ledger.targets("ledger/writer")
        writer.signal(signal.SIGKILL)
        assert writer.wait(DEADLINE_S)
        writer.close()
        assert await ledger.quiet(DEADLINE_S)
        (again,) = ledger.targets("ledger/writer")
        assert again.pid != writer.pid
        again.close()
        await front.submit("after")
        return list(await front.jobs())

    assert with_client(ledger, kill_and_settle) == ["before", "after"]


def sockets_of(pid: int) -> set[str]:
    found = set()
    for number in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile: the process lives
            found.add(os.readlink(f"/proc/{pid}/fd/{number}"))
    return {name for name in found if name.startswith("socket:")}


def test_the_node_inherits_nothing_of_the_harness(ledger: RunningActors) -> None:
    """No socket to the template or to the test: held by the system, they would outlive whom they tell of."""
    keeper = ledger.sandbox.keeper
    children = Path(f"/proc/{keeper}/task/{keeper}/children")
    (root,) = children.read_text().split()
    assert sockets_of(keeper)
    assert not sockets_of(keeper) & sockets_of(int(root))


def test_a_node_is_stopped_in_order(ledger: RunningActors) -> None:
    assert ledger.stop(DEADLINE_S)
    assert ledger.sandbox.exits == [(0, False)]
    eventually(lambda: not ledger.sandbox.processes(), "all are gone")


class Reluctant(Actor):
    async def init(self) -> None:
        raise ValueError("not today")


class ReluctantSupervisor(Supervisor):
    name = "reluctant"

    def children(self) -> tuple[ChildSpec, ...]:
        return (ChildSpec("one", Reluctant),)


def test_a_node_that_does_not_start_is_told_with_its_stderr(session: Session) -> None:
    system = ActorSystem(ReluctantSupervisor)
    session.prepare(system.modules())
    sandbox = session.sandbox(spec())
    try:
        with pytest.raises(StartFailed, match=r"(?s)before it was ready.*not today"):
            system.boot(sandbox).wait_ready(DEADLINE_S)
    finally:
        sandbox.destroy()


def test_only_supervisors_that_others_can_import() -> None:
    class Local(Supervisor):
        def children(self) -> tuple[ChildSpec, ...]:
            return ()

    with pytest.raises(InvalidSpecification, match="inside a function"):
        ActorSystem(Local)
    with pytest.raises(InvalidSpecification, match="subclass"):
        ActorSystem(Reluctant)  # type: ignore[arg-type]
