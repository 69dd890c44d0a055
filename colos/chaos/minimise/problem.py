"""The problem that the passes work on: the best steps so far, and candidates with what was seen of them.

A candidate is a `Trial`, one for each list of steps that is not the same but for its faults' ids.
Outcomes of a trial are used in the order in which they were run, so runs in parallel lanes are
nothing but outcomes that are there before they are asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from typing import TypeAlias

from colos.chaos.minimise.budget import Budget, Progress
from colos.chaos.minimise.sequential import RatioTest, error_of, rate_of
from colos.chaos.minimise.steps import normalise, results_of
from colos.chaos.scenario import Repro, Step, identity

__all__ = ["BudgetSpentError", "Problem", "Runs", "Trial", "enough"]

Runs: TypeAlias = Callable[[Sequence[Sequence[Step]]], Sequence[str | None]]
"""Runs each list of steps in a fresh sandbox, side by side where it can.

It gives, in order, the full name of the property that was violated, or None.  What it raises
(`KeyboardInterrupt`, `HarnessBroken`) ends the search and reaches its caller.
"""

FEWEST = 5
"""As many runs measure steps that fail each time, and as many failures those that do not."""
MOST = 20
"""No more runs than these measure steps that fail now and then."""
NOISE = 0.005
"""How often steps without the bug may violate the same property all the same."""
_AHEAD_MOST = 64
"""No more guesses than these of what is asked for next."""
_DOUBT_MOST = 40
"""And no more than these measure steps that are about to be taken back."""
_RAREST = 0.1
"""Nothing is looked for that fails less often: to be sure of one step alone would take hundreds of runs."""
_LUCK = 1.5  # standard errors by which a measured rate may be off


class BudgetSpentError(Exception):
    """Unwinds a pass; never leaves this package."""


def enough(repro: Repro, most: int = MOST) -> bool:
    """Whether the rate is known well enough: the rarer the failure, the more runs that takes."""
    return repro.failed >= FEWEST or repro.runs >= most


@dataclass(eq=False)
class Trial:
    """Steps, and what their runs came to: True for our failure, False for none, None for what says little."""

    steps: tuple[Step, ...]
    failed: int = 0
    passed: int = 0
    #: It was taken back: whatever its runs said was luck.
    rejected: bool = False
    measured: Repro = field(default_factory=lambda: Repro(0, 0))
    _unused: deque[bool | None] = field(default_factory=deque)
    _was_masked: bool = False

    def add(self, violated: str | None, violates: str) -> None:
        """One run's outcome.  Another violation may have hidden ours, once; after that it speaks against it."""
        if violated is None or violated == violates:
            self._unused.append(violated is not None)
        else:
            self._unused.append(False if self._was_masked else None)
            self._was_masked = True

    @property
    def waiting(self) -> int:
        """How many outcomes nobody asked for yet."""
        return len(self._unused)

    def take(self) -> bool | None:
        """The next outcome, which counts from now on."""
        outcome = self._unused.popleft()
        self.failed += outcome is True
        self.passed += outcome is False
        return outcome


class Problem:
    """The best steps so far, and means to try others.  Passes know nothing else."""

    def __init__(
        self,
        run: Runs,
        steps: Sequence[Step],
        violates: str,
        repro: Repro,
        *,
        budget: Budget,
        lanes: int,
        progress: Callable[[Progress], None],
    ) -> None:
        self.phase = ""
        self.runs_left = 0
        self.budget = budget
        self._run = run
        self._violates = violates
        self._lanes = lanes
        self._progress = progress
        self._produced = results_of(steps)
        # By content, so that dropping either of two equal neighbours is one candidate.  To write steps
        # down takes a while, so lists of the same objects are known by them; kept here, they live on.
        self._by_content: dict[str, Trial] = {}
        self._by_objects: dict[tuple[int, ...], tuple[Trial, tuple[Step, ...]]] = {}
        self._steps_at_start = len(steps)
        #: How often a candidate fails, at the least, that is to be found.
        self.rate = max(rate_of(repro) - error_of(repro), _RAREST)
        self._rate_least = (rate_of(repro) - _LUCK * error_of(repro)) / 2
        original = self.trial(steps)
        original.measured = repro
        self._accepted = [original]

    @property
    def best(self) -> tuple[Step, ...]:
        """The shortest steps that were seen failing."""
        return self._accepted[-1].steps

    @property
    def measured(self) -> Repro:
        """How often the best steps fail, as far as it was measured."""
        return self._accepted[-1].measured

    @property
    def pooled(self) -> Repro:
        """The same together with what was seen of the original steps."""
        first, last = self._accepted[0].measured, self._accepted[-1].measured
        return first if len(self._accepted) == 1 else Repro(first.failed + last.failed, first.runs + last.runs)

    def trial(self, candidate: Iterable[Step]) -> Trial:
        """The candidate, without the steps that lost their meaning."""
        given = tuple(candidate)
        objects = tuple(map(id, given))
        if objects not in self._by_objects:
            steps = normalise(given, produced=self._produced)
            trial = self._by_content.setdefault(identity(steps, self._violates), Trial(steps))
            self._by_objects[objects] = trial, given
        return self._by_objects[objects][0]

    def look(self, trial: Trial, ahead: Iterable[Trial] = (), *, keeping: int = FEWEST) -> bool | None:
        """One more outcome of a trial.  Free lanes run what may be asked for next: the trials `ahead`."""
        if not trial.waiting:
            self._run_batch(trial, ahead, keeping)
        return trial.take()

    def _run_batch(self, trial: Trial, ahead: Iterable[Trial], keeping: int) -> None:
        if not self.budget.allows(keeping=keeping):
            raise BudgetSpentError
        self.budget.spend()
        batch, waiting = [trial], {trial: 1}
        guesses = islice(ahead, _AHEAD_MOST)
        while len(batch) < self._lanes and self.budget.allows(keeping=keeping):
            other = next(guesses, None)
            if other is None:
                break
            # It is asked for an outcome; it may have one that nobody took yet.
            waiting[other] = waiting.get(other, 0) + 1
            if waiting[other] > other.waiting:
                self.budget.spend()
                batch.append(other)
        for ran, violated in zip(batch, self._run([ran.steps for ran in batch]), strict=True):
            ran.add(violated, self._violates)
        self._tell()

    def _tell(self) -> None:
        budget = self.budget
        left = max(0, min(self.runs_left, budget.runs - budget.used))
        self._progress(
            Progress(self.phase, budget.used, budget.runs, budget.elapsed_s, self._steps_at_start, self.best, left)
        )

    def decide(self, trial: Trial, test: RatioTest, ahead: Iterable[Trial] = ()) -> bool:
        """What the test says of a trial, with as many runs as it takes."""
        while not trial.rejected:
            verdict = test.verdict(trial.failed, trial.passed)
            if verdict is not None:
                return verdict
            again = repeat(trial, test.passes_to_no(trial.failed, trial.passed) - 1)
            self.look(trial, chain(again, ahead))
        return False

    def accept(self, trial: Trial) -> None:
        """From now on it is the best."""
        self._accepted.append(trial)

    def take_back(self) -> None:
        """The best was accepted by luck: never again."""
        self._accepted.pop().rejected = True

    def measure(self, most: int = MOST) -> Repro:
        """How often the best steps fail, in runs of their own: those that got them accepted do not count."""
        trial = self._accepted[-1]
        self.phase = "measure"
        while not enough(trial.measured, most):
            self.runs_left = FEWEST - trial.measured.failed
            try:
                failed = self.look(trial, repeat(trial, self.runs_left - 1), keeping=0)
            except BudgetSpentError:
                break
            trial.measured = Repro(trial.measured.failed + bool(failed), trial.measured.runs + 1)
        if not trial.measured.runs:
            # Nothing is left to measure with: the runs that got it accepted are all that there is to say.
            trial.measured = Repro(trial.failed, trial.failed + trial.passed)
        return trial.measured

    def settle(self) -> bool:
        """Measure the best; whether there is reason to search on with what that showed.

        Steps that hardly ever fail, measured against the original ones, were accepted by luck: they
        are taken back, and so are those before them, until some recur.  Steps that fail less often
        than the search expected had candidates of theirs dismissed too soon.
        """
        known = self._accepted[-1]
        while len(self._accepted) > 1 and self._is_rare(self.measure()) and self._is_rare(self.measure(_DOUBT_MOST)):
            self.take_back()
        expected, self.rate = self.rate, max(min(self.rate, rate_of(self.measured)), _RAREST)
        return self._accepted[-1] is not known or self.rate < expected

    def _is_rare(self, measured: Repro) -> bool:
        return not measured.failed or rate_of(measured) < self._rate_least
