"""Whether a saved scenario still fits its machine: every fault, rule, argument and target that it names."""

from __future__ import annotations

from pathlib import Path

from colos.chaos.builtin import BUILTIN
from colos.chaos.fault import matches
from colos.chaos.faults import fault_kinds
from colos.chaos.machine import ChaosMachine, author_rules, declared_properties
from colos.chaos.recording import required_arguments
from colos.chaos.scenario import Inject, Op, Scenario, renamed, validate
from colos.chaos.scenario_toml import Source
from colos.errors import InvalidScenario, StaleScenario
from colos.spelling import closest

__all__ = ["fitted", "unknown_property"]


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


def unknown_property(cls: type[ChaosMachine], scenario: Scenario) -> str:
    """What is said of a scenario about a property that the machine does not declare; empty for one that it does.

    No error: its steps are run all the same, and an author's code may raise `PropertyViolated` by any name.
    """
    properties, rules = declared_properties(cls), author_rules(cls)
    known = {
        *(declared.full_name for declared in properties),
        *(f"builtin:{name}" for name in BUILTIN),
        *(f"rule:{name}" for name in rules),
        *(f"hang:{name}" for name in (*rules, *(declared.name for declared in properties))),
    }
    if scenario.violates in known:
        return ""
    near = {name for name in known if name.partition(":")[0] == scenario.violates.partition(":")[0]}
    return f"{cls.__name__} declares no {scenario.violates}; {closest(scenario.violates, near)}"
