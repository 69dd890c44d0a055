"""Scenarios: lists of steps with what they are for, the files that keep them, and today's names in them.

This is the door; the rooms behind it are `steps` (the data), `scenario_read`, `scenario_write`,
`scenario_edit` and `scenario_file`.  docs/scenarios.md describes the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from colos.chaos.fingerprint import fingerprint
from colos.chaos.scenario_edit import update_text
from colos.chaos.scenario_file import rewrite, save
from colos.chaos.scenario_read import FAULT_KEYS, OP_KEYS, STEP_KINDS, load, loads
from colos.chaos.scenario_toml import Source
from colos.chaos.scenario_write import describe, dumps, identity
from colos.chaos.steps import FORMAT, Heal, Inject, Op, Ref, Repro, Scenario, Step, step_refs
from colos.chaos.values import DecodeError, Unbuilt, built
from colos.errors import InvalidScenario, InvalidSpecification
from colos.spelling import closest

__all__ = [
    "FORMAT",
    "Heal",
    "Inject",
    "Op",
    "Ref",
    "Repro",
    "Scenario",
    "Step",
    "describe",
    "dumps",
    "fingerprint",
    "identity",
    "load",
    "loads",
    "renamed",
    "rewrite",
    "save",
    "step_refs",
    "update_text",
    "validate",
]


def renamed(
    scenario: Scenario, aliases: Mapping[str, str] | None = None, *, path: str = "<scenario>", text: str = ""
) -> Scenario:
    """The scenario in terms of today's machine, whose module is imported by now.

    `aliases` maps old names to new ones: ``"pay": "deposit"`` a rule, ``"deposit.sum": "amount"`` an
    argument of a rule (named as it is called today), ``"always:sane": "always:balanced"`` a property.
    A new name that is old in its turn is followed.  Values that waited for their class are built.
    Raises `InvalidScenario` for a value that cannot be built or an argument that is there twice, and
    `InvalidSpecification` for aliases that go in a circle.
    """
    names = {} if aliases is None else aliases
    source = Source(path, text)
    steps: list[Step] = []
    for index, step in enumerate(scenario.steps):
        try:
            steps.append(_updated(step, names))
        except DecodeError as error:
            where = source.where_step(index, len(scenario.steps))
            raise InvalidScenario(path, where, str(error)) from error
    kind, colon, name = scenario.violates.partition(":")
    of_rule = colon and kind in ("rule", "hang")
    violates = f"{kind}:{_followed(name, names)}" if of_rule else scenario.violates
    return replace(scenario, violates=_followed(violates, names), steps=tuple(steps))


def _updated(step: Step, names: Mapping[str, str]) -> Step:
    match step:
        case Heal():
            return step
        case Inject():
            return replace(step, args={key: _built(key, value) for key, value in step.args.items()})
        case Op():
            op = _followed(step.name, names)
            args: dict[str, object] = {}
            for key, value in step.args.items():
                new = _followed(key, names, f"{op}.")
                if new in args:
                    raise DecodeError(f"the argument {new!r} of {op!r} is there twice, once under an older name")
                args[new] = _built(key, value)
            return replace(step, name=op, args=args, draws=tuple(_built("draws", value) for value in step.draws))


def _built(key: str, value: object) -> object:
    try:
        return built(value)
    except DecodeError as error:
        raise DecodeError(f"{key!r}: {error}") from error


def _followed(name: str, names: Mapping[str, str], prefix: str = "") -> str:
    """Today's name.  Raises `InvalidSpecification` for a circle."""
    met = [name]
    while (new := names.get(prefix + name)) is not None:
        if new in met:
            raise InvalidSpecification(f"aliases go in a circle: {' → '.join([*met, new])}; the last name is today's")
        met.append(name := new)
    return name


def validate(
    scenario: Scenario,
    *,
    faults: Mapping[str, Collection[str]],
    ops: Mapping[str, Collection[str]],
    path: str = "<scenario>",
    text: str = "",
) -> None:
    """Raises `InvalidScenario` for a step that the machine does not know.

    `faults` and `ops` map each known kind or name to the names of its arguments.  `text` is what
    `scenario` was loaded from, for the line; the step's index is named where it is not given.
    """
    source = Source(path, text)
    produced: set[str] = set()
    for index, step in enumerate(scenario.steps):
        for problem, cure in _step_problems(step, faults, ops, produced):
            raise InvalidScenario(path, source.where_step(index, len(scenario.steps)), problem, cure)
        if isinstance(step, Op):
            produced.update(step.results)


def _step_problems(
    step: Step, faults: Mapping[str, Collection[str]], ops: Mapping[str, Collection[str]], produced: Collection[str]
) -> Iterator[tuple[str, str]]:
    match step:
        case Heal():
            return
        case Op():
            what, name, known, own = "op", step.name, ops, OP_KEYS
        case Inject():
            what, name, known, own = "fault", step.fault, faults, FAULT_KEYS
    if name not in known:
        yield f"unknown {what} {name!r}", closest(name, known)
        return
    for argument, value in step.args.items():
        if isinstance(value, Unbuilt):
            yield f"{argument!r} waits for the module {value.module}, which is not imported", "see `renamed`"
        if argument not in known[name]:
            yield (
                f"the {what} {name!r} has no argument {argument!r}",
                closest(argument, {*known[name], *own} - {*STEP_KINDS}),
            )
    for ref in sorted(step_refs(step) - set(produced)):
        yield f"it refers to {ref!r}, which no earlier op has among its results", closest(ref, produced)
