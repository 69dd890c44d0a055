"""Whether a saved scenario still fits its machine: every fault, rule, argument and target that it names."""

from __future__ import annotations

from pathlib import Path

from colos.chaos.fault import matches
from colos.chaos.faults import fault_kinds
from colos.chaos.machine import ChaosMachine, author_rules, required_arguments
from colos.chaos.scenario import Inject, Op, Scenario, renamed, validate
from colos.chaos.scenario_toml import Source
from colos.chaos.values import closest
from colos.errors import InvalidScenario, StaleScenario

__all__ = ["fitted"]


def fitted(cls: type[ChaosMachine], path: Path, scenario: Scenario) -> Scenario:
    """The scenario in terms of today's machine: old names by its aliases, values that waited for their class built.

    Raises `StaleScenario`, with the line and the nearest name there is, for the first step that does not fit.
    """
    kinds, rules = fault_kinds(), author_rules(cls)
    text = path.read_text(encoding="utf-8-sig")
    try:
        scenario = renamed(scenario, cls.aliases, path=str(path), text=text)
        validate(
            scenario,
            faults={kind: tuple(fault.parameters) for kind, fault in kinds.items()},
            ops={op: tuple(declared.arguments) for op, (_, declared) in rules.items()},
            path=str(path),
            text=text,
        )
    except InvalidScenario as error:
        raise StaleScenario(error.path, error.where, error.problem, error.cure) from None
    topology = cls.system_declaration().topology()
    for index, step in enumerate(scenario.steps):
        problem = cure = ""
        if isinstance(step, Op):
            lacking = [name for name in required_arguments(rules[step.name][1]) if name not in step.args]
            problem = f"the op {step.name!r} needs an argument {lacking[0]!r}" if lacking else ""
        elif isinstance(step, Inject) and step.target is not None:
            if not kinds[step.fault].targeted:
                problem, cure = f"the fault {step.fault!r} has no target", "leave it out"
            elif not any(matches(name, step.target) or step.target.startswith(f"{name}/") for name in topology):
                problem, cure = f"the target {step.target!r} matches nothing", closest(step.target, topology)
        if problem:
            where = Source(str(path), text).where_step(index, len(scenario.steps))
            raise StaleScenario(str(path), where, problem, cure)
    return scenario
