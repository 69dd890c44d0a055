"""How good minimising is, on simulated systems with planted bugs whose shortest scenario is known.

All chance comes from the seeds here, so the counts are exact.  What is required: of all trials the bug is
kept in 98 %, the known minimal length is reached in 95 %, and one whose failure shows every other time takes
no more than 150 executions in the median, confirming included.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from colos.chaos.minimise import Budget, confirm, minimise
from colos.chaos.outcomes import Options
from colos.chaos.scenario import Heal, Inject, Op, Ref, Step

BUG = "always:no_write_is_lost"
OTHER = "always:clocks_agree"
NODES = ("n0", "n1", "n2")
KINDS = ("kill", "disk-full", "partition", "pause")
TRIALS = 300

#: What must happen, in this order, for the bug to show: one to four faults, and two with an op between them.
PLANTED = {
    "one fault": (("kill", "n0"),),
    "two faults": (("kill", "n0"), ("disk-full", "n1")),
    "three faults": (("kill", "n0"), ("disk-full", "n1"), ("pause", "n0")),
    "four faults": (("kill", "n0"), ("disk-full", "n1"), ("pause", "n0"), ("partition", "n2")),
    "an op between": (("kill", "n0"), ("put", "n0"), ("disk-full", "n1")),
    # What is read has to have been made, which makes the shortest list one step longer.
    "what an op made": (("kill", "n0"), ("get", "n1")),
    "what two ops made": (("get", "n1"), ("kill", "n0"), ("get", "n2")),
}


@dataclass
class System:
    """Fails with probability `rate` once the planted steps happened; `noise` is the chance of an unrelated failure,
    and `same_noise` the part of it that violates the same property."""

    planted: tuple[tuple[str, str], ...]
    rate: float
    noise: float
    rng: random.Random
    same_noise: float = 0.0
    batches: int = 0

    def fails(self, steps: Sequence[Step]) -> bool:
        names = iter(list(_names(steps)))
        return all(part in names for part in self.planted)

    @property
    def shortest(self) -> int:
        return len(self.planted) + len({node for name, node in self.planted if name == "get"})

    def run(self, batch: Sequence[Sequence[Step]]) -> list[str | None]:
        self.batches += 1
        return [self._run_one(steps) for steps in batch]

    def _run_one(self, steps: Sequence[Step]) -> str | None:
        luck = self.rng.random()
        if luck < self.noise:
            return BUG if luck < self.same_noise else OTHER
        if self.rng.random() < self.rate and self.fails(steps):
            return BUG
        return None


def _names(steps: Sequence[Step]) -> Iterator[tuple[str, str | None]]:
    """What each step does, and where; to read a key is done where it was made."""
    made: dict[str, str] = {}
    for step in steps:
        match step:
            case Inject():
                yield step.fault, step.target
            case Op(args={"key": Ref(name=name)}):
                yield step.name, made.get(name, "")
            case Op():
                node = str(step.args.get("node", ""))
                made |= dict.fromkeys(step.results, node)
                yield step.name, node
            case Heal():
                yield "heal", None


def random_steps(rng: random.Random, length: int) -> Iterator[Step]:
    begun: list[str] = []
    made = 0
    for index in range(length):
        kind = rng.choice([*KINDS, "restart", "put", "make", "get", "heal"])
        node = rng.choice(NODES)
        if kind in KINDS:
            begun.append(f"f{index}")
            yield Inject(kind, begun[-1], node)
        elif kind == "heal" and begun:
            yield Heal(begun.pop(rng.randrange(len(begun))))
        elif kind == "make":
            made += 1
            yield Op("make", {"node": node}, (f"key_{made}",))
        elif kind == "get":
            yield Op("get", {"key": Ref(f"key_{rng.randint(1, made)}") if made else "k"})
        else:
            yield Op(kind, {"node": node})


def found_by(system: System, rng: random.Random) -> tuple[Step, ...]:
    """What a search comes with: at most 8 to 16 steps, of which the last one completes what the bug needs."""
    steps = list(random_steps(rng, rng.randint(8, 16) - len(system.planted)))
    places = sorted(rng.randint(0, len(steps)) for _ in system.planted[1:])
    for before, (place, (kind, node)) in enumerate(zip([*places, len(steps)], system.planted, strict=True)):
        steps.insert(place + before, _planted(kind, node, before))
    for kind, node in system.planted:
        if kind == "get":
            steps.insert(0, Op("make", {"node": node}, (f"planted_{node}",)))
    length = next(length for length in range(len(steps) + 1) if system.fails(steps[:length]))
    return tuple(steps[:length])


def _planted(kind: str, node: str, number: int) -> Step:
    if kind == "get":
        return Op("get", {"key": Ref(f"planted_{node}")})
    return Op(kind, {"node": node}) if kind == "put" else Inject(kind, f"p{number}", node)


@dataclass
class Figures:
    kept: int = 0
    minimal: int = 0
    runs: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        runs = statistics.median(self.runs)
        return (
            f"of {len(self.runs)}: kept {self.kept}, minimal {self.minimal}; runs: median {runs}, most {max(self.runs)}"
        )

    def required(self) -> bool:
        """Whether the bug was kept in 98 % and made minimal in 95 %."""
        return self.kept >= 0.98 * len(self.runs) and self.minimal >= 0.95 * len(self.runs)


def try_all(planted: str, rate: float, *, noise: float = 0.02, same_noise: float = 0.0, lanes: int = 1) -> Figures:
    figures = Figures()
    for seed in range(TRIALS):
        rng = random.Random(seed)
        system = System(PLANTED[planted], rate, noise, rng, same_noise)
        steps = found_by(system, rng)
        budget = Budget(Options().minimise_runs, float("inf"))
        repro = confirm(system.run, steps, BUG, budget=budget, lanes=lanes)
        result = minimise(system.run, steps, BUG, repro, budget=budget, lanes=lanes)
        figures.kept += system.fails(result.steps)
        figures.minimal += system.fails(result.steps) and len(result.steps) == system.shortest
        figures.runs.append(budget.used)
        figures.batches.append(system.batches)
    return figures


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize(("rate", "runs_median_most"), [(0.9, 60), (0.5, 150), (0.2, 350)])
def test_the_bug_is_kept_and_made_minimal(planted, rate, runs_median_most):
    figures = try_all(planted, rate)
    assert figures.required(), str(figures)
    assert statistics.median(figures.runs) <= runs_median_most


def test_two_lanes_take_half_as_long():
    figures = try_all("an op between", 0.5, lanes=2)
    assert figures.required(), str(figures)
    assert statistics.median(figures.runs) <= 150
    assert statistics.median(figures.batches) <= 0.6 * statistics.median(figures.runs)


def test_unrelated_failures_of_the_same_property_do_not_become_the_bug():
    """One run in 200 violates the very property for another reason: an accepted candidate is measured for that."""
    figures = try_all("two faults", 0.5, same_noise=0.005)
    assert figures.required(), str(figures)
    assert statistics.median(figures.runs) <= 150
