"""Reading a scenario file: its text as a `Scenario`, or a complaint with the line.

Reading imports nothing and runs no code but that of dataclasses that are imported already (see
`colos.chaos.values`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from colos.chaos.migrations import MIGRATIONS, Migration, migrated
from colos.chaos.scenario_toml import Source, Table
from colos.chaos.steps import FORMAT, Heal, Inject, Op, Repro, Scenario, Step
from colos.chaos.values import DecodeError, decode
from colos.errors import InvalidScenario
from colos.spelling import closest

__all__ = ["FAULT_KEYS", "OP_KEYS", "STEP_KINDS", "lease_problems", "load", "loads"]

_KEYS = ("format", "test", "violates", "known", "repro", "tier", "mechanisms", "versions", "steps")
STEP_KINDS = ("op", "fault", "heal")
# An argument with one of these names stands in the step's own `args = { … }`.
OP_KEYS = frozenset({*STEP_KINDS, "results", "draws", "args"})
FAULT_KEYS = frozenset({*STEP_KINDS, "id", "target", "args"})


def load(path: str | os.PathLike[str]) -> Scenario:
    """The scenario in a file.  Raises `InvalidScenario` for bad content, `OSError` if it cannot be read."""
    try:
        # utf-8-sig, because some editors begin a file with a byte-order mark.
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InvalidScenario(
            os.fspath(path), f"line {line}", f"not UTF-8: {error.reason}", "save it as UTF-8"
        ) from None
    return loads(text, os.fspath(path))


def loads(text: str, path: str = "<string>", *, migrations: Mapping[int, Migration] = MIGRATIONS) -> Scenario:
    """The scenario in a file's `text`; `path` is for complaints only.  Raises `InvalidScenario`.

    A fault without an id gets a fresh one, always the same for the same text.  An argument whose
    class is not imported is an `Unbuilt` (see `renamed`).
    """
    source = Source(path, text)
    document = _at_present_format(source, source.parse(), migrations)
    document.refuse_others(_KEYS)
    return Scenario(
        test=document.take("test", str, cure='name the test, such as test = "tests/test_ledger.py::TestLedger"'),
        violates=document.take("violates", str, cure='name the property, such as violates = "always:balanced"'),
        steps=_read_steps(source, document),
        repro=_read_repro(document),
        known=document.take("known", str) if "known" in document.entries else None,
        mechanisms=_read_texts(document, "mechanisms"),
        tier=document.take("tier", str) if "tier" in document.entries else None,
        versions=_read_texts(document, "versions"),
    )


def _at_present_format(source: Source, document: Table, migrations: Mapping[int, Migration]) -> Table:
    """The document without its format.  That is asked first: another one may have any other key."""
    form = document.take("format", int, cure=f"the first line is: format = {FORMAT}")
    if form == FORMAT:
        return document
    supported = f"this version of ColOS supports: {f'{min(migrations)} to ' if migrations else ''}{FORMAT}"
    if form > FORMAT:
        raise document.error(f"format {form} is not supported", f"{supported}; a newer one may read it", key="format")
    if any(older not in migrations for older in range(form, FORMAT)):
        raise document.error(f"format {form} is not supported", supported, key="format")
    try:
        entries = migrated(document.entries, form, migrations)
    except ValueError as error:
        raise document.error(f"format {form} cannot be brought to {FORMAT}: {error}", key="format") from error
    del entries["format"]
    return Table(source, entries)


def _read_repro(document: Table) -> Repro | None:
    if "repro" not in document.entries:
        return None
    found = document.take_table("repro")
    found.refuse_others(("failed", "runs"))
    repro = Repro(failed=found.take("failed", int), runs=found.take("runs", int))
    if not 0 <= repro.failed <= repro.runs:
        raise found.error(f"repro says that {repro.failed} of {repro.runs} runs failed", "failed is 0 to runs")
    return repro


def _read_texts(document: Table, key: str) -> dict[str, str]:
    """A table of texts; empty if it is missing."""
    if key not in document.entries:
        return {}
    found = document.take_table(key)
    return {name: found.take(name, str) for name in list(found.entries)}


def _read_steps(source: Source, document: Table) -> tuple[Step, ...]:
    raw_steps = document.take("steps", list, cure="steps is a list, with one line for each step")
    taken = [raw.get("id") for raw in raw_steps if isinstance(raw, dict)]  # of any type yet
    fresh_ids = (id_ for id_ in map("f{}".format, itertools.count(1)) if id_ not in taken)
    steps: list[Step] = []
    for index, raw in enumerate(raw_steps):
        where = source.where_step(index, len(raw_steps))
        if not isinstance(raw, dict):
            raise InvalidScenario(source.path, where, f"a step is a table, not {raw!r}", 'such as { op = "deposit" }')
        steps.append(_read_step(Table(source, raw, where), fresh_ids))
    for index, problem, cure in lease_problems(steps):
        raise InvalidScenario(source.path, source.where_step(index, len(steps)), problem, cure)
    return tuple(steps)


def _read_step(found: Table, fresh_ids: Iterator[str]) -> Step:
    kinds = [kind for kind in STEP_KINDS if kind in found.entries]
    if len(kinds) != 1:
        problem = f"a step has exactly one of op, fault and heal; this one has {' and '.join(kinds) or 'none'}"
        first = next(iter(found.entries), "")
        raise found.error(problem, "" if kinds else closest(first, STEP_KINDS))
    if kinds == ["heal"]:
        found.refuse_others(("heal",))
        return Heal(found.take("heal", str))
    if kinds == ["op"]:
        name, results = found.take("op", str), found.take_texts("results")
        draws = tuple(found.take("draws", list)) if "draws" in found.entries else ()
        drawn = tuple(_read_value(found, "draws", draw) for draw in draws)
        return Op(name, _read_args(found), results, drawn)
    fault = found.take("fault", str)
    id_ = found.take("id", str) if "id" in found.entries else next(fresh_ids)
    target = found.take("target", str) if "target" in found.entries else None
    return Inject(fault, id_, target, _read_args(found))


def _read_args(found: Table) -> dict[str, object]:
    """All that is left in a step, and what `args = { … }` holds."""
    own = _read_own(found) if "args" in found.entries else {}
    args = {key: _read_value(found, key, raw) for key, raw in found.entries.items()}
    for key in args.keys() & own.keys():
        raise found.error(f"the argument {key!r} stands both in the step and in its args", "leave one out")
    return {**args, **own}


def _read_own(found: Table) -> dict[str, object]:
    """Value by value, because one that is `Unbuilt` must not make the others so."""
    raw = found.take("args", dict)
    pairs: list[tuple[object, object]] = list(raw.items())
    if set(raw) == {"$dict"}:
        pairs = raw["$dict"] if _are_pairs(raw["$dict"]) else []
        if not pairs:
            raise found.error("'args' must be a table of arguments by name")
    elif any(key.startswith("$") for key in raw):
        raise found.error("'args' must be a table of arguments by name")
    own = {}
    for key, value in pairs:
        name = key if isinstance(key, str) else _read_value(found, "args", key)
        if not isinstance(name, str):
            raise found.error("'args' must be a table of arguments by name")
        own[name] = _read_value(found, name, value)
    return own


def _are_pairs(raw: object) -> bool:
    return isinstance(raw, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in raw)


def _read_value(found: Table, key: str, raw: object) -> object:
    try:
        return decode(raw)
    except DecodeError as error:
        raise found.error(f"{key!r}: {error}") from error


def lease_problems(steps: Sequence[Step]) -> Iterator[tuple[int, str, str]]:
    """What is wrong with ids: the step's index, the problem, the cure."""
    begun: set[str] = set()
    for index, step in enumerate(steps):
        if isinstance(step, Inject):
            if step.id in begun:
                yield index, f"the id {step.id!r} is taken by an earlier fault", "give each fault an id of its own"
            begun.add(step.id)
        elif isinstance(step, Heal) and step.id not in begun:
            yield index, f"nothing to heal: no earlier fault has the id {step.id!r}", closest(step.id, begun)
