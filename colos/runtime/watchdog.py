"""Processes that are stopped or stuck rather than dead: whose event loop has not turned for their heartbeat_s.

First such a process is made to write its stacks, then it is killed; its supervisor decides.  Who is
itself kept from the CPU judges nobody.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import anyio

from colos.runtime import process, reasons
from colos.runtime.incarnation import Child
from colos.runtime.stats import read_stats

if TYPE_CHECKING:
    from colos.runtime.root import Root

_STACK_S: Final = 0.2
"""What it has for writing its stacks."""
_LOOKS: Final = 4
"""So many within the shortest heartbeat_s."""


class Watchdog:
    """Looks at the heartbeats of a node's processes."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._seen: dict[int, tuple[str, float]] = {}
        """By id: the beats when they last changed, and when that was."""

    async def run(self) -> None:
        """Watch for ever; it sleeps while there is nobody to watch."""
        while True:
            watched = self._watched()
            if not watched:
                self._seen.clear()
                await self._root.changes.wait()
                continue
            pause_s = min(limit_s for _, limit_s in watched) / _LOOKS
            before = time.monotonic()
            await anyio.sleep(pause_s)
            late_s = time.monotonic() - before - pause_s
            for child, limit_s in watched:
                self._look(child, limit_s, late_s)

    def _watched(self) -> list[tuple[Child, float]]:
        return [
            (child, child.plan.heartbeat_s)
            for child in self._root.children.values()
            if child.plan.heartbeat_s is not None and child.ready
        ]

    def _look(self, child: Child, limit_s: float, late_s: float) -> None:
        if child.record is not None:
            return
        beats = read_stats(f"{self._root.dir.actor(child.id)}/stats").get("beat", "")
        now = time.monotonic()
        seen, since = self._seen.get(child.id, ("", now))
        if beats != seen:
            self._seen[child.id] = (beats, now)
        else:
            self._seen[child.id] = (seen, since + late_s)  # while this process had no CPU, that one may have had none
            if now - since - late_s > limit_s and child.condemned is None:
                self._root.tasks.start_soon(self._end, child, limit_s)
                self._seen.pop(child.id)

    async def _end(self, child: Child, limit_s: float) -> None:
        process.complain(f"{child.path}: its event loop has stood still for {limit_s:g} s")
        self._root.quit(child)
        await self._root.until(lambda: child.record is not None, _STACK_S)
        self._root.condemn(child, reasons.UNRESPONSIVE)
