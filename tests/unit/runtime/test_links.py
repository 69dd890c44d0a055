"""Links and monitors against a model of sets."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from colos.runtime.links import Relations, Watch

IDS = st.integers(-2, 5)  # a client from outside has an id below 0
NUMBERS = st.integers(1, 4)


class RelationsAgainstSets(RuleBasedStateMachine):
    """Everything is in order of making, so the sets are lists of what is in them once."""

    def __init__(self) -> None:
        super().__init__()
        self.relations = Relations()
        self.links: list[frozenset[int]] = []
        self.watches: list[Watch] = []

    @rule(one=IDS, other=IDS)
    def link(self, one: int, other: int) -> None:
        self.relations.link(one, other)
        if one != other and frozenset((one, other)) not in self.links:
            self.links.append(frozenset((one, other)))

    @rule(one=IDS, other=IDS)
    def unlink(self, one: int, other: int) -> None:
        self.relations.unlink(one, other)
        self.links = [pair for pair in self.links if pair != {one, other}]

    @rule(watcher=IDS, number=NUMBERS, of=IDS, name=st.sampled_from([None, "ledger"]))
    def monitor(self, watcher: int, number: int, of: int, name: str | None) -> None:
        if all((watch.watcher, watch.number) != (watcher, number) for watch in self.watches):
            watch = Watch(watcher, number, of, name)
            self.relations.monitor(watch)
            self.watches.append(watch)

    @rule(watcher=IDS, number=NUMBERS)
    def demonitor(self, watcher: int, number: int) -> None:
        self.relations.demonitor(watcher, number)
        self.watches = [watch for watch in self.watches if (watch.watcher, watch.number) != (watcher, number)]

    @rule(id_=IDS)
    def died(self, id_: int) -> None:
        linked = self.linked_to(id_)
        told = [watch for watch in self.watches if watch.target == id_]
        assert self.relations.died(id_) == (linked, told)
        self.links = [pair for pair in self.links if id_ not in pair]
        self.watches = [watch for watch in self.watches if id_ not in (watch.target, watch.watcher)]
        assert self.relations.died(id_) == ([], [])  # nobody is told twice

    def linked_to(self, id_: int) -> list[int]:
        return [other for pair in self.links if id_ in pair for other in pair if other != id_]

    @invariant()
    def says_the_same(self) -> None:
        for id_ in range(-2, 6):
            assert self.relations.linked(id_) == self.linked_to(id_)
            assert self.relations.monitors(id_) == [watch.target for watch in self.watches if watch.watcher == id_]
            assert self.relations.watchers(id_) == [watch.watcher for watch in self.watches if watch.target == id_]

    def teardown(self) -> None:
        """Of the dead nothing is kept: a node lives long."""
        for id_ in range(-2, 6):
            self.relations.died(id_)
        assert not any(vars(self.relations).values())


TestRelationsAgainstSets = RelationsAgainstSets.TestCase
