"""Running recorded steps again: each time a fresh machine, a fresh sandbox, the same interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis.errors import UnsatisfiedAssumption
from hypothesis.stateful import MultipleResults

from colos.chaos.bridge import in_test_case
from colos.chaos.draws import Draws, RecordedData, exchanged
from colos.chaos.executor import Executor
from colos.chaos.machine import ChaosMachine, in_time
from colos.chaos.properties import Outcome, Verdict
from colos.chaos.recording import required_arguments
from colos.chaos.scenario import Heal, Inject, Op, Ref, Step
from colos.chaos.simplify import Rules

__all__ = ["Rerun", "resolved"]

#: A run that the environment spoilt is repeated, so many times at most.
_AGAIN = 2


class Rerun:
    """Applies recorded steps; `make` gives a machine, for so many steps, with its executor."""

    def __init__(self, rules: Rules, make: Callable[[int], ChaosMachine]) -> None:
        self._rules = rules
        self._make = make

    def __call__(self, steps: Sequence[Step]) -> tuple[Verdict, Executor]:
        """Apply them in a fresh sandbox, and judge; again, up to twice, where the environment prevents a verdict."""
        verdict, executor = self._once(steps)
        for _ in range(_AGAIN):
            if verdict.outcome is not Outcome.INCONCLUSIVE:
                break
            verdict, executor = self._once(steps)
        return verdict, executor

    def _once(self, steps: Sequence[Step]) -> tuple[Verdict, Executor]:
        def run(data: Any) -> tuple[Verdict, Executor]:
            machine = self._make(len(steps))
            executor = machine._executor
            assert executor is not None
            values: dict[str, object] = {}
            try:
                for step in steps:
                    self._apply(executor, step, values, data)
                    if executor.over:
                        break
                return executor.finish(), executor
            finally:
                executor.close()

        verdict, executor = in_test_case(run)
        return verdict, executor

    def _apply(self, executor: Executor, step: Step, values: dict[str, object], data: Any) -> None:
        match step:
            case Inject():
                executor.inject(step)
            case Heal():
                executor.heal(step)
            case Op():
                self._apply_op(executor, step, values, data)

    def _apply_op(self, executor: Executor, step: Op, values: dict[str, object], data: Any) -> None:
        machine = executor.machine
        function, declared = self._rules[step.name]
        try:
            kwargs = {name: resolved(value, values) for name, value in step.args.items()}
            draws = Draws([resolved(value, values) for value in step.draws])
        except KeyError as missing:
            executor.skip(step, f"{missing.args[0]} was not produced in this run")
            return
        if not self._is_possible(executor, declared.preconditions, step.name):
            executor.skip(step, "its precondition does not hold in this run")
            return
        for name in declared.arguments.keys() - set(required_arguments(declared)):
            kwargs[name] = RecordedData(data, draws)
        machine._initialize_rules_to_run = [
            rule for rule in machine._initialize_rules_to_run if rule.function is not declared.function
        ]
        try:
            done, value = executor.op(step, function, kwargs)
        except UnsatisfiedAssumption:
            executor.skip(step, "what it assumes does not hold in this run")
            return
        if done and step.results:
            given = value.values if isinstance(value, MultipleResults) else (value,)
            for position, name in enumerate(step.results):
                if given:
                    values[name] = given[position % len(given)]

    @staticmethod
    def _is_possible(executor: Executor, preconditions: Sequence[Callable[..., bool]], name: str) -> bool:
        def hold() -> bool:
            return all(condition(executor.machine) for condition in preconditions)

        if not preconditions:
            return True
        return in_time(executor.setting.deadlines.outside_s, f"a precondition of {name}", hold)


def resolved(value: object, values: dict[str, object]) -> Any:
    """A recorded value with this run's bundle values; a copy, which the author's rule may change."""
    return exchanged(value, lambda part: values[part.name] if isinstance(part, Ref) else part)
