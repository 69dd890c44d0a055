"""Links and monitors of one node: who is to be told of whose death.  Pure data, kept by the node's root.

Source: Erlang Reference Manual, Processes: links are two-way and one a pair; monitors are one-way,
and each one made is one message.
"""

from __future__ import annotations

from typing import NamedTuple


class Watch(NamedTuple):
    """A monitor: `number` is unique to its `watcher`; `name` is what was monitored, if it was a name."""

    watcher: int
    number: int
    target: int
    name: str | None = None


class Relations:
    """Everything is by incarnation id; a watcher may also be a client from outside."""

    def __init__(self) -> None:
        self._links: dict[int, dict[int, None]] = {}
        self._watches: dict[tuple[int, int], Watch] = {}
        self._watched: dict[int, dict[tuple[int, int], None]] = {}

    def link(self, one: int, other: int) -> None:
        """Link two living processes; a second link of the same pair is the first."""
        if one != other:
            self._links.setdefault(one, {})[other] = None
            self._links.setdefault(other, {})[one] = None

    def unlink(self, one: int, other: int) -> None:
        """End the link of a pair, if there is one."""
        for near, far in ((one, other), (other, one)):
            linked = self._links.get(near)
            if linked is not None:
                linked.pop(far, None)
                if not linked:
                    del self._links[near]

    def monitor(self, watch: Watch) -> None:
        """Add a monitor on a living process."""
        key = watch.watcher, watch.number
        self._watches[key] = watch
        self._watched.setdefault(watch.target, {})[key] = None

    def demonitor(self, watcher: int, number: int) -> None:
        """End a monitor, if it is still there."""
        watch = self._watches.pop((watcher, number), None)
        if watch is not None:
            self._forget(watch)

    def _forget(self, watch: Watch) -> None:
        watched = self._watched[watch.target]
        del watched[watch.watcher, watch.number]
        if not watched:
            del self._watched[watch.target]

    def died(self, id_: int) -> tuple[list[int], list[Watch]]:
        """Take a dead process out: who was linked to it, and the monitors on it, each in order of making."""
        linked = list(self._links.get(id_, ()))
        for other in linked:
            self.unlink(id_, other)
        watches = [self._watches.pop(key) for key in self._watched.pop(id_, ())]
        for key in [key for key in self._watches if key[0] == id_]:
            self._forget(self._watches.pop(key))
        return linked, watches

    def linked(self, id_: int) -> list[int]:
        """Whom a process is linked to."""
        return list(self._links.get(id_, ()))

    def monitors(self, id_: int) -> list[int]:
        """Whom a process monitors, once for each monitor."""
        return [watch.target for key, watch in self._watches.items() if key[0] == id_]

    def watchers(self, id_: int) -> list[int]:
        """Who monitors a process, once for each monitor."""
        return [watcher for watcher, _ in self._watched.get(id_, ())]
