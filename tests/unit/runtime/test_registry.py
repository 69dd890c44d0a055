"""Names, paths and groups against a model of living processes."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from colos.errors import NameTaken, NoSuchActor
from colos.runtime.registry import Entry, Registry

NAMES = st.sampled_from(["db", "cache", "front"])
PATHS = st.sampled_from(["app/db", "app/cache", "app/pool/1"])
GROUPS = st.sampled_from(["workers", "readers"])


class RegistryAgainstAModel(RuleBasedStateMachine):
    """A path may have two incarnations for a moment: the next begins before the last one's end is cleared away."""

    alive = Bundle("alive")

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        self.at: dict[str, Entry] = {}
        self.names: dict[str, Entry] = {}
        self.groups: dict[str, list[Entry]] = {"workers": [], "readers": []}
        self.next_id = 1

    @rule(target=alive, path=PATHS)
    def begin(self, path: str) -> Entry:
        entry = Entry(path, self.next_id)
        self.next_id += 1
        self.registry.add(entry)
        self.at[path] = entry
        return entry

    @rule(entry=alive, name=NAMES)
    def register(self, entry: Entry, name: str) -> None:
        if name in self.names:
            with pytest.raises(NameTaken, match="has it"):
                self.registry.register(name, entry)
        elif entry in self.names.values():
            with pytest.raises(NameTaken, match="a process has one"):
                self.registry.register(name, entry)
        else:
            self.registry.register(name, entry)
            self.names[name] = entry

    @rule(name=NAMES)
    def unregister(self, name: str) -> None:
        if name in self.names:
            assert self.registry.unregister(name) == self.names.pop(name)
        else:
            with pytest.raises(NoSuchActor):
                self.registry.unregister(name)

    @rule(path=PATHS)
    def unregister_a_path(self, path: str) -> None:
        with pytest.raises(NoSuchActor):
            self.registry.unregister(path)

    @rule(entry=alive, group=GROUPS)
    def join(self, entry: Entry, group: str) -> None:
        self.registry.join(group, entry)
        if entry not in self.groups[group]:
            self.groups[group].append(entry)

    @rule(entry=alive, group=GROUPS)
    def leave(self, entry: Entry, group: str) -> None:
        self.registry.leave(group, entry.id)
        if entry in self.groups[group]:
            self.groups[group].remove(entry)

    @rule(entry=consumes(alive))
    def die(self, entry: Entry) -> None:
        had = next((name for name, holder in self.names.items() if holder == entry), None)
        assert self.registry.remove(entry.id, entry.path) == had
        if had is not None:
            del self.names[had]
        if self.at.get(entry.path) == entry:
            del self.at[entry.path]
        for members in self.groups.values():
            if entry in members:
                members.remove(entry)
        assert self.registry.remove(entry.id, entry.path) is None

    @invariant()
    def says_the_same(self) -> None:
        holders = self.at | self.names
        for word in ("db", "cache", "front", "app/db", "app/cache", "app/pool/1"):
            if word in holders:
                assert self.registry.whereis(word) == holders[word]
            else:
                with pytest.raises(NoSuchActor):
                    self.registry.whereis(word)
        for name, entry in self.names.items():
            assert self.registry.name_of(entry.id) == name
        for id_ in range(self.next_id):
            assert (self.registry.name_of(id_) is None) == (id_ not in {entry.id for entry in self.names.values()})
        for group, members in self.groups.items():
            assert self.registry.members(group) == members
        assert self.registry.groups() == sorted(group for group, members in self.groups.items() if members)

    def teardown(self) -> None:
        """Of the dead nothing is kept: a node lives long."""
        for entry in {*self.at.values(), *self.names.values(), *self.groups["workers"], *self.groups["readers"]}:
            self.registry.remove(entry.id, entry.path)
        assert not any(vars(self.registry).values())


TestRegistryAgainstAModel = RegistryAgainstAModel.TestCase


def test_who_asks_for_nobody_is_told_who_is_there() -> None:
    registry = Registry()
    with pytest.raises(NoSuchActor, match="nothing is registered"):
        registry.whereis("writer")
    registry.add(Entry("ledger/writer", 1))
    registry.register("writer", Entry("ledger/writer", 1))
    with pytest.raises(NoSuchActor, match=r"known now: writer$"):
        registry.whereis("wrtier")
    with pytest.raises(NoSuchActor, match=r"known now: ledger/writer$"):
        registry.whereis("ledger/wrtier")
    with pytest.raises(NoSuchActor, match="it is a path"):
        registry.unregister("ledger/writer")
