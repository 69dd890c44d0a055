"""Runs beside each other: each in a sandbox of its own, none in another's way."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from colos.chaos import ChaosMachine, CommandSystem, CpuStarvation, Kill, Pause, Restarts, file_exists, unix_socket
from colos.chaos.driver import Driver
from colos.chaos.executor import Deadlines, Executor, Setting
from colos.chaos.lanes import Lanes, how_many
from colos.chaos.machine import author_rules
from colos.chaos.outcomes import Options
from colos.chaos.sandbox.session import Session
from colos.chaos.sandbox.spec import NAMESPACES
from colos.chaos.scenario import Inject, Op

KILL = Inject("kill", "f1", "sleeper")


class Sleeper(ChaosMachine):
    system = CommandSystem(
        ["sh", "-c", "touch {run}/up; exec sleep 1000"],
        ready=file_exists("{run}/up"),
        name="sleeper",
        restarts=Restarts(limit=100),
    )
    faults = (Kill("sleeper"), CpuStarvation("sleeper"))
    meeting: threading.Barrier

    @rule(number=st.integers())
    def say(self, number: int) -> None:
        raise AssertionError(f"said {number}")

    @rule()
    def meet(self) -> None:
        self.meeting.wait(20)

    @rule()
    def interrupt(self) -> None:
        raise KeyboardInterrupt


#: Answers each line with itself.
ECHO = """
import socket, sys
server = socket.create_server(sys.argv[1], family=socket.AF_UNIX)
while True:
    connection, _ = server.accept()
    with connection, connection.makefile("rb") as lines:
        for line in lines:
            connection.sendall(line)
"""


class Asked(ChaosMachine):
    system = CommandSystem([sys.executable, "-c", ECHO, "{run}/s"], ready=unix_socket("{run}/s"), name="echo")
    faults = (Pause("echo"),)

    def ask_for(self, question: bytes) -> None:
        with self.system.connect_blocking("{run}/s") as connection:
            connection.sendall(question)
            connection.recv(10)

    @rule()
    def ask(self) -> None:
        self.ask_for(b"?\n")

    @rule()
    def ask_nobody(self) -> None:
        self.ask_for(b"not a line")


@pytest.fixture
def driver(session: Session, tmp_path: Path) -> Iterator[Driver]:
    if session.tier != NAMESPACES:
        pytest.skip("in bare, sandboxes share a machine")
    with Driver(Sleeper, session, test="x", journal=tmp_path / "journal.jsonl") as driver:
        yield driver


def lanes(driver: Driver, count: int) -> Lanes:
    def make(setting: Setting, steps: int) -> ChaosMachine:
        machine = Sleeper()
        machine._executor = Executor(setting, machine, planned=steps)
        return machine

    return Lanes(driver.setting, author_rules(Sleeper), make, count)


def details(done: list[Any]) -> list[str]:
    return [verdict.violation.detail.splitlines()[0] for verdict, _ in done]


def test_what_came_of_them_is_in_their_order(driver: Driver) -> None:
    with lanes(driver, 3) as three:
        done = three([[KILL, Op("say", {"number": number})] for number in range(1, 8)])
    assert details(done) == [f"AssertionError: said {number}" for number in range(1, 8)]
    assert driver.setting.fired["kill"] == 7  # what the other lanes counted is counted


def test_they_go_on_at_once(driver: Driver) -> None:
    Sleeper.meeting = threading.Barrier(2)
    with lanes(driver, 2) as two:
        assert [verdict.violation for verdict, _ in two([[Op("meet")], [Op("meet")]])] == [None, None]


@pytest.mark.parametrize("where", [0, 1])
def test_what_a_lane_raises_is_raised_here_and_the_others_come_to_their_end(driver: Driver, where: int) -> None:
    batch = [[Op("say", {"number": 1})], [Op("say", {"number": 2})]]
    batch[where] = [Op("interrupt")]
    with lanes(driver, 2) as two:
        with pytest.raises(KeyboardInterrupt):
            two(batch)
        assert details(two([[Op("say", {"number": 3})]])) == ["AssertionError: said 3"]


def test_a_function_that_blocks_in_a_lane_ends_with_its_run(session: Session, tmp_path: Path) -> None:
    """It waits for a paused process, where no alarm reaches: healing frees it, and at the latest the sandbox's end."""
    if session.tier != NAMESPACES:
        pytest.skip("in bare, sandboxes share a machine")
    options = Options(deadlines=Deadlines(step_s=0.5))
    paused = [Inject("pause", "f1", "echo"), Op("ask"), Op("ask")]
    with Driver(Asked, session, test="x", journal=tmp_path / "journal.jsonl", options=options) as driver:
        with Lanes(driver.setting, author_rules(Asked), driver._machine_in, 2) as two:
            (_, here), (verdict, beside) = two([paused, paused])
        assert verdict.violation is None
        assert here.fired == beside.fired == {"pause": 1}
        assert driver.setting.interrupted  # in the main thread, by an alarm
        # Found so, it is examined in one lane.
        with driver._examiner(paused, "always:x") as examiner:
            assert examiner._lanes.count == 1
        with Lanes(driver.setting, author_rules(Asked), driver._machine_in, 2) as two:
            (_, _), (verdict, _) = two([[Op("ask")], [Op("ask_nobody")]])
        assert verdict.violation is not None
        assert verdict.violation.name == "hang:ask_nobody"


def test_nothing_is_left_of_them(driver: Driver) -> None:
    with lanes(driver, 1) as one:
        one([[KILL]])
    before = set(threading.enumerate())
    with lanes(driver, 3) as three:
        three([[KILL], [KILL], [KILL]])
        beside = {thread for thread in threading.enumerate() if thread not in before and "colos-lane" in thread.name}
        loops = {thread for thread in threading.enumerate() if thread not in before and "portal" in thread.name}
        assert (len(beside), len(loops)) == (2, 2)
    assert not (beside | loops) & set(threading.enumerate())
    driver.setting.session.forgo()
    assert not driver.setting.session._ahead  # no sandbox that nobody will use


def test_one_at_a_time_where_runs_would_disturb_each_other(driver: Driver) -> None:
    cores = len(os.sched_getaffinity(0))
    assert how_many(driver.setting, [KILL], alone=False) == min(8, cores)
    assert how_many(driver.setting, [KILL], alone=True) == 1
    assert how_many(driver.setting, [KILL, Inject("cpu-starvation", "f2", "sleeper")], alone=False) == 1
