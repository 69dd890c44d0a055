"""Running several lists of steps at once, each in a sandbox of its own.

Where every sandbox is its own machine, two runs have nothing in common but the cores.  A lane is a thread with an
event loop, a journal and counters of its own; the first lane is the caller's thread.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

from colos.chaos.bridge import Outlet
from colos.chaos.executor import Executor, Setting
from colos.chaos.hostlock import acts_on_host
from colos.chaos.journal import Journal
from colos.chaos.machine import ChaosMachine
from colos.chaos.properties import Verdict
from colos.chaos.rerun import Rerun
from colos.chaos.sandbox.spec import NAMESPACES
from colos.chaos.scenario import Inject, Step
from colos.chaos.simplify import Rules

__all__ = ["Lanes", "how_many"]

_MOST = 8
Make = Callable[[Setting, int], ChaosMachine]
"""A machine for so many steps, with its executor, in a setting."""


def how_many(setting: Setting, steps: Sequence[Step], *, alone: bool) -> int:
    """How many runs of `steps` can go on at once and not disturb each other.

    One, where the sandboxes share a machine and where the steps act on all of it; `alone` says that the caller knows
    of another reason.
    """
    taken = acts_on_host(setting.kinds[step.fault] for step in steps if isinstance(step, Inject))
    if setting.session.tier != NAMESPACES or taken or alone:
        return 1
    return max(1, min(_MOST, len(os.sched_getaffinity(0))))


class Lanes:
    """Runs batches of steps, as many at once as there are lanes: the caller's thread is the first.  Close it.

    What a run raises is raised in the caller's thread, when the others of its batch have ended.
    """

    def __init__(self, setting: Setting, rules: Rules, make: Make, count: int) -> None:
        self.count = count
        self._here = Rerun(rules, lambda steps: make(setting, steps))
        self._beside = [_Lane(setting, rules, make, number) for number in range(2, count + 1)]

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for lane in self._beside:
            lane.close()

    def __call__(self, batch: Sequence[Sequence[Step]]) -> list[tuple[Verdict, Executor]]:
        """Run each list of steps in a fresh sandbox; what came of them, in their order."""
        done: list[tuple[Verdict, Executor]] = []
        for start in range(0, len(batch), self.count):
            first, *others = batch[start : start + self.count]
            futures = [lane.begin(steps) for lane, steps in zip(self._beside, others, strict=False)]
            try:
                done.append(self._here(first))
            finally:
                wait(futures)  # whatever happened here: nothing goes on behind the caller's back
            done += [future.result() for future in futures]
        return done


class _Lane:
    """A thread beside the caller's, with a setting of its own."""

    def __init__(self, items: Setting, rules: Rules, make: Make, number: int) -> None:
        path = items.journal.path
        self._items = items
        self._own = own = replace(
            items,
            outlet=Outlet(items.outlet.backend),
            journal=Journal(path.with_name(f"{path.stem}-lane{number}{path.suffix}")),
            fired=Counter(),
            injected=Counter(),
            mechanisms={},
            seen_sometimes=set(),
        )
        self._rerun = Rerun(rules, lambda steps: make(own, steps))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"colos-lane{number}")

    def begin(self, steps: Sequence[Step]) -> Future[tuple[Verdict, Executor]]:
        """Run steps in this lane's thread."""
        return self._thread.submit(self._rerun, steps)

    def close(self) -> None:
        """End its loop and thread, and add what it counted to what the item counted."""
        try:
            self._thread.submit(self._own.session.forgo).result()
        finally:
            self._thread.shutdown()
            self._own.outlet.close()
            self._own.journal.close()
        self._items.fired.update(self._own.fired)
        self._items.injected.update(self._own.injected)
        self._items.mechanisms.update(self._own.mechanisms)
        self._items.seen_sometimes.update(self._own.seen_sometimes)
