"""The pytest items of a chaos machine: ``::explore``, and one ``::scenario[NAME]`` a saved file.

They are test functions whose parameters are the fixtures that the machine's ``__init__`` asks for
by name; a fixture of an item is shared by all of its examples.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from colos.chaos import told
from colos.chaos.driver import Driver
from colos.chaos.fitting import fitted, unknown_property
from colos.chaos.machine import ChaosMachine
from colos.chaos.outcomes import Exploration, Replay, ReplayOutcome
from colos.chaos.report import describe_failure, describe_replay, power_note, relative, tally
from colos.chaos.scenario import Inject, Scenario
from colos.chaos.suite import Suite
from colos.errors import (
    ColosError,
    FaultUnavailable,
    HarnessBroken,
    InvalidScenario,
    InvalidSpecification,
    StaleScenario,
)

__all__ = ["ChaosClass", "UnusableScenario"]


class ChaosFailure(AssertionError):
    """A violation, told as DESIGN law 10 wants it."""


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
        yield self._item(Explore, "explore", None, None)
        for path, scenario in self.suite.of_test(self.nodeid).items():
            yield self._item(Replayed, f"scenario[{path.stem}]", path, scenario)

    def _item(self, kind: type[_ChaosItem], name: str, path: Path | None, scenario: Scenario | None) -> pytest.Item:
        """An item whose function takes what the machine's ``__init__`` takes, as fixtures by name."""
        run = _Run(self, path, scenario)

        def function(self: _Run, **fixtures: Any) -> None:
            self(name, fixtures)

        parameters = inspect.signature(self.obj.__init__).parameters
        function.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        function.__name__ = function.__qualname__ = name
        item: _ChaosItem = kind.from_parent(self, name=name, callobj=types.MethodType(function, run))
        item.run_of, item.called = run, item.obj
        return item


class _Run:
    """Carries out one item."""

    def __init__(self, collector: ChaosClass, path: Path | None, scenario: Scenario | None) -> None:
        self._class: type[ChaosMachine] = collector.obj
        self._suite = collector.suite
        self._test = collector.nodeid
        self._path = path
        self._scenario = scenario
        self._latest: ChaosMachine | None = None
        #: What it came to, once it has.
        self.told: told.Told | None = None

    def __call__(self, name: str, fixtures: Mapping[str, Any]) -> None:
        self.told = None  # a test that runs again begins anew
        try:
            self._carry_out(name, fixtures)
        except KeyboardInterrupt:
            # Anew: Ctrl-C may land between lines, and pytest fails at telling such a traceback (CPython 3.11).
            raise KeyboardInterrupt from None
        finally:
            self._latest = None

    def _carry_out(self, name: str, fixtures: Mapping[str, Any]) -> None:
        suite, scenario = self._suite, self._scenario
        if scenario is not None and self._path is not None:
            scenario = self._fitted(self._path, scenario)

        def make() -> ChaosMachine:
            suite.say_steps(self._latest)
            self._latest = self._class(**fixtures)
            return self._latest

        with Driver(
            self._class,
            suite.session,
            test=self._test,
            journal=suite.journal(f"{self._test}::{name}"),
            options=suite.options,
            make=make,
            shared=bool(fixtures) or suite.tells_steps,
            progress=suite.progress(),
        ) as driver:
            self._demand(driver)
            if scenario is None:
                self._explore(driver)
            else:
                self._replay(driver, scenario)

    def _fitted(self, path: Path, scenario: Scenario) -> Scenario:
        try:
            return fitted(self._class, path, scenario)
        except StaleScenario as error:
            self._stale(error)
            raise

    def _stale(self, error: StaleScenario) -> None:
        assert self._path is not None
        properties = {"colos_outcome": "stale", "colos_scenario": relative(self._path)}
        line = f"{error.where}: {error.problem}"
        self.told = told.Told("stale", self._path.stem, line, properties=properties)
        self._suite.remember(self._path, ReplayOutcome.STALE.value)

    def _demand(self, driver: Driver) -> None:
        """Fail where a fault that the user requires is declared, or needed, and not to be had."""
        for kind in sorted(self._suite.demands.required & driver.unavailable.keys()):
            raise ChaosFailure(f"the required fault {kind} is unavailable: {driver.unavailable[kind]}")

    def _idle(self, why: str) -> NoReturn:
        """Nothing was tested: no pass, and under --colos-strict a failure."""
        if self._suite.demands.strict:
            raise ChaosFailure(f"not exercised: {why} (--colos-strict)")
        pytest.skip(f"not exercised: {why}")

    # --- exploring ----------------------------------------------------------------------

    def _explore(self, driver: Driver) -> None:
        suite = self._suite
        exploration = driver.explore(self._known(), suite.directory)
        suite.say_steps(self._latest)
        nothing_fired = bool(self._class.faults) and not exploration.exercised
        idle = f"no fault fired in {exploration.examples} examples" if nothing_fired else ""
        self.told = told.of_exploration(self._test, exploration, idle=idle, there=suite.files())
        if exploration.failure is not None:
            raise ChaosFailure(
                describe_failure(
                    exploration.failure,
                    replay=suite.replay_command(self._test),
                    seed=suite.options.seed,
                    with_found=suite.config.get_verbosity() > 0,
                )
            )
        if idle:
            self._idle(idle)
        if self.told.outcome == "inconclusive":
            pytest.skip(f"inconclusive: {self.told.line}")
        if suite.demands.strict:
            self._be_strict(exploration)

    def _known(self) -> dict[str, Scenario]:
        """The failures to count and pass over, by their scenarios' names."""
        known = {}
        for path, scenario in self._suite.of_test(self._test).items():
            if scenario.known is not None:
                with suppress(StaleScenario):  # its own item says so
                    known[path.stem] = fitted(self._class, path, scenario)
        return known

    def _be_strict(self, exploration: Exploration) -> None:
        if exploration.never:
            self._idle(f"sometimes:{', sometimes:'.join(exploration.never)} never held")
        if exploration.refused_idle:
            raise ChaosFailure(f"refused while no fault acted: {tally(exploration.refused_idle)} (--colos-strict)")

    # --- replaying ----------------------------------------------------------------------

    def _replay(self, driver: Driver, scenario: Scenario) -> None:
        assert self._path is not None
        for step in scenario.steps:
            if isinstance(step, Inject) and step.fault in driver.unavailable:
                self._go_without(f"{step.fault} is unavailable: {driver.unavailable[step.fault]}")
        try:
            replay = driver.replay(scenario, until_failed=scenario.known is not None)
        except FaultUnavailable as error:
            if error.kind in self._suite.demands.required:
                raise ChaosFailure(f"a required fault: {error}") from None
            self._go_without(str(error))
        except InvalidSpecification as error:
            stale = StaleScenario(str(self._path), "steps", str(error))
            self._stale(stale)
            raise stale from None
        self._suite.say_steps(self._latest)
        self.told = told.of_replay(self._path, replay, unknown=unknown_property(self._class, scenario))
        self._suite.remember(self._path, replay.outcome.value, replay.failed, replay.runs)
        self._judge(self._path, scenario, replay)

    def _go_without(self, why: str) -> NoReturn:
        """A scenario that cannot be run here."""
        assert self._path is not None
        properties = {"colos_outcome": "not exercised", "colos_scenario": relative(self._path)}
        self.told = told.Told("not exercised", self._path.stem, why, properties=properties)
        self._idle(why)

    def _judge(self, path: Path, scenario: Scenario, replay: Replay) -> None:
        if scenario.known is not None and replay.failed:
            pytest.xfail(f"known: {scenario.known}")
        match replay.outcome:
            case ReplayOutcome.FAILED | ReplayOutcome.FLAKY | ReplayOutcome.DIFFERENT:
                raise ChaosFailure(describe_replay(path, scenario, replay))
            case ReplayOutcome.NOT_EXERCISED:
                self._idle(replay.verdict.reason)
            case ReplayOutcome.INCONCLUSIVE:
                pytest.skip(f"inconclusive: {replay.verdict.reason}")
        if scenario.known is not None:
            raise ChaosFailure(
                f"{path.name}: fixed: this known failure ({scenario.known}) did not happen in {replay.runs} runs"
                f"{power_note(replay)}; if it is mended, take the line 'known' out of the file, "
                "which then guards against its return"
            )


# --- items -------------------------------------------------------------------------------


class _ChaosItem(pytest.Function):
    """A function item whose failures tell the user's story, not ours."""

    run_of: _Run
    called: Any

    def _getinstance(self) -> _Run:  # pytest's: where another plugin had it forget these, to run the item again
        return self.run_of

    def _getobj(self) -> Any:
        return self.called

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> Any:  # type: ignore[override]
        """The report for a violation, one sentence for our own errors, pytest's traceback for anything else."""
        error = excinfo.value
        if isinstance(error, ChaosFailure):
            return str(error)
        if isinstance(error, HarnessBroken):
            return f"harness broken (no verdict on the system): {error}"
        if isinstance(error, StaleScenario):
            return f"stale: {error}"
        if isinstance(error, ColosError):
            return f"{type(error).__name__}: {error}"
        return super().repr_failure(excinfo)

    def take_told(self) -> told.Told | None:
        """What the item came to, once; for a test that runs again, anew."""
        taken, self.run_of.told = self.run_of.told, None
        return taken

    def where(self) -> tuple[str, int]:
        """The file and the line (from 1) of the machine's class."""
        machine = self.run_of._class
        try:
            return inspect.getsourcefile(machine) or str(self.path), inspect.getsourcelines(machine)[1]
        except OSError:
            return str(self.path), 1


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
