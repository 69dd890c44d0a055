"""How much a search may cost, and what it says of itself while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from colos.chaos.scenario import Step

__all__ = ["Budget", "Progress"]


@dataclass
class Budget:
    """At most so many `runs`, and no new one after so many `seconds` since the first."""

    runs: int
    seconds: float
    clock: Callable[[], float] = time.monotonic
    used: int = field(default=0, init=False)
    _started_s: float | None = field(default=None, init=False, repr=False)

    def spend(self) -> None:
        """Counts one run, which is about to begin."""
        if self._started_s is None:
            self._started_s = self.clock()
        self.used += 1

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first run began."""
        return 0.0 if self._started_s is None else self.clock() - self._started_s

    def allows(self, *, keeping: int = 0) -> bool:
        """Whether one more run may begin while `keeping` more, of average length, still fit afterwards."""
        kept_s = keeping * self.elapsed_s / max(self.used, 1)
        return self.used + keeping < self.runs and self.elapsed_s + kept_s < self.seconds


@dataclass(frozen=True)
class Progress:
    """Where the search is, told after every batch of runs; `best` are the shortest failing steps so far.

    `runs_left` is a rough estimate of the runs that are still to come, never above what the budget allows;
    `seconds_left` the same in time, at the pace so far.
    """

    phase: str
    runs_used: int
    runs_max: int
    elapsed_s: float
    steps_at_start: int
    best: tuple[Step, ...]
    runs_left: int

    @property
    def seconds_left(self) -> float:
        """How long the runs that are left take, if they take as long as those before."""
        return self.runs_left * self.elapsed_s / max(self.runs_used, 1)
