"""Properties of the driver's pure parts: which failure is known, and that what is recorded replays."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from colos.chaos.fingerprint import is_instance_of_known
from colos.chaos.properties import Violation
from colos.chaos.recording import recorded
from colos.chaos.rerun import resolved
from colos.chaos.scenario import Heal, Inject, Op, Ref, Repro, Scenario, Step, dumps, load, loads, save, step_refs

KINDS = st.sampled_from(["kill", "disk-full", "cpu-starvation"])
RESOURCES = st.fixed_dictionaries(
    {}, optional={"resource": st.sampled_from(["bytes", "inodes"]), "free": st.integers(0, 9)}
)
OPS = st.builds(Op, st.sampled_from(["put", "get"]), st.dictionaries(st.sampled_from(["a", "b"]), st.integers()))
FAULTS = st.tuples(KINDS, st.sampled_from([None, "box"]), RESOURCES)
NAMES = st.sampled_from(["always:a", "always:b", "rule:put"])


@st.composite
def step_lists(draw: st.DrawFn) -> tuple[Step, ...]:
    """Ops, faults with ids of their own, and heals of faults that came before."""
    steps: list[Step] = []
    for part in draw(st.lists(OPS | FAULTS | st.none(), max_size=12)):
        begun = [step.id for step in steps if isinstance(step, Inject)]
        if isinstance(part, Op):
            steps.append(part)
        elif part is not None:
            steps.append(Inject(part[0], f"f{len(steps)}", part[1], part[2]))
        elif begun:
            steps.append(Heal(draw(st.sampled_from(begun))))
    return tuple(steps)


def is_known(name: str, known: Sequence[Step], violation: str, steps: Sequence[Step]) -> bool:
    return is_instance_of_known(Scenario("t", name, tuple(known)), Violation(violation, ""), steps)


@given(step_lists(), NAMES)
def test_a_failure_is_an_instance_of_itself(steps, name):
    assert is_known(name, steps, name, steps)


@given(step_lists(), step_lists(), NAMES, NAMES)
def test_another_property_is_never_known(known, steps, name, other):
    if name != other:
        assert not is_known(name, known, other, steps)


@given(step_lists(), st.data(), NAMES)
def test_what_lies_between_the_known_faults_changes_nothing(known, data, name):
    """More ops, heals and faults; other targets, ids and amounts: still the same failure."""
    longer: list[Step] = []
    for step in known:
        longer += data.draw(step_lists())
        longer.append(step)
        if isinstance(step, Inject):
            amount = {"free": data.draw(st.integers(0, 9))}
            longer[-1] = replace(step, id=f"g{len(longer)}", target=data.draw(st.text()), args={**step.args, **amount})
    assert is_known(name, known, name, [step for step in longer if not isinstance(step, Heal)])


@given(step_lists(), st.data(), NAMES)
def test_a_failure_that_needs_less_is_new(known, data, name):
    """Without one of the known faults, or with one of another kind, it is not the known failure."""
    places = [place for place, step in enumerate(known) if isinstance(step, Inject)]
    if places:
        place = data.draw(st.sampled_from(places))
        fewer = known[:place] + known[place + 1 :]
        assert not is_known(name, known, name, fewer)
        assert not is_known(name, known, name, (*fewer, replace(known[place], fault="never-drawn")))


@given(step_lists(), NAMES)
def test_the_order_of_the_faults_counts(known, name):
    faults = [step for step in known if isinstance(step, Inject)]
    kinds = [(step.fault, step.args.get("resource")) for step in faults]
    assert is_known(name, known, name, faults[::-1]) == (kinds == kinds[::-1])


# --- arguments ---------------------------------------------------------------------------

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=9)


def nested(leaves: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            | st.tuples(inner, inner)
        ),
        max_leaves=8,
    )


class Made:
    """What only one run has: equal to nothing, and not to be copied."""

    def __deepcopy__(self, memo: object) -> None:
        raise TypeError


MADE = {f"things_{n}": Made() for n in range(3)}
VALUES = nested(PLAIN | st.sampled_from(list(MADE.values())))


def names_in(value: object) -> list[str]:
    """The bundle values in a value, in the order of a walk."""
    if isinstance(value, Made):
        return [name for name, made in MADE.items() if made is value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [name for item in items for name in names_in(item)]


@given(VALUES)
def test_a_recorded_argument_comes_back_as_it_was_with_the_values_of_the_new_run(value):
    step = Op("use", {"value": recorded(value, MADE)}, (), (recorded(value, MADE),))
    made = tuple(Op("make", {}, (name,)) for name in MADE)
    (*_, loaded) = loads(dumps(Scenario("t::T", "always:x", (*made, step)))).steps
    assert loaded == step
    assert sorted(set(names_in(value))) == sorted(step_refs(step))
    for again in (loaded.args["value"], *loaded.draws):
        assert resolved(again, dict(MADE)) == value
        other = {name: Made() for name in MADE}
        assert [made for name in names_in(value) for made in [other[name]]] == walk(resolved(again, other))


def walk(value: object) -> list[Made]:
    if isinstance(value, Made):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [made for item in items for made in walk(item)]


@given(nested(PLAIN))
def test_without_bundles_an_argument_is_recorded_by_value_and_given_out_as_a_copy(value):
    kept = recorded(value, {})
    assert kept == value
    before = copy.deepcopy(kept)
    given_out = resolved(kept, {})
    assert given_out == before
    if isinstance(given_out, list | dict):
        given_out.clear()
    assert kept == before


# --- a scenario, saved, loaded and replayed ----------------------------------------------


def test_a_value_that_merely_equals_a_bundle_s_is_no_reference():
    assert recorded([3, "x"], {}) == [3, "x"]
    assert recorded([3, 4], {"n_0": 4}) == [3, Ref("n_0")]


@given(step_lists(), NAMES, st.none() | st.text(max_size=20))
def test_a_saved_scenario_is_loaded_as_it_was(steps, name, known):
    scenario = Scenario("tests/test_x.py::TestX", name, steps, Repro(9, 10), known)
    with tempfile.TemporaryDirectory() as directory:
        path = save(scenario, directory)
        loaded = load(path)
        assert save(loaded, directory) == path
    kinds = {id_: at for at, id_ in enumerate(step.id for step in steps if isinstance(step, Inject))}
    again = {id_: at for at, id_ in enumerate(step.id for step in loaded.steps if isinstance(step, Inject))}
    assert len(loaded.steps) == len(steps)
    assert replace(loaded, steps=()) == replace(scenario, steps=())
    for one, two in zip(steps, loaded.steps, strict=True):
        if isinstance(one, Op):
            assert one == two
        else:
            assert kinds[one.id] == again[two.id]
            assert not isinstance(one, Inject) or replace(one, id="") == replace(two, id="")
