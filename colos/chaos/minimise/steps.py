"""Lists of steps that make sense: what is left once some of them are dropped."""

from __future__ import annotations

from collections.abc import Iterable

from colos.chaos.scenario import Heal, Inject, Op, Step, step_refs

__all__ = ["normalise", "results_of"]


def normalise(steps: Iterable[Step], *, produced: Iterable[str] | None = None) -> tuple[Step, ...]:
    """The steps without those that lost their meaning, in one walk from first to last.

    A heal goes if no fault before it has its id; an op or a fault goes if it refers to a result
    whose op is gone, and so does whatever refers to *its* results.  `produced` are the names that
    some op produces in the full list (by default, in `steps`): a reference to any other is let be.
    """
    steps = tuple(steps)
    missing = set(results_of(steps) if produced is None else produced)
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


def results_of(steps: Iterable[Step]) -> set[str]:
    """The names of all bundle values that the steps produce."""
    return {name for step in steps if isinstance(step, Op) for name in step.results}
