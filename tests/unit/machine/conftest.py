"""Exploring and replaying a machine in this process, over a system that is not there.

This is the one test double of the plugin's and the machine's tests: a `System`, and the sandbox it
would run in, that do nothing.  What is tested here is how rules, bundles, draws and properties go
through Hypothesis and back, thousands of times; real systems under real faults are tests/unit/plugin's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from colos.chaos.driver import Driver
from colos.chaos.executor import Deadlines
from colos.chaos.fault import REGISTRY
from colos.chaos.machine import ChaosMachine
from colos.chaos.outcomes import Exploration, Options, Replay
from colos.chaos.sandbox.spec import Place
from colos.chaos.scenario import Repro, Scenario, Step

sys.path.insert(0, str(Path(__file__).parent))
from nowhere_kinds import KINDS  # found where this file is


class Nowhere:
    """A sandbox with nothing in it, and the session that makes one."""

    trapping = False

    tier = "nowhere"
    stopped = False
    place = Place("/nowhere", "/nowhere", "/nowhere", "/nowhere")

    def sandbox(self, spec: object, program: object) -> Nowhere:
        return self

    def prefetch(self, spec: object, program: object) -> None:
        pass

    def forgo(self) -> None:
        pass

    def destroy(self) -> None:
        pass

    def output(self) -> str:
        return "said nothing"

    def processes(self) -> list[Any]:
        return []

    def segments(self) -> dict[int, Any]:
        return {}

    def outside(self, path: str) -> str:
        return path

    def catch_up(self) -> None:
        pass


class Nothing:
    """A system that is always ready, always quiet, and stops when it is told to."""

    sandbox: Any

    def topology(self) -> tuple[str, ...]:
        return ("nothing",)

    def modules(self) -> tuple[Any, ...]:
        return ()

    def rehearsal(self) -> None:
        return None

    def tolerance(self) -> None:
        return None

    def is_host_bound(self) -> bool:
        return False

    def program(self) -> None:
        return None

    def boot(self, sandbox: Any) -> Nothing:
        running = Nothing()
        running.sandbox = sandbox
        return running

    def targets(self, pattern: str) -> list[Any]:
        return []

    def client(self) -> None:
        return None

    def attach(self, client: Any) -> None:
        pass

    def wait_ready(self, timeout_s: float) -> None:
        pass

    async def quiet(self, timeout_s: float) -> bool:
        return True

    def births(self) -> int:
        return 1

    def deaths(self, since: int) -> dict[str, tuple[int, str]]:
        return {}

    def stop(self, timeout_s: float) -> bool:
        return True


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """These kinds are known while the test runs, beside the real ones."""
    for name, kind in KINDS.items():
        monkeypatch.setitem(REGISTRY, name, kind)


@pytest.fixture(scope="session")
def nothing() -> Nothing:
    return Nothing()


class Lab:
    """Explores and replays machines; keeps the journal."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def driver(self, cls: type[ChaosMachine], *, deadlines: Deadlines | None = None, **options: Any) -> Driver:
        wanted = Options(**{"seed": 1, **options}, deadlines=deadlines)
        session: Any = Nowhere()
        return Driver(cls, session, test="test_x.py::TestX", journal=self.directory / "journal.jsonl", options=wanted)

    def explore(self, cls: type[ChaosMachine], known: dict[str, Scenario] | None = None, **options: Any) -> Exploration:
        with self.driver(cls, **options) as driver:
            return driver.explore(known or {}, self.directory)

    def replay(self, cls: type[ChaosMachine], steps: Sequence[Step], violates: str = "", **options: Any) -> Replay:
        scenario = Scenario("test_x.py::TestX", violates, tuple(steps), Repro(1, 1))
        with self.driver(cls, **{"replay_runs": 1, **options}) as driver:
            return driver.replay(scenario, until_failed=False)

    def journal(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The records of the last run."""
        lines = (self.directory / "journal.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        return [record["data"] for record in records if kind in (None, record["kind"])]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)
