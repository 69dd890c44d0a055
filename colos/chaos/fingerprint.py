"""What makes two failures the same one: the property, and the faults in their order.

Two scenarios of one bug differ in much that does not matter: which of three like actors was killed,
how many bytes were left, how many ops came between.  None of that is part of a fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from colos.chaos.steps import Inject, Op, Scenario, Step

if TYPE_CHECKING:
    from colos.chaos.properties import Violation

__all__ = ["fingerprint", "is_instance_of_known"]

_Part: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


def fingerprint(violates: str, steps: Sequence[Step]) -> str:
    """12 hexadecimal digits: equal for equal properties and canonical fault sequences.

    A fault counts by its kind, its arguments that are texts (``resource = "inodes"`` is another fault
    than bytes), and its target's number in the order of first use.  Without any fault, the ops count
    by their names.
    """
    numbers: dict[str, int] = {}
    lines = []
    for step in steps:
        if isinstance(step, Inject):
            kind, texts = _part(step)
            target = "" if step.target is None else str(numbers.setdefault(step.target, len(numbers)))
            lines.append(ascii(("fault", kind, target, texts)))
    lines = lines or [ascii(("op", step.name)) for step in steps if isinstance(step, Op)]
    return hashlib.sha256("\n".join([ascii(violates), *lines]).encode()).hexdigest()[:12]


def is_instance_of_known(known: Scenario, violation: Violation, steps: Sequence[Step]) -> bool:
    """Whether a failure is one that a known scenario describes already.

    The same property, and the known scenario's faults (by kind and texts, as in a fingerprint) all
    occurred in their order, on whatever targets.  So a loss that needs no full disk is a new bug
    beside a known loss by full disk.
    """
    if known.violates != violation.name:
        return False
    had = iter(_sequence(steps))
    return all(part in had for part in _sequence(known.steps))


def _sequence(steps: Sequence[Step]) -> list[_Part]:
    return [_part(step) for step in steps if isinstance(step, Inject)]


def _part(step: Inject) -> _Part:
    return step.fault, tuple(sorted((name, value) for name, value in step.args.items() if isinstance(value, str)))
