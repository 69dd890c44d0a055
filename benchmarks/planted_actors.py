"""Three actors with a planted bug: known restarts and marks, in their order, break a promise with a known chance."""

# ruff: noqa: ASYNC240 - small files of its own, nobody waits
from __future__ import annotations

import os
import random
from pathlib import Path

from colos.runtime import Actor, ChildSpec, Supervisor

NAMES = ("a", "b", "c")
#: What must happen in this order, and how often the promise is broken then.
BUGS = {
    "one fault": (("a",), 1.0),
    "two faults": (("b", "a"), 1.0),
    "two faults, p = 0.9": (("b", "a"), 0.9),
    "two faults, p = 0.5": (("b", "a"), 0.5),
    "two faults, p = 0.2": (("b", "a"), 0.2),
    "fault, op, fault": (("c", "mark", "b"), 1.0),
    "fault, op, fault, p = 0.5": (("c", "mark", "b"), 0.5),
    "three faults": (("a", "c", "b"), 1.0),
    "three faults, p = 0.5": (("a", "c", "b"), 0.5),
    "what an op made": (("b", "use"), 1.0),
    "what an op made, p = 0.5": (("b", "use"), 0.5),
    "four faults": (("b", "a", "b", "c"), 1.0),
    "four faults, p = 0.5": (("b", "a", "b", "c"), 0.5),
}
#: How often a run breaks the other promise, for no reason that its steps give.
NOISE = 0.02


class Part(Actor):
    """Notes its restarts, and what it is told, in a file that all three share."""

    def __init__(self, name: str, needed: tuple[str, ...], chance: float) -> None:
        self._name = name
        self._needed = needed
        self._chance = chance

    async def init(self) -> None:
        born = Path(f"born-{self._name}")
        if born.exists():
            self._happened(self._name)
        born.touch()

    async def mark(self) -> None:
        self._happened("mark")

    async def use(self, number: int) -> None:
        del number
        self._happened("use")

    async def broken(self) -> list[str]:
        return [name for name in ("bug", "noise") if os.path.exists(name)]

    def _happened(self, what: str) -> None:
        chance = random.SystemRandom().random  # a fork would inherit the seed
        log = Path("log")
        before = log.read_text().split() if log.exists() else []
        if not before and chance() < NOISE:
            Path("noise").touch()
        with log.open("a") as file:
            file.write(f"{what}\n")
        if _has(self._needed, [*before, what]) and not _has(self._needed, before) and chance() < self._chance:
            Path("bug").touch()


def _has(needed: tuple[str, ...], happened: list[str]) -> bool:
    left = iter(happened)
    return all(one in left for one in needed)


def _supervisor(bug: str) -> type[Supervisor]:
    class Planted(Supervisor):
        intensity = 100

        def children(self) -> list[ChildSpec]:
            return [ChildSpec(name, Part, (name, *BUGS[bug]), name=name) for name in NAMES]

    Planted.__qualname__ = Planted.__name__ = SUPERVISORS[bug]
    return Planted


#: By the names under which a node finds them here.
SUPERVISORS = {bug: f"Planted{number}" for number, bug in enumerate(BUGS)}
globals().update({SUPERVISORS[bug]: _supervisor(bug) for bug in BUGS})
