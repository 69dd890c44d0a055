"""What is done with a failure that was found: confirm that it recurs, shorten it, save it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from colos import __version__
from colos.chaos import minimise as search
from colos.chaos.executor import Executor, Setting
from colos.chaos.lanes import Lanes
from colos.chaos.outcomes import Failure, Options
from colos.chaos.properties import Violation
from colos.chaos.scenario import Inject, Repro, Scenario, Step, save
from colos.chaos.simplify import Simplifier
from colos.errors import InvalidScenario

__all__ = ["Examiner"]


class Examiner:
    """Examines the failures of one test."""

    def __init__(
        self,
        setting: Setting,
        lanes: Lanes,
        test: str,
        options: Options,
        progress: Callable[[str], None],
        simplifier: Simplifier,
        today: Callable[[Scenario], Scenario],
    ) -> None:
        self._setting = setting
        self._lanes = lanes
        self._test = test
        self._options = options
        self._progress = progress
        #: What gives simpler and bolder steps.
        self._simplifier = simplifier
        #: A saved scenario in today's names.
        self._today = today

    def examine(self, found: Executor, directory: Path | None) -> Failure:
        """Confirm, minimise and, into `directory`, save what a run has violated."""
        violation, steps = found.violation, tuple(found.steps)
        assert violation is not None
        journal = self._setting.journal.path
        self._setting.journal.restart(journal.with_name(journal.stem + "-minimise.jsonl"))
        self._progress(f"found: {violation.name} is violated after {len(steps)} steps; confirming")
        small = self._shorten(steps, violation.name)
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
            small.runs_used,
        )

    def shorten(self, scenario: Scenario) -> search.Minimised:
        """Confirm and minimise a scenario's steps for the property that it violates.

        `repro.failed` of 0 says that it did not fail; its steps come back as they are.
        """
        self._progress(f"confirming: {len(scenario.steps)} steps that violate {scenario.violates}")
        return self._shorten(scenario.steps, scenario.violates)

    def _shorten(self, steps: Sequence[Step], violates: str) -> search.Minimised:
        """What the search makes of the steps; `runs_used` counts the confirming runs too."""
        options = self._options
        budget = search.Budget(options.minimise_runs, options.minimise_s)
        repro = search.confirm(
            self._run,
            steps,
            violates,
            budget=budget,
            lanes=self._lanes.count,
            most=options.confirm_runs,
            progress=self._say_confirming,
        )
        self._progress(
            f"confirmed: {repro.failed} of {repro.runs} runs fail the same way; minimising"
            if repro.failed
            else f"unreproduced: none of {repro.runs} runs fails the same way"
        )
        variants = self._simplifier
        small = search.minimise(
            self._run,
            steps,
            violates,
            repro,
            budget=budget,
            lanes=self._lanes.count,
            merged=variants.merged,
            simpler=variants,
            bolder=variants.bolder,
            permits=variants.permits,
            progress=self._say,
        )
        return search.Minimised(small.steps, small.repro, budget.used, small.exhausted)

    def _run(self, batch: Sequence[Sequence[Step]]) -> list[str | None]:
        verdicts = [verdict for verdict, _ in self._lanes(batch)]
        return [None if verdict.violation is None else verdict.violation.name for verdict in verdicts]

    def _say_confirming(self, repro: Repro) -> None:
        self._progress(f"confirming: {repro.failed} of {repro.runs} runs failed the same way")

    def _say(self, state: search.Progress) -> None:
        self._progress(
            f"minimising: {state.steps_at_start} → {len(state.best)} steps, {state.phase}, "
            f"run {state.runs_used}/{state.runs_max}, about {state.runs_left} runs ({state.seconds_left:.0f} s) left"
        )

    def _save(self, violation: Violation, small: search.Minimised, directory: Path) -> tuple[Path | None, str]:
        """The saved scenario, or why there is none: a failure is reported all the same."""
        if not small.repro.failed:
            return None, ""
        used = {step.fault for step in small.steps if isinstance(step, Inject)}
        mechanisms = {kind: name for kind, name in self._setting.mechanisms.items() if kind in used}
        scenario = Scenario(
            self._test,
            violation.name,
            small.steps,
            small.repro,
            mechanisms=mechanisms,
            tier=self._setting.session.tier,
            versions={"colos": __version__, "python": platform.python_version()},
        )
        try:
            return save(scenario, directory, self._today), ""
        except (InvalidScenario, OSError) as error:
            return None, str(error)
