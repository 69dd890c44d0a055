"""From a first failure to a saved file, on real systems of three actors with planted bugs.

    python benchmarks/failures.py [--trials 20] [--only SUBSTRING]

Each trial draws steps (kills, calls, some of which need what others have made) that hold the planted ones in their
order, runs them until the promise is broken, and has that failure confirmed, minimised and saved.  2 % of all runs
break another promise.  *kept*: the saved steps still hold the planted ones; *minimal*: they are those and nothing else
but what they cannot do without.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import planted_actors
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, rule
from planted_actors import BUGS, NAMES, SUPERVISORS

from colos.chaos import ActorSystem, ChaosMachine, Kill, always
from colos.chaos.driver import Driver
from colos.chaos.executor import Executor
from colos.chaos.sandbox.session import Session
from colos.chaos.scenario import Inject, Op, Ref, Step, load

LENGTHS = (10, 20)
MADE = Bundle("made")
TRIES_MAX = 200


def machine(bug: str) -> type[ChaosMachine]:
    """The machine of one planted bug."""

    class Planted(ChaosMachine):
        system: Any = ActorSystem(getattr(planted_actors, SUPERVISORS[bug]))
        faults = (Kill("*"),)

        @rule()
        async def mark(self) -> None:
            await (await self.system.whereis("a")).mark()

        @rule(target=MADE)
        async def make(self) -> int:
            return 7

        @rule(number=MADE)
        async def use(self, number: int) -> None:
            await (await self.system.whereis("a")).use(number)

        @rule(number=st.integers(0, 99))
        async def idle(self, number: int) -> None:
            await (await self.system.whereis("b")).broken()

        @always
        async def sound(self) -> bool:
            return "bug" not in await (await self.system.whereis("a")).broken()

        @always
        async def calm(self) -> bool:
            return "noise" not in await (await self.system.whereis("a")).broken()

    return Planted


def step(what: str, rng: random.Random, number: int, made: list[str]) -> Step:
    """One step of a kind; `made` is what those before it have made."""
    if what in NAMES:
        return Inject("kill", f"f{number}", f"*/{what}")
    match what:
        case "mark":
            return Op("mark")
        case "make":
            return Op("make", {}, (f"made_{number}",))
        case "use":
            return Op("use", {"number": Ref(rng.choice(made))})
    return Op("idle", {"number": rng.randrange(100)})


def steps_with(needed: tuple[str, ...], rng: random.Random) -> list[Step]:
    """Steps that hold the needed ones, in their order, among others."""
    kinds = [rng.choice((*NAMES, "mark", "make", "use", "idle", "idle")) for _ in range(rng.randint(*LENGTHS))]
    for place, what in zip(sorted(rng.sample(range(len(kinds)), len(needed))), needed, strict=True):
        kinds[place] = what
    if "use" in kinds:
        kinds.insert(rng.randint(0, kinds.index("use")), "make")
    steps: list[Step] = []
    for number, what in enumerate(kinds):
        made = [name for one in steps if isinstance(one, Op) for name in one.results]
        steps.append(step(what, rng, number, made))
    return steps


def plain(steps: tuple[Step, ...]) -> Iterator[str]:
    """The steps as the planted bug sees them."""
    for one in steps:
        if isinstance(one, Inject):
            yield str(one.target).rpartition("/")[2]
        elif isinstance(one, Op) and one.name in ("mark", "use"):
            yield one.name


def holds(needed: tuple[str, ...], steps: tuple[Step, ...]) -> bool:
    """Whether the needed ones are there, in their order."""
    left = iter(list(plain(steps)))
    return all(one in left for one in needed)


@dataclass
class Trial:
    """What came of one."""

    kept: bool
    minimal: bool
    runs: int
    took_s: float


def trial(driver: Driver, bug: str, seed: int) -> Trial | None:
    """One; None if its failure was never met."""
    needed, _ = BUGS[bug]
    rng = random.Random(f"{bug} {seed}")
    found = first_failure(driver, steps_with(needed, rng))
    if found is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        failure = driver.examine(found, Path(folder))
        took_s = time.perf_counter() - started
        if failure.saved is None:
            return Trial(False, False, failure.minimising_runs, took_s)
        saved = load(failure.saved)
    kept = saved.violates == "always:sound" and holds(needed, saved.steps)
    return Trial(kept, kept and len(saved.steps) == len(needed) + ("use" in needed), failure.minimising_runs, took_s)


def first_failure(driver: Driver, steps: list[Step]) -> Executor | None:
    """Run them until the planted promise is broken."""
    for _ in range(TRIES_MAX):
        verdict, executor = driver.run(steps)
        if verdict.violation is not None and verdict.violation.name == "always:sound":
            return executor
    return None


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--only", default="", help="bugs whose name holds this")
    chosen = parser.parse_args()
    session = Session()
    print(f"{'planted':28} {'trials':>6} {'kept':>5} {'minimal':>7} {'runs':>5} {'most':>5} {'seconds':>8} {'most':>6}")
    try:
        for bug in BUGS:
            if chosen.only in bug:
                print(row(bug, chosen.trials, session), flush=True)
    finally:
        session.close()


def row(bug: str, trials: int, session: Session) -> str:
    """One line of the table."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Driver(machine(bug), session, test="benchmark", journal=Path(folder) / "journal.jsonl") as driver,
    ):
        done = [found for seed in range(trials) if (found := trial(driver, bug, seed)) is not None]
    if not done:
        return f"{bug:28} its failure was never met"
    runs, seconds = [one.runs for one in done], [one.took_s for one in done]
    return (
        f"{bug:28} {len(done):6} {sum(one.kept for one in done):5} {sum(one.minimal for one in done):7} "
        f"{statistics.median(runs):5.0f} {max(runs):5} {statistics.median(seconds):8.1f} {max(seconds):6.1f}"
    )


if __name__ == "__main__":
    main()
