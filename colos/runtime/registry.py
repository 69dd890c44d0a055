"""Names and groups: which incarnation is alive under a registered name, at a path, or in a group.

Kept by the node's root alone.  All that a process holds is freed when it is found dead, before
anybody is told.  Source: erlang:register/2, pg(3).
"""

from __future__ import annotations

from typing import NamedTuple

from colos.errors import NameTaken, NoSuchActor


class Entry(NamedTuple):
    """One incarnation."""

    path: str
    id: int


class Registry:
    """Unique names and paths of living incarnations.  A path holds a "/", a name never does."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._names: dict[int, str] = {}
        self._groups: dict[str, dict[int, Entry]] = {}

    def add(self, entry: Entry) -> None:
        """An incarnation begins to live at its path."""
        self._entries[entry.path] = entry

    def register(self, name: str, entry: Entry) -> None:
        """Give a name to a living process.  Raises NameTaken if either has one already."""
        holder = self._entries.get(name)
        if holder is not None:
            raise NameTaken(name, f"{holder.path} (#{holder.id}) has it")
        if entry.id in self._names:
            raise NameTaken(name, f"{entry.path} has the name {self._names[entry.id]!r}, and a process has one")
        self._entries[name] = entry
        self._names[entry.id] = name

    def unregister(self, name: str) -> Entry:
        """Free a name.  Raises NoSuchActor if nobody has it."""
        entry = self.whereis(name)
        if self._names.get(entry.id) != name:
            raise NoSuchActor(name, "it is a path, not a registered name")
        del self._entries[name], self._names[entry.id]
        return entry

    def remove(self, id_: int, path: str) -> str | None:
        """Free everything that an incarnation holds; returns its name."""
        at_path = self._entries.get(path)
        if at_path is not None and at_path.id == id_:
            del self._entries[path]
        for group in [group for group, members in self._groups.items() if id_ in members]:
            self.leave(group, id_)
        name = self._names.pop(id_, None)
        if name is not None:
            del self._entries[name]
        return name

    def name_of(self, id_: int) -> str | None:
        """The registered name of a process."""
        return self._names.get(id_)

    def whereis(self, name: str) -> Entry:
        """Who is there now.  Raises NoSuchActor."""
        try:
            return self._entries[name]
        except KeyError:
            raise NoSuchActor(name, self._nearby(name)) from None

    def _nearby(self, name: str) -> str:
        known = sorted(key for key in self._entries if ("/" in key) == ("/" in name))
        return f"known now: {', '.join(known)}" if known else "nothing is registered now"

    def join(self, group: str, entry: Entry) -> None:
        """Add a living process to a group, which need not exist; once is enough."""
        self._groups.setdefault(group, {})[entry.id] = entry

    def leave(self, group: str, id_: int) -> None:
        """Take a process out of a group, if it is in it."""
        members = self._groups.get(group)
        if members is not None:
            members.pop(id_, None)
            if not members:
                del self._groups[group]

    def members(self, group: str) -> list[Entry]:
        """A group's members, in order of joining."""
        return list(self._groups.get(group, {}).values())

    def groups(self) -> list[str]:
        """Every group that has members."""
        return sorted(self._groups)
