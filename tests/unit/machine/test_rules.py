"""Rules, bundles and draws work as Hypothesis documents them, and become steps that replay."""

from __future__ import annotations

import random
import threading

import anyio
import anyio.lowlevel
import hypothesis
import pytest
import sniffio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, consumes, initialize, invariant, multiple, precondition, rule

from colos.chaos import ChaosMachine, always
from colos.chaos.scenario import Op, Ref, dumps, load, loads


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_rules_and_properties_may_be_coroutines_on_either_loop(lab, nothing, backend):
    """Coroutines run on the loop's thread, plain functions on the main one; tasks live as long as the example."""
    ran: set[tuple[str, str, bool]] = set()
    ended: list[int] = []

    def note(what: str) -> None:
        loop = sniffio.current_async_library_cvar.get() or sniffio.thread_local.name or ""
        ran.add((what, loop, threading.current_thread() is threading.main_thread()))

    class Mixed(ChaosMachine):
        system = nothing

        @initialize()
        async def begin(self):
            note("begin")
            self.tasks.start_soon(self.forever)

        async def forever(self):
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(1)

        @rule(n=st.integers())
        async def waits(self, n):
            await anyio.lowlevel.checkpoint()
            note("waits")

        @rule()
        def plain(self):
            note("plain")

        @always
        async def holds(self):
            await anyio.lowlevel.checkpoint()
            note("holds")

        @always
        def holds_too(self):
            note("holds_too")

    Mixed.backend = backend
    found = lab.explore(Mixed, examples=10, steps=5)
    assert (found.failure, found.examples) == (None, 10)
    assert len(ended) == 10
    on_loop, here = {"begin", "waits", "holds"}, {"plain", "holds_too"}
    assert ran == {(name, backend, False) for name in on_loop} | {(name, "", True) for name in here}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_hypothesis_own_functions_work_in_coroutines(lab, nothing, backend):
    drawn: list[int] = []
    assumed: list[bool] = []

    class Helped(ChaosMachine):
        system = nothing

        @rule(data=st.data())
        async def helped(self, data):
            assert hypothesis.currently_in_test_context()
            number = data.draw(st.integers(0, 9), label="number")
            drawn.append(number)
            hypothesis.note("noted")
            hypothesis.event("counted", payload=number)
            hypothesis.target(float(number), label=f"number {len(drawn)}")

        @rule(n=st.integers(0, 9))
        async def assuming(self, n):
            hypothesis.assume(n < 5)
            assumed.append(n < 5)

    Helped.backend = backend
    found = lab.explore(Helped, examples=20, steps=3)
    assert found.failure is None
    assert set(drawn) > {0, 9}
    assert assumed
    assert all(assumed)


@pytest.mark.slow
def test_a_machine_that_depends_on_chance_finishes_a_thousand_examples(lab, nothing):
    """Preconditions, bundles and results change from call to call, as outcomes of real faults do.

    With Hypothesis's own data tree, such a machine raises FlakyStrategyDefinition after some dozens.
    """
    chance = random.SystemRandom()
    steps = [0]

    class Moody(ChaosMachine):
        system = nothing
        things = Bundle("things")

        @rule(target=things, n=st.integers())
        def make(self, n):
            if chance.random() < 0.3:
                raise ConnectionRefusedError
            return multiple(*[n] * chance.randrange(3))

        @precondition(lambda self: chance.random() < 0.5)
        @rule(thing=consumes(things), choice=st.sampled_from("abc"))
        def use(self, thing, choice):
            steps[0] += 1

        @precondition(lambda self: chance.random() < 0.5)
        @rule(data=st.data())
        async def draw(self, data):
            for _ in range(chance.randrange(4)):
                data.draw(st.integers())

    found = lab.explore(Moody, examples=1000, steps=4)
    assert found.failure is None
    assert found.examples >= 1000  # more: an empty bundle makes Hypothesis begin another one
    assert steps[0] > 20  # a few hundred, by chance


def test_the_author_s_settings_count_where_no_option_does(lab, nothing):
    ended: list[int] = []

    class Short(ChaosMachine):
        system = nothing

        def __init__(self):
            super().__init__()
            self.steps = 0
            ended.append(0)

        @rule()
        def step(self):
            ended[-1] += 1

    Short.TestCase.settings = settings(max_examples=7, stateful_step_count=3)
    assert lab.explore(Short).examples == 7
    assert ended == [3] * 7
    ended.clear()
    assert lab.explore(Short, examples=2, steps=5).examples == 2
    assert ended == [5] * 2


def test_initialize_comes_first_and_properties_wait_for_it(lab, nothing):
    class Ordered(ChaosMachine):
        system = nothing

        def __init__(self):
            super().__init__()
            self.order = []

        @initialize()
        def one(self):
            self.order.append("i")

        @initialize(n=st.integers(0, 3))
        async def two(self, n):
            self.order.append("i")

        @rule()
        def later(self):
            self.order.append("r")

        @always
        def it_is_begun(self):
            assert self.order[:2] == ["i", "i"]
            assert "i" not in self.order[2:]

    found = lab.explore(Ordered, examples=10, steps=5)
    assert found.failure is None


def test_a_rule_may_call_another_within_its_own_step(lab, nothing):
    class Calling(ChaosMachine):
        system = nothing
        calls = 0

        @rule(n=st.integers(0, 5))
        def inner(self, n):
            self.calls += 1

        @rule()
        def outer(self):
            self.inner(n=3)
            assert self.calls < 3, "three"

    found = lab.explore(Calling, examples=30, steps=6)
    assert found.failure is not None
    assert {step.name for step in found.failure.minimal} <= {"inner", "outer"}
    assert len(found.failure.minimal) == 3
    assert [record["n"] for record in lab.journal("step")] == list(range(1, len(found.failure.found) + 1))


def test_invariants_of_hypothesis_are_properties_under_their_preconditions(lab, nothing):
    class Kept(ChaosMachine):
        system = nothing
        count = 0

        @rule()
        def step(self):
            self.count += 1

        @precondition(lambda self: self.count > 99)
        @invariant()
        def never_asked(self):
            raise AssertionError("asked")

        @precondition(lambda self: self.count == 2)
        @invariant()
        async def fails_at_two(self):
            await anyio.lowlevel.checkpoint()
            raise AssertionError("two")

    found = lab.explore(Kept, steps=5)
    assert found.failure is not None
    assert found.failure.violation.name == "always:fails_at_two"
    assert found.failure.minimal == (Op("step"), Op("step"))


class Shelf(ChaosMachine):
    """Makes, groups and takes objects that only the run itself can name."""

    boxes = Bundle("boxes")
    labels = Bundle("labels")

    def __init__(self):
        super().__init__()
        self.made = []
        self.used = []

    @rule(targets=(boxes, labels), size=st.integers(0, 9))
    def make(self, size):
        self.made.append(f"{size} in {id(self)}")
        return self.made[-1]

    @rule(target=boxes, n=st.integers(0, 3))
    async def make_many(self, n):
        new = [f"{n} of many in {id(self)}" for _ in range(n)]
        self.made += new
        return multiple(*new)

    @rule(target=boxes, box=boxes, refuse=st.booleans())
    def copy(self, box, refuse):
        if refuse:
            raise ConnectionRefusedError
        self.use(box)
        return box

    @rule(box=consumes(boxes), data=st.data())
    def take(self, box, data):
        self.use(box)
        self.use(data.draw(st.just(box) | Shelf.labels))

    @rule(several=st.lists(boxes, min_size=1, max_size=3), box=boxes | labels)
    def group(self, several, box):
        for each in [*several, box]:
            self.use(each)

    def use(self, box):
        assert box.endswith(f"in {id(self)}"), "it is another run's"
        self.used.append(box)

    @always
    def not_too_much_is_used(self):
        assert len(self.used) < 6


def test_bundle_values_are_named_and_replay_with_the_new_runs_values(lab, nothing):
    """Each value carries its run's identity: one that was recorded literally would be another run's."""
    shelf = type("Shelf", (Shelf,), {"system": nothing})
    seen: set[str] = set()
    for seed in range(6):
        found = lab.explore(shelf, examples=50, steps=15, seed=seed)
        failure = found.failure
        assert failure is not None
        assert failure.violation.name == "always:not_too_much_is_used"
        assert (failure.repro.failed, failure.repro.runs) == (5, 5), failure.found
        assert failure.saved is not None, failure.not_saved
        scenario = load(failure.saved)
        assert lab.replay(shelf, scenario.steps, scenario.violates).failed == 1
        seen |= {step.name for step in failure.minimal}
        for step in failure.minimal:
            wanted = [step.args[name] for name in ("box",) if name in step.args]
            wanted += step.args.get("several", [])
            assert all(isinstance(value, Ref) for value in wanted), step
    assert seen >= {"make", "take", "group"}


def test_names_follow_what_hypothesis_gives(lab, nothing):
    class Named(ChaosMachine):
        system = nothing
        things = Bundle("things")
        pairs = Bundle("pairs")

        @initialize(target=things)
        def first(self):
            return "a"

        @rule(targets=(things, pairs))
        def more(self):
            return multiple("b", "c")

        @rule(thing=things)
        def fail(self, thing):
            assert sorted(self.names_to_values) != ["pairs_0", "pairs_1", "things_0", "things_1", "things_2"]

    found = lab.explore(Named, examples=200, steps=4)
    assert found.failure is not None
    given = {step.name: step.results for step in found.failure.found if step.results}
    assert given == {"first": ("things_0",), "more": ("things_1", "things_2", "pairs_0", "pairs_1")}


def test_draws_are_given_back_in_order_and_go_on_beyond_what_was_recorded(lab, nothing):
    seen: list[list[int]] = []

    class Drawing(ChaosMachine):
        system = nothing

        @rule(first=st.data(), n=st.integers(), second=st.data())
        async def draw(self, first, n, second):
            seen.append([first.draw(st.integers(0, 9)), second.draw(st.integers(0, 9)), first.draw(st.integers(0, 9))])
            assert 7 not in seen[-1]

    found = lab.explore(Drawing, examples=200)
    assert found.failure is not None
    (step,) = found.failure.minimal
    assert 7 in step.draws
    seen.clear()
    assert lab.replay(Drawing, found.failure.minimal, "rule:draw").failed == 1
    assert seen == [list(step.draws)]
    seen.clear()
    lab.replay(Drawing, [Op("draw", {"n": 0}, (), (1, 2))])
    assert seen[0][:2] == [1, 2]
    assert 0 <= seen[0][2] <= 9


def test_a_change_of_an_argument_does_not_reach_the_record(lab, nothing):
    class Greedy(ChaosMachine):
        system = nothing

        @rule(
            numbers=st.lists(st.integers(), min_size=1),
            tags=st.sets(st.integers(), min_size=1),
            table=st.fixed_dictionaries({"row": st.lists(st.integers(), min_size=1)}),
            data=st.data(),
        )
        def eat(self, numbers, tags, table, data):
            tags.clear()
            table["row"].clear()
            drawn = data.draw(st.lists(st.integers(), min_size=1))
            while numbers:
                numbers.pop()
            drawn.clear()
            raise ValueError("full")

    found = lab.explore(Greedy)
    assert found.failure is not None
    (step,) = found.failure.minimal
    assert step.args["numbers"]
    assert step.draws[0]
    assert step.args["table"]["row"]
    assert step.args["tags"]
    assert loads(dumps(loads(found.failure.saved.read_text()))).steps == found.failure.minimal


def test_what_does_not_fit_a_shorter_run_is_skipped_in_it(lab, nothing):
    """A precondition, an assumption or a missing result: the step is left out and the rest goes on."""

    class Dependent(ChaosMachine):
        system = nothing
        keys = Bundle("keys")
        opened = False

        @rule(target=keys)
        def make(self):
            return object()

        @rule(key=keys)
        def open(self, key):
            self.opened = True

        @precondition(lambda self: self.opened)
        @rule()
        def look(self):
            assert self.opened

        @rule()
        async def assume(self):
            hypothesis.assume(self.opened)

        @rule()
        def end(self):
            raise ValueError("the end")

    steps = [Op("make"), Op("open", {"key": Ref("keys_0")}), Op("look"), Op("assume"), Op("end")]
    assert lab.replay(Dependent, steps, "rule:end").failed == 1
    assert [record["skipped"] for record in lab.journal("note")] == [
        '{ op = "open", key = { "$ref" = "keys_0" } }',
        '{ op = "look" }',
        '{ op = "assume" }',
    ]
    whole = [Op("make", {}, ("keys_0",)), *steps[1:4]]
    assert lab.replay(Dependent, whole).verdict.violation is None
    assert lab.journal("note") == []
    found = lab.explore(Dependent, steps=12, examples=50)
    assert found.failure is not None
    assert found.failure.minimal == (Op("end"),)
