"""From a failing list of steps to the shortest one that still fails in the same way.

A pure search: it knows steps, and a function that runs batches of them and says which property each
violated.  Outcomes of real faults are noisy, so one passing run proves little.  How much it proves
follows from how often the original steps failed; the sequential probability ratio test says when
enough was seen.  Only a violation of *the same property* counts; a run that ends in another one tells
nothing, once, and is repeated.

The search is a list of passes, each a plain function over a `Problem`: fewer steps, one in the place of two,
simpler ones, surer ones.  In between, the best is measured, and taken back if it hardly ever fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from colos.chaos.minimise.budget import Budget, Progress
from colos.chaos.minimise.passes import Shorter, Variants, drop_steps, make_surer, merge_steps, simplify_steps
from colos.chaos.minimise.problem import FEWEST, MOST, BudgetSpentError, Problem, Runs, enough
from colos.chaos.minimise.sequential import rate_of
from colos.chaos.minimise.steps import normalise
from colos.chaos.scenario import Repro, Step

__all__ = ["Budget", "Minimised", "Progress", "Runs", "confirm", "minimise", "normalise", "rate_of"]

_ROUNDS_MAX = 3


@dataclass(frozen=True)
class Minimised:
    """The best steps found, and how often they fail; `exhausted` when the budget ended the search."""

    steps: tuple[Step, ...]
    repro: Repro
    runs_used: int
    exhausted: bool


def confirm(
    run: Runs,
    steps: Sequence[Step],
    violates: str,
    *,
    budget: Budget,
    lanes: int = 1,
    most: int = 30,
    progress: Callable[[Repro], None] = lambda _: None,
) -> Repro:
    """How often `steps` violate that very property, in as many runs as it takes to know well enough.

    Five failures are enough, be it in five runs or in fifteen, and so are some in 20.  Steps that never fail are
    run `most` times, or as often as the budget allows.  `progress` is told after every batch.
    """
    repro = Repro(0, 0)
    while not enough(repro, min(most, MOST) if repro.failed else most):
        batch = 0
        while batch < min(lanes, FEWEST - repro.failed, most - repro.runs) and budget.allows():
            budget.spend()
            batch += 1
        if not batch:
            break
        violated = run([steps] * batch)
        repro = Repro(repro.failed + list(violated).count(violates), repro.runs + batch)
        progress(repro)
    return repro


def minimise(
    run: Runs,
    steps: Sequence[Step],
    violates: str,
    repro: Repro,
    *,
    budget: Budget,
    lanes: int = 1,
    merged: Shorter = lambda _: (),
    simpler: Variants = lambda _: (),
    bolder: Variants = lambda _: (),
    permits: Callable[[Sequence[Step]], bool] = lambda _: True,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Minimised:
    """The best list of `steps` that violates the same property, as far as the budget goes: short, then sure.

    `repro` is what `confirm` said of `steps`; steps that never failed again come back as they are.
    `merged` gives shorter lists in which one step does for two.
    `simpler` gives steps to try in a step's place, the simplest first, and stops giving any in the end;
    `bolder` gives some that may fail more often, and `permits` says which longer lists may be run.
    With several `lanes`, batches of so many lists are run.  The result's own `repro` is measured afresh.
    Whatever `run` or `progress` raises passes through; `Progress.best` is then what is left.
    """
    if not repro.failed:
        return Minimised(tuple(steps), repro, 0, exhausted=False)
    used_before = budget.used
    problem = Problem(run, steps, violates, repro, budget=budget, lanes=lanes, progress=progress)
    exhausted = False
    try:
        for _ in range(_ROUNDS_MAX):
            drop_steps(problem)
            if not problem.settle():
                break
        merge_steps(problem, merged)
        simplify_steps(problem, simpler)
        problem.settle()
        make_surer(problem, bolder, permits)
    except BudgetSpentError:
        exhausted = True
    problem.settle()
    return Minimised(problem.best, problem.measured, budget.used - used_before, exhausted)
