"""Which fault comes next: some kinds per example, and plans after known bad patterns."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis.errors import InvalidArgument
from hypothesis.stateful import rule
from nowhere_kinds import Grip, Hold, Squeeze, Strike

from colos.chaos import ChaosMachine
from colos.chaos.patterns import (
    PATTERNS,
    Planned,
    all_of_a_kind,
    before_an_acknowledgement,
    during_recovery,
    swizzle,
    the_same_twice,
)
from colos.chaos.scenario import Heal, Inject, Op

TOPOLOGY = ("kv/a", "kv/b")
HOLD, GRIP, SQUEEZE, STRIKE = Hold("kv/*"), Grip("kv/*"), Squeeze(), Strike("kv/*")
ALL = [
    *((fault, target) for fault in (HOLD, GRIP, STRIKE) for target in (*TOPOLOGY, "kv/*")),
    (SQUEEZE, None),
]


def plans(pattern, possible=ALL, most=4000):
    """Every plan that the pattern can give, by trying all choices: an odometer of digits."""
    found, choices = [], []
    for _ in range(most):
        bases, position = [], iter(choices)

        def pick(number, bases=bases, position=position):
            bases.append(number)
            return min(next(position, 0), number - 1)

        found.append(tuple(pattern(pick, possible, TOPOLOGY)))
        digits = [*choices, *[0] * (len(bases) - len(choices))][: len(bases)]
        while digits and digits[-1] + 1 >= bases[len(digits) - 1]:
            digits.pop()
        if not digits:
            return set(found)
        digits[-1] += 1
        choices = digits
    return set(found)


def test_swizzle_heals_in_another_order():
    sizes = Counter()
    for plan in plans(swizzle):
        injected = [(step.kind, step.target) for step in plan if step.action == "inject"]
        healed = [(step.kind, step.target) for step in plan if step.action == "heal"]
        assert plan[len(injected) :] == tuple(Planned("heal", *one) for one in healed)
        assert sorted(injected, key=str) == sorted(healed, key=str)
        assert injected != healed
        assert "strike" not in dict(injected)
        holds = [target for kind, target in injected if kind == "hold"]
        assert holds in ([], ["kv/a"], ["kv/b"], ["kv/*"], ["kv/a", "kv/b"], ["kv/b", "kv/a"])
        sizes[len(injected)] += 1
    assert sizes.keys() == {2, 3}
    assert plans(swizzle, [(HOLD, "kv/a"), (STRIKE, "kv/b")]) == {()}


def test_what_takes_the_place_of_the_dead_meets_a_fault_at_once():
    found = plans(during_recovery)
    assert {plan[0] for plan in found} == {Planned("inject", "strike", target) for target in TOPOLOGY}
    for first, second in found:
        assert (second.target, second.at_once) == (first.target, True)
    assert {plan[1].kind for plan in found} == {"hold", "grip", "strike"}
    assert plans(during_recovery, [(HOLD, "kv/a"), (STRIKE, "kv/*")]) == {()}


def test_a_fault_before_an_acknowledgement_leaves_one_operation():
    for inject, op, heal in plans(before_an_acknowledgement):
        assert op == Planned("op", at_once=True)
        assert heal == Planned("heal", inject.kind, inject.target, at_once=True)


def test_all_of_a_kind_by_pattern_or_one_by_one():
    kinds = ("hold", "grip", "strike")
    by_pattern = {(Planned("inject", kind, "kv/*"),) for kind in kinds}
    one_by_one = {tuple(Planned("inject", kind, target, at_once=True) for target in TOPOLOGY) for kind in kinds}
    assert plans(all_of_a_kind) == by_pattern | one_by_one
    assert plans(all_of_a_kind, [(HOLD, "kv/a"), (SQUEEZE, None)]) == {()}


def test_the_same_twice_is_healed_between_if_it_lasts():
    found = plans(the_same_twice)
    once = Planned("inject", "strike", "kv/a")
    assert (once, once) in found
    first = Planned("inject", "squeeze", None)
    assert (first, Planned("heal", "squeeze", None), first) in found
    assert len(found) == len(ALL)


# --- as Hypothesis draws it --------------------------------------------------------------


@pytest.fixture
def runs(lab, nothing, kinds):
    """The steps of so many examples of a machine with these faults over two processes."""

    def run(*declared, examples=200, steps=14, author=True, **body):
        system = type("Two", (type(nothing),), {"topology": lambda self: TOPOLOGY})()
        executors = []

        def remembered(self):
            ChaosMachine.__init__(self)
            executors.append(self)

        if author:
            body["step"] = rule()(lambda_step)
        cls = type("Machine", (ChaosMachine,), {"system": system, "faults": declared, "__init__": remembered, **body})
        assert lab.explore(cls, examples=examples, steps=steps).failure is None
        return [machine._executor.steps for machine in executors]

    return run


def lambda_step(self):
    pass


@pytest.mark.parametrize("author", [True, False], ids=["with rules", "faults alone"])
def test_examples_leave_kinds_out(runs, author):
    used = Counter(
        frozenset(step.fault for step in steps if isinstance(step, Inject))
        for steps in runs(HOLD, GRIP, SQUEEZE, steps=20, author=author)
    )
    whole = frozenset({"hold", "grip", "squeeze"})
    assert used[whole] > 80  # in two of three all may take part
    few = sum(count for kinds, count in used.items() if len(kinds) == 1)
    assert few > 12  # 200 / 3 * 4 / 8 of them are allowed one only; without swarms it hardly ever happens


def windows(runs, length):
    return [tuple(steps[at : at + length]) for steps in runs for at in range(len(steps) - length + 1)]


def test_plans_are_carried_out(runs):
    steps = runs(HOLD, GRIP, STRIKE)
    triples = windows(steps, 3)
    around = [w for w in triples if isinstance(w[0], Inject) and isinstance(w[1], Op) and w[2] == Heal(w[0].id)]
    again = [
        (one, other)
        for one, other in windows(steps, 2)
        if isinstance(one, Inject) and isinstance(other, Inject)
        if (one.fault, one.target) == ("strike", other.target)
    ]
    swizzled = 0
    for each in steps:
        faults = [s.id for s in each if isinstance(s, Inject) and s.fault != "strike"]
        heals = [s.id for s in each if isinstance(s, Heal)]
        swizzled += any(heals[at : at + 2] == [b, a] for a, b in itertools.pairwise(faults) for at in range(len(heals)))
    assert len(around) > 30
    assert len(again) > 30
    assert swizzled > 20


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__)
def test_a_plan_fits_where_little_is_possible(pattern):
    """Whatever is possible, a pattern gives a plan of what is possible, or none."""
    for size in range(1, 4):
        for possible in itertools.combinations(ALL, size):
            for plan in plans(pattern, list(possible), most=3):
                assert not plan or (plan[0].kind, plan[0].target) in [(f.kind, t) for f, t in possible]


def test_settings_are_inherited_and_may_be_given_again(lab, nothing):
    @settings(max_examples=7, stateful_step_count=3)
    class Base(ChaosMachine):
        system = nothing

        @rule()
        def step(self):
            pass

    class Child(Base):
        pass

    class Grandchild(Child):
        pass

    assert [lab.explore(cls).examples for cls in (Base, Child, Grandchild)] == [7, 7, 7]
    own = settings(max_examples=4)(type("Own", (Child,), {}))
    assert lab.explore(own).examples == 4
    assert lab.explore(Child).examples == 7
    with pytest.raises(InvalidArgument, match="twice"):
        settings(max_examples=5)(own)
