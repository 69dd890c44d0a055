"""What a few runs of something noisy prove: rates, and Wald's sequential probability ratio test."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from colos.chaos.scenario import Repro

__all__ = ["RatioTest", "error_of", "rate_of"]


def rate_of(repro: Repro) -> float:
    """How often the steps fail, as far as is known: by Laplace's rule, which never says never or always.

    The run in which the failure was found is the failure that the rule adds.
    """
    return (repro.failed + 1) / (repro.runs + 2)


def error_of(repro: Repro) -> float:
    """The standard error of that rate."""
    rate = rate_of(repro)
    return math.sqrt(rate * (1 - rate) / (repro.runs + 3))


@dataclass(frozen=True)
class RatioTest:
    """Whether something fails at `high` or only at `low`, told after as few runs as that takes.

    `false_yes` is the chance to say `high` of what fails at `low`, `false_no` the opposite one.
    """

    low: float
    high: float
    false_yes: float = 0.05
    false_no: float = 0.05

    def verdict(self, failed: int, passed: int) -> bool | None:
        """True for `high`, False for `low`, None while it may still be either."""
        evidence = self._evidence(failed, passed)
        if evidence >= self._bounds[1]:
            return True
        return False if evidence <= self._bounds[0] else None

    def passes_to_no(self, failed: int, passed: int) -> int:
        """How many more passing runs in a row would bring the verdict `low`."""
        return max(0, math.ceil((self._bounds[0] - self._evidence(failed, passed)) / self._weights[1]))

    def _evidence(self, failed: int, passed: int) -> float:
        of_failure, of_pass = self._weights
        return failed * of_failure + passed * of_pass

    @functools.cached_property
    def _weights(self) -> tuple[float, float]:
        return math.log(self.high / self.low), math.log((1 - self.high) / (1 - self.low))

    @functools.cached_property
    def _bounds(self) -> tuple[float, float]:
        return math.log(self.false_no / (1 - self.false_yes)), math.log((1 - self.false_no) / self.false_yes)
