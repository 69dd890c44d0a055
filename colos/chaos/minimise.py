"""From a failing list of steps to the shortest one that still fails in the same way.

A pure search: it knows steps, and a function that runs them and says which property was violated.
Outcomes of real faults are noisy, so one passing run proves little.  How much it proves follows
from how often the original steps failed: a candidate is run until it fails, or until a failure as
frequent as the original's would have shown itself with 95 %.  Only a violation of *the same
property* counts; a run that ends in another one tells nothing and is repeated, once.

The search is a list of passes, each a plain function over a `Problem`.  Arguments are left as they
are: what else a rule would accept, only its strategies know.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from colos.chaos.scenario import Heal, Inject, Op, Repro, Step, identity, step_refs

__all__ = ["Budget", "Minimised", "Progress", "Runs", "confirm", "minimise", "normalise", "tries_for"]

Runs: TypeAlias = Callable[[Sequence[Step]], str | None]
"""Runs steps in a fresh sandbox; the full name of the violated property, or None.

Its exceptions (`KeyboardInterrupt`, `HarnessBroken`) end the search and reach its caller.
"""

_MISS_CHANCE = 0.05  # that a candidate that still fails, as often as the original, is taken for one that does not
_TRIES_MAX = 10
_ROUNDS_MAX = 3


@dataclass
class Budget:
    """At most so many `runs`, and no new one after so many `seconds` since the first."""

    runs: int
    seconds: float
    clock: Callable[[], float] = time.monotonic
    used: int = field(default=0, init=False)
    _started_s: float | None = field(default=None, init=False, repr=False)

    def spend(self) -> None:
        """Counts one run, which is about to begin."""
        if self._started_s is None:
            self._started_s = self.clock()
        self.used += 1

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first run began."""
        return 0.0 if self._started_s is None else self.clock() - self._started_s

    def allows(self, *, keeping: int = 0) -> bool:
        """Whether one more run may begin while `keeping` more, of average length, still fit afterwards."""
        kept_s = keeping * self.elapsed_s / max(self.used, 1)
        return self.used + keeping < self.runs and self.elapsed_s + kept_s < self.seconds


@dataclass(frozen=True)
class Progress:
    """Where the search is, told after every run; `best` are the shortest failing steps so far."""

    phase: str
    runs_used: int
    runs_max: int
    elapsed_s: float
    steps_at_start: int
    best: tuple[Step, ...]


@dataclass(frozen=True)
class Minimised:
    """The shortest steps found, each seen failing; `exhausted` when the budget ended the search."""

    steps: tuple[Step, ...]
    repro: Repro
    runs_used: int
    exhausted: bool


def confirm(run: Runs, steps: Sequence[Step], violates: str, *, runs: int = 5, budget: Budget) -> Repro:
    """How often `steps` violate that very property in `runs` runs, or as many as the budget allows."""
    failed = done = 0
    while done < runs and budget.allows():
        budget.spend()
        failed += run(steps) == violates
        done += 1
    return Repro(failed, done)


def minimise(
    run: Runs,
    steps: Sequence[Step],
    violates: str,
    repro: Repro,
    *,
    budget: Budget,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Minimised:
    """The shortest list of `steps` that violates the same property, as far as the budget goes.

    `repro` is what `confirm` said of `steps`; steps that never failed again come back as they are.
    The result's own `repro` is measured afresh, as often as the original's and at least 5 times.
    Whatever `run` or `progress` raises passes through; `Progress.best` is then what is left.
    """
    problem = Problem(run, steps, violates, repro, budget, progress)
    used_before = budget.used
    exhausted = False
    measured = repro
    for _ in range(_ROUNDS_MAX if repro.failed else 0):
        tries = problem.tries
        try:
            for search in (drop_everything, drop_kinds, drop_faults, bisect):
                problem.phase = search.__name__.replace("_", " ")
                search(problem)
        except _BudgetSpentError:
            exhausted = True
        found = problem.best
        measured = problem.measure_best()
        # Another round if the steps found fail less often, for then candidates were rejected on too
        # little; or if they were taken back, for then those that came after them were never tried.
        if exhausted or (problem.tries == tries and problem.best == found):
            break
    return Minimised(problem.best, measured, budget.used - used_before, exhausted)


def tries_for(repro: Repro) -> int:
    """How many runs without a failure it takes to believe that steps do not fail as often as `repro` says."""
    if repro.failed >= repro.runs:
        return 1
    if repro.failed == 0:
        return _TRIES_MAX
    needed = math.log(_MISS_CHANCE) / math.log(1 - repro.failed / repro.runs)
    return min(_TRIES_MAX, math.ceil(needed))


def normalise(steps: Iterable[Step], *, produced: Iterable[str] | None = None) -> tuple[Step, ...]:
    """The steps without those that lost their meaning, in one walk from first to last.

    A heal goes if no fault before it has its id; an op or a fault goes if it refers to a result
    whose op is gone, and so does whatever refers to *its* results.  `produced` are the names that
    some op produces in the full list (by default, in `steps`): a reference to any other is let be.
    """
    steps = tuple(steps)
    missing = set(_results(steps) if produced is None else produced)
    begun: set[str] = set()
    kept: list[Step] = []
    for step in steps:
        if isinstance(step, Heal):
            if step.id not in begun:
                continue
        elif missing and not missing.isdisjoint(step_refs(step)):
            continue
        if isinstance(step, Inject):
            begun.add(step.id)
        elif isinstance(step, Op):
            missing.difference_update(step.results)
        kept.append(step)
    return tuple(kept)


def _results(steps: Iterable[Step]) -> set[str]:
    return {name for step in steps if isinstance(step, Op) for name in step.results}


# --- the problem -------------------------------------------------------------------------


class _BudgetSpentError(Exception):
    """Unwinds a pass; never leaves this module."""


@dataclass
class _Evidence:
    """What was seen of one candidate: runs that failed in the same way, and runs that speak against it."""

    failed: int = 0
    passed: int = 0
    runs: int = 0
    was_masked: bool = False  # one run ended in another violation, which may have hidden ours
    measured: Repro | None = None

    def reject(self) -> None:
        """Its failure was bad luck: never accept it again."""
        self.failed, self.passed = 0, _TRIES_MAX


class Problem:
    """The best steps so far, and `attempt`, which tries to better them.  Passes know nothing else."""

    def __init__(
        self,
        run: Runs,
        steps: Sequence[Step],
        violates: str,
        repro: Repro,
        budget: Budget,
        progress: Callable[[Progress], None],
    ) -> None:
        self.best = tuple(steps)
        self.phase = ""
        self.tries = tries_for(repro)
        self._run = run
        self._violates = violates
        self._budget = budget
        self._progress = progress
        self._measure_runs = max(5, repro.runs)
        self._produced = _results(self.best)
        self._original = self.best
        self._original_repro = repro
        # By content, so that dropping either of two equal neighbours is one candidate.
        self._seen: dict[str, _Evidence] = {}
        self._accepted: list[tuple[Step, ...]] = []

    def attempt(self, candidate: Iterable[Step]) -> bool:
        """Whether the candidate, made sensible, is shorter than the best and fails too; it then is the best."""
        steps = normalise(candidate, produced=self._produced)
        if len(steps) >= len(self.best) or not self._fails(steps):
            return False
        self.best = steps
        self._accepted.append(steps)
        return True

    def _fails(self, steps: tuple[Step, ...]) -> bool:
        evidence = self._evidence(steps)
        while not evidence.failed and evidence.passed < self.tries:
            if not self._budget.allows(keeping=self._measure_runs):
                raise _BudgetSpentError
            self._run_once(steps)
        return evidence.failed > 0

    def _evidence(self, steps: tuple[Step, ...]) -> _Evidence:
        return self._seen.setdefault(identity(steps, self._violates), _Evidence())

    def _run_once(self, steps: tuple[Step, ...]) -> bool:
        evidence = self._evidence(steps)
        self._budget.spend()
        violated = self._run(steps)
        evidence.runs += 1
        failed = violated == self._violates
        if failed:
            evidence.failed += 1
        elif violated is None or evidence.was_masked:
            evidence.passed += 1
        else:
            evidence.was_masked = True
        self._tell()
        return failed

    def _tell(self) -> None:
        budget = self._budget
        self._progress(Progress(self.phase, budget.used, budget.runs, budget.elapsed_s, len(self._original), self.best))

    def measure_best(self) -> Repro:
        """How often the best steps fail.

        Steps that failed once and never again when measured were bad luck: then the accepted ones
        before them are measured, and so on back to the original steps.  The best is what recurs.
        """
        self.phase = "measure"
        while self._accepted:
            measured = self._measure(self.best)
            if measured.failed:
                self.tries = max(self.tries, tries_for(measured))
                return measured
            self._evidence(self.best).reject()
            self._accepted.pop()
            self.best = self._accepted[-1] if self._accepted else self._original
        return self._original_repro

    def _measure(self, steps: tuple[Step, ...]) -> Repro:
        evidence = self._evidence(steps)
        if evidence.measured is None:
            failed = done = 0
            while done < self._measure_runs and self._budget.allows():
                failed += self._run_once(steps)
                done += 1
            # Nothing left to measure with: the runs that got the steps accepted are all that there is to say.
            evidence.measured = Repro(failed, done) if done else Repro(evidence.failed, evidence.runs)
        return evidence.measured


# --- passes, biggest pieces first --------------------------------------------------------


def drop_everything(problem: Problem) -> None:
    """A system that fails by merely starting needs no steps; else, do only its faults or only its ops matter?"""
    problem.attempt(())
    problem.attempt([step for step in problem.best if not isinstance(step, Op)])
    problem.attempt([step for step in problem.best if isinstance(step, Op)])


def drop_kinds(problem: Problem) -> None:
    """All ops of one name at once, and all faults of one kind."""
    for kind in dict.fromkeys(map(_kind, problem.best)):
        problem.attempt([step for step in problem.best if _kind(step) != kind])


def _kind(step: Step) -> tuple[type, str]:
    match step:
        case Op():
            return Op, step.name
        case Inject():
            return Inject, step.fault
        case Heal():
            return Heal, ""


def drop_faults(problem: Problem) -> None:
    """Each fault with its heal, last first: ops that only set the scene come before the fault that matters."""
    for fault in reversed([step for step in problem.best if isinstance(step, Inject)]):
        problem.attempt([step for step in problem.best if step is not fault])


def bisect(problem: Problem) -> None:
    """Delta debugging: drops ever smaller runs of steps, from half of them to single ones, until none can be spared."""
    parts = 2
    while len(problem.best) >= 2:
        before = problem.best
        size = max(1, len(before) // parts)
        starts = range(0, len(before), size)
        if any(problem.attempt(before[:start] + before[start + size :]) for start in starts):
            parts = max(parts - 1, 2)
        elif size == 1:
            return
        else:
            parts = min(len(before), parts * 2)
