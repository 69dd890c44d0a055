"""Planted systems, explored as a user explores one: found, named, and silent where switched off."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis.stateful import rule
from sandbox_bench import PYTHON, eventually, spec

from colos.chaos import ActorSystem, ChaosMachine, CommandSystem, CpuStarvation, Restarts, unix_socket
from colos.chaos.builtin import Builtin
from colos.chaos.driver import Driver
from colos.chaos.executor import Deadlines
from colos.chaos.outcomes import Exploration, Options
from colos.chaos.sandbox.session import Session
from colos.chaos.sandbox.spec import BARE

HERE = Path(__file__).parent
SERVER = str(HERE / "planted_server.py")
#: What a person must be told of each, beside the property.
TOLD = {
    "no_socket_leak": r"\(pid \d+ inside\) holds \d+ sockets whose other end is closed: Unix socket at .*s\.sock",
    "no_temporary_file_leak": r"\d+ temporary files or directories .* are left after it stopped: .*planted-\d+-\d+ ",
    "no_shared_memory_leak": r"left after the system stopped: /dev/shm/planted-\d+-\d+ \(0 bytes, last changed ",
    "no_busy_loop": r"python\S* \(pid \d+ inside\) burnt \d\.\d s of CPU in \d+\.\d s",
    "no_restart_storm": r"since every fault was healed, planted died \d+ times or more \(last: status 3\), and it",
}
NOT_BARE = {
    "no_shared_memory_leak": "in bare, /dev/shm is the host's",
    "no_busy_loop": "slow, and test_unrest.py has it in both tiers",
    "no_restart_storm": "slow, and test_unrest.py has it in both tiers",
}


def machine(what: str, **changes: Any) -> type[ChaosMachine]:
    class Planted(ChaosMachine):
        system = CommandSystem(
            [*PYTHON, SERVER, "{run}/s.sock", what],
            ready=unix_socket("{run}/s.sock"),
            restarts=Restarts(limit=1000),
            name="planted",
        )
        faults = (CpuStarvation("planted"),)
        refusals = (OSError,)

        @rule()
        async def ask(self) -> None:
            with await self.system.connect("{run}/s.sock") as connection:
                connection.settimeout(5)
                connection.send(b"please")
                connection.recv(10)

    return type("Planted", (Planted,), changes)


def explore(cls: type[ChaosMachine], session: Session, journal: Path, *, examples: int = 8) -> Exploration:
    options = Options(
        examples=examples, steps=12, seed=3, confirm_runs=1, minimise_runs=1, deadlines=Deadlines(settle_s=0.2)
    )
    with Driver(cls, session, test="test_x.py::TestX", journal=journal, options=options) as driver:
        return driver.explore({}, None)


@pytest.mark.parametrize("what", sorted(TOLD))
def test_it_is_found_and_named(session: Session, what: str, tmp_path: Path) -> None:
    if session.tier == BARE and what in NOT_BARE:
        pytest.skip(NOT_BARE[what])
    failure = explore(machine(what), session, tmp_path / "journal.jsonl").failure
    assert failure is not None
    assert failure.violation.name == f"builtin:{what}"
    assert re.search(TOLD[what], failure.violation.detail), failure.violation.detail


@pytest.mark.parametrize("what", sorted(TOLD))
def test_switched_off_it_is_silent(namespaces: Session, what: str, tmp_path: Path) -> None:
    cls = machine(what, without=(what, "no_descriptor_leak"))
    assert explore(cls, namespaces, tmp_path / "journal.jsonl", examples=2).failure is None


def test_a_server_in_order_is_not_blamed(session: Session, tmp_path: Path) -> None:
    exploration = explore(machine("nothing"), session, tmp_path / "journal.jsonl")
    assert exploration.failure is None
    assert exploration.examples >= 8


# --- a node -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted() -> ModuleType:
    name = "colos_test_planted"
    found = importlib.util.spec_from_file_location(name, HERE / "planted.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("intensity", "end"), [(100_000, "and it goes on"), (4, "and its supervisor gave up")])
def test_an_actor_that_dies_again_and_again_is_a_storm(
    session: Session, planted: ModuleType, intensity: int, end: str
) -> None:
    supervisor = "Planted" if intensity == 4 else "Patient"
    system = ActorSystem(getattr(planted, supervisor))
    session.prepare([planted, *system.modules()])
    sandbox = session.sandbox(spec(), system.program())
    try:
        running = system.boot(sandbox)
        running.wait_ready(20)
        builtin = Builtin(running, (), system.tolerance())
        builtin.healed()
        assert builtin._storm.storm() is None
        os.mkdir(running.path("{data}/poison"))
        victim = running.targets("planted/fragile" if intensity == 4 else "patient/fragile")[0]
        os.kill(victim.pid, 9)
        eventually(lambda: running.births() > 2, "it is started again")
        violation = builtin._storm.storm()
        assert violation is not None
        assert violation.name == "builtin:no_restart_storm"
        assert "/fragile died " in violation.detail
        assert "poisoned" in violation.detail
        assert "/other died" not in violation.detail
        assert end in violation.detail
    finally:
        sandbox.destroy()


def test_a_node_that_recovers_has_none(session: Session, planted: ModuleType) -> None:
    system = ActorSystem(planted.Planted)
    session.prepare([planted, *system.modules()])
    sandbox = session.sandbox(spec(), system.program())
    try:
        running = system.boot(sandbox)
        running.wait_ready(20)
        builtin = Builtin(running, (), system.tolerance())
        builtin.healed()
        os.kill(running.targets("planted/fragile")[0].pid, 9)
        eventually(lambda: running.births() > 2, "it is started again")
        assert builtin._storm.storm() is None
        builtin.settled()
        assert builtin.of_the_running(lambda: None) is None
        assert builtin.of_the_stopped(10, running.stop(10)) is None
    finally:
        sandbox.destroy()
