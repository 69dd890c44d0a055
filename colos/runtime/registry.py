"""Names: which incarnation is alive under a registered name or at a path.

Kept by the node's root alone.  A name is freed when its actor is found dead, before anybody is told.
"""

from __future__ import annotations

from typing import NamedTuple

from colos.errors import NoSuchActor


class Entry(NamedTuple):
    """One incarnation."""

    path: str
    id: int


class Registry:
    """Unique names and paths of living incarnations.  A path holds a "/", a name never does."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def add(self, entry: Entry, name: str | None) -> None:
        """Register an incarnation at its path, and under a name if it has one; both must be free."""
        for key in (entry.path, name):
            if key is not None and key in self._entries:
                raise ValueError(f"{key!r} is taken by {self._entries[key]}")
        self._entries[entry.path] = entry
        if name is not None:
            self._entries[name] = entry

    def remove(self, id_: int) -> list[str]:
        """Free everything an incarnation holds; returns its names (not its path)."""
        held = [key for key, entry in self._entries.items() if entry.id == id_]
        for key in held:
            del self._entries[key]
        return [key for key in held if "/" not in key]

    def whereis(self, name: str) -> Entry:
        """Who is there now.  Raises NoSuchActor."""
        try:
            return self._entries[name]
        except KeyError:
            raise NoSuchActor(name, self._nearby(name)) from None

    def _nearby(self, name: str) -> str:
        known = sorted(key for key in self._entries if ("/" in key) == ("/" in name))
        return f"known now: {', '.join(known)}" if known else "nothing is registered now"
