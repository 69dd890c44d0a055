"""Confirming and minimising, over systems that are plain functions of their steps."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colos.chaos.minimise import Budget, Minimised, Progress, confirm, minimise, normalise
from colos.chaos.minimise.sequential import RatioTest
from colos.chaos.scenario import Heal, Inject, Op, Ref, Repro
from colos.errors import HarnessBroken

BUG = "always:balanced"
SURE = Repro(5, 5)


def ops(*names: str) -> list[Op]:
    return [Op(name) for name in names]


def needs(*names: str):
    """A system that fails when ops of these names occur, in this order."""

    def run(steps):
        remaining = iter([step.name for step in steps if isinstance(step, Op)])
        return BUG if all(name in remaining for name in names) else None

    return run


def batches(run):
    """`run`, which takes one list of steps, as what takes several."""
    return lambda batch: [run(steps) for steps in batch]


def plenty() -> Budget:
    return Budget(10_000, float("inf"))


def search(run, steps, repro=SURE, budget=None, **more) -> Minimised:
    return minimise(batches(run), steps, BUG, repro, budget=budget or plenty(), **more)


# --- confirm -----------------------------------------------------------------------------


def confirmed(outcomes, **more) -> tuple[Repro, int]:
    """What confirming says of these outcomes, and how many of them it asked for."""
    left = iter(outcomes)
    budget = more.pop("budget", None) or plenty()
    return confirm(batches(lambda _: next(left)), ops("a"), BUG, budget=budget, **more), budget.used


def test_confirm_counts_only_the_same_property():
    other = "always:other"
    assert confirmed([BUG, None, other, BUG, BUG, other, BUG, BUG]) == (Repro(5, 8), 8)


def test_what_fails_each_time_is_confirmed_in_five_runs_and_what_fails_seldom_in_twenty():
    assert confirmed([BUG] * 30) == (Repro(5, 5), 5)
    assert confirmed([None, None, BUG] * 10) == (Repro(5, 15), 15)
    assert confirmed([None] * 9 + [BUG] + [None] * 20) == (Repro(1, 20), 20)
    assert confirmed([None] * 22 + [BUG] + [None] * 20) == (Repro(1, 23), 23)


def test_what_never_fails_again_is_unreproduced_after_as_many_runs_as_are_allowed():
    assert confirmed([None] * 40) == (Repro(0, 30), 30)
    assert confirmed([None] * 40, most=7) == (Repro(0, 7), 7)


def test_confirm_stops_with_the_budget():
    assert confirmed([BUG] * 9, budget=Budget(4, 100)) == (Repro(4, 4), 4)
    assert confirmed([], budget=Budget(0, 100)) == (Repro(0, 0), 0)
    seconds = itertools.count()
    assert confirmed([BUG] * 9, budget=Budget(99, 3.5, lambda: next(seconds)))[0].runs < 5


def test_confirm_uses_the_lanes_and_no_more_runs_than_may_be_needed():
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        return [BUG] * len(batch)

    assert confirm(run, ops("a"), BUG, budget=plenty(), lanes=3) == Repro(5, 5)
    assert sizes == [3, 2]


# --- normalise ---------------------------------------------------------------------------


def test_a_heal_without_its_fault_goes():
    fault, heal = Inject("disk-full", "f1"), Heal("f1")
    assert normalise([fault, heal]) == (fault, heal)
    assert normalise([heal]) == ()
    assert normalise([heal, fault]) == (fault,)


def test_what_refers_to_a_lost_result_goes_and_so_on():
    make = Op("make", {}, ("a",))
    wrap = Op("wrap", {"inner": [{"deep": (Ref("a"),)}]}, ("b",))
    use = Op("use", {"it": Ref("b")})
    drawn = Op("draw", {}, (), (Ref("b"),))
    fault = Inject("delay", "f1", None, {"of": Ref("b")})
    steps = [make, wrap, use, drawn, fault, Heal("f1"), Op("other")]
    assert normalise(steps) == tuple(steps)
    assert normalise(steps[1:], produced={"a", "b"}) == (Op("other"),)
    assert normalise([make, *steps[2:]], produced={"a", "b"}) == (make, Op("other"))


def test_a_reference_that_no_op_ever_produced_is_let_be():
    use = Op("use", {"it": Ref("from elsewhere")})
    assert normalise([use]) == (use,)


def test_a_result_must_come_before_its_use():
    make, use = Op("make", {}, ("a",)), Op("use", {"it": Ref("a")})
    assert normalise([use, make]) == (make,)


some_args = st.fixed_dictionaries({}, optional={"x": st.builds(Ref, st.sampled_from("pq"))})
some_ops = st.builds(Op, st.sampled_from("ab"), some_args, st.sampled_from([(), ("p",), ("q",)]))
some_heals = st.builds(Heal, st.sampled_from(["f1", "f2"]))
step_lists = st.lists(some_ops | some_heals, max_size=10).map(
    lambda steps: [Inject("k", "f1"), *steps, Inject("k", "f2")]
)


@given(step_lists, st.data())
def test_normalising_leaves_a_sensible_subsequence(steps, data):
    kept = data.draw(st.lists(st.sampled_from(range(len(steps))), unique=True).map(sorted))
    result = normalise([steps[index] for index in kept], produced={"p", "q"})
    assert normalise(result, produced={"p", "q"}) == result
    walk = iter(steps)
    assert all(any(step is other for other in walk) for step in result)
    begun, produced = set(), set()
    for step in result:
        if isinstance(step, Heal):
            assert step.id in begun
        elif isinstance(step, Inject):
            begun.add(step.id)
        else:
            assert {ref.name for ref in step.args.values()} <= produced
            produced.update(step.results)


# --- minimise, certain failures ----------------------------------------------------------


@given(st.lists(st.sampled_from("abcde"), max_size=25), st.lists(st.sampled_from("abcde"), max_size=4))
def test_what_is_left_is_what_is_needed(names, needed):
    run = needs(*needed)
    if run(ops(*names)) is None:
        return
    result = search(run, ops(*names))
    assert [step.name for step in result.steps] == needed
    assert result.repro == SURE
    assert not result.exhausted


def test_every_candidate_makes_sense():
    def run(steps):
        assert normalise(steps) == tuple(steps)
        return needs("use", "crash")(steps)

    steps = [
        Op("make", {}, ("a",)),
        Inject("disk-full", "f1"),
        Op("use", {"it": Ref("a")}),
        *ops("noise", "noise", "noise"),
        Heal("f1"),
        *ops("crash"),
    ]
    result = search(run, steps)
    assert result.steps == (steps[0], steps[2], steps[-1])


def test_a_producer_whose_dependent_is_needed_is_not_asked_about_for_ever():
    steps = [Op("make", {}, ("a",)), Op("use", {"it": Ref("a")})]
    result = search(needs("make", "use"), steps)
    assert result.steps == tuple(steps)
    assert result.runs_used < 20


def test_equal_faults_are_one_candidate_whatever_their_ids():
    """Four of them are needed: each is tried as often as a single one would be, and not four times as often."""
    seen = Counter()

    def run(steps):
        seen[len(steps)] += 1
        return BUG if len(steps) == 4 else None

    result = search(run, [Inject("kill", f"f{index}") for index in range(4)])
    assert len(result.steps) == 4
    assert seen[3] <= 6


def test_a_heal_may_be_needed_or_not():
    def run(steps):
        return BUG if any(isinstance(step, Heal) for step in steps) else None

    steps = [*ops("a"), Inject("x", "f1"), *ops("b"), Heal("f1"), Inject("y", "f2"), Heal("f2")]
    assert len(search(run, steps).steps) == 2
    assert search(lambda steps: BUG if Inject("x", "f1") in steps else None, steps).steps == (Inject("x", "f1"),)


def test_a_system_that_fails_by_starting_needs_no_steps():
    result = search(lambda _: BUG, ops(*"abcdefgh"))
    assert result.steps == ()
    assert result.repro == SURE
    assert result.runs_used <= 12


def test_another_property_is_not_the_same_failure():
    def run(steps):
        return BUG if len(steps) == 3 else "always:other"

    result = search(run, ops("a", "b", "c"))
    assert result.steps == tuple(ops("a", "b", "c"))


# --- noise, budgets, the end -------------------------------------------------------------


def test_steps_that_never_failed_again_come_back_as_they_are():
    def run(_steps):
        raise AssertionError("nothing to search with")

    steps = ops("a", "b")
    assert search(run, steps, Repro(0, 5)) == Minimised(tuple(steps), Repro(0, 5), 0, exhausted=False)


def test_a_violation_of_something_else_says_little_once_and_then_counts_as_none():
    def runs_of_nothing(instead):
        runs = Counter()

        def run(steps):
            runs[len(steps)] += 1
            return BUG if steps else instead

        assert search(run, ops("a")).steps == tuple(ops("a"))
        return runs[0]

    assert runs_of_nothing("always:other") == runs_of_nothing(None) + 1


def test_a_failure_that_was_bad_luck_is_taken_back():
    """Fewer than two steps fail the first time only; what recurs needs both."""
    seen = set()

    def run(steps):
        names = tuple(step.name for step in steps)
        first = names not in seen
        seen.add(names)
        return BUG if len(steps) == 2 or (first and len(steps) < 2) else None

    steps = ops("a", "b")
    result = search(run, steps)
    assert result.steps == tuple(steps)
    assert result.repro == SURE


def test_fewer_steps_that_hardly_ever_fail_are_not_kept():
    """`b` alone fails in one run of ten, beside `a` in nine."""

    def length_for(seed):
        rng = random.Random(seed)

        def run(steps):
            names = [step.name for step in steps]
            return BUG if "b" in names and rng.random() < (0.9 if "a" in names else 0.1) else None

        return len(search(run, ops("x", "a", "b")).steps)

    assert Counter(map(length_for, range(60)))[2] >= 57


def test_a_repro_is_measured_on_what_is_returned():
    rng = random.Random(3)

    def run(steps):
        return BUG if needs("b")(steps) and (len(steps) > 1 or rng.random() < 0.6) else None

    result = search(run, ops("a", "b", "c"))
    assert result.steps == tuple(ops("b"))
    assert 0 < result.repro.failed < result.repro.runs


@pytest.mark.parametrize("runs_max", range(0, 60, 4))
def test_a_spent_budget_gives_the_best_so_far(runs_max):
    failing: list[object] = [tuple(ops(*"cdaefghbijkl"))]

    def run(steps):
        if violated := needs("a", "b")(steps):
            failing.append(tuple(steps))
        return violated

    budget = Budget(runs_max, 100)
    enough = search(needs("a", "b"), failing[0]).runs_used
    result = search(run, failing[0], budget=budget)
    assert result.runs_used == budget.used <= runs_max
    assert result.steps in failing
    assert result.exhausted == (runs_max < enough)
    assert result.repro.failed == result.repro.runs > 0


def test_time_is_a_budget_too_and_some_is_kept_for_measuring():
    now = [0.0]

    def run(steps):
        now[0] += 1.0
        return needs("a", "b")(steps)

    budget = Budget(10_000, 12.0, lambda: now[0])
    result = search(run, ops(*"cdaefghbijkl"), budget=budget)
    assert result.exhausted
    assert now[0] <= 12.0
    assert result.repro == SURE
    assert 2 <= len(result.steps) < 12


def test_progress_tells_the_best_after_every_run():
    told: list[Progress] = []
    result = search(needs("a"), ops(*"xxaxx"), progress=told.append, budget=Budget(50, 100))
    assert [progress.runs_used for progress in told] == list(range(1, result.runs_used + 1))
    assert told[-1].best == result.steps
    assert told[-1].phase == "measure"
    assert {progress.steps_at_start for progress in told} == {5}
    assert {progress.runs_max for progress in told} == {50}
    assert all(needs("a")(progress.best) for progress in told)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), HarnessBroken("heal", "disk"), ValueError("a bug of ours")])
def test_what_a_run_raises_passes_through(error):
    def run(_steps):
        raise error

    with pytest.raises(type(error)):
        search(run, ops("a"))
    with pytest.raises(type(error)):
        confirm(batches(run), ops("a"), BUG, budget=plenty())


# --- lanes -------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [2, 3, 7])
@pytest.mark.parametrize("needed", ["a", "ab", "cfk", "dg"])
def test_lanes_change_how_many_run_at_once_and_not_the_result(lanes, needed):
    steps = ops(*"abcdefghijkl")
    one, several = [], []

    def counting(sizes):
        def run(batch):
            sizes.append(len(batch))
            return [needs(*needed)(steps) for steps in batch]

        return run

    alone = minimise(counting(one), steps, BUG, SURE, budget=plenty())
    beside = minimise(counting(several), steps, BUG, SURE, budget=plenty(), lanes=lanes)
    assert (beside.steps, beside.repro) == (alone.steps, alone.repro)
    assert set(one) == {1}
    assert max(several) == lanes
    assert len(several) <= 0.75 * len(one)
    assert beside.runs_used == sum(several)


def test_lanes_never_overdraw_the_budget():
    for runs_max in range(30):
        budget = Budget(runs_max, 100)
        search(needs("a", "b"), ops(*"cdaefghbijkl"), budget=budget, lanes=4)
        assert budget.used <= runs_max


# --- one in the place of two ---------------------------------------------------------------


def without_one(steps):
    """Each list that lacks one op, the first one's amount being the sum."""
    for index in range(1, len(steps)):
        amount = steps[0].args["amount"] + steps[index].args["amount"]
        yield (Op("put", {"amount": amount}), *steps[1:index], *steps[index + 1 :])


def test_one_step_does_for_two_where_it_fails_as_they_do():
    def run(steps):
        return BUG if sum(step.args["amount"] for step in steps) == 6 else None

    result = search(run, [Op("put", {"amount": amount}) for amount in (1, 2, 3)], merged=without_one)
    assert result.steps == (Op("put", {"amount": 6}),)


@pytest.mark.parametrize("needed", [2, 3])
def test_steps_are_not_merged_where_that_hides_the_failure(needed):
    def run(steps):
        return BUG if len(steps) >= needed and sum(step.args["amount"] for step in steps) == 6 else None

    steps = [Op("put", {"amount": amount}) for amount in (1, 2, 3)]
    assert len(search(run, steps, merged=without_one).steps) == needed


# --- simpler, and surer ------------------------------------------------------------------


def halves(step):
    """Zero, then a half, of an op's amount; and one of the fault's targets."""
    if isinstance(step, Op) and step.args.get("amount"):
        yield Op(step.name, {"amount": 0})
        yield Op(step.name, {"amount": step.args["amount"] // 2})
    if isinstance(step, Inject) and step.target == "kv/*":
        yield from (Inject(step.fault, step.id, target) for target in ("kv/1", "kv/2"))


def test_steps_are_made_as_simple_as_they_can_be():
    def run(steps):
        amounts = [step.args["amount"] for step in steps if isinstance(step, Op)]
        targets = [step.target for step in steps if isinstance(step, Inject)]
        return BUG if amounts[:1] >= [30] and any(target in ("kv/2", "kv/*") for target in targets) else None

    steps = [Op("put", {"amount": 1000}), Op("noise", {"amount": 7}), Inject("kill", "f1", "kv/*")]
    result = search(run, steps, simpler=halves)
    assert result.steps == (Op("put", {"amount": 31}), Inject("kill", "f1", "kv/2"))


def test_what_does_not_matter_is_made_simple_at_one_stroke():
    seen = []

    def run(steps):
        seen.append(tuple(steps))
        return BUG if len(steps) == 2 else None

    result = search(run, [Op("put", {"amount": 1000}), Op("get", {"amount": 1000})], simpler=halves)
    assert result.steps == (Op("put", {"amount": 0}), Op("get", {"amount": 0}))
    assert not any(steps == (Op("put", {"amount": 0}), Op("get", {"amount": 1000})) for steps in seen)


def test_simpler_steps_that_fail_far_less_often_are_left_alone():
    def amount_for(seed):
        rng = random.Random(seed)

        def run(steps):
            return BUG if steps and (steps[0].args["amount"] or rng.random() < 0.15) else None

        return search(run, [Op("put", {"amount": 8})], simpler=halves).steps[0].args["amount"]

    assert Counter(map(amount_for, range(60)))[0] <= 3


def test_what_fails_now_and_then_is_done_twice_if_it_then_fails_nearly_always():
    rng = random.Random(1)

    def run(steps):
        kills = sum(isinstance(step, Inject) for step in steps)
        return BUG if rng.random() < (0, 0.3, 1.0)[min(kills, 2)] else None

    result = search(run, [Inject("kill", "f1", "n0"), *ops("noise")], Repro(5, 15))
    assert [step.fault for step in result.steps] == ["kill", "kill"]
    assert len({step.id for step in result.steps}) == 2
    assert result.repro.failed == result.repro.runs


def test_a_bolder_step_is_taken_where_it_makes_the_failure_sure():
    rng = random.Random(1)

    def run(steps):
        return BUG if steps and rng.random() < (1.0 if steps[0].args.get("seconds") == 5 else 0.3) else None

    def bolder(step):
        yield Inject(step.fault, step.id, step.target, {"seconds": 5})

    result = search(run, [Inject("pause", "f1", "n0")], Repro(5, 15), bolder=bolder)
    assert result.steps == (Inject("pause", "f1", "n0", {"seconds": 5}),)


def test_what_is_not_permitted_is_not_tried():
    rng = random.Random(1)

    def run(steps):
        assert len(steps) == 1 or steps == ()
        return BUG if steps and rng.random() < 0.3 else None

    result = search(run, ops("a"), Repro(5, 15), permits=lambda steps: len(steps) < 2)
    assert result.steps == tuple(ops("a"))


def test_what_fails_nearly_always_is_not_made_longer():
    seen = []

    def run(steps):
        seen.append(len(steps))
        return BUG if steps else None

    search(run, ops("a"))
    assert max(seen) == 1


def test_progress_says_how_much_is_left():
    told: list[Progress] = []
    budget = Budget(200, 100)
    search(needs("a", "e"), ops(*"xxaxxexx"), progress=told.append, budget=budget)
    assert all(0 <= progress.runs_left <= 200 - progress.runs_used for progress in told)
    assert told[0].runs_left > told[-1].runs_left
    assert told[0].runs_left < 200 - 1


# --- the sequential test -----------------------------------------------------------------


def test_the_ratio_test_keeps_its_promise_about_errors():
    test = RatioTest(0.1, 0.5)
    for rate, right in ((0.1, False), (0.5, True)):
        rng, wrong, runs = random.Random(2), 0, 0
        for _ in range(1000):
            failed = passed = 0
            while (verdict := test.verdict(failed, passed)) is None:
                failed, passed = (failed + 1, passed) if rng.random() < rate else (failed, passed + 1)
            wrong += verdict is not right
            runs += failed + passed
        assert wrong <= 50
        assert runs < 10_000


def test_it_says_how_many_passes_would_end_it():
    test = RatioTest(0.005, 0.5)
    count = test.passes_to_no(0, 0)
    assert test.verdict(0, count) is False
    assert test.verdict(0, count - 1) is None
    assert test.passes_to_no(0, count) == 0
