"""Known failures: accepted for now, counted while exploring, and never a cover for another failure."""

from __future__ import annotations

import pytest

#: Killing it and filling its disk both make it unwell; only killing it starts it again.
FRAGILE = """
class TestFragile(Box):
    faults = (Kill("box"), DiskFull())

    @always
    def is_well(self):
        assert not self.refused, "a write was refused"
        assert self.starts() == 1, "it was started again"
"""
TEST = "test_box.py::TestFragile"
KILL = '{ fault = "kill", target = "box" }'
FULL = '{ fault = "disk-full" }'
PUT = '{ op = "put", size = 60000 }'
KNOWN = 'known = "we know"\n'


@pytest.fixture
def fragile(project):
    project.box(FRAGILE)
    return project


@pytest.mark.slow
def test_a_known_failure_is_expected_and_passed_over(fragile):
    """All ways to fail are known: exploring counts them, goes on to the last example, and passes."""
    fragile.scenario("inodes", TEST, "always:is_well", FULL.replace(" }", ', resource = "inodes" }'), PUT, extra=KNOWN)
    fragile.scenario("killed", TEST, "always:is_well", KILL, extra=KNOWN)
    fragile.scenario("full", TEST, "always:is_well", FULL, PUT, extra=KNOWN)
    result = fragile.pytest("-rx", "--colos-examples=24", "--colos-steps=4", "--colos-seed=2")
    result.assert_outcomes(passed=1, xfailed=3)
    result.stdout.re_match_lines_random(
        [
            rf"XFAIL {TEST}::scenario\[killed\] - known: we know",
            rf"{TEST}::explore: 24 examples; faults fired: disk-full ×\d+, kill ×\d+",
            r"  known failure met \d+ times: killed",
            r"  known failure met \d+ times: (full|inodes)",
        ]
    )


@pytest.mark.slow
def test_the_same_property_by_another_fault_is_a_new_failure(fragile):
    fragile.scenario("killed", TEST, "always:is_well", KILL, extra=KNOWN)
    result = fragile.pytest("--colos-examples=30", "--colos-steps=4", "--colos-seed=2", "-k", "explore")
    result.assert_outcomes(failed=1, deselected=1)
    text = result.stdout.str()
    assert "a write was refused" in text
    assert "fault  disk-full" in text
    assert "fault  kill" not in text
    assert len(list((fragile.path / "scenarios").iterdir())) == 2


@pytest.mark.slow
def test_another_property_by_the_same_fault_is_a_new_failure(project, killed):
    project.box(killed)
    project.scenario("other", "test_box.py::TestKilled", "always:another", KILL, extra=KNOWN)
    result = project.pytest("--colos-steps=3", "--colos-seed=1")
    result.assert_outcomes(failed=2)
    text = result.stdout.str()
    report = text.partition("= FAILURES =")[2].partition("= ColOS =")[0]
    assert report.count("always:started_once is violated\n") == 1
    assert "always:started_once is violated (the scenario is about always:another)" in report


@pytest.mark.slow
def test_a_known_failure_that_is_mended_asks_for_its_line_to_go(fragile):
    """A replay that is known fails, one that is mended too; without the line it is an ordinary guard."""
    put = fragile.scenario("mended", TEST, "always:is_well", PUT, extra=KNOWN)
    before = put.read_bytes()
    result = fragile.pytest(f"{TEST}::scenario[mended]")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "mended.toml: fixed: this known failure (we know) did not happen in 7 runs; "
            "if it is mended, take the line 'known' out of the file, which then guards against its return",
            "fixed: mended: never failed in 7 runs; its line 'known' (we know) may go",
        ]
    )
    assert put.read_bytes() == before
    fragile.scenario("mended", TEST, "always:is_well", PUT)
    fragile.pytest(f"{TEST}::scenario[mended]").assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_machine_that_has_nothing_left_to_do_after_a_known_failure_ends_its_example(project):
    """The only rule's precondition is gone with the failure; Hypothesis alone would call that an error."""
    project.box(
        """
        from hypothesis.stateful import precondition

        class Dying(Box):
            faults = (Kill("box"),)
            dead = False

            @precondition(lambda self: not self.dead)
            @rule(size=st.just(1))
            def put(self, size):
                self.dead = self.starts() > 1

        class TestDying(Dying):
            @always
            def lives(self):
                return not self.dead

        class TestOnlyFaults(ChaosMachine):
            system = CommandSystem(
                ["sh", "-c", "echo start >> {run}/starts; exec sleep 1000"],
                ready=up, restarts=Restarts(limit=2), name="box",
            )
            faults = (Kill("box"),)
        """
    )
    project.scenario("dead", "test_box.py::TestDying", "always:lives", KILL, '{ op = "put", size = 1 }', extra=KNOWN)
    result = project.pytest("--colos-examples=6", "--colos-steps=8", "--colos-seed=1")
    result.assert_outcomes(passed=2, xfailed=1)
    result.stdout.re_match_lines([r"  known failure met [1-6] times: dead", r".*TestOnlyFaults::explore: 6 examples.*"])
