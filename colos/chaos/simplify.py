"""Simpler steps to try in a step's place: fewer targets, milder parameters, smaller values.

What is simpler, the strategies know that the values were drawn from (`colos.chaos.choices`).  Arguments that
hold bundle values, and what ``st.data()`` drew inside a rule, are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, cast

from colos.chaos.choices import simpler_values, simplest_value
from colos.chaos.fault import Fault, matches
from colos.chaos.scenario import Heal, Inject, Op, Step, step_refs
from colos.chaos.values import refs

__all__ = ["Simplifier"]

Rules: TypeAlias = Mapping[str, tuple[Callable[..., Any], Any]]
"""Every rule of the author's by name, as `machine.author_rules` gives them."""

_TARGETS_MOST = 6


class Simplifier:
    """Gives the steps to try in a step's place, the simplest first.

    `rules` and `faults` are what the machine declares, `topology` the paths of the system's processes.
    """

    def __init__(self, rules: Rules, faults: Sequence[Fault], topology: Sequence[str]) -> None:
        self._rules = rules
        self._faults = faults
        self._topology = topology

    def __call__(self, step: Step) -> Iterator[Step]:
        """Steps as long and simpler; none for one that is as simple as can be."""
        match step:
            case Op():
                yield from self._simpler_op(step)
            case Inject():
                yield from self._simpler_fault(step)
            case Heal():
                return

    def _simpler_op(self, step: Op) -> Iterator[Step]:
        if step.name not in self._rules:
            return
        strategies = self._rules[step.name][1].arguments
        candidates = {
            name: list(simpler_values(strategies[name], value))
            for name, value in step.args.items()
            if name in strategies and not any(refs(value))
        }
        yield from (replace(step, args={**step.args, **args}) for args in _one_by_one(candidates))

    def _simpler_fault(self, step: Inject) -> Iterator[Step]:
        yield from (replace(step, target=target) for target in self._fewer(step.target))
        fault = next((fault for fault in self._faults if fault.kind == step.fault), None)
        if fault is None or step_refs(step):
            return
        strategy = fault.arguments()
        drawn = simplest_value(strategy)
        # Not every parameter that a step may carry is one that is drawn.
        value = {name: value for name, value in fault.complete(step.args).items() if name in (drawn or ())}
        for args in simpler_values(strategy, value):
            yield replace(step, args=fault.shorten(cast("dict[str, object]", args)))

    def _fewer(self, target: str | None) -> list[str]:
        """Each of the processes that a pattern means."""
        if target is None or target in self._topology:
            return []
        return [path for path in self._topology if matches(path, target)][:_TARGETS_MOST]


def _one_by_one(candidates: Mapping[str, list[object]]) -> Iterator[dict[str, object]]:
    """All arguments at their simplest together, then each by itself."""
    simplest = {name: values[0] for name, values in candidates.items() if values}
    if len(simplest) > 1:
        yield simplest
    for name, values in candidates.items():
        yield from ({name: value} for value in values)
