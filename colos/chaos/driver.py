"""What is done with a machine: explore it, or replay a scenario; and with a failure: confirm, minimise, save.

One `Driver` serves one item.  It makes each run's machine and executor; the searching is in
`explore`, what follows a failure in `examine`, replaying in `replay`, shortening a saved one in `minimise`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from colos.chaos.ctrlc import CtrlC
from colos.chaos.examine import Examiner
from colos.chaos.executor import Deadlines, Executor, Setting
from colos.chaos.explore import explore
from colos.chaos.hostlock import turn
from colos.chaos.lanes import Lanes, how_many
from colos.chaos.machine import ChaosMachine, author_rules, in_time
from colos.chaos.minimise import Minimised
from colos.chaos.outcomes import Exploration, Failure, Options, Replay
from colos.chaos.properties import Verdict
from colos.chaos.replay import replay
from colos.chaos.rerun import Rerun
from colos.chaos.sandbox.session import Session
from colos.chaos.scenario import Inject, Scenario, Step, renamed
from colos.chaos.setting import prepare
from colos.chaos.simplify import Simplifier

__all__ = ["Driver"]

Progress = Callable[[str], None]


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
        shared: bool = False,
        progress: Progress = lambda _: None,
    ) -> None:
        """`make` gives a machine for each run; `shared` says that these have something in common."""
        self.cls = cls
        self.test = test
        self.options = options or Options()
        self.progress = progress
        self._make = make or cls
        self._shared = shared
        self._ctrl_c = CtrlC()
        self.setting = prepare(cls, session, journal, self.options.deadlines or Deadlines(step_s=cls.deadline_s))
        self.unavailable = self.setting.unavailable
        self._rules = author_rules(cls)
        self._rerun = Rerun(self._rules, self._new_machine)

    def close(self) -> None:
        """End the event loop and the journal."""
        self.setting.outlet.close()
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
        return self._machine_in(self.setting, steps)

    def _machine_in(self, setting: Setting, steps: int) -> ChaosMachine:
        self._ctrl_c.check()
        machine = in_time(setting.deadlines.outside_s, f"{self.cls.__name__}.__init__", self._make)
        machine._executor = Executor(setting, machine, planned=steps)
        machine._unavailable = self.unavailable
        return machine

    def explore(self, known: dict[str, Scenario], directory: Path | None) -> Exploration:
        """Search; confirm, minimise and save what is found.  `known` are failures to count and pass over."""
        with self._turn({fault.kind for fault in self.cls.faults}):
            exploration, violating = explore(
                self.setting, self._new_machine, self._rerun, self.cls, known, self.options, self.progress
            )
            exploration.unavailable, exploration.never_drawn = self.unavailable, self.cls.never_drawn()
            if violating is not None:
                exploration.failure = self.examine(violating, directory)
        return exploration

    def run(self, steps: Sequence[Step]) -> tuple[Verdict, Executor]:
        """Apply recorded steps once, in a fresh sandbox, and judge."""
        return self._rerun(steps)

    def examine(self, violating: Executor, directory: Path | None) -> Failure:
        """Confirm, minimise and, into `directory`, save what a run has violated."""
        assert violating.violation is not None
        with self._examiner(violating.steps, violating.violation.name) as examiner:
            return examiner.examine(violating, directory)

    def minimise(self, scenario: Scenario) -> Minimised:
        """Confirm a scenario's failure again, and shorten it; one that does not recur comes back as it is."""
        with self._turn(_faults_of(scenario)), self._examiner(scenario.steps, scenario.violates) as examiner:
            return examiner.shorten(scenario)

    def _turn(self, faults: Iterable[str]) -> AbstractContextManager[None]:
        return turn(self.setting, faults, self.progress)

    @contextmanager
    def _examiner(self, steps: Sequence[Step], violates: str) -> Iterator[Examiner]:
        """An examiner whose runs go on beside each other where nothing is against it.

        Fixtures are shared by all runs of an item; and only in the main thread can a function be ended that blocks.
        """
        alone = self._shared or self.setting.interrupted or violates.startswith("hang:")
        count = how_many(self.setting, steps, alone=alone)
        system = self.setting.system
        simplifier = Simplifier(self._rules, self.cls.faults, system.topology(), system.tolerance())
        with Lanes(self.setting, self._rules, self._machine_in, count) as lanes:
            yield Examiner(self.setting, lanes, self.test, self.options, self.progress, simplifier, self._today)

    def _today(self, saved: Scenario) -> Scenario:
        return renamed(saved, self.cls.aliases)

    def replay(self, scenario: Scenario, *, until_failed: bool = False) -> Replay:
        """Run a scenario's steps, each time in a fresh sandbox, until it is known whether its failure is there."""
        with self._turn(_faults_of(scenario)):
            return replay(
                self.setting,
                self._rerun,
                scenario,
                until_failed=until_failed,
                most=self.options.replay_runs,
                progress=self.progress,
            )


def _faults_of(scenario: Scenario) -> set[str]:
    return {step.fault for step in scenario.steps if isinstance(step, Inject)}
