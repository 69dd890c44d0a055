"""What is remembered of the dead: so many of each path, and so many of all that were spawned alike.

Every spawned process has a path of its own (`app/driver/Worker-17`), so a bound for each path alone would let
a node that spawns for ever remember for ever.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from colos.runtime.rundir import ExitRecord

KEEP_ALIKE: Final = 256
"""How many are remembered of all whose paths differ only in the number at their end."""
_EXITS_KEPT: Final = 16
_REASONS_KEPT: Final = 4096

T = TypeVar("T")
_NUMBER = re.compile(r"-\d+$")


class Recent(Generic[T]):
    """The latest of each path, in order."""

    def __init__(self, per_path: int, per_family: int) -> None:
        """A family is the paths that differ only in the number at their end."""
        self._per_path = per_path
        self._per_family = per_family
        self._paths: dict[str, deque[T]] = {}
        self._families: dict[str, deque[str]] = {}

    def add(self, path: str, item: T) -> list[T]:
        """Remember an item; what is forgotten for it."""
        items = self._paths.setdefault(path, deque())
        items.append(item)
        if len(items) > self._per_path:
            return [items.popleft()]
        family = self._families.setdefault(_NUMBER.sub("", path), deque())
        family.append(path)
        if len(family) > self._per_family:
            return [self._forget(family.popleft())]
        return []

    def _forget(self, path: str) -> T:
        items = self._paths[path]
        oldest = items.popleft()
        if not items:
            del self._paths[path]
        return oldest

    def of(self, path: str) -> list[T]:
        """What is remembered of a path, the oldest first."""
        return list(self._paths.get(path, ()))


class Departed:
    """How a node's processes and supervisors ended."""

    def __init__(self) -> None:
        self._ends: Recent[ExitRecord] = Recent(_EXITS_KEPT, KEEP_ALIKE)
        self._reasons: dict[int, object] = {}

    def add(self, record: ExitRecord) -> None:
        """One more."""
        self._ends.add(record.path, record)
        self._reasons[record.id] = record.reason
        if len(self._reasons) > _REASONS_KEPT:
            del self._reasons[next(iter(self._reasons))]

    def of(self, path: str) -> list[ExitRecord]:
        """The latest ends of a path, the oldest first."""
        return self._ends.of(path)

    def reason(self, id_: int) -> object:
        """Why one ended; an empty string if it lives, or ended too long ago."""
        return self._reasons.get(id_, "")
