"""Options, from the command line and the ini file; what is said before and after the tests."""

from __future__ import annotations

import pytest

HOLDS = """
class TestHolds(Box):
    faults = (Kill("box"), DiskFull())

    @sometimes
    def it_snows(self):
        return False

    @sometimes
    def it_runs(self):
        return self.starts() > 0
"""


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("examples", "0", "a whole number is needed, 1 or more"),
        ("examples", "many", "a whole number is needed, 1 or more"),
        ("examples", "²", "a whole number is needed, 1 or more"),
        ("examples", "9" * 5000, "a whole number is needed, 1 or more"),
        ("steps", "1.5", "a whole number is needed, 1 or more"),
        ("seed", "-1", "a whole number is needed, 0 or more"),
        ("sandbox", "docker", "allowed are 'namespaces' and 'bare'"),
    ],
)
def test_a_bad_value_is_a_usage_error(pytester, name, value, wanted):
    """Said before anything is collected.  In this process: only pytest's own configuring is tested here."""
    with pytest.raises(pytest.UsageError) as caught:
        pytester.parseconfigure(f"--colos-{name}={value}")
    assert str(caught.value) == f"--colos-{name}={value}: {wanted}"


def test_a_bad_value_in_the_ini_file_names_the_file(project):
    project.write("pytest.ini", "[pytest]\ncolos_steps = none\n")
    result = project.pytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.lines[0] == (
        f"ERROR: {project.path}/pytest.ini: colos_steps = none: a whole number is needed, 1 or more"
    )


def test_the_ini_file_is_heeded_and_the_command_line_goes_before_it(project):
    ini = "colos_examples = 4\ncolos_steps = 3\ncolos_seed = 0\ncolos_sandbox = bare\ncolos_scenarios = kept\n"
    project.write("pytest.ini", f"[pytest]\n{ini}")
    project.box(HOLDS)
    step = '{ fault = "kill", target = "box" }'
    file = project.scenario("one", "test_box.py::TestHolds", "always:anything", step)
    (project.path / "kept").mkdir()
    file.rename(project.path / "kept/one.toml")
    from_file = project.pytest("-k", "explore or one")
    from_file.assert_outcomes(passed=2)
    from_file.stdout.re_match_lines(
        [
            r"colos: sandbox bare \(bare was asked for\); faults: .*kill.*; seed 0$",
            r"test_box.py::TestHolds::explore: 4 examples; faults fired: .*",
        ]
    )
    before = project.pytest("--colos-examples=2", "--colos-sandbox=namespaces", "--colos-seed=7", "--colos-scenarios=x")
    before.assert_outcomes(passed=1)
    before.stdout.re_match_lines([r"colos: sandbox namespaces; faults: .*; seed 7$", r".*: 2 examples; .*"])


def test_before_and_after_the_run_it_says_what_broke_and_what_did_not(project):
    """The tier, the faults, the seed; counts by fault, and a `sometimes` that never was."""
    project.box(HOLDS, "class TestSafe(Box):\n    pass\n")
    result = project.pytest("--colos-examples=5", "--colos-steps=4", "--colos-seed=3")
    result.assert_outcomes(passed=2)
    result.stdout.re_match_lines(
        [
            r"collected 2 items",
            r"colos: sandbox namespaces; faults: disk-full, kill; seed 3",
            r"=+ ColOS =+",
            r"test_box.py::TestHolds::explore: 5 examples; faults fired: disk-full ×[1-9]\d*, kill ×[1-9]\d*",
            r"  not exercised: sometimes:it_snows",
            r"test_box.py::TestSafe::explore: 5 examples; faults fired: nothing",
        ],
        consecutive=False,
    )
    assert "it_runs" not in result.stdout.str()


def test_a_storm_that_never_came_is_no_pass(project):
    """A fault was declared, and there was no step in which it could fire."""
    project.box(
        """
        class TestCalm(Box):
            faults = (Kill("box"),)
            system = CommandSystem(["sh", "-c", "echo start >> {run}/starts; exec sleep 1000"], ready=up, name="box")
        """
    )
    result = project.pytest("-rs", "--colos-examples=2", "--colos-steps=2")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*not exercised: no fault fired in 2 examples*"])
