"""Confirming and minimising, over systems that are plain functions of their steps."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colos.chaos.minimise import Budget, Minimised, Progress, confirm, minimise, normalise, tries_for
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


def plenty() -> Budget:
    return Budget(10_000, float("inf"))


def search(run, steps, repro=SURE, budget=None, progress=lambda _: None) -> Minimised:
    return minimise(run, steps, BUG, repro, budget=budget or plenty(), progress=progress)


# --- confirm -----------------------------------------------------------------------------


def test_confirm_counts_only_the_same_property():
    outcomes = iter([BUG, None, "always:other", BUG, BUG])
    budget = plenty()
    assert confirm(lambda _: next(outcomes), ops("a"), BUG, budget=budget) == Repro(3, 5)
    assert budget.used == 5


def test_confirm_stops_with_the_budget():
    assert confirm(lambda _: BUG, ops("a"), BUG, runs=9, budget=Budget(4, 100)) == Repro(4, 4)
    assert confirm(lambda _: BUG, ops("a"), BUG, budget=Budget(0, 100)) == Repro(0, 0)
    seconds = itertools.count()
    assert confirm(lambda _: BUG, ops("a"), BUG, budget=Budget(99, 3.5, lambda: next(seconds))).runs < 5


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


def test_every_candidate_is_run_once_and_makes_sense():
    seen = []

    def run(steps):
        seen.append(tuple(steps))
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
    candidates = seen[: -result.repro.runs]
    assert len(set(map(repr, candidates))) == len(candidates) == result.runs_used - result.repro.runs


def test_equal_faults_are_one_candidate_whatever_their_ids():
    seen = []

    def run(steps):
        seen.append([getattr(step, "fault", "") for step in steps])
        return BUG if len(steps) == 4 else None

    search(run, [Inject("kill", f"f{index}") for index in range(4)])
    assert sorted(map(len, seen)) == [0, 1, 2, 3] or sorted(map(len, seen)) == [0, 2, 3]


def test_a_heal_may_be_needed_or_not():
    def run(steps):
        return BUG if any(isinstance(step, Heal) for step in steps) else None

    steps = [*ops("a"), Inject("x", "f1"), *ops("b"), Heal("f1"), Inject("y", "f2"), Heal("f2")]
    assert len(search(run, steps).steps) == 2
    assert search(lambda steps: BUG if Inject("x", "f1") in steps else None, steps).steps == (Inject("x", "f1"),)


def test_a_system_that_fails_by_starting_needs_no_steps():
    result = search(lambda _: BUG, ops(*"abcdefgh"))
    assert result == Minimised((), SURE, 6, exhausted=False)


def test_another_property_is_not_the_same_failure():
    def run(steps):
        return BUG if len(steps) == 3 else "always:other"

    result = search(run, ops("a", "b", "c"))
    assert result.steps == tuple(ops("a", "b", "c"))


# --- noise, budgets, the end -------------------------------------------------------------


@pytest.mark.parametrize(
    ("failed", "runs", "tries"), [(5, 5, 1), (9, 10, 2), (1, 2, 5), (3, 10, 9), (1, 10, 10), (1, 100, 10), (0, 5, 10)]
)
def test_how_often_a_candidate_is_tried(failed, runs, tries):
    assert tries_for(Repro(failed, runs)) == tries


def test_steps_that_never_failed_again_come_back_as_they_are():
    def run(_steps):
        raise AssertionError("nothing to search with")

    steps = ops("a", "b")
    assert search(run, steps, Repro(0, 5)) == Minimised(tuple(steps), Repro(0, 5), 0, exhausted=False)


def test_a_violation_of_something_else_is_repeated_once():
    outcomes = {0: iter(["always:other", None])}

    def run(steps):
        return next(outcomes.get(len(steps), iter([BUG if steps else None])))

    result = search(run, ops("a"))
    assert result.runs_used == 2
    assert list(outcomes[0]) == []


def test_a_failure_that_was_bad_luck_is_taken_back():
    """Fewer than two steps fail the first time only; what recurs needs both.  None, and one, are each measured."""
    seen = set()

    def run(steps):
        first = len(steps) not in seen
        seen.add(len(steps))
        return BUG if len(steps) == 2 or (first and len(steps) < 2) else None

    steps = ops("a", "b")
    assert search(run, steps) == Minimised(tuple(steps), SURE, 13, exhausted=False)


def test_a_repro_is_measured_on_what_is_returned():
    rng = random.Random(3)

    def run(steps):
        return BUG if needs("b")(steps) and (len(steps) > 1 or rng.random() < 0.5) else None

    result = search(run, ops("a", "b", "c"))
    assert result.steps == tuple(ops("b"))
    assert 0 < result.repro.failed < result.repro.runs == 5


def test_fewer_steps_that_fail_less_often_are_searched_again_with_more_patience():
    """Alone with `b`, the bug shows every third time: one try each would stop at `a`, `b`."""
    runs = {}

    def run(steps):
        names = "".join(step.name for step in steps)
        count = runs[names] = runs.get(names, 0) + 1
        if "b" not in names:
            return None
        return BUG if len(names) > 2 or count % 3 == 0 or (len(names) == 2 and count == 1) else None

    assert search(run, ops(*"abcd")).steps == tuple(ops("b"))


@pytest.mark.parametrize("runs_max", range(0, 24, 2))
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
        confirm(run, ops("a"), BUG, budget=plenty())
