"""The passes of the search: each a plain function over a `Problem`, which makes its best steps better."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

from colos.chaos.minimise.problem import FEWEST, NOISE, Problem, Trial
from colos.chaos.minimise.sequential import RatioTest, error_of, rate_of
from colos.chaos.scenario import Heal, Inject, Step

__all__ = ["Shorter", "Variants", "drop_steps", "make_surer", "merge_steps", "simplify_steps"]

Variants: TypeAlias = Callable[[Step], Iterable[Step]]
"""Other steps to try in a step's place, the most promising first."""

Shorter: TypeAlias = Callable[[Sequence[Step]], Iterable[Sequence[Step]]]
"""Shorter lists to try in a list's place."""


# --- fewer steps -------------------------------------------------------------------------

_SURELY = 0.99  # needed: nobody tries to drop the step again
_HARDLY = 0.9  # how sure one may remain of a step once others went that may have mattered to it
_NEEDED_AT_FIRST = 2.5  # steps of a list, however long it is
_LAST_NEEDED = 0.5  # the search ended a run at the violation, so its last step has often led to it
Goes: TypeAlias = Sequence[frozenset[int]]
"""For each step of a list, the steps that go when it goes."""


def drop_steps(problem: Problem) -> None:
    """Delta debugging by probabilities (after Wang et al., ProbDD): drops what is the least likely to be needed.

    The sequential test runs for each step, not for each candidate: a run that passes without some
    steps raises the odds of each of them to be needed, the more the fewer they are.  So one run
    speaks about many steps, and the next one may ask about others.  A failure drops them all.
    """
    problem.phase = "drop steps"
    needed, goes = _at_first(problem.best), _goes_with(problem)
    while (chunk := _next_chunk(needed, goes)) is not None:
        problem.runs_left = _estimate(needed, goes, problem.rate)
        trial = _without(problem, chunk)
        if trial.rejected or (len(chunk) == 1 and _is_hopeless(problem, trial)):
            outcome: bool | None = False
        elif trial.failed:
            outcome = True
        else:
            outcome = problem.look(trial, _ahead(problem, chunk, needed, goes))
        if outcome:
            needed = _left(needed, problem.best, trial.steps)
            problem.accept(trial)
            goes = _goes_with(problem)
        elif outcome is False:
            needed = _after_pass(problem, trial, chunk, needed, goes)


def _at_first(steps: Sequence[Step]) -> list[float]:
    chance = min(0.3, _NEEDED_AT_FIRST / max(len(steps), 1))
    return [chance] * (len(steps) - 1) + [max(chance, _LAST_NEEDED)] * bool(steps)


def _goes_with(problem: Problem) -> Goes:
    """What goes when a step goes, by index: itself, and whatever has no meaning without it."""
    goes = []
    for index, dropped in enumerate(problem.best):
        kept = set(map(id, problem.trial(step for step in problem.best if step is not dropped).steps))
        goes.append(frozenset({index, *(at for at, step in enumerate(problem.best) if id(step) not in kept)}))
    return goes


def _none_needed(needed: Sequence[float], gone: Iterable[int]) -> float:
    return math.prod(1 - needed[index] for index in gone)


def _next_chunk(needed: Sequence[float], goes: Goes) -> frozenset[int] | None:
    """The steps, by index, whose dropping promises the most: the number that go times the chance that none is needed.

    A step with which a needed one would go is as needed as that.
    """
    of_all = [1 - _none_needed(needed, gone) for gone in goes]
    doubtful = sorted((index for index, chance in enumerate(of_all) if chance < _SURELY), key=of_all.__getitem__)
    best, gain_most, gone = 0, 0.0, frozenset[int]()
    for size, index in enumerate(doubtful, 1):
        gone |= goes[index]
        gain = len(gone) * _none_needed(needed, gone)
        if gain > gain_most:
            best, gain_most = size, gain
    return frozenset(doubtful[:best]) if doubtful else None


def _without(problem: Problem, chunk: frozenset[int]) -> Trial:
    return problem.trial(step for index, step in enumerate(problem.best) if index not in chunk)


def _after_pass(
    problem: Problem, trial: Trial, chunk: frozenset[int], needed: Sequence[float], goes: Goes
) -> list[float]:
    """How likely each step is needed, by Bayes's rule, after one run without those that `trial` lacks has passed."""
    gone = frozenset().union(*(goes[index] for index in chunk))
    scale = 1 - problem.rate * _none_needed(needed, gone)
    after = [min(1.0, chance / scale) if index in gone else chance for index, chance in enumerate(needed)]
    # What goes with a step that is dropped alone shares the blame for ever; it is asked about by itself.
    if len(chunk) == 1 and (trial.rejected or _is_hopeless(problem, trial)):
        after[min(chunk)] = 1.0
    return after


def _is_hopeless(problem: Problem, trial: Trial) -> bool:
    return not trial.failed and _hopeless(problem.rate).verdict(0, trial.passed) is False


@functools.cache
def _hopeless(rate: float) -> RatioTest:
    return RatioTest(NOISE, rate, false_no=1 - _SURELY)


def _left(needed: Sequence[float], before: Sequence[Step], after: Sequence[Step]) -> list[float]:
    """The chances of the steps that are left, of none of which one is sure any more."""
    known = {id(step): chance for step, chance in zip(before, needed, strict=True)}
    return [min(_HARDLY, known.get(id(step), _HARDLY)) for step in after]


def _ahead(problem: Problem, chunk: frozenset[int], needed: Sequence[float], goes: Goes) -> Iterator[Trial]:
    """What is asked for next as long as runs pass."""
    while True:
        needed = _after_pass(problem, _without(problem, chunk), chunk, needed, goes)
        following = _next_chunk(needed, goes)
        if following is None:
            return
        chunk = following
        yield _without(problem, chunk)


def _estimate(needed: Sequence[float], goes: Goes, rate: float) -> int:
    """How many runs it takes to be sure of every step, if half of the doubtful ones go with others."""
    each = math.log(1 - _SURELY) / math.log(1 - rate)
    doubtful = sum(1 - _none_needed(needed, gone) < _SURELY for gone in goes)
    return FEWEST + round(each * doubtful / 2)


# --- one step in the place of two ----------------------------------------------------------


def merge_steps(problem: Problem, merged: Shorter) -> None:
    """Take the first of the shorter lists that fails, and look again for those of it."""
    problem.phase = "merge steps"
    test = RatioTest(max(NOISE, problem.rate / 3), problem.rate)
    while True:
        trials = [problem.trial(steps) for steps in merged(problem.best)]
        for at, trial in enumerate(trials):
            problem.runs_left = FEWEST * (len(trials) - at)
            if problem.decide(trial, test, trials[at + 1 :]):
                problem.accept(trial)
                break
        else:
            return


# --- simpler steps -----------------------------------------------------------------------

_SHARE_OF_SIMPLIFYING = 0.25  # of the budget's runs: a shorter list is worth more than a smaller number


def simplify_steps(problem: Problem, simpler: Variants) -> None:
    """Fewer targets, milder parameters, smaller values: first everywhere at once, then step by step.

    What is as long has to fail about as often: the test is between the original's rate and a third of it.
    """
    problem.phase = "simplify"
    most = problem.budget.used + round(problem.budget.runs * _SHARE_OF_SIMPLIFYING)
    test = RatioTest(problem.rate / 3, problem.rate)

    def attempt(steps: Sequence[Step], following: Iterable[Sequence[Step]] = ()) -> bool:
        trial = problem.trial(steps)
        problem.runs_left = most - problem.budget.used + FEWEST
        if problem.budget.used >= most or len(trial.steps) > len(problem.best):
            return False
        if not problem.decide(trial, test, map(problem.trial, following)):
            return False
        problem.accept(trial)
        return True

    attempt([next(iter(simpler(step)), step) for step in problem.best])
    index = 0
    while index < len(problem.best) and problem.budget.used < most:
        best = problem.best
        candidates = [(*best[:index], other, *best[index + 1 :]) for other in simpler(best[index])]
        if not any(attempt(each, candidates[at + 1 :]) for at, each in enumerate(candidates)):
            index += 1


# --- surer steps -------------------------------------------------------------------------

_SURE_ENOUGH = 0.8
_SHARE_OF_SURER = 0.1  # of the budget's runs


def make_surer(problem: Problem, bolder: Variants, permits: Callable[[Sequence[Step]], bool]) -> None:
    """Steps that fail only now and then may fail nearly always if one is done twice, or lasts longer.

    That is worth one step more at most, and only where it shows at once: one passing run or a few say no.
    What `permits` refuses is not tried.
    """
    problem.phase = "make surer"
    most = problem.budget.used + round(problem.budget.runs * _SHARE_OF_SURER)
    rate = max(rate_of(known) + error_of(known) for known in (problem.measured, problem.pooled))
    if rate >= _SURE_ENOUGH:
        return
    # To keep a longer list by mistake is worse than to miss one that would have been better, and only a great gain is
    # worth looking for: this is done for each step, at the end of a search that has used its runs.
    test = RatioTest(rate, (3 + rate) / 4, false_yes=0.002, false_no=0.2)
    candidates = list(filter(permits, _bolder_lists(problem.best, bolder)))
    for at, steps in enumerate(candidates):
        problem.runs_left = most - problem.budget.used + FEWEST
        if problem.budget.used >= most:
            return
        trial = problem.trial(steps)
        if problem.decide(trial, test, map(problem.trial, candidates[at + 1 :])):
            problem.accept(trial)
            if rate_of(problem.measure()) <= rate:
                problem.take_back()
            return


def _bolder_lists(steps: Sequence[Step], bolder: Variants) -> Iterator[tuple[Step, ...]]:
    for index, step in enumerate(steps):
        for other in bolder(step):
            yield (*steps[:index], other, *steps[index + 1 :])
    ids = {step.id for step in steps if isinstance(step, Inject)}
    for index, step in reversed(list(enumerate(steps))):
        again = replace(step, id=_fresh(step.id, ids)) if isinstance(step, Inject) else step
        if not isinstance(step, Heal):
            yield (*steps[: index + 1], again, *steps[index + 1 :])


def _fresh(id_: str, taken: set[str]) -> str:
    while id_ in taken:
        id_ += "again"
    return id_
