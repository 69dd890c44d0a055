"""Replaying a saved scenario: as often as it takes to say whether its failure is still there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from colos.chaos import minimise as search
from colos.chaos.executor import Executor, Setting
from colos.chaos.outcomes import Replay, ReplayOutcome
from colos.chaos.properties import Outcome, Verdict
from colos.chaos.rerun import Rerun
from colos.chaos.scenario import Scenario

__all__ = ["replay"]


def replay(
    setting: Setting,
    rerun: Rerun,
    scenario: Scenario,
    *,
    until_failed: bool,
    most: int,
    progress: Callable[[str], None],
) -> Replay:
    """Run a scenario's steps, each time in a fresh sandbox.

    A scenario that is to hold is run often enough to catch a failure as frequent as its file
    says; with `until_failed` the first failure is enough.
    """
    runs = min(most, search.tries_for(scenario.repro)) if scenario.repro else 1
    failed, done, last = 0, 0, Verdict(Outcome.NOT_EXERCISED)
    executor: Executor | None = None
    while done < runs:
        done += 1
        progress(f"replaying: run {done}/{runs}")
        last, executor = rerun(scenario.steps)
        failed += last.violation is not None and last.violation.name == scenario.violates
        if last.violation is not None or (until_failed and failed):
            break
    output = executor.last_output if executor is not None else ""
    if failed:
        outcome = ReplayOutcome.FAILED
    elif last.violation is not None:
        outcome = ReplayOutcome.DIFFERENT
    else:
        outcome = ReplayOutcome.NOT_EXERCISED if last.outcome is Outcome.NOT_EXERCISED else ReplayOutcome.FIXED
    return Replay(scenario, outcome, failed, done, 0.0, last, Counter(setting.fired), output, setting.journal.path)
