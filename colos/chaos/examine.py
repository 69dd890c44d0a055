"""What is done with a failure that was found: confirm that it recurs, shorten it, save it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from colos.chaos import minimise as search
from colos.chaos.executor import Executor, Setting
from colos.chaos.outcomes import Failure, Options
from colos.chaos.properties import Violation
from colos.chaos.rerun import Rerun
from colos.chaos.scenario import Inject, Scenario, Step, save
from colos.errors import InvalidScenario

__all__ = ["Examiner"]


class Examiner:
    """Examines the failures of one test."""

    def __init__(
        self, setting: Setting, rerun: Rerun, test: str, options: Options, progress: Callable[[str], None]
    ) -> None:
        self._setting = setting
        self._rerun = rerun
        self._test = test
        self._options = options
        self._progress = progress

    def examine(self, found: Executor, directory: Path | None) -> Failure:
        """Confirm, minimise and, into `directory`, save what a run has violated."""
        violation, steps = found.violation, tuple(found.steps)
        assert violation is not None
        journal = self._setting.journal.path
        self._setting.journal.restart(journal.with_name(journal.stem + "-minimise.jsonl"))
        options = self._options
        budget = search.Budget(options.minimise_runs, options.minimise_s)
        self._progress(f"found: {violation.name} is violated after {len(steps)} steps; confirming")
        repro = search.confirm(self._violates, steps, violation.name, runs=options.confirm_runs, budget=budget)
        self._progress(f"confirmed: {repro.failed} of {repro.runs} runs fail the same way; minimising")
        small = search.minimise(self._violates, steps, violation.name, repro, budget=budget, progress=self._say)
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

    def _violates(self, steps: Sequence[Step]) -> str | None:
        verdict, _ = self._rerun(steps)
        return verdict.violation.name if verdict.violation is not None else None

    def _say(self, state: search.Progress) -> None:
        self._progress(
            f"minimising: {state.steps_at_start} → {len(state.best)} steps, run {state.runs_used}/{state.runs_max}"
        )

    def _save(self, violation: Violation, small: search.Minimised, directory: Path) -> tuple[Path | None, str]:
        """The saved scenario, or why there is none: a failure is reported all the same."""
        if not small.repro.failed:
            return None, ""
        used = {step.fault for step in small.steps if isinstance(step, Inject)}
        mechanisms = {kind: name for kind, name in self._setting.mechanisms.items() if kind in used}
        scenario = Scenario(self._test, violation.name, small.steps, small.repro, mechanisms=mechanisms)
        try:
            return save(scenario, directory), ""
        except (InvalidScenario, OSError) as error:
            return None, str(error)
