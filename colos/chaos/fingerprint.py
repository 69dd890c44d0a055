"""What makes two failures the same one."""

from __future__ import annotations

from collections.abc import Sequence

from colos.chaos.properties import Violation
from colos.chaos.scenario import Inject, Scenario, Step

__all__ = ["is_instance_of_known"]


def is_instance_of_known(known: Scenario, violation: Violation, steps: Sequence[Step]) -> bool:
    """Whether a failure is one that a known scenario describes already.

    The same property, and the known scenario's faults (kind and resource, in order) all occurred.  So a
    loss that needs no full disk is a new bug beside a known loss by full disk.
    """
    if known.violates != violation.name:
        return False
    had = iter(_signature(steps))
    return all(part in had for part in _signature(known.steps))


def _signature(steps: Sequence[Step]) -> list[tuple[str, tuple[tuple[str, object], ...]]]:
    return [
        (step.fault, tuple(sorted((n, v) for n, v in step.args.items() if isinstance(v, str))))
        for step in steps
        if isinstance(step, Inject)
    ]
