"""What a violation looks like (DESIGN law 10), the file it leaves, and the one command that replays it."""

from __future__ import annotations

import re
import shlex

import pytest

from colos.chaos.scenario import Inject, load

NOISE = ("Traceback", "@seed", "Falsifying", "Failing test case", "reproduce_failure", "hypothesis/", "colos/chaos")


def report_of(result: pytest.RunResult) -> str:
    """Between its title and whatever follows: in CI, pytest's own summary says all of it again."""
    return re.split("= (?:ColOS|short test summary info) =", result.stdout.str().partition("= FAILURES =")[2])[0]


def line(result: pytest.RunResult, word: str) -> str:
    found = re.findall(rf"^{word} +(.*)$", report_of(result), re.MULTILINE)
    assert len(found) == 1, found
    return str(found[0])


@pytest.mark.slow
def test_a_violation_tells_what_why_how_often_where_and_how_to_see_it_again(project, killed):
    project.box(killed, name="sub/test_box.py")
    project.write("pytest.ini", "[pytest]\n")
    arguments = ("--colos-seed=1", "--colos-steps=3", "--colos-scenarios=kept here", "--colos-sandbox=bare")
    found = project.pytest(*arguments)
    found.assert_outcomes(failed=1)
    report = report_of(found)
    assert report.count("always:started_once is violated") == 1
    assert "it was started again" in report
    assert re.search(r"^minimal steps \(1(, from \d found)?\):\n   1\. fault  kill on box\n\n", report, re.MULTILINE)
    assert line(found, "reproduced") == "5 of 5 runs"
    for noise in NOISE:
        assert noise not in found.stdout.str() + found.stderr.str()

    journal = project.path / line(found, "journal")
    assert '"always:started_once"' in journal.read_text()
    saved = project.path / line(found, "scenario")
    scenario = load(saved)
    assert (scenario.test, scenario.violates) == ("sub/test_box.py::TestKilled", "always:started_once")
    assert [(step.fault, step.target) for step in scenario.steps if isinstance(step, Inject)] == [("kill", "box")]

    before = saved.read_bytes()
    program, *command = shlex.split(line(found, "replay"))
    assert program == "pytest"
    replayed = project.pytest(*command)
    replayed.assert_outcomes(failed=1)
    assert "always:started_once is violated" in report_of(replayed)
    assert line(replayed, "failed") == "3 of 3 runs"
    assert line(replayed, "outcome") == "failed"
    assert (project.path / line(replayed, "journal")).exists()
    for noise in NOISE:
        assert noise not in replayed.stdout.str() + replayed.stderr.str()

    # The next whole run has it as an item; found again, it is kept once.
    again = project.pytest("--colos-scenarios=kept here", "--collect-only", "-q")
    assert again.outlines[1] == f"sub/test_box.py::TestKilled::scenario[{saved.stem}]"
    assert saved.read_bytes() == before

    # Called from another folder, the command is the one that works there.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.path / "sub")
        below = project.pytest(*arguments, "-k", "explore")
    assert "'test_box.py::TestKilled::scenario[" in line(below, "replay")
    assert list((project.path / "kept here").iterdir()) == [saved]
    summary = "TestKilled::explore: always:started_once is violated, 5 of 5 runs: kept here/"
    found.stdout.fnmatch_lines([f"new: *{summary}*"])
    below.stdout.re_match_lines([rf"again: .*{summary.rpartition(' kept')[0]}.*"])
    assert "new:" not in below.stdout.str()


def test_a_rule_that_raises_is_a_violation_with_its_traceback(project):
    """And what the system itself wrote is shown; what Hypothesis would say is not."""
    project.box(
        """
        class TestRaises(Box):
            system = CommandSystem(["sh", "-c", "echo help me; echo start >> {run}/starts; exec sleep 1000"], ready=up)

            @rule()
            def look_up(self):
                return self.nested()

            def nested(self):
                return {}["no such key"]
        """
    )
    result = project.pytest("--colos-steps=3", "--colos-seed=1")
    result.assert_outcomes(failed=1)
    report = report_of(result)
    assert "rule:look_up is violated" in report
    assert "KeyError: 'no such key'" in report
    assert ", in look_up" in report
    assert ", in nested" in report
    assert 'return {}["no such key"]' in report
    assert re.search(r"minimal steps \(1.*\n   1\. op     look_up\(\)\n", report)
    assert "the system's own output ended:\n    help me" in report
    for noise in NOISE:
        assert noise not in report


def test_what_does_not_happen_again_is_told_and_not_saved(project):
    project.box(
        """
        import os

        class TestOnce(Box):
            @always
            def only_the_first_run_fails(self):
                try:
                    os.mkdir("seen")
                except FileExistsError:
                    return True
                return False
        """
    )
    result = project.pytest("--colos-steps=1", "--colos-seed=5")
    result.assert_outcomes(failed=1)
    report = report_of(result)
    assert "always:only_the_first_run_fails is violated" in report
    assert "it returned False" in report
    assert line(result, "reproduced") == "0 of 30 runs"
    assert line(result, "not saved").endswith("to search the same way: --colos-seed=5")
    assert not (project.path / "scenarios").exists()


def test_an_author_who_prints_is_heard(project):
    project.box(
        """
        class TestPrints(Box):
            @rule()
            def fail(self):
                print("seen by the author")
                assert False
        """
    )
    result = project.pytest("--colos-steps=2", "--colos-seed=1")
    result.assert_outcomes(failed=1)
    assert "seen by the author" in result.stdout.str()


def test_an_author_s_own_mistake_is_told_as_python_tells_it(project):
    """An exception from `__init__` or a precondition: a traceback, and no counterexample."""
    project.box(
        """
        from hypothesis.stateful import precondition

        class TestInit(Box):
            def __init__(self):
                super().__init__()
                raise LookupError("in __init__")

        class TestPrecondition(Box):
            @precondition(lambda self: self.nowhere)
            @rule()
            def never(self):
                pass

        class TestSometimes(Box):
            @sometimes
            def it_works(self):
                raise LookupError("in sometimes")
        """
    )
    result = project.pytest("--colos-steps=2")
    result.assert_outcomes(failed=3)
    text = result.stdout.str()
    assert "LookupError: in __init__" in text
    assert "AttributeError: 'TestPrecondition' object has no attribute 'nowhere'" in text
    assert "LookupError: in sometimes" in text
    for noise in ("Falsifying", "Failing test case", "@seed", "reproduce_failure", "minimal steps"):
        assert noise not in text
    assert not (project.path / "scenarios").exists()
