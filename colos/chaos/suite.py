"""What all chaos items of one pytest run share: options, the template, scenarios, what is told while they run."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from colos.chaos.fault import Fault
from colos.chaos.machine import ChaosMachine
from colos.chaos.outcomes import Options
from colos.chaos.progress import Progress
from colos.chaos.remembered import Remembered, remember
from colos.chaos.report import explain
from colos.chaos.sandbox.session import Session
from colos.chaos.scenario import Scenario, load
from colos.errors import HarnessBroken, InvalidScenario
from colos.spelling import closest

__all__ = ["Demands", "Suite"]


@dataclass(frozen=True)
class Demands:
    """What a run must not go without: `strict` turns what was not tested into failures, `required` are fault kinds."""

    strict: bool = False
    required: frozenset[str] = frozenset()


class Suite:
    """One for each pytest run, and for each worker of pytest-xdist."""

    def __init__(
        self, config: pytest.Config, *, scenarios: Path, options: Options, sandbox: str | None, demands: Demands
    ) -> None:
        self.config = config
        self.directory = scenarios
        self.options = options
        self.demands = demands
        self.session = Session(sandbox)
        #: Files whose machine is gone, and what is said of each.
        self.orphans: dict[str, str] = {}
        self._classes: set[str] = set()
        self._declared: dict[str, type[Fault]] = {}
        self._files: dict[Path, Scenario | InvalidScenario] | None = None

    # --- scenarios ----------------------------------------------------------------------

    def files(self) -> Mapping[Path, Scenario | InvalidScenario]:
        """Every scenario file, read once; for one that cannot be read, why."""
        if self._files is None:
            self._files = {}
            for path in sorted(self.directory.glob("**/*.toml")):
                try:
                    self._files[path] = load(path)
                except InvalidScenario as error:
                    self._files[path] = error
                except OSError as error:
                    self._files[path] = InvalidScenario(str(path), "the file", str(error))
        return self._files

    def meet(self, nodeid: str, machine: type[ChaosMachine]) -> None:
        """There is such a test."""
        self._classes.add(nodeid)
        self._declared |= {fault.kind: type(fault) for fault in machine.faults}

    def of_test(self, nodeid: str) -> dict[Path, Scenario]:
        """The scenarios of one test."""
        return {
            path: scenario
            for path, scenario in self.files().items()
            if isinstance(scenario, Scenario) and scenario.test == nodeid
        }

    def unusable(self, *, whole: bool) -> Iterator[tuple[str, InvalidScenario]]:
        """Each file that is no scenario, by name; under `strict` also each whose machine is gone.

        Without it, those are `orphans`.  Only of a `whole` run, or of a test's module that was collected, is it
        known that a machine is gone.
        """
        files_seen = {nodeid.partition("::")[0] for nodeid in self._classes}
        for path, scenario in self.files().items():
            name = os.path.relpath(path, self.config.rootpath)
            if isinstance(scenario, InvalidScenario):
                yield name, scenario
            elif scenario.test not in self._classes:
                file = scenario.test.partition("::")[0]
                if whole or file in files_seen or not (self.config.rootpath / file).exists():
                    problem = f"there is no chaos machine {scenario.test!r}"
                    cure = closest(scenario.test, self._classes)
                    if self.demands.strict:
                        yield name, InvalidScenario(str(path), "test", problem, cure)
                    else:
                        self.orphans[name] = f"{problem}; {cure}"

    def remember(self, path: Path, outcome: str, failed: int = 0, runs: int = 0) -> None:
        """Keep what a scenario's replay came to, for `colos scenarios`."""
        remember(self.config.rootpath, {path: Remembered(outcome, failed, runs, int(time.time()))})

    # --- telling ------------------------------------------------------------------------

    def header(self) -> list[str]:
        """The tier, and which of the declared faults it has."""
        try:
            tier = self.session.tier
        except HarnessBroken as error:
            return [f"colos: {error}"]
        because = f" ({self.session.refusal})" if self.session.refusal else ""
        available, missing = [], []
        for name, kind in sorted(self._declared.items()):
            reason = kind.unavailable(self.session)
            available += [name] if reason is None else []
            missing += [] if reason is None else [f"colos: {name} is unavailable: {'; '.join(filter(None, reason))}"]
        seed = self.options.seed
        return [f"colos: sandbox {tier}{because}; faults: {', '.join(available)}; seed {seed}", *missing]

    def progress(self) -> Progress:
        """The progress of one item; a worker of pytest-xdist has no terminal, and tells nothing."""
        reporter = self._reporter()
        if reporter is None or self.config.get_verbosity() < 0:
            return Progress(lambda _: None)
        if not getattr(reporter, "isatty", False):
            return Progress(self.say)

        def rewrite(text: str) -> None:
            self._uncaptured(lambda: reporter.rewrite(f"colos: {text}", erase=True))

        return Progress(self.say, rewrite)

    def say(self, text: str) -> None:
        """A line of its own on the terminal, whatever pytest captures."""
        reporter = self._reporter()
        if reporter is not None:

            def write() -> None:
                reporter.ensure_newline()
                reporter.write_line(f"colos: {text}")
                reporter.flush()

            self._uncaptured(write)

    @property
    def tells_steps(self) -> bool:
        """Whether each run's steps are told, one run after another."""
        return self.config.get_verbosity() >= 2

    def say_steps(self, machine: ChaosMachine | None) -> None:
        """The steps that a machine has made, one a line; with -vv."""
        executor = machine._executor if machine is not None else None
        if executor is not None and self.tells_steps:
            for step in executor.steps:
                self.say(f"  {explain(step)}")
            self.say("  —")

    def _reporter(self) -> Any:
        if hasattr(self.config, "workerinput"):
            return None  # a worker of pytest-xdist has a reporter, whose lines nobody sees
        return self.config.pluginmanager.get_plugin("terminalreporter")

    def _uncaptured(self, write: Callable[[], None]) -> None:
        capture = self.config.pluginmanager.get_plugin("capturemanager")
        if capture is None:
            write()
            return
        streams = sys.stdout, sys.stderr
        with capture.global_and_fixture_disabled():
            write()
        # Capturing again, pytest puts its own streams in place; whoever redirected them meanwhile is not done yet.
        sys.stdout, sys.stderr = streams

    def replay_command(self, test: str) -> str:
        """What replays a scenario of a test, from where pytest was called; ``{name}`` is the scenario's."""
        given = [
            f"--colos-{name}={shlex.quote(value).replace('{', '{{').replace('}', '}}')}"
            for name in ("sandbox", "scenarios")
            if (value := self.config.getoption(f"colos_{name}"))
        ]
        file, _, name = test.partition("::")
        here = os.path.relpath(self.config.rootpath / file, self.config.invocation_params.dir)
        return " ".join(["pytest", *given, f"'{here}::{name}::scenario[{{name}}]'"])

    def journal(self, nodeid: str) -> Path:
        """Where an item's journal goes; workers of pytest-xdist do not share one."""
        worker = os.environ.get("PYTEST_XDIST_WORKER", "")
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", nodeid).strip("-")
        return self.config.rootpath / ".colos" / "journal" / f"{name}{'-' + worker if worker else ''}.jsonl"

    def close(self) -> None:
        """End the template."""
        self.session.close()
