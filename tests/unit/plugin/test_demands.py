"""Profiles, `--colos-strict`, `--colos-require`: how much a run does, and what it must not go without."""

from __future__ import annotations

import pytest

from colos import profiles

FEW = ("--colos-examples=2", "--colos-steps=2", "--colos-seed=1")
CALM = """
class TestCalm(Box):
    faults = (Kill("box"),)
    system = CommandSystem(["sh", "-c", "echo start >> {run}/starts; exec sleep 1000"], ready=up, name="box")
"""
WEATHER = """
class TestWeather(Box):
    @sometimes
    def it_snows(self):
        return False
"""
#: A fault that no machine has.
NOWHERE = """
from colos.chaos import DiskFull as Full

class Nowhere(Full):
    @classmethod
    def unavailable(cls, session):
        return "the disk is elsewhere", "bring it here"

class TestNowhere(Box):
    faults = (Kill("box"), Nowhere())
"""


@pytest.mark.parametrize(
    ("lines", "chosen", "wanted"),
    [
        ([], None, {}),
        ([], "ci", {}),
        ([], "dev", profiles.SHIPPED["dev"]),
        (["nightly: examples=7"], "nightly", {**profiles.SHIPPED["nightly"], "examples": 7}),
        (["soak: steps=3 replay-runs=9", "soak: minimise=1"], "soak", {"steps": 3, "replay-runs": 9, "minimise": 1}),
    ],
)
def test_a_profile_is_some_numbers(lines, chosen, wanted):
    assert profiles.read(lines, chosen) == wanted


@pytest.mark.parametrize(
    ("lines", "chosen", "wanted"),
    [
        ([], "nighly", "there is no profile 'nighly'; did you mean 'nightly'? known: ci, dev, nightly"),
        (["a: exampels=1"], None, "'a: exampels=1': unknown key 'exampels'; did you mean 'examples'? known: "),
        (["a: steps=0"], None, "'a: steps=0': 'steps=0': a whole number is needed, 1 or more"),
        (["a: steps"], None, "'a: steps': 'steps': a whole number is needed, 1 or more"),
        (["steps=1"], None, "'steps=1': a profile is a line such as 'nightly: examples=500 steps=30'"),
    ],
)
def test_a_bad_profile_says_what_is_allowed(lines, chosen, wanted):
    with pytest.raises(ValueError) as caught:
        profiles.read(lines, chosen)
    assert str(caught.value).startswith(wanted)


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("--colos-profile=soak", "--colos-profile=soak: there is no profile 'soak'; known: ci, dev, nightly"),
        ("--colos-require=kil", "--colos-require=kil: there is no fault 'kil'; did you mean 'kill'? known: "),
        ("--colos-replay-runs=0", "--colos-replay-runs=0: a whole number is needed, 1 or more"),
        ("--colos-minimise=x", "--colos-minimise=x: a whole number is needed, 1 or more"),
    ],
)
def test_a_bad_option_is_a_usage_error(pytester, option, wanted):
    with pytest.raises(pytest.UsageError) as caught:
        pytester.parseconfigure(option)
    assert str(caught.value).startswith(wanted)


def test_the_chosen_profile_is_heeded_and_an_option_goes_before_it(project):
    ini = "[pytest]\ncolos_profile = small\ncolos_profiles =\n    small: examples=3 steps=1 replay-runs=2\n"
    project.write("pytest.ini", ini)
    project.box("class TestHolds(Box):\n    faults = (Kill('box'),)\n")
    project.scenario("one", "test_box.py::TestHolds", "always:x", '{ fault = "kill", target = "box" }')
    result = project.pytest("--colos-seed=1")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*explore: 3 examples; *"])
    # A limit that cuts the runs says what it costs: 1 - (1 - 1/2) ** 2.
    result.stdout.fnmatch_lines(["fixed: one: never failed in 2 runs (a failure as frequent as*shows itself*75 %)*"])
    before = project.pytest("--colos-seed=1", "--colos-examples=2", "-k", "explore")
    before.stdout.fnmatch_lines(["*explore: 2 examples; *"])
    bad = project.pytest("-o", "colos_profiles=small: examples=many")
    assert bad.ret == pytest.ExitCode.USAGE_ERROR
    assert bad.stderr.lines[0] == (
        f"ERROR: {project.path}/pytest.ini: colos_profiles: 'small: examples=many': 'examples=many': "
        "a whole number is needed, 1 or more"
    )


def test_what_was_not_exercised_is_a_failure_under_strict(project):
    """Without it, a skip for faults that never fired, and a line for what never came true."""
    project.box(CALM, WEATHER)
    project.pytest(*FEW).assert_outcomes(passed=1, skipped=1)
    project.write("pytest.ini", "[pytest]\ncolos_strict = true\n")
    result = project.pytest(*FEW)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "not exercised: no fault fired in 2 examples (--colos-strict)",
            "not exercised: sometimes:it_snows never held (--colos-strict)",
            "not exercised: test_box.py::TestCalm::explore: no fault fired in 2 examples",
            "not exercised: test_box.py::TestWeather::explore: sometimes:it_snows",
        ]
    )


def test_a_required_fault_that_is_not_to_be_had_is_a_failure(project):
    project.box(NOWHERE.replace("class Nowhere(Full):", "class Nowhere(Full):\n    kind = 'disk-full'\n"))
    result = project.pytest(*FEW)
    result.assert_outcomes(passed=1)
    required = project.pytest(*FEW, "--colos-require=disk-full,kill")
    required.assert_outcomes(failed=1)
    required.stdout.fnmatch_lines(["the required fault disk-full is unavailable: the disk is elsewhere; bring it here"])


def test_a_scenario_whose_fault_is_not_to_be_had_is_told_and_skipped(project):
    project.box(NOWHERE.replace("class Nowhere(Full):", "class Nowhere(Full):\n    kind = 'disk-full'\n"))
    project.scenario("full", "test_box.py::TestNowhere", "always:a", '{ fault = "disk-full" }')
    result = project.pytest("-k", "scenario", "-rs")
    result.assert_outcomes(skipped=1, deselected=1)
    why = "disk-full is unavailable: the disk is elsewhere; bring it here"
    result.stdout.fnmatch_lines([f"not exercised: full: {why}", f"SKIPPED * not exercised: {why}"])
    strict = project.pytest("-k", "scenario", "--colos-strict")
    strict.assert_outcomes(failed=1, deselected=1)
    strict.stdout.fnmatch_lines([f"not exercised: {why} (--colos-strict)"])
