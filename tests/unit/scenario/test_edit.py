"""Rewriting a file keeps what its author wrote beside the scenario."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colos.chaos.scenario import Heal, Inject, Op, Repro, Scenario, dumps, identity, load, loads, rewrite, update_text
from colos.errors import InvalidScenario

TEXT = """\
# Found in March.
# Ask Ida.
format = 1   # the first

test     = 'tests/test_ledger.py::TestLedger'
# the promise
violates = "always:kept"  # of the ledger
known    = "issue #12"  # [not] yet
repro    = { runs = 10, failed = 9 }

steps = [  # in order
  # money comes in
  { op = "deposit", amount = 0x10, account = 'a#]}' },  # sixteen
  { op="deposit", amount=2 },

  # now it breaks
  { fault = "disk-full", id = "full" },
  { fault = "kill", target = "ledger/writer" }, # hard
  { heal = "full" },
  # that is all
]  # end
# the last word
"""
OLD = loads(TEXT)
FIRST, SECOND, FULL, KILL, HEAL = OLD.steps


def says(text: str, scenario: Scenario) -> None:
    found = loads(text)
    assert replace(found, steps=()) == replace(scenario, steps=())
    assert identity(found) == identity(scenario)


def lines_changed(scenario: Scenario) -> tuple[list[str], list[str]]:
    """The lines that go and those that come."""
    text = update_text(TEXT, scenario)
    says(text, scenario)
    before, after = TEXT.splitlines(), text.splitlines()
    kept = [line for line in after if line in before]
    assert kept == [line for line in before if line in after], "the order has changed"
    return [line for line in before if line not in after], [line for line in after if line not in before]


def test_what_is_said_already_is_not_touched():
    assert update_text(TEXT, OLD) == TEXT
    other_ids = tuple(replace(step, id="x" + step.id) if not isinstance(step, Op) else step for step in OLD.steps)
    assert update_text(TEXT, replace(OLD, steps=other_ids)) == TEXT


def test_a_key_is_changed_in_its_place():
    assert lines_changed(replace(OLD, repro=Repro(20, 20), violates="always:paid")) == (
        ['violates = "always:kept"  # of the ledger', "repro    = { runs = 10, failed = 9 }"],
        ['violates = "always:paid"  # of the ledger', "repro    = { failed = 20, runs = 20 }"],
    )


def test_a_key_is_put_where_it_belongs_and_a_removed_one_leaves_its_comment():
    scenario = replace(OLD, known=None, tier="bare", versions={"python": "3.11.7"}, mechanisms={"kill": "pidfd"})
    assert lines_changed(scenario) == (
        ['known    = "issue #12"  # [not] yet'],
        ["# [not] yet", 'tier     = "bare"', 'mechanisms = { kill = "pidfd" }', 'versions = { python = "3.11.7" }'],
    )


def test_a_dropped_step_goes_with_its_comments():
    assert lines_changed(replace(OLD, steps=(SECOND, FULL, HEAL))) == (
        [
            "  # money comes in",
            "  { op = \"deposit\", amount = 0x10, account = 'a#]}' },  # sixteen",
            '  { fault = "kill", target = "ledger/writer" }, # hard',
        ],
        [],
    )


def test_a_changed_step_keeps_its_comments():
    steps = (replace(FIRST, args={"amount": 1}), SECOND, FULL, replace(KILL, target="ledger/2"), HEAL)
    assert lines_changed(replace(OLD, steps=steps)) == (
        [
            "  { op = \"deposit\", amount = 0x10, account = 'a#]}' },  # sixteen",
            '  { fault = "kill", target = "ledger/writer" }, # hard',
        ],
        ['  { op = "deposit", amount = 1 },  # sixteen', '  { fault = "kill", target = "ledger/2" },  # hard'],
    )


def test_new_steps_and_new_heals_refer_to_the_faults_of_the_file():
    """The scenario has ids of its own, among them one that the file gives to another fault."""
    steps = (Inject("pause", "full", "a"), replace(FULL, id="x"), KILL, Heal("x"), Heal(KILL.id), Heal("full"))
    scenario = replace(OLD, steps=steps)
    text = update_text(TEXT, scenario)
    says(text, scenario)
    assert '  # now it breaks\n  { fault = "disk-full", id = "full" },\n' in text
    assert '  { fault = "kill", id = "f1", target = "ledger/writer" },  # hard\n' in text
    assert '  { heal = "full" },\n  { heal = "f1" },\n' in text


def test_no_steps_are_left():
    scenario = replace(OLD, steps=())
    text = update_text(TEXT, scenario)
    says(text, scenario)
    assert "steps = [  # in order\n  # that is all\n]  # end\n# the last word\n" in text


@pytest.mark.parametrize(
    "layout",
    [
        "format = 1\ntest = 't'\nviolates = 'v'\n# over\n[[steps]] # one\nop = 'a' # it\n[[steps]]\nop = 'b'\n",
        "format = 1\ntest = 't'\nviolates = 'v'\nrepro.failed = 1 # one\nrepro.runs = 2\n"
        "steps = [{op = 'a'}, {op = 'b'}] # over it\n",
        "format = 1\ntest = 't'\nviolates = 'v'\nsteps = [\n { op = 'a' }\n, # one\n { op = 'b' } # it, over\n]\n",
    ],
)
def test_a_layout_that_cannot_be_edited_is_written_anew_below_its_comments(layout):
    scenario = replace(loads(layout), steps=(Op("b"),), repro=Repro(2, 2))
    text = update_text(layout, scenario)
    says(text, scenario)
    assert text.endswith(dumps(scenario))
    for word in ("one", "it", "over"):
        assert word in text.partition("format")[0]


@pytest.mark.parametrize(
    "layout",
    [
        "format=1\ntest='t'\nviolates='v'\nsteps=[{op='a'},{op='b'}]",
        "steps=[{op='a'},\n\t{op='b'}] # x\nformat=1\ntest='''\nt'''\nviolates=\"v\"",
        "'format' = 1\n\"test\" = 't'\nviolates = 'v'\nsteps = [\n\n    {op='a'}, {op='b'}\n]",
    ],
)
def test_compact_layouts_are_edited_in_place(layout):
    scenario = replace(loads(layout), steps=(Op("b"),), known="why", tier="bare")
    text = update_text(layout, scenario)
    says(text, scenario)
    assert next(line for line in layout.split("\n") if "test" in line) in text
    assert "{op='b'}" in text


def test_line_ends_stay_as_they_are():
    windows = TEXT.replace("\n", "\r\n")
    text = update_text(windows, replace(OLD, repro=None))
    assert text == windows.replace("repro    = { runs = 10, failed = 9 }\r\n", "")
    assert update_text(windows, OLD) == windows


def test_what_is_no_scenario_or_cannot_be_written_is_refused():
    with pytest.raises(InvalidScenario, match=r"x\.toml: line 1: "):
        update_text("format = 7", OLD, "x.toml")
    with pytest.raises(InvalidScenario, match=r"steps\[0\]: the op 'o': the argument 'f'"):
        update_text(TEXT, replace(OLD, steps=(Op("o", {"f": object()}),)))


def test_a_rewritten_file_keeps_its_mode_and_an_unchanged_one_its_inode(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(TEXT)
    path.chmod(0o600)
    inode = path.stat().st_ino
    rewrite(path, OLD)
    assert path.stat().st_ino == inode
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    rewrite(link, replace(OLD, known=None))
    assert link.is_symlink()
    assert load(path) == replace(OLD, known=None)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.toml", "link.toml"]


# --- any file, any change ----------------------------------------------------------------

words = st.sampled_from(["a", "b", "#]}\n", '"""', ""])
args = st.dictionaries(st.sampled_from(["x", "id", "op"]), st.integers(0, 2) | words | st.none(), max_size=2)
heads = st.fixed_dictionaries(
    {},
    optional={
        "known": words,
        "repro": st.sampled_from([Repro(1, 2), Repro(9, 9)]),
        "tier": words,
        "mechanisms": st.dictionaries(words, words, min_size=1, max_size=2),
        "versions": st.dictionaries(words, words, min_size=1, max_size=2),
    },
)


@st.composite
def step_lists(draw):
    steps = []
    for kind in draw(st.lists(st.sampled_from("oofh"), max_size=7)):
        begun = [step.id for step in steps if isinstance(step, Inject)]
        if kind == "o":
            steps.append(Op(draw(st.sampled_from(["put", "get"])), draw(args)))
        elif kind == "f":
            target = draw(st.none() | st.sampled_from(["t", "u"]))
            steps.append(Inject(draw(st.sampled_from(["kill", "full"])), f"f{len(steps)}", target, draw(args)))
        elif begun:
            steps.append(Heal(draw(st.sampled_from(begun))))
    return tuple(steps)


scenarios = st.builds(lambda head, steps: Scenario("t", "v", steps, **head), heads, step_lists())


@given(scenarios, scenarios, st.data())
def test_any_change_is_made_and_comments_of_what_stays_are_kept(old, new, data):
    """Every line of the file has comments; those of the keys survive whatever changes."""
    if old.steps and data.draw(st.booleans()):
        new = replace(new, steps=old.steps[: data.draw(st.integers(0, len(old.steps)))])
    lines = dumps(old).splitlines()
    places = {number: data.draw(st.sampled_from(["over", "beside"])) for number in range(len(lines))}
    text = "".join(
        f"# over {number}.\n{line}\n" if places[number] == "over" else f"{line}  # beside {number}.\n"
        for number, line in enumerate(lines)
    )
    text += "# end.\n"
    says(text, old)
    changed = update_text(text, new)
    says(changed, new)
    assert update_text(changed, new) == changed
    assert changed.endswith("# end.\n")
    for number in range(next(number for number, line in enumerate(lines) if line.startswith("steps =")) + 1):
        assert f"# {places[number]} {number}.\n" in changed


@given(scenarios, st.data())
def test_a_step_that_stays_stays_with_its_comment(old, data):
    """Steps are dropped; of the others, each line stays as it was, comment and all."""
    ops = tuple(Op("put", {"n": number}) for number in range(data.draw(st.integers(1, 8))))
    kept = sorted(data.draw(st.sets(st.sampled_from(range(len(ops))))))
    old = replace(old, steps=ops)
    text = "".join(
        f"  # over\n{line}  # of {line}\n" if line.startswith("  {") else f"{line}\n"
        for line in dumps(old).splitlines()
    )
    new = replace(old, steps=tuple(ops[at] for at in kept))
    expected = text
    for at in set(range(len(ops))) - set(kept):
        line = next(line for line in dumps(old).splitlines() if f"n = {at} }}" in line)
        expected = expected.replace(f"  # over\n{line}  # of {line}\n", "")
    assert update_text(text, new) == expected
