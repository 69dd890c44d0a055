"""What is done with a machine: explore it, or replay a scenario; and with a failure: confirm, minimise, save.

One `Driver` serves one item.  It builds each run's machine and executor, and is the only place
that knows both Hypothesis's search and the replay of recorded steps.
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import UnsatisfiedAssumption
from hypothesis.reporting import with_reporter
from hypothesis.stateful import MultipleResults, run_state_machine_as_test

from colos.chaos import minimise as search
from colos.chaos.bridge import BACKENDS, Outlet, in_test_case
from colos.chaos.builtin import BUILTIN
from colos.chaos.draws import Draws, RecordedData, snapshot
from colos.chaos.executor import REFUSALS, UNKNOWNS, Deadlines, Executor, Setting
from colos.chaos.fault import Fault, environment_of
from colos.chaos.faults import fault_kinds
from colos.chaos.journal import Journal
from colos.chaos.machine import ChaosMachine, SearchEnded, author_rules, declared_properties, required_arguments
from colos.chaos.mechanisms.syscalls import merged
from colos.chaos.properties import Outcome, Verdict, Violation
from colos.chaos.sandbox.session import Session
from colos.chaos.sandbox.spec import SandboxSpec, kept_paths
from colos.chaos.scenario import Heal, Inject, Op, Ref, Repro, Scenario, Step, save
from colos.errors import InvalidScenario, InvalidSpecification

__all__ = ["Driver", "Exploration", "Failure", "Options", "Replay", "is_instance_of_known"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How long and how to search.  `examples` and `steps` of None leave it to the machine's own settings."""

    examples: int | None = None
    steps: int | None = None
    seed: int = 0
    confirm_runs: int = 10
    minimise_runs: int = 200
    minimise_s: float = 60.0
    deadlines: Deadlines = field(default_factory=Deadlines)


_HYPOTHESIS_NOTES = ("Falsifying example", "Failing test case", "You can reproduce", "Explanation:")
DEFAULT_EXAMPLES = 50
DEFAULT_STEPS = 12


@dataclass(frozen=True)
class Failure:
    """A violation, the steps that led to it, the shortest that do, and where it is saved."""

    violation: Violation
    found: tuple[Step, ...]
    minimal: tuple[Step, ...]
    repro: Repro
    output: str
    journal: Path
    saved: Path | None = None
    not_saved: str = ""
    exhausted: bool = False
    minimising_runs: int = 0


@dataclass
class Exploration:
    """What exploring came to."""

    examples: int = 0
    steps: int = 0
    seed: int = 0
    fired: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    unavailable: dict[str, str] = field(default_factory=dict)
    never_drawn: dict[str, str] = field(default_factory=dict)
    known: Counter[str] = field(default_factory=Counter)
    never: tuple[str, ...] = ()
    failure: Failure | None = None

    @property
    def exercised(self) -> bool:
        """Whether any fault fired."""
        return bool(self.fired)


@dataclass(frozen=True)
class Replay:
    """What replaying a scenario came to: how often of `runs` it failed as the file says, and the last verdict."""

    failed: int
    runs: int
    verdict: Verdict
    fired: Counter[str]
    output: str
    journal: Path


def is_instance_of_known(known: Scenario, violation: Violation, steps: Sequence[Step]) -> bool:
    """Whether a failure is one that a known scenario describes already.

    The same property, and the known scenario's faults (kind and resource, in order) all occurred.  So a
    loss that needs no full disk is a new bug beside a known loss by full disk.
    """
    if known.violates != violation.name:
        return False
    had = iter(_signature(steps))
    return all(part in had for part in _signature(known.steps))


def _signature(steps: Sequence[Step]) -> list[tuple[str, tuple[tuple[str, object], ...]]]:
    return [
        (step.fault, tuple(sorted((n, v) for n, v in step.args.items() if isinstance(v, str))))
        for step in steps
        if isinstance(step, Inject)
    ]


class _CtrlC:
    """While it is entered, Ctrl-C cannot get lost.

    KeyboardInterrupt may be raised where Python only reports exceptions: in a callback of the garbage
    collector (Hypothesis has one) or in a `__del__`.  Measured: 4 of 100, and exploring went on.
    """

    def __init__(self) -> None:
        self._came = False
        self._ours = False

    def __enter__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._take)

    def __exit__(self, *exc_info: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        if frame is None or frame.f_code.co_name != "gc_callback":  # Hypothesis's: spare its report of a lost one
            signal.default_int_handler(number, frame)

    def check(self) -> None:
        """Raise what was lost."""
        if self._came:
            raise KeyboardInterrupt


class Driver:
    """One machine class, ready to be explored or replayed.  Close it when the item is over."""

    def __init__(
        self,
        cls: type[ChaosMachine],
        session: Session,
        *,
        test: str,
        journal: Path,
        options: Options | None = None,
        make: Callable[[], ChaosMachine] | None = None,
        progress: Progress = lambda _: None,
    ) -> None:
        self.cls = cls
        self.test = test
        self.options = options or Options()
        self.progress = progress
        self._make = make or cls
        self._rules = author_rules(cls)
        self._known: dict[str, Scenario] = {}
        self._exploration = Exploration()
        self._ended: Executor | None = None
        self._ctrl_c = _CtrlC()
        system = cls.system_declaration()
        _check_declarations(cls, system.topology())
        self.unavailable = _unavailable(cls.faults, session)
        if system.modules():
            session.prepare(_with_packages([sys.modules[cls.__module__], *system.modules()]), system.rehearsal())
        self.outlet = Outlet(cls.backend)
        self.setting = Setting(
            session=session,
            outlet=self.outlet,
            system=system,
            properties=declared_properties(cls),
            kinds=fault_kinds(),
            journal=Journal(journal),
            spec=SandboxSpec(
                data_bytes=cls.data_bytes,
                data_inodes=cls.data_inodes,
                writable=tuple(cls.writable),
                kept=kept_paths(),
                traps=merged(trap for fault in cls.faults for trap in fault.needed()),
                environment=environment_of(cls.faults, self.unavailable),
            ),
            refusals=(*REFUSALS, *cls.refusals),
            unknowns=(*UNKNOWNS, *cls.unknowns),
            without=frozenset(cls.without),
            deadlines=self.options.deadlines,
        )

    def close(self) -> None:
        """End the event loop and the journal."""
        self.outlet.close()
        self.setting.journal.close()

    def __enter__(self) -> Driver:
        self._ctrl_c.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.close()
        finally:
            self._ctrl_c.__exit__(*exc_info)

    def _new_machine(self, steps: int) -> ChaosMachine:
        self._ctrl_c.check()
        machine = self._make()
        machine._executor = Executor(self.setting, machine, planned=steps)
        machine._unavailable = self.unavailable
        machine._is_known = self._meets_known
        return machine

    # --- exploring ----------------------------------------------------------------------

    def explore(self, known: dict[str, Scenario], directory: Path | None) -> Exploration:
        """Search; confirm, minimise and save what is found.  `known` are failures to count and pass over."""
        self._known = known
        found = self._search()
        exploration = self._exploration
        exploration.seed = self.options.seed
        exploration.fired.update(self.setting.fired)
        exploration.injected.update(self.setting.injected)
        exploration.unavailable, exploration.never_drawn = self.unavailable, self.cls.never_drawn()
        declared = {p.name for p in self.setting.properties if p.kind == "sometimes"}
        exploration.never = tuple(sorted(declared - self.setting.seen_sometimes))
        if found is not None:
            exploration.failure = self._examine(found, directory)
        return exploration

    def _search(self) -> Executor | None:
        """Have Hypothesis generate until something is violated; returns that run, or None."""
        chosen = self._settings()

        def factory() -> ChaosMachine:
            machine = self._new_machine(chosen.stateful_step_count)
            self._ended = machine._executor
            self._exploration.examples += 1
            self._say_progress()
            return machine

        factory._hypothesis_internal_use_seed = self.options.seed  # type: ignore[attr-defined]
        try:
            # Hypothesis would print how to reproduce with @seed; a saved scenario says it better.
            with with_reporter(lambda text: None), contextlib.redirect_stdout(io.StringIO()):
                run_state_machine_as_test(factory, settings=chosen)  # type: ignore[arg-type]
        except SearchEnded:
            return self._ended
        except Exception as error:
            # From an author's `__init__`, precondition or strategy: what Hypothesis notes on it is about its own runs.
            if hasattr(error, "__notes__"):
                error.__notes__ = [note for note in error.__notes__ if not note.startswith(_HYPOTHESIS_NOTES)]
            raise
        return None

    def _settings(self) -> settings:
        own, default = self.cls.TestCase.settings, settings.get_profile("default")
        examples = self.options.examples or _chosen(own.max_examples, default.max_examples, DEFAULT_EXAMPLES)
        steps = self.options.steps or _chosen(own.stateful_step_count, default.stateful_step_count, DEFAULT_STEPS)
        self._planned = examples
        return settings(
            own,
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            backend="colos",
            print_blob=False,
        )

    def _say_progress(self) -> None:
        fired = ", ".join(f"{kind} ×{count}" for kind, count in sorted(self.setting.fired.items()))
        self.progress(
            f"exploring: example {self._exploration.examples}/{self._planned}; fired: {fired or 'nothing yet'}"
        )

    def _meets_known(self, executor: Executor) -> bool:
        assert executor.violation is not None
        for name, scenario in self._known.items():
            if is_instance_of_known(scenario, executor.violation, executor.steps):
                self._exploration.known[name] += 1
                return True
        return False

    def _examine(self, found: Executor, directory: Path | None) -> Failure:
        """Confirm that a failure recurs, shorten it, and save it."""
        violation, steps = found.violation, tuple(found.steps)
        assert violation is not None
        journal = self.setting.journal.path
        self.setting.journal.restart(journal.with_name(journal.stem + "-minimise.jsonl"))
        budget = search.Budget(self.options.minimise_runs, self.options.minimise_s)
        self.progress(f"found: {violation.name} is violated after {len(steps)} steps; confirming")
        repro = search.confirm(self._violates, steps, violation.name, runs=self.options.confirm_runs, budget=budget)
        self.progress(f"confirmed: {repro.failed} of {repro.runs} runs fail the same way; minimising")
        small = search.minimise(
            self._violates, steps, violation.name, repro, budget=budget, progress=self._say_minimising
        )
        saved, not_saved = self._save(violation, small, directory) if directory is not None else (None, "")
        return Failure(
            violation,
            steps,
            small.steps,
            small.repro,
            found.last_output,
            journal,
            saved,
            not_saved,
            small.exhausted,
            budget.used,
        )

    def _save(self, violation: Violation, small: search.Minimised, directory: Path) -> tuple[Path | None, str]:
        """The saved scenario, or why there is none: a failure is reported all the same."""
        if not small.repro.failed:
            return None, ""
        used = {step.fault for step in small.steps if isinstance(step, Inject)}
        mechanisms = {kind: name for kind, name in self.setting.mechanisms.items() if kind in used}
        scenario = Scenario(self.test, violation.name, small.steps, small.repro, mechanisms=mechanisms)
        try:
            return save(scenario, directory), ""
        except (InvalidScenario, OSError) as error:
            return None, str(error)

    def _say_minimising(self, state: search.Progress) -> None:
        self.progress(
            f"minimising: {state.steps_at_start} → {len(state.best)} steps, run {state.runs_used}/{state.runs_max}"
        )

    # --- replaying ----------------------------------------------------------------------

    def replay(self, scenario: Scenario, *, until_failed: bool, most: int = 5) -> Replay:
        """Run a scenario's steps, each time in a fresh sandbox.

        A scenario that is to hold is run often enough to catch a failure as frequent as its file
        says; with `until_failed` the first failure is enough.
        """
        runs = min(most, search.tries_for(scenario.repro)) if scenario.repro else 1
        failed, done, last = 0, 0, Verdict(Outcome.NOT_EXERCISED)
        executor: Executor | None = None
        while done < runs:
            done += 1
            self.progress(f"replaying: run {done}/{runs}")
            last, executor = self._run(scenario.steps)
            failed += last.violation is not None and last.violation.name == scenario.violates
            if last.violation is not None or (until_failed and failed):
                break
        output = executor.last_output if executor is not None else ""
        return Replay(failed, done, last, Counter(self.setting.fired), output, self.setting.journal.path)

    def _violates(self, steps: Sequence[Step]) -> str | None:
        verdict, _ = self._run(steps)
        return verdict.violation.name if verdict.violation is not None else None

    def _run(self, steps: Sequence[Step]) -> tuple[Verdict, Executor]:
        """Apply recorded steps in a fresh sandbox, and judge."""

        def run(data: Any) -> tuple[Verdict, Executor]:
            machine = self._new_machine(len(steps))
            executor = machine._executor
            assert executor is not None
            values: dict[str, object] = {}
            try:
                for step in steps:
                    self._apply(executor, step, values, data)
                    if executor.violation is not None:
                        break
                return executor.finish(), executor
            finally:
                executor.close()

        verdict, executor = in_test_case(run)
        return verdict, executor

    def _apply(self, executor: Executor, step: Step, values: dict[str, object], data: Any) -> None:
        match step:
            case Inject():
                executor.inject(step)
            case Heal():
                executor.heal(step)
            case Op():
                self._apply_op(executor, step, values, data)

    def _apply_op(self, executor: Executor, step: Op, values: dict[str, object], data: Any) -> None:
        machine = executor.machine
        function, declared = self._rules[step.name]
        try:
            kwargs = {name: _resolved(value, values) for name, value in step.args.items()}
            draws = Draws([_resolved(value, values) for value in step.draws])
        except KeyError as missing:
            executor.skip(step, f"{missing.args[0]} was not produced in this run")
            return
        if not all(condition(machine) for condition in declared.preconditions):
            executor.skip(step, "its precondition does not hold in this run")
            return
        for name in declared.arguments.keys() - set(required_arguments(declared)):
            kwargs[name] = RecordedData(data, draws)
        machine._initialize_rules_to_run = [
            rule for rule in machine._initialize_rules_to_run if rule.function is not declared.function
        ]
        try:
            done, value = executor.op(step, function, kwargs)
        except UnsatisfiedAssumption:
            executor.skip(step, "what it assumes does not hold in this run")
            return
        if done and step.results:
            given = value.values if isinstance(value, MultipleResults) else (value,)
            for position, name in enumerate(step.results):
                if given:
                    values[name] = given[position % len(given)]


def _chosen(own: int, default: int, ours: int) -> int:
    """The author's own setting, where there is one that differs from Hypothesis's default."""
    return own if own != default else ours


def _resolved(value: object, values: dict[str, object]) -> Any:
    """A recorded value with this run's bundle values; a copy, which the author's rule may change."""
    if isinstance(value, Ref):
        return values[value.name]
    if type(value) is list:
        return [_resolved(item, values) for item in value]
    if type(value) is tuple:
        return tuple(_resolved(item, values) for item in value)
    if type(value) is dict:
        return {key: _resolved(item, values) for key, item in value.items()}
    return snapshot(value)


def _unavailable(faults: Sequence[Fault], session: Session) -> dict[str, str]:
    found = {}
    for fault in faults:
        reason = fault.unavailable(session)
        if reason is not None:
            found[fault.kind] = "; ".join(part for part in reason if part)
    return found


def _with_packages(modules: Sequence[ModuleType]) -> Iterator[ModuleType]:
    """Modules after the packages that they are in: under pytest's importlib mode no path leads to those."""
    for module in modules:
        parts = module.__name__.split(".")
        for length in range(1, len(parts)):
            package = sys.modules.get(".".join(parts[:length]))
            if package is not None and getattr(package, "__file__", None):
                yield package
        yield module


def _check_declarations(cls: type[ChaosMachine], topology: tuple[str, ...]) -> None:
    for fault in cls.faults:
        fault.candidates(topology)  # raises for a pattern that matches nothing
    for name in ("refusals", "unknowns"):
        declared = getattr(cls, name)
        if not isinstance(declared, tuple) or not all(
            isinstance(kind, type) and issubclass(kind, BaseException) for kind in declared
        ):
            raise InvalidSpecification(
                f"{cls.__name__}.{name} is {declared!r}; it is a tuple of exception classes such as (OSError,)"
            )
    if cls.backend not in BACKENDS:
        raise InvalidSpecification(f"{cls.__name__}.backend is {cls.backend!r}; allowed are {', '.join(BACKENDS)}")
    unknown = {cls.without} if isinstance(cls.without, str) else set(cls.without) - set(BUILTIN)
    if unknown:
        raise InvalidSpecification(
            f"{cls.__name__}.without names {', '.join(sorted(unknown))}; it is a tuple of names such as "
            f"({BUILTIN[0]!r},), and the built-in properties are {', '.join(BUILTIN)}"
        )
