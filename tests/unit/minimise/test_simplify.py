"""Simpler values by a strategy's own order, and simpler steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, consumes

from colos.chaos.choices import simpler_values
from colos.chaos.faults import fault_kinds
from colos.chaos.faults.cpu import CpuStarvation
from colos.chaos.faults.descriptors import DescriptorExhaustion
from colos.chaos.faults.disk import DiskFull
from colos.chaos.faults.forking import ForkFails
from colos.chaos.faults.process import Kill, Pause, PauseFor
from colos.chaos.scenario import Heal, Inject, Op, Ref
from colos.chaos.simplify import Simplifier

inverts = pytest.mark.skipif(
    not hasattr(type(st.integers()), "_invert"),
    reason="this Hypothesis finds no choices behind a value: only the simplest value is tried",
)

TOPOLOGY = ("root", "kv", "kv/1", "kv/2", "other")


def never(_value):
    raise ValueError("a strategy of the author's that raises")


def simpler(step, faults=(), **strategies):
    rules = {"put": (None, SimpleNamespace(arguments=strategies))}
    return list(Simplifier(rules, faults, TOPOLOGY)(step))


# --- one result for two -------------------------------------------------------------------

OPEN = [Op("open", {"of": name}, (f"accounts_{number}",)) for number, name in enumerate("abc")]


def merged(*steps, **rules):
    arguments = {"open": {"of": st.text()}, **rules}
    declared = {name: (None, SimpleNamespace(arguments=of)) for name, of in arguments.items()}
    return list(Simplifier(declared, [], TOPOLOGY).merged(steps))


def test_an_earlier_result_of_the_same_bundle_does_for_a_later_one():
    pay = Op("pay", {"two": [Ref("accounts_0"), Ref("accounts_1")]}, (), (Ref("accounts_1"), 3))
    both = Op("pay", {"two": [Ref("accounts_0"), Ref("accounts_0")]}, (), (Ref("accounts_0"), 3))
    assert merged(OPEN[0], OPEN[1], pay) == [(OPEN[0], both)]
    kill = Inject("kill", "f1", "kv")
    assert [len(each) for each in merged(*OPEN, kill)] == [3, 3, 3]
    assert merged(OPEN[0], kill) == merged(kill) == merged() == []


def test_results_of_other_bundles_and_of_ones_that_are_consumed_are_left_alone():
    card = Op("order", {}, ("cards_0",))
    assert merged(OPEN[0], card) == []
    two = Op("open", {"of": "x"}, ("accounts_1", "accounts_2"))
    assert merged(OPEN[0], two) == []
    accounts = Bundle("accounts")
    assert merged(OPEN[0], OPEN[1], close={"which": accounts}) != []
    for strategy in (consumes(accounts), st.tuples(st.integers(), consumes(accounts).map(str))):
        assert merged(OPEN[0], OPEN[1], close={"which": strategy}) == []


# --- values ------------------------------------------------------------------------------


@inverts
@pytest.mark.parametrize(
    ("strategy", "value", "candidates"),
    [
        (st.integers(0, 1000), 900, [0, 450, 675]),
        (st.integers(5, 10), 9, [5, 7, 8]),
        (st.integers(5, 10), 5, []),
        (st.integers(-9, 9), -4, [0, -2, -3]),
        (st.booleans(), True, [False]),
        (st.booleans(), False, []),
        (st.sampled_from(["mild", "bad", "worse", "worst"]), "worst", ["mild", "bad", "worse"]),
        (st.sampled_from(["mild", "bad", "worse", "worst"]), "mild", []),
        (st.text(max_size=20), "hello world", ["", "hello", " world", "hello worl"]),
        (st.binary(min_size=2), b"abcd", [b"\0\0", b"ab", b"cd", b"abc"]),
        (st.floats(0, 10), 3.7, [0.0, 1.0, 2.0]),
        (st.lists(st.integers(0, 9), min_size=1), [3, 0, 0], [[0], [3], [0, 0], [3, 0], [0, 0, 0], [1, 0, 0]]),
        (st.one_of(st.none(), st.integers(0, 5)), 4, [None, 0, 2, 3]),
        (st.integers(0, 9).map(lambda fewer: 9 - fewer), 3, [9, 6, 5]),
        (st.just(3), 3, []),
    ],
)
def test_candidates_come_by_the_strategys_order_simplest_first(strategy, value, candidates):
    assert list(simpler_values(strategy, value)) == candidates


@pytest.mark.parametrize("strategy", [st.runner(), st.nothing(), st.integers().map(never), st.integers().filter(never)])
def test_what_cannot_be_drawn_alone_gives_nothing(strategy):
    assert list(simpler_values(strategy, 3)) == []


def test_a_value_whose_choices_cannot_be_found_is_only_tried_at_its_simplest():
    assert list(simpler_values(st.integers(1, 10**9).map(str), "5000")) == ["1"]


some = st.one_of(
    st.integers(),
    st.integers(-3, 1000),
    st.floats(allow_nan=False),
    st.text("abc"),
    st.lists(st.sampled_from([4, 2, 9]), max_size=4),
    st.tuples(st.booleans(), st.integers(0, 7)),
    st.fixed_dictionaries({"a": st.integers(0, 9), "b": st.sampled_from("xyz")}),
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=40)
@given(st.data())
def test_whoever_goes_on_from_one_value_to_the_next_comes_to_an_end(data):
    strategy = data.draw(st.sampled_from(some.branches))
    value = data.draw(strategy)
    for _ in range(300):
        candidates = list(simpler_values(strategy, value))
        assert len(candidates) <= 6
        if not candidates:
            break
        value = data.draw(st.sampled_from(candidates))
    else:
        raise AssertionError(f"it goes on and on from {value!r}")


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_no_value_is_given_that_the_strategy_could_not_draw(data):
    strategy = st.lists(st.integers(3, 90).filter(lambda number: number % 3 == 0), min_size=2, max_size=5)
    for value in simpler_values(strategy, data.draw(strategy)):
        assert 2 <= len(value) <= 5
        assert all(3 <= number <= 90 and number % 3 == 0 for number in value)


# --- steps -------------------------------------------------------------------------------


def test_arguments_of_an_op_become_simple_together_and_then_each_by_itself():
    step = Op("put", {"key": "b", "amount": 8}, ("r",), (5,))
    given = simpler(step, key=st.sampled_from("ab"), amount=st.integers(0, 9))
    assert [step.args for step in given] == [
        {"key": "a", "amount": 0},
        {"key": "a", "amount": 8},
        {"key": "b", "amount": 0},
        {"key": "b", "amount": 4},
        {"key": "b", "amount": 6},
    ]
    assert {(step.name, step.results, step.draws) for step in given} == {("put", ("r",), (5,))}


def test_bundle_values_and_what_nobody_declares_are_left_as_they_are():
    assert simpler(Op("put", {"key": Ref("k1"), "deep": [1, Ref("k1")]}), key=st.text(), deep=st.lists(st.none())) == []
    assert simpler(Op("put", {"gone": 5}), key=st.text()) == []
    assert simpler(Op("unknown", {"key": "b"})) == []
    assert simpler(Heal("f1")) == []


def test_a_pattern_becomes_one_of_the_processes_that_it_means():
    assert [step.target for step in simpler(Inject("kill", "f1", "kv/*"), [Kill("kv/*")])] == ["kv/1", "kv/2"]
    assert simpler(Inject("kill", "f1", "kv/1"), [Kill("kv/*")]) == []
    assert simpler(Inject("kill", "f1", "gone/*"), [Kill("kv/*")]) == []


def test_a_value_that_no_scenario_can_hold_is_left_alone():
    """Each one drawn looked like another and simpler one, until the budget ended that."""
    assert list(simpler_values(st.builds(object), object())) == []


@inverts
def test_a_faults_arguments_become_milder_and_defaults_are_left_out():
    starved = simpler(
        Inject("cpu-starvation", "f1", "kv/1", {"share": 0.1}), [CpuStarvation("kv/*", shares=(0.5, 0.2, 0.1))]
    )
    assert [step.args.get("share", CpuStarvation.parameters["share"]) for step in starved] == [0.5, 0.2]
    full = simpler(Inject("disk-full", "f1", None, {"resource": "inodes", "free": 1}), [DiskFull()])
    assert [DiskFull.complete(step.args) for step in full] == [
        {"resource": "bytes", "free": 0},
        {"resource": "bytes", "free": 4096},
        {"resource": "inodes", "free": 0},
    ]
    assert all("free" not in step.args or step.args["free"] for step in full)
    most = max(step.args.get("free", 0) for step in simpler(Inject("fork-fails", "f1", "kv/1"), [ForkFails("kv/*")]))
    assert most > 0


def test_a_fault_may_be_tried_for_a_longer_time_and_nothing_else_of_it_changes():
    bolder = Simplifier({}, [PauseFor("kv/*", seconds=(0.1, 0.5, 2.0))], TOPOLOGY).bolder
    longer = list(bolder(Inject("pause-for", "f1", "kv/1", {"seconds": 0.1})))
    assert [PauseFor.complete(step.args) for step in longer] == [{"seconds": 2.0}, {"seconds": 0.5}]
    assert list(bolder(longer[0])) == []
    assert list(bolder(Inject("kill", "f1", "kv/1"))) == []
    assert list(bolder(Op("put", {"seconds": 1}))) == []


def test_longer_lists_stay_within_what_the_search_would_do():
    once, again = Inject("kill", "f1", "kv/1"), Inject("kill", "f2", "kv/1")
    faults = [Kill("kv/*"), Pause("kv/*")]
    assert Simplifier({}, faults, TOPOLOGY, tolerance=2).permits([once, again])
    assert not Simplifier({}, faults, TOPOLOGY, tolerance=1).permits([once, again])
    assert not Simplifier({}, faults, TOPOLOGY, tolerance=1).permits([Inject("kill", "f1", "kv/*")])
    pause, pause_again = Inject("pause", "f1", "kv/1"), Inject("pause", "f2", "kv/1")
    unlimited = Simplifier({}, faults, TOPOLOGY)
    assert not unlimited.permits([pause, Op("put"), pause_again])
    assert unlimited.permits([pause, Heal("f1"), pause_again])


def test_a_fault_that_the_machine_does_not_declare_keeps_its_arguments():
    assert simpler(Inject("descriptor-exhaustion", "f1", "kv/1", {"free": 3}), [Kill("kv/*")]) == []
    assert simpler(Inject("descriptor-exhaustion", "f1", "kv/1", {"free": 3}), [DescriptorExhaustion("kv/*")]) != []


def test_every_kind_simplifies_to_steps_of_its_own():
    """Whatever a fault's strategy draws, going on from step to simpler step ends, and stays what it may draw."""
    for kind in fault_kinds().values():
        try:
            fault = kind()
        except TypeError:
            continue  # it takes an argument that only an author knows
        step = Inject(kind.kind, "f1", None, {})
        for _ in range(100):
            following = simpler(step, [fault])
            if not following:
                break
            step = following[-1]
            assert set(step.args) <= set(fault.parameters)
        else:
            raise AssertionError(f"it goes on and on from {step}")
