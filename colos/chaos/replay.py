"""Replaying a saved scenario: as often as it takes to say whether its failure is still there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from colos.chaos.executor import Setting
from colos.chaos.minimise import rate_of
from colos.chaos.outcomes import Replay, ReplayOutcome
from colos.chaos.properties import Outcome, Verdict
from colos.chaos.rerun import Rerun
from colos.chaos.scenario import Inject, Repro, Scenario

__all__ = ["LEAST_RUNS", "POWER", "power", "rate", "replay", "runs_needed"]

LEAST_RUNS = 3
"""A replay has at least so many runs; after a failure, at most so many in all."""
POWER = 0.99
"""The chance that a failure as frequent as the file says shows itself in the runs that are needed."""
_INCONCLUSIVE_MOST = 3


def rate(repro: Repro | None) -> float:
    """How often a failure is taken to happen: Laplace's estimate, which is never 0 and never 1.

    A file without a `repro`, such as one written by hand, says nothing, for which the estimate is 1/2.
    """
    return rate_of(repro or Repro(0, 0))


def runs_needed(repro: Repro | None) -> int:
    """How many runs without the failure say that it is gone, with 99 %: 3 or more."""
    return max(LEAST_RUNS, math.ceil(math.log(1 - POWER) / math.log(1 - rate(repro))))


def power(repro: Repro | None, runs: int) -> float:
    """The chance that a failure as frequent as `repro` says would have shown itself in so many runs."""
    return 1.0 - (1.0 - rate(repro)) ** runs


def replay(
    setting: Setting,
    rerun: Rerun,
    scenario: Scenario,
    *,
    until_failed: bool,
    most: int,
    progress: Callable[[str], None],
) -> Replay:
    """Run a scenario's steps, each time in a fresh sandbox, and say what became of its failure.

    As many runs as `runs_needed` says, at most `most`.  One failure decides that the scenario does not
    hold; whether it is *failed* or *flaky* is told by 3 runs, so that the replay ends after a failure as
    soon as it has had so many; with `until_failed` it ends at once.  A run without a verdict is no run: it
    is repeated, up to 3 times in all.  The journal that is named is the one of the run that is told of.
    """
    needed = min(most, runs_needed(scenario.repro))
    seen = _Seen(scenario, setting.journal.path)
    while seen.runs < needed and seen.inconclusive < _INCONCLUSIVE_MOST:
        progress(f"replaying: run {seen.runs + 1}/{needed}{f'; failed {seen.failed}' if seen.failed else ''}")
        verdict, executor = rerun(scenario.steps)
        if seen.take(verdict, executor.last_output, setting.journal.path):
            # The runs that follow write elsewhere: this one is what will be told.
            setting.journal.restart(_other(setting.journal.path))
        if seen.violated and (until_failed or seen.runs >= LEAST_RUNS):
            break
    return seen.told(Counter(setting.fired))


def _other(path: Path) -> Path:
    return path.with_name(f"{path.stem}-again{path.suffix}")


class _Seen:
    """What the runs so far came to, and the one that says most."""

    def __init__(self, scenario: Scenario, journal: Path) -> None:
        self.runs = self.failed = self.inconclusive = 0
        self._scenario = scenario
        self._faulty = any(isinstance(step, Inject) for step in scenario.steps)
        self._different = self._exercised = 0
        self._best = (-1, Verdict(Outcome.NOT_EXERCISED, reason="there was no run"), "", journal)
        self._spoilt = self._best

    @property
    def violated(self) -> int:
        """How many runs violated any property."""
        return self.failed + self._different

    def take(self, verdict: Verdict, output: str, journal: Path) -> bool:
        """Count a run; whether it violated something and says more than those before."""
        if verdict.outcome is Outcome.INCONCLUSIVE:
            self.inconclusive += 1
            self._spoilt = (0, verdict, output, journal)
            return False
        self.runs += 1
        self._exercised += verdict.outcome is not Outcome.NOT_EXERCISED or not self._faulty
        worth = 1
        if verdict.violation is not None:
            same = verdict.violation.name == self._scenario.violates
            self.failed += same
            self._different += not same
            worth = 3 if same else 2
        more = worth > self._best[0]
        if more:
            self._best = (worth, verdict, output, journal)
        return more and verdict.violation is not None

    def told(self, fired: Counter[str]) -> Replay:
        """The whole of it."""
        outcome = self._outcome()
        _, verdict, output, journal = self._spoilt if outcome is ReplayOutcome.INCONCLUSIVE else self._best
        reached = power(self._scenario.repro, self._exercised)
        return Replay(self._scenario, outcome, self.failed, self.runs, reached, verdict, fired, output, journal)

    def _outcome(self) -> ReplayOutcome:
        if self.failed:
            return ReplayOutcome.FAILED if self.failed == self.runs else ReplayOutcome.FLAKY
        if self._different:
            return ReplayOutcome.DIFFERENT
        if self.inconclusive >= _INCONCLUSIVE_MOST:
            return ReplayOutcome.INCONCLUSIVE
        return ReplayOutcome.FIXED if self._exercised else ReplayOutcome.NOT_EXERCISED
