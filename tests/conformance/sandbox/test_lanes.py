"""Runs beside each other: each in a sandbox of its own, none in another's way."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from colos.chaos import ChaosMachine, CommandSystem, CpuStarvation, Kill, Restarts, file_exists
from colos.chaos.driver import Driver
from colos.chaos.executor import Executor, Setting
from colos.chaos.lanes import Lanes, how_many
from colos.chaos.machine import author_rules
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
