"""What a system claims to survive: counted, kept to by the search, and the end of what is demanded beyond it."""

from __future__ import annotations

import inspect

import pytest
from hypothesis.stateful import rule
from nowhere_kinds import Grip, Hold, Squeeze, Strike

from colos.chaos import ChaosMachine, DiskFull, Kill, Pause, always, eventually
from colos.chaos.faults import fault_kinds
from colos.chaos.scenario import Heal, Inject, Op
from colos.chaos.tolerance import Tolerance, check_patterns
from colos.errors import InvalidSpecification

TOPOLOGY = ("kv", "kv/a", "kv/b", "kv/c", "proxy")


@pytest.mark.parametrize(
    ("kind", "target", "affected", "beyond"),
    [
        ("kill", "kv/a", [], ""),
        ("kill", "kv/a", ["kv/a"], ""),
        ("kill", "kv/a", ["kv/b"], "2 of kv/* would be affected at a time; at_most is 1"),
        ("kill", "kv/a", ["proxy"], ""),
        ("kill", "kv/*", [], "3 of kv/* would be affected at a time; at_most is 1"),
        ("kill", "proxy", [], "no kill of proxy is declared in tolerates"),
        ("pause", "kv/*", ["kv/a"], ""),
        ("pause", "*", [], "no pause of proxy is declared in tolerates"),
        ("disk-full", None, ["kv/a", "kv/b"], ""),
        ("node-kill", None, [], "node-kill is not declared in tolerates"),
    ],
)
def test_the_budget_counts_what_acts_at_the_same_time(kind, target, affected, beyond):
    tolerance = Tolerance([Kill("kv/*", at_most=1), Pause("kv*"), DiskFull()], TOPOLOGY)
    assert (tolerance.excess(kind, target, affected) or "") == beyond
    assert Tolerance(None, TOPOLOGY).excess(kind, target, affected) is None


def test_only_kinds_with_a_limit_are_counted():
    tolerance = Tolerance([Kill("kv/*", at_most=1), Pause("kv/*")], TOPOLOGY)
    assert (tolerance.counts("kill"), tolerance.counts("pause")) == (True, False)
    assert tolerance.subjects(None) == set(TOPOLOGY)
    assert tolerance.subjects("kv/*") == {"kv/a", "kv/b", "kv/c"}


@pytest.mark.parametrize("kind", sorted(name for name, kind in fault_kinds().items() if kind.targeted))
def test_every_targeted_kind_takes_a_limit(kind):
    fault = fault_kinds()[kind]
    assert fault(target="kv/*", at_most=2).at_most == 2
    assert fault(target="kv/*").at_most is None
    assert inspect.signature(fault).parameters["at_most"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Kill("kv/*", at_most=0), "leave the fault out"),
        (lambda: Kill("kv/*", at_most=-1), "whole number"),
        (lambda: Kill("kv/*", at_most=True), "whole number"),
        (lambda: Squeeze(at_most=1), "names no processes"),
        (lambda: type("M", (ChaosMachine,), {"tolerates": Kill("x")}), "M.tolerates is Kill"),
        (lambda: type("M", (ChaosMachine,), {"tolerates": "kill"}), "M.tolerates is 'kill'"),
        (lambda: type("M", (ChaosMachine,), {"tolerates": [Kill]}), "M.tolerates holds"),
        (lambda: type("M", (ChaosMachine,), {"tolerates": [Kill("x"), Kill("x", at_most=1)]}), "twice"),
        (lambda: type("M", (ChaosMachine,), {"faults": [Kill("x", at_most=1)]}), "where M.tolerates is declared"),
        (lambda: check_patterns([Kill("nobody")], TOPOLOGY), "matches nothing"),
        (lambda: check_patterns([Kill("proxy/*", at_most=1)], TOPOLOGY), "counts declared processes"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, said):
    with pytest.raises(InvalidSpecification, match=said):
        make()


@pytest.fixture
def three(nothing):
    system = type("Three", (type(nothing),), {"topology": lambda self: ("kv/a", "kv/b", "kv/c")})
    return system()


@pytest.mark.usefixtures("kinds")
def test_nothing_beyond_the_budget_is_drawn(lab, three):
    most = []
    drawn = set()

    class Budgeted(ChaosMachine):
        system = three
        faults = (Hold("kv/*"), Grip("kv/*"), Squeeze(), Strike("kv/*"))
        tolerates = (Hold("kv/*", at_most=2), Grip("kv/a", at_most=1), Squeeze())

        @rule()
        def step(self):
            pass

        @always
        def count(self):
            active = self._executor.active_steps()
            drawn.update((step.fault, step.target) for step in active)
            most.append(len({step.target for step in active if step.target}))

    found = lab.explore(Budgeted, examples=60, steps=12)
    assert found.failure is None
    assert max(most) == 2
    assert drawn == {("hold", "kv/a"), ("hold", "kv/b"), ("hold", "kv/c"), ("grip", "kv/a"), ("squeeze", None)}
    assert found.never_drawn == {"strike": "it is not in tolerates"}


@pytest.mark.usefixtures("kinds")
def test_who_was_killed_counts_until_seen_alive_again(lab, three):
    """In the lab nobody ever is."""
    struck = []

    class Struck(ChaosMachine):
        system = three
        faults = (Strike("kv/*"),)
        tolerates = (Strike("kv/*", at_most=1),)

        @rule()
        def step(self):
            struck.append({step.target for step in self._executor.steps if isinstance(step, Inject)})

    assert lab.explore(Struck, examples=30, steps=12).failure is None
    assert {len(targets) for targets in struck} == {0, 1}
    assert len(set().union(*struck)) == 3


@pytest.mark.usefixtures("kinds")
def test_beyond_the_budget_safety_is_demanded_and_liveness_is_not(lab, three):
    class Beyond(ChaosMachine):
        system = three
        tolerates = (Hold("kv/*", at_most=1),)
        whole = True

        @rule()
        def step(self):
            pass

        @rule()
        def spoil(self):
            self.whole = False

        @always
        def is_whole(self):
            return self.whole

        @eventually(within=0.01)
        def never(self):
            return False

    within = [Inject("hold", "f1", "kv/a"), Heal("f1"), Op("step")]
    assert lab.replay(Beyond, within).verdict.violation.name == "eventually:never"
    beyond = [Inject("hold", "f1", "kv/*"), Heal("f1"), Op("step")]
    verdict = lab.replay(Beyond, beyond).verdict
    assert verdict.violation is None
    assert "beyond" in verdict.reason
    assert any("3 of kv/*" in str(record.get("not_judged")) for record in lab.journal("property"))
    assert lab.replay(Beyond, [*beyond, Op("spoil")]).verdict.violation.name == "always:is_whole"
