"""What a failure is called by, and scenarios whose project has moved on: aliases and older formats."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colos.chaos.fingerprint import is_instance_of_known
from colos.chaos.machine import ChaosMachine
from colos.chaos.properties import Violation
from colos.chaos.scenario import (
    Heal,
    Inject,
    Op,
    Repro,
    Scenario,
    Step,
    dumps,
    fingerprint,
    load,
    loads,
    renamed,
    save,
    validate,
)
from colos.errors import InvalidScenario, InvalidSpecification

# --- fingerprints ------------------------------------------------------------------------


def kill(target: str | None, **args: object) -> Inject:
    return Inject("kill", "f1", target, args)


def full(**args: object) -> Inject:
    return Inject("disk-full", "f2", None, args)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ([kill("ledger/1")], [kill("ledger/2")]),
        ([kill("a"), kill("b"), kill("a")], [kill("b"), kill("c"), kill("b")]),
        ([full(free=0)], [full(free=4096)]),
        ([Op("put"), full(), Op("put"), Heal("f2")], [full(), Op("get", {"x": 1})]),
        ([full(), kill("a")], [replace(full(), id="x"), replace(kill("a"), id="y")]),
        ([full(resource="inodes", free=1)], [full(free=2, resource="inodes")]),
        ([Op("put", {"x": 1}), Op("get")], [Op("put", {"x": 2}, ("r",)), Op("get")]),
    ],
)
def test_what_does_not_matter_is_no_part_of_a_fingerprint(one: list[Step], two: list[Step]):
    assert fingerprint("always:p", one) == fingerprint("always:p", two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ([kill("a"), full()], [full(), kill("a")]),
        ([kill("a")], [kill(None)]),
        ([kill("a"), kill("a")], [kill("a"), kill("b")]),
        ([kill("a")], [kill("a"), kill("a")]),
        ([full()], [full(resource="inodes")]),
        ([full(resource="inodes")], [full(what="inodes")]),
        ([Op("put")], [Op("get")]),
        ([Op("put"), Op("get")], [Op("get"), Op("put")]),
        ([], [Op("get")]),
        ([Op("kill")], [kill(None)]),
    ],
)
def test_what_matters_is_part_of_a_fingerprint(one: list[Step], two: list[Step]):
    assert fingerprint("always:p", one) != fingerprint("always:p", two)
    assert fingerprint("always:p", one) != fingerprint("always:q", one)


faults = st.builds(
    Inject,
    st.sampled_from(["kill", "disk-full"]),
    st.just("f"),
    st.none() | st.sampled_from("abc"),
    st.dictionaries(st.sampled_from(["resource", "free"]), st.sampled_from(["bytes", "inodes", 0, 1])),
)


@given(st.lists(faults, max_size=3), st.lists(faults, min_size=1, max_size=3))
def test_of_equal_fingerprints_each_is_an_instance_of_the_other(one: list[Step], two: list[Step]):
    """`known` and file names have one notion of what the same failure is."""
    two = [*one, *two] if len(two) == 1 else two
    violation = Violation("always:p", "")
    known, other = Scenario("t", "always:p", tuple(one)), Scenario("t", "always:p", tuple(two))
    assert is_instance_of_known(known, violation, one)
    if fingerprint("always:p", one) == fingerprint("always:p", two):
        assert is_instance_of_known(known, violation, two)
        assert is_instance_of_known(other, violation, one)


# --- aliases -----------------------------------------------------------------------------

OLD = Scenario(
    "t::T",
    "rule:pay",
    (
        Op("pay", {"sum": 1, "who": "a"}, ("r_0",), (3,)),
        Op("wait"),
        Inject("kill", "f1", "pay", {"sum": 1}),
        Heal("f1"),
    ),
)


def test_names_of_today_stand_in_for_older_ones():
    aliases = {"pay": "transfer", "transfer": "deposit", "deposit.sum": "money", "deposit.money": "amount"}
    new = renamed(OLD, aliases)
    assert new.steps == (Op("deposit", {"amount": 1, "who": "a"}, ("r_0",), (3,)), *OLD.steps[1:])
    assert new.violates == "rule:deposit"
    assert renamed(new, aliases) == new
    assert renamed(OLD) == renamed(OLD, {"other": "x", "pay.what": "y"}) == OLD


def test_a_property_has_aliases_by_its_full_name():
    scenario = replace(OLD, violates="always:sane")
    assert renamed(scenario, {"always:sane": "always:balanced", "sane": "x"}).violates == "always:balanced"


def test_a_hang_is_named_after_its_rule_too():
    assert renamed(replace(OLD, violates="hang:pay"), {"pay": "deposit"}).violates == "hang:deposit"


def test_what_is_saved_under_an_old_name_is_not_saved_again(tmp_path):
    """Without a fault, the rules' names are what a failure is known by."""
    aliases = {"pay": "deposit"}
    old = Scenario("t::T", "rule:pay", (Op("pay"),), Repro(1, 2))
    new = Scenario("t::T", "rule:deposit", (Op("deposit"),), Repro(2, 2))
    path = save(old, tmp_path)
    path.write_text("# ours\n" + path.read_text())
    assert save(new, tmp_path, lambda saved: renamed(saved, aliases)) == path
    assert list(tmp_path.iterdir()) == [path]
    assert load(path).steps == new.steps
    assert path.read_text().startswith("# ours\n")
    circle = {"pay": "deposit", "deposit": "pay"}  # its own item says so; saving goes on beside it
    assert save(new, tmp_path, lambda saved: renamed(saved, circle)) != path


def test_an_argument_that_is_there_under_both_names_is_refused():
    text = dumps(Scenario("t", "v", (Op("wait"), Op("pay", {"sum": 1, "amount": 2}))))
    with pytest.raises(InvalidScenario, match=r"x\.toml: line 6: the argument 'amount' of 'pay' is there twice"):
        renamed(loads(text), {"pay.sum": "amount"}, path="x.toml", text=text)


@pytest.mark.parametrize("aliases", [{"pay": "pay"}, {"pay": "a", "a": "b", "b": "pay"}, {"pay.sum": "sum"}])
def test_aliases_that_go_in_a_circle_are_refused(aliases):
    with pytest.raises(InvalidSpecification, match=r"in a circle: .* → .*; the last name is today's"):
        renamed(OLD, aliases)


def test_a_machine_declares_aliases():
    class Renaming(ChaosMachine):
        aliases = {"pay": "deposit"}

    assert ChaosMachine.aliases == {}
    assert renamed(OLD, Renaming.aliases).steps[0].name == "deposit"


# --- values that wait for the machine's module --------------------------------------------


@dataclass(frozen=True)
class Account:
    owner: str


WAITING = """\
format = 1
test = "t::T"
violates = "v"
steps = [
  { op = "open", account = A, size = 2, args = { op = [B] }, draws = [1, C] },
]
"""
for letter in "ABC":
    WAITING = WAITING.replace(letter, f'{{ "$dataclass" = "colos_bank:Account", owner = "{letter.lower()}" }}')


def test_a_scenario_is_read_before_its_module_is_and_built_afterwards(monkeypatch):
    scenario = loads(WAITING)
    assert loads(dumps(scenario)) == scenario
    assert scenario.steps[0].args["size"] == 2
    known = {"open": ("account", "size", "op")}
    with pytest.raises(InvalidScenario, match="'account' waits for the module colos_bank, which is not imported"):
        validate(scenario, faults={}, ops=known)
    with pytest.raises(InvalidScenario, match=r"x: line 5: 'account': the module colos_bank is not imported; .*"):
        renamed(scenario, path="x", text=WAITING)

    bank = ModuleType("colos_bank")
    bank.Account = Account
    monkeypatch.setitem(sys.modules, "colos_bank", bank)
    built = renamed(scenario)
    assert built.steps == (
        Op("open", {"account": Account("a"), "size": 2, "op": [Account("b")]}, (), (1, Account("c"))),
    )
    assert built == loads(WAITING)
    validate(built, faults={}, ops=known)
    bank.Account = int
    with pytest.raises(InvalidScenario, match=r"steps\[0\]: 'account': .* is no dataclass"):
        renamed(scenario)


# --- older formats -----------------------------------------------------------------------

OLDER = """\
format = -1
test = "t::T"
broken = "always:p"
steps = [{ op = "a" }]
"""


def from_minus_one(document: dict[str, object]) -> dict[str, object]:
    if "broken" not in document:
        raise ValueError("it names no property")
    return {**{key: value for key, value in document.items() if key != "broken"}, "breaks": document["broken"]}


def from_zero(document: dict[str, object]) -> dict[str, object]:
    assert document["format"] == 0
    return {**{key: value for key, value in document.items() if key != "breaks"}, "violates": document["breaks"]}


MIGRATIONS: Mapping[int, object] = {-1: from_minus_one, 0: from_zero}


def test_an_older_format_is_brought_to_the_present_one_step_by_step():
    assert loads(OLDER, migrations=MIGRATIONS) == Scenario("t::T", "always:p", (Op("a"),))
    later = OLDER.replace("-1", "0").replace("broken", "breaks")
    assert loads(later, migrations=MIGRATIONS) == loads(OLDER, migrations=MIGRATIONS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (OLDER.replace("broken", "#"), "line 1: format -1 cannot be brought to 1: it names no property"),
        (OLDER.replace("-1", "-2"), "line 1: format -2 is not supported; this version of ColOS supports: -1 to 1"),
        (
            OLDER.replace("-1", "2"),
            "line 1: format 2 is not supported; this version of ColOS supports: -1 to 1; a newer",
        ),
        (OLDER.replace("steps", "stesp"), "line 4: unknown key 'stesp'; did you mean 'steps'"),
    ],
)
def test_what_cannot_be_migrated_is_refused(text, words):
    with pytest.raises(InvalidScenario, match=words):
        loads(text, "x.toml", migrations=MIGRATIONS)
