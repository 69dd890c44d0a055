"""Scenarios as files: exact, one line a step, and helpful about mistakes."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colos.chaos import scenario_file as module
from colos.chaos.mechanisms.filelock import locked
from colos.chaos.scenario import (
    Heal,
    Inject,
    Op,
    Ref,
    Repro,
    Scenario,
    describe,
    dumps,
    fingerprint,
    identity,
    load,
    loads,
    save,
    step_refs,
    validate,
)
from colos.errors import InvalidScenario

LEDGER = Scenario(
    test="tests/test_ledger.py::TestLedger",
    violates="always:no_acknowledged_deposit_is_lost",
    steps=(
        Op("deposit", {"account": "a", "amount": 1}),
        Inject("disk-full", "f1"),
        Inject("kill", "f2", "ledger/writer"),
        Heal("f1"),
    ),
    repro=Repro(10, 10),
    mechanisms={"disk-full": "remount"},
)

LEDGER_TEXT = """\
format   = 1
test     = "tests/test_ledger.py::TestLedger"
violates = "always:no_acknowledged_deposit_is_lost"
repro    = { failed = 10, runs = 10 }
mechanisms = { disk-full = "remount" }
steps = [
  { op = "deposit", account = "a", amount = 1 },
  { fault = "disk-full", id = "f1" },
  { fault = "kill", target = "ledger/writer" },
  { heal = "f1" },
]
"""


def test_the_file_reads_as_the_design_says():
    assert dumps(LEDGER) == LEDGER_TEXT
    assert loads(LEDGER_TEXT) == LEDGER


def test_what_it_was_found_with_stands_in_a_line_each():
    found = replace(LEDGER, tier="bare", versions={"colos": "0.1.0", "python": "3.11.7"})
    assert dumps(found) == LEDGER_TEXT.replace(
        "mechanisms",
        'tier     = "bare"\nmechanisms',
    ).replace("steps", 'versions = { colos = "0.1.0", python = "3.11.7" }\nsteps')
    assert loads(dumps(found)) == found


def test_defaults_are_left_out():
    bare = Scenario("t", "always:p", ())
    assert dumps(bare) == 'format   = 1\ntest     = "t"\nviolates = "always:p"\nsteps = []\n'
    assert loads(dumps(bare)) == bare


def test_known_results_draws_and_colliding_names():
    steps = (
        Op("create", {"op": 1, "args": None, "results": (), "heal": "x", "fault": 0, "size": 2}, ("jobs_0",), (b"x",)),
        Op("use", {"id": Ref("jobs_0"), "target": 1, "a-b": 2, "": 3}),
        Inject("delay", "f1", None, {"id": 1, "target": "x", "ms": 5}),
    )
    known = Scenario("t", "always:p", steps, known='upstream "bug"\n#12')
    text = dumps(known)
    assert '{ op = "use", id = { "$ref" = "jobs_0" }, target = 1, args = { a-b = 2, "" = 3 } }' in text
    assert '{ fault = "delay", ms = 5, args = { id = 1, target = "x" } }' in text
    assert loads(text) == known


def test_odd_argument_names_survive():
    odd = Scenario("t", "v", (Op("o", {"$ref": "x", "\ud800": 1, "é": 2, "line\nbreak": 3}),))
    assert loads(dumps(odd)) == odd


def test_missing_ids_are_fresh_and_always_the_same():
    text = dumps(Scenario("t", "v", ())).replace(
        "[]", '[{fault = "a"}, {fault = "b", id = "f1"}, {fault = "c"}, {heal = "f1"}]'
    )
    assert [step.id for step in loads(text).steps] == ["f2", "f1", "f3", "f1"]
    assert loads(text) == loads(text)


names = st.text(st.characters(codec="utf-8"), max_size=8)
arguments = st.dictionaries(
    names | st.sampled_from(["op", "args", "id", "target", "amount"]),
    st.none() | st.integers() | names | st.lists(st.booleans(), max_size=2).map(tuple) | st.builds(Ref, names),
    max_size=4,
)


@st.composite
def scenarios(draw):
    steps: list[object] = []
    begun: list[str] = []
    for choice in draw(st.lists(st.sampled_from(["op", "inject", "heal"]), max_size=8)):
        if choice == "op":
            results = draw(st.lists(names, max_size=2).map(tuple))
            steps.append(Op(draw(names), draw(arguments), results, draw(st.lists(st.none(), max_size=2).map(tuple))))
        elif choice == "inject":
            begun.append(f"f{len(begun) + 1}")
            steps.append(Inject(draw(names), begun[-1], draw(st.none() | names), draw(arguments)))
        elif begun:
            steps.append(Heal(draw(st.sampled_from(begun))))
    failed, passed = draw(st.tuples(st.integers(0, 9), st.integers(0, 9)))
    return Scenario(
        draw(names),
        draw(names),
        tuple(steps),
        draw(st.sampled_from([None, Repro(failed, failed + passed)])),
        draw(st.none() | names),
        draw(st.dictionaries(names, names, max_size=2)),
        draw(st.none() | names),
        draw(st.dictionaries(names, names, max_size=2)),
    )


@given(scenarios())
def test_a_scenario_comes_back_exactly(scenario):
    text = dumps(scenario)
    back = loads(text)
    assert back == scenario
    assert dumps(back) == text
    assert identity(back) == identity(scenario)
    step_lines = text[text.index("\nsteps = [") + 1 :].count("\n") - (2 if scenario.steps else 1)
    assert step_lines == len(scenario.steps)
    assert pickle.loads(pickle.dumps(scenario)) == scenario


# --- mistakes ----------------------------------------------------------------------------


def complaint(text: str) -> InvalidScenario:
    with pytest.raises(InvalidScenario) as caught:
        loads(text, "x.toml")
    assert str(caught.value).startswith("x.toml: ")
    return caught.value


def changed(old: str, new: str) -> str:
    assert old in LEDGER_TEXT
    return LEDGER_TEXT.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("", "line 1", "empty"),
        (" \n\n", "line 1", "empty"),
        ("format = \n", "line 1, column 10", "not TOML"),
        (changed("amount = 1 }", "amount = 1"), "line 7, column 47", "not TOML"),
        (changed("]\n", ""), "end of document", "not TOML"),
        ("steps = [", "end of document", "not TOML"),
        (f"format = {'9' * 5000}", "the file", "not readable"),
        (changed("format   = 1", "format = 2"), "line 1", "supports: 1; a newer one may read it"),
        (changed("format   = 1", "format = 0"), "line 1", "supports: 1"),
        (changed("format   = 1", "format = true"), "line 1", "whole number, not True"),
        (changed("format   = 1\n", ""), "the file", "'format' is missing; the first line is: format = 1"),
        (changed("test     =", "tset     ="), "line 2", "unknown key 'tset'; did you mean 'test'"),
        (LEDGER_TEXT.replace("violates", "#"), "the file", "'violates' is missing"),
        (LEDGER_TEXT.split("steps")[0], "the file", "'steps' is missing"),
        (changed('"tests/test_ledger.py::TestLedger"', "3"), "line 2", "must be text, not 3"),
        (changed("repro  ", "repor  "), "line 4", "unknown key 'repor'; did you mean 'repro'"),
        (changed("failed = 10", "failed = 11"), "line 4", "11 of 10"),
        (changed("failed = 10", "faild = 10"), "line 4", "did you mean 'failed'"),
        (changed("runs = 10", "runs = 10, run = 1"), "line 4", "did you mean 'runs'"),
        (changed('"remount"', "1"), "line 5", "must be text"),
        (LEDGER_TEXT.split("steps")[0] + "steps = 3", "line 6", "must be a list, not 3"),
        (changed('  { heal = "f1" }', "  3"), "steps[3]", "a step is a table, not 3"),
        (LEDGER_TEXT.split("steps")[0] + 'steps = [3, { op = "x" }]', "steps[0]", "a step is a table, not 3"),
        (changed('{ op = "deposit",', "{"), "line 7", "exactly one of op, fault and heal; this one has none"),
        (changed('fault = "kill"', 'fualt = "kill"'), "line 9", "did you mean 'fault'"),
        (changed('fault = "kill"', 'op = "x", fault = "kill"'), "line 9", "has op and fault"),
        (changed('heal = "f1"', 'heal = "f1", at = 3'), "line 10", "unknown key 'at'"),
        (changed('heal = "f1"', 'heal = "f9"'), "line 10", "no earlier fault has the id 'f9'"),
        (changed('heal = "f1"', 'fault = "x", id = "f1"'), "line 10", "taken by an earlier fault"),
        (changed('op = "deposit"', "op = 1"), "line 7", "'op' must be text"),
        (changed("amount = 1", 'amount = { "$nome" = true }'), "line 7", "'amount': unknown tag '$nome'; did you mean"),
        (changed("amount = 1", "args = { amount = 1, account = 2 }"), "line 7", "'account' stands both"),
        (changed("amount = 1", 'args = { "$dict" = [[1, 2]] }'), "line 7", "by name"),
        (changed("amount = 1", "results = [1]"), "line 7", "list of texts, and has 1"),
        (changed("amount = 1", "draws = 1"), "line 7", "'draws' must be a list"),
    ],
)
def test_a_mistake_is_named_with_its_place(text, where, words):
    error = complaint(text)
    assert error.where == where
    assert words in str(error)


@pytest.mark.parametrize(
    "steps",
    [
        'steps = [ { op = "#]}" }, # { fault\n\n { op = """\n}""", x = \'\'\'\n{\'\'\' },\n  { heal = "gone" } ]',
        "\n[[steps]]\nop = '[['\nnote = '''\n'''\n[[ steps ]]\nheal = 'gone'",
    ],
)
def test_lines_are_found_in_any_layout(steps):
    text = LEDGER_TEXT.split("steps")[0] + steps
    expected = text[: text.index("heal")].count("\n") + (0 if steps.startswith("\n") else 1)
    assert complaint(text).where == f"line {expected}"


def test_a_file_that_is_not_utf8_or_begins_with_a_mark(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes(b"format = 1\ntest = '\xff'\n")
    with pytest.raises(InvalidScenario, match=r"a\.toml: line 2: not UTF-8: .*save it as UTF-8"):
        load(path)
    path.write_bytes(b"\xef\xbb\xbf" + LEDGER_TEXT.replace("\n", "\r\n").encode())
    assert load(path) == LEDGER
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.toml")


def test_what_would_not_load_is_not_written():
    def refused(scenario):
        with pytest.raises(InvalidScenario) as caught:
            dumps(scenario)
        return str(caught.value)

    assert "steps[0]: nothing to heal" in refused(Scenario("t", "v", (Heal("f1"),)))
    assert "steps[1]: the id 'f1' is taken" in refused(Scenario("t", "v", (Inject("a", "f1"), Inject("b", "f1"))))
    assert "steps[0]: the op 'o': the argument 'f': <function" in refused(
        Scenario("t", "v", (Op("o", {"f": lambda: None}),))
    )
    assert "surrogate" in refused(Scenario("t", "\ud800", ()))
    assert "surrogate" in refused(Scenario("t", "v", (Op("\ud800"),)))
    assert "format 7" in refused(Scenario("t", "v", (), format=7))


def test_describe_never_raises():
    assert describe(LEDGER.steps[1]) == '{ fault = "disk-full", id = "f1" }'
    assert "<function" in describe(Op("\ud800", {"f": lambda: None}))


# --- checking against a machine ----------------------------------------------------------

FAULTS = {"disk-full": (), "kill": ("signal",)}
OPS = {"deposit": ("account", "amount"), "use": ("job",)}


def test_a_scenario_that_fits_the_machine_is_valid():
    validate(LEDGER, faults=FAULTS, ops=OPS)
    validate(Scenario("t", "v", (Op("deposit", {}, ("j",)), Op("use", {"job": [Ref("j")]}))), faults={}, ops=OPS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'disk-full", id',
            'disk-ful", id',
            "x: line 8: unknown fault 'disk-ful'; did you mean 'disk-full'? known: disk-full, kill",
        ),
        (
            'op = "deposit"',
            'op = "deposti"',
            "x: line 7: unknown op 'deposti'; did you mean 'deposit'? known: deposit, use",
        ),
        ("amount = 1", "amonut = 1", "x: line 7: the op 'deposit' has no argument 'amonut'; did you mean 'amount'?"),
        ("target =", "tagret =", "x: line 9: the fault 'kill' has no argument 'tagret'; did you mean 'target'?"),
        ("amount = 1", 'amount = [{ "$ref" = "j" }]', "x: line 7: it refers to 'j', which no earlier op"),
    ],
)
def test_what_the_machine_does_not_know_is_named(old, new, message):
    text = changed(old, new)
    with pytest.raises(InvalidScenario) as caught:
        validate(loads(text), faults=FAULTS, ops=OPS, path="x", text=text)
    assert str(caught.value).startswith(message)
    with pytest.raises(InvalidScenario, match=r"steps\[\d\]"):
        validate(loads(text), faults=FAULTS, ops=OPS)


# --- identity and files ------------------------------------------------------------------


def test_identity_ignores_what_faults_are_called():
    other = (LEDGER.steps[0], Inject("disk-full", "x"), Inject("kill", "f1", "ledger/writer"), Heal("x"))
    assert identity(other, LEDGER.violates) == identity(LEDGER)
    swapped = (*other[:3], Heal("f1"))
    assert identity(swapped, LEDGER.violates) != identity(LEDGER)
    assert identity(LEDGER.steps, "always:other") != identity(LEDGER)
    assert identity(LEDGER.steps[:3], LEDGER.violates) != identity(LEDGER)
    assert len(identity((), "v")) == 12


def test_identity_is_the_same_in_every_process():
    assert identity(LEDGER) == "1f19bd313ce7"


def test_a_fingerprint_is_the_same_in_every_process():
    assert fingerprint(LEDGER.violates, LEDGER.steps) == "998354c1a979"


def test_saving_names_the_file_after_its_fingerprint(tmp_path):
    path = save(LEDGER, tmp_path / "new" / "folder")
    assert path.name == "no_acknowledged_deposit_is_lost-998354.toml"
    assert path.read_text() == LEDGER_TEXT
    assert load(path) == LEDGER
    assert os.listdir(path.parent) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o644


def test_saving_again_touches_nothing(tmp_path):
    path = save(LEDGER, tmp_path)
    path.write_text("# mine\n" + path.read_text().replace("steps", 'known = "yes"\nsteps'))
    before = path.read_bytes(), path.stat().st_ino
    assert save(LEDGER, tmp_path) == path
    assert (path.read_bytes(), path.stat().st_ino) == before
    assert len(os.listdir(tmp_path)) == 1


OP, FULL, KILL, HEAL = LEDGER.steps


@pytest.mark.parametrize(
    ("steps", "repro", "better"),
    [
        ((FULL, KILL), Repro(1, 10), True),
        ((FULL, KILL), None, True),
        ((OP, OP, FULL, KILL, HEAL), Repro(10, 10), False),
        ((OP, FULL, KILL, OP), Repro(9, 10), True),
        ((OP, FULL, KILL, OP), Repro(8, 10), False),
        ((OP, FULL, KILL, OP), Repro(80, 100), False),
        ((OP, FULL, KILL, OP), None, False),
    ],
)
def test_the_same_failure_found_again_is_one_file_and_the_better_scenario_stays(tmp_path, steps, repro, better):
    """The author's comments, name for the file and `known` stay in any case."""
    saved = save(replace(LEDGER, repro=Repro(8, 10), known="issue #12"), tmp_path)
    (tmp_path / "ledger").mkdir()
    path = saved.rename(tmp_path / "ledger" / "lost.toml")
    before = "# mine\n" + path.read_text()
    path.write_text(before)
    path.chmod(0o640)
    found = replace(LEDGER, steps=(*steps[:-2], replace(KILL, target="ledger/2"), *steps[-1:]), repro=repro)
    if KILL in steps[-1:]:
        found = replace(LEDGER, steps=(FULL, replace(KILL, target="ledger/2")), repro=repro)
    assert save(found, tmp_path) == path
    assert sorted(map(str, tmp_path.rglob("*.toml"))) == [str(path)]
    if better:
        assert path.read_text().startswith("# mine\n")
        assert identity(load(path)) == identity(found)
        assert replace(load(path), steps=()) == replace(found, steps=(), known="issue #12")
    else:
        assert path.read_text() == before
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_without_a_rate_gives_way_to_fewer_steps_only(tmp_path):
    path = save(replace(LEDGER, repro=None), tmp_path)
    before = path.read_text()
    assert save(replace(LEDGER, steps=(replace(OP, args={}), *LEDGER.steps[1:])), tmp_path) == path
    assert path.read_text() == before


def test_saving_never_overwrites_another_file(tmp_path):
    first = save(LEDGER, tmp_path)
    first.write_text("not even TOML")
    second = save(LEDGER, tmp_path)
    assert second.name == first.stem + "-2.toml"
    assert first.read_text() == "not even TOML"
    third = save(replace(LEDGER, test="other"), tmp_path)
    assert third.name == first.stem + "-3.toml"
    assert save(LEDGER, tmp_path) == second


@pytest.mark.parametrize("violates", ["always:../../etc/passwd", "always:", "", "a" * 500, ".hidden", "é / \n"])
def test_any_property_makes_a_plain_file_name(tmp_path, violates):
    path = save(Scenario("t", violates, ()), tmp_path)
    assert path.parent == tmp_path
    assert not path.name.startswith(".")
    assert len(path.name) < 80
    assert load(path).violates == violates


SAVING = """
import sys
from colos.chaos.scenario import load, save
scenarios = [load(path) for path in sys.argv[2:]]
print("ready", flush=True)
sys.stdin.readline()
for scenario in scenarios:
    print(save(scenario, sys.argv[1]))
"""


def test_many_workers_that_save_the_same_keep_one_file_with_the_best(tmp_path):
    """Each finds other scenarios of one failure; whoever comes last, the best stays."""
    paths = []
    for ops in (9, 7, 1, 8, 4, 5, 2, 6, 3):
        found = replace(LEDGER, steps=(*[OP] * ops, FULL, KILL), repro=Repro(9, 10))
        paths.append(save(found, tmp_path / str(ops)))
    kept = tmp_path / "kept"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SAVING, kept, *paths[first:], *paths[:first]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in (0, 3, 6)
    ]
    try:
        assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 3
        for worker in workers:
            worker.stdin.close()
        (path,) = {line.rstrip() for worker in workers for line in worker.stdout}
        assert [worker.wait(30) for worker in workers] == [0, 0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(30)
            worker.stdout.close()
    assert [str(item) for item in kept.iterdir()] == [path]
    assert len(load(path).steps) == 3


def test_whoever_saves_waits_for_another_and_then_judges_by_what_is_there(tmp_path):
    better = replace(LEDGER, steps=(FULL, KILL))
    path = save(LEDGER, tmp_path)
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path, 0) as held:
            assert held
            saving = pool.submit(save, replace(LEDGER, steps=(FULL, KILL, HEAL)), tmp_path)
            deadline = time.monotonic() + 20
            while sum(os.path.realpath(each) == str(tmp_path) for each in Path("/proc/self/fd").iterdir()) < 2:
                assert not saving.done(), "it did not wait"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            path.write_text(dumps(better))
        assert saving.result(20) == path
    assert identity(load(path)) == identity(better)


def test_a_folder_may_be_a_link_to_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "scenarios").symlink_to(tmp_path / "real")
    assert load(save(LEDGER, tmp_path / "scenarios")) == LEDGER


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_args):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(module.os, "link", no_links)
    path = save(LEDGER, tmp_path)
    assert load(path) == LEDGER
    path.write_text("other")
    assert save(LEDGER, tmp_path) != path
    assert len(os.listdir(tmp_path)) == 2


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        save(LEDGER, tmp_path)
    assert os.listdir(tmp_path) == []


def test_step_refs():
    assert step_refs(Op("o", {"a": [Ref("x")]}, (), (Ref("y"),))) == {"x", "y"}
    assert step_refs(Inject("f", "f1", None, {"a": Ref("z")})) == {"z"}
    assert step_refs(Heal("f1")) == set()
