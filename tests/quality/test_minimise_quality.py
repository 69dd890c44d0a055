"""How good minimising is: on seeded toy systems with a bug of two ordered faults, among noise.

All chance comes from the seeds here, so the counts are exact.  A change of the search changes them:
update them only if the new figures are better, or the reason is worth it.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from colos.chaos.minimise import Budget, confirm, minimise
from colos.chaos.scenario import Heal, Inject, Op, Ref, Step, identity

BUG = "always:no_write_is_lost"
OTHER = "always:clocks_agree"
NODES = ("n0", "n1", "n2", "n3", "n4")
SYSTEMS = 60


def loses_a_write(steps: Sequence[Step]) -> bool:
    """Whether a disk fills up on a node that was killed and not restarted since."""
    dead: set[str | None] = set()
    for step in steps:
        if isinstance(step, Inject) and step.fault == "kill":
            dead.add(step.target)
        elif isinstance(step, Op) and step.name == "restart":
            dead.discard(str(step.args["node"]))
        elif isinstance(step, Inject) and step.fault == "disk-full" and step.target in dead:
            return True
    return False


def random_steps(rng: random.Random, length: int) -> Iterator[Step]:
    begun: list[str] = []
    made = 0
    for index in range(length):
        kind = rng.choice(["kill", "disk-full", "partition", "pause", "restart", "make", "put", "get", "heal"])
        node = rng.choice(NODES)
        if kind in ("kill", "disk-full", "partition", "pause"):
            begun.append(f"f{index}")
            yield Inject(kind, begun[-1], node)
        elif kind == "heal" and begun:
            yield Heal(begun.pop(rng.randrange(len(begun))))
        elif kind == "make":
            made += 1
            yield Op("make", {"node": node}, (f"key_{made}",))
        elif kind == "restart":
            yield Op("restart", {"node": node})
        else:
            yield Op(kind, {"key": Ref(f"key_{rng.randint(1, made)}") if made else "k"})


def systems() -> Iterator[tuple[Step, ...]]:
    """Failing step lists of 15 to 30 steps, cut after the violating one, as the executor does."""
    rng = random.Random(1)
    while True:
        steps = tuple(random_steps(rng, 30))
        cuts = (length for length in range(len(steps) + 1) if loses_a_write(steps[:length]))
        length = next(cuts, 0)
        if length >= 15:
            yield steps[:length]


@dataclass
class Outcome:
    """Of all systems: whose bug is still there, who came down to two steps, who never failed when confirmed."""

    kept: int
    minimal: int
    unconfirmed: int
    runs_median: float


def try_all(rate: float, noise: float, *, confirm_runs: int) -> Outcome:
    """Minimises each system's failure, which shows with probability `rate`, `noise` hiding it."""
    outcome, runs_used = Outcome(0, 0, 0, 0), []
    for seed, steps in zip(range(SYSTEMS), systems(), strict=False):
        run, ran = noisy(random.Random(seed), rate, noise)
        budget = Budget(1_000, float("inf"))
        repro = confirm(run, steps, BUG, runs=confirm_runs, budget=budget)
        result = minimise(run, steps, BUG, repro, budget=budget)
        assert identity(result.steps) in {identity(steps), *ran}
        assert not result.exhausted
        outcome.unconfirmed += repro.failed == 0
        outcome.kept += loses_a_write(result.steps)
        outcome.minimal += len(result.steps) == 2
        runs_used.append(result.runs_used)
    outcome.runs_median = statistics.median(runs_used)
    return outcome


def noisy(rng: random.Random, rate: float, noise: float) -> tuple[Callable[[Sequence[Step]], str | None], set[str]]:
    """The toy system, and the identities of the steps that were seen failing with the bug."""
    seen: set[str] = set()

    def run(steps: Sequence[Step]) -> str | None:
        if rng.random() < noise:
            return OTHER
        if loses_a_write(steps) and rng.random() < rate:
            seen.add(identity(steps))
            return BUG
        return None

    return run, seen


@pytest.mark.parametrize(
    ("rate", "noise", "runs_median"),
    [(1.0, 0.0, 23), (1.0, 0.02, 25), (0.9, 0.02, 31), (0.5, 0.0, 61), (0.5, 0.02, 63)],
)
def test_the_bug_is_kept_and_made_minimal(rate, noise, runs_median):
    outcome = try_all(rate, noise, confirm_runs=10)
    assert outcome == Outcome(kept=SYSTEMS, minimal=SYSTEMS, unconfirmed=0, runs_median=runs_median)


def test_fewer_confirming_runs_cost_some_quality():
    """Five runs may miss a failure that shows every other time (3 %), and then nothing is minimised."""
    outcome = try_all(0.5, 0.02, confirm_runs=5)
    assert outcome == Outcome(kept=SYSTEMS, minimal=54, unconfirmed=3, runs_median=58.5)


def test_a_bug_of_many_steps_stays_whole():
    """Four faults in order, in 40 steps: cutting in halves alone would not get there."""
    needed = ("a", "b", "c", "d")
    rng = random.Random(7)
    for _ in range(20):
        names = [rng.choice("abcdefghijkl") for _ in range(40)]
        for position, name in zip(sorted(rng.sample(range(40), 4)), needed, strict=True):
            names[position] = name

        def run(steps: Sequence[Step]) -> str | None:
            left = iter([step.name for step in steps if isinstance(step, Op)])
            return BUG if all(name in left for name in needed) else None

        steps = [Op(name) for name in names]
        budget = Budget(150, float("inf"))
        result = minimise(run, steps, BUG, confirm(run, steps, BUG, budget=budget), budget=budget)
        assert tuple(step.name for step in result.steps if isinstance(step, Op)) == needed
        assert not result.exhausted
