"""What a system claims to survive: its budget of faults, counted over what acts at the same time.

`ChaosMachine.tolerates` lists it.  A kind that it does not list, a process that no pattern of that
kind matches, and one process more than an `at_most` are beyond it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from colos.chaos.fault import EVERYTHING, Fault, matches
from colos.errors import InvalidSpecification

__all__ = ["Tolerance", "check_budget", "check_patterns"]


class Tolerance:
    """A declared budget, or none (`declared` is None), over the paths of a system."""

    def __init__(self, declared: Sequence[Fault] | None, topology: Sequence[str]) -> None:
        self._declared = declared
        self._topology = topology

    def counts(self, kind: str) -> bool:
        """Whether whom this kind affects is counted: some of its entries have an `at_most`."""
        return any(fault.kind == kind and fault.at_most is not None for fault in self._declared or ())

    def subjects(self, target: str | None) -> frozenset[str]:
        """The processes that a step with this target affects, by their paths: without a target all of them.

        Of what a declared process has forked, only the pattern is known.
        """
        pattern = target or EVERYTHING
        return frozenset(path for path in self._topology if matches(path, pattern)) or frozenset({pattern})

    def excess(self, kind: str, target: str | None, affected: Collection[str]) -> str | None:
        """How a step would go beyond the budget, or None.

        `affected` are the processes that counted kinds act on already, whichever of them: a node that is
        paused is no more there than one that was killed.
        """
        if self._declared is None:
            return None
        entries = [fault for fault in self._declared if fault.kind == kind]
        if not entries:
            return f"{kind} is not declared in tolerates"
        meant = self.subjects(target)
        for path in sorted(meant):
            if not any(not fault.targeted or matches(path, fault.target) for fault in entries):
                return f"no {kind} of {path} is declared in tolerates"
        for fault in self._declared if self.counts(kind) else ():
            if fault.at_most is not None and any(matches(path, fault.target) for path in meant):
                count = sum(matches(path, fault.target) for path in meant | set(affected))
                if count > fault.at_most:
                    return f"{count} of {fault.target} would be affected at a time; at_most is {fault.at_most}"
        return None


def check_budget(name: str, tolerates: object, faults: Sequence[Fault]) -> None:
    """Refuse what cannot be meant as a class's `tolerates`.  Raises `InvalidSpecification`."""
    example = "such as [Kill('kv/*', at_most=1), DiskFull()]"
    if tolerates is None:
        for fault in faults:
            if fault.at_most is not None:
                raise InvalidSpecification(
                    f"{name}.faults holds {fault!r}; at_most is counted where {name}.tolerates is declared, {example}"
                )
        return
    if isinstance(tolerates, Fault | str) or not isinstance(tolerates, Sequence):
        raise InvalidSpecification(f"{name}.tolerates is {tolerates!r}; it is a list {example}")
    seen = set()
    for fault in tolerates:
        if not isinstance(fault, Fault):
            raise InvalidSpecification(f"{name}.tolerates holds {fault!r}; it is a list {example}")
        if (fault.kind, fault.target) in seen:
            raise InvalidSpecification(f"{name}.tolerates has {fault.kind} of {fault.target!r} twice: leave one out")
        seen.add((fault.kind, fault.target))


def check_patterns(tolerates: Sequence[Fault], topology: Sequence[str]) -> None:
    """Refuse a pattern that matches nothing, or a count of what cannot be counted.  Raises `InvalidSpecification`."""
    for fault in tolerates:
        fault.candidates(topology)  # raises for a pattern that matches nothing
        if fault.at_most is not None and not any(matches(path, fault.target) for path in topology):
            raise InvalidSpecification(
                f"{fault!r}: at_most counts declared processes, and these are none; there are: {', '.join(topology)}"
            )
