"""Known bad patterns: plans of several faults that have broken systems before.

Each is a plain function: given what may be injected now, and a chooser of numbers, it gives the steps
of a plan, or none where it does not fit.  Whether a later step is still possible is asked on its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from colos.chaos.fault import Fault, matches

__all__ = [
    "PATTERNS",
    "Pick",
    "Planned",
    "all_of_a_kind",
    "before_an_acknowledgement",
    "during_recovery",
    "swizzle",
    "the_same_twice",
]

Pick: TypeAlias = Callable[[int], int]
"""Chooses one of the numbers below the given one."""

Possible: TypeAlias = Sequence[tuple[Fault, str | None]]
"""The faults that may be injected now, each with a target."""

#: How many faults a swizzle has at least, and how many more it may have.
_SWIZZLED, _MORE = 2, 2


@dataclass(frozen=True)
class Planned:
    """One step of a plan: "inject" or "heal" a kind at a target, or let the author have an "op".

    One that comes `at_once` leaves no turn to the author before it.
    """

    action: str
    kind: str = ""
    target: str | None = None
    at_once: bool = False


def _inject(chosen: tuple[Fault, str | None], *, at_once: bool = False) -> Planned:
    return Planned("inject", chosen[0].kind, chosen[1], at_once)


def _heal(chosen: tuple[Fault, str | None], *, at_once: bool = False) -> Planned:
    return Planned("heal", chosen[0].kind, chosen[1], at_once)


def _ends(chosen: tuple[Fault, str | None], topology: Sequence[str]) -> bool:
    """Whether it ends processes: as a rule, such a fault is over at once."""
    return chosen[0].deaths(chosen[1], topology) > 0


def _overlap(one: str | None, other: str | None) -> bool:
    return one is None or other is None or matches(one, other) or matches(other, one)


def swizzle(pick: Pick, possible: Possible, topology: Sequence[str]) -> list[Planned]:
    """Lasting faults one after another, then healed in another order."""
    left = [chosen for chosen in possible if not _ends(chosen, topology)]
    several: list[tuple[Fault, str | None]] = []
    for _ in range(_SWIZZLED + pick(_MORE)):
        if left:
            fault, target = left[pick(len(left))]
            several.append((fault, target))
            left = [(other, at) for other, at in left if other.kind != fault.kind or not _overlap(at, target)]
    if len(several) < _SWIZZLED:
        return []
    first = 1 + pick(len(several) - 1)
    return [_inject(one) for one in several] + [_heal(one) for one in several[first:] + several[:first]]


def during_recovery(pick: Pick, possible: Possible, topology: Sequence[str]) -> list[Planned]:
    """A process is ended, and what has just taken its place meets a fault at once."""
    ending = [chosen for chosen in possible if chosen[1] in topology and _ends(chosen, topology)]
    if not ending:
        return []
    first = ending[pick(len(ending))]
    next_ones = [chosen for chosen in possible if chosen[1] == first[1]]
    return [_inject(first), _inject(next_ones[pick(len(next_ones))], at_once=True)]


def before_an_acknowledgement(pick: Pick, possible: Possible, topology: Sequence[str]) -> list[Planned]:
    """A fault right before an operation, and healed right after it."""
    del topology
    chosen = possible[pick(len(possible))]
    return [_inject(chosen), Planned("op", at_once=True), _heal(chosen, at_once=True)]


def all_of_a_kind(pick: Pick, possible: Possible, topology: Sequence[str]) -> list[Planned]:
    """Every process that a declaration matches: by its pattern in one step, or one by one."""
    declared = sorted({id(fault): fault for fault, target in possible if target in topology}.values(), key=repr)
    members = {
        id(fault): [target for other, target in possible if other is fault and target in topology] for fault in declared
    }
    several = [fault for fault in declared if len(members[id(fault)]) > 1]
    if not several:
        return []
    fault = several[pick(len(several))]
    if (fault, fault.target) in possible and pick(2):
        return [_inject((fault, fault.target))]
    return [_inject((fault, target), at_once=True) for target in members[id(fault)]]


def the_same_twice(pick: Pick, possible: Possible, topology: Sequence[str]) -> list[Planned]:
    """The same fault at the same target again."""
    chosen = possible[pick(len(possible))]
    heal = [] if _ends(chosen, topology) else [_heal(chosen)]
    return [_inject(chosen), *heal, _inject(chosen)]


PATTERNS: tuple[Callable[[Pick, Possible, Sequence[str]], list[Planned]], ...] = (
    swizzle,
    during_recovery,
    before_an_acknowledgement,
    all_of_a_kind,
    the_same_twice,
)
