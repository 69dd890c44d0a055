"""Which fault comes next in an example: all from Hypothesis's choices.

Each example draws which declared kinds take part (swarm testing, Groce et al., 2012: what is left out
lets the rest go further), and now and then a plan after a known bad pattern (`colos.chaos.patterns`);
else each kind is as likely as a heal.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from hypothesis import strategies as st

from colos.chaos.fault import Fault
from colos.chaos.patterns import PATTERNS, Planned
from colos.chaos.scenario import Inject

__all__ = ["Nemesis", "Options"]

Options: TypeAlias = list[tuple[Fault | None, list[Any]]]
"""Each fault that may be injected now with its targets; and None with the leases that may end."""

#: One example in so many leaves kinds out; and one turn of the nemesis in so many begins a plan.  Twice as many of
#: either found the demo's bug later (over 30 seeds): it needs one certain fault, and few steps.
_SWARM_IN, _PLAN_IN = 3, 5


@functools.cache
def _below(number: int) -> Any:
    return st.integers(0, number - 1)  # a new strategy for each step would cost more than all else that Hypothesis does


@functools.cache
def _arguments_of(fault: Fault) -> Any:
    return fault.arguments()


class Nemesis:
    """What breaks and mends the machine in one example.  `draw` is Hypothesis's, as of a composite strategy."""

    def __init__(self, declared: Sequence[Fault], topology: Callable[[], Sequence[str]]) -> None:
        self._declared = declared
        self._topology = topology
        self._swarm: frozenset[str] | None = None
        self._plan: deque[Planned] = deque()

    def among(self, draw: Any, options: Options, unavailable: Sequence[str]) -> Options:
        """Those of the options that this example is about.  Draws which kinds those are when it is first asked."""
        if not options:
            return options
        if self._swarm is None:
            self._swarm = self._draw_swarm(draw, sorted({fault.kind for fault in self._declared} - set(unavailable)))
        return [(fault, chosen) for fault, chosen in options if fault is None or fault.kind in self._swarm]

    def _draw_swarm(self, draw: Any, kinds: list[str]) -> frozenset[str]:
        if len(kinds) < 2 or draw(_below(_SWARM_IN)) != 0:
            return frozenset(kinds)
        chosen = [kind for kind in kinds if draw(_below(2))]
        return frozenset(chosen or [kinds[draw(_below(len(kinds)))]])

    def has_urgent_fault(self) -> bool:
        """Whether the plan's next step is a fault or heal that leaves no turn to the author before it."""
        return bool(self._plan) and self._plan[0].at_once and self._plan[0].action != "op"

    def takes_urgent_op(self) -> bool:
        """Whether the plan's next step is the author's; it counts as taken."""
        if self._plan and self._plan[0].action == "op":
            self._plan.popleft()
            return True
        return False

    def draw(self, draw: Any, options: Options, active: Sequence[Inject]) -> tuple[Fault | None, Any]:
        """Which fault with which target and arguments, or which lease to end."""
        self.takes_urgent_op()  # no operation was possible
        if not self._plan and draw(_below(_PLAN_IN)) == 0:
            self._plan.extend(self._draw_plan(draw, options))
        if self._plan:
            choice = self._planned(draw, self._plan.popleft(), options, active)
            if choice is not None:
                return choice
            self._plan.clear()
        fault, targets = options[draw(_below(len(options)))]
        target = targets[draw(_below(len(targets)))]
        return (fault, target) if fault is None else (fault, (target, draw(_arguments_of(fault))))

    def _draw_plan(self, draw: Any, options: Options) -> list[Planned]:
        possible = [(fault, target) for fault, targets in options if fault is not None for target in targets]
        if not possible:
            return []

        def pick(number: int) -> int:
            return int(draw(_below(number)))

        return PATTERNS[pick(len(PATTERNS))](pick, possible, self._topology())

    def _planned(
        self, draw: Any, step: Planned, options: Options, active: Sequence[Inject]
    ) -> tuple[Fault | None, Any] | None:
        """The choice that carries a planned step out, if it is possible now."""
        if step.action == "heal":
            leases = [one.id for one in active if (one.fault, one.target) == (step.kind, step.target)]
            return (None, leases[-1]) if leases else None
        for fault, targets in options:
            if fault is not None and fault.kind == step.kind and step.target in targets:
                return fault, (step.target, draw(_arguments_of(fault)))
        return None
