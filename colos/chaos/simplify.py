"""Simpler steps to try in a step's place: fewer targets, milder parameters, smaller values.

What is simpler, the strategies know that the values were drawn from (`colos.chaos.choices`).  Arguments that
hold bundle values, and what ``st.data()`` drew inside a rule, are left as they are; but two results of a rule
may become one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, cast

from colos.chaos.choices import simpler_values, simplest_value, wilder_values
from colos.chaos.draws import exchanged
from colos.chaos.fault import Fault, matches
from colos.chaos.scenario import Heal, Inject, Op, Ref, Step, step_refs
from colos.chaos.values import refs

__all__ = ["Rules", "Simplifier"]

Rules: TypeAlias = Mapping[str, tuple[Callable[..., Any], Any]]
"""Every rule of the author's by name, as `machine.author_rules` gives them."""

_TARGETS_MOST = 6
_TIMES = ("seconds", "over_s", "ms", "delay_ms")  # the parameters of faults that say how long

#: How Hypothesis writes ``consumes(bundle)``, alone or inside another strategy.
_CONSUMED = re.compile(r"Bundle\(name='([^']*)', consume=True")


def _bundle_of(result: str) -> str:
    return result.rpartition("_")[0]


def _with_results(step: Step, instead: Mapping[str, str]) -> Step:
    """The step with other bundle values."""
    if not isinstance(step, Op) or not instead.keys() & step_refs(step):
        return step

    def other(part: object) -> object:
        return Ref(instead[part.name]) if isinstance(part, Ref) and part.name in instead else part

    return replace(step, args=exchanged(dict(step.args), other), draws=exchanged(tuple(step.draws), other))


def _is_longer(time: object, than: object) -> bool:
    return isinstance(time, int | float) and isinstance(than, int | float) and time > than


class Simplifier:
    """Gives the steps to try in a step's place, the simplest first.

    `rules` and `faults` are what the machine declares, `topology` the paths of the system's processes,
    `tolerance` how many of them may end before it gives up (None: any number).
    """

    def __init__(
        self, rules: Rules, faults: Sequence[Fault], topology: Sequence[str], tolerance: int | None = None
    ) -> None:
        self._rules = rules
        self._faults = faults
        self._topology = topology
        self._tolerance = tolerance
        self._consumed = {
            name
            for _, declared in rules.values()
            for strategy in declared.arguments.values()
            for name in _CONSUMED.findall(repr(strategy))
        }

    def __call__(self, step: Step) -> Iterator[Step]:
        """Steps as long and simpler; none for one that is as simple as can be."""
        match step:
            case Op():
                yield from self._simpler_op(step)
            case Inject():
                yield from self._simpler_fault(step)
            case Heal():
                return

    def merged(self, steps: Sequence[Step]) -> Iterator[tuple[Step, ...]]:
        """Lists without one op, in which a result of the same bundle that an earlier op gave does for its own.

        A bundle that some rule consumes is left alone: nothing there is used twice.
        """
        makers = [(index, step) for index, step in enumerate(steps) if isinstance(step, Op) and step.results]
        for at, (index, later) in reversed(list(enumerate(makers))):
            for _, earlier in makers[:at]:
                bundles = [_bundle_of(name) for name in later.results]
                if bundles == [_bundle_of(name) for name in earlier.results] and self._consumed.isdisjoint(bundles):
                    instead = dict(zip(later.results, earlier.results, strict=True))
                    yield tuple(_with_results(step, instead) for step in (*steps[:index], *steps[index + 1 :]))

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
        for fault, strategy, value in self._drawn(step):
            for args in simpler_values(strategy, value):
                yield replace(step, args=fault.shorten(cast("dict[str, object]", args)))

    def bolder(self, step: Step) -> Iterator[Step]:
        """The same fault for a longer time, the longest first: it may hit more often."""
        if not isinstance(step, Inject):
            return
        for fault, strategy, value in self._drawn(step):
            for wilder in wilder_values(strategy, value):
                args = cast("dict[str, object]", wilder)
                if any(_is_longer(args.get(name), value.get(name)) for name in _TIMES):
                    yield replace(step, args=fault.shorten(args))

    def permits(self, steps: Sequence[Step]) -> bool:
        """Whether the search itself might have come upon these steps.

        They end no more processes than the system survives, and no fault acts on a target twice at a time.
        """
        deaths = 0
        acting: dict[str, tuple[str, str | None]] = {}
        for step in steps:
            if isinstance(step, Heal):
                acting.pop(step.id, None)
            elif isinstance(step, Inject):
                fault = self._of(step)
                ends = fault.deaths(step.target, self._topology) if fault is not None else 0
                deaths += ends
                if (step.fault, step.target) in acting.values():
                    return False
                if not ends:  # what ends a process is over at once
                    acting[step.id] = (step.fault, step.target)
        return self._tolerance is None or deaths <= self._tolerance

    def _of(self, step: Inject) -> Fault | None:
        return next((fault for fault in self._faults if fault.kind == step.fault), None)

    def _drawn(self, step: Inject) -> Iterator[tuple[Fault, Any, dict[str, object]]]:
        """The declaration that the step came from, the strategy of its arguments, and what that drew."""
        fault = self._of(step)
        if fault is None or step_refs(step):
            return
        strategy = fault.arguments()
        names = simplest_value(strategy) or ()
        # Not every parameter that a step may carry is one that is drawn.
        yield fault, strategy, {name: value for name, value in fault.complete(step.args).items() if name in names}

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
