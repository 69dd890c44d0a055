"""The pytest items of a chaos machine: ``::explore``, and one ``::scenario[NAME]`` a saved file.

They are test functions whose parameters are the fixtures that the machine's ``__init__`` asks for
by name; a fixture of an item is shared by all of its examples.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from colos.chaos.driver import Driver
from colos.chaos.fault import Fault, matches
from colos.chaos.faults import fault_kinds
from colos.chaos.machine import ChaosMachine, author_rules, required_arguments
from colos.chaos.outcomes import Exploration, Options, Replay
from colos.chaos.properties import Outcome
from colos.chaos.report import describe_failure, describe_replay, summary_lines
from colos.chaos.sandbox.session import Session
from colos.chaos.scenario import Inject, Op, Scenario, load, validate
from colos.chaos.scenario_toml import Source
from colos.chaos.values import closest
from colos.errors import ColosError, FaultUnavailable, HarnessBroken, InvalidScenario, InvalidSpecification

__all__ = ["ChaosClass", "Suite"]

_LONGEST_PROGRESS = 110


class ChaosFailure(AssertionError):
    """A violation, told as DESIGN law 10 wants it."""


class Suite:
    """What all chaos items of one pytest run share: options, the template, scenarios, results."""

    def __init__(
        self,
        config: pytest.Config,
        *,
        scenarios: Path,
        examples: int | None,
        steps: int | None,
        seed: int,
        sandbox: str | None,
    ) -> None:
        self.config = config
        self.directory = scenarios
        self.seed = seed
        self.options = Options(examples=examples, steps=steps, seed=self.seed)
        self.session = Session(sandbox)
        self._results: dict[str, Exploration] = {}
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

    def unusable(self, session: pytest.Session, *, whole: bool) -> Iterator[pytest.Item]:
        """An item for each file that is no scenario, or whose test is gone."""
        files_seen = {nodeid.partition("::")[0] for nodeid in self._classes}
        for path, scenario in self.files().items():
            problem: InvalidScenario | None = None
            if isinstance(scenario, InvalidScenario):
                problem = scenario
            elif scenario.test not in self._classes:
                file = scenario.test.partition("::")[0]
                if whole or file in files_seen or not (self.config.rootpath / file).exists():
                    problem = InvalidScenario(
                        str(path),
                        "test",
                        f"there is no chaos machine {scenario.test!r}",
                        closest(scenario.test, self._classes),
                    )
            if problem is not None:
                name = os.path.relpath(path, self.config.rootpath)
                yield UnusableScenario.from_parent(session, name=name, problem=problem)

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
        return [f"colos: sandbox {tier}{because}; faults: {', '.join(available)}; seed {self.seed}", *missing]

    def progress(self, text: str) -> None:
        """One line that is written over, where there is a terminal."""
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and getattr(reporter, "isatty", False) and self.config.get_verbosity() >= 0:
            reporter.rewrite(f"colos: {text}"[:_LONGEST_PROGRESS], erase=True)

    def add(self, nodeid: str, exploration: Exploration) -> None:
        """Keep a result for the summary."""
        self._results[nodeid] = exploration

    def take_summary(self, nodeid: str) -> list[str]:
        """What an item's exploration came to, if it has had one; for a test that runs again, anew."""
        exploration = self._results.pop(nodeid, None)
        return [] if exploration is None else summary_lines(nodeid, exploration)

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


# --- items -------------------------------------------------------------------------------


class ChaosClass(pytest.Class):
    """A chaos machine, as pytest's tree shows it."""

    suite: Suite

    @classmethod
    def from_parent(  # type: ignore[override]  # pytest's own Class narrows it in the same way
        cls, parent: Any, *, name: str, obj: Any, suite: Suite, **extra: Any
    ) -> Any:
        """Made by the plugin, with the run's suite."""
        # Not `node.obj = obj`: pytest takes up a class's marks where it looks the class up itself.
        node = super().from_parent(parent, name=name, obj=obj, **extra)
        node.suite = suite
        return node

    def collect(self) -> Iterable[pytest.Item]:
        """The exploration, then each saved scenario."""
        self.suite.meet(self.nodeid, self.obj)
        yield Explore.from_parent(self, name="explore", callobj=self._call("explore", None, None))
        for path, scenario in self.suite.of_test(self.nodeid).items():
            yield Replayed.from_parent(
                self, name=f"scenario[{path.stem}]", callobj=self._call(f"scenario[{path.stem}]", path, scenario)
            )

    def _call(self, name: str, path: Path | None, scenario: Scenario | None) -> Any:
        """The item's function: it takes what the machine's ``__init__`` takes, as fixtures by name."""
        run = _Run(self, path, scenario)

        def function(self: _Run, **fixtures: Any) -> None:
            self(name, fixtures)

        parameters = inspect.signature(self.obj.__init__).parameters
        function.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        function.__name__ = function.__qualname__ = name
        return types.MethodType(function, run)


class _Run:
    """Carries out one item."""

    def __init__(self, collector: ChaosClass, path: Path | None, scenario: Scenario | None) -> None:
        self._class: type[ChaosMachine] = collector.obj
        self._suite = collector.suite
        self._test = collector.nodeid
        self._path = path
        self._scenario = scenario

    def __call__(self, name: str, fixtures: Mapping[str, Any]) -> None:
        try:
            self._carry_out(name, fixtures)
        except KeyboardInterrupt:
            # Anew: Ctrl-C may land between lines, and pytest fails at telling such a traceback (CPython 3.11).
            raise KeyboardInterrupt from None

    def _carry_out(self, name: str, fixtures: Mapping[str, Any]) -> None:
        suite = self._suite
        if self._scenario is not None and self._path is not None:
            self._validate(self._path, self._scenario)
        with Driver(
            self._class,
            suite.session,
            test=self._test,
            journal=suite.journal(f"{self._test}::{name}"),
            options=suite.options,
            make=lambda: self._class(**fixtures),
            progress=suite.progress,
        ) as driver:
            if self._scenario is None:
                self._explore(driver)
            else:
                self._replay(driver, self._scenario)

    def _validate(self, path: Path, scenario: Scenario) -> None:
        kinds, rules = fault_kinds(), author_rules(self._class)
        text = path.read_text(encoding="utf-8-sig")
        validate(
            scenario,
            faults={kind: tuple(fault.parameters) for kind, fault in kinds.items()},
            ops={op: tuple(declared.arguments) for op, (_, declared) in rules.items()},
            path=str(path),
            text=text,
        )
        topology = self._class.system_declaration().topology()
        for index, step in enumerate(scenario.steps):
            problem = cure = ""
            if isinstance(step, Op):
                lacking = [name for name in required_arguments(rules[step.name][1]) if name not in step.args]
                problem = f"the op {step.name!r} needs an argument {lacking[0]!r}" if lacking else ""
            elif isinstance(step, Inject) and step.target is not None:
                if not kinds[step.fault].targeted:
                    problem, cure = f"the fault {step.fault!r} has no target", "leave it out"
                elif not any(matches(name, step.target) or step.target.startswith(f"{name}/") for name in topology):
                    problem, cure = f"the target {step.target!r} matches nothing", closest(step.target, topology)
            if problem:
                where = Source(str(path), text).where_step(index, len(scenario.steps))
                raise InvalidScenario(str(path), where, problem, cure)

    def _explore(self, driver: Driver) -> None:
        suite = self._suite
        known = {path.stem: found for path, found in suite.of_test(self._test).items() if found.known is not None}
        exploration = driver.explore(known, suite.directory)
        suite.add(f"{self._test}::explore", exploration)
        if exploration.failure is not None:
            replay = suite.replay_command(self._test)
            raise ChaosFailure(describe_failure(exploration.failure, replay=replay, seed=suite.seed))
        if self._class.faults and not exploration.exercised:
            pytest.skip(f"not exercised: no fault fired in {exploration.examples} examples")

    def _replay(self, driver: Driver, scenario: Scenario) -> None:
        assert self._path is not None
        missing = [
            step.fault for step in scenario.steps if isinstance(step, Inject) and step.fault in driver.unavailable
        ]
        if missing:
            pytest.skip(f"{missing[0]} is unavailable: {driver.unavailable[missing[0]]}")
        try:
            replay = driver.replay(scenario, until_failed=scenario.known is not None)
        except FaultUnavailable as error:
            pytest.skip(str(error))
        except InvalidSpecification as error:
            raise InvalidScenario(str(self._path), "steps", str(error)) from None
        self._judge(scenario, replay)

    def _judge(self, scenario: Scenario, replay: Replay) -> None:
        assert self._path is not None
        if scenario.known is not None and replay.failed:
            pytest.xfail(f"known: {scenario.known}")
        if replay.verdict.violation is not None:
            raise ChaosFailure(describe_replay(self._path, scenario, replay))
        if scenario.known is not None:
            raise ChaosFailure(
                f"{self._path.name}: this known failure ({scenario.known}) did not happen in {replay.runs} runs; "
                "if it is mended, take the line 'known' out of the file, which then guards against its return"
            )
        if replay.verdict.outcome is Outcome.NOT_EXERCISED and any(isinstance(s, Inject) for s in scenario.steps):
            pytest.skip(f"not exercised: {replay.verdict.reason}")


class _ChaosItem(pytest.Function):
    """A function item whose failures tell the user's story, not ours."""

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> Any:  # type: ignore[override]
        """The report for a violation, one sentence for our own errors, pytest's traceback for anything else."""
        error = excinfo.value
        if isinstance(error, ChaosFailure):
            return str(error)
        if isinstance(error, HarnessBroken):
            return f"harness broken (no verdict on the system): {error}"
        if isinstance(error, ColosError):
            return f"{type(error).__name__}: {error}"
        return super().repr_failure(excinfo)


class Explore(_ChaosItem):
    """Searches for a violation."""


class Replayed(_ChaosItem):
    """Replays a saved scenario."""


class UnusableScenario(pytest.Item):
    """A scenario file that nothing can be done with: fails, and says why."""

    def __init__(self, *, problem: InvalidScenario, **extra: Any) -> None:
        super().__init__(**extra)
        self._problem = problem

    def runtest(self) -> None:
        """Fail with the problem."""
        raise self._problem

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> str:  # type: ignore[override]
        """The file, the line or key, what is allowed, what to do."""
        return str(excinfo.value)

    def reportinfo(self) -> tuple[str, None, str]:
        """Where it is, for pytest's own lines."""
        return self._problem.path, None, self.name
