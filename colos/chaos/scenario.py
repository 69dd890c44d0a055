"""Steps and scenarios as data, and the TOML file that keeps one.

A scenario is a list of steps and what it is for.  Its file has one line a step, symbolic names
only, and leaves defaults out; whoever reads it may add comments, for a saved file is never
rewritten.  Loading one may unpickle argument values (see `colos.chaos.values`), so load only
files from a repository that you would also run the tests of.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from colos.chaos.scenario_toml import Source, Table
from colos.chaos.values import DecodeError, EncodeError, Ref, closest, decode, encode, quote, refs, table
from colos.errors import InvalidScenario

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
    "identity",
    "load",
    "loads",
    "save",
    "step_refs",
    "validate",
]

FORMAT = 1
"""The one file format that this version reads and writes."""


@dataclass(frozen=True)
class Op:
    """Something that a client does to the system: a call of the author's rule `name`.

    `results` are the names given to the bundle values that it produced; `draws` is what
    ``st.data()`` drew inside it, in order.
    """

    name: str
    args: Mapping[str, object] = field(default_factory=dict)
    results: tuple[str, ...] = ()
    draws: tuple[object, ...] = ()


@dataclass(frozen=True)
class Inject:
    """A fault of kind `fault` (such as ``disk-full``) begins; its lease is known as `id`."""

    fault: str
    id: str
    target: str | None = None
    args: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Heal:
    """The lease of the earlier `Inject` with this `id` ends."""

    id: str


Step: TypeAlias = Op | Inject | Heal


@dataclass(frozen=True)
class Repro:
    """How often the steps failed in the same way: `failed` times in `runs`."""

    failed: int
    runs: int


@dataclass(frozen=True)
class Scenario:
    """Steps that violate a property of a test.

    `test` is a pytest node id; `violates` a property's full name such as ``always:balanced``;
    `known` the reason why this failure is known and accepted for now; `mechanisms` maps a fault's
    kind to the OS facility that it was found with.
    """

    test: str
    violates: str
    steps: tuple[Step, ...]
    repro: Repro | None = None
    known: str | None = None
    mechanisms: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT


def step_refs(step: Step) -> set[str]:
    """The names of the bundle values that a step refers to."""
    match step:
        case Op():
            return {*refs(step.args), *refs(step.draws)}
        case Inject():
            return set(refs(step.args))
        case Heal():
            return set()


# --- reading -----------------------------------------------------------------------------

_KEYS = ("format", "test", "violates", "known", "repro", "mechanisms", "steps")
_STEP_KINDS = ("op", "fault", "heal")
# An argument with one of these names stands in the step's own `args = { … }`.
_OP_KEYS = frozenset({*_STEP_KINDS, "results", "draws", "args"})
_FAULT_KEYS = frozenset({*_STEP_KINDS, "id", "target", "args"})


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


def loads(text: str, path: str = "<string>") -> Scenario:
    """The scenario in a file's `text`; `path` is for complaints only.  Raises `InvalidScenario`.

    A fault without an id gets a fresh one, always the same for the same text.
    """
    source = Source(path, text)
    document = source.parse()
    # The format first: a newer one may have any other key.
    form = document.take("format", int, cure=f"the first line is: format = {FORMAT}")
    if form != FORMAT:
        cure = f"this version of ColOS supports: {FORMAT}" + ("; a newer one may read it" if form > FORMAT else "")
        raise document.error(f"format {form} is not supported", cure, key="format")
    document.refuse_others(_KEYS)
    return Scenario(
        test=document.take("test", str, cure='name the test, such as test = "tests/test_ledger.py::TestLedger"'),
        violates=document.take("violates", str, cure='name the property, such as violates = "always:balanced"'),
        steps=_read_steps(source, document),
        repro=_read_repro(document),
        known=document.take("known", str) if "known" in document.entries else None,
        mechanisms=_read_mechanisms(document),
        format=form,
    )


def _read_repro(document: Table) -> Repro | None:
    if "repro" not in document.entries:
        return None
    found = document.take_table("repro")
    found.refuse_others(("failed", "runs"))
    repro = Repro(failed=found.take("failed", int), runs=found.take("runs", int))
    if not 0 <= repro.failed <= repro.runs:
        raise found.error(f"repro says that {repro.failed} of {repro.runs} runs failed", "failed is 0 to runs")
    return repro


def _read_mechanisms(document: Table) -> dict[str, str]:
    if "mechanisms" not in document.entries:
        return {}
    found = document.take_table("mechanisms")
    return {kind: found.take(kind, str) for kind in list(found.entries)}


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
    for index, problem, cure in _lease_problems(steps):
        raise InvalidScenario(source.path, source.where_step(index, len(steps)), problem, cure)
    return tuple(steps)


def _read_step(found: Table, fresh_ids: Iterator[str]) -> Step:
    kinds = [kind for kind in _STEP_KINDS if kind in found.entries]
    if len(kinds) != 1:
        problem = f"a step has exactly one of op, fault and heal; this one has {' and '.join(kinds) or 'none'}"
        first = next(iter(found.entries), "")
        raise found.error(problem, "" if kinds else closest(first, _STEP_KINDS))
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
    own = _read_value(found, "args", found.take("args", dict)) if "args" in found.entries else {}
    args = {key: _read_value(found, key, raw) for key, raw in found.entries.items()}
    if not (isinstance(own, dict) and all(isinstance(key, str) for key in own)):
        raise found.error("'args' must be a table of arguments by name")
    for key in args.keys() & own.keys():
        raise found.error(f"the argument {key!r} stands both in the step and in its args", "leave one out")
    return {**args, **own}


def _read_value(found: Table, key: str, raw: object) -> object:
    try:
        return decode(raw)
    except DecodeError as error:
        raise found.error(f"{key!r}: {error}") from error


def _lease_problems(steps: Sequence[Step]) -> Iterator[tuple[int, str, str]]:
    """What is wrong with ids: the step's index, the problem, the cure."""
    begun: set[str] = set()
    for index, step in enumerate(steps):
        if isinstance(step, Inject):
            if step.id in begun:
                yield index, f"the id {step.id!r} is taken by an earlier fault", "give each fault an id of its own"
            begun.add(step.id)
        elif isinstance(step, Heal) and step.id not in begun:
            yield index, f"nothing to heal: no earlier fault has the id {step.id!r}", closest(step.id, begun)


# --- writing -----------------------------------------------------------------------------


def dumps(scenario: Scenario) -> str:
    """The scenario as the text of a file.  Raises `InvalidScenario` for what `loads` would not give back."""
    for index, problem, cure in _lease_problems(scenario.steps):
        raise InvalidScenario("<scenario>", f"steps[{index}]", problem, cure)
    if scenario.format != FORMAT:
        raise InvalidScenario("<scenario>", "format", f"format {scenario.format} is not written", f"only {FORMAT} is")
    try:
        entries = _head(scenario)
    except EncodeError as error:
        raise InvalidScenario("<scenario>", "the scenario", str(error)) from error
    head = "".join(f"{key:<8} = {text}\n" for key, text in entries.items())
    healed = _healed(scenario.steps)
    lines = []
    for index, step in enumerate(scenario.steps):
        try:
            lines.append(f"  {_step_text(step, healed, strict=True)},\n")
        except EncodeError as error:
            cure = "draw plain values, or build the object inside the rule"
            raise InvalidScenario("<scenario>", f"steps[{index}]", str(error), cure) from error
    return head + ("steps = [\n" + "".join(lines) + "]\n" if lines else "steps = []\n")


def _head(scenario: Scenario) -> dict[str, str]:
    """All entries but the steps, without defaults."""
    entries = {"format": str(FORMAT), "test": quote(scenario.test), "violates": quote(scenario.violates)}
    if scenario.known is not None:
        entries["known"] = quote(scenario.known)
    if scenario.repro is not None:
        entries["repro"] = table({"failed": str(scenario.repro.failed), "runs": str(scenario.repro.runs)})
    if scenario.mechanisms:
        entries["mechanisms"] = table({kind: quote(name) for kind, name in scenario.mechanisms.items()})
    return entries


def describe(step: Step) -> str:
    """A step as it would stand in a file; never raises, and shows what no file could carry by its repr."""
    return _step_text(step, None, strict=False)


def _healed(steps: Sequence[Step]) -> frozenset[str]:
    return frozenset(step.id for step in steps if isinstance(step, Heal))


def _step_text(step: Step, healed: Collection[str] | None, *, strict: bool) -> str:
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
            return table(texts | _args_texts(step.args, _FAULT_KEYS, strict))
        case Op():
            texts = {"op": name(step.name)} | _args_texts(step.args, _OP_KEYS, strict)
            if step.results:
                texts["results"] = "[" + ", ".join(map(name, step.results)) + "]"
            if step.draws:
                texts["draws"] = encode(list(step.draws), strict=strict)
            return table(texts)


def _args_texts(args: Mapping[str, object], reserved: Collection[str], strict: bool) -> dict[str, str]:
    """Arguments in the step itself, or in its `args` where their names are the step's own words or no plain names."""
    plain = {key: value for key, value in args.items() if key.isidentifier() and key not in reserved}
    other = {key: value for key, value in args.items() if key not in plain}
    texts = {key: encode(value, strict=strict) for key, value in plain.items()}
    return texts | ({"args": encode(other, strict=strict)} if other else {})


# --- identity and files ------------------------------------------------------------------


def identity(of: Scenario | Sequence[Step], violates: str | None = None) -> str:
    """12 hexadecimal digits: equal for equal steps that violate the same property, whatever ids their faults have.

    `violates` goes with bare steps.  Values that cannot be written count by their repr.
    """
    if isinstance(of, Scenario):
        return identity(of.steps, of.violates)
    names = {step.id: f"f{index}" for index, step in enumerate(of) if isinstance(step, Inject)}
    healed = frozenset(names[id_] for id_ in _healed(of) if id_ in names)
    renamed = (step if isinstance(step, Op) else replace(step, id=names.get(step.id, step.id)) for step in of)
    lines = [_step_text(step, healed, strict=False) for step in renamed]
    return hashlib.sha256("\n".join([ascii(violates), *lines]).encode()).hexdigest()[:12]


def save(scenario: Scenario, directory: str | os.PathLike[str]) -> Path:
    """Writes the scenario into a file of its own in `directory`, which is made if need be; returns the path.

    The name comes from the property and the content.  A file that holds the same scenario already is
    left as it is, comments and all, and any other is never overwritten; a reader never sees half a
    file.  Raises `InvalidScenario` as `dumps` does, and `OSError`.
    """
    content = dumps(scenario).encode()
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    name = scenario.violates.rpartition(":")[2]
    stem = f"{re.sub('[^A-Za-z0-9_.-]+', '_', name)[:60].lstrip('.') or 'violation'}-{identity(scenario)[:6]}"
    for suffix in itertools.chain([""], map("-{}".format, itertools.count(2))):
        path = folder / f"{stem}{suffix}.toml"
        if _create(path, content) or _holds(path, scenario):
            return path
    raise AssertionError("unreachable: the suffixes never end")


def _create(path: Path, content: bytes) -> bool:
    """Makes a new file with all its content at once; False if there is one of that name."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 is not for a file that goes into a repository
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return _link(temporary, path)
    finally:
        try:
            os.unlink(temporary)
        except FileNotFoundError:  # renamed
            pass


def _link(temporary: str, path: Path) -> bool:
    try:
        os.link(temporary, path)  # unlike a rename, it never replaces a file that another worker just made
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links: the nearest to it.
        if path.exists():
            return False
        os.rename(temporary, path)
    return True


def _holds(path: Path, scenario: Scenario) -> bool:
    try:
        found = load(path)
    except (InvalidScenario, OSError):
        return False
    return found.test == scenario.test and identity(found) == identity(scenario)


# --- checking against a machine ----------------------------------------------------------


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
            what, name, known, own = "op", step.name, ops, _OP_KEYS
        case Inject():
            what, name, known, own = "fault", step.fault, faults, _FAULT_KEYS
    if name not in known:
        yield f"unknown {what} {name!r}", closest(name, known)
        return
    for argument in step.args:
        if argument not in known[name]:
            yield (
                f"the {what} {name!r} has no argument {argument!r}",
                closest(argument, {*known[name], *own} - {*_STEP_KINDS}),
            )
    for ref in sorted(step_refs(step) - set(produced)):
        yield f"it refers to {ref!r}, which no earlier op has among its results", closest(ref, produced)
