"""What replaying and minimising by hand share: files, sandboxes, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from colos.chaos.commands.locate import machine_of, project_of
from colos.chaos.driver import Driver
from colos.chaos.fitting import fitted
from colos.chaos.outcomes import Options
from colos.chaos.progress import Progress
from colos.chaos.remembered import Remembered, remember
from colos.chaos.sandbox.session import Session
from colos.chaos.scenario import Inject, Scenario, load
from colos.errors import FaultUnavailable, InvalidScenario

__all__ = ["Line", "noted", "opened", "read"]

_WIDTH = 112


class Line:
    """Progress on stderr, which leaves stdout to the results."""

    def __init__(self) -> None:
        self._out = sys.stderr
        terminal = self._out.isatty()
        self.progress = Progress(self._write, self._rewrite if terminal else None)
        self._dirty = False

    def _write(self, text: str) -> None:
        print(f"… {text}", file=self._out, flush=True)

    def _rewrite(self, text: str) -> None:
        print(f"\r… {text:<{_WIDTH}}", end="", file=self._out, flush=True)
        self._dirty = True

    def clear(self) -> None:
        """Leave the terminal's line clean."""
        if self._dirty:
            print("\r" + " " * (_WIDTH + 2) + "\r", end="", file=self._out, flush=True)
        self._dirty = False


def read(path: Path) -> Scenario:
    """The scenario in a file.  Raises `InvalidScenario`, also for a file that cannot be read."""
    try:
        return load(path)
    except OSError as error:
        raise InvalidScenario(str(path), "the file", error.strerror or str(error)) from None


def opened(
    path: Path, scenario: Scenario, session: Session, options: Options, progress: Callable[[str], None]
) -> tuple[Driver, Scenario]:
    """A driver for the scenario's machine, to be used as a context manager; and the scenario as that machine has it.

    Raises `InvalidScenario` (no such machine, or it is stale) and `FaultUnavailable`.
    """
    cls = machine_of(path, scenario)
    scenario = fitted(cls, path, scenario)
    journal = project_of(path) / ".colos" / "journal" / f"{path.stem}.jsonl"
    driver = Driver(cls, session, test=scenario.test, journal=journal, options=options, progress=progress)
    for step in scenario.steps:
        if isinstance(step, Inject) and step.fault in driver.unavailable:
            driver.close()
            raise FaultUnavailable(step.fault, driver.unavailable[step.fault])
    return driver, scenario


def noted(path: Path, outcome: str, failed: int = 0, runs: int = 0) -> None:
    """Remember what a scenario came to."""
    path = path.resolve()
    remember(project_of(path).resolve(), {path: Remembered(outcome, failed, runs, int(time.time()))})
