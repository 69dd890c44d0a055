"""Steps and scenarios as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from colos.chaos.values import Ref, refs

__all__ = ["FORMAT", "Heal", "Inject", "Op", "Ref", "Repro", "Scenario", "Step", "step_refs"]

FORMAT = 1
"""The file format that this version writes; older ones are migrated when they are read."""


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
    `known` the reason why this failure is known and accepted for now.  How it was found: `mechanisms`
    maps a fault's kind to the OS facility behind it, `tier` is the sandbox's, and `versions` maps what
    may matter (``colos``, ``python``) to its version.
    """

    test: str
    violates: str
    steps: tuple[Step, ...]
    repro: Repro | None = None
    known: str | None = None
    mechanisms: Mapping[str, str] = field(default_factory=dict)
    tier: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
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
