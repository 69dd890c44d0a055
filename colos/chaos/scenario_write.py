"""Writing a scenario: one line a step, symbolic names only, defaults left out."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from colos.chaos.scenario_read import FAULT_KEYS, OP_KEYS, lease_problems
from colos.chaos.steps import FORMAT, Heal, Inject, Op, Scenario, Step
from colos.chaos.values import EncodeError, encode, quote, table
from colos.errors import InvalidScenario

__all__ = ["describe", "dumps", "healed_ids", "identity", "parts", "step_text"]

_CURE = "have the rule draw what docs/scenarios.md lists, or draw plain values and build the object inside the rule"


def dumps(scenario: Scenario) -> str:
    """The scenario as the text of a file.  Raises `InvalidScenario` for what `loads` would not give back."""
    entries, lines = parts(scenario)
    head = "".join(f"{key:<8} = {text}\n" for key, text in entries.items())
    return head + ("steps = [\n" + "".join(f"  {line},\n" for line in lines) + "]\n" if lines else "steps = []\n")


def parts(scenario: Scenario) -> tuple[dict[str, str], list[str]]:
    """What `dumps` puts together: the TOML of each entry but the steps, and of each step."""
    for index, problem, cure in lease_problems(scenario.steps):
        raise InvalidScenario("<scenario>", f"steps[{index}]", problem, cure)
    if scenario.format != FORMAT:
        raise InvalidScenario("<scenario>", "format", f"format {scenario.format} is not written", f"only {FORMAT} is")
    try:
        entries = _head(scenario)
    except EncodeError as error:
        raise InvalidScenario("<scenario>", "the scenario", str(error)) from error
    healed = healed_ids(scenario.steps)
    lines = []
    for index, step in enumerate(scenario.steps):
        try:
            lines.append(step_text(step, healed, strict=True))
        except EncodeError as error:
            raise InvalidScenario("<scenario>", f"steps[{index}]", f"{_what(step)}{error}", _CURE) from error
    return entries, lines


def _what(step: Step) -> str:
    match step:
        case Op():
            return f"the op {step.name!a}: "
        case Inject():
            return f"the fault {step.fault!a}: "
        case Heal():
            return ""


def _head(scenario: Scenario) -> dict[str, str]:
    """All entries but the steps, without defaults."""
    entries = {"format": str(FORMAT), "test": quote(scenario.test), "violates": quote(scenario.violates)}
    if scenario.known is not None:
        entries["known"] = quote(scenario.known)
    if scenario.repro is not None:
        entries["repro"] = table({"failed": str(scenario.repro.failed), "runs": str(scenario.repro.runs)})
    if scenario.tier is not None:
        entries["tier"] = quote(scenario.tier)
    for key, texts in (("mechanisms", scenario.mechanisms), ("versions", scenario.versions)):
        if texts:
            entries[key] = table({name: quote(text) for name, text in texts.items()})
    return entries


def describe(step: Step) -> str:
    """A step as it would stand in a file; never raises, and shows what no file could carry by its repr."""
    return step_text(step, None, strict=False)


def healed_ids(steps: Sequence[Step]) -> frozenset[str]:
    """The ids of the faults that a step heals."""
    return frozenset(step.id for step in steps if isinstance(step, Heal))


def step_text(step: Step, healed: Collection[str] | None, *, strict: bool) -> str:
    """One step as an inline table; a fault's id is written if it is `healed`, or if that is unknown (None)."""
    # A name has to stay a plain text; only where nobody reads it back may a tag stand for an odd one.
    name: Callable[[str], str] = quote if strict else functools.partial(encode, strict=False)
    match step:
        case Heal():
            return table({"heal": name(step.id)})
        case Inject():
            texts = {"fault": name(step.fault)}
            if healed is None or step.id in healed:
                texts["id"] = name(step.id)
            if step.target is not None:
                texts["target"] = name(step.target)
            return table(texts | _args_texts(step.args, FAULT_KEYS, strict))
        case Op():
            texts = {"op": name(step.name)} | _args_texts(step.args, OP_KEYS, strict)
            if step.results:
                texts["results"] = "[" + ", ".join(map(name, step.results)) + "]"
            if step.draws:
                texts["draws"] = _encoded("a draw", list(step.draws), strict)
            return table(texts)


def _args_texts(args: Mapping[str, object], reserved: Collection[str], strict: bool) -> dict[str, str]:
    """Arguments in the step itself, or in its `args` where their names are the step's own words or no plain names."""
    plain = {key: value for key, value in args.items() if key.isidentifier() and key not in reserved}
    other = {key: value for key, value in args.items() if key not in plain}
    texts = {key: _encoded(f"the argument {key!r}", value, strict) for key, value in plain.items()}
    if not other:
        return texts
    for key, value in other.items() if strict else ():
        _encoded(f"the argument {key!a}", value, strict)  # names the one that has no form
    return texts | {"args": encode(other, strict=strict)}


def _encoded(what: str, value: object, strict: bool) -> str:
    try:
        return encode(value, strict=strict)
    except EncodeError as error:
        raise EncodeError(f"{what}: {error}") from error


def identity(of: Scenario | Sequence[Step], violates: str | None = None) -> str:
    """12 hexadecimal digits: equal for equal steps that violate the same property, whatever ids their faults have.

    `violates` goes with bare steps.  Values that cannot be written count by their repr.
    """
    if isinstance(of, Scenario):
        return identity(of.steps, of.violates)
    names = {step.id: f"f{index}" for index, step in enumerate(of) if isinstance(step, Inject)}
    healed = frozenset(names[id_] for id_ in healed_ids(of) if id_ in names)
    renamed = (step if isinstance(step, Op) else replace(step, id=names.get(step.id, step.id)) for step in of)
    lines = [step_text(step, healed, strict=False) for step in renamed]
    return hashlib.sha256("\n".join([ascii(violates), *lines]).encode()).hexdigest()[:12]
